"""Equivariant dropout removes whole copies, and commutes with the group."""

from __future__ import annotations

import math

import pytest
import torch

from fastgen.models.edropout import eDropout
from support.exact import normal

F64 = torch.float64


@pytest.mark.parametrize(("kind", "parts"), [(4, 4), ("mixed", 1)])
def test_dropout_removes_whole_copies_and_keeps_the_mean(kind, parts, represent):
    rep = represent("D3", kind, turned=kind == "mixed")
    layer, x = eDropout(rep, 0.25).double(), torch.ones(2000, rep.size, dtype=F64)
    torch.manual_seed(0)
    kept = layer(x).view(-1, parts, rep.size // parts)
    assert (kept == kept[..., :1]).all()  # a copy goes or stays as a whole
    assert ((kept == 0) | ((kept - 1 / 0.75).abs() < 1e-12)).all()
    share = (kept[..., 0] > 0).double().mean().item()
    assert abs(share - 0.75) < 6 * math.sqrt(0.75 * 0.25 / (2000 * parts))
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("kind", [4, "mixed"])
def test_a_mask_commutes_with_the_group(kind, represent, matrices):
    rep = represent("D4", kind, turned=kind == "mixed")
    layer, x = eDropout(rep, 0.5).double(), normal(3, 5, rep.size)
    for rho in matrices(rep):
        torch.manual_seed(1)
        y = layer(x)
        torch.manual_seed(1)
        torch.testing.assert_close(layer(x @ rho.T), y @ rho.T, rtol=0, atol=1e-13)
