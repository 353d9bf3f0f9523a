"""A network with its optimiser, its learning-rate law and its average: what an update needs and a checkpoint holds."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .checkpoint import add_prefix, check_parts, flatten_optimizer, unflatten_optimizer, with_prefix
from .config import EMAConfig, OptimizerConfig
from .ema import ExponentialMovingAverage

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["TrainedNetwork"]


class TrainedNetwork:
    """A network with its optimiser, its learning-rate law and, if asked for, its EMA.

    `total` updates make one cosine. An update whose loss or gradient is not finite is skipped on all processes: it
    leaves weights, optimiser and average as they were.

    Attributes:
        skipped: updates skipped in a row.      skipped_in_all: since the beginning.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerConfig,
        total: int,
        accelerator: Accelerator,
        *,
        ema: EMAConfig | None = None,
    ) -> None:
        self.accelerator, self.cfg, self.total = accelerator, optimizer, total
        self.bare = network.to(accelerator.device)
        groups = getattr(network, "get_optim_groups", None)
        parameters = groups(optimizer.weight_decay) if groups is not None else network.parameters()
        adam = torch.optim.AdamW(
            parameters, lr=optimizer.lr, betas=optimizer.betas, weight_decay=optimizer.weight_decay, fused=True
        )
        self.network = accelerator.prepare(self.bare)
        self.optimizer = accelerator.prepare(adam)
        self.ema = None if ema is None else ExponentialMovingAverage(self.bare, ema)
        self.skipped, self.skipped_in_all = 0, 0

    def update(self, loss: Tensor, step: int) -> dict[str, float]:
        """One optimiser step on `loss`; returns the gradient norm and the learning rate."""
        lr = self.cfg.lr_at(step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.accelerator.backward(_told(loss))
        norm_tensor: Any = self.accelerator.clip_grad_norm_(self.bare.parameters(), self.cfg.clip_grad_norm)
        norm = float(norm_tensor)
        # The norm is the same on all processes, a loss is each one's own: all must skip, or none.
        if math.isfinite(norm):
            self.skipped = 0
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update(self.bare, iteration=step + 1)
        else:
            self.skipped, self.skipped_in_all = self.skipped + 1, self.skipped_in_all + 1
        self.optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": norm, "lr": lr}

    def averaged(self) -> nn.Module:
        """A copy with the EMA weights (the weights themselves without an EMA), in eval mode."""
        network = copy.deepcopy(self.bare)
        if self.ema is not None:
            self.ema.copy_to(network)
        return network.eval()

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resume needs."""
        state = add_prefix("weights", self.bare.state_dict()) | flatten_optimizer(self.optimizer, "optimizer")
        state["skipped"] = torch.tensor([self.skipped, self.skipped_in_all])
        if self.ema is not None:
            state |= add_prefix("ema", self.ema.state_dict())
        return state

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`tensors`.

        Raises:
            ValueError: a part is missing, unknown, or of another shape or dtype; it is named, and nothing is loaded but
                what comes before it.
        """
        expected = {name: value for name, value in self.tensors().items() if not name.startswith("optimizer.")}
        found = {name: value for name, value in tensors.items() if not name.startswith("optimizer.")}
        check_parts(found, expected, "a network")
        self.bare.load_state_dict(with_prefix(tensors, "weights"))
        unflatten_optimizer(self.optimizer, "optimizer", tensors, what="an optimiser")
        if self.ema is not None:
            self.ema.load_state_dict(with_prefix(tensors, "ema"))
        self.skipped, self.skipped_in_all = tensors["skipped"].tolist()


def _told(loss: Tensor) -> Tensor:
    """`loss`; if it is no number, its gradient is none either, which all processes see, unlike each other's loss."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan).to(loss.dtype)
