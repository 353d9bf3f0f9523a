"""Clocks: slopes are those of autograd, times and noise ratios are inverse to each other, tables
are hit at their rows."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgen.interpolants import (
    BaseInterpolant,
    CosineInterpolant,
    LinearInterpolant,
    VariancePreservingInterpolant,
)
from fastgen.teachers.clocks import (
    BETA_SCHEDULES,
    Clock,
    PathClock,
    SigmaClock,
    TableClock,
    VeClock,
    beta_table,
)
from fastgen.teachers.paths import parse_clock

F64 = torch.float64
STABLE_DIFFUSION = {"schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
# Each with its path and the end of the data.
CLOCKS: dict[str, tuple[Any, int]] = {
    **{
        f"{path} from {data_at}": (path, data_at)
        for path in ("linear", "cosine", "vp", "subvp")
        for data_at in (0, 1)
    },
    "slow vp": ({"name": "vp", "sigma_min": 0.2, "sigma_max": 9.0}, 1),
    "slow subvp": ({"name": "subvp", "beta_min": 0.01, "beta_max": 10.0}, 0),
    "ve": ("ve", 0),
    "wide ve": ({"name": "ve", "sigma_min": 1e-4, "sigma_max": 10.0}, 0),
    "edm": ("edm", 0),
    "wide edm": ({"name": "edm", "sigma_min": 1e-4, "sigma_max": 500.0}, 0),
    **{
        f"{schedule} betas": ({"name": "betas", "schedule": schedule}, 0)
        for schedule in BETA_SCHEDULES
    },
    "latent betas": ({"name": "betas", **STABLE_DIFFUSION}, 0),
    "betas to pure noise": (torch.tensor([0.1, 0.4, 0.7, 1.0]), 0),
    "nearest of two betas": ({"name": "betas", "betas": [0.1, 0.9], "nearest": True}, 0),
}
every_clock = pytest.mark.parametrize(("path", "data_at"), CLOCKS.values(), ids=CLOCKS)


class Quadratic(BaseInterpolant):
    """A path of a user's own."""

    def _alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t * (1 + t) / 2, 0.5 + t

    def _sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t**2, -2 * t


def times(clock: Clock, count: int = 1001) -> Tensor:
    """From the data to the noise, both ends included."""
    if isinstance(clock, PathClock | VeClock):
        s = torch.linspace(0, 1, count, dtype=F64)
        return 1 - s if getattr(clock, "data_at", 0) == 1 else s
    if isinstance(clock, SigmaClock):
        return torch.logspace(
            math.log10(clock.sigma_min), math.log10(clock.sigma_max), count, dtype=F64
        )
    assert isinstance(clock, TableClock)
    return torch.linspace(0, len(clock.betas) - 1, count, dtype=F64)


def ratio(clock: Clock, s: Tensor) -> Tensor:
    alpha, sigma = clock.coefficients(s)
    return sigma / alpha


# ---- Every clock ---------------------------------------------------------------------------------


@every_clock
def test_noise_grows_along_the_clock_from_one_end_of_its_range_to_the_other(path, data_at):
    clock = parse_clock(path, data_at)
    alpha, sigma = clock.coefficients(times(clock))
    assert alpha.dtype == sigma.dtype == F64
    # At a path's own zero of alpha, cos(pi / 2) and the like, the quotient is a rounding error away
    # from infinity.
    ratios = (sigma / alpha).clamp(max=1e15)
    assert bool((ratios.diff() > 0).all())
    low, high = clock.ratios
    assert float(ratios[0]) == pytest.approx(low, rel=1e-12, abs=1e-15)
    assert float(ratios[-1]) == pytest.approx(min(high, 1e15), rel=1e-12)


@every_clock
def test_the_time_of_a_ratio_is_where_the_clock_has_it(path, data_at):
    clock = parse_clock(path, data_at)
    s = times(clock)[1:-1]
    span = float(times(clock)[[0, -1]].diff().abs())
    assert (clock.time_of_ratio(ratio(clock, s)) - s).abs().max() < 1e-12 * span
    # Near the data of VP the ratio goes with the root of 1 - s, whose digits are few.
    low = max(clock.ratios[0], 1e-2)
    high = min(clock.ratios[1], 1e4)
    ratios = torch.logspace(math.log10(low), math.log10(high), 500, dtype=F64)[1:-1]
    torch.testing.assert_close(
        ratio(clock, clock.time_of_ratio(ratios)), ratios, rtol=1e-10, atol=0
    )
    assert clock.time_of_ratio(ratios.reshape(2, -1)).shape == (2, 249)


@pytest.mark.parametrize("path", ["linear", "cosine", "vp", "subvp", "ve", "edm"])
@pytest.mark.parametrize("data_at", [0, 1])
def test_derivatives_are_those_of_autograd(path, data_at):
    clock = parse_clock(path, data_at if path not in ("ve", "edm") else 0)
    s = times(clock)[1:].clone().requires_grad_()  # sigma of VP has no slope at the data
    for value, slope in zip(clock.coefficients(s), clock.derivatives(s), strict=True):
        expected = (
            torch.autograd.grad(value.sum(), s)[0] if value.requires_grad else torch.zeros_like(s)
        )
        torch.testing.assert_close(slope.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in CLOCKS if not name.endswith(" betas")])
def test_a_clock_comes_back_from_its_description_in_json(name):
    path, data_at = CLOCKS[name]
    clock = parse_clock(path, data_at)
    description = json.loads(json.dumps(clock.describe(), allow_nan=False))
    again = parse_clock(description, data_at)
    assert type(again) is type(clock) and again.describe() == clock.describe() == description
    assert (again.ratios, again.whole, again.smooth) == (clock.ratios, clock.whole, clock.smooth)
    for value, expected in zip(
        again.coefficients(times(clock)), clock.coefficients(times(clock)), strict=True
    ):
        assert torch.equal(value, expected)


@pytest.mark.parametrize(
    "interpolant", [LinearInterpolant(), CosineInterpolant(), VariancePreservingInterpolant()]
)
def test_data_at_zero_is_the_path_run_backwards(interpolant):
    s = torch.arange(9, dtype=F64) / 8  # 1 - (1 - s) is s again
    forwards = parse_clock(interpolant, 1)
    backwards = parse_clock(interpolant, 0)
    for there, back in zip(forwards.coefficients(s), backwards.coefficients(1 - s), strict=True):
        assert torch.equal(there, back)
    for there, back in zip(forwards.derivatives(s), backwards.derivatives(1 - s), strict=True):
        assert torch.equal(there, -back)


@pytest.mark.parametrize("data_at", [0, 1])
def test_a_path_of_ones_own_is_a_clock_too(data_at):
    clock = parse_clock(Quadratic(), data_at)
    assert (
        clock.describe() == {"name": "custom", "class": "Quadratic"}
        and clock.smooth
        and not clock.whole
    )
    assert clock.ratios == (0.0, math.inf)
    s = times(clock)[1:-1]
    assert (clock.time_of_ratio(ratio(clock, s)) - s).abs().max() < 1e-12


def test_the_ranges_are_those_of_the_paths():
    assert parse_clock("linear").ratios == (0.0, math.inf)
    low, high = parse_clock("cosine").ratios
    assert low < 1e-15 and high > 1e15
    alpha = math.exp(-19.9 / 4 - 0.1 / 2)
    assert parse_clock("vp").ratios[1] == pytest.approx(math.sqrt(1 - alpha**2) / alpha, rel=1e-12)
    assert parse_clock("edm").ratios == (0.002, 80.0)
    assert parse_clock({"name": "edm", "sigma_max": 10}).ratios == (0.002, 10.0)
    betas = beta_table("linear")
    abar = (1 - betas).cumprod(0)[[0, -1]]
    assert parse_clock(betas).ratios == pytest.approx(
        ((1 - abar) / abar).sqrt().tolist(), rel=1e-10
    )


def test_ve_is_the_path_of_edm_told_the_logarithm_of_sigma():
    clock = parse_clock({"name": "ve", "sigma_min": 0.25, "sigma_max": 4.0})
    s = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=F64)
    sigma = torch.tensor([0.25, 0.5, 1.0, 4.0], dtype=F64)
    alpha, found = clock.coefficients(s)
    assert torch.equal(alpha, torch.ones_like(s))
    torch.testing.assert_close(found, sigma, rtol=1e-14, atol=0)
    assert clock.ratios == parse_clock({"name": "edm", "sigma_min": 0.25, "sigma_max": 4}).ratios


def test_the_variance_of_subvp_is_that_of_vp_squared():
    """Song et al., 2021: beta(s) = .01 + 9.99 s, alpha = exp(-B / 2), sigma = 1 - exp(-B), with B
    the integral of beta."""
    s = torch.linspace(0, 1, 7, dtype=F64)
    integral = 0.01 * s + 9.99 * s**2 / 2
    for data_at in (0, 1):
        path = {"name": "subvp", "beta_min": 0.01, "beta_max": 10.0}
        alpha, sigma = parse_clock(path, data_at).coefficients(1 - s if data_at == 1 else s)
        torch.testing.assert_close(alpha, torch.exp(-integral / 2), rtol=1e-13, atol=0)
        torch.testing.assert_close(sigma, -torch.expm1(-integral), rtol=1e-13, atol=1e-15)


# ---- Tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "ends", "first", "last", "last_abar"),
    [
        ("linear", {}, 1e-4, 0.02, 4.0358e-5),
        ("scaled_linear", {"beta_start": 0.00085, "beta_end": 0.012}, 0.00085, 0.012, 4.6602e-3),
        # 1 - cos^2(u_1) / cos^2(u_0) with u_i = pi / 2 (i / N + .008) / 1.008, and the ceiling on
        # the last.
        ("squared_cosine", {}, 4.1284e-5, 0.999, 2.4288e-9),
    ],
)
def test_schedules_have_their_known_first_and_last_values(schedule, ends, first, last, last_abar):
    betas = beta_table(schedule, **ends)
    assert betas.shape == (1000,) and betas.dtype == F64
    assert [float(betas[0]), float(betas[-1])] == pytest.approx([first, last], rel=1e-4)
    assert float((1 - betas).prod()) == pytest.approx(last_abar, rel=1e-4)
    assert bool((betas.diff() >= 0).all()) and beta_table(schedule, 7, **ends).shape == (7,)
    assert (
        parse_clock({"name": "betas", "schedule": schedule, **ends}).describe()["betas"]
        == betas.tolist()
    )


def test_scaled_linear_betas_have_evenly_spaced_roots():
    steps = beta_table("scaled_linear", 50, 0.01, 0.3).sqrt().diff()
    torch.testing.assert_close(
        steps, torch.full_like(steps, (0.3**0.5 - 0.01**0.5) / 49), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_a_table_is_hit_at_its_rows_and_linear_in_log_snr_between_them(schedule):
    betas = beta_table(schedule, 200)
    clock = TableClock(betas)
    rows = torch.arange(200, dtype=F64)
    abar = (1 - betas).cumprod(0)
    alpha, sigma = clock.coefficients(rows)
    torch.testing.assert_close(alpha**2, abar, rtol=1e-10, atol=0)
    torch.testing.assert_close(sigma**2, 1 - abar, rtol=1e-10, atol=0)
    torch.testing.assert_close(clock.time_of_ratio(sigma / alpha), rows, rtol=0, atol=1e-10)
    level = (abar / (1 - abar)).log()
    between = ratio(clock, rows[:-1] + 0.3)
    torch.testing.assert_close(
        -2 * between.log(), 0.7 * level[:-1] + 0.3 * level[1:], rtol=1e-10, atol=1e-10
    )
    a, s = clock.coefficients(rows[:-1] + 0.3)
    torch.testing.assert_close(a**2 + s**2, torch.ones_like(a), rtol=1e-14, atol=0)


def test_a_last_beta_of_one_is_taken_as_almost_pure_noise():
    clock = TableClock(torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=F64))
    alpha, sigma = clock.coefficients(torch.arange(4, dtype=F64))
    assert float(alpha[-1]) == pytest.approx(1e-5, rel=1e-9) and math.isfinite(clock.ratios[1])
    torch.testing.assert_close(
        alpha[:3] ** 2, torch.tensor([0.9, 0.54, 0.162], dtype=F64), rtol=1e-12, atol=0
    )
    assert float(sigma[-1]) == pytest.approx(1.0, rel=1e-9)
    # A table that was darker than that before its last row still grows to its end.
    dark = TableClock(torch.tensor([1 - 1e-12, 0.5, 1.0], dtype=F64))
    assert bool((ratio(dark, torch.arange(3, dtype=F64)).diff() > 0).all())


def test_times_beyond_a_table_are_its_ends():
    clock = TableClock([0.1, 0.4, 0.7])
    ends = torch.tensor([0.0, 2.0], dtype=F64)
    for value, end in zip(
        clock.coefficients(ends + torch.tensor([-1.0, 1.0])), clock.coefficients(ends), strict=True
    ):
        assert torch.equal(value, end)
    torch.testing.assert_close(clock.time_of_ratio(torch.tensor([0.0, 1e9], dtype=F64)), ends)


def test_nearest_asks_for_whole_rows_and_betas_are_a_copy():
    betas = torch.tensor([0.1, 0.4, 0.7])
    clock = parse_clock({"name": "betas", "betas": betas, "nearest": True})
    betas.zero_()
    assert clock.whole and clock.describe()["betas"] == pytest.approx([0.1, 0.4, 0.7])
    assert not parse_clock([0.1, 0.2]).whole and not clock.smooth
    with pytest.raises(TypeError, match="a table of betas has no velocity"):
        clock.derivatives(torch.zeros(1, dtype=F64))
