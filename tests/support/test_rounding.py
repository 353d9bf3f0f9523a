"""The yardstick of rounding: one unit in the last place, and what it does to a computation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from support.agreement import assert_equal_runs, assert_equal_up_to_rounding
from support.exact import normal
from support.rounding import nudged, parameters_nudged, sway


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_nudge_moves_every_number_to_a_neighbour_up_or_down(dtype):
    x = normal(1000).to(dtype)
    moved = nudged(x)
    up = torch.nextafter(x, torch.full_like(x, torch.inf))
    down = torch.nextafter(x, torch.full_like(x, -torch.inf))
    assert ((moved == up) | (moved == down)).all()
    assert 400 < int((moved == up).sum()) < 600
    assert not torch.equal(moved, nudged(x, seed=1))


def test_nudged_parameters_come_back():
    network = nn.Linear(3, 2)
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(ZeroDivisionError), parameters_nudged(network):
        assert all(not torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))
        raise ZeroDivisionError
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_sway_is_an_epsilon_or_two_and_grows_as_digits_cancel(dtype):
    network = nn.Linear(64, 64).to(dtype)
    x = normal(32, 64).to(dtype)
    epsilon = torch.finfo(dtype).eps
    assert 0.2 * epsilon < sway(network, network, x) < 2 * epsilon

    def cancelling(x: Tensor) -> Tensor:
        return 1000 + network(x) - 1000

    assert sway(cancelling, network, x) > 20 * epsilon


def run_of(folder: Path, value: float) -> Path:
    """A run of one weight and one row of a log."""
    (folder / "stages").mkdir(parents=True)
    save_file({"weight": torch.tensor([value])}, folder / "stages" / "kd.safetensors")
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": value}) + "\n")
    return folder


def test_runs_may_lie_a_few_nudges_apart_and_no_more(tmp_path):
    ulp = torch.finfo(torch.float32).eps
    whole = run_of(tmp_path / "whole", 1.0)
    by_nudge = [run_of(tmp_path / "nudged", 1.0 + 3 * ulp)]
    assert_equal_up_to_rounding(whole, run_of(tmp_path / "near", 1.0 + 11 * ulp), by_nudge)
    far = run_of(tmp_path / "far", 1.0 + 14 * ulp)
    with pytest.raises(AssertionError, match="kd.safetensors weight: .* apart, roundings explain"):
        assert_equal_up_to_rounding(whole, far, by_nudge)
    with pytest.raises(AssertionError, match="further apart than 1e-10"):
        assert_equal_runs(whole, far)
    assert_equal_runs(whole, whole)
