"""Distribution matching trains on the inputs of the sampler, shared among processes."""

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.seeds import generator_for
from fastgen.config import DMDConfig
from fastgen.dmd import DMDPipeline
from fastgen.flow_matching import add_noise
from fastgen.samplers import sample_student
from support.exact import GaussianTeacher, normal
from support.pipeline import COND, NOISE, T_LIST, X0, build, networks


@pytest.mark.parametrize("student_sample_type", ["ode", "sde"])
def test_training_inputs_are_the_samplers_inputs(student_sample_type):
    """At each rung the very tensor that sampling with the same draws feeds to the network there."""
    pipeline = build(t_list=T_LIST, student_sample_type=student_sample_type)
    rungs = set()
    for seed in range(16):
        x_t, t, rung = pipeline.student_input(X0, NOISE, COND, generator=generator_for(seed))
        generator = generator_for(seed)
        torch.randint(4, (1,), generator=generator)  # the rung is drawn first
        xs, ts = sample_student(
            pipeline.student,
            NOISE,
            T_LIST,
            COND,
            sample_type=student_sample_type,
            generator=generator,
            return_all_steps=True,
        )
        assert torch.equal(x_t, xs[:, rung]) and t == ts[rung] and not x_t.requires_grad
        rungs.add(rung)
    assert rungs == {0, 1, 2, 3}


@pytest.mark.parametrize("student_sample_type", ["ode", "sde"])
def test_inputs_at_a_rung_have_the_samplers_law(student_sample_type):
    """Moments over many samples, with independent draws for training and sampling."""
    n = 20_000
    teacher = GaussianTeacher()
    config = DMDConfig(
        t_list=T_LIST, student_sample_type=student_sample_type, fake_score_rung_conditioned=False
    )
    pipeline = DMDPipeline(teacher, teacher, teacher, config)
    xs, _ = sample_student(
        teacher,
        normal(n, 1, seed=10),
        T_LIST,
        sample_type=student_sample_type,
        generator=generator_for(11),
        return_all_steps=True,
    )
    for seed in range(8):
        x_t, _, rung = pipeline.student_input(
            None, normal(n, 1, seed=20 + seed), generator=generator_for(seed)
        )
        # Four standard deviations of the difference of two means (of deviations about 1 at most) of
        # 20000 samples.
        assert (
            abs(x_t.mean() - xs[:, rung].mean()) < 0.04
            and abs(x_t.std() - xs[:, rung].std()) < 0.03
        )


def test_noised_data_has_one_rung_per_sample_and_pure_noise_at_the_first():
    pipeline = build(t_list=T_LIST, backward_simulation=False)
    noise = normal(400, 3)
    x0 = normal(400, 3, seed=1)
    x_t, t, rungs = pipeline.student_input(x0, noise, generator=generator_for(0))
    assert isinstance(t, Tensor) and isinstance(rungs, Tensor)
    assert set(rungs.tolist()) == {0, 1, 2, 3} and torch.equal(
        t, torch.tensor(T_LIST, dtype=torch.float64)[rungs]
    )
    first = rungs == 0
    torch.testing.assert_close(x_t[first], 0.999 * noise[first])
    torch.testing.assert_close(x_t[~first], add_noise(x0, noise, t)[~first])
    with pytest.raises(ValueError, match="expected x0 for backward_simulation=False"):
        pipeline.student_input(None, noise)


def test_data_are_not_needed_with_backward_simulation():
    pipeline = build(t_list=T_LIST)
    for compute in (pipeline.compute_student_loss, pipeline.compute_fake_score_loss):
        without = compute(None, NOISE, COND, generator=generator_for(0))["total"]
        assert torch.equal(without, compute(X0, NOISE, COND, generator=generator_for(0))["total"])


def test_nothing_is_generated_with_dropout():
    pipeline = build(dropout=0.5)
    for net in networks(pipeline).values():
        net.train()
    a, b = (
        pipeline.compute_student_loss(X0, NOISE, COND, generator=generator_for(0))["total"]
        for _ in range(2)
    )
    assert torch.equal(a, b)
    # Its own loss is the fake score's training: there it has the mode the caller gave it.
    assert pipeline.fake_score.training and pipeline.teacher.training
    a, b = (
        pipeline.compute_fake_score_loss(X0, NOISE, COND, generator=generator_for(0))["total"]
        for _ in range(2)
    )
    assert not torch.equal(a, b)


@pytest.mark.parametrize("loss", ["student", "fake_score", "discriminator"])
@pytest.mark.parametrize("backward_simulation", [True, False])
def test_processes_share_the_draws_of_the_global_batch(loss, backward_simulation):
    """Two half batches average to the whole batch, with generators in the same state."""
    settings = {
        "t_list": T_LIST,
        "student_sample_type": "sde",
        "backward_simulation": backward_simulation,
        "gan_r1_reg_weight": 1.0,
    }

    def total(part: slice, rank: int, world_size: int) -> Tensor:
        pipeline = build(gan=True, rank=rank, world_size=world_size, **settings)
        compute = getattr(pipeline, f"compute_{loss}_loss")
        return compute(X0[part], NOISE[part], COND[part], generator=generator_for(0))["total"]

    whole = total(slice(0, 6), 0, 1)
    halves = [total(slice(3 * r, 3 * r + 3), r, 2) for r in range(2)]
    torch.testing.assert_close(sum(halves) / 2, whole)


@pytest.fixture
def process_group(tmp_path):
    """A group of one process: wrappers behave as among many, without the minutes of starting
    them."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def all_gradients(pipeline: DMDPipeline, wrapped: bool) -> dict[str, Tensor]:
    """Gradients of the losses in turn, twice: a wrapper that waits for gradients complains in the
    second pass."""
    bare = {name: net for name, net in networks(pipeline).items() if name != "teacher"}
    for name, net in bare.items() if wrapped else ():
        setattr(pipeline, name, nn.parallel.DistributedDataParallel(net))
    for turn in range(2):
        for name in bare:
            compute = getattr(pipeline, f"compute_{name}_loss")
            compute(X0, NOISE, COND, generator=generator_for(turn))["total"].backward()
    return {
        f"{name}.{key}": p.grad for name, net in bare.items() for key, p in net.named_parameters()
    }


def test_wrapped_networks_get_the_gradients_of_bare_ones(process_group):
    settings = {"t_list": T_LIST, "gan_loss_weight_gen": 0.1, "gan_r1_reg_weight": 1.0}
    bare, wrapped = (all_gradients(build(gan=True, **settings), flag) for flag in (False, True))
    assert bare.keys() == wrapped.keys()
    for name, gradient in wrapped.items():
        torch.testing.assert_close(gradient, bare[name])


def test_all_processes_take_the_rung_of_the_first(process_group, monkeypatch):
    pipeline = build(t_list=T_LIST)
    sent = []

    def broadcast(rung: Tensor, src: int) -> None:
        sent.append(src)
        rung.fill_(3)

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    assert [
        pipeline.student_input(None, NOISE, COND, generator=generator_for(k))[2] for k in range(8)
    ] == [3] * 8
    assert sent == [0] * 8
