"""The rectified-flow convention: round trips, ends, dtypes and the laws of the time samplers."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from fastgen._core.checks import PRED_TYPES
from fastgen._core.seeds import generator_for
from fastgen._core.tensors import EPSILON
from fastgen.flow_matching import (
    add_noise,
    check_t_list,
    convert_prediction,
    pred_noise_to_pred_x0,
    pred_x0_from_flow,
    rf_alpha,
    rf_sigma,
    sample_from_t_list,
    sample_timesteps,
    x0_to_eps,
    x0_to_flow,
)
from support.exact import normal

X0, EPS = normal(5, 3, 2), normal(5, 3, 2, seed=1)
T = torch.tensor([0.01, 0.3, 0.5, 0.75, 0.99], dtype=torch.float64)
CPU = torch.device("cpu")


def config(**changes):
    defaults = {
        "min_t": 0.001,
        "max_t": 0.999,
        "shift": 5.0,
        "p_mean": 0.0,
        "p_std": 1.0,
        "t_list": None,
    }
    return SimpleNamespace(**{"time_dist_type": "uniform", **defaults, **changes})


# ---- Formulas ------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [T, 0.37])
def test_round_trips(t):
    x_t = add_noise(X0, EPS, t)
    flow = EPS - X0
    kwargs = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(x0_to_eps(X0, x_t, t), EPS, **kwargs)
    torch.testing.assert_close(x0_to_flow(X0, x_t, t), flow, **kwargs)
    torch.testing.assert_close(pred_noise_to_pred_x0(EPS, x_t, t), X0, **kwargs)
    torch.testing.assert_close(pred_x0_from_flow(flow, x_t, t), X0, **kwargs)


def test_coefficients_are_those_of_the_path():
    torch.testing.assert_close(rf_alpha(T), 1 - T, rtol=0, atol=0)
    torch.testing.assert_close(rf_sigma(T), T, rtol=0, atol=0)
    assert rf_alpha(0.25) == 0.75 and rf_sigma(0.25) == 0.25
    assert rf_alpha(T.float()).dtype == torch.float32
    x_t = add_noise(X0, EPS, T)
    torch.testing.assert_close(
        x_t, rf_alpha(T)[:, None, None] * X0 + rf_sigma(T)[:, None, None] * EPS
    )


def test_flow_is_the_time_derivative_of_the_path():
    t = T.clone().requires_grad_()
    (slope,) = torch.autograd.grad(add_noise(X0, EPS, t)[:, 1, 0].sum(), t)
    torch.testing.assert_close(slope, (EPS - X0)[:, 1, 0])


def test_ends_are_exact_and_finite():
    zero, one = torch.zeros(5), torch.ones(5)
    assert torch.equal(add_noise(X0, EPS, zero), X0)
    assert torch.equal(add_noise(X0, EPS, one), EPS)
    for t in (zero, one, 0.0, 1.0):
        x_t = add_noise(X0, EPS, t)
        for value in (
            x0_to_eps(X0, x_t, t),
            x0_to_flow(X0, x_t, t),
            pred_noise_to_pred_x0(EPS, x_t, t),
            pred_x0_from_flow(EPS - X0, x_t, t),
        ):
            assert torch.isfinite(value).all()


def test_denominators_are_clamped_at_one_millionth():
    ones = torch.ones(1, 1, dtype=torch.float64)
    assert x0_to_flow(0 * ones, ones, 0.0).item() == 1 / EPSILON == 1e6
    assert x0_to_eps(0 * ones, ones, 1e-9).item() == pytest.approx(1e6)
    assert pred_noise_to_pred_x0(0 * ones, ones, 1.0).item() == pytest.approx(1e6)
    # Above the clamp nothing is changed.
    assert x0_to_flow(0 * ones, ones, 2e-6).item() == pytest.approx(5e5, rel=1e-12)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(PRED_TYPES, repeat=2)))
def test_predictions_convert_into_each_other(source, target):
    truth = {"x0": X0, "eps": EPS, "flow": EPS - X0}
    x_t = add_noise(X0, EPS, T)
    torch.testing.assert_close(
        convert_prediction(truth[source], x_t, T, source, target), truth[target]
    )


def test_v_is_refused_with_its_two_meanings():
    with pytest.raises(
        ValueError, match=r"'flow' for eps - x0.*as_rectified_flow\(prediction='v'\)"
    ):
        convert_prediction(X0, X0, T, "v", "x0")
    with pytest.raises(ValueError, match="unknown source 'score'"):
        convert_prediction(X0, X0, T, "score", "x0")


def test_each_function_answers_in_the_dtype_it_names():
    low, high = X0.bfloat16(), X0.float()
    assert add_noise(low, high, T).dtype == torch.bfloat16
    assert x0_to_eps(low, high, T).dtype == torch.bfloat16
    assert x0_to_flow(low, high, T).dtype == torch.bfloat16
    assert pred_noise_to_pred_x0(high, low, T).dtype == torch.bfloat16
    assert pred_x0_from_flow(high, low, T).dtype == torch.bfloat16


def test_bfloat16_is_rounded_once_only():
    """The result is the correctly rounded one of the inputs given; arithmetic in bfloat16 would be
    off."""
    generator = torch.Generator().manual_seed(0)
    x_t, eps = (torch.randn(4000, 1, generator=generator).bfloat16() for _ in range(2))
    t = torch.full((4000,), 0.97)
    t64 = t.double()[:, None]
    exact = (x_t.double() - t64 * eps.double()) / (1 - t64)
    assert torch.equal(pred_noise_to_pred_x0(eps, x_t, t), exact.bfloat16())
    naive = (x_t - t.bfloat16()[:, None] * eps) / (1 - t.bfloat16()[:, None])
    assert not torch.equal(naive, exact.bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_time_is_a_type_error(dtype):
    for function in (add_noise, x0_to_eps, x0_to_flow, pred_noise_to_pred_x0, pred_x0_from_flow):
        with pytest.raises(TypeError, match="expected t to be a float or a float32/float64 tensor"):
            function(X0, EPS, T.to(dtype))
    with pytest.raises(TypeError, match="expected t"):
        rf_alpha(T.to(dtype))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"expected eps of shape \(5, 3, 2\), got \(5, 1, 2\)"):
        add_noise(X0, EPS[:, :1], T)
    with pytest.raises(ValueError, match=r"expected t in \[0, 1\], got 500"):
        add_noise(X0, EPS, 500.0)
    with pytest.raises(ValueError, match=r"expected t of shape \(5,\)"):
        add_noise(X0, EPS, T[:3])


# ---- Rungs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "t_list",
    [
        [],
        [0.0],
        [0.5],
        [0.5, 0.1],
        [1.2, 0.0],
        [0.5, 0.5, 0.0],
        [0.2, 0.5, 0.0],
        [-0.1, 0.0],
        [0.5, -0.1, 0.0],
    ],
)
def test_bad_t_lists_are_refused(t_list):
    with pytest.raises(ValueError, match="strictly decreasing, first in .0, 1., last 0.0"):
        check_t_list(t_list)
    with pytest.raises(ValueError, match="expected t_list"):
        sample_from_t_list(3, t_list, device=CPU)


def test_t_lists_that_are_not_numbers_are_a_type_error():
    with pytest.raises(TypeError, match="expected t_list"):
        check_t_list(["a", 0.0])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="expected t_list"):
        check_t_list(None)  # pyright: ignore[reportArgumentType]


def test_rungs_are_drawn_uniformly_without_the_end_point():
    t_list = [0.999, 0.75, 0.5, 0.0]
    t = sample_from_t_list(
        30_000, t_list, device=CPU, dtype=torch.float64, generator=generator_for(0)
    )
    values, counts = torch.unique(t, return_counts=True)
    assert values.tolist() == [0.5, 0.75, 0.999]
    # Three binomial standard deviations are 245.
    assert (counts - 10_000).abs().max() < 245


# ---- Laws of the training time -------------------------------------------------------------------


def normal_cdf(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


def uniform_cdf(t, c):
    return (t - c.min_t) / (c.max_t - c.min_t)


def logitnormal_cdf(t, c):
    s = (t - c.min_t) / (c.max_t - c.min_t)
    return normal_cdf((math.log(s / (1 - s)) - c.p_mean) / c.p_std)


def lognormal_cdf(t, c):
    def phi(x):
        return 0.0 if x == 0 else normal_cdf((math.log(x) - c.p_mean) / c.p_std)

    return (phi(t) - phi(c.min_t)) / (phi(c.max_t) - phi(c.min_t))


def shifted_cdf(t, c):
    def u(x):
        return x / (c.shift - (c.shift - 1) * x)

    return (u(t) - u(c.min_t)) / (u(c.max_t) - u(c.min_t))


LAWS = [
    ("uniform", uniform_cdf, {}),
    ("uniform", uniform_cdf, {"min_t": 0.0, "max_t": 1.0}),
    ("polynomial", uniform_cdf, {"min_t": 0.1, "max_t": 0.6}),
    ("logitnormal", logitnormal_cdf, {}),
    ("logitnormal", logitnormal_cdf, {"p_mean": -0.8, "p_std": 0.5, "min_t": 0.02, "max_t": 0.9}),
    ("lognormal", lognormal_cdf, {"p_mean": -1.0, "p_std": 0.8}),
    ("lognormal", lognormal_cdf, {"p_mean": -1.0, "p_std": 2.0, "min_t": 0.0, "max_t": 1.0}),
    ("lognormal", lognormal_cdf, {"p_mean": 3.0, "p_std": 1.0, "min_t": 0.3, "max_t": 0.6}),
    ("shifted", shifted_cdf, {}),
    ("shifted", shifted_cdf, {"shift": 0.3, "min_t": 0.02, "max_t": 0.98}),
    ("shifted", shifted_cdf, {"shift": 1.0}),
    ("shifted", shifted_cdf, {"min_t": 0.0, "max_t": 1.0}),
]


@pytest.mark.parametrize(
    ("kind", "cdf", "changes"), LAWS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_times_follow_their_law_within_bounds(kind, cdf, changes):
    """Kolmogorov-Smirnov at level 1e-3, against the closed-form distribution function, fixed
    seed."""
    c = config(time_dist_type=kind, **changes)
    n = 20_000
    t = sample_timesteps(n, c, device=CPU, dtype=torch.float64, generator=generator_for(0, kind))
    assert t.min() >= c.min_t and t.max() <= c.max_t
    f = torch.tensor([cdf(x, c) for x in t.sort().values.tolist()])
    rank = torch.arange(n) / n
    distance = max((f - rank).max().item(), (rank + 1 / n - f).max().item())
    # 1.95 / sqrt(n) is the asymptotic 1e-3 quantile; a grid of 1000 points is at most half a cell
    # away from continuous.
    assert distance < 1.95 / math.sqrt(n) + (1e-3 if kind == "polynomial" else 0)


def test_polynomial_draws_from_its_grid_ends_included():
    c = config(time_dist_type="polynomial", min_t=0.1, max_t=0.6)
    t = sample_timesteps(30_000, c, device=CPU, dtype=torch.float64, generator=generator_for(0))
    grid = torch.linspace(0.1, 0.6, 1000, dtype=torch.float64)
    assert (t[:, None] - grid).abs().min(1).values.max() < 1e-12
    assert t.min() == 0.1 and t.max() == 0.6


@pytest.mark.parametrize("kind", ["uniform", "logitnormal", "lognormal", "shifted", "polynomial"])
def test_float32_times_stay_within_bounds_that_float32_does_not_have(kind):
    c = config(time_dist_type=kind, min_t=0.1, max_t=0.1 + 1e-7, p_mean=-2.3)
    t = sample_timesteps(2000, c, device=CPU, generator=generator_for(0))
    assert t.dtype == torch.float32
    assert t.double().min().item() >= c.min_t and t.double().max().item() <= c.max_t


@pytest.mark.parametrize("kind", ["uniform", "logitnormal", "lognormal", "shifted", "polynomial"])
def test_times_are_a_function_of_the_generator(kind):
    c = config(time_dist_type=kind)
    a, b = (sample_timesteps(64, c, device=CPU, generator=generator_for(5)) for _ in range(2))
    assert torch.equal(a, b) and a.dtype == torch.float32 and a.shape == (64,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_dist_type": "beta"}, "unknown time_dist_type 'beta', expected one of: uniform"),
        ({"min_t": 0.5, "max_t": 0.5}, "expected 0 <= min_t < max_t <= 1"),
        ({"max_t": 1.1}, "expected 0 <= min_t < max_t <= 1"),
        ({"time_dist_type": "shifted", "shift": 0.0}, "expected shift > 0"),
        ({"time_dist_type": "logitnormal", "p_std": 0.0}, "expected p_std > 0"),
        ({"time_dist_type": "lognormal", "p_mean": 200.0}, "mass"),
    ],
)
def test_bad_time_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sample_timesteps(4, config(**changes), device=CPU)


def test_times_are_never_less_than_float32():
    with pytest.raises(TypeError, match="float32 or torch.float64"):
        sample_timesteps(4, config(), device=CPU, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="float32 or torch.float64"):
        sample_from_t_list(4, [0.5, 0.0], device=CPU, dtype=torch.float16)
