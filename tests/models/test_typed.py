"""Copies and pickles of equivariant modules share representations and nothing that is trained."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import torch
from torch import nn

from fastgen.models import (
    eLayerNorm,
    eLinear,
    eMLP,
    eRMSNorm,
    eTransformerDecoderLayer,
)
from fastgen.models.edropout import eDropout
from fastgen.models.emaps import ePositionTable


def every_kind(represent) -> nn.ModuleDict:
    mixed, stack = represent("D4", "mixed", turned=True), represent("D4", 2)
    return nn.ModuleDict(
        {
            "blocks": eLinear(mixed, mixed),
            "lift": eLinear(mixed, stack),
            "lower": eLinear(stack, mixed),
            "kernel": eLinear(stack, stack),
            "rms": eRMSNorm(mixed),
            "layer": eLayerNorm(mixed),
            "dropout": eDropout(mixed, 0.1),
            "positions": ePositionTable(4, mixed),
            "mlp": eMLP(mixed, stack),
            "decoder": eTransformerDecoderLayer(stack, 2, time_dim=4),
        }
    )


def test_a_copy_has_its_own_numbers_and_the_same_representations(represent, shaken):
    modules = shaken(every_kind(represent).double())
    clones = copy.deepcopy(modules)
    for (name, a), b in zip(modules.named_modules(), clones.modules(), strict=True):
        for attribute in ("in_rep", "out_rep"):
            assert getattr(a, attribute, None) is getattr(b, attribute, None), name
    for (name, p), q in zip(modules.named_parameters(), clones.parameters(), strict=True):
        assert torch.equal(p, q) and p.data_ptr() != q.data_ptr(), name
    before = clones["kernel"].dense()[0]
    with torch.no_grad():
        modules["kernel"].weight.zero_()
    assert torch.equal(clones["kernel"].dense()[0], before)


def test_a_pickled_layer_is_the_same_function(represent, shaken):
    modules = shaken(every_kind(represent)).eval()
    again = pickle.loads(pickle.dumps(modules))
    for name in ("blocks", "lift", "rms", "layer", "dropout", "mlp"):
        x = torch.randn(3, modules[name].in_rep.size, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(again[name](x), modules[name](x), rtol=0, atol=0)
        before, after = modules[name].in_rep, again[name].in_rep
        assert all(np.abs(after(g) - before(g)).max() < 1e-14 for g in before.group.elements)
    torch.testing.assert_close(
        again.double()["blocks"].dense()[0], modules.double()["blocks"].dense()[0], rtol=0, atol=0
    )


def test_the_state_of_a_layer_is_its_parameters(represent):
    modules = every_kind(represent)
    assert set(modules.state_dict()) == {name for name, _ in modules.named_parameters()}


def test_a_layer_prints_the_map_that_it_is(represent):
    layer = eLinear(represent("D4", "small"), represent("D4", 2))
    assert f"{layer.in_rep} -> {layer.out_rep}" in repr(layer)
