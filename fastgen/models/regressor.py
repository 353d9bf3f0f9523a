"""The backbone interface: a network that regresses a trajectory-valued target from a noisy
trajectory, a time and a condition."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .._core.checks import check_count

__all__ = ["GenCondRegressor"]


class GenCondRegressor(nn.Module, ABC):
    r"""Abstract conditional regressor :math:`V_k = f_\theta(X_k, Z, k)`, the backbone of a flow or
    a diffusion for P(X | Z).

    .. math:: f_\theta: \mathcal{X}^{T_x} \times \mathcal{Z}^{T_z} \times \mathbb{R} \to
    \mathcal{Y}^{T_x}

    with X = R^in_dim, Z = R^cond_dim and Y = R^out_dim. For a rectified flow V is the velocity eps
    - x0, k the time t in [0, 1]. The class imposes no symmetry of its own.

    Args:
        in_dim: d_x, channels of an X token.
        out_dim: d_v, channels of an output token.
        cond_dim: d_z, channels of a Z token.

    Raises:
        ValueError: a dimension is not a positive int.
    """

    def __init__(self, in_dim: int, out_dim: int, cond_dim: int) -> None:
        super().__init__()
        for name, value in (("in_dim", in_dim), ("out_dim", out_dim), ("cond_dim", cond_dim)):
            check_positive_int(name, value)
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.cond_dim = cond_dim

    @abstractmethod
    def forward(self, X: Tensor, opt_step: Tensor | float | int, Z: Tensor) -> Tensor:
        """Evaluate the map.

        Args:
            X: noisy sample, shape (B, T_x, d_x).
            opt_step: time k, a scalar or a tensor of shape (B,).
            Z: condition, shape (B, T_z, d_z).

        Returns:
            The regression target, shape (B, T_x, d_v).
        """


def check_positive_int(name: str, value: object, *, minimum: int = 1) -> None:
    """Raise unless ``value`` is an int >= ``minimum``; the message carries the argument's name."""
    check_count(name, value, minimum)


def check_probability(name: str, value: object) -> None:
    """Raise unless ``value`` is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
        raise ValueError(f"expected {name} to be a probability in [0, 1), got {value!r}")


def check_sequence(
    name: str, value: object, *, horizon: int, dim: int, batch: int | None = None
) -> None:
    """Raise unless ``value`` is a floating Tensor of shape (batch, 1 <= T <= horizon, dim)."""
    expected = f"expected {name} of shape (B, T_{name.lower()} <= {horizon}, {dim})"
    if isinstance(value, Tensor) and value.ndim == 3 and batch not in (None, value.shape[0]):
        expected = expected.replace("B", f"B = {batch}", 1)
    if not isinstance(value, Tensor):
        raise TypeError(f"{expected}, got {type(value).__name__}")
    fits = value.ndim == 3 and 1 <= value.shape[1] <= horizon and value.shape[2] == dim
    if not fits or (batch is not None and value.shape[0] != batch):
        raise ValueError(f"{expected}, got {tuple(value.shape)}")
    if not value.is_floating_point():
        raise TypeError(f"expected {name} to be a floating point tensor, got {value.dtype}")


def batch_of_times(
    opt_step: Tensor | float | int, batch: int, *, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Bring a time to shape (batch,) in ``dtype``.

    Args:
        opt_step: Python int or float, 0-d tensor, or tensor of shape (batch,).
        batch: B.
        device: where the result lives.
        dtype: float32 or float64; times are never rounded to half precision, where 0.999 becomes 1.

    Raises:
        TypeError: not a number and not a real tensor.
        ValueError: a tensor of another shape.
    """
    if isinstance(opt_step, Tensor):
        if opt_step.dtype == torch.bool or opt_step.is_complex():
            raise TypeError(
                f"expected opt_step to be an int or floating tensor, got {opt_step.dtype}"
            )
        if opt_step.ndim == 0:
            return opt_step.to(device=device, dtype=dtype).expand(batch)
        if opt_step.shape != (batch,):
            raise ValueError(
                f"expected opt_step to be a scalar or of shape ({batch},), got "
                f"{tuple(opt_step.shape)}"
            )
        return opt_step.to(device=device, dtype=dtype)
    if isinstance(opt_step, bool) or not isinstance(opt_step, (int, float)):
        raise TypeError(
            f"expected opt_step to be a number or a tensor of shape ({batch},), got "
            f"{type(opt_step).__name__}"
        )
    return torch.full((batch,), float(opt_step), device=device, dtype=dtype)
