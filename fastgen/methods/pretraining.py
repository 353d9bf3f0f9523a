"""Flow matching: the stage that trains a teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._core.calls import call_intact
from .._core.carried import bare, carried_like
from .._core.conditions import cond_to, map_tensors, take_rows
from .._core.masks import real_only, token_mask
from .._core.prefixes import open_share, with_prefix
from .._core.tensors import expand_like
from ..config.training import TeacherTrainConfig
from ..flow_matching import add_noise, sample_timesteps
from ..losses import dsm_loss
from ..networks import Cond, Network
from ..teachers.prefixed import PrefixedNetwork
from ..training.draws import Draws
from ..training.stage import Stage, one_update
from ..training.trained_network import TrainedNetwork

__all__ = ["FlowMatchingTraining", "flow_matching_loss"]


def flow_matching_loss(
    network: Network, x0: Tensor, eps: Tensor, t: Tensor, cond: Cond = None
) -> Tensor:
    """Mean square of v(x_t, t, cond) - (eps - x0), at x_t = (1 - t) x0 + t eps; of each sample over
    its real tokens, where the condition carries masks, and over those that it does not give.

    Args:
        network: called `network(x_t, t, cond)`, predicts the flow.
        x0, eps: data and noise (B, ...).      t: RF times (B,).

    References:
        Lipman et al., Flow Matching for Generative Modeling, 2023, arXiv:2210.02747.
    """
    pred = call_intact(network, real_only(add_noise(x0, eps, t), cond), t, cond)
    share = open_share(cond)
    if share is None:
        return dsm_loss("flow", pred, x0=x0, eps=eps, t=t, mask=token_mask(cond))
    # At given tokens the flow is known, but for the rounding of a division by a small t.
    pred = torch.where(cond["given"][..., None], (eps - x0).to(pred.dtype), pred)
    return dsm_loss("flow", pred, x0=x0, eps=eps, t=t, weight=1.0 / share, mask=token_mask(cond))


class FlowMatchingTraining(Stage):
    """Flow matching on data; the formula stands at `flow_matching_loss`. Of each sample the first k
    tokens are given, k uniform in 0..`prefix_tokens`, and below its real tokens where some are
    padding."""

    name = "flow_matching"

    def __init__(
        self,
        network: TrainedNetwork,
        x0: Tensor,
        cond: Any,
        cfg: TeacherTrainConfig,
        draws: Draws,
        *,
        prefix_tokens: int = 0,
    ) -> None:
        self.network = network
        self.x0 = x0
        self.cond = cond
        self.cfg = cfg
        self.draws = draws
        self.updates = cfg.steps
        self.prefix_tokens = prefix_tokens

    def update(self, step: int) -> dict[str, Tensor | float]:
        with self.clock.phase("data"):
            x0, eps, t, cond = self._batch(step)
        with self.clock.phase("network"):
            return one_update(self.network, step, self._losses, self.draws, x0, eps, t, cond)

    def _losses(self, x0: Tensor, eps: Tensor, t: Tensor, cond: Any) -> dict[str, Tensor]:
        network = self.network.network
        if self.prefix_tokens:
            network = PrefixedNetwork(network)
        return {"loss": flow_matching_loss(network, x0, eps, t, cond)}

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Any]:
        """x0, noise, times and cond of update `step`."""
        rows = self.draws.rows(step, len(self.x0))
        x0 = cond_to(self.x0[rows], self.draws.device)
        cond = cond_to(take_rows(self.cond, rows), self.draws.device)
        eps = self.draws.normal(step, "eps", tuple(x0.shape[1:]))
        t = self._times(step).to(x0.device)
        if self.cfg.cond_dropout:
            kept = self.draws.uniform(step, "cond") >= self.cfg.cond_dropout
            Z = map_tensors(lambda value: value * expand_like(kept.to(value), value), bare(cond))
            cond = carried_like(Z, cond)
        if self.prefix_tokens:
            lengths = self.draws.prefix_lengths(
                step, "prefix", self.prefix_tokens, token_mask(cond)
            )
            cond = with_prefix(cond, x0, lengths)
        return x0, eps, t, cond

    def _times(self, step: int) -> Tensor:
        draws = self.draws
        t = sample_timesteps(
            draws.batch_size,
            self.cfg.t,
            device=torch.device("cpu"),
            generator=draws.generator(step, "t"),
        )
        return t[draws.slice]

    def batch_rows(self, step: int, part: str) -> Tensor:
        return self.draws.batch_rows(step, len(self.x0))

    def trained(self) -> dict[str, TrainedNetwork]:
        return {"network": self.network}

    def averaged(self) -> nn.Module:
        return self.network.averaged()
