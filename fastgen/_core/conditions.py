"""Conditions of a network: a Tensor, a mapping or tuple of Tensors, or None, taken as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "array_of",
    "cond_text",
    "cond_to",
    "map_tensors",
    "named_tensors",
    "take_rows",
    "tensors_in",
    "tensors_of_arrays",
]


def map_tensors(function: Callable[[Tensor], Any], cond: Any) -> Any:
    """`cond` with `function` applied to each Tensor in it; a list becomes a tuple.

    Raises:
        TypeError: for anything in it but Tensors, tuples, lists, mappings and None.
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
    """The Tensors of a condition, in their order.

    Raises:
        ValueError: for a scalar Tensor, which has no rows.
        TypeError: as `map_tensors`.
    """
    found: list[Tensor] = []

    def note(value: Tensor) -> Tensor:
        if value.ndim == 0:
            raise ValueError("expected tensors with B rows in cond, got a scalar Tensor")
        found.append(value)
        return value

    map_tensors(note, cond)
    return found


def named_tensors(cond: Any, name: str = "Z") -> dict[str, Tensor]:
    """The Tensors of a condition by name, in their order: "Z" for a Tensor, "Z.goal" for the member
    `goal` of a mapping, "Z.0" for the first of a tuple. None has none.

    Args:
        name: of the condition itself.

    Raises:
        TypeError: as `map_tensors`.
    """
    if isinstance(cond, Mapping):
        members = list(cond.items())
    elif isinstance(cond, tuple | list):
        members = list(enumerate(cond))
    else:
        found: dict[str, Tensor] = {}
        map_tensors(lambda value: found.update({name: value}), cond)
        return found
    named: dict[str, Tensor] = {}
    for key, value in members:
        named |= named_tensors(value, f"{name}.{key}")
    return named


def tensors_of_arrays(cond: Any) -> Any:
    """`cond` with a copy of each NumPy array in it as a Tensor; all else is left as it is."""
    if isinstance(cond, Mapping):
        return {key: tensors_of_arrays(value) for key, value in cond.items()}
    if type(cond) in (tuple, list):
        return type(cond)(tensors_of_arrays(value) for value in cond)
    # NumPy may be missing; its arrays tell themselves.
    return torch.tensor(cond) if hasattr(cond, "__array_interface__") else cond


def array_of(x: Tensor) -> Any:
    """x as a NumPy array; in float32 where it is in bfloat16, which NumPy hasn't."""
    x = x.detach().cpu()
    return x.float().numpy() if x.dtype == torch.bfloat16 else x.numpy()


def take_rows(cond: Any, rows: Tensor | slice) -> Any:
    """The rows of every Tensor in a condition."""
    return map_tensors(lambda value: value[rows], cond)


def cond_to(cond: Any, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Any:
    """A condition on `device`, its floating tensors in `dtype`; labels stay integers.

    Args:
        device, dtype: None: as they are.

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
    """The shapes of a condition, for people: "(8, 1, 2)", "integers (8,)",
    "{a: (8, 3), b: integers (8,)}", "None".

    Args:
        rows: written in place of the number of rows.
    """
    if isinstance(cond, Tensor):
        kind = "" if cond.is_floating_point() else "integers "
        sizes = list(map(str, cond.shape))
        if rows is not None:
            sizes[:1] = [rows]
        comma = "," if cond.ndim == 1 else ""
        return f"{kind}({', '.join(sizes)}{comma})"
    if isinstance(cond, Mapping):
        parts = [f"{key}: {cond_text(value, rows)}" for key, value in cond.items()]
        return "{" + ", ".join(parts) + "}"
    if isinstance(cond, tuple | list):
        parts = [cond_text(value, rows) for value in cond]
        return "(" + ", ".join(parts) + ")"
    return str(cond)
