"""Arguments of the models: checks whose errors name the argument, and times brought to a batch."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import torch
from torch import Tensor

from .._core.checks import at_hand
from .._core.conditions import cond_text

__all__ = [
    "batch_of_times",
    "check_mask",
    "check_non_negative",
    "check_positive",
    "check_probability",
    "check_seen",
    "check_sequence",
    "flat_condition",
]


def flat_condition(cond: Any, dim: int) -> Tensor:
    """A condition (B, ...) as (B, dim), for a network that is conditioned on one vector.

    Raises:
        ValueError: another number, or a condition that isn't one Tensor, as where samples are
            padded.
    """
    if not isinstance(cond, Tensor):
        raise ValueError(
            "expected a Tensor as the condition of a network that sees all waypoints and can't "
            f"leave padding out, got {cond_text(cond)}; give trajectories and conditions of one "
            "length, without masks"
        )
    flat = cond.flatten(1)
    if flat.shape[1] != dim:
        raise ValueError(
            f"expected {dim} numbers of Z a row, got {flat.shape[1]} {tuple(cond.shape[1:])}; "
            "observations are those it was trained with, in their order, with data.obs_horizon rows"
        )
    return flat


def check_probability(name: str, value: object) -> None:
    """Raise ValueError unless `value` is a number in [0, 1)."""
    if not _is_number(value) or not 0.0 <= value < 1.0:
        raise ValueError(f"expected {name} to be a probability in [0, 1), got {value!r}")


def check_positive(name: str, value: object) -> None:
    """Raise ValueError unless `value` is a finite number > 0."""
    if not _is_number(value) or not 0.0 < value < math.inf:
        raise ValueError(f"expected {name} to be a finite number > 0, got {value!r}")


def check_non_negative(name: str, value: object) -> None:
    """Raise ValueError unless `value` is a number >= 0."""
    if not _is_number(value) or not value >= 0.0:
        raise ValueError(f"expected {name} to be a number >= 0, got {value!r}")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_sequence(
    name: str, value: object, *, horizon: int, dim: int, batch: int | None = None
) -> None:
    """Check that `value` is a floating tensor of shape (batch, T, dim) with 1 <= T <= horizon.

    Args:
        name: of the argument; T is called T_<name> in the message.
        value: what was given.
        horizon: the largest T.
        dim: channels of a token.
        batch: B; None takes any.

    Raises:
        TypeError: not a tensor, or one of integers.
        ValueError: another shape.
    """
    size = "B"
    if isinstance(value, Tensor) and value.ndim == 3 and batch not in (None, value.shape[0]):
        size = f"B = {batch}"
    expected = f"expected {name} of shape ({size}, T_{name.lower()} <= {horizon}, {dim})"
    if not isinstance(value, Tensor):
        raise TypeError(f"{expected}, got {type(value).__name__}")
    fits = value.ndim == 3 and 1 <= value.shape[1] <= horizon and value.shape[2] == dim
    if not fits or (batch is not None and value.shape[0] != batch):
        raise ValueError(f"{expected}, got {tuple(value.shape)}")
    if not value.is_floating_point():
        raise TypeError(f"expected {name} to be a floating point tensor, got {value.dtype}")


def check_mask(mask: object, shape: tuple[int, int] | None = None) -> None:
    """Refuse a mask that isn't bool or has another shape. Attention adds a mask of any other dtype
    to its scores instead of hiding tokens.

    Args:
        mask: True = real token.
        shape: (B, T); the mask may also be (1, T), the same for each sample. None takes any.

    Raises:
        TypeError: not a tensor, or one of another dtype than bool.
        ValueError: another shape.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"expected mask to be a bool Tensor, True = real token, got {got}")
    if shape is not None and tuple(mask.shape) not in (shape, (1, shape[1])):
        raise ValueError(
            f"expected mask of shape (B, T) = {shape}, True = real token, got {tuple(mask.shape)}"
        )


def check_seen(mask: Tensor) -> None:
    """Refuse a mask (B, T) with a row that hides all of its tokens: most often it is the wrong way
    round, as for `torch.nn.MultiheadAttention`, where True is padding.

    Rows are looked at in CPU memory only: on an accelerator the host would have to wait.

    Raises:
        ValueError: names the first such row.
    """
    if not at_hand(mask):
        return
    seen = mask.any(1)
    if not bool(seen.all()):
        raise ValueError(
            "expected mask to have a real token (True) in each row, got none in row "
            f"{int(seen.int().argmin())}; True marks what is real, not padding"
        )


def batch_of_times(
    opt_step: Tensor | float | int,
    batch: int,
    *,
    device: torch.device,
    dtype: torch.dtype,
    tokens: int | None = None,
) -> Tensor:
    """Bring a time to shape (batch,), or leave a time for each token in shape (batch, tokens).

    Args:
        opt_step: Python int or float, 0-d tensor, or tensor of shape (batch,) or (batch, tokens).
        batch: B.
        device: where the result lives.
        dtype: of the result, float32 or float64. Half precision would round 0.999 to 1.
        tokens: T, where each token may have a time of its own.

    Raises:
        TypeError: not a number and not a real tensor.
        ValueError: a tensor of another shape.
    """
    if not isinstance(opt_step, Tensor):
        if not _is_number(opt_step):
            raise TypeError(
                f"expected opt_step to be a number or a tensor of shape ({batch},), got "
                f"{type(opt_step).__name__}"
            )
        return torch.full((batch,), float(opt_step), device=device, dtype=dtype)

    if opt_step.dtype == torch.bool or opt_step.is_complex():
        raise TypeError(f"expected opt_step to be an int or floating tensor, got {opt_step.dtype}")
    if opt_step.ndim == 0:
        return opt_step.to(device=device, dtype=dtype).expand(batch)
    if opt_step.shape != (batch,) and (tokens is None or opt_step.shape != (batch, tokens)):
        each = "" if tokens is None else f"; each token's own time has ({batch}, {tokens})"
        raise ValueError(
            f"expected opt_step to be a scalar or of shape ({batch},), got "
            f"{tuple(opt_step.shape)}{each}"
        )
    return opt_step.to(device=device, dtype=dtype)
