"""Initialisation and decay follow the role of a parameter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastgen.models import (
    MultiheadAttention,
    TimeEmbedding,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
)
from fastgen.models.maps import POSITION_STD, PositionTable
from fastgen.models.parameters import INIT_SCHEMES, initialise_, optim_groups, reset_parameters_


@pytest.mark.parametrize("scheme", INIT_SCHEMES)
def test_a_scheme_has_its_variance_and_its_shape(scheme):
    torch.manual_seed(0)
    variance = {"xavier": 2 / (50 + 150), "kaiming": 2 / 50}[scheme.split("_")[0]]
    weight = torch.empty(200, 200)
    initialise_(weight, scheme, 50, 150)
    deviations = 6 * math.sqrt(
        2 / weight.numel()
    )  # six standard deviations of the estimate for normal numbers
    assert weight.square().mean().item() == pytest.approx(variance, rel=deviations)
    assert abs(weight.mean().item()) < 6 * math.sqrt(variance / weight.numel())
    # A uniform law ends at sqrt(3) deviations, a normal one doesn't.
    largest = weight.abs().max().item() / math.sqrt(variance)
    assert (largest <= math.sqrt(3) * (1 + 1e-6)) if scheme.endswith("uniform") else largest > 3


def test_reset_gives_every_role_its_law(shaken):
    root = nn.ModuleDict(
        {
            "linear": nn.Linear(100, 100),
            "attention": MultiheadAttention(60, 2),
            "norm": nn.LayerNorm(7),
            "rms": nn.RMSNorm(7),
            "positions": PositionTable(50, 60),
        }
    )
    shaken(root)
    torch.manual_seed(0)
    reset_parameters_(root, "xavier_uniform")
    assert root["linear"].weight.square().mean().item() == pytest.approx(2 / 200, rel=0.06)
    # Each third of the fused map is a map of its own: 60 -> 60.
    assert root["attention"].qkv.weight.square().mean().item() == pytest.approx(2 / 120, rel=0.06)
    assert root["positions"].weight.std().item() == pytest.approx(POSITION_STD, rel=0.08)
    for bias in (
        root["linear"].bias,
        root["attention"].qkv.bias,
        root["attention"].out.bias,
        root["norm"].bias,
    ):
        assert not bias.any()
    assert (root["norm"].weight == 1).all() and (root["rms"].weight == 1).all()


def test_weights_of_linear_maps_decay_and_nothing_else(shaken):
    root = nn.ModuleDict(
        {
            "decoder": TransformerDecoderLayer(8, 2, time_dim=4, norm_module="layernorm"),
            "encoder": TransformerEncoderLayer(8, 2, norm_module="layernorm"),
            "positions": PositionTable(5, 8),
            "time": TimeEmbedding(4),
        }
    )
    decay, rest = optim_groups(root, 0.02)
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.02, 0.0)
    names = {id(p): name for name, p in root.named_parameters()}
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in (decay, rest))
    assert len(decay["params"]) + len(rest["params"]) == len(names) and decayed | kept == set(
        names.values()
    )
    # The role can be read off the name: linear maps are the modules whose weight is a matrix,
    # position tables aside.
    expected = {
        n for n, p in root.named_parameters() if p.ndim == 2 and not n.startswith("positions")
    }
    assert decayed == expected


def test_a_shared_weight_is_held_once():
    root = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    root[1].weight = root[0].weight
    assert [len(group["params"]) for group in optim_groups(root, 0.1)] == [1, 2]
