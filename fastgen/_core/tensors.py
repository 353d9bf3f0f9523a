"""Helpers under every formula: dtypes, the float64 border, times and masks that broadcast."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from .checks import at_hand, check_time

__all__ = [
    "EPSILON",
    "at_least_float32",
    "expand_like",
    "expand_mask",
    "in_float64",
    "masked_mean",
    "mean_of_samples",
    "mean_square_of_real",
    "mean_square_of_samples",
    "rows_below",
    "rows_of_samples",
    "time_dtype",
    "wide_dtype",
    "without_gradients",
]

# Denominators that vanish at an end of [0, 1] are clamped at this.
EPSILON = 1e-6

P = ParamSpec("P")
R = TypeVar("R")


def wide_dtype(device: torch.device) -> torch.dtype:
    """The dtype formulas are computed in: float64, or float32 on `mps`, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def time_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of times that travel beside data of `dtype`: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def expand_like(t: float | Tensor, x: Tensor) -> Tensor:
    """Give `t` trailing axes of size 1, so that it broadcasts over the batch of `x`.

    Args:
        t: Python float, 0-d or one-element tensor, shape (B,), or shape (B, 1, ..., 1).
        x: shape (B, ...).

    Returns:
        `t` with shape (B, 1, ..., 1) and its own dtype; a float becomes a 0-d float64 tensor.

    Raises:
        ValueError: if `t` is neither a scalar nor one time per sample.
    """
    if not isinstance(t, Tensor):
        return x.new_full((), t, dtype=wide_dtype(x.device))
    if t.ndim == 0:
        return t
    if t.numel() == 1:
        return t.reshape((1,) * x.ndim)
    if t.ndim > x.ndim or t.shape[0] != x.shape[0] or t.numel() != t.shape[0]:
        raise ValueError(
            f"expected t of shape ({x.shape[0]},) for x of shape {tuple(x.shape)}, got "
            f"{tuple(t.shape)}"
        )
    return t.reshape(-1, *(1,) * (x.ndim - 1))


def expand_mask(mask: Tensor, x: Tensor) -> Tensor:
    """A padding mask as one flag for each number of `x`.

    Args:
        mask: bool, True = real: (B, T) or more of the leading axes of `x`, each of its size or 1.
        x: shape (B, T, ...).

    Returns:
        bool, the shape of `x`.

    Raises:
        ValueError: for another dtype or shape, or a row without anything real. Rows are looked at
            in CPU memory only: on an accelerator the host would have to wait. There a mean over
            nothing is NaN.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = getattr(mask, "dtype", type(mask).__name__)
        raise ValueError(f"expected mask to be a bool Tensor, got {got}")
    fits = 2 <= mask.ndim <= x.ndim
    if fits:
        sizes = zip(mask.shape, x.shape[: mask.ndim], strict=True)
        fits = all(size in (1, want) for size, want in sizes)
    if not fits:
        raise ValueError(
            f"expected mask of shape {tuple(x.shape[:2])}, or one that broadcasts to "
            f"{tuple(x.shape)} from its leading axes, got {tuple(mask.shape)}"
        )
    if at_hand(mask):
        real = mask.flatten(1).any(1)
        if not real.all():
            raise ValueError(
                "expected mask to have a real token in each row, got none in row "
                f"{int(real.int().argmin())}"
            )
    return mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim)).expand(x.shape)


def masked_mean(x: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """Mean of `x` over the axis `dim`, of the entries where `mask` is True.

    What is masked out counts as nothing, also if it is not finite, and gets no gradient.

    Args:
        x: any shape.
        mask: bool, the shape of `x`; None: all entries count.
        dim: the axis that goes.
    """
    if mask is None:
        return x.mean(dim)
    return x.masked_fill(~mask, 0.0).sum(dim) / mask.sum(dim)


def mean_square_of_real(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean square of x (B, T, ...), of all its real tokens together; `mask` as `expand_mask` takes
    it, None: all are."""
    if mask is None:
        return x.square().mean()
    real = expand_mask(mask, x)
    return masked_mean(x.square().flatten(), real.flatten(), 0)


def rows_of_samples(x: Tensor) -> Tensor:
    """(B, ...) -> (B, n), also for samples that are one number each, (B,)."""
    return x.reshape(x.shape[0], -1)


def mean_of_samples(x: Tensor, mask: Tensor | None) -> Tensor:
    """Per-sample mean (B,) of x (B, ...), of the entries where `mask`, shaped like x, is True."""
    return masked_mean(rows_of_samples(x), None if mask is None else rows_of_samples(mask), 1)


def mean_square_of_samples(x: Tensor, mask: Tensor | None) -> Tensor:
    """As `mean_of_samples`, of the squares. Padding is set to 0 before it is squared, so that its
    gradient is 0 whatever it holds."""
    if mask is not None:
        x = x.masked_fill(~mask, 0.0)
    return mean_of_samples(x.square(), mask)


def in_float64(*, like: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: compute in float64, answer in the dtype of the argument named `like`.

    Floating tensors among the arguments are cast to float64; gradients pass through the casts, and
    Python floats stay exact. A parameter called `t` is a time and goes through `check_time` before
    it is cast: a bfloat16 time has already lost what float64 is for. If the `like` argument is a
    Python float, the result keeps the dtype it was computed in.

    Raises:
        TypeError: (the decorated function) the `like` argument is neither a floating point tensor
            nor a float.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        names = tuple(signature.parameters)

        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            given: dict[str, Any] = {**dict(zip(names, args, strict=False)), **kwargs}
            if like not in given or len(given) < len(args) + len(kwargs):
                signature.bind(*args, **kwargs)  # a TypeError that says what is missing or too much
            reference = given[like]
            if isinstance(reference, Tensor):
                if not reference.is_floating_point():
                    raise TypeError(
                        f"expected {like} to be a floating point tensor, got {reference.dtype}"
                    )
            elif not isinstance(reference, int | float):
                raise TypeError(
                    f"expected {like} to be a floating point tensor, got {type(reference).__name__}"
                )
            if "t" in given:
                check_time(given["t"])
            for name, value in given.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    given[name] = value.to(wide_dtype(value.device))
            result: Any = function(**given)  # pyright: ignore[reportCallIssue]
            if not isinstance(reference, Tensor):
                return result
            if isinstance(result, tuple):
                return tuple(part.to(reference.dtype) for part in result)  # pyright: ignore[reportReturnType]
            return result.to(reference.dtype)

        return wrapped

    return decorate


def without_gradients(function: Callable[P, R]) -> Callable[P, R]:
    """As `torch.no_grad()` does to a function, but a call inside of another costs nothing more."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        with torch.no_grad():
            return function(*args, **kwargs)

    return wrapped


def at_least_float32(x: Tensor) -> Tensor:
    """`x` itself, or in float32 if its dtype has fewer digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rows_below(table: Tensor, level: Tensor) -> Tensor:
    """How many rows of an increasing table (N,) lie below each level (B,)."""
    if torch.compiler.is_compiling():
        # ONNX has no search.
        return (table[:, None] < level).sum(0)
    return torch.searchsorted(table, level)
