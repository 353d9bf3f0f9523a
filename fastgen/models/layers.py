"""Transformer layers on plain vectors, written so that the equivariant ones share every forward.

A layer is built from a *kit*: a handful of constructors (linear map, norm, dropout, position table, invariant lift) over a *space*.
Here a space is a width and the kit gives ``nn.Linear`` and friends; in ``elayers.py`` a space is a group representation and the kit
gives their equivariant counterparts with the same call. Forward code, submodule names and shapes are therefore one and the same, and
an equivariant network folds into a dense one name by name.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.models.regressor import check_positive_int, check_probability

__all__ = [
    "DENSE",
    "INIT_SCHEMES",
    "MLP",
    "LayerKit",
    "LinearMap",
    "MultiheadAttention",
    "PositionTable",
    "TimeEmbedding",
    "TransformerDecoderLayer",
    "TransformerEncoderLayer",
    "initialise_",
    "optim_groups",
    "reset_parameters_",
]

INIT_SCHEMES = ("xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal")
NORM_MODULES = ("rmsnorm", "layernorm")
NORM_EPS = 1e-6  # one value for every dtype, so that a folded or converted model divides by the same number
POSITION_STD = 0.02


class LayerKit(Protocol):
    """Constructors over one kind of space (a width, or a representation)."""

    def dim(self, space: Any) -> int: ...
    def times(self, space: Any, n: int) -> Any: ...
    def hidden(self, space: Any) -> Any: ...
    def check_heads(self, space: Any, num_heads: int) -> None: ...
    def linear(self, source: Any, target: Any, bias: bool = True) -> nn.Module: ...
    def lift(self, in_dim: int, space: Any) -> nn.Module: ...
    def norm(self, space: Any, norm_module: str) -> nn.Module: ...
    def dropout(self, space: Any, p: float) -> nn.Module: ...
    def positions(self, horizon: int, space: Any) -> nn.Module: ...


class DenseKit:
    """The plain kit: a space is its width."""

    def dim(self, space: int) -> int:
        return space

    def times(self, space: int, n: int) -> int:
        return n * space

    def hidden(self, space: int) -> int:
        return 4 * space

    def check_heads(self, space: int, num_heads: int) -> None:
        check_positive_int("num_attention_heads", num_heads)
        if space % num_heads:
            raise ValueError(f"expected num_attention_heads to divide embedding_dim = {space}, got {num_heads}")

    def linear(self, source: int, target: int, bias: bool = True) -> nn.Module:
        return nn.Linear(source, target, bias=bias)

    def lift(self, in_dim: int, space: int) -> nn.Module:
        return nn.Linear(in_dim, space)

    def norm(self, space: int, norm_module: str) -> nn.Module:
        check_norm_module(norm_module)
        return nn.RMSNorm(space, eps=NORM_EPS) if norm_module == "rmsnorm" else nn.LayerNorm(space, eps=NORM_EPS)

    def dropout(self, space: int, p: float) -> nn.Module:
        return nn.Dropout(p) if p > 0.0 else nn.Identity()

    def positions(self, horizon: int, space: int) -> nn.Module:
        return PositionTable(horizon, space)


DENSE = DenseKit()


class LinearMap(nn.Module):
    """A linear map that is not stored as its matrix: ``dense()`` returns (weight (out, in), bias (out,) or None)."""

    weight: nn.Parameter

    def dense(self) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.dense()
        return F.linear(x, weight, bias)


def dense_of(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of an ``nn.Linear`` or a ``LinearMap``, as differentiable tensors."""
    if isinstance(linear, nn.Linear):
        return linear.weight, linear.bias
    if isinstance(linear, LinearMap):
        return linear.dense()
    raise TypeError(f"expected nn.Linear or LinearMap, got {type(linear).__name__}")


def check_norm_module(norm_module: str) -> None:
    """Raise for an unknown name."""
    if norm_module not in NORM_MODULES:
        raise ValueError(f"unknown norm_module {norm_module!r}, expected one of: {', '.join(NORM_MODULES)}")


class PositionTable(nn.Module):
    """Learned positions: a table (horizon, dim) whose first T rows are added to T tokens."""

    def __init__(self, horizon: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(horizon, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=POSITION_STD)

    def forward(self, length: int) -> Tensor:
        """Rows of the first ``length`` positions, shape (length, dim)."""
        return self.weight[:length]


class TimeEmbedding(nn.Module):
    """Time t in [0, 1] to a vector: sinusoids of ``time_scale * t``, then Linear, SiLU, Linear.

    The i-th of dim/2 frequencies is 10000^(-2i/dim); at ``time_scale`` = 1000 their phases reach from 0.1 to 1000 rad over [0, 1], so that
    t = 0.90 and 0.95 differ in most channels (unscaled, almost none would move). The sinusoids are computed in float32 or above,
    whatever the network's dtype: half precision would round the phase itself.

    Args:
        dim: number of sinusoids (rounded up to even) and width of the hidden layer.
        time_scale: multiplies t.
        kit: constructors of the last layer.
        space: what that layer maps into: a width (default ``dim``), or a representation, whose invariant subspace receives the time.

    References: Vaswani et al. 2017, arXiv:1706.03762 (sinusoids); Peebles and Xie 2023, arXiv:2212.09748 (the MLP on them).
    """

    def __init__(self, dim: int, time_scale: float = 1000.0, *, kit: LayerKit = DENSE, space: Any = None) -> None:
        super().__init__()
        self.time_scale = float(time_scale)
        self.half = (dim + 1) // 2
        self.hidden = nn.Linear(2 * self.half, dim)
        self.out = kit.lift(dim, dim if space is None else space)

    def forward(self, t: Tensor) -> Tensor:
        """Embed times t (B,) in float32 or float64; returns (B, width) in the dtype of the weights."""
        rank = torch.arange(self.half, device=t.device, dtype=t.dtype)
        phase = self.time_scale * t[:, None] * torch.exp(rank * (-math.log(10000.0) / self.half))
        features = torch.cat([phase.cos(), phase.sin()], dim=-1).to(self.hidden.weight.dtype)
        return self.out(F.silu(self.hidden(features)))


class MLP(nn.Module):
    """Two linear maps with a GELU between them, applied to each token: (..., in) -> (..., out).

    Args:
        in_dim: input width.
        out_dim: output width, default ``in_dim``.
        hidden_dim: width between, default 4 * ``in_dim``.
        dropout: probability, after the GELU and after the second map.
    """

    kit: LayerKit = DENSE

    def __init__(
        self, in_dim: Any, out_dim: Any = None, *, hidden_dim: Any = None, dropout: float = 0.0, bias: bool = True
    ) -> None:
        super().__init__()
        check_probability("dropout", dropout)
        out_dim = in_dim if out_dim is None else out_dim
        hidden_dim = self.kit.hidden(in_dim) if hidden_dim is None else hidden_dim
        self.up = self.kit.linear(in_dim, hidden_dim, bias)
        self.down = self.kit.linear(hidden_dim, out_dim, bias)
        self.hidden_dropout = self.kit.dropout(hidden_dim, dropout)
        self.out_dropout = self.kit.dropout(out_dim, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_dropout(self.down(self.hidden_dropout(F.gelu(self.up(x)))))


class MultiheadAttention(nn.Module):
    """Multi-head attention with one fused query-key-value map.

    softmax(q k^T / sqrt(d_head)) v per head, heads being consecutive slices of the channels. Self-attention evaluates the fused map once;
    cross-attention takes its first third for the queries and the rest for keys and values of the memory.

    Args:
        embed_dim: width D, a multiple of ``num_heads``.
        num_heads: H.
        dropout: probability on the attention weights (only in training mode).
        bias: whether the linear maps have one.

    References: Vaswani et al. 2017, arXiv:1706.03762.
    """

    kit: LayerKit = DENSE

    def __init__(self, embed_dim: Any, num_heads: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        check_probability("dropout", dropout)
        self.kit.check_heads(embed_dim, num_heads)
        self.num_heads = num_heads
        self.dropout = dropout
        self.width = self.kit.dim(embed_dim)
        self.qkv = self.kit.linear(embed_dim, self.kit.times(embed_dim, 3), bias)
        self.qkv.fused = 3  # each third is initialised as a map of its own
        self.out = self.kit.linear(embed_dim, embed_dim, bias)

    def _heads(self, x: Tensor, weight: Tensor, bias: Tensor | None, parts: int) -> tuple[Tensor, ...]:
        """Project and split: (B, T, D) -> ``parts`` tensors (B, H, T, D / H)."""
        y = F.linear(x, weight, bias).unflatten(-1, (parts, self.num_heads, self.width // self.num_heads))
        return y.permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, memory: Tensor | None = None, *, is_causal: bool = False) -> Tensor:
        """Attend from x (B, T, D) to itself, or to ``memory`` (B, S, D); ``is_causal``: token i sees tokens <= i of x."""
        weight, bias = dense_of(self.qkv)
        if memory is None:
            q, k, v = self._heads(x, weight, bias, 3)
        else:
            width = self.width
            q_bias, kv_bias = (None, None) if bias is None else (bias[:width], bias[width:])
            (q,) = self._heads(x, weight[:width], q_bias, 1)
            k, v = self._heads(memory, weight[width:], kv_bias, 2)
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=is_causal)
        return self.out(y.transpose(1, 2).flatten(2))


class TransformerEncoderLayer(nn.Module):
    """Pre-norm encoder layer: x + SA(norm(x)), then x + MLP(norm(x)), with a GELU MLP of four times the width.

    Args:
        embed_dim: width D.
        num_heads: H.
        dropout: probability on attention weights, inside the MLP and on both residual branches.
        norm_module: "rmsnorm" or "layernorm".
    """

    kit: LayerKit = DENSE
    attention_class: type[MultiheadAttention] = MultiheadAttention
    mlp_class: type[MLP] = MLP

    def __init__(self, embed_dim: Any, num_heads: int, *, dropout: float = 0.0, norm_module: str = "rmsnorm") -> None:
        super().__init__()
        self.self_norm = self.kit.norm(embed_dim, norm_module)
        self.self_attention = self.attention_class(embed_dim, num_heads, dropout)
        self.mlp_norm = self.kit.norm(embed_dim, norm_module)
        self.mlp = self.mlp_class(embed_dim, dropout=dropout)
        self.dropout = self.kit.dropout(embed_dim, dropout)

    def forward(self, x: Tensor, *, is_causal: bool = False) -> Tensor:
        """Map x (B, T, D) to (B, T, D)."""
        x = x + self.dropout(self.self_attention(self.self_norm(x), is_causal=is_causal))
        return x + self.mlp(self.mlp_norm(x))


class TransformerDecoderLayer(TransformerEncoderLayer):
    """Pre-norm decoder layer: self-attention, cross-attention to a memory, MLP, each on a residual branch.

    Args: as ``TransformerEncoderLayer``.
    """

    def __init__(self, embed_dim: Any, num_heads: int, *, dropout: float = 0.0, norm_module: str = "rmsnorm") -> None:
        super().__init__(embed_dim, num_heads, dropout=dropout, norm_module=norm_module)
        self.cross_norm = self.kit.norm(embed_dim, norm_module)
        self.cross_attention = self.attention_class(embed_dim, num_heads, dropout)

    def forward(self, x: Tensor, memory: Tensor, *, is_causal: bool = False) -> Tensor:
        """Map x (B, T, D) to (B, T, D), reading ``memory`` (B, S, D) as it is (normalised by its maker)."""
        x = x + self.dropout(self.self_attention(self.self_norm(x), is_causal=is_causal))
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), memory))
        return x + self.mlp(self.mlp_norm(x))


def initialise_(weight: Tensor, scheme: str, fan_in: int, fan_out: int) -> None:
    """Fill with independent values of zero mean and the scheme's variance: 2/(fan_in + fan_out) xavier, 2/fan_in kaiming.

    Raises:
        ValueError: unknown scheme.
    """
    if scheme not in INIT_SCHEMES:
        raise ValueError(f"unknown init_scheme {scheme!r}, expected one of: {', '.join(INIT_SCHEMES)}")
    std = math.sqrt(2.0 / ((fan_in + fan_out) if scheme.startswith("xavier") else fan_in))
    with torch.no_grad():
        if scheme.endswith("uniform"):
            weight.uniform_(-math.sqrt(3.0) * std, math.sqrt(3.0) * std)
        else:
            weight.normal_(0.0, std)


def reset_parameters_(root: nn.Module, scheme: str) -> None:
    """Give every submodule of ``root`` a fresh initialisation: linear weights by ``scheme``, biases zero, norms one, positions N(0, 0.02^2)."""
    if scheme not in INIT_SCHEMES:
        raise ValueError(f"unknown init_scheme {scheme!r}, expected one of: {', '.join(INIT_SCHEMES)}")
    for module in root.modules():
        if isinstance(module, nn.Linear):
            initialise_(module.weight, scheme, module.in_features, module.out_features // getattr(module, "fused", 1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, LinearMap):
            module.reset_parameters(scheme)
        elif module is not root and hasattr(module, "reset_parameters"):
            module.reset_parameters()


def optim_groups(root: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters by the role of their module: weights of linear maps decay; biases, norms and position tables don't.

    Returns:
        Two optimiser groups that hold every parameter of ``root`` exactly once.

    Raises:
        ValueError: ``weight_decay`` is negative or not a number.
    """
    if isinstance(weight_decay, bool) or not isinstance(weight_decay, (int, float)) or not weight_decay >= 0.0:
        raise ValueError(f"expected weight_decay to be a number >= 0, got {weight_decay!r}")
    decay: dict[int, nn.Parameter] = {}
    for module in root.modules():
        if isinstance(module, (nn.Linear, LinearMap)):
            decay[id(module.weight)] = module.weight
    rest = [parameter for parameter in root.parameters() if id(parameter) not in decay]
    return [
        {"params": list(decay.values()), "weight_decay": float(weight_decay)},
        {"params": rest, "weight_decay": 0.0},
    ]
