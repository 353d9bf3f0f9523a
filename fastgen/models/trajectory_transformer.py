"""The transformer of trajectories: a network on sequences, conditioned on one vector by scale,
shift and gate in every block."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._core.checks import check_count
from .._core.tensors import time_dtype
from .arguments import batch_of_times, check_positive, flat_condition
from .time_embedding import Waves

__all__ = ["TrajectoryTransformer"]


class RotaryAttention(nn.Module):
    """Self-attention whose queries and keys are turned by their place: of the halves of a head's
    channels, pair i turns by place * base^(-2 i / d_head).

    Args:
        dim: channels, a multiple of twice `num_heads`.
        num_heads: H.
        base: > 0.

    References: Su et al. 2021, arXiv:2104.09864.
    """

    def __init__(self, dim: int, num_heads: int, base: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.base = base
        self.qkv_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        parts = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        angles = self._angles(x.shape[1], q.shape[-1], x.device)
        cos = angles.cos().to(x.dtype)
        sin = angles.sin().to(x.dtype)
        y = F.scaled_dot_product_attention(turned(q, cos, sin), turned(k, cos, sin), v)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def _angles(self, places: int, head_dim: int, device: torch.device) -> Tensor:
        """(T, d_head / 2)."""
        exponents = torch.arange(0, head_dim, 2, device=device).float() / head_dim
        place = torch.arange(places, device=device).float()
        return place[:, None] * (1.0 / self.base**exponents)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The halves of the last axis of (B, H, T, d_head) as pairs, each turned."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class ModulatedBlock(nn.Module):
    """Attention and a map of each token, both of a normalised x that features c scale and shift,
    and both weighed by them:

        x -> x + gate(c) * f(norm(x) * (1 + scale(c)) + shift(c)).

    Args:
        dim: channels.
        cond_dim: of c.
        num_heads: of the attention.
        rotary_base: as of `RotaryAttention`; None: attention that knows no places.
    """

    def __init__(self, dim: int, cond_dim: int, num_heads: int, rotary_base: float | None) -> None:
        super().__init__()
        if rotary_base is None:
            self.multihead_attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        else:
            self.attn = RotaryAttention(dim, num_heads, rotary_base)
        self.rotary = rotary_base is not None
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim)
        )
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(cond_dim, 6 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Map x (B, T, D), with c (B, cond_dim), to (B, T, D)."""
        numbers = self.adaLN_modulation(c)[:, None].chunk(6, -1)
        shift, scale, gate = numbers[:3]
        x = x + gate * self._attended(self.norm1(x) * (1.0 + scale) + shift)
        shift, scale, gate = numbers[3:]
        return x + gate * self.mlp(self.norm2(x) * (1.0 + scale) + shift)

    def _attended(self, x: Tensor) -> Tensor:
        if self.rotary:
            return self.attn(x)
        return self.multihead_attn(x, x, x, need_weights=False)[0]


class TrajectoryTransformer(nn.Module):
    r"""The network of lerobot's multi-task DiT :math:`f_\theta(X, t, Z)`: a transformer over the
    waypoints of X.

    Z is laid end to end to one vector, which joins the embedded time in every block. The names of
    its tensors are those of lerobot's `DiffusionTransformer`, so that its weights fit. It has no
    dropout.

    Args:
        in_dim: numbers of a waypoint d_x, which is also what comes out.
        cond_dim: numbers of Z in all.
        embedding_dim: channels of a token, a multiple of `num_attention_heads`, and of twice as
            many with `rotary`.
        num_layers: blocks.
        num_attention_heads: of each block.
        time_dim: of the embedded time, even, at least 4.
        rotary: whether attention turns queries and keys by their place.
        rotary_base: of the turns, > 0.
        positions: rows of a learned table of places, and so the most waypoints; 0: no table.

    Raises:
        ValueError: an argument out of range, named as here.

    References: Peebles and Xie 2023, arXiv:2212.09748 (DiT); Barreiros et al. 2025,
    arXiv:2507.05331 (multi-task DiT policies).
    """

    def __init__(
        self,
        in_dim: int,
        cond_dim: int,
        embedding_dim: int = 512,
        num_layers: int = 6,
        num_attention_heads: int = 8,
        time_dim: int = 256,
        rotary: bool = True,
        rotary_base: float = 10000.0,
        positions: int = 0,
    ) -> None:
        super().__init__()
        check_count("in_dim", in_dim)
        check_count("cond_dim", cond_dim)
        check_count("num_layers", num_layers)
        check_count("positions", positions, least=0)
        check_positive("rotary_base", rotary_base)
        _check_widths(embedding_dim, num_attention_heads, time_dim, rotary)
        self.config: dict[str, Any] = {
            "class": "TrajectoryTransformer",
            "in_dim": in_dim,
            "cond_dim": cond_dim,
            "embedding_dim": embedding_dim,
            "num_layers": num_layers,
            "num_attention_heads": num_attention_heads,
            "time_dim": time_dim,
            "rotary": rotary,
            "rotary_base": float(rotary_base),
            "positions": positions,
        }
        self.cond_dim = cond_dim
        self.positions = positions
        self.time_mlp = nn.Sequential(
            Waves(time_dim),
            nn.Linear(time_dim, 2 * time_dim),
            nn.GELU(),
            nn.Linear(2 * time_dim, time_dim),
            nn.GELU(),
        )
        self.input_proj = nn.Linear(in_dim, embedding_dim)
        self.pos_embedding = None
        if positions:
            table = torch.empty(1, positions, embedding_dim)
            self.pos_embedding = nn.Parameter(nn.init.normal_(table, std=0.02))
        base = float(rotary_base) if rotary else None
        self.transformer_blocks = nn.ModuleList(
            ModulatedBlock(embedding_dim, time_dim + cond_dim, num_attention_heads, base)
            for _ in range(num_layers)
        )
        self.output_proj = nn.Linear(embedding_dim, in_dim)

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        """The prediction (B, T, d_x) at waypoints `x_t` (B, T, d_x) and time `t`, a number or (B,),
        given `cond` (B, ...) of `cond_dim` numbers a row.

        Raises:
            ValueError: conditions of another number or that carry masks, more waypoints than there
                are positions.
        """
        given = flat_condition(cond, self.cond_dim)
        x = self.input_proj(x_t)
        if self.pos_embedding is not None:
            if x_t.shape[1] > self.positions:
                raise ValueError(
                    f"expected at most {self.positions} waypoints, got {x_t.shape[1]}; set "
                    "data.horizon to the one it was trained with"
                )
            x = x + self.pos_embedding[:, : x_t.shape[1]]
        dtype = time_dtype(x_t.dtype)
        times = batch_of_times(t, x_t.shape[0], device=x_t.device, dtype=dtype)
        waves = self.time_mlp[0](times).to(x_t.dtype)
        c = torch.cat([self.time_mlp[1:](waves), given], -1)
        for block in self.transformer_blocks:
            x = block(x, c)
        return self.output_proj(x)


def _check_widths(embedding_dim: int, heads: int, time_dim: int, rotary: bool) -> None:
    """ValueError for widths that make no network."""
    check_count("embedding_dim", embedding_dim)
    check_count("num_attention_heads", heads)
    check_count("time_dim", time_dim, least=4)
    multiple = 2 * heads if rotary else heads
    if embedding_dim % multiple:
        raise ValueError(
            f"expected embedding_dim as a multiple of {multiple}, of {heads} heads"
            f"{' whose channels come in pairs' if rotary else ''}, got {embedding_dim}"
        )
    if time_dim % 2:
        raise ValueError(f"expected an even time_dim, got {time_dim}")
