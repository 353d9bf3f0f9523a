"""Affine normalisation of the last axis, and packing of several waypoints into one token.

x = mean + scale y takes normalised coordinates y to original units x. `scale` is a matrix, so one
class serves two purposes. A diagonal one standardises channel by channel. The other commutes with a
group: for an orthogonal representation rho, with a mean that no rho(g) changes and one standard
deviation for each block of its irreps,

    normalize(rho(g) x) = rho(g) normalize(x).

The irreps are handed in as `blocks`, so nothing here knows a library of groups.

Either may be one for each time step of a trajectory (..., T, d): mean (T, d) and scale (T, d, d).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._core.json_kinds import listed, number
from ._core.made_rows import MadeRows, blocks_of
from ._core.measures import (
    between,
    checked_blocks,
    counted_extremes,
    counted_moments,
    counted_vectors,
    moments,
    some_rows,
)
from ._core.packing import pack_tokens, unpack_tokens

__all__ = [
    "KINDS",
    "Blocks",
    "Normalizer",
    "constant_share",
    "is_constant",
    "matrix_times",
    "outgrows_float32",
    "pack_tokens",
    "unpack_tokens",
]

# What can be done to a channel, and the shares of its numbers below its two limits, which become
# -1 and 1; None: it is no matter of limits.
KINDS: dict[str, tuple[float, float] | None] = {
    "mean_std": None,
    "min_max": (0.0, 1.0),
    "quantiles": (0.01, 0.99),
    "identity": None,
}

# A standard deviation below this share of the largest magnitude in the data is rounding of a
# constant, not a spread. In float64 the share is another: a time of today in seconds, 1.7e9, has a
# spread of far less than 1e-7 of it, and what a long computation rounds is about 1e-13.
_CONSTANT_SHARE = 1e-7
_CONSTANT_SHARE_FLOAT64 = 1e-12
# The coarsest spacing of numbers, in their standard deviations, that float32 may have. Normalised
# numbers, which a network sees in float32, have up to half of it; what is coarser loses digits that
# the network would have seen.
_COARSEST = 1e-6

Blocks = tuple[Tensor, Sequence[tuple[int, int, bool]]]


def _as_float64(name: str, value: Tensor | Sequence, ndim: int, most: int | None = None) -> Tensor:
    """`value` in float64, after checking that it is finite and has `ndim` axes, up to `most`."""
    tensor = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach().clone()
    if not ndim <= tensor.ndim <= (most or ndim):
        raise ValueError(f"expected {name} with {ndim} axes, got shape {tuple(tensor.shape)}")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(
            f"expected finite numbers in {name}, got NaN or infinity; remove such rows from the "
            "data first"
        )
    return tensor


class Normalizer:
    """Invertible affine map x = mean + scale y on the last axis.

    Args:
        mean: (d,), the origin of the normalised coordinates in original units; or (T, d), one for
            each time step.
        scale: (d, d), invertible; columns are the images of the normalised axes. Or (T, d, d).
        needs_float64: whether numbers in original units lose digits in float32; None: whether it
            is too coarse for this mean and scale (`outgrows_float32`). False for data that were in
            float32 themselves.

    Arithmetic runs in float64 and the result has the dtype and device of the argument.

    Raises:
        ValueError: shapes that don't fit together, numbers that aren't finite, a singular `scale`.
        TypeError: `needs_float64` is no bool.
    """

    def __init__(
        self,
        mean: Tensor | Sequence[float],
        scale: Tensor | Sequence[Sequence[float]],
        *,
        needs_float64: bool | None = None,
    ) -> None:
        self.mean = _as_float64("mean", mean, 1, most=2)
        self.scale = _as_float64("scale", scale, 2, most=3)
        shape = (*self.mean.shape, self.mean.shape[-1])
        if 0 in shape or tuple(self.scale.shape) != shape:
            raise ValueError(
                f"expected scale of shape {shape} with d >= 1, got {tuple(self.scale.shape)}"
            )
        inverse, info = torch.linalg.inv_ex(self.scale)
        if bool((info != 0).any()) or not bool(torch.isfinite(inverse).all()):
            raise ValueError(
                "expected an invertible scale, got a singular matrix; a channel without spread "
                "can't be normalised"
            )
        self._inverse = inverse
        if needs_float64 is None:
            needs_float64 = self._looks_wide()
        elif not isinstance(needs_float64, bool):
            raise TypeError(
                f"expected needs_float64 as true or false, got {type(needs_float64).__name__}"
            )
        self.needs_float64 = needs_float64

    def _looks_wide(self) -> bool:
        """Whether float32 is too coarse for a channel of this mean and scale."""
        return bool(outgrows_float32(self.mean, self.scale.norm(dim=-1)).any())

    @property
    def dim(self) -> int:
        """Number of channels d."""
        return self.mean.shape[-1]

    @property
    def network_dim(self) -> int:
        """Number of channels that a network sees; another one where some are angles or rotations
        (:mod:`fastgen.channel_kinds`)."""
        return self.mean.shape[-1]

    @property
    def steps(self) -> int | None:
        """Number of time steps T, each with a mean and a scale of its own; None: one for all."""
        return self.mean.shape[0] if self.mean.ndim == 2 else None

    @classmethod
    def identity(cls, d: int) -> Normalizer:
        """The normaliser that changes nothing, for d channels."""
        return cls(torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))

    @classmethod
    def fit(
        cls,
        x: Tensor,
        *,
        blocks: Blocks | None = None,
        kind: str = "mean_std",
        mask: Tensor | None = None,
    ) -> Normalizer:
        """Normalise data: by default to zero mean and unit spread of every channel, or of every
        irrep block.

        Args:
            x: (..., d) data, at least one row. All leading axes are rows.
            blocks: `(Q, [(start, stop, is_trivial), ...])` of an orthogonal representation rho(g) =
                Q blockdiag(irreps)(g) Q^T; the blocks partition the d columns of Q. The mean is
                kept only on trivial blocks, and a block of width w has the one standard deviation
                sqrt(mean |Q_b^T (x - mean)|^2 / w), which is what makes the map commute with the
                group. Without blocks every channel has its own mean and standard deviation.
            kind: one of `KINDS`. `min_max` takes the least and the largest number of a channel to
                -1 and 1, `quantiles` those that 1 % and 99 % of its numbers lie below (numbers
                beyond them stay beyond). In a block that isn't trivial the ball about the origin
                that holds as many rows, all or 98 %, becomes the unit ball. `identity` changes
                nothing.
            mask: bool (...), which rows are measured; None: all.

        From a channel or block without spread only its mean is taken off. Data whose rows are made
        as they are taken (`MadeRows`) are gone through in blocks, with the same result but for the
        rounding of sums; their quantiles are those of about 16 million numbers.

        Raises:
            TypeError: x is not a floating-point Tensor.
            ValueError: no rows, NaN, blocks that don't fit d, an unknown kind.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(
                "expected x to be a floating-point Tensor, got "
                f"{getattr(x, 'dtype', type(x).__name__)}"
            )
        if x.ndim < 2 or x.numel() == 0:
            raise ValueError(
                f"expected x of shape (..., d) with at least one row, got {tuple(x.shape)}"
            )
        if kind not in KINDS:
            raise ValueError(f"expected kind as one of {', '.join(KINDS)}, got {kind!r}")
        x, mask = some_rows(x, mask, kind)
        if mask is not None and not isinstance(x, MadeRows):
            x, mask = x[mask], None
        return cls._fit(x, None, blocks, kind, mask)

    @classmethod
    def _fit(
        cls,
        x: Tensor,
        step: int | None,
        blocks: Blocks | None,
        kind: str,
        mask: Tensor | None = None,
    ) -> Normalizer:
        """`fit` of one time step of `MadeRows`, or of all; a mask is of `MadeRows`."""
        d = x.shape[-1]
        # First, so that NaN is refused whatever the kind.
        rows = x if isinstance(x, MadeRows) else _as_float64("x", x.reshape(-1, d), 2)
        if kind == "identity":
            return cls.identity(d)
        if blocks is None:
            basis = torch.eye(d, dtype=torch.float64)
            spans = [(i, i + 1, True) for i in range(d)]
        else:
            basis, spans = checked_blocks(_as_float64("blocks[0]", blocks[0], 2), blocks[1], d)
        limits = KINDS[kind]
        share = constant_share(x.dtype)
        if isinstance(rows, MadeRows):
            measure = counted_moments if limits is None else counted_extremes
            seen_in = None if blocks is None else basis
            centre, spread = measure(counted_vectors(rows, mask, step, seen_in), spans, share)
        elif limits is None:
            centre, spread = moments(rows @ basis, spans, share)
        else:
            centre, spread = between(rows @ basis, spans, share, *limits)
        # Data in float32 have no digits that float32 could lose.
        wide = None if x.dtype == torch.float64 else False
        if blocks is None:
            return cls(centre, spread.diag(), needs_float64=wide)
        # Q diag Q^T is symmetric but for rounding. Made symmetric, scale commutes with the group as
        # well as float64 can say.
        scale = basis @ spread.diag() @ basis.T
        return cls(basis @ centre, (scale + scale.T) / 2, needs_float64=wide)

    @classmethod
    def fit_per_step(
        cls,
        x: Tensor,
        *,
        blocks: Blocks | None = None,
        kind: str = "mean_std",
        mask: Tensor | None = None,
    ) -> Normalizer:
        """`fit` of each time step by itself, for trajectories (N, T, d); other arguments and errors
        as there. `mask`, bool (N, T), says what is real, which each step must have."""
        if not isinstance(x, Tensor) or x.ndim != 3:
            raise ValueError(
                f"expected x as trajectories (N, T, d), got {tuple(getattr(x, 'shape', ()))}"
            )
        x, mask = some_rows(x, mask, kind)
        if mask is not None:
            seen = torch.stack([part.any(0) for part in blocks_of(mask)]).any(0)
            if not bool(seen.all()):
                step = int(seen.int().argmin())
                raise ValueError(f"expected something real at each time step, got none at {step}")
        if isinstance(x, MadeRows):
            fitted = [cls._fit(x, step, blocks, kind, mask) for step in range(x.shape[1])]
        elif mask is not None:
            pairs = zip(x.unbind(1), mask.unbind(1), strict=True)
            fitted = [cls.fit(step[real], blocks=blocks, kind=kind) for step, real in pairs]
        else:
            fitted = [cls.fit(step, blocks=blocks, kind=kind) for step in x.unbind(1)]
        return cls(
            torch.stack([one.mean for one in fitted]),
            torch.stack([one.scale for one in fitted]),
            needs_float64=any(one.needs_float64 for one in fitted),
        )

    def normalize(self, x: Tensor) -> Tensor:
        """y = scale^-1 (x - mean), for x (..., d); same shape, dtype and device."""
        x64, mean, inverse = self._prepare("x", x, self._inverse)
        return matrix_times(inverse, x64 - mean).to(x.dtype)

    def denormalize(self, y: Tensor) -> Tensor:
        """x = mean + scale y, for y (..., d); same shape, dtype and device. Inverse of
        `normalize`."""
        y64, mean, scale = self._prepare("y", y, self.scale)
        return (mean + matrix_times(scale, y64)).to(y.dtype)

    def state(self) -> dict[str, Any]:
        """JSON-able `{"mean": [...], "scale": [[...]]}`, with `needs_float64` where mean and scale
        don't tell it; Python's JSON writes floats so that they read back exactly."""
        state: dict[str, Any] = {"mean": self.mean.tolist(), "scale": self.scale.tolist()}
        if self.needs_float64 != self._looks_wide():
            state["needs_float64"] = self.needs_float64
        return state

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Normalizer:
        """Inverse of `state`; a ValueError names keys that are missing or unexpected, and what is
        no number."""
        keys = {"mean", "scale"}
        if not isinstance(state, dict) or not keys <= set(state) <= {*keys, "needs_float64"}:
            got = sorted(state) if isinstance(state, dict) else type(state).__name__
            raise ValueError(f"expected a normalizer state with the keys mean and scale, got {got}")
        if wrong := _wrong_numbers(state["mean"], state["scale"]):
            raise ValueError(wrong)
        return cls(state["mean"], state["scale"], needs_float64=state.get("needs_float64"))

    def _prepare(
        self, name: str, x: Tensor, matrix: Tensor, dim: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x in float64, the mean and a matrix beside it, after the `dim` channels of x are checked;
        None: they are `self.dim`."""
        dim = self.dim if dim is None else dim
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(
                f"expected {name} to be a floating-point Tensor, got "
                f"{getattr(x, 'dtype', type(x).__name__)}"
            )
        if x.ndim == 0 or x.shape[-1] != dim:
            raise ValueError(f"expected {name} of shape (..., {dim}), got {tuple(x.shape)}")
        if self.steps is not None and tuple(x.shape[-2:]) != (self.steps, dim):
            raise ValueError(
                f"expected {name} of shape (..., {self.steps}, {dim}), since each time step "
                f"is normalised by itself, got {tuple(x.shape)}"
            )
        return x.double(), self.mean.to(x.device), matrix.to(x.device)

    def __repr__(self) -> str:
        return f"Normalizer(mean={self.mean.tolist()}, scale={self.scale.tolist()})"


def matrix_times(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix x, for vectors x (..., d) and a matrix (d, d), or x (..., T, d) and one for each step,
    (T, d, d)."""
    if matrix.ndim == 2:
        return x @ matrix.T
    return (matrix @ x[..., None])[..., 0]


def _wrong_numbers(mean: Any, scale: Any) -> str | None:
    """What is wrong with lists that should hold the numbers of mean and scale."""
    numbers = listed(number)
    rows = listed(numbers)
    if isinstance(mean, list) and mean and isinstance(mean[0], list):
        return rows(mean, "mean") or listed(rows)(scale, "scale")
    return numbers(mean, "mean") or rows(scale, "scale")


def outgrows_float32(mean: Tensor, spread: Tensor) -> Tensor:
    """Where float32 is too coarse for numbers of this mean and standard deviation (...): where its
    spacing at |mean| + spread is over 1e-6 of the spread. (...) of bool; False where there is no
    spread."""
    size = mean.double().abs() + spread.double()
    # Between 2^(e - 1) and 2^e the spacing is 2^(e - 24); below the normal numbers it is 2^-149.
    exponent = torch.frexp(size).exponent.double()
    spacing = torch.pow(2.0, (exponent - 24).clamp(min=-149))
    too_large = size > torch.finfo(torch.float32).max
    return (spread > 0) & (too_large | (spacing > _COARSEST * spread))


def constant_share(dtype: torch.dtype) -> float:
    """The share of the largest magnitude below which a spread is the rounding of a constant."""
    return _CONSTANT_SHARE_FLOAT64 if dtype == torch.float64 else _CONSTANT_SHARE


def is_constant(rows: Tensor) -> Tensor:
    """Which channels of rows (N, d) have one value, but for the rounding of their dtype: (d,) of
    bool."""
    # Channel by channel: no second copy of all the data.
    found = []
    for channel in rows.unbind(1):
        wide = channel.double()
        sd = (wide - wide.mean()).square().mean().sqrt()
        found.append(sd <= constant_share(rows.dtype) * wide.abs().amax())
    return torch.stack(found)
