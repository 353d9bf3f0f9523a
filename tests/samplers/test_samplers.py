"""Solvers converge at their order on closed-form flows; students step as the formulas say."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.seeds import generator_for
from fastgen.flow_matching import x0_to_eps
from fastgen.samplers import TRUSTED_NOISE_TIME, FlowMatching, sample_student, sample_teacher
from fastgen.solvers import SOLVERS, integrate
from support.exact import ConjugatedTeacher, GaussianTeacher, normal, slope

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab2": 2}
CALLS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab2": 1}
T_LIST = [0.999, 0.75, 0.5, 0.25, 0.0]


class Recorder(nn.Module):
    """A small trainable network that remembers what it was called with."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3, dtype=dtype))
        self.seen: list[tuple[torch.dtype, torch.dtype, torch.Size, float]] = []

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        self.seen.append((x_t.dtype, t.dtype, t.shape, t.flatten()[0].item()))
        bias = 0.0 if cond is None else cond
        return self.scale * x_t + t.reshape(-1, *(1,) * (x_t.ndim - 1)).to(x_t.dtype) + bias


@pytest.fixture
def float64_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# ---- Solvers -------------------------------------------------------------------------------------


def test_orders_are_listed_for_every_solver():
    assert set(ORDERS) == set(SOLVERS)


@pytest.mark.slow
@pytest.mark.parametrize("method", ORDERS)
def test_teacher_sampling_converges_at_the_order_of_its_solver(method):
    teacher = ConjugatedTeacher(std=0.5)
    noise = normal(64, 2)
    exact = teacher.carry(noise, 1.0, 0.0)
    errors = {
        n: rms(sample_teacher(teacher, noise, n, method=method) - exact) for n in (64, 128, 256)
    }
    assert slope(errors) == pytest.approx(ORDERS[method], abs=0.1)


@pytest.mark.parametrize("method", ORDERS)
def test_flow_matching_converges_at_the_order_of_its_solver(method, float64_default):
    teacher = ConjugatedTeacher(std=0.5)
    noise = torch.randn(64, 2, generator=generator_for(0))
    exact = teacher.carry(noise, 1.0, 0.0)
    errors = {}
    for n in (64, 128, 256):
        x = FlowMatching(2, int_method=method).sample(
            64,
            lambda *, x, t: -teacher(x, 1 - t, None),
            inference_step=n,
            generator=generator_for(0),
        )
        errors[n] = rms(x - exact)
    assert slope(errors) == pytest.approx(ORDERS[method], abs=0.1)


def test_ab2_keeps_its_order_on_uneven_grids():
    teacher = ConjugatedTeacher(std=0.5)
    noise = normal(64, 2)
    exact = teacher.carry(noise, 1.0, 0.0)
    errors = {}
    for n in (64, 128, 256):
        grid = [(1 - i / n) ** 1.5 for i in range(n + 1)]
        errors[n] = rms(sample_teacher(teacher, noise, n, method="ab2", t_grid=grid) - exact)
    assert slope(errors) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("method", ORDERS)
def test_solvers_make_the_calls_they_promise(method):
    net = Recorder()
    sample_teacher(net, normal(2, 3), 5, method=method)
    assert len(net.seen) == 5 * CALLS[method]


def test_a_straight_flow_needs_one_step_of_any_solver():
    """With a constant velocity every solver is exact, so data = noise - flow."""
    noise = normal(4, 3)
    shift = normal(4, 3, seed=1)
    for method in SOLVERS:
        x = sample_teacher(lambda x_t, t, cond: shift, noise, 1, method=method)
        torch.testing.assert_close(x, noise - shift)


def test_integrate_yields_the_state_at_every_grid_point():
    states = list(
        integrate(lambda x, t: torch.ones_like(x), torch.zeros(1), [0.0, 0.25, 1.0], "rk4")
    )
    torch.testing.assert_close(torch.stack(states), torch.tensor([[0.0], [0.25], [1.0]]))


# ---- Teacher -------------------------------------------------------------------------------------


def test_the_last_state_is_the_sample_and_the_first_is_the_noise():
    teacher = GaussianTeacher()
    noise = normal(6, 4, 2, dtype=torch.float32)
    xs, ts = sample_teacher(teacher, noise, 5, return_all_steps=True)
    assert xs.shape == (6, 6, 4, 2) and xs.dtype == torch.float32
    torch.testing.assert_close(ts, torch.linspace(1, 0, 6))
    assert torch.equal(xs[:, 0], noise)
    assert torch.equal(xs[:, -1], sample_teacher(teacher, noise, 5))


def test_networks_see_their_own_dtype_and_times_of_the_batch():
    for dtype, t_dtype in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64,) * 2,
    ):
        net = Recorder(dtype)
        x = sample_teacher(net, normal(3, 2, dtype=torch.float32), 4)
        assert x.dtype == torch.float32
        assert {seen[:3] for seen in net.seen} == {(dtype, t_dtype, torch.Size([3]))}
        assert [seen[3] for seen in net.seen] == [1.0, 0.75, 0.5, 0.25]


def test_the_state_is_float64_between_calls():
    """Many small steps of a float32 network: a float32 state would lose digits at each step."""
    noise = normal(500, 1, dtype=torch.float32)
    steps = 4000
    x = sample_teacher(lambda x_t, t, cond: torch.full_like(x_t, 1 / 3), noise, steps)
    exact = noise.double() - torch.tensor(1 / 3, dtype=torch.float32).double()
    # One rounding at the end, half a unit in the last place.
    torch.testing.assert_close(x.double(), exact, rtol=2**-24 * 1.001, atol=1e-12)


def test_a_conditional_teacher_gets_its_condition():
    teacher = GaussianTeacher()
    noise = normal(5, 2)
    cond = normal(5, seed=3)
    x = sample_teacher(teacher, noise, 400, cond, method="rk4")
    torch.testing.assert_close(x, teacher.carry(noise, 1.0, 0.0, cond), rtol=0, atol=1e-6)


def test_guidance_moves_the_condition_away_from_the_negative_one():
    """The flow is linear in the condition here, so scale s samples the condition c + (s - 1)(c -
    u)."""
    teacher = GaussianTeacher()
    noise = normal(5, 2)
    c = normal(5, seed=3)
    u = normal(5, seed=4)
    guided = sample_teacher(teacher, noise, 8, c, guidance_scale=2.5, negative_cond=u)
    torch.testing.assert_close(guided, sample_teacher(teacher, noise, 8, c + 1.5 * (c - u)))
    unguided = sample_teacher(teacher, noise, 8, c, guidance_scale=1.0, negative_cond=u)
    assert torch.equal(unguided, sample_teacher(teacher, noise, 8, c))


def test_a_teacher_that_never_reaches_pure_noise_starts_where_it_ends():
    teacher = GaussianTeacher()
    noise = normal(4, 2)
    teacher.t_max = 0.99
    xs, ts = sample_teacher(teacher, noise, 3, return_all_steps=True)
    assert ts[0] == 0.99
    torch.testing.assert_close(xs[:, 0], 0.99 * noise)


@pytest.mark.parametrize("pred_type", ["x0", "eps"])
def test_teachers_of_other_predictions_give_the_same_samples(pred_type):
    teacher = GaussianTeacher()
    noise = normal(4, 2)
    grid = [TRUSTED_NOISE_TIME, 0.6, 0.3, 0.0]

    def predict(x_t, t, cond):
        return teacher.predict(x_t, t, cond)[0 if pred_type == "x0" else 1]

    x = sample_teacher(predict, noise, None, t_grid=grid, pred_type=pred_type)
    torch.testing.assert_close(x, sample_teacher(teacher, noise, None, t_grid=grid))


def test_no_graph_is_kept():
    net = Recorder()
    noise = normal(2, 2).requires_grad_()
    assert not sample_teacher(net, noise, 2).requires_grad
    assert not sample_student(net, noise, T_LIST).requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "rk9"},
            "unknown method 'rk9', expected one of: euler, midpoint, heun, rk4, ab2",
        ),
        ({"steps": 0}, "expected steps to be an int >= 1, got 0"),
        ({"steps": 2.0}, "expected steps to be an int >= 1, got 2.0"),
        ({"guidance_scale": 2.0}, "expected negative_cond with guidance_scale=2.0"),
        ({"t_grid": [1.0, 0.5]}, "strictly decreasing from"),
        ({"t_grid": [1.0, 1.0, 0.0]}, "strictly decreasing from"),
        ({"t_grid": [1.0, 0.5, 0.0], "steps": 3}, r"expected steps=2 \(or None\)"),
        ({"pred_type": "eps"}, "below 1.0 for pred_type 'eps'"),
        ({"pred_type": "v"}, "as_rectified_flow"),
    ],
)
def test_bad_teacher_calls_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sample_teacher(GaussianTeacher(), normal(2, 2), **{"steps": 4, **changes})


def test_a_network_of_another_shape_is_refused():
    with pytest.raises(
        ValueError, match=r"expected the network's output of shape \(2, 3\), got \(2, 2\)"
    ):
        sample_teacher(lambda x_t, t, cond: x_t[:, :2], normal(2, 3), 1)


# ---- Student -------------------------------------------------------------------------------------


def test_an_ode_student_is_eulers_method_of_the_same_flow():
    teacher = GaussianTeacher()
    noise = normal(16, 3)
    t_list = [1.0, 0.75, 0.5, 0.25, 0.0]
    euler, ts = sample_teacher(teacher, noise, None, t_grid=t_list, return_all_steps=True)
    student, student_ts = sample_student(teacher, noise, t_list, return_all_steps=True)
    torch.testing.assert_close(student, euler, rtol=0, atol=1e-12)
    assert torch.equal(ts, student_ts)


@pytest.mark.parametrize("pred_type", ["x0", "eps"])
def test_students_of_other_predictions_take_the_same_steps(pred_type):
    teacher = GaussianTeacher()
    noise = normal(16, 3)

    def predict(x_t, t, cond):
        return teacher.predict(x_t, t, cond)[0 if pred_type == "x0" else 1]

    x = sample_student(predict, noise, T_LIST, pred_type=pred_type)
    torch.testing.assert_close(x, sample_student(teacher, noise, T_LIST), rtol=0, atol=1e-12)


def test_sde_rungs_mix_the_prediction_with_fresh_noise():
    teacher = GaussianTeacher()
    noise = normal(2000, 1)
    generator = generator_for(7)
    xs, _ = sample_student(
        teacher, noise, T_LIST, sample_type="sde", generator=generator, return_all_steps=True
    )
    previous = noise
    for k, (t, s) in enumerate(itertools.pairwise(T_LIST[:-1])):
        x0 = teacher.predict(xs[:, k], torch.tensor(t), None)[0]
        eps = (xs[:, k + 1] - (1 - s) * x0) / s
        correlation = torch.corrcoef(torch.stack([eps[:, 0], previous[:, 0]]))[0, 1]
        # Three standard deviations of the correlation of 2000 independent pairs.
        assert abs(correlation) < 0.067 and eps.std().item() == pytest.approx(1, abs=0.05)
        previous = eps
    torch.testing.assert_close(
        xs[:, -1], teacher.predict(xs[:, -2], torch.tensor(T_LIST[-2]), None)[0]
    )


def test_ode_rungs_keep_the_noise():
    teacher = GaussianTeacher()
    noise = normal(8, 2)
    xs, _ = sample_student(teacher, noise, T_LIST, return_all_steps=True)
    for k, (t, s) in enumerate(itertools.pairwise(T_LIST[:-1])):
        x0 = teacher.predict(xs[:, k], torch.tensor(t), None)[0]
        torch.testing.assert_close(x0_to_eps(x0, xs[:, k + 1], s), x0_to_eps(x0, xs[:, k], t))


@pytest.mark.parametrize("sample_type", ["ode", "sde"])
def test_student_shapes_start_and_calls(sample_type):
    net = Recorder()
    noise = normal(3, 4, 2, dtype=torch.float32)
    xs, ts = sample_student(
        net,
        noise,
        T_LIST,
        sample_type=sample_type,
        generator=generator_for(0),
        return_all_steps=True,
    )
    assert xs.shape == (3, 5, 4, 2) and ts.tolist() == torch.tensor(T_LIST).tolist()
    torch.testing.assert_close(xs[:, 0], 0.999 * noise)
    assert [seen[3] for seen in net.seen] == torch.tensor(T_LIST[:-1]).tolist()
    x = sample_student(net, noise, T_LIST, sample_type=sample_type, generator=generator_for(0))
    assert torch.equal(x, xs[:, -1])


def test_ode_results_do_not_depend_on_how_the_batch_is_split():
    net = Recorder()
    noise = normal(6, 2, dtype=torch.float32)
    whole = sample_student(net, noise, T_LIST)
    parts = [sample_student(net, part, T_LIST) for part in noise.split(2)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_type": "ddim"}, "unknown sample_type 'ddim', expected one of: ode, sde"),
        ({"pred_type": "v"}, "as_rectified_flow"),
        ({"t_list": [0.5, 0.6, 0.0]}, "expected t_list"),
        (
            {"t_list": [1.0, 0.0], "pred_type": "eps"},
            r"expected t_list\[0\] < 1 for pred_type 'eps'",
        ),
    ],
)
def test_bad_student_calls_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sample_student(GaussianTeacher(), normal(2, 2), **{"t_list": T_LIST, **changes})


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()
