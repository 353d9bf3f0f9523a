"""Equivariant norms against the plain ones, and against what they do to each irrep."""

from __future__ import annotations

import pytest
import torch
from escnn import group as escnn_group
from escnn.group import directsum
from torch import nn

from fastgen.models import (
    eLayerNorm,
    eRMSNorm,
)
from fastgen.models.norms import NORM_EPS
from support.exact import normal

GROUPS = ["C2", "C3", "C4", "C8", "D3", "D4", "D6", "Icosahedral"]
F64 = torch.float64


@pytest.mark.parametrize("norm", [eRMSNorm, eLayerNorm])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("group", GROUPS)
def test_norms_commute_with_the_group(group, affine, norm, represent, shaken, worst_error):
    for kind, turned in ((3, False), ("mixed", False), ("mixed", True)):
        rep = represent(group, kind, turned=turned)
        layer = shaken(norm(rep, affine=affine).double(), 0.5)
        assert worst_error(layer, rep, (normal(2, 3, rep.size), rep)) < 1e-13


@pytest.mark.parametrize("group", GROUPS)
def test_norms_have_a_scale_a_copy_or_irrep_and_a_shift_an_invariant(group, represent, count):
    stack, rep = represent(group, 3), represent(group, "mixed", turned=True)
    assert eRMSNorm(stack).weight.numel() == eLayerNorm(stack).weight.numel() == count(stack) == 3
    assert eLayerNorm(stack).bias.numel() == 3 and eLayerNorm(rep).bias.numel() == count(rep)
    irreps = sum(count(rep, irrep) / count(irrep, irrep) for irrep in rep.group.irreps())
    assert eRMSNorm(rep).weight.numel() == eLayerNorm(rep).weight.numel() == irreps
    assert eRMSNorm(rep).bias is None
    assert not list(eRMSNorm(rep, affine=False).parameters()) and not list(
        eLayerNorm(rep, affine=False).parameters()
    )


@pytest.mark.parametrize(("norm", "plain"), [(eRMSNorm, nn.RMSNorm), (eLayerNorm, nn.LayerNorm)])
def test_on_regular_copies_a_norm_is_the_plain_one_with_a_number_a_copy(
    norm, plain, represent, shaken
):
    layer = shaken(norm(represent("D3", 4)).double(), 0.5)
    twin = plain(24, eps=NORM_EPS).double()
    twin.load_state_dict({name: p.repeat_interleave(6) for name, p in layer.named_parameters()})
    x = normal(5, 24)
    torch.testing.assert_close(layer(x), twin(x), rtol=0, atol=1e-13)


def test_a_norm_scales_every_irrep_by_its_number(represent, shaken):
    rep = represent("D4", "mixed", turned=True)
    layer, x = shaken(eRMSNorm(rep).double(), 0.5), normal(5, rep.size)
    scale, _ = layer.affine()
    expected = x / (x.square().mean(-1, keepdim=True) + NORM_EPS).sqrt() @ scale
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-13)
    # S is symmetric with the eigenvalues w_i, each as often as its irrep is wide; equal irreps
    # stand side by side.
    assert (scale - scale.T).abs().max() < 1e-14
    irreps = [i for kind in dict.fromkeys(rep.irreps) for i in rep.irreps if i == kind]
    sizes = torch.tensor([rep.group.irrep(*i).size for i in irreps])
    expected = layer.weight.detach().repeat_interleave(sizes).sort().values
    torch.testing.assert_close(torch.linalg.eigvalsh(scale.detach()), expected, rtol=0, atol=1e-12)


def test_layer_norm_centres_the_invariant_coordinates_and_no_others(represent, matrices):
    rep = represent("D4", "mixed", turned=True)
    layer, x = eLayerNorm(rep, affine=False).double(), 5 + 2 * normal(4, rep.size)
    y, projector = layer(x), matrices(rep).mean(0)
    assert (y @ layer.invariants).mean(-1).abs().max() < 1e-12
    torch.testing.assert_close(y.square().mean(-1), torch.ones(4, dtype=F64), rtol=1e-5, atol=0)
    # What is not invariant is scaled only, by a number a token.
    moving_y, moving_x = y - y @ projector, x - x @ projector
    ratio = (moving_y * moving_x).sum(-1, keepdim=True) / moving_x.square().sum(-1, keepdim=True)
    torch.testing.assert_close(moving_y, ratio * moving_x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", [eRMSNorm, eLayerNorm])
def test_a_norm_of_irreps_can_be_built_on_no_device(norm):
    rep = directsum(
        [escnn_group.dihedral_group(4).irrep(1, 1), escnn_group.dihedral_group(4).irrep(0, 0)]
    )
    with torch.device("meta"):
        layer = norm(rep)
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert torch.equal(layer(torch.ones(2, 3)), norm(rep)(torch.ones(2, 3)))
