"""One student of several numbers of calls: at each number it is trained on its sampler's inputs."""

import itertools

import pytest
import torch
from torch import Tensor

from fastgen._core.seeds import generator_for
from fastgen.config import DMDConfig
from fastgen.methods.kd import KnowledgeDistillation, teacher_pairs
from fastgen.methods.rollouts import student_rungs
from fastgen.methods.time_grids import rung_grid, rung_shares
from fastgen.samplers import sample_student
from support.exact import GaussianTeacher, normal
from support.pipeline import COND, NOISE, X0, build
from support.stages import Recorder
from support.toy import ToyTeacher
from support.updates import draws

CALLS = (1, 2, 3, 4)
SEVERAL = DMDConfig(student_steps=CALLS)


def test_rungs_are_drawn_as_often_as_their_numbers_have_them():
    shares = rung_shares(SEVERAL.t_lists.values())
    assert len(shares) == len(SEVERAL.t_list) - 1 and sum(shares) == pytest.approx(1.0)
    assert shares[0] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    half = SEVERAL.t_list.index(SEVERAL.t_lists[2][1])
    assert shares[half] == pytest.approx((1 / 2 + 1 / 4) / 4)
    assert rung_shares([(0.9, 0.5, 0.0)]) == [0.5, 0.5]


def test_any_number_of_calls_costs_the_teacher_no_more_than_one():
    """The sixteen calls of a pair pass through all of its rungs."""
    assert len(rung_grid(DMDConfig(student_steps="any").t_list, 16)[0]) == 17
    assert len(rung_grid(DMDConfig(student_steps=1).t_list, 16)[0]) == 17


def test_states_of_all_numbers_lie_on_one_trajectory():
    teacher = GaussianTeacher()
    noise = normal(16, 2)
    states = teacher_pairs(teacher, noise, None, SEVERAL.t_list, calls=400)
    for k, t in enumerate(SEVERAL.t_list[1:], start=1):
        expected = teacher.carry(noise, 1.0, t)
        torch.testing.assert_close(states[:, k], expected, rtol=0, atol=2e-4)


class Consistent(GaussianTeacher):
    """The flow that lands on the end of the teacher's trajectory: a perfect student."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        ends = [self.carry(x[None], float(s), 0.0) for x, s in zip(x_t, t, strict=True)]
        return (x_t - torch.cat(ends)) / t[:, None]


@pytest.mark.parametrize("calls", CALLS)
def test_kd_trains_each_number_on_inputs_of_its_samplers_law(calls):
    n = 4000
    states = teacher_pairs(GaussianTeacher(), normal(n, 1), None, SEVERAL.t_list, calls=100)
    t_list = SEVERAL.t_lists[calls]
    xs, _ = sample_student(
        Consistent(),
        normal(n, 1, seed=1),
        t_list,
        sample_type="sde",
        generator=generator_for(2),
        return_all_steps=True,
    )
    for rung, t in enumerate(t_list):
        trained = states[:, SEVERAL.t_list.index(t)]
        # Four standard errors of a difference between 4000 numbers of a deviation of at most 1.
        assert abs(trained.mean() - xs[:, rung].mean()) < 4 * (2 / n) ** 0.5
        assert abs(trained.std() - xs[:, rung].std()) < 4 * n**-0.5


def test_kd_draws_every_rung_of_a_batch_as_often_as_its_share():
    states = torch.zeros(100, len(SEVERAL.t_list), 2)
    stage = KnowledgeDistillation(
        Recorder(ToyTeacher()), states, None, SEVERAL, 5, 0.02, draws(rank=0, world=1)
    )
    batches = [stage.batch(step)[2] for step in range(30)]
    found = torch.cat(batches).bincount(minlength=len(SEVERAL.t_list) - 1)
    expected = torch.tensor(rung_shares(SEVERAL.t_lists.values())) * len(torch.cat(batches))
    assert bool(((found - expected).abs() < 30).all()) and bool((found > 0).all())


def test_dmd_trains_on_the_very_states_of_each_numbers_sampler():
    pipeline = build(student_steps=CALLS)
    seen = set()
    for seed in range(60):
        x_t, t, rung = pipeline.student_input(X0, NOISE, COND, generator=generator_for(seed))
        generator = generator_for(seed)
        calls = CALLS[int(torch.randint(4, (1,), generator=generator))]
        own = 0
        if calls > 1:
            own = int(torch.randint(calls, (1,), generator=generator))
        xs, ts = sample_student(
            pipeline.student,
            NOISE,
            SEVERAL.t_lists[calls],
            COND,
            sample_type="sde",
            generator=generator,
            return_all_steps=True,
        )
        assert torch.equal(x_t, xs[:, own]) and t == ts[own] == pipeline.t_list[rung]
        seen.add((calls, own))
    assert seen == {(k, j) for k in CALLS for j in range(k)}


def test_noised_data_is_of_every_rung():
    pipeline = build(student_steps=CALLS, backward_simulation=False)
    n = 4000
    _, t, rungs = pipeline.student_input(
        normal(n, 3, seed=1), normal(n, 3), generator=generator_for(0)
    )
    assert torch.equal(t, torch.tensor(SEVERAL.t_list, dtype=torch.float64)[rungs])
    found = rungs.bincount(minlength=len(SEVERAL.t_list) - 1) / n
    expected = torch.tensor(rung_shares(SEVERAL.t_lists.values()))
    assert bool(((found - expected).abs() < 5 * 0.5 * n**-0.5).all())


def test_rungs_of_a_student_are_checked_for_several_numbers_too():
    assert student_rungs(SEVERAL) == list(SEVERAL.t_list)
    assert all(t > s for t, s in itertools.pairwise(SEVERAL.t_list))
