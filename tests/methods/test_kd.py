"""Teacher trajectories at the student's rungs, and the regression on them."""

import itertools

import pytest
import torch
from torch import Tensor

from fastgen.flow_matching import x0_to_flow
from fastgen.guidance import Guidance
from fastgen.methods.kd import kd_loss, rung_grid, teacher_pairs
from fastgen.samplers import sample_student, sample_teacher
from fastgen.teachers.guided import GuidedNetwork
from support.exact import GaussianTeacher, normal

T_LIST = [0.999, 0.75, 0.5, 0.25, 0.0]
T_LISTS = [
    [0.999, 0.0],
    T_LIST,
    [0.999, 0.9375, 0.8333, 0.625, 0.0],
    [0.7, 0.69, 0.01, 0.0],
    [1.0, 0.5, 0.0],
]


@pytest.mark.parametrize("t_list", T_LISTS)
@pytest.mark.parametrize("calls", [1, 5, 16, 100])
def test_every_rung_is_a_point_of_the_grid(t_list, calls):
    grid, index = rung_grid(t_list, calls)
    assert grid[0] == 1.0 and grid[-1] == 0.0
    assert all(t > s for t, s in itertools.pairwise(grid))
    assert index[0] == 0 and [grid[i] for i in index[1:]] == t_list[1:]
    rungs = len(t_list) - 1
    assert rungs <= len(grid) - 1 and abs(len(grid) - 1 - max(calls, rungs)) <= rungs


def test_equal_rungs_get_an_even_grid():
    grid, index = rung_grid(T_LIST, 16)
    assert grid == [1 - i / 16 for i in range(17)] and index == [0, 4, 8, 12, 16]


def test_the_grid_starts_where_the_teacher_does():
    grid, _ = rung_grid([0.99, 0.5, 0.0], 10, t_max=0.9935)
    assert grid[0] == 0.9935
    for t_max in (0.9, 1.1):
        with pytest.raises(ValueError, match=r"expected t_max in \[t_list\[0\], 1\]"):
            rung_grid([0.99, 0.5, 0.0], 10, t_max=t_max)
    with pytest.raises(ValueError, match="expected calls to be an int >= 1"):
        rung_grid([0.99, 0.0], 0)


def test_pairs_lie_on_the_teachers_trajectories():
    teacher, noise, cond = GaussianTeacher(), normal(32, 2), normal(32, seed=1)
    states = teacher_pairs(teacher, noise, cond, T_LIST, calls=400)
    assert states.shape == (32, 5, 2)
    assert torch.equal(states[:, 0], 0.999 * noise)
    for k, t in enumerate(T_LIST[1:], start=1):
        torch.testing.assert_close(
            states[:, k], teacher.carry(noise, 1.0, t, cond), rtol=0, atol=2e-4
        )


def test_sixteen_calls_of_ab2_are_as_good_as_a_hundred_euler_steps():
    teacher, noise = GaussianTeacher(), normal(500, 2)
    exact = teacher.carry(noise, 1.0, 0.0)
    ab2 = (teacher_pairs(teacher, noise, None, T_LIST)[:, -1] - exact).square().mean().sqrt()
    euler = (sample_teacher(teacher, noise, 100) - exact).square().mean().sqrt()
    assert ab2 < euler < 0.05


def test_pairs_keep_dtype_and_graph_free_and_shape():
    noise = normal(4, 3, 2, dtype=torch.float32).requires_grad_()
    states = teacher_pairs(GaussianTeacher(), noise, None, [0.999, 0.0], calls=3)
    assert (
        states.shape == (4, 2, 3, 2) and states.dtype == torch.float32 and not states.requires_grad
    )


def test_pairs_can_be_guided():
    teacher, noise, c, u = GaussianTeacher(), normal(5, 2), normal(5, seed=3), normal(5, seed=4)
    guided = teacher_pairs(GuidedNetwork(teacher, Guidance(2.0), u), noise, c, T_LIST)
    torch.testing.assert_close(guided, teacher_pairs(teacher, noise, 2 * c - u, T_LIST))


def perfect_student(teacher: GaussianTeacher, *, chord: bool = False):
    """A flow that lands on the end of the trajectory, or along its chord on the next rung."""

    def student(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        flow = torch.empty_like(x_t)
        for row, time in enumerate(t.tolist()):
            target = max([s for s in T_LIST if s < time - 1e-6]) if chord else 0.0
            x = x_t[row : row + 1]
            flow[row] = (x - teacher.carry(x, time, target)) / (time - target)
        return flow

    return student


@pytest.mark.parametrize("sample_type", ["sde", "ode"])
def test_the_student_that_samples_like_the_teacher_has_no_loss(sample_type):
    teacher, noise = GaussianTeacher(), normal(40, 2)
    states = torch.stack([teacher.carry(0.999 * noise, 0.999, t) for t in T_LIST], dim=1)
    rungs = torch.arange(40) % 4
    losses = {
        chord: kd_loss(
            perfect_student(teacher, chord=chord),
            states,
            T_LIST,
            None,
            rungs,
            sample_type=sample_type,
        ).item()
        for chord in (True, False)
    }
    right = sample_type == "ode"
    assert losses[right] < 1e-12 < 1e-3 < losses[not right]


def test_an_ode_student_without_loss_samples_the_trajectory():
    teacher, noise = GaussianTeacher(), normal(8, 2)
    xs, _ = sample_student(
        perfect_student(teacher, chord=True), noise, T_LIST, return_all_steps=True
    )
    for k, t in enumerate(T_LIST):
        torch.testing.assert_close(xs[:, k], teacher.carry(0.999 * noise, 0.999, t))


def test_the_loss_is_the_pseudo_huber_mean():
    states, rungs, c = normal(6, 5, 3), torch.tensor([0, 1, 2, 3, 0, 2]), 0.05
    x_t = states[torch.arange(6), rungs]
    t = torch.tensor(T_LIST, dtype=torch.float64)[rungs]
    flow = normal(6, 3, seed=1)
    residual = x_t - t[:, None] * flow - states[:, -1]
    expected = ((residual.square().mean(1) + c**2).sqrt() - c).mean()
    loss = kd_loss(
        lambda x, t, cond: flow, states, T_LIST, None, rungs, huber_c=c, sample_type="sde"
    )
    torch.testing.assert_close(loss, expected)
    # Quadratic well below c, linear well above it.
    small = kd_loss(
        lambda x, t, cond: x0_to_flow(states[:, -1] + 1e-4, x, t),
        states,
        T_LIST,
        None,
        rungs,
        huber_c=c,
        sample_type="sde",
    )
    assert small.item() == pytest.approx(1e-8 / (2 * c), rel=1e-3)
    large = kd_loss(
        lambda x, t, cond: x0_to_flow(states[:, -1] + 50, x, t),
        states,
        T_LIST,
        None,
        rungs,
        huber_c=c,
        sample_type="sde",
    )
    assert large.item() == pytest.approx(50 - c, rel=1e-4)


@pytest.mark.parametrize("pred_type", ["flow", "x0", "eps"])
def test_any_prediction_type_is_regressed_on_the_same_target(pred_type):
    teacher, states, rungs = GaussianTeacher(), normal(6, 5, 3), torch.arange(6) % 4

    def student(x_t, t, cond):
        x0, eps = teacher.predict(x_t, t, cond)
        return {"x0": x0, "eps": eps, "flow": eps - x0}[pred_type]

    loss = kd_loss(student, states, T_LIST, None, rungs, pred_type=pred_type)
    torch.testing.assert_close(loss, kd_loss(teacher, states, T_LIST, None, rungs))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": normal(6, 4, 3)}, r"expected states of shape \(B, 5, ...\), got \(6, 4, 3\)"),
        (
            {"rungs": torch.zeros(5, dtype=torch.long)},
            r"expected rungs to be integers of shape \(6,\)",
        ),
        ({"rungs": torch.zeros(6)}, "expected rungs to be integers"),
        ({"huber_c": 0.0}, "expected huber_c > 0"),
        ({"sample_type": "x"}, "unknown sample_type 'x'"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    arguments = {"states": normal(6, 5, 3), "rungs": torch.zeros(6, dtype=torch.long), **changes}
    states, rungs = arguments.pop("states"), arguments.pop("rungs")
    with pytest.raises(ValueError, match=message):
        kd_loss(GaussianTeacher(), states, T_LIST, None, rungs, **arguments)
