"""Paths: derivatives, ends, conversions and the inverse of the noise ratio."""

import math

import pytest
import torch
from torch import Tensor

from fastgen.interpolants import (
    DIFFUSION_FORMS,
    BaseInterpolant,
    CosineInterpolant,
    LinearInterpolant,
    VariancePreservingInterpolant,
)
from support.exact import normal

PATHS = {
    "linear": LinearInterpolant(),
    "cosine": CosineInterpolant(),
    "vp": VariancePreservingInterpolant(),
    "vp-flat": VariancePreservingInterpolant(3.0, 3.0),
}
GRID = torch.linspace(0, 1, 1001, dtype=torch.float64)
INSIDE = GRID[(GRID >= 0.01) & (GRID <= 0.99)]
X0 = normal(len(INSIDE), 3)
X1 = normal(len(INSIDE), 3, seed=1)

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


class Quadratic(BaseInterpolant):
    """A path of a user's own, with nothing but the two coefficients."""

    def _alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t * (1 + t) / 2, 0.5 + t

    def _sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t**2, -2 * t


def test_coefficients_are_those_of_the_table():
    alpha = PATHS["linear"].compute_alpha_t(GRID)[0]
    sigma = PATHS["linear"].compute_sigma_t(GRID)[0]
    torch.testing.assert_close((alpha, sigma), (GRID, 1 - GRID))
    alpha = PATHS["cosine"].compute_alpha_t(GRID)[0]
    sigma = PATHS["cosine"].compute_sigma_t(GRID)[0]
    torch.testing.assert_close(
        (alpha, sigma), (torch.sin(math.pi * GRID / 2), torch.cos(math.pi * GRID / 2))
    )
    # alpha solves d log alpha / dt = beta / 2 from alpha(1) = 1.
    alpha = PATHS["vp"].compute_alpha_t(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))[0]
    expected = [math.exp(-19.9 / 4 - 0.05), math.exp(-19.9 / 16 - 0.025), 1.0]
    torch.testing.assert_close(alpha, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", ["cosine", "vp", "vp-flat"])
def test_variance_is_preserved(name):
    alpha = PATHS[name].compute_alpha_t(GRID)[0]
    sigma = PATHS[name].compute_sigma_t(GRID)[0]
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(GRID), rtol=0, atol=1e-12)


@every_path
def test_derivatives_are_those_of_autograd(path):
    """On all of [0, 1], but for the sigma of VP at t = 1, where the derivative is infinite."""
    for method in (path.compute_alpha_t, path.compute_sigma_t):
        infinite = (
            isinstance(path, VariancePreservingInterpolant) and method == path.compute_sigma_t
        )
        t = (GRID[:-1] if infinite else GRID).clone().requires_grad_()
        value, derivative = method(t)
        (slope,) = torch.autograd.grad(value.sum(), t)
        torch.testing.assert_close(derivative, slope, rtol=1e-12, atol=1e-12)


@every_path
def test_alpha_ratio_is_the_logarithmic_derivative(path):
    alpha, d_alpha = path.compute_alpha_t(INSIDE)
    torch.testing.assert_close(
        path.compute_d_alpha_alpha_ratio_t(INSIDE), d_alpha / alpha, rtol=1e-12, atol=0
    )


@every_path
def test_signal_to_noise_grows_from_noise_to_data(path):
    alpha = path.compute_alpha_t(GRID)[0]
    sigma = path.compute_sigma_t(GRID)[0]
    assert (alpha.diff() > 0).all() and (sigma.diff() < 0).all()
    assert alpha[-1] == 1 and sigma[-1].abs() < 1e-15
    assert sigma[0] > 0.97  # VP comes close to pure noise only


@every_path
def test_interpolate_runs_from_noise_to_data_at_its_own_velocity(path):
    t = INSIDE.clone().requires_grad_()
    x_t, u_t = path.interpolate(X0, X1, t)
    (slope,) = torch.autograd.grad(x_t[:, 1].sum(), t)
    torch.testing.assert_close(u_t[:, 1], slope, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(path.interpolate(X0, X1, 1.0)[0], X1)
    if path is not PATHS["vp-flat"]:
        torch.testing.assert_close(path.interpolate(X0, X1, 0.0)[0], X0, rtol=0, atol=0.03)


@every_path
def test_velocity_noise_and_score_are_one_statement(path):
    x_t, u_t = path.interpolate(X0, X1, INSIDE)
    sigma = path.compute_sigma_t(INSIDE)[0][:, None]
    exact = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(path.velocity_to_noise(u_t, x_t, INSIDE), X0, **exact)
    score = path.velocity_to_score(u_t, x_t, INSIDE)
    torch.testing.assert_close(score * sigma, -X0, **exact)
    torch.testing.assert_close(
        path.score_to_velocity(score, x_t, INSIDE), u_t, rtol=1e-10, atol=1e-10
    )


@every_path
def test_drift_is_the_velocity_of_a_score(path):
    """velocity = -drift_mean + drift_var score, and drift_var = (alpha'/alpha) sigma^2 - sigma
    sigma'."""
    mean, var = path.compute_drift(X1, INSIDE)
    assert mean.shape == X1.shape and var.shape == (len(INSIDE), 1)
    score = normal(*X1.shape, seed=2)
    torch.testing.assert_close(path.score_to_velocity(score, X1, INSIDE), -mean + var * score)
    (alpha, d_alpha) = path.compute_alpha_t(INSIDE)
    (sigma, d_sigma) = path.compute_sigma_t(INSIDE)
    torch.testing.assert_close(
        var[:, 0], d_alpha / alpha * sigma**2 - sigma * d_sigma, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("name", ["vp", "vp-flat"])
def test_vp_drift_is_the_sde_with_beta(name):
    path = PATHS[name]
    beta = (path.sigma_min + (1 - GRID) * (path.sigma_max - path.sigma_min))[:, None]
    x = normal(len(GRID), 3)
    mean, var = path.compute_drift(x, GRID)
    torch.testing.assert_close(mean, -beta * x / 2)
    torch.testing.assert_close(var, beta / 2)


@every_path
@pytest.mark.parametrize("form", DIFFUSION_FORMS)
def test_diffusion_forms(path, form):
    t = INSIDE[:, None]
    sigma = path.compute_sigma_t(INSIDE)[0][:, None]
    expected = {
        "constant": torch.ones_like(t),
        "SBDM": path.compute_drift(X1, INSIDE)[1] / sigma,
        "sigma": sigma,
        "linear": 1 - t,
        "decreasing": (1 - t) ** 2,
        "increasing-decreasing": 4 * t * (1 - t),
    }[form]
    torch.testing.assert_close(
        path.compute_diffusion(X1, INSIDE, form=form, norm=2.5), 2.5 * expected
    )


@every_path
def test_everything_is_finite_at_both_ends(path):
    t = torch.tensor([0.0, 1.0, 1e-12, 1 - 1e-12], dtype=torch.float64)
    x = normal(4, 3)
    other = normal(4, 3, seed=1)
    values = [
        *path.compute_alpha_t(t),
        *path.compute_sigma_t(t),
        path.compute_d_alpha_alpha_ratio_t(t),
    ]
    values += [*path.interpolate(x, other, t), *path.compute_drift(x, t)]
    values += [path.compute_diffusion(x, t, form=form) for form in DIFFUSION_FORMS]
    values += [
        f(other, x, t)
        for f in (path.velocity_to_noise, path.velocity_to_score, path.score_to_velocity)
    ]
    assert all(torch.isfinite(value).all() for value in values)


@pytest.mark.parametrize("path", [*PATHS.values(), Quadratic()], ids=[*PATHS, "own"])
def test_noise_ratio_is_inverted(path):
    t = GRID[1:]
    ratio = path.compute_sigma_t(t)[0] / path.compute_alpha_t(t)[0]
    torch.testing.assert_close(path.time_of_noise_ratio(ratio), t, rtol=0, atol=1e-12)
    assert path.time_of_noise_ratio(float(ratio[499])) == pytest.approx(0.5, abs=1e-12)
    assert path.time_of_noise_ratio(0.0) == pytest.approx(1.0, abs=1e-12)
    assert path.time_of_noise_ratio(math.inf) == pytest.approx(0.0, abs=1e-12)


def test_ratios_beyond_the_paths_own_noise_end_give_its_end():
    path = PATHS["vp"]
    most = float(path.compute_sigma_t(0.0)[0] / path.compute_alpha_t(0.0)[0])
    assert most == pytest.approx(152, abs=0.5)
    ratios = torch.tensor([most, 2 * most, 1e200, math.inf], dtype=torch.float64)
    torch.testing.assert_close(
        path.time_of_noise_ratio(ratios), torch.zeros(4, dtype=torch.float64)
    )
    assert path.time_of_noise_ratio(torch.tensor([0.5])).dtype == torch.float32


def test_a_path_of_ones_own_needs_two_coefficients_only():
    path = Quadratic()
    x_t, u_t = path.interpolate(X0, X1, INSIDE)
    torch.testing.assert_close(path.velocity_to_noise(u_t, x_t, INSIDE), X0, rtol=0, atol=1e-10)


@every_path
def test_dtypes_follow_the_data(path):
    x0 = X0.bfloat16()
    x1 = X1.bfloat16()
    t = INSIDE.float()
    assert {y.dtype for y in path.interpolate(x0, x1, t)} == {torch.bfloat16}
    assert {y.dtype for y in path.compute_drift(x1, t)} == {torch.bfloat16}
    assert path.velocity_to_score(x0, x1, t).dtype == torch.bfloat16
    assert {y.dtype for y in path.compute_alpha_t(t)} == {torch.float32}
    with pytest.raises(TypeError, match="float32/float64"):
        path.compute_alpha_t(t.bfloat16())


def test_bad_arguments_are_named():
    path = PATHS["linear"]
    with pytest.raises(ValueError, match="unknown form 'cosine', expected one of: constant"):
        path.compute_diffusion(X1, INSIDE, form="cosine")
    with pytest.raises(ValueError, match=r"expected x0 of shape \(981, 3\), got \(981, 2\)"):
        path.interpolate(X0[:, :2], X1, INSIDE)
    with pytest.raises(ValueError, match=r"expected t in \[0, 1\]"):
        path.compute_alpha_t(torch.tensor([1.5]))
    for ratio in (-0.1, math.nan, torch.tensor([-0.1, 0.5])):
        with pytest.raises(ValueError, match="expected ratio >= 0"):
            path.time_of_noise_ratio(ratio)
    with pytest.raises(ValueError, match="expected 0 < sigma_min <= sigma_max"):
        VariancePreservingInterpolant(20.0, 0.1)
