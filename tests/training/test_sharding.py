"""Networks in shards (FSDP2, on two processes of a CPU): the same numbers as in one piece, full
where they are handed out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fastgen.training.memory import footprint
from support.agreement import assert_equal_runs, assert_equal_up_to_rounding
from support.launching import TESTS, forked
from support.processes import dtypes_of, name

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sharded(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    script = TESTS / "support" / "sharding.py"
    asked = dtypes_of(request.session.items, "sharded")
    for done in forked(script, folder, "parts", *asked, processes=2):
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module", params=[0, 1])
def found(sharded, request) -> dict:
    """What one of the processes found."""
    return json.loads((sharded / f"found-{request.param}.json").read_text())


def test_weights_moments_and_their_average_are_shards(found):
    assert (
        found["first parameters are shards"]
        and found["shadow is shards"]
        and found["optimiser holds shards"]
    )


def test_a_plan_counts_the_bytes_of_the_larger_shard(sharded):
    found = [json.loads((sharded / f"found-{rank}.json").read_text())["bytes"] for rank in (0, 1)]
    row = footprint("network", nn.Linear(3, 5), ema=torch.float32, shards=2)
    assert {name: max(one[name] for one in found) for name in found[0]} == {
        name: getattr(row, name) for name in ("weights", "gradients", "ema", "host")
    }
    assert found[0]["weights"] > found[1]["weights"]


def test_updates_in_micro_batches_are_those_of_a_network_in_one_piece(found):
    assert found["weights"] < 1e-14 and found["moments"] < 1e-14


def test_the_average_of_shards_is_the_average_in_full_plain_tensors(found):
    assert found["average"] < 1e-14 and found["copy"] < 1e-14


def test_a_state_gathered_from_shards_goes_on_in_shards(found):
    assert found["resumed"] < 1e-14


def test_a_network_that_runs_frozen_first_learns_afterwards_and_nothing_leaks_into_it(found):
    assert found["leaked"] == [0, 0]
    assert max(found["gradient after frozen"]) < 1e-14
    assert found["noted at the first forward"] == ["torch.float64"]


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=pytest.mark.kernels), torch.float64], ids=str
)
def test_a_sharded_distillation_is_that_of_one_process(one, sharded, nudged, dtype):
    whole = one(dtype, 1)
    shared = sharded / name(dtype, 2)
    if dtype == torch.float64:
        assert_equal_runs(whole, shared)
    else:
        assert_equal_up_to_rounding(whole, shared, nudged)
