"""The answer of a teacher to two samples: whether it can be called with the data at all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._core.conditions import cond_text, cond_to, take_rows
from .._core.messages import brief
from .._core.modules import evaluating
from ..networks import Cond, network_dtype

__all__ = ["answer_of"]

# What a network raises that is called with data it is not made for.
_MISFITS = (RuntimeError, LookupError, AttributeError, AssertionError, TypeError, ValueError)


@torch.no_grad()
def answer_of(network: nn.Module, x0: Tensor, cond: Cond, time: float = 0.5) -> Tensor:
    """What the network predicts for the first two samples at `time`, shape (2, ...).

    Args:
        network: called `network(x_t, t, cond)`.
        x0, cond: data (N, ...) and its conditions, N rows each or None.
        time: RF time, or beyond 1 for a network that is to be called so.

    Raises:
        ValueError: a network without parameters, one that cannot be called so, or an answer that is
            not finite or not of the samples' shape.
    """
    parameter = next(network.parameters(), None)
    if parameter is None:
        raise ValueError(
            f"expected a teacher with parameters to copy and train, got {type(network).__name__} "
            "without"
        )
    dtype = network_dtype(network, parameter.dtype)
    x_t = cond_to(x0[:2], parameter.device, dtype)
    z = cond_to(take_rows(cond, slice(2)), parameter.device, dtype)
    t = torch.full((len(x_t),), time, device=x_t.device)
    given = f"x_t {tuple(x_t.shape)}, t {tuple(t.shape)}, cond {cond_text(z)}"
    try:
        with torch.no_grad(), evaluating(network):
            pred = network(x_t, t, z)
    except _MISFITS as error:
        raise ValueError(
            f"expected a teacher that can be called with {given}, got: {brief(error)}"
        ) from error
    if not isinstance(pred, Tensor) or pred.shape != x_t.shape:
        got = tuple(pred.shape) if isinstance(pred, Tensor) else type(pred).__name__
        raise ValueError(f"expected the teacher to answer {given} with the shape of x_t, got {got}")
    if not bool(torch.isfinite(pred).all()):
        raise ValueError(
            f"expected finite numbers from the teacher, got NaN or infinity at t = {time} on two "
            "samples"
        )
    return pred
