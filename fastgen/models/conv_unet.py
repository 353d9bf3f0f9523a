"""The convolutional U-Net of trajectories: a network on sequences, conditioned on one vector by
scale and shift in every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._core.checks import check_count
from .._core.tensors import time_dtype
from .arguments import batch_of_times, flat_condition
from .time_embedding import Waves

__all__ = ["TrajectoryUnet"]


class ConvBlock(nn.Module):
    """Convolution that keeps the length, group norm, Mish.

    Args:
        dim_in, dim_out: channels.
        kernel_size: odd.
        num_groups: of the norm; divides `dim_out`.
    """

    def __init__(self, dim_in: int, dim_out: int, kernel_size: int, num_groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(dim_in, dim_out, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(num_groups, dim_out),
            nn.Mish(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim_in, T) to (B, dim_out, T)."""
        return self.block(x)


class ResidualBlock(nn.Module):
    """Two convolutions around a map that depends on features c, beside a straight way:

        x -> conv2(scale(c) * conv1(x) + shift(c)) + straight(x).

    Args:
        dim_in, dim_out: channels.
        cond_dim: of c.
        kernel_size, num_groups: as of `ConvBlock`.
        scales: whether c gives a scale, too; otherwise a shift alone.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        cond_dim: int,
        *,
        kernel_size: int,
        num_groups: int,
        scales: bool,
    ) -> None:
        super().__init__()
        self.scales = scales
        numbers = 2 * dim_out if scales else dim_out
        self.conv1 = ConvBlock(dim_in, dim_out, kernel_size, num_groups)
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, numbers))
        self.conv2 = ConvBlock(dim_out, dim_out, kernel_size, num_groups)
        straight = nn.Identity() if dim_in == dim_out else nn.Conv1d(dim_in, dim_out, 1)
        self.residual_conv: nn.Module = straight

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Map x (B, dim_in, T), with c (B, cond_dim), to (B, dim_out, T)."""
        y = self.conv1(x)
        numbers = self.cond_encoder(c)[:, :, None]
        if self.scales:
            scale, shift = numbers.chunk(2, 1)
            y = scale * y + shift
        else:
            y = y + numbers
        return self.conv2(y) + self.residual_conv(x)


class TrajectoryUnet(nn.Module):
    r"""The network of Diffusion Policy :math:`f_\theta(X, t, Z)`: a U-Net along the waypoints of X.

    Z is laid end to end to one vector, which joins the embedded time in every layer. The names of
    its tensors are those of lerobot's `DiffusionConditionalUnet1d`, so that its weights fit.

    Args:
        in_dim: numbers of a waypoint d_x, which is also what comes out.
        cond_dim: numbers of Z in all.
        down_dims: channels of the stages. Each but the last halves the waypoints, whose number must
            be a multiple of 2^(stages - 1).
        kernel_size: of the convolutions, odd.
        num_groups: of the norms; divides every stage's channels. The last norm has 8.
        time_dim: of the embedded time, even.
        scales: whether Z and t scale features, beside shifting them.

    Raises:
        ValueError: an argument out of range, named as here.

    References: Chi et al. 2023, arXiv:2303.04137 (Diffusion Policy); Perez et al. 2017,
    arXiv:1709.07871 (FiLM).
    """

    def __init__(
        self,
        in_dim: int,
        cond_dim: int,
        down_dims: Sequence[int] = (512, 1024, 2048),
        kernel_size: int = 5,
        num_groups: int = 8,
        time_dim: int = 128,
        scales: bool = True,
    ) -> None:
        super().__init__()
        _check(in_dim, cond_dim, down_dims, kernel_size, num_groups, time_dim)
        self.config: dict[str, Any] = {
            "class": "TrajectoryUnet",
            "in_dim": in_dim,
            "cond_dim": cond_dim,
            "down_dims": list(down_dims),
            "kernel_size": kernel_size,
            "num_groups": num_groups,
            "time_dim": time_dim,
            "scales": scales,
        }
        self.cond_dim = cond_dim
        self.multiple = 2 ** (len(down_dims) - 1)
        self.diffusion_step_encoder = nn.Sequential(
            Waves(time_dim),
            nn.Linear(time_dim, 4 * time_dim),
            nn.Mish(),
            nn.Linear(4 * time_dim, time_dim),
        )
        features = time_dim + cond_dim
        kind: dict[str, Any] = {
            "kernel_size": kernel_size,
            "num_groups": num_groups,
            "scales": scales,
        }

        def two_blocks(dim_in: int, dim_out: int) -> list[nn.Module]:
            first = ResidualBlock(dim_in, dim_out, features, **kind)
            return [first, ResidualBlock(dim_out, dim_out, features, **kind)]

        dims = [in_dim, *down_dims]
        down = []
        for stage in range(len(down_dims)):
            dim_in, dim_out = dims[stage], dims[stage + 1]
            is_last = stage == len(down_dims) - 1
            halve = nn.Identity() if is_last else nn.Conv1d(dim_out, dim_out, 3, 2, 1)
            down.append(nn.ModuleList([*two_blocks(dim_in, dim_out), halve]))
        self.down_modules = nn.ModuleList(down)
        self.mid_modules = nn.ModuleList(two_blocks(dims[-1], dims[-1]))
        up = []
        for stage in range(len(down_dims) - 1, 0, -1):
            dim_out, dim_in = dims[stage], dims[stage + 1]
            double = nn.ConvTranspose1d(dim_out, dim_out, 4, 2, 1)
            up.append(nn.ModuleList([*two_blocks(2 * dim_in, dim_out), double]))
        self.up_modules = nn.ModuleList(up)
        self.final_conv = nn.Sequential(
            ConvBlock(dims[1], dims[1], kernel_size, 8), nn.Conv1d(dims[1], in_dim, 1)
        )

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        """The prediction (B, T, d_x) at waypoints `x_t` (B, T, d_x) and time `t`, a number or (B,),
        given `cond` (B, ...) of `cond_dim` numbers a row.

        Raises:
            ValueError: waypoints or conditions of another number, or a condition that isn't one
                Tensor, as where samples are padded.
        """
        given = flat_condition(cond, self.cond_dim)
        if x_t.shape[1] % self.multiple:
            raise ValueError(
                f"expected a multiple of {self.multiple} waypoints, got {x_t.shape[1]}; set "
                "data.horizon to the one it was trained with"
            )
        dtype = time_dtype(x_t.dtype)
        times = batch_of_times(t, x_t.shape[0], device=x_t.device, dtype=dtype)
        waves = self.diffusion_step_encoder[0](times).to(x_t.dtype)
        c = torch.cat([self.diffusion_step_encoder[1:](waves), given], -1)
        x = x_t.transpose(1, 2)
        kept = []
        for first, second, halve in _triples(self.down_modules):
            x = second(first(x, c), c)
            kept.append(x)
            x = halve(x)
        for block in self.mid_modules:
            x = block(x, c)
        for first, second, double in _triples(self.up_modules):
            x = second(first(torch.cat([x, kept.pop()], 1), c), c)
            x = double(x)
        return self.final_conv(x).transpose(1, 2)


def _triples(stages: Any) -> Any:
    """The three modules of each stage."""
    return (tuple(stage) for stage in stages)


def _check(
    in_dim: int,
    cond_dim: int,
    down_dims: Sequence[int],
    kernel_size: int,
    num_groups: int,
    time_dim: int,
) -> None:
    """ValueError for a number that makes no network."""
    check_count("in_dim", in_dim)
    check_count("cond_dim", cond_dim)
    check_count("num_groups", num_groups)
    check_count("kernel_size", kernel_size)
    check_count("time_dim", time_dim, least=4)
    if not down_dims:
        raise ValueError("expected down_dims with at least one stage, got none")
    for dim in down_dims:
        check_count("down_dims", dim)
        if dim % num_groups:
            raise ValueError(f"expected num_groups to divide down_dims, got {num_groups} and {dim}")
    if down_dims[0] % 8:
        raise ValueError(f"expected a multiple of 8 as the first of down_dims, got {down_dims[0]}")
    if kernel_size % 2 == 0 or time_dim % 2:
        raise ValueError(
            f"expected an odd kernel_size and an even time_dim, got {kernel_size} and {time_dim}"
        )
