"""Paths as they are said: what is refused, and names for the same thing."""

from __future__ import annotations

import math

import pytest
import torch

from fastgen.interpolants import LinearInterpolant
from fastgen.teachers.clocks import beta_table
from fastgen.teachers.paths import parse_clock
from support.exact import normal


@pytest.mark.parametrize(
    ("path", "data_at", "message"),
    [
        (
            "ddpm",
            0,
            "unknown path 'ddpm', expected one of: linear, cosine, vp, subvp, ve, edm, betas",
        ),
        ({"sigma_min": 0.1}, 0, "unknown path 'None', expected one of"),
        ("linear", 2, "expected data_at to be 0 or 1, got 2"),
        ("linear", True, "expected data_at to be 0 or 1, got True"),
        ("edm", 1, "expected data_at=0 for the path 'edm', which counts from the data, got 1"),
        ("ve", 1, "expected data_at=0 for the path 've', which counts from the data, got 1"),
        (
            {"name": "ve", "beta_min": 0.1},
            0,
            "of the path 've' among: sigma_min, sigma_max; got {'beta_min': 0.1}",
        ),
        ({"name": "ve", "sigma_min": 60}, 0, "expected 0 < sigma_min < sigma_max"),
        (
            {"name": "subvp", "beta": 0.1},
            0,
            "of the path 'subvp' among: beta_min, beta_max; got {'beta': 0.1}",
        ),
        (
            [0.1, 0.2],
            1,
            "expected data_at=0 for the path 'betas', which counts from the data, got 1",
        ),
        (
            {"name": "cosine", "power": 2},
            0,
            r"expected arguments of the path 'cosine' among: none; got {'power': 2}",
        ),
        (
            {"name": "vp", "beta": 0.1},
            0,
            "of the path 'vp' among: beta_min, beta_max; got {'beta': 0.1}",
        ),
        (
            {"name": "vp", "beta_min": 0.1, "sigma_min": 0.1},
            0,
            "expected beta_min of the path, or sigma_min, got both",
        ),
        (
            {"name": "vp", "beta_min": 2, "beta_max": 1},
            0,
            "expected 0 < beta_min <= beta_max, got beta_min=2, beta_max=1",
        ),
        ({"name": "vp", "sigma_min": 2, "sigma_max": 1}, 0, "expected 0 < sigma_min <= sigma_max"),
        (
            {"name": "edm", "rho": 7},
            0,
            "of the path 'edm' among: sigma_min, sigma_max; got {'rho': 7}",
        ),
        (
            {"name": "edm", "sigma_min": 80},
            0,
            "expected 0 < sigma_min < sigma_max, got sigma_min=80, sigma_max=80.0",
        ),
        ({"name": "edm", "sigma_max": math.inf}, 0, "expected 0 < sigma_min < sigma_max"),
        ("betas", 0, r"expected betas \(a list of numbers\) or schedule, one of the two"),
        (
            {"name": "betas", "betas": [0.1, 0.2], "schedule": "linear"},
            0,
            "or schedule, one of the two",
        ),
        (
            {"name": "betas", "betas": [0.1, 0.2], "rows": 2},
            0,
            "expected no rows beside betas, got 2",
        ),
        (
            {"name": "betas", "schedule": "linear", "step": 2},
            0,
            "among: betas, schedule, rows, beta_start, beta_end",
        ),
        ({"name": "betas", "betas": "many"}, 0, "expected arguments of the path 'betas' among"),
        (
            {"name": "betas", "schedule": "cosine"},
            0,
            "unknown schedule 'cosine', expected one of: linear, scaled_",
        ),
        (
            {"name": "betas", "schedule": "linear", "rows": 1},
            0,
            r"expected rows in 2..100000, got 1",
        ),
        (
            {"name": "betas", "schedule": "linear", "rows": 10**9},
            0,
            r"expected rows in 2..100000, got 1000000000",
        ),
        (
            {"name": "betas", "schedule": "linear", "rows": 2.5},
            0,
            "expected rows to be an int >= 1, got 2.5",
        ),
        (
            {"name": "betas", "schedule": "linear", "beta_end": 1},
            0,
            "expected 0 < beta_start <= beta_end < 1, got 0.0",
        ),
        (
            {"name": "betas", "schedule": "scaled_linear", "beta_start": 0.5},
            0,
            "<= beta_end < 1, got 0.5 and 0.02",
        ),
        ([0.1], 0, r"expected betas of shape \(N,\) with 2 <= N <= 100000, got \(1,\)"),
        (normal(3, 2), 0, r"expected betas of shape \(N,\) .* got \(3, 2\)"),
        (torch.full((100_001,), 0.5), 0, r"got \(100001,\)"),
        (
            [0.1, 0.0, 0.2],
            0,
            r"expected every beta in \(0, 1\), got 0 in row 1; alphas_cumprod is not betas: betas",
        ),
        ([0.1, 1.0, 0.2], 0, "got 1 in row 1"),
        ([0.1, 0.2, 1.5], 0, "got 1.5 in row 2"),
        ([math.nan, 0.2], 0, "got nan in row 0"),
    ],
)
def test_paths_that_are_none_are_refused(path, data_at, message):
    with pytest.raises(ValueError, match=message):
        parse_clock(path, data_at)


def test_alphas_cumprod_gives_its_betas_as_the_message_says():
    betas = beta_table("linear", 100)
    abar = (1 - betas).cumprod(0)
    recovered = torch.cat([1 - abar[:1], 1 - abar[1:] / abar[:-1]])
    torch.testing.assert_close(recovered, betas, rtol=1e-10, atol=0)


@pytest.mark.parametrize("path", [None, 3, LinearInterpolant, b"linear"])
def test_what_is_no_path_at_all_is_a_type_error(path):
    with pytest.raises(
        TypeError, match="expected path as one of linear, .*, betas, an interpolant"
    ):
        parse_clock(path)


@pytest.mark.parametrize("low", ["beta_min", "sigma_min"])
@pytest.mark.parametrize("high", ["beta_max", "sigma_max"])
@pytest.mark.parametrize("name", ["vp", "subvp"])
def test_the_betas_of_vp_go_by_the_names_of_score_sde_and_by_their_earlier_ones(low, high, name):
    clock = parse_clock({"name": name, low: 0.2, high: 9.0})
    known = {"name": name, "sigma_min": 0.2, "sigma_max": 9.0}
    assert clock.describe() == known and parse_clock(known).describe() == known
    assert parse_clock({"name": name, low: 0.2}).describe()["sigma_max"] == 20.0
