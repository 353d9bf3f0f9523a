"""A network with its optimiser, its learning-rate law and its average: what an update needs and a checkpoint holds."""

from __future__ import annotations

import copy
import importlib.util
import math
import os
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .checkpoint import add_prefix, flatten_optimizer, unflatten_optimizer, with_prefix
from .config import EMAConfig, OptimizerConfig
from .ema import ExponentialMovingAverage

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["TrainedNetwork", "check_compiler"]


def check_compiler(device: torch.device, *, wanted: bool) -> None:
    """Refuse to compile where nothing is there that compiles.

    Raises:
        ValueError: no C++ compiler for a CPU, no triton for a GPU.
    """
    if not wanted:
        return
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise ValueError(
            f"expected a C++ compiler for train.compile=true, got none ({', '.join(compilers)}); install one, name it "
            "in CXX, or set train.compile=false"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ValueError(
            "expected the package triton for train.compile=true, got none; install it, or set train.compile=false"
        )


class TrainedNetwork:
    """A network with its optimiser, its learning-rate law and, if asked for, its EMA.

    `total` updates make one cosine. An update whose gradient is not finite is skipped; `most_skipped` of them in a row
    end the run with FloatingPointError, since the weights cannot be going anywhere.
    """

    most_skipped = 10

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerConfig,
        total: int,
        accelerator: Accelerator,
        *,
        ema: EMAConfig | None = None,
        ema_on_cpu: bool = False,
        compiled: bool = False,
    ) -> None:
        self.accelerator, self.cfg, self.total = accelerator, optimizer, total
        self.bare = network.to(accelerator.device)
        groups = getattr(network, "get_optim_groups", None)
        parameters = groups(optimizer.weight_decay) if groups is not None else network.parameters()
        adam = torch.optim.AdamW(
            parameters, lr=optimizer.lr, betas=optimizer.betas, weight_decay=optimizer.weight_decay, fused=True
        )
        self.network: Any = accelerator.prepare(self.bare)
        if compiled:
            # Around the bare network, whose weights keep their names; what unwraps it runs uncompiled.
            self.network = torch.compile(self.network)
        self.optimizer = accelerator.prepare(adam)
        self._parameters = list(self.bare.parameters())
        self.ema = (
            None if ema is None else ExponentialMovingAverage(self.bare, ema, device="cpu" if ema_on_cpu else None)
        )
        self.skipped = 0

    def update(self, loss: Tensor, step: int) -> dict[str, float]:
        """One optimiser step on `loss`; returns the gradient norm and the learning rate."""
        lr = self.cfg.lr_at(step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.accelerator.backward(loss)
        norm_tensor: Any = self.accelerator.clip_grad_norm_(self._parameters, self.cfg.clip_grad_norm)
        norm = float(norm_tensor)
        # The norm is the same on all processes, a loss is each one's own: all must skip, or none.
        if math.isfinite(norm):
            self.skipped = 0
            # Accelerate's wrapper serves a loss scale, which there is none of, and looks for packages at every step.
            self.optimizer.optimizer.step()
        else:
            self.skipped += 1
            if self.skipped >= self.most_skipped:
                raise FloatingPointError(
                    f"the loss or its gradient was not finite in {self.skipped} updates in a row, up to {step}; "
                    "lower the learning rate or look at the data; the last checkpoint is intact"
                )
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.bare, iteration=step + 1)
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
        if self.ema is not None:
            state |= add_prefix("ema", self.ema.state_dict())
        return state

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`tensors`; a missing part is an error."""
        self.bare.load_state_dict(with_prefix(tensors, "weights"))
        unflatten_optimizer(self.optimizer, "optimizer", tensors)
        if self.ema is not None:
            self.ema.load_state_dict(with_prefix(tensors, "ema"))
