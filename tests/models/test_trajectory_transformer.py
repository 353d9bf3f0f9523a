"""The transformer of LeRobot's multi-task DiT: it is rebuilt from its config, rows don't see each
other, every input counts, places do as they are said to, and a student of it comes back alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgen.models import TrajectoryTransformer
from fastgen.models.trajectory_transformer import RotaryAttention, turned
from fastgen.normalizer import Normalizer
from support.folders import seeded
from support.networks import shaken
from support.waypoints import (
    X,
    Z,
    check_built_again,
    check_comes_back,
    check_forged_size,
    check_rows_and_inputs,
    exported,
)

KINDS = {
    "rotary": {},
    "a table": {"rotary": False, "positions": 8},
    "both": {"positions": 10, "rotary_base": 50.0},
    "neither": {"rotary": False},
}


def model(**changes) -> TrajectoryTransformer:
    torch.manual_seed(0)
    arguments = {"in_dim": 4, "cond_dim": 4, "embedding_dim": 8, "num_layers": 2}
    arguments |= {"num_attention_heads": 2, "time_dim": 8}
    network = TrajectoryTransformer(**{**arguments, **changes})
    shaken(network)
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_built_again_from_its_config(tmp_path, kind):
    check_built_again(tmp_path / "t", model(**KINDS[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_see_each_other_and_every_input_counts(kind):
    check_rows_and_inputs(model(**KINDS[kind]).double())


@pytest.mark.parametrize("kind", KINDS)
def test_waypoints_are_told_apart_by_their_places_alone(kind):
    """Without places their order goes through; with them it doesn't."""
    network = model(**KINDS[kind]).double()
    order = torch.randperm(8, generator=seeded(5))
    moved = network(X[:, order], 0.4, Z)
    same = torch.allclose(moved, network(X, 0.4, Z)[:, order], rtol=1e-10, atol=1e-10)
    assert same == (kind == "neither")


def test_scores_depend_on_how_far_apart_places_are():
    q, k = torch.randn(2, 1, 1, 6, 8, dtype=torch.float64, generator=seeded(6))
    angles = RotaryAttention(8, 1, 100.0)._angles(9, 8, q.device).double()

    def scores(first: int) -> torch.Tensor:
        cos = angles[first : first + 6].cos()
        sin = angles[first : first + 6].sin()
        return turned(q, cos, sin) @ turned(k, cos, sin).mT

    torch.testing.assert_close(scores(3), scores(0), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(scores(0), q @ k.mT)
    rates = 100.0 ** -torch.tensor([0.0, 0.25, 0.5, 0.75], dtype=torch.float64)
    torch.testing.assert_close(
        angles, torch.arange(9.0).double()[:, None] * rates, rtol=1e-6, atol=0
    )


def test_a_block_whose_gates_are_closed_is_the_identity():
    network = model().double()
    for block in network.transformer_blocks:
        for parameter in block.adaLN_modulation.parameters():
            nn.init.zeros_(parameter)
    x = network.input_proj(X)
    torch.testing.assert_close(network(X, 0.3, Z), network.output_proj(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_dim": 6}, "expected embedding_dim as a multiple of 4, of 2 heads whose chan"),
        ({"embedding_dim": 9, "rotary": False}, "as a multiple of 2, of 2 heads, got 9"),
        ({"time_dim": 7}, "expected an even time_dim, got 7"),
        ({"rotary_base": 0.0}, "expected rotary_base to be a finite number > 0"),
        ({"positions": -1}, "expected positions"),
        ({"num_layers": 0}, "expected num_layers"),
    ],
)
def test_arguments_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        model(**changes)


def test_other_numbers_than_it_was_made_for_are_refused():
    network = model(positions=6)
    with pytest.raises(ValueError, match="expected 4 numbers of Z a row, got 2 .*obs_horizon"):
        network(X.float(), 0.5, Z[:, :1].float())
    with pytest.raises(ValueError, match="expected at most 6 waypoints, got 8; set data.horizon"):
        network(X.float(), 0.5, Z.float())


# ---- Exports -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_comes_back_bit_for_bit_without_a_factory(tmp_path, kind, dtype):
    check_comes_back(tmp_path / "s", model(**KINDS[kind]).to(dtype), dtype)


@pytest.mark.parametrize(("horizon", "positions"), [((16, 4), 0), ((16, 2), 7)])
def test_a_sample_of_another_size_than_the_networks_is_refused(tmp_path, horizon, positions):
    normalizer = Normalizer(horizon[1] * [0.0], torch.eye(horizon[1]).tolist())
    network = model(positions=positions)
    with pytest.raises(ValueError, match=r"expected horizon \[T_x, d_x\] with T_x / . a multiple"):
        exported(tmp_path / "s", network, horizon=horizon, pack=2, x_normalizer=normalizer)
    assert not (tmp_path / "s").exists()


SIZES = ("in_dim", "cond_dim", "embedding_dim", "num_layers", "num_attention_heads", "time_dim")
FORGED = [
    *((key, 10**9) for key in (*SIZES, "positions")),
    *((key, 10**4) for key in SIZES),
    ("embedding_dim", 8.0),
    ("rotary", 1),
    ("rotary_base", "high"),
    ("rotary_base", -1.0),
    ("rotary", False),
    ("positions", 3),
]


@pytest.mark.parametrize(("key", "value"), FORGED)
def test_a_forged_size_is_refused_before_memory_is_allocated(tmp_path, monkeypatch, key, value):
    check_forged_size(tmp_path / "s", model(), key, value, monkeypatch)
