"""The condition that a student is given: its kind, shape and numbers, as they were in training."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._core.conditions import tensors_in
from .._core.sizes import Sizes, check_sizes, sizes_text
from ..channel_kinds import KindNormalizer
from ..normalizer import Normalizer

if TYPE_CHECKING:
    from .student import Student

__all__ = ["check_numbers", "kind_of", "rows_of", "z_text"]


def rows_of(cond: Any, student: Student) -> int | None:
    """B, the rows of a condition without masks, after what can be checked of it is checked; None
    if it holds no Tensor.

    Raises:
        TypeError: no Tensor, or none of floating-point numbers, where the student takes Z.
        ValueError: another size than the student was trained with, or members of different rows.
    """
    sizes = student.cond_sizes
    if student.cond_horizon is not None:
        most, d_z = student.cond_horizon
        if not (isinstance(cond, Tensor) and cond.is_floating_point()):
            raise TypeError(
                f"expected cond as a floating-point Tensor (B, T_z, d_z), got {kind_of(cond)}; "
                "see torch.as_tensor"
            )
        if cond.ndim != 3 or not 1 <= cond.shape[1] <= most or cond.shape[2] != d_z:
            expected = z_text(student.cond_horizon, sizes)
            raise ValueError(f"expected Z of shape {expected}, got {tuple(cond.shape)}")
        _check_trained(cond, sizes)
        return cond.shape[0]
    if student.z_normalizer is not None and not isinstance(cond, Tensor):
        dim = student.z_normalizer.dim
        raise TypeError(f"expected cond as a Tensor (B, ..., {dim}), got {kind_of(cond)}")
    _check_trained(cond, sizes)
    return _rows_in(cond)


def z_text(horizon: tuple[int, int], sizes: Sizes | None) -> str:
    """The shape of a condition with a `cond_horizon`: as it was trained, or up to the network's
    horizon."""
    if sizes is not None:
        return sizes_text(sizes["Z"])
    return f"(B, T_z <= {horizon[0]}, {horizon[1]})"


def check_numbers(
    cond: Any, mask: Tensor | None, normalizer: Normalizer | None, stacklevel: int
) -> None:
    """Refuse conditions Z with real numbers that are no rotation, and warn of those that need
    float64, in a dtype with fewer digits."""
    if normalizer is None:
        return
    if isinstance(normalizer, KindNormalizer):
        normalizer.kinds.check("Z", cond if mask is None else cond[mask])
    if normalizer.needs_float64 and cond.dtype != torch.float64:
        warnings.warn(
            f"expected Z in float64, got {cond.dtype}, which is too coarse for numbers so far from "
            "zero: what it rounds off may be all that the student goes by; make Z in float64 from "
            "the beginning",
            stacklevel=stacklevel + 1,
        )


def kind_of(value: Any) -> str:
    """What a value is, for messages."""
    return f"a Tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _rows_in(cond: Any) -> int | None:
    """The number of rows that all Tensors of a condition have; None where there is none."""
    rows = {value.shape[0] for value in tensors_in(cond)}
    if len(rows) > 1:
        raise ValueError(
            f"expected tensors with the same number of rows in cond, got {sorted(rows)}"
        )
    return next(iter(rows), None)


def _check_trained(cond: Any, sizes: Sizes | None) -> None:
    """ValueError for a condition of another size than a student was trained with."""
    if sizes is not None:
        check_sizes(cond, "Z", sizes, "the student")
