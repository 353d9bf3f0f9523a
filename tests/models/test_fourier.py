"""The irrep basis of regular features: its transform, its blocks, and layers that work in it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

from fastgen.models import (
    eLayerNorm,
    eLinear,
    eMLP,
    eMultiheadAttention,
    eRMSNorm,
    eTransformerDecoderLayer,
    eTransformerEncoderLayer,
    parse_group,
)
from fastgen.models.block_maps import block_map, irrep_matrices
from fastgen.models.edropout import eDropout
from fastgen.models.emaps import InvariantLift, ePositionTable
from fastgen.models.fourier import fourier_matrix, fourier_stack, kernel_transform
from fastgen.models.norms import NORM_EPS, rms_norm
from fastgen.models.stacks import regular_stack
from support.exact import normal

GROUPS = [
    "C1",
    "C2",
    "C3",
    "C4",
    "C8",
    "D3",
    "D4",
    "D6",
    "C3xC3",
    "C2xD3",
    "Octahedral",
    "Icosahedral",
]


F64, CPU = torch.float64, torch.device("cpu")


def turned(x: Tensor, group, *, back: bool = False) -> Tensor:
    """Regular copies (..., copy, element) to the irrep basis (..., component, copy), or back, one
    copy at a time."""
    matrix = fourier_matrix(group, F64, CPU)
    if back:
        return torch.cat(
            [part @ matrix.T for part in x.unflatten(-1, (len(matrix), -1)).unbind(-1)], dim=-1
        )
    return torch.stack(
        [part @ matrix for part in x.unflatten(-1, (-1, len(matrix))).unbind(-2)], dim=-1
    ).flatten(-2)


def twins(build, group, copies: int, shaken, seed: int = 0):
    """A layer on regular copies and the one in the irrep basis with the same parameters, in
    float64."""
    regular, by_irreps = (
        shaken(build(stack(group, copies)).double()) for stack in (regular_stack, fourier_stack)
    )
    by_irreps.load_state_dict(regular.state_dict())
    return regular, by_irreps


# ---- The basis -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GROUPS)
def test_the_basis_is_orthogonal_and_turns_the_regular_representation(name):
    group = parse_group(name)
    matrix, stack = fourier_matrix(group, F64, CPU), fourier_stack(group, 2)
    assert (matrix.T @ matrix - torch.eye(len(matrix), dtype=F64)).abs().max() < 1e-13
    assert sum(b.count * b.rows * b.size for b in stack.blocks) == group.order()
    assert stack.size == len(stack.irreps and stack(group.identity)) == 2 * group.order()
    x = normal(2 * group.order())
    for g in group.elements[:: max(group.order() // 5, 1)]:
        rho, regular = torch.from_numpy(stack(g)), torch.from_numpy(regular_stack(group, 2)(g))
        torch.testing.assert_close(
            rho @ turned(x, group), turned(regular @ x, group), rtol=0, atol=1e-12
        )
        blocks = torch.block_diag(
            *(torch.from_numpy(group.irrep(*i)(g)) for i in stack.irreps)
        ).double()
        basis, inverse = (
            torch.from_numpy(m) for m in (stack.change_of_basis, stack.change_of_basis_inv)
        )
        torch.testing.assert_close(basis @ blocks @ inverse, rho, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", GROUPS)
def test_the_blocks_are_as_small_as_schur_allows(name):
    """On a row of an irrep of dimension d a map of one copy has d^2 numbers, and no number
    elsewhere."""
    group = parse_group(name)
    dense = (
        eLinear(fourier_stack(group, 1), fourier_stack(group, 1), bias=False).double().dense()[0]
    )
    share = sum(b.count * b.rows * b.size**2 for b in fourier_stack(group, 1).blocks)
    assert int((dense.abs() > 1e-12).sum()) <= share
    known = {
        "C4": 6,
        "C8": 14,
        "D4": 12,
        "Icosahedral": 244,
    }  # sum of d^3 / (dimension of the endomorphisms)
    assert known.get(name, share) == share


@pytest.mark.parametrize("first_out", [False, True])
@pytest.mark.parametrize("first_in", [False, True])
@pytest.mark.parametrize("name", ["C3", "C4", "D3", "D4"])
def test_gradients_of_a_block_map_are_finite_differences_to_second_order(name, first_in, first_out):
    group = parse_group(name)
    blocks, order = fourier_stack(group, 1).blocks, group.order()
    transform = kernel_transform(group, F64, CPU)
    x, kernel, bias = (
        v.requires_grad_() for v in (normal(4, 2 * order), normal(3, 2, order), normal(3))
    )

    def apply(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        matrices = irrep_matrices(blocks, transform, kernel)
        x = x.T.contiguous() if first_in else x
        return block_map(x, blocks, matrices, bias, channels_first=(first_in, first_out))

    assert torch.autograd.gradcheck(apply, (x, kernel, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(apply, (x, kernel, bias), fast_mode=True)


# ---- Layers: the slow twin is the loop over the group or over the copies -------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS)
def test_a_linear_map_is_the_group_convolution_turned(name, shaken, count):
    group = parse_group(name)
    layer = shaken(eLinear(fourier_stack(group, 2), fourier_stack(group, 3)).double())
    assert layer.weight.numel() == count(layer.in_rep, layer.out_rep)
    assert layer.bias.numel() == count(layer.out_rep)
    x, elements = normal(2 * group.order()), group.elements
    signal, y = x.view(2, -1), turned(layer(turned(x, group)), group, back=True).view(3, -1)
    for g in range(0, len(elements), -(-len(elements) // 12)):
        expected = (
            layer.bias.detach().clone()
        )  # y[o, g] = b[o] + sum_i sum_h k[o, i, g^-1 h] x[i, h]
        for h, b in enumerate(elements):
            expected += layer.weight.detach()[:, :, elements.index(~elements[g] @ b)] @ signal[:, h]
        torch.testing.assert_close(y[:, g], expected, rtol=0, atol=1e-11)
    x = normal(2, 3, layer.in_rep.size)
    torch.testing.assert_close(F.linear(x, *layer.dense()), layer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["small", "mixed", 2])
@pytest.mark.parametrize("name", ["C3", "D4", "Icosahedral"])
def test_maps_from_and_to_other_representations_are_turned_on_one_side(
    name, kind, represent, shaken, worst_error
):
    rep = represent(name, kind)
    x = normal(3, rep.size)
    regular, by_irreps = twins(lambda stack: eLinear(rep, stack), rep.group, 2, shaken)
    torch.testing.assert_close(by_irreps(x), turned(regular(x), rep.group), rtol=0, atol=1e-12)
    assert worst_error(by_irreps, by_irreps.out_rep, (x, rep)) < 1e-13
    regular, by_irreps = twins(lambda stack: eLinear(stack, rep), rep.group, 2, shaken)
    x = normal(3, 2 * rep.group.order())
    torch.testing.assert_close(by_irreps(turned(x, rep.group)), regular(x), rtol=0, atol=1e-12)


LAYERS = {
    "rms norm": lambda stack: eRMSNorm(stack),
    "layer norm": lambda stack: eLayerNorm(stack),
    "layer norm without scale": lambda stack: eLayerNorm(stack, affine=False),
    "dropout": lambda stack: eDropout(stack, 0.4),
    "mlp": lambda stack: eMLP(stack, dropout=0.3),
    "mlp without bias": lambda stack: eMLP(stack, bias=False),
    "attention": lambda stack: eMultiheadAttention(stack, 2),
    "attention without bias": lambda stack: eMultiheadAttention(stack, 4, bias=False),
    "encoder layer": lambda stack: eTransformerEncoderLayer(stack, 2, norm_module="layernorm"),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", ["C3", "C4", "D4", "Icosahedral"])
def test_a_layer_is_the_regular_one_turned_dropout_included(name, layer, training, shaken):
    group = parse_group(name)
    regular, by_irreps = (net.train(training) for net in twins(LAYERS[layer], group, 4, shaken))
    x = normal(2, 3, 4 * group.order())
    torch.manual_seed(0)
    expected = turned(regular(x), group)
    torch.manual_seed(0)
    torch.testing.assert_close(by_irreps(turned(x, group)), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("time_dim", [0, 6])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", ["C8", "D3"])
def test_a_decoder_layer_is_the_regular_one_turned(name, is_causal, time_dim, shaken):
    group = parse_group(name)
    regular, by_irreps = twins(
        lambda s: eTransformerDecoderLayer(s, 2, time_dim=time_dim), group, 4, shaken
    )
    x, memory, time = (
        normal(2, 5, 4 * group.order()),
        normal(2, 3, 4 * group.order(), seed=1),
        normal(2, 6, seed=2),
    )
    arguments = (time,) if time_dim else ()
    expected = turned(regular(x, memory, *arguments, is_causal=is_causal), group)
    y = by_irreps(turned(x, group), turned(memory, group), *arguments, is_causal=is_causal)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["C3", "D4"])
def test_lifts_and_positions_are_the_regular_ones_turned(name, shaken):
    group = parse_group(name)
    regular, by_irreps = twins(lambda stack: InvariantLift(5, stack), group, 3, shaken)
    torch.testing.assert_close(
        by_irreps(normal(2, 5)), turned(regular(normal(2, 5)), group), rtol=0, atol=1e-12
    )
    regular, by_irreps = twins(lambda stack: ePositionTable(4, stack), group, 3, shaken)
    torch.testing.assert_close(by_irreps(3), turned(regular(3), group), rtol=0, atol=1e-12)


def test_an_mlp_out_of_the_irrep_basis_has_a_regular_hidden_space(represent, shaken):
    rep = represent("D4", "small")
    regular, by_irreps = twins(lambda stack: eMLP(stack, rep), rep.group, 2, shaken)
    x = normal(3, 16)
    torch.testing.assert_close(by_irreps(turned(x, rep.group)), regular(x), rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from([g for g in GROUPS if g not in ("Octahedral", "Icosahedral")]),
    copies=st.integers(1, 5),
    tokens=st.lists(st.integers(1, 4), min_size=0, max_size=3),
    seed=st.integers(0, 2**31),
)
def test_any_group_and_shape(name, copies, tokens, seed, shaken):
    group = parse_group(name)
    regular, by_irreps = twins(
        lambda stack: eMLP(stack), group, copies, lambda m: shaken(m, seed=seed)
    )
    x = normal(*tokens, copies * group.order(), seed=seed)
    y = by_irreps(turned(x, group))
    torch.testing.assert_close(turned(y, group, back=True), regular(x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_root_mean_square_norm_is_torchs_with_exact_gradients(weighted):
    x, weight = (
        normal(3, 7).requires_grad_(),
        normal(7, seed=1).requires_grad_() if weighted else None,
    )
    assert torch.equal(rms_norm(x, weight), F.rms_norm(x, (7,), weight, NORM_EPS))
    arguments = (x, weight) if weighted else (x,)
    f = (lambda x, w: rms_norm(x, w)) if weighted else (lambda x: rms_norm(x, None))
    assert torch.autograd.gradcheck(f, arguments) and torch.autograd.gradgradcheck(f, arguments)
