"""What `Student.sample` is given, as Tensors with rows; and its answer in the form that was asked.

given                              answered
Tensors, (B, ...)                  Tensors (B, *horizon)
one scene without the axis B       one sample without it
NumPy arrays                       NumPy arrays
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from .._core.carried import bare
from .._core.conditions import array_of, map_tensors, tensors_of_arrays

if TYPE_CHECKING:
    from .student import Student

__all__ = ["Arguments", "arguments_of"]


class Arguments(NamedTuple):
    """The arguments of one call, arrays as Tensors and one scene as a batch of one.

    Attributes:
        cond, mask, cond_mask, noise, prefix: as `Student.sample` takes them, with rows.
        is_one: whether they came without the axis of rows.
        in_numpy: whether samples are wanted as arrays.
    """

    cond: Any
    mask: Any = None
    cond_mask: Any = None
    noise: Any = None
    prefix: Any = None
    is_one: bool = False
    in_numpy: bool = False

    def answer(self, x: Tensor) -> Any:
        """Samples x (B, ...) in the form of the arguments."""
        if self.is_one:
            x = x[0]
        return array_of(x) if self.in_numpy else x


def arguments_of(
    student: Student,
    cond: Any,
    *,
    mask: Any,
    cond_mask: Any,
    noise: Any,
    prefix: Any,
    num_samples: Any,
) -> Arguments:
    """The arguments of `Student.sample`; what is wrong with them is found later, but for rows that
    some have and others don't.

    Raises:
        ValueError: Z without rows beside noise, a prefix or a mask with them.
    """
    beside = (mask, cond_mask, noise, prefix)
    in_numpy = _are_arrays(noise if cond is None else cond)
    if in_numpy or any(map(_are_arrays, beside)):
        cond = tensors_of_arrays(cond)
        beside = tensors_of_arrays(beside)
    if not _is_one(student, cond):
        return Arguments(cond, *beside, in_numpy=in_numpy)
    samples = 0 if num_samples is None else 1
    axes = {
        "mask": 1,
        "cond_mask": 1,
        "noise": len(student.horizon) + samples,
        "prefix": 2,
    }
    found = []
    for (name, wanted), value in zip(axes.items(), beside, strict=True):
        if isinstance(value, Tensor):
            _check_axes(name, value, wanted)
            value = value[None]
        found.append(value)
    return Arguments(map_tensors(lambda x: x[None], cond), *found, is_one=True, in_numpy=in_numpy)


def _is_one(student: Student, cond: Any) -> bool:
    """Whether a condition is Z of one scene without the axis of rows, or the raw observations that
    an encoder makes Z of."""
    if student.encoder is not None:
        return student.encoder.is_one(cond)
    Z = bare(cond) if isinstance(cond, Mapping) else cond
    if student.cond_horizon is None or not isinstance(Z, Tensor) or Z.ndim != 2:
        return False
    # Of another size it is refused as what it most likely is: rows without an axis of time.
    most, d_z = student.cond_horizon
    return 1 <= Z.shape[0] <= most and Z.shape[1] == d_z


def _check_axes(name: str, value: Tensor, wanted: int) -> None:
    if value.ndim != wanted:
        raise ValueError(
            f"expected {name} without the axis of rows, as cond is, got {tuple(value.shape)}; give "
            "all of them with rows, or none"
        )


def _are_arrays(value: Any) -> bool:
    """Whether a condition is made of NumPy arrays. NumPy may be missing; its arrays tell
    themselves."""
    if value is None or isinstance(value, Tensor):
        return False
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return any(map(_are_arrays, value))
    return hasattr(value, "__array_interface__")
