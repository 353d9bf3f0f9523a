"""Equivariant attention, MLP and transformer layers commute with the group and equal their dense
twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from escnn import group as escnn_group
from escnn.group import directsum
from torch import nn

from fastgen.models import (
    MLP,
    MultiheadAttention,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
    eLinear,
    eMLP,
    eMultiheadAttention,
    eRMSNorm,
    eTransformerDecoderLayer,
    eTransformerEncoderLayer,
)
from fastgen.models.maps import LinearMap
from fastgen.models.parameters import reset_parameters_
from support.exact import normal


def dense_twin(layer: nn.Module, twin: nn.Module) -> nn.Module:
    """The plain layer with the expanded numbers of an equivariant one; submodules are named
    alike."""
    state = {}
    for name, module in layer.named_modules():
        if isinstance(module, LinearMap):
            weight, bias = module.dense()
        elif isinstance(module, eRMSNorm):
            weight, bias = module.affine()
        else:
            continue
        state |= {
            f"{name}.{key}": v for key, v in (("weight", weight), ("bias", bias)) if v is not None
        }
    twin.double().load_state_dict(state)
    return twin


LAYERS = {
    "mlp": (lambda rep: eMLP(rep), lambda d: MLP(d), 1),
    "attention": (lambda rep: eMultiheadAttention(rep, 2), lambda d: MultiheadAttention(d, 2), 1),
    "cross-attention": (
        lambda rep: eMultiheadAttention(rep, 2),
        lambda d: MultiheadAttention(d, 2),
        2,
    ),
    "encoder": (
        lambda rep: eTransformerEncoderLayer(rep, 2),
        lambda d: TransformerEncoderLayer(d, 2),
        1,
    ),
    "decoder": (
        lambda rep: eTransformerDecoderLayer(rep, 2),
        lambda d: TransformerDecoderLayer(d, 2),
        2,
    ),
    "layernorm decoder": (
        lambda rep: eTransformerDecoderLayer(rep, 2, norm_module="layernorm"),
        lambda d: TransformerDecoderLayer(d, 2, norm_module="layernorm"),
        2,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("group", ["C2", "C3", "D4"])
def test_layers_commute_with_the_group_and_equal_their_dense_twins(
    group, name, represent, shaken, worst_error
):
    build, plain, inputs = LAYERS[name]
    rep = represent(group, 4)
    layer = shaken(build(rep).double())
    tokens = [normal(2, 3 + i, rep.size, seed=i) for i in range(inputs)]
    assert worst_error(layer, rep, *((x, rep) for x in tokens)) < 1e-13
    assert layer.in_rep.size == layer.out_rep.size == rep.size
    twin = dense_twin(layer, plain(rep.size))
    torch.testing.assert_close(layer(*tokens), twin(*tokens), rtol=0, atol=1e-12)


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_layer_with_time_commutes_and_equals_its_dense_twin(
    is_causal, represent, shaken, worst_error
):
    rep, time = represent("D4", 4), normal(1, 6, seed=9)
    layer = shaken(eTransformerDecoderLayer(rep, 2, time_dim=6).double(), 0.2)
    x, memory = normal(2, 3, rep.size), normal(2, 4, rep.size, seed=1)
    options = {"is_causal": is_causal}
    assert (
        worst_error(
            lambda x, m: layer(x, m, time.expand(len(x), -1), **options),
            rep,
            (x, rep),
            (memory, rep),
        )
        < 1e-13
    )
    twin, time = (
        dense_twin(layer, TransformerDecoderLayer(rep.size, 2, time_dim=6)),
        normal(2, 6, seed=9),
    )
    torch.testing.assert_close(
        layer(x, memory, time, **options), twin(x, memory, time, **options), rtol=0, atol=1e-12
    )
    # The modulation is invariant: one number a copy.
    parts = layer.modulation(time).view(2, 9, 4, 8)
    assert (parts == parts[..., :1]).all()


@pytest.mark.parametrize("heads", [1, 2])
def test_layers_work_on_any_representation_whose_heads_are_invariant(
    heads, represent, shaken, worst_error
):
    small = represent("D4", "small", turned=True)
    rep = directsum([small] * 2)  # one copy a head
    x, memory = normal(2, 3, rep.size), normal(2, 4, rep.size, seed=1)
    for layer, tokens in (
        (eMultiheadAttention(rep, heads), (x,)),
        (eTransformerEncoderLayer(rep, heads), (x,)),
        (eTransformerDecoderLayer(rep, heads, norm_module="layernorm"), (x, memory)),
        (eMLP(rep, represent("D4", "mixed")), (x,)),
    ):
        shaken(layer.double())
        assert worst_error(layer, layer.out_rep, *((token, rep) for token in tokens)) < 1e-13


def test_the_hidden_space_of_an_mlp_is_regular_and_four_times_as_wide(represent):
    rep = represent(
        "D4", "small"
    )  # 5 dimensions: 24 hidden ones are the first multiple of 8 from 20 on
    mlp = eMLP(rep)
    assert mlp.up.out_rep.size == 24 and mlp.in_rep is rep and mlp.out_rep is rep
    assert eMLP(rep, hidden_rep=represent("D4", 2)).up.out_rep.size == 16
    assert eMLP(represent("D4", 2)).up.out_rep.size == 64


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (lambda rep, p: eMLP(rep, dropout=p), 1),
        (lambda rep, p: eMultiheadAttention(rep, 2, dropout=p), 1),
        (lambda rep, p: eTransformerEncoderLayer(rep, 2, dropout=p), 1),
        (lambda rep, p: eTransformerDecoderLayer(rep, 2, dropout=p, norm_module="layernorm"), 2),
    ],
    ids=["mlp", "attention", "encoder", "decoder"],
)
def test_dropout_of_a_layer_commutes_in_training_and_is_off_in_eval(
    build, inputs, represent, matrices
):
    rep = represent("D3", 4)
    layer, dry = build(rep, 0.4).double(), build(rep, 0.0).double()
    dry.load_state_dict(layer.state_dict())
    tokens = [normal(2, 3 + i, rep.size, seed=i) for i in range(inputs)]
    torch.manual_seed(7)
    reference = layer(*tokens)
    assert not torch.equal(reference, dry(*tokens))
    for rho in matrices(rep):
        torch.manual_seed(7)
        torch.testing.assert_close(
            layer(*(x @ rho.T for x in tokens)), reference @ rho.T, rtol=0, atol=1e-12
        )
    assert torch.equal(layer.eval()(*tokens), dry(*tokens))


# ---- Initialisation ------------------------------------------------------------------------------


def test_reset_of_a_layer_gives_every_third_of_the_fused_map_its_own_variance(represent):
    layer = eMultiheadAttention(represent("D4", 16), 2)
    torch.manual_seed(0)
    reset_parameters_(layer, "xavier_normal")
    variance = 2 / (2 * 128)
    assert layer.qkv.dense()[0].square().mean().item() == pytest.approx(
        variance, rel=6 * math.sqrt(2 / 6144)
    )
    assert layer.out.dense()[0].square().mean().item() == pytest.approx(
        variance, rel=6 * math.sqrt(2 / 2048)
    )


def test_each_third_of_a_fused_map_of_irreps_has_its_own_variance():
    rep = directsum([escnn_group.dihedral_group(4).irrep(1, 1)] * 32)
    layer = eMultiheadAttention(rep, 2)
    torch.manual_seed(0)
    reset_parameters_(layer, "xavier_normal")
    deviations = 6 * math.sqrt(2 / layer.qkv.weight.numel())
    assert layer.qkv.dense()[0].square().mean().item() == pytest.approx(
        2 / (64 + 64), rel=deviations
    )


@pytest.mark.parametrize(
    "build",
    [
        lambda: TransformerDecoderLayer(8, 2, time_dim=6),
        lambda: eTransformerDecoderLayer(
            directsum([escnn_group.dihedral_group(4).regular_representation] * 2), 2, time_dim=6
        ),
    ],
)
def test_modulation_starts_at_one_zero_and_one(build):
    layer = build()
    scale, shift, gate = layer.modulation(torch.randn(4, 6)).unflatten(-1, (3, 3, -1)).unbind(2)
    assert (scale == 1).all() and (shift == 0).all() and (gate == 1).all()


# ---- Errors --------------------------------------------------------------------------------------


def sheared():
    return escnn_group.change_basis(
        escnn_group.dihedral_group(4).irrep(1, 1), np.array([[1.0, 1], [0, 1]]), "sheared"
    )


D4, C4 = escnn_group.dihedral_group(4), escnn_group.cyclic_group(4)


REGULAR = directsum([D4.regular_representation] * 4)


MIXED_HEADS = directsum([D4.irrep(1, 1), D4.irrep(0, 0)])


@pytest.mark.parametrize(
    ("act", "kind", "words"),
    [
        (
            lambda: eLinear(REGULAR, C4.regular_representation),
            ValueError,
            "in_rep and out_rep of one group, got D4 and C4",
        ),
        (
            lambda: eLinear(sheared(), REGULAR),
            ValueError,
            "expected in_rep to be an orthogonal representation",
        ),
        (
            lambda: eLinear(REGULAR, sheared()),
            ValueError,
            "expected out_rep to be an orthogonal representation",
        ),
        (
            lambda: eLinear(REGULAR, escnn_group.so2_group().irrep(1)),
            ValueError,
            "expected out_rep .* finite group",
        ),
        (
            lambda: eLinear(8, REGULAR),
            TypeError,
            "expected in_rep to be an escnn.group.Representation, got int",
        ),
        (lambda: eRMSNorm(3), TypeError, "expected in_rep to be an escnn.group.Representation"),
        (lambda: eMLP(8), TypeError, "expected in_rep to be an escnn.group.Representation"),
        (
            lambda: eMLP(REGULAR, hidden_rep=MIXED_HEADS),
            ValueError,
            "hidden_rep to be copies of the regular",
        ),
        (lambda: eMLP(REGULAR, dropout=1.5), ValueError, "dropout to be a probability"),
        (
            lambda: eMultiheadAttention(REGULAR, 3),
            ValueError,
            r"num_heads to divide the number of regular copies, 32 / \|G\| = 32 / 8 = 4, got 3",
        ),
        (lambda: eMultiheadAttention(REGULAR, 0), ValueError, "num_heads to be an int >= 1, got 0"),
        (
            lambda: eMultiheadAttention(MIXED_HEADS, 2),
            ValueError,
            "num_heads to split in_rep into invariant parts",
        ),
        (
            lambda: eMultiheadAttention(MIXED_HEADS, 3),
            ValueError,
            "num_heads to split in_rep into invariant parts",
        ),
        (
            lambda: eTransformerEncoderLayer(REGULAR, 2, dropout=-1),
            ValueError,
            "dropout to be a probability",
        ),
        (
            lambda: eTransformerEncoderLayer(REGULAR, 2, norm_module="x"),
            ValueError,
            "unknown norm_module 'x'",
        ),
        (
            lambda: eTransformerDecoderLayer(MIXED_HEADS, 1, time_dim=4),
            ValueError,
            "in_rep to be copies of the regular representation when time_dim > 0",
        ),
    ],
)
def test_user_errors(act, kind, words):
    with pytest.raises(kind, match=words):
        act()
