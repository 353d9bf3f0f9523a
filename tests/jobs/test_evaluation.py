"""Samplers in original units: what they compute by hand, and what they leave as it was."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.seeds import generator_for
from fastgen.data.samples import SampleData
from fastgen.data.trajectories import TrajectoryData
from fastgen.export import Student
from fastgen.jobs import evaluation
from fastgen.jobs.evaluation import (
    chunk_rows,
    evaluate_student,
    evaluate_teacher,
    latency_ms,
    nested_t_lists,
    student_sampler,
    teacher_sampler,
)
from fastgen.normalizer import Normalizer
from fastgen.teachers.half import Bfloat16Network
from support.toy import ToyTask, ToyTeacher

T_LIST = (0.9, 0.6, 0.3, 0.1, 0.0)
# Neither a multiple of the identity nor without a mean, so that a normaliser that is left out or
# swapped shows.
X_MEAN, X_SCALE = torch.tensor([3.0, -2.0]), torch.tensor([[2.0, 0.5], [0.0, 0.25]])
Z_MEAN, Z_SCALE = torch.tensor([-1.0, 5.0]), torch.tensor([[0.5, 0.0], [1.0, 4.0]])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def data(pack: int = 2, n: int = 11) -> TrajectoryData:
    return TrajectoryData(
        normal(n, 4, 2),
        normal(n, 1, 2, seed=1),
        Normalizer(X_MEAN, X_SCALE),
        Normalizer(Z_MEAN, Z_SCALE),
        pack=pack,
    )


class Known(nn.Module):
    """v = a x_t + t + (first number of the condition), with what it was given kept."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5))
        self.seen: list[tuple[tuple[int, ...], Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self.seen.append((tuple(x.shape), cond))
        return self.a * x + t.to(x.dtype).reshape(-1, 1, 1) + cond[:, :1, :1]


def by_hand(rows: list[tuple[float, float]], z: Tensor, noise: Tensor, start: float) -> Tensor:
    """Euler's x <- x + (s - t) v over (t, s), one number at a time, from `start` noise, with the
    maps written out."""
    out = torch.empty(noise.shape, dtype=torch.float64)
    z_inverse = torch.linalg.inv(Z_SCALE.double())
    for b in range(len(noise)):
        first = float((z_inverse @ (z[b, 0].double() - Z_MEAN.double()))[0])
        for waypoint in range(noise.shape[1]):
            y = start * noise[b, waypoint].double()
            for t, s in rows:
                y = y + (s - t) * (0.5 * y + t + first)
            out[b, waypoint] = X_MEAN.double() + X_SCALE.double() @ y
    return out


# ---- Original units ------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize("pack", [1, 2, 4])
def test_the_teachers_samples_are_those_computed_by_hand(calls, pack):
    network, set_, noise = Known(), data(pack), normal(5, 4, 2, seed=2)
    z = set_.Z[:5]
    x = teacher_sampler(network, set_, calls)(z, noise)
    rows = [(1 - i / calls, 1 - (i + 1) / calls) for i in range(calls)]
    assert torch.allclose(x.double(), by_hand(rows, z, noise, 1.0), rtol=0, atol=1e-5)
    assert x.dtype == torch.float32 and not x.requires_grad
    assert [shape for shape, _ in network.seen] == [(5, 4 // pack, 2 * pack)] * calls


@pytest.mark.parametrize("pack", [1, 4])
def test_an_ode_students_samples_are_those_computed_by_hand(pack):
    set_, noise = data(pack), normal(5, 4, 2, seed=2)
    x = student_sampler(Known(), set_, T_LIST, sample_type="ode")(set_.Z[:5], noise)
    rows = list(zip(T_LIST, T_LIST[1:], strict=False))
    assert torch.allclose(
        x.double(), by_hand(rows, set_.Z[:5], noise, T_LIST[0]), rtol=0, atol=1e-5
    )


def test_a_one_step_student_is_the_teachers_step_from_its_first_rung():
    set_, noise = data(), normal(5, 4, 2, seed=2)
    x = student_sampler(Known(), set_, [0.9, 0.0])(set_.Z[:5], noise)
    assert torch.allclose(
        x.double(), by_hand([(0.9, 0.0)], set_.Z[:5], noise, 0.9), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("pred_type", ["flow", "x0", "eps"])
def test_what_a_student_predicts_is_read_as_it_says(pred_type):
    # A network that answers 0: x0 = x_t for a flow, 0 for x0, x_t / (1 - t) for eps.
    class Zero(Known):
        def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            return 0 * self.a * x

    set_, noise = data(), normal(5, 4, 2, seed=2)
    x = student_sampler(Zero(), set_, [0.9, 0.0], pred_type=pred_type)(set_.Z[:5], noise)
    factor = {"flow": 0.9, "x0": 0.0, "eps": 9.0}[pred_type]
    assert torch.allclose(x, X_MEAN + factor * noise @ X_SCALE.T, atol=1e-5)


def test_the_dtype_inside_is_the_networks_and_outside_the_noises_place_is_the_cpu():
    set_, noise = data(), normal(3, 4, 2)
    network = Known().double()
    x = teacher_sampler(network, set_, 2)(set_.Z[:3], noise)
    assert network.seen[0][1].dtype == torch.float64 and x.device.type == "cpu"
    assert torch.allclose(
        x.float(), teacher_sampler(Known(), set_, 2)(set_.Z[:3], noise), atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sample_type", ["ode", "sde"])
def test_what_is_scored_is_what_a_user_of_the_student_gets(sample_type, dtype):
    network, set_, noise = Known().to(dtype), data(), normal(5, 4, 2, seed=2)
    scored = student_sampler(network, set_, T_LIST, sample_type=sample_type, seed=3)
    student = Student(
        network,
        t_list=T_LIST,
        steps=[4],
        sample_type=sample_type,
        pred_type="flow",
        horizon=(4, 2),
        cond_horizon=(1, 2),
        pack=set_.pack,
        x_normalizer=set_.x_normalizer,
        z_normalizer=set_.z_normalizer,
    )
    x = student.sample(set_.Z[:5], noise=noise, generator=generator_for(3, "sampler"))
    assert x.dtype == dtype and torch.equal(scored(set_.Z[:5], noise), x)


def test_a_teacher_kept_in_bfloat16_is_scored_in_the_dtype_that_it_is_called_in():
    network, set_, noise = Known(), data(), normal(5, 4, 2, seed=2)
    x = teacher_sampler(Bfloat16Network(network), set_, 2)(set_.Z[:5], noise)
    assert network.a.dtype == torch.bfloat16 and network.seen[0][1].dtype == torch.float32
    assert x.dtype == torch.float32
    # One half is a number of bfloat16, and nothing here is a matrix product: no digit is lost.
    assert torch.equal(x, teacher_sampler(Known(), set_, 2)(set_.Z[:5], noise))


# ---- Chunks and draws ----------------------------------------------------------------------------

SAMPLERS = {
    "student, 1 step": lambda net, d: student_sampler(net, d, [0.9, 0.0]),
    "student, ode": lambda net, d: student_sampler(net, d, T_LIST, sample_type="ode"),
    "teacher": lambda net, d: teacher_sampler(net, d, 3),
    "teacher, ab2": lambda net, d: teacher_sampler(net, d, 4, "ab2"),
}
sampled = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


@sampled
@pytest.mark.parametrize("chunk", [1, 4, 11])
def test_chunks_do_not_change_a_sample(monkeypatch, sampler, chunk):
    network, set_, noise = Known(), data(), normal(11, 4, 2, seed=2)
    whole = sampler(network, set_)(set_.Z, noise)
    network.seen.clear()
    monkeypatch.setattr(evaluation, "MOST_ROWS", chunk)
    assert torch.equal(sampler(network, set_)(set_.Z, noise), whole)
    assert max(shape[0] for shape, _ in network.seen) == chunk


def test_the_fresh_noise_of_an_sde_student_is_the_same_at_every_call():
    set_, noise = data(), normal(11, 4, 2, seed=2)
    sample = student_sampler(Known(), set_, T_LIST, sample_type="sde")
    assert torch.equal(sample(set_.Z, noise), sample(set_.Z, noise))
    other = student_sampler(Known(), set_, T_LIST, sample_type="sde", seed=1)
    assert not torch.equal(other(set_.Z, noise), sample(set_.Z, noise))


@sampled
@pytest.mark.parametrize("training", [True, False])
def test_a_network_samples_without_dropout_and_keeps_its_mode(sampler, training):
    class Dropping(Known):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            return self.drop(super().forward(x, t, cond))

    network, set_, noise = Dropping().train(training), data(), normal(11, 4, 2, seed=2)
    assert torch.equal(sampler(network, set_)(set_.Z, noise), sampler(Known(), set_)(set_.Z, noise))
    assert [module.training for module in network.modules()] == [training] * 2


# ---- Fewer steps, scores, latency ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "counts"), [(1, {1}), (2, {1, 2}), (4, {1, 2, 4}), (6, {1, 2, 3, 6}), (7, {1, 7})]
)
def test_a_student_also_serves_every_divisor_of_its_steps_on_its_own_rungs(n, counts):
    t_list = [0.999 * (n - i) / n for i in range(n)] + [0.0]
    nested = nested_t_lists(t_list)
    assert set(nested) == counts and nested[n] == t_list
    for k, rungs in nested.items():
        assert len(rungs) == k + 1 and set(rungs) <= set(
            t_list
        )  # the very floats it was trained at
        assert (rungs[0], rungs[-1]) == (t_list[0], 0.0)
        gaps = {t_list.index(b) - t_list.index(a) for a, b in zip(rungs, rungs[1:], strict=False)}
        assert gaps == {n // k}


def test_scores_are_keyed_by_calls_and_solver_and_are_those_of_the_samplers():
    task, network, said = ToyTask(), ToyTeacher(), []
    rows = evaluate_teacher(network, task, (1, 3), (4,), progress=said.append)
    assert list(rows) == said == ["1", "3", "ab2-4"]
    assert rows["3"] == task.evaluate(teacher_sampler(network, task.train, 3))
    assert (
        rows["ab2-4"] == task.evaluate(teacher_sampler(network, task.train, 4, "ab2")) != rows["3"]
    )
    student = evaluate_student(network, task, T_LIST, sample_type="sde", pred_type="flow")
    assert list(student) == ["1", "2", "4"]
    assert student["2"] == task.evaluate(
        student_sampler(network, task.train, [0.9, 0.3, 0.0], sample_type="sde")
    )


def test_a_rung_of_an_ode_student_leads_to_the_next_one_so_only_all_of_them_make_a_sample():
    assert nested_t_lists(T_LIST, "ode") == {4: list(T_LIST)}
    assert list(
        evaluate_student(ToyTeacher(), ToyTask(), T_LIST, sample_type="ode", pred_type="flow")
    ) == ["4"]


def test_latency_is_a_median_that_a_slow_first_call_does_not_touch(monkeypatch):
    clock = iter([0.0, 100.0, 200.0, 200.001, 300.0, 300.003, 400.0, 450.0])
    monkeypatch.setattr(evaluation, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    batches = []

    def sample(z: Tensor, noise: Tensor) -> Tensor:
        batches.append((tuple(z.shape), tuple(noise.shape)))
        return noise

    # More conditions than there are rows: they come round again.
    assert latency_ms(sample, data(n=3), 5, repeats=3) == pytest.approx(3.0)
    assert batches == [((5, 1, 2), (5, 4, 2))] * 4


class Picky(Known):
    """With a part that its owner keeps in eval mode, and an error on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.kept, self.fails = nn.Dropout(0.5), False

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        if self.fails:
            raise RuntimeError("no")
        return super().forward(x, t, cond)


@sampled
def test_every_part_of_a_network_gets_its_own_mode_back_also_after_an_error(sampler):
    network, set_ = Picky().train(), data()
    network.kept.eval()
    for network.fails in (False, True):
        if network.fails:
            with pytest.raises(RuntimeError, match="no"):
                sampler(network, set_)(set_.Z, normal(11, 4, 2))
        else:
            sampler(network, set_)(set_.Z, normal(11, 4, 2))
        assert network.training and not network.kept.training


# ---- Samples of any shape ------------------------------------------------------------------------


class Labelled(nn.Module):
    """v = a x_t + (number of the label), on samples of any shape."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.seen = nn.Parameter(torch.tensor(0.5)), []

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        self.seen.append((tuple(x.shape), cond))
        shift = 0 if cond is None else cond.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return self.a * x + shift


@pytest.mark.parametrize("shape", [(3,), (4, 2), (3, 4, 4), (2, 2, 2, 2)])
@pytest.mark.parametrize("labels", [None, torch.arange(9) % 4])
def test_samples_of_any_shape_are_those_computed_by_hand(shape, labels):
    network, set_, noise = (
        Labelled().double(),
        SampleData(normal(9, *shape), labels),
        normal(9, *shape, seed=2),
    )
    shift = torch.zeros(9).double() if labels is None else labels.double()
    shift = shift.reshape(-1, *[1] * len(shape))
    x = student_sampler(network, set_, [0.9, 0.0])(set_.Z, noise)
    assert torch.allclose(x.double(), 0.9 * noise - 0.9 * (0.45 * noise + shift), atol=1e-6)
    x = teacher_sampler(network, set_, 1)(set_.Z, noise)
    assert torch.allclose(x.double(), noise - (0.5 * noise + shift), atol=1e-6)
    assert network.seen[0][1] is None if labels is None else network.seen[0][1].dtype == torch.int64
    assert latency_ms(student_sampler(network, set_, [0.9, 0.0]), set_, 20, repeats=1) > 0
    assert network.seen[-1][0] == (20, *shape)


def test_large_samples_go_through_a_network_a_few_at_a_time():
    small, large = SampleData(normal(9, 3)), SampleData(torch.zeros(1, 1).expand(9, 2**21))
    assert chunk_rows(small, 4096) == 4096 and chunk_rows(large, 4096) == 2
    assert chunk_rows(SampleData(torch.zeros(1, 1).expand(2, 2**23)), 4096) == 1
    assert chunk_rows(data(), 4096) == 4096
