"""One step along the teacher's ODE: that of the sampler, for samples that have times of their
own."""

import pytest
import torch
from torch import Tensor

from fastgen.guidance import Guidance
from fastgen.samplers import sample_teacher, teacher_step, teacher_velocity
from fastgen.samplers.teacher import ONE_STEP_SOLVERS
from fastgen.teachers.guided import GuidedNetwork
from support.exact import GaussianTeacher, normal


def times_of(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return 0.1 + 0.899 * torch.rand(n, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("method", ONE_STEP_SOLVERS)
def test_one_step_of_equal_times_is_that_of_the_sampler(method):
    teacher, x, cond = GaussianTeacher(), normal(6, 3, 2), normal(6, seed=1)
    noise = x / 0.8
    expected = sample_teacher(
        teacher, noise, None, cond, method=method, t_grid=[0.8, 0.3, 0.0], return_all_steps=True
    )
    step = teacher_step(
        teacher, x, torch.full((6,), 0.8), torch.full((6,), 0.3), cond, method=method
    )
    # float32 times 0.8 and 0.3.
    torch.testing.assert_close(step, expected[0][:, 1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ONE_STEP_SOLVERS)
def test_samples_have_times_of_their_own(method):
    teacher, x, t = GaussianTeacher(), normal(6, 3), times_of(6)
    whole = teacher_step(teacher, x, t, t / 3, method=method)
    for i in range(6):
        row = slice(i, i + 1)
        torch.testing.assert_close(
            whole[row], teacher_step(teacher, x[row], t[row], t[row] / 3, method=method)
        )


def noise_teacher(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
    return GaussianTeacher().predict(x_t, t, cond)[1]


@pytest.mark.parametrize("time", [0.999, 0.96, 0.95, 0.5])
def test_a_noise_prediction_is_followed_as_by_the_sampler(time):
    x, t = normal(6, 3), torch.full((6,), time, dtype=torch.float64)
    step = teacher_step(noise_teacher, x, t, t - 0.1, method="euler", pred_type="eps")
    velocity = teacher_velocity(noise_teacher, None, dtype=torch.float64, pred_type="eps")(x, time)
    torch.testing.assert_close(step, x - 0.1 * velocity)


def test_a_step_can_be_guided_and_has_no_graph():
    teacher, x, t, c, u = (
        GaussianTeacher(),
        normal(5, 2).requires_grad_(),
        times_of(5),
        normal(5),
        normal(5, seed=4),
    )
    guided = teacher_step(GuidedNetwork(teacher, Guidance(2.0), u), x, t, t / 2, c)
    torch.testing.assert_close(guided, teacher_step(teacher, x, t, t / 2, 2 * c - u))
    assert not guided.requires_grad
