"""Transformer layers on plain vectors, written so that the equivariant ones share every forward.

A layer is built from a *kit*: a handful of constructors (linear map, norm, dropout, position table,
invariant lift) over a *space*. Here a space is a width and the kit gives ``nn.Linear`` and friends;
in ``elayers.py`` a space is a group representation and the kit gives their equivariant counterparts
with the same call. Forward code, submodule names and shapes are therefore one and the same, and an
equivariant network folds into a dense one name by name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .regressor import check_positive_int, check_probability

__all__ = [
    "DENSE",
    "INIT_SCHEMES",
    "MLP",
    "LayerKit",
    "LinearMap",
    "MultiheadAttention",
    "PositionTable",
    "RMSNorm",
    "TimeEmbedding",
    "TransformerDecoderLayer",
    "TransformerEncoderLayer",
    "initialise_",
    "optim_groups",
    "reset_parameters_",
    "rms_norm",
]

INIT_SCHEMES = ("xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal")
NORM_MODULES = ("rmsnorm", "layernorm")
NORM_EPS = 1e-6  # one value for every dtype, so that a folded or converted model divides by the same number
POSITION_STD = 0.1  # tokens have size one after the norm: tables ten times smaller were found slower to learn from


class LayerKit(Protocol):
    """Constructors over one kind of space (a width, or a representation)."""

    def dim(self, space: Any) -> int: ...
    def times(self, space: Any, n: int) -> Any: ...
    def hidden(self, space: Any) -> Any: ...
    def check_heads(self, space: Any, num_heads: int, name: str) -> None: ...
    def linear(self, source: Any, target: Any, bias: bool = True) -> nn.Module: ...
    def lift(self, in_dim: int, space: Any) -> nn.Module: ...
    def norm(self, space: Any, norm_module: str, affine: bool = True) -> nn.Module: ...
    def check_modulated(self, space: Any) -> None: ...
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

    def check_heads(self, space: int, num_heads: int, name: str) -> None:
        check_positive_int(name, num_heads)
        if space % num_heads:
            raise ValueError(f"expected {name} to divide the width {space}, got {num_heads}")

    def linear(self, source: int, target: int, bias: bool = True) -> nn.Module:
        return nn.Linear(source, target, bias=bias)

    def lift(self, in_dim: int, space: int) -> nn.Module:
        return nn.Linear(in_dim, space)

    def norm(self, space: int, norm_module: str, affine: bool = True) -> nn.Module:
        check_norm_module(norm_module)
        if norm_module == "rmsnorm":
            return RMSNorm(space, elementwise_affine=affine)
        return nn.LayerNorm(space, eps=NORM_EPS, elementwise_affine=affine)

    def check_modulated(self, space: int) -> None:
        """Any vector may be scaled channel by channel."""

    def dropout(self, space: int, p: float) -> nn.Module:
        return nn.Dropout(p) if p > 0.0 else nn.Identity()

    def positions(self, horizon: int, space: int) -> nn.Module:
        return PositionTable(horizon, space)


DENSE = DenseKit()


class LinearMap(nn.Module, ABC):
    """A linear map that is not stored as its matrix."""

    weight: nn.Parameter

    @abstractmethod
    def dense(self) -> tuple[Tensor, Tensor | None]:
        """The matrix (out, in) and the bias (out,) or None, differentiable in the parameters."""

    @abstractmethod
    def reset_parameters(self, scheme: str = "xavier_uniform") -> None:
        """Draw the parameters afresh, so that the matrix has the variance that ``scheme`` gives a
        dense one."""

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
        raise ValueError(
            f"unknown norm_module {norm_module!r}, expected one of: {', '.join(NORM_MODULES)}"
        )


def check_scheme(name: str, scheme: str) -> None:
    """Raise for an unknown initialisation scheme."""
    if scheme not in INIT_SCHEMES:
        raise ValueError(f"unknown {name} {scheme!r}, expected one of: {', '.join(INIT_SCHEMES)}")


def own_gradients(x: Tensor) -> bool:
    """Whether a hand-written backward may be used: compilers, function transforms and forward-mode
    derivatives derive their own, autocast chooses dtypes operation by operation, and half precision
    accumulates in float32 elsewhere."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or (
            torch.amp.is_autocast_available(x.device.type)
            and torch.is_autocast_enabled(x.device.type)
        )
        or x.dtype not in (torch.float32, torch.float64)
    )


class _RMSNorm(torch.autograd.Function):
    """y = r x with r = 1 / sqrt(mean(x^2) + eps). Keeps y and r, and its backward is four passes
    over the tokens: grad_x = r (grad_y - y mean(grad_y y)); that of the operations one by one is
    seven."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        r = x.square().mean(-1, keepdim=True).add_(NORM_EPS).rsqrt_()
        y = x * r
        ctx.save_for_backward(y, r)
        ctx.set_materialize_grads(False)
        return y, r  # r too, so that the backward is differentiable in all that it uses

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, grad_r: Tensor | None) -> Tensor | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        y, r = ctx.saved_tensors
        if grad_y is None and grad_r is None:
            return None
        grad_y = torch.zeros_like(y) if grad_y is None else grad_y
        slope = (grad_y * y).sum(-1, keepdim=True)
        if grad_r is not None:
            slope = slope + grad_r * r
        return torch.addcmul(grad_y, y, slope, value=-1.0 / y.shape[-1]) * r


def rms_norm(x: Tensor, weight: Tensor | None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the channels, times ``weight``."""
    if not (torch.is_grad_enabled() and x.requires_grad and own_gradients(x)):
        return F.rms_norm(x, (x.shape[-1],), weight, NORM_EPS)
    y, _ = _RMSNorm.apply(x)
    return y if weight is None else y * weight


class RMSNorm(nn.RMSNorm):
    """``nn.RMSNorm`` over the last axis with the eps of this package and a faster backward."""

    def __init__(self, dim: int, *, elementwise_affine: bool = True) -> None:
        super().__init__(dim, eps=NORM_EPS, elementwise_affine=elementwise_affine)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


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
    """Features of the time t in [0, 1]: sinusoids of ``time_scale * t``, then Linear, SiLU, Linear,
    SiLU. (B,) -> (B, dim).

    The dim/2 frequencies are spaced geometrically from 1/1000 to 1/16, so that at ``time_scale`` =
    1000 the phases turn by 1 to 62 rad over [0, 1]: every channel tells t = 0.90 from 0.95, and
    none oscillates faster than a solver steps (a ladder up to 1000 rad was learned markedly more
    slowly). Steps 0..999 are embedded alike at ``time_scale`` = 1. The sinusoids are computed in
    float32 or above, whatever the network's dtype: half precision would round the phase itself.

    Args:
        dim: number of features, >= 2.
        time_scale: multiplies t; finite and > 0.

    Raises:
        ValueError: an argument out of range.

    References: Vaswani et al. 2017, arXiv:1706.03762 (sinusoids); Peebles and Xie 2023,
    arXiv:2212.09748 (the MLP on
        them).
    """

    def __init__(self, dim: int, time_scale: float = 1000.0) -> None:
        super().__init__()
        check_positive_int("dim", dim, minimum=2)
        if (
            isinstance(time_scale, bool)
            or not isinstance(time_scale, (int, float))
            or not 0.0 < time_scale < math.inf
        ):
            raise ValueError(f"expected time_scale to be a finite number > 0, got {time_scale!r}")
        self.time_scale = float(time_scale)
        self.num_frequencies = dim // 2
        self.hidden = nn.Linear(2 * self.num_frequencies, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        """Features of times t (B,), given in float32 or float64, in the dtype of the weights: shape
        (B, dim)."""
        frequencies = torch.logspace(
            -3.0, -math.log10(16.0), self.num_frequencies, device=t.device, dtype=t.dtype
        )
        phase = self.time_scale * t[:, None] * frequencies
        features = torch.cat([phase.cos(), phase.sin()], dim=-1).to(self.hidden.weight.dtype)
        return F.silu(self.out(F.silu(self.hidden(features))))


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
        self,
        in_dim: Any,
        out_dim: Any = None,
        *,
        hidden_dim: Any = None,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_probability("dropout", dropout)
        out_dim = in_dim if out_dim is None else out_dim
        hidden_dim = self.kit.hidden(in_dim) if hidden_dim is None else hidden_dim
        self.up: Any = self.kit.linear(in_dim, hidden_dim, bias)
        self.down: Any = self.kit.linear(hidden_dim, out_dim, bias)
        self.hidden_dropout = self.kit.dropout(hidden_dim, dropout)
        self.out_dropout = self.kit.dropout(out_dim, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_dropout(self.down(self.hidden_dropout(F.gelu(self.up(x)))))


class MultiheadAttention(nn.Module):
    """Multi-head attention with one fused query-key-value map.

    softmax(q k^T / sqrt(d_head)) v per head, heads being consecutive slices of the channels.
    Self-attention evaluates the fused map once; cross-attention takes its first third for the
    queries and the rest for keys and values of the memory.

    Args:
        embed_dim: width D, a multiple of ``num_heads``.
        num_heads: H.
        dropout: probability on the attention weights (only in training mode).
        bias: whether the linear maps have one.

    References: Vaswani et al. 2017, arXiv:1706.03762.
    """

    kit: LayerKit = DENSE

    def __init__(
        self, embed_dim: Any, num_heads: int, dropout: float = 0.0, bias: bool = True
    ) -> None:
        super().__init__()
        check_probability("dropout", dropout)
        self.kit.check_heads(embed_dim, num_heads, "num_heads")
        self.num_heads = num_heads
        self.dropout = dropout
        self.width = self.kit.dim(embed_dim)
        self.qkv: Any = self.kit.linear(embed_dim, self.kit.times(embed_dim, 3), bias)
        self.qkv.fused = 3  # each third is initialised as a map of its own
        self.out: Any = self.kit.linear(embed_dim, embed_dim, bias)

    def _heads(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, parts: int
    ) -> tuple[Tensor, ...]:
        """Project and split: (B, T, D) -> ``parts`` tensors (B, H, T, D / H)."""
        y = F.linear(x, weight, bias).unflatten(
            -1, (parts, self.num_heads, self.width // self.num_heads)
        )
        return y.permute(2, 0, 3, 1, 4).unbind(0)

    def _project(self, x: Tensor, memory: Tensor | None) -> tuple[Tensor, ...]:
        """Queries of x, keys and values of ``memory`` or of x: (B, H, T, D / H) each."""
        weight, bias = dense_of(self.qkv)
        if memory is None:
            return self._heads(x, weight, bias, 3)
        width = self.width
        q_bias, kv_bias = (None, None) if bias is None else (bias[:width], bias[width:])
        return *self._heads(x, weight[:width], q_bias, 1), *self._heads(
            memory, weight[width:], kv_bias, 2
        )

    def _merge(self, y: Tensor) -> Tensor:
        """Heads (B, H, T, D / H) back to channels (B, T, D)."""
        return y.transpose(1, 2).flatten(2)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        is_causal: bool = False,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from x (B, T, D) to itself, or to ``memory`` (B, S, D); ``is_causal``: token i
        sees tokens <= i of x; ``mask`` (B, T or S), bool: only those that are True are seen."""
        q, k, v = self._project(x, memory)
        p = self.dropout if self.training else 0.0
        seen = None if mask is None else mask[:, None, None]
        if seen is not None and is_causal:
            # Each token sees itself: padding before the first real one would see nothing, and be
            # NaN.
            i = torch.arange(x.shape[1], device=x.device)
            seen = seen & (i[:, None] > i) | (i[:, None] == i)
            is_causal = False
        return self.out(self._merge(F.scaled_dot_product_attention(q, k, v, seen, p, is_causal)))


class TransformerEncoderLayer(nn.Module):
    """Pre-norm encoder layer: x + SA(norm(x)), then x + MLP(norm(x)), with a GELU MLP of four times
    the width.

    Args:
        embed_dim: width D.
        num_heads: H.
        dropout: probability on attention weights, inside the MLP and on both residual branches.
        norm_module: "rmsnorm" or "layernorm".
    """

    kit: LayerKit = DENSE
    attention_class: type[MultiheadAttention] = MultiheadAttention
    mlp_class: type[MLP] = MLP

    def __init__(
        self, embed_dim: Any, num_heads: int, *, dropout: float = 0.0, norm_module: str = "rmsnorm"
    ) -> None:
        super().__init__()
        self.self_norm = self.kit.norm(embed_dim, norm_module)
        self.self_attention: Any = self.attention_class(embed_dim, num_heads, dropout)
        self.mlp_norm = self.kit.norm(embed_dim, norm_module)
        self.mlp = self.mlp_class(embed_dim, dropout=dropout)
        self.dropout = self.kit.dropout(embed_dim, dropout)

    def forward(self, x: Tensor, *, is_causal: bool = False) -> Tensor:
        """Map x (B, T, D) to (B, T, D)."""
        x = x + self.dropout(self.self_attention(self.self_norm(x), is_causal=is_causal))
        return x + self.mlp(self.mlp_norm(x))


class TransformerDecoderLayer(nn.Module):
    """Pre-norm decoder layer: self-attention, cross-attention to a memory, MLP, each on a residual
    branch.

    With ``time_dim`` > 0 the time modulates every branch, x + gate(t) * f(scale(t) * norm(x) +
    shift(t)), where scale, shift and gate are affine in the time features and start at 1, 0 and 1;
    they take the place of the norm's own scale.

    Args:
        embed_dim: width D.
        num_heads: H.
        dropout: probability on attention weights, inside the MLP and on the residual branches.
        norm_module: "rmsnorm" or "layernorm".
        time_dim: number of time features, 0 for a layer without time.

    References: Peebles and Xie 2023, arXiv:2212.09748 (modulation by the time).
    """

    kit: LayerKit = DENSE
    attention_class: type[MultiheadAttention] = MultiheadAttention
    mlp_class: type[MLP] = MLP

    def __init__(
        self,
        embed_dim: Any,
        num_heads: int,
        *,
        dropout: float = 0.0,
        norm_module: str = "rmsnorm",
        time_dim: int = 0,
    ) -> None:
        super().__init__()
        check_positive_int("time_dim", time_dim, minimum=0)
        kit = self.kit
        affine = time_dim == 0
        self.self_norm = kit.norm(embed_dim, norm_module, affine)
        self.self_attention: Any = self.attention_class(embed_dim, num_heads, dropout)
        self.cross_norm = kit.norm(embed_dim, norm_module, affine)
        self.cross_attention = self.attention_class(embed_dim, num_heads, dropout)
        self.mlp_norm = kit.norm(embed_dim, norm_module, affine)
        self.mlp = self.mlp_class(embed_dim, dropout=dropout)
        self.dropout = kit.dropout(embed_dim, dropout)
        self.modulation: Any = None
        if time_dim:
            kit.check_modulated(embed_dim)
            self.modulation = kit.lift(time_dim, kit.times(embed_dim, 9))
            self.modulation.starts_as = (1.0, 0.0, 1.0) * 3
            reset_parameters_(self.modulation, "xavier_uniform")

    def _modulate(self, time: Any) -> tuple[Tensor, ...]:
        """Scale, shift and gate of the three branches: nine tensors (B, 1, D)."""
        return self.modulation(time)[:, None].chunk(9, dim=-1)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        time: Tensor | None = None,
        *,
        is_causal: bool = False,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Map x (B, T, D) to (B, T, D), reading ``memory`` (B, S, D) as it is (normalised by its
        maker), at time features (B, time_dim); ``mask`` (B, T): tokens of x that others may see."""
        if (time is None) != (self.modulation is None):
            raise ValueError(
                f"expected time {'features' if time is None else 'None'} for this layer's time_dim"
            )
        if self.modulation is None:
            x = x + self.dropout(
                self.self_attention(self.self_norm(x), is_causal=is_causal, mask=mask)
            )
            x = x + self.dropout(self.cross_attention(self.cross_norm(x), memory))
            return x + self.mlp(self.mlp_norm(x))
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2, scale_3, shift_3, gate_3 = (
            self._modulate(time)
        )
        y = self.self_attention(
            torch.addcmul(shift_1, self.self_norm(x), scale_1), is_causal=is_causal, mask=mask
        )
        x = torch.addcmul(x, self.dropout(y), gate_1)
        y = self.cross_attention(torch.addcmul(shift_2, self.cross_norm(x), scale_2), memory)
        x = torch.addcmul(x, self.dropout(y), gate_2)
        return torch.addcmul(x, self.mlp(torch.addcmul(shift_3, self.mlp_norm(x), scale_3)), gate_3)


def initialise_(weight: Tensor, scheme: str, fan_in: int, fan_out: int) -> None:
    """Fill with independent values of zero mean and the scheme's variance: 2/(fan_in + fan_out)
    xavier, 2/fan_in kaiming.

    Raises:
        ValueError: unknown scheme.
    """
    check_scheme("scheme", scheme)
    std = math.sqrt(2.0 / ((fan_in + fan_out) if scheme.startswith("xavier") else fan_in))
    with torch.no_grad():
        if scheme.endswith("uniform"):
            weight.uniform_(-math.sqrt(3.0) * std, math.sqrt(3.0) * std)
        else:
            weight.normal_(0.0, std)


def reset_parameters_(root: nn.Module, scheme: str) -> None:
    """Give every submodule of ``root`` a fresh initialisation: linear weights by ``scheme``, biases
    zero, norms one, positions N(0, 0.1^2). Maps with an attribute ``starts_as`` begin as constants:
    weight zero, bias equal parts of these values."""
    check_scheme("scheme", scheme)
    for module in root.modules():
        if isinstance(module, nn.Linear):
            initialise_(
                module.weight,
                scheme,
                module.in_features,
                module.out_features // getattr(module, "fused", 1),
            )
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, LinearMap):
            module.reset_parameters(scheme)
        elif (
            module is not root and (reset := getattr(module, "reset_parameters", None)) is not None
        ):
            reset()
        if (values := getattr(module, "starts_as", None)) is not None:
            lift: Any = module
            with torch.no_grad():
                lift.weight.zero_()
                parts = lift.bias.view(len(values), -1)
                parts.copy_(parts.new_tensor(values)[:, None].expand_as(parts))


def optim_groups(root: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters by the role of their module: weights of linear maps decay; biases, norms and
    position tables don't.

    Returns:
        Two optimiser groups that hold every parameter of ``root`` exactly once.

    Raises:
        ValueError: ``weight_decay`` is negative or not a number.
    """
    if (
        isinstance(weight_decay, bool)
        or not isinstance(weight_decay, (int, float))
        or not weight_decay >= 0.0
    ):
        raise ValueError(f"expected weight_decay to be a number >= 0, got {weight_decay!r}")
    decay: dict[int, Tensor] = {}
    for module in root.modules():
        if isinstance(module, (nn.Linear, LinearMap)):
            decay[id(module.weight)] = module.weight
    rest = [parameter for parameter in root.parameters() if id(parameter) not in decay]
    return [
        {"params": list(decay.values()), "weight_decay": float(weight_decay)},
        {"params": rest, "weight_decay": 0.0},
    ]
