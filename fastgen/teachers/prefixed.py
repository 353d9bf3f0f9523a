"""Prefixed network: one that goes on from tokens that are given.

Its condition may carry a prefix (:mod:`fastgen._core.prefixes`). The coat says for the given tokens
what is known of them, whatever the network says:

    x0 = prefix,    so that the flow there is (x_t - prefix) / t,

and a sampler of any kind carries them in a straight line from their noise to the prefix. (At t = 0
itself x_t doesn't tell the flow, so solvers that ask there, `heun` and `rk4`, end beside it.) What
the network is told of them:

    times         the prefix itself, at t = 0 of their own: t has the shape (B, T)
    replacement   x_t as it is, (1 - t) prefix + t eps on that line, at the time of all others: for
                  a teacher that was never told given tokens (Song et al., Lugmayr et al.)

References:
    Black et al., Real-Time Execution of Action Chunking Flow Policies, 2025, arXiv:2506.07339.
    Chen et al., Diffusion Forcing, 2024, arXiv:2407.01392 (a time for each token).
    Song et al., Score-Based Generative Modeling through SDEs, 2021, arXiv:2011.13456, and Lugmayr
    et al., RePaint, 2022, arXiv:2201.09865 (replacement).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._core.calls import call_intact
from .._core.checks import check_choice
from .._core.prefixes import prefix_of
from ..flow_matching import convert_prediction
from ..networks import WAYS_TO_X0, Cond, NetworkWrapper

__all__ = ["PREFIX_WAYS", "PrefixedNetwork"]

PREFIX_WAYS = ("times", "replacement")


class PrefixedNetwork(NetworkWrapper):
    """A coat around a network of trajectories (B, T, d), called `network(x_t, t, cond)` with the
    condition that is left without the prefix. A condition without one is handed on as it is.

    Args:
        network: predicts `pred_type`; with `way="times"` it takes t of shape (B, T).
        way: what it is told of given tokens, see the head of this module.
        pred_type: "flow", "x0" or "eps".

    Raises:
        ValueError: an unknown way.
    """

    # A way to x0 of the network's own would not know the prefix.
    passes_on = tuple(name for name in NetworkWrapper.passes_on if name not in WAYS_TO_X0)

    def __init__(self, network: nn.Module, way: str = "times", pred_type: str = "flow") -> None:
        super().__init__(network)
        check_choice("way", way, PREFIX_WAYS)
        self.way = way
        self.pred_type = pred_type

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        """The prediction for x_t (B, T, d) at t (B,)."""
        Z, prefix, given = prefix_of(cond)
        if prefix is None or given is None:
            return call_intact(self.network, x_t, t, cond)
        is_given = given[..., None]
        prefix = prefix.to(x_t)
        if self.way == "times":
            seen = torch.where(is_given, prefix, x_t)
            each = t[:, None].expand(given.shape).masked_fill(given, 0.0)
            pred = call_intact(self.network, seen, each, Z)
        else:
            pred = call_intact(self.network, x_t, t, Z)
        known = convert_prediction(prefix, x_t, _own_time(t), "x0", self.pred_type)
        return torch.where(is_given, known.to(pred.dtype), pred)


def _own_time(t: Tensor) -> Tensor:
    """The time in [0, 1] of one beyond it: a fake score that is told its rung r is called at t + r
    (:class:`fastgen.methods.fake_scores.RungConditioned`), t > 0."""
    return t - (t.ceil() - 1.0).clamp(min=0.0)
