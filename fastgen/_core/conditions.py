"""Conditions of a network: a Tensor, a mapping or tuple of Tensors, or None, handled as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["cond_text", "cond_to", "map_tensors", "take_rows", "tensors_in"]


def map_tensors(function: Callable[[Tensor], Any], cond: Any) -> Any:
    """`cond` with `function` applied to each Tensor in it: a Tensor, a tuple, list or mapping of
    such, or None.

    Raises:
        TypeError: for anything else in it.
    """
    if cond is None:
        return None
    if isinstance(cond, Tensor):
        return function(cond)
    if isinstance(cond, Mapping):
        return {key: map_tensors(function, value) for key, value in cond.items()}
    if isinstance(cond, tuple | list):
        return tuple(map_tensors(function, value) for value in cond)
    raise TypeError(
        "expected cond as a Tensor, a tuple or mapping of Tensors, or None, got "
        f"{type(cond).__name__}; labels are an integer Tensor (B,)"
    )


def tensors_in(cond: Any) -> list[Tensor]:
    """The Tensors of a condition (see :func:`map_tensors`), in their order.

    Raises:
        ValueError: for a scalar Tensor, which has no rows; TypeError as `map_tensors`.
    """
    found: list[Tensor] = []

    def note(value: Tensor) -> Tensor:
        if value.ndim == 0:
            raise ValueError("expected tensors with B rows in cond, got a scalar Tensor")
        found.append(value)
        return value

    map_tensors(note, cond)
    return found


def take_rows(cond: Any, rows: Tensor | slice) -> Any:
    """The rows of every Tensor in a condition."""
    return map_tensors(lambda value: value[rows], cond)


def cond_to(cond: Any, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Any:
    """A condition on `device`, its floating tensors in `dtype`; None: as they are. Labels keep
    their integer dtype.

    From CPU memory to a GPU it goes by page-locked memory, so that the host need not wait for what
    the GPU is doing.
    """
    to_gpu = device is not None and device.type == "cuda"

    def move(value: Tensor) -> Tensor:
        wanted = dtype if value.is_floating_point() else None
        if to_gpu and value.device.type == "cpu":
            return value.pin_memory().to(device=device, dtype=wanted, non_blocking=True)
        return value.to(device=device, dtype=wanted)

    return map_tensors(move, cond)


def cond_text(cond: Any, rows: str | None = None) -> str:
    """A condition for people: "(8, 1, 2)", "integers (8,)", "{a: (8, 3), b: integers (8,)}",
    "None".

    Args:
        rows: written in place of the number of rows.
    """
    if isinstance(cond, Tensor):
        sizes = ", ".join(map(str, cond.shape if rows is None else (rows, *cond.shape[1:])))
        return f"{'' if cond.is_floating_point() else 'integers '}({sizes}{',' if cond.ndim == 1 else ''})"
    if isinstance(cond, Mapping):
        return (
            "{" + ", ".join(f"{key}: {cond_text(value, rows)}" for key, value in cond.items()) + "}"
        )
    if isinstance(cond, tuple | list):
        return "(" + ", ".join(cond_text(value, rows) for value in cond) + ")"
    return str(cond)
