"""Checks of arguments: shapes, choices, counts and times. A refusal says what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.jit._trace import is_tracing

__all__ = [
    "PRED_TYPES",
    "TIME_SLACK",
    "at_hand",
    "check_choice",
    "check_count",
    "check_pred_type",
    "check_shape",
    "check_time",
    "is_count",
    "plain_int",
]

# Times that were computed rather than typed may lie a few float32 roundings outside [0, 1].
TIME_SLACK = 1e-6

PRED_TYPES = ("flow", "x0", "eps")


def at_hand(x: Tensor) -> bool:
    """Whether the host can read the numbers of `x` without waiting. For those on a GPU it would
    wait until all work before is done; while a network is compiled, exported or traced there are
    none yet, or those of an example that must not decide anything."""
    tracing = torch.compiler.is_compiling() or is_tracing()
    return x.device.type == "cpu" and not tracing


def check_shape(name: str, x: Tensor, expected: Sequence[int | str]) -> None:
    """Refuse `x` unless its shape fits `expected`.

    Args:
        name: the argument's name, as the caller spells it.
        x: tensor of any shape.
        expected: one entry per axis. An int is the size required, `"B"` names a free axis, and
            `"T_z <= 2"` one of at least 1 and at most that size.

    Raises:
        ValueError: such as `expected Z of shape (B, T_z <= 2, 2), got (8, 3, 2)`.
    """
    if isinstance(expected, torch.Size) and isinstance(x, Tensor) and x.shape == expected:
        return
    fits = isinstance(x, Tensor) and x.ndim == len(expected)
    if fits:
        for size, want in zip(x.shape, expected, strict=True):
            if isinstance(want, str):
                _, bounded, bound = want.partition("<=")
                fits = fits and (not bounded or 1 <= size <= int(bound))
            else:
                fits = fits and size == want
    if not fits:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        comma = "," if len(expected) == 1 else ""
        wanted = ", ".join(map(str, expected)) + comma
        raise ValueError(f"expected {name} of shape ({wanted}), got {got}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse `value` unless it is one of `choices`.

    Raises:
        ValueError: such as `unknown method 'rk9', expected one of: euler, heun`.
    """
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}, expected one of: {', '.join(choices)}")


def check_pred_type(pred_type: str, name: str = "pred_type") -> None:
    """Refuse a `pred_type` that is not one of `PRED_TYPES`.

    Raises:
        ValueError: for "v", a letter of two quantities, the message gives the spelling of each.
    """
    if pred_type == "v":
        raise ValueError(
            f"unknown {name} 'v': say 'flow' for eps - x0; for networks trained on v = alpha eps "
            "- sigma x0 wrap the network with as_rectified_flow(prediction='v')"
        )
    check_choice(name, pred_type, PRED_TYPES)


def is_count(value: object, least: int = 1) -> TypeGuard[int]:
    """Whether `value` is a whole number of at least `least`: an int, and not True or False."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def plain_int(value: Any) -> Any:
    """A whole number of another library, such as NumPy's, as Python's; all else as it is."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def check_count(name: str, value: object, least: int = 1) -> int:
    """`value` as the count it is.

    Raises:
        ValueError: unless `is_count`; such as `expected steps to be an int >= 1, got 0`.
    """
    if not is_count(value, least):
        raise ValueError(f"expected {name} to be an int >= {least}, got {value!r}")
    return value


def check_time(t: float | Tensor, name: str = "t") -> None:
    """Refuse a time that is not a float or a float32/float64 tensor, or that lies outside [0, 1].

    Floats and tensors in CPU memory are range-checked. Tensors on an accelerator are not: reading
    their extremes would make the host wait for the device at every formula. Nor are those of a
    network that is being compiled, exported or traced.

    Raises:
        TypeError: for bfloat16, float16 and integer tensors, and for anything that is not a number.
        ValueError: for times outside [0, 1] (up to `TIME_SLACK`) and for NaN.
    """
    if isinstance(t, Tensor):
        if t.dtype not in (torch.float32, torch.float64):
            reason = ""
            if t.is_floating_point():
                reason = "; bfloat16 rounds 0.999 to 1.0, so times are never kept in it"
            raise TypeError(
                f"expected {name} to be a float or a float32/float64 tensor, got {t.dtype}{reason}"
            )
        if t.numel() == 0 or not at_hand(t):
            return
        low, high = (float(bound) for bound in torch.aminmax(t.detach()))
    elif isinstance(t, int | float) and not isinstance(t, bool):
        low = float(t)
        high = low
    else:
        raise TypeError(
            f"expected {name} to be a float or a float32/float64 tensor, got {type(t).__name__}"
        )
    if not (low >= -TIME_SLACK and high <= 1.0 + TIME_SLACK):
        shown = f"{low:g}" if low == high else f"values from {low:g} to {high:g}"
        raise ValueError(
            f"expected {name} in [0, 1], got {shown}; divide times counted to 1000 by 1000"
        )
