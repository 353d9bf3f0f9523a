"""The dense layers are their formulas, written out slowly."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgen.models import (
    MLP,
    MultiheadAttention,
    TimeEmbedding,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
)
from fastgen.models.kits import DENSE
from fastgen.models.maps import PositionTable, dense_of
from fastgen.models.norms import NORM_EPS
from fastgen.models.parameters import initialise_, optim_groups, reset_parameters_
from support.exact import normal

EXACT = {"rtol": 0, "atol": 1e-12}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- Attention -----------------------------------------------------------------------------------


def slow_attention(layer: MultiheadAttention, x, memory, *, is_causal=False):
    """softmax(q k^T / sqrt(d)) v, head by head, token by token."""
    width, size = layer.width, layer.width // layer.num_heads
    weight, bias = dense_of(layer.qkv)
    bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
    q = x @ weight[:width].T + bias[:width]
    k = memory @ weight[width : 2 * width].T + bias[width : 2 * width]
    v = memory @ weight[2 * width :].T + bias[2 * width :]
    y = torch.zeros_like(q)
    for head in range(layer.num_heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(x.shape[1]):
            seen = slice(0, i + 1) if is_causal else slice(None)
            scores = torch.einsum("bd,bsd->bs", q[:, i, part], k[:, seen, part]) / math.sqrt(size)
            y[:, i, part] = torch.einsum("bs,bsd->bd", scores.softmax(-1), v[:, seen, part])
    return layer.out(y)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("heads", [1, 2, 6])
def test_attention_is_its_formula(heads, bias, shaken):
    layer = shaken(MultiheadAttention(12, heads, bias=bias).double(), 0.3)
    x, memory = normal(3, 5, 12), normal(3, 4, 12, seed=1)
    torch.testing.assert_close(layer(x), slow_attention(layer, x, x), **EXACT)
    torch.testing.assert_close(
        layer(x, is_causal=True), slow_attention(layer, x, x, is_causal=True), **EXACT
    )
    torch.testing.assert_close(layer(x, memory), slow_attention(layer, x, memory), **EXACT)
    # Attending to oneself is attending to a memory that happens to be oneself.
    torch.testing.assert_close(layer(x, x), layer(x), **EXACT)


def test_attention_agrees_with_torch(shaken):
    layer, theirs = (
        shaken(MultiheadAttention(8, 2).double()),
        nn.MultiheadAttention(8, 2, batch_first=True).double(),
    )
    theirs.load_state_dict(
        {
            "in_proj_weight": layer.qkv.weight,
            "in_proj_bias": layer.qkv.bias,
            "out_proj.weight": layer.out.weight,
            "out_proj.bias": layer.out.bias,
        }
    )
    x = normal(2, 5, 8)
    torch.testing.assert_close(layer(x), theirs(x, x, x, need_weights=False)[0], **EXACT)


# ---- MLP and layers ------------------------------------------------------------------------------


def test_mlp_is_two_maps_around_a_gelu(shaken):
    mlp, x = shaken(MLP(3, 5).double()), normal(2, 4, 3)
    assert mlp.up.out_features == 12
    torch.testing.assert_close(mlp(x), mlp.down(F.gelu(mlp.up(x))), **EXACT)
    assert MLP(3, hidden_dim=7).up.out_features == 7 and MLP(3).down.out_features == 3
    assert MLP(3, bias=False).up.bias is None


@pytest.mark.parametrize("norm_module", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_encoder_layer_is_its_formula(norm_module, is_causal, shaken):
    layer, x = (
        shaken(TransformerEncoderLayer(8, 2, norm_module=norm_module).double()),
        normal(2, 5, 8),
    )
    h = layer.self_norm(x)
    y = x + slow_attention(layer.self_attention, h, h, is_causal=is_causal)
    torch.testing.assert_close(
        layer(x, is_causal=is_causal), y + layer.mlp(layer.mlp_norm(y)), **EXACT
    )


@pytest.mark.parametrize("is_causal", [False, True])
def test_decoder_layer_without_time_is_its_formula(is_causal, shaken):
    layer, x, memory = (
        shaken(TransformerDecoderLayer(8, 2).double()),
        normal(2, 5, 8),
        normal(2, 3, 8, seed=1),
    )
    h = layer.self_norm(x)
    y = x + slow_attention(layer.self_attention, h, h, is_causal=is_causal)
    y = y + slow_attention(layer.cross_attention, layer.cross_norm(y), memory)
    torch.testing.assert_close(
        layer(x, memory, is_causal=is_causal), y + layer.mlp(layer.mlp_norm(y)), **EXACT
    )


@pytest.mark.parametrize("is_causal", [False, True])
def test_time_scales_shifts_and_gates_every_branch_of_a_decoder_layer(is_causal, shaken):
    layer = shaken(TransformerDecoderLayer(8, 2, time_dim=6).double(), 0.3)
    x, memory, time = normal(2, 5, 8), normal(2, 3, 8, seed=1), normal(2, 6, seed=2)
    scale, shift, gate = layer.modulation(time).view(2, 3, 3, 8).permute(2, 1, 0, 3)[:, :, :, None]

    def plain(x):  # the norm has no scale of its own here
        return x / (x.square().mean(-1, keepdim=True) + NORM_EPS).sqrt()

    h = scale[0] * plain(x) + shift[0]
    y = x + gate[0] * slow_attention(layer.self_attention, h, h, is_causal=is_causal)
    y = y + gate[1] * slow_attention(layer.cross_attention, scale[1] * plain(y) + shift[1], memory)
    y = y + gate[2] * layer.mlp(scale[2] * plain(y) + shift[2])
    torch.testing.assert_close(layer(x, memory, time, is_causal=is_causal), y, **EXACT)


def test_reset_modulation_leaves_every_time_alike_and_the_layer_unmodulated():
    layer = TransformerDecoderLayer(8, 2, time_dim=6).double()
    reset_parameters_(layer, "xavier_uniform")
    twin = TransformerDecoderLayer(8, 2).double()
    twin.load_state_dict(layer.state_dict(), strict=False)
    x, memory, time = normal(2, 5, 8), normal(2, 3, 8, seed=1), normal(2, 6, seed=2)
    # Scale 1, shift 0 and gate 1 for every time, and a fresh norm of the twin scales by 1.
    torch.testing.assert_close(layer(x, memory, time), twin(x, memory), **EXACT)


def test_a_decoder_layer_gets_time_features_if_and_only_if_it_was_built_for_them():
    x, memory = torch.zeros(2, 5, 8), torch.zeros(2, 3, 8)
    with pytest.raises(ValueError, match="expected time features"):
        TransformerDecoderLayer(8, 2, time_dim=6)(x, memory)
    with pytest.raises(ValueError, match="expected time None"):
        TransformerDecoderLayer(8, 2)(x, memory, torch.zeros(2, 6))


@pytest.mark.parametrize(
    "build",
    [
        lambda p: MLP(8, dropout=p),
        lambda p: MultiheadAttention(8, 2, dropout=p),
        lambda p: TransformerEncoderLayer(8, 2, dropout=p),
        lambda p: TransformerDecoderLayer(8, 2, dropout=p),
    ],
    ids=["mlp", "attention", "encoder", "decoder"],
)
def test_dropout_acts_in_training_only(build):
    layer, plain = build(0.5), build(0.0)
    plain.load_state_dict(layer.state_dict())
    inputs = [
        torch.randn(2, 5, 8, generator=generator(i))
        for i in range(2 if "Decoder" in type(layer).__name__ else 1)
    ]
    assert torch.equal(layer.eval()(*inputs), plain(*inputs))
    layer.train()
    torch.manual_seed(0)
    first = layer(*inputs)
    assert not torch.equal(first, layer(*inputs))
    torch.manual_seed(0)
    assert torch.equal(first, layer(*inputs))


def test_positions_are_the_first_rows_of_a_table():
    table = PositionTable(5, 3)
    assert torch.equal(table(5), table.weight) and torch.equal(table(2), table.weight[:2])


# ---- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "kind", "words"),
    [
        (lambda: MultiheadAttention(8, 3), ValueError, "num_heads to divide the width 8, got 3"),
        (lambda: MultiheadAttention(8, 0), ValueError, "num_heads to be an int >= 1, got 0"),
        (
            lambda: MultiheadAttention(8, 2, dropout=1.0),
            ValueError,
            r"dropout to be a probability in \[0, 1\), got 1.0",
        ),
        (lambda: MLP(8, dropout=-0.1), ValueError, "dropout to be a probability"),
        (
            lambda: TransformerDecoderLayer(8, 2, time_dim=-1),
            ValueError,
            "time_dim to be an int >= 0, got -1",
        ),
        (
            lambda: TransformerEncoderLayer(8, 2, norm_module="batchnorm"),
            ValueError,
            "unknown norm_module 'batchnorm', expected one of: rmsnorm, layernorm",
        ),
        (lambda: TimeEmbedding(1), ValueError, "dim to be an int >= 2, got 1"),
        (
            lambda: TimeEmbedding(8, time_scale=0.0),
            ValueError,
            "time_scale to be a finite number > 0, got 0.0",
        ),
        (lambda: TimeEmbedding(8, time_scale=math.inf), ValueError, "time_scale .* got inf"),
        (lambda: TimeEmbedding(8, time_scale="1"), ValueError, "time_scale .* got '1'"),
        (
            lambda: initialise_(torch.empty(2), "orthogonal", 1, 1),
            ValueError,
            "unknown scheme 'orthogonal', expected .*",
        ),
        (
            lambda: reset_parameters_(nn.Linear(1, 1), "x"),
            ValueError,
            "unknown scheme 'x'.*xavier_uniform",
        ),
        (
            lambda: optim_groups(nn.Linear(1, 1), -1e-9),
            ValueError,
            "weight_decay to be a number >= 0, got -1e-09",
        ),
        (
            lambda: optim_groups(nn.Linear(1, 1), math.nan),
            ValueError,
            "weight_decay to be a number >= 0, got nan",
        ),
        (
            lambda: dense_of(nn.Conv1d(1, 1, 1)),
            TypeError,
            "expected nn.Linear or LinearMap, got Conv1d",
        ),
        (lambda: DENSE.norm(4, "none"), ValueError, "unknown norm_module 'none'"),
    ],
)
def test_user_errors(act, kind, words):
    with pytest.raises(kind, match=words):
        act()
