"""Trajectories: the training set of paths and their conditions, its checks and its normalisers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._core.checks import is_count
from .._core.made_rows import MadeRows, blocks_of, mapped_rows, zipped_rows
from .._core.masks import check_real, packed_mask, real_only, with_masks
from .._core.room import check_room
from ..normalizer import Normalizer, pack_tokens
from .masks import UNMASKED, Masks, filled_rows
from .normalization import IDENTITY, MEASURED, Pair

__all__ = [
    "TrajectoryData",
    "check_dtype",
    "check_finite",
    "check_pack",
    "check_size",
    "check_trajectories",
    "filled",
    "fit_normalizers",
]


@dataclass(frozen=True)
class TrajectoryData:
    """Trajectories X with their conditions Z in original units, and how a network sees them.

    Attributes:
        X: (N, T_x, d_x), float32, or float64 where float32 would lose digits.
        Z: (N, T_z, d_z), likewise.
        x_normalizer, z_normalizer: of d_x and d_z channels, one for all waypoints or one for each.
        pack: consecutive waypoints per token of the network; divides T_x.
        symmetry: None, or `{"group", "in_rep", "cond_rep", "out_rep"}` for the channels of one
            waypoint. A token carries `pack` copies of them.
        in_order: whether the order of the rows may mean something, as in a file sorted by class, so
            that a part of them has to be drawn; False where rows are independent draws.
        is_pad: which waypoints of X repeat the last one of their episode, (N, T_x) of bool; None:
            none does. They are data unless `masks` say otherwise.
        masks: which waypoints of X and observations of Z are real. Padding repeats the real one
            before it, whatever it held.

    Raises:
        ValueError, TypeError: anything above that doesn't hold; rows with NaN are named.
    """

    X: Tensor
    Z: Tensor
    x_normalizer: Normalizer
    z_normalizer: Normalizer
    pack: int = 1
    symmetry: dict | None = None
    in_order: bool = True
    is_pad: Tensor | None = None
    masks: Masks = UNMASKED

    def __post_init__(self) -> None:
        for name, mask in zip("XZ", self.masks, strict=True):
            # Frozen as it is: what stands in the padding was never there.
            object.__setattr__(self, name, filled(name, getattr(self, name), mask))
        check_trajectories(self.X, self.Z)
        parts = (("X", self.X, self.x_normalizer), ("Z", self.Z, self.z_normalizer))
        for name, tensor, normalizer in parts:
            check_dtype(name, tensor)
            if normalizer.dim != tensor.shape[-1]:
                raise ValueError(
                    f"expected a normalizer of {tensor.shape[-1]} channels for {name}, got "
                    f"{normalizer.dim}"
                )
            if normalizer.steps not in (None, tensor.shape[1]):
                raise ValueError(
                    f"expected a normalizer of {tensor.shape[1]} time steps for {name}, got "
                    f"{normalizer.steps}"
                )
        check_pack(self.pack, self.X.shape[1])
        if self.is_pad is not None and self.is_pad.shape != self.X.shape[:2]:
            raise ValueError(
                f"expected is_pad of shape {tuple(self.X.shape[:2])}, got "
                f"{tuple(self.is_pad.shape)}"
            )
        if self.masks.mask is not None:
            packed_mask(self.masks.mask, self.pack)

    def __len__(self) -> int:
        return self.X.shape[0]

    @property
    def cond(self) -> Any:
        """Z with the masks, in original units: what samplers are given."""
        return with_masks(self.Z, *self.masks)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of the noise that a sample is made of: (T_x, d_x), with d_x as networks see it."""
        return (self.X.shape[1], self.x_normalizer.network_dim)

    def network_inputs(self) -> tuple[Tensor, Any]:
        """Normalised and packed tensors (N, T_x / pack, d_x pack) and (N, T_z, d_z), float32, with
        angles and rotations as networks see them (:mod:`fastgen.channel_kinds`). Where
        something is padded, it is 0, and the second is a condition that carries the masks of
        tokens (`_core/masks.py`)."""
        x = mapped_rows(self.X, self._as_tokens)
        z = mapped_rows(self.Z, lambda Z: self.z_normalizer.normalize(Z).float())
        mask, cond_mask = self.masks
        mask = None if mask is None else packed_mask(mask, self.pack)
        return _zeroed(x, mask), with_masks(_zeroed(z, cond_mask), mask, cond_mask)

    def _as_tokens(self, X: Tensor) -> Tensor:
        return pack_tokens(self.x_normalizer.normalize(X).float(), self.pack)


def _zeroed(x: Tensor, mask: Tensor | None) -> Tensor:
    """Tokens x (N, T, d) with 0 where a mask (N, T) says padding."""
    if mask is None:
        return x
    return zipped_rows(lambda x, mask: real_only(x, with_masks(None, mask)), x, mask)


def filled(name: str, x: Tensor, mask: Tensor | None) -> Tensor:
    """Trajectories x (N, T, d), called X or Z, whose padding repeats the real token before it.

    Raises:
        ValueError: a mask that doesn't fit.
    """
    if mask is None:
        return x
    check_real("mask" if name == "X" else "cond_mask", mask, tuple(x.shape[:2]))
    return filled_rows(x, mask)


def check_dtype(name: str, tensor: Tensor) -> None:
    """TypeError unless the numbers are held in float32 or float64."""
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"expected {name} in float32 or float64, got {tensor.dtype}")


def check_pack(pack: int, horizon: int) -> None:
    """ValueError unless `pack` is a whole number >= 1 that divides the horizon."""
    if not is_count(pack) or horizon % pack:
        raise ValueError(
            f"expected pack to be a whole number that divides the {horizon} waypoints, got {pack!r}"
        )


def check_size(size: int, what: str = "demonstrations") -> None:
    """ValueError unless `size` is a whole number >= 2, for which there is room in memory."""
    if not is_count(size, 2):
        raise ValueError(f"expected size to be a whole number >= 2 of {what}, got {size!r}")
    # A row has more than two numbers and a condition.
    check_room("data.size", size, 16)


def check_finite(name: str, tensor: Tensor) -> None:
    """ValueError that names the rows of `tensor` (N, ...) with NaN or infinity."""
    if tensor.numel() == 0:
        return
    # In blocks, since rows may be mapped that memory doesn't hold.
    blocks = (block.reshape(len(block), -1) for block in blocks_of(tensor))
    finite = torch.cat([torch.isfinite(block).all(1) for block in blocks])
    rows = (~finite).nonzero().flatten().tolist()
    if rows:
        some = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        raise ValueError(
            f"expected finite numbers in {name}, got NaN or infinity in {len(rows)} rows: {some}; "
            "remove them"
        )


def check_trajectories(X: Tensor, Z: Tensor) -> None:
    """Check that X is (N, T_x, d_x) and Z is (N, T_z, d_z), N >= 1, and that both are finite.

    Raises:
        TypeError: one is no floating-point tensor.
        ValueError: another shape, or rows with NaN or infinity, which are named.
    """
    for name, tensor, axes in (("X", X, "(N, T_x, d_x)"), ("Z", Z, "(N, T_z, d_z)")):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise TypeError(
                f"expected {name} to be a floating-point Tensor, got "
                f"{getattr(tensor, 'dtype', type(tensor).__name__)}"
            )
        if tensor.ndim != 3:
            raise ValueError(f"expected {name} of shape {axes}, got {tuple(tensor.shape)}")
        if tensor.numel() == 0:
            raise ValueError(
                f"expected {name} of shape {axes} with at least one number, got an empty "
                f"{tuple(tensor.shape)}"
            )
    if X.shape[0] != Z.shape[0]:
        raise ValueError(f"expected as many rows in Z as in X, got {Z.shape[0]} and {X.shape[0]}")
    for name, tensor in (("X", X), ("Z", Z)):
        # Of windows that are cut as they are taken the rows were looked at.
        if not isinstance(tensor, MadeRows):
            check_finite(name, tensor)


def fit_normalizers(
    X: Tensor,
    Z: Tensor,
    symmetry: dict | None,
    how: Pair = MEASURED,
    masks: Masks = UNMASKED,
) -> tuple[Normalizer, Normalizer]:
    """Normalisers of X and Z, by default to mean 0 and standard deviation 1.

    Under a symmetry they commute with its group, which acts on X by `out_rep` and on Z by
    `cond_rep`. Without one they act on each channel.

    Args:
        X, Z: the training set, (N, T_x, d_x) and (N, T_z, d_z).
        symmetry: as in `TrajectoryData`.
        how: what is done to X and to Z.
        masks: of X and of Z; padding has no part in what is measured.

    Raises:
        ValueError: a symmetry with missing or unknown keys, representations that don't fit the
            channels, or limits that don't (`Normalization.normalizer`).
    """
    if symmetry is None or how == IDENTITY:
        x_normalizer = how[0].normalizer("X", X, real=masks.mask)
        return x_normalizer, how[1].normalizer("Z", Z, real=masks.cond_mask)
    keys = {"group", "in_rep", "cond_rep", "out_rep"}
    if not isinstance(symmetry, dict) or set(symmetry) != keys:
        got = sorted(symmetry) if isinstance(symmetry, dict) else repr(symmetry)
        raise ValueError(f"expected symmetry with the keys {sorted(keys)}, got {got}")
    # Groups load escnn, which data without a symmetry doesn't need.
    from ..models.representations import irrep_blocks, rep_matrices
    from ..models.specs import parse_group, parse_representation

    group = parse_group(symmetry["group"])
    normalizers = []
    parts = (("X", X, "out_rep", how[0]), ("Z", Z, "cond_rep", how[1]))
    for (name, tensor, key, one), real in zip(parts, masks, strict=True):
        rep = parse_representation(group, symmetry[key])
        kinds = one.kinds(name, tensor.shape[-1])
        dim = tensor.shape[-1] if kinds is None else kinds.network_dim
        if rep.size != dim:
            seen = "" if kinds is None else " as networks see them"
            raise ValueError(
                f"expected {key} of dimension {dim}, the channels of {name}{seen}, got {rep.size}"
            )
        blocks = irrep_blocks(rep)
        normalizers.append(one.normalizer(name, tensor, blocks, rep_matrices(rep), real=real))
    return normalizers[0], normalizers[1]
