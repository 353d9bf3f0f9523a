"""A network with its optimiser, its learning-rate law and its average: what an update needs and a
checkpoint holds."""

from __future__ import annotations

import copy
import functools
import importlib.util
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .._core.conditions import map_tensors
from .._core.processes import gathered, settle, shared_like
from ..config.groups import EMAConfig
from ..config.training import OptimizerConfig
from ..ema import ExponentialMovingAverage
from ..records.checkpoints import (
    add_prefix,
    check_parts,
    flatten_optimizer,
    unflatten_optimizer,
    with_prefix,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Skip", "TrainedNetwork", "check_compiler"]


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
            f"expected a C++ compiler for train.compile=true, got none ({', '.join(compilers)}); "
            "install one, name it in CXX, or set train.compile=false"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ValueError(
            "expected the package triton for train.compile=true, got none; install it, or set "
            "train.compile=false"
        )


def check_batch_statistics(network: nn.Module, *, shared: bool) -> None:
    """Refuse a network that would normalise by the statistics of a part of the batch.

    Raises:
        ValueError: the batch is shared among processes or micro-batches, and a batch normalisation
            is in train mode.
    """
    if not shared:
        return
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                "expected no batch normalisation in train mode where processes or micro-batches "
                f"share a batch, got {type(module).__name__} at {name!r}; call its eval() "
                "(running statistics), or train in one piece"
            )


class Skip(NamedTuple):
    """An update that was skipped.

    Attributes:
        at: of the network when it was made.
        in_a_row, in_all: updates skipped up to this one.
    """

    at: int
    in_a_row: int
    in_all: int


class TrainedNetwork:
    """A network with its optimiser, its learning-rate law and, if asked for, its EMA.

    `total` updates make one cosine. An update whose loss or gradient is not finite is skipped on
    all processes: it leaves weights, optimiser, average and running statistics as they were.
    Whether it was is decided on the device, which an update doesn't wait for; `take_skipped` does.

    Attributes:
        at: what updates are told by in `take_skipped`, such as the number of the stage's update
            that they belong to.
    """

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
        check_batch_statistics(network, shared=accelerator.num_processes > 1)
        self.accelerator = accelerator
        self.cfg = optimizer
        self.total = total
        sharded = getattr(accelerator, "is_fsdp2", False)
        # Sharding turns the network itself into shards: what is handed out is made from a copy.
        self._plain = copy.deepcopy(network).cpu() if sharded else None
        self.bare = network.to(accelerator.device)
        groups = getattr(network, "get_optim_groups", None)
        parameters = groups(optimizer.weight_decay) if groups is not None else network.parameters()
        adam = torch.optim.AdamW(
            parameters,
            lr=optimizer.lr,
            betas=optimizer.betas,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
        if sharded and ema_on_cpu:
            raise ValueError(
                "expected train.ema_on_cpu=false with FSDP, which shares the average as it does "
                "weights"
            )
        if sharded and accelerator.mixed_precision == "bf16":
            # Accelerate leaves half precision to FSDP, which would cast times as well; see
            # `start_accelerator`.
            self.bare.forward = _in_bfloat16(self.bare.forward, accelerator)
        # In one call, so that sharding can put its new parameters into the optimiser.
        prepared, self.optimizer = accelerator.prepare(self.bare, adam)
        # Compiled around the bare network, whose weights keep their names; what unwraps it runs
        # uncompiled.
        self.network: Any = torch.compile(prepared) if compiled else prepared
        self._parameters = list(self.bare.parameters())
        self.ema = (
            None
            if ema is None
            else ExponentialMovingAverage(self.bare, ema, device="cpu" if ema_on_cpu else None)
        )
        self._statistics = [
            (buffer, buffer.clone())
            for module in self.bare.modules()
            if isinstance(module, nn.modules.batchnorm._NormBase)
            for buffer in module.buffers(recurse=False)
        ]
        self.at = 0
        self._counts = 0, 0  # updates skipped in a row and in all, of those that are read
        self._unread: list[tuple[int, Tensor]] = []
        self._skips: list[Skip] = []

    def update(
        self, loss: Tensor | Sequence[Callable[[], Tensor]], step: int
    ) -> dict[str, Tensor | float]:
        """One optimiser step; returns the gradient norm, a scalar on the device, and the learning
        rate.

        Args:
            loss: a scalar; or a function for each of k micro-batches of equal size that gives its
                loss. Their mean is what is descended: the functions are called one after the other,
                    so that one graph is alive at a time,
                and processes exchange gradients after the last alone.
            step: of this network, from 0.

        Raises:
            ValueError: no micro-batch.
        """
        lr = self.cfg.lr_at(step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._backward(loss)
        # Torch's own: accelerate looks for the network among all by comparing parameters, which
        # shards don't like.
        norm = gathered(nn.utils.clip_grad_norm_(self._parameters, self.cfg.clip_grad_norm))
        # The norm is the same on all processes, a loss is each one's own: all must skip, or none.
        skip = ~norm.isfinite()
        self._unread.append((self.at, skip))
        # Accelerate's wrapper serves a loss scale, which there is none of, and looks for packages
        # at every step. Torch offers its kernel what a loss scale needs: a step that the device
        # itself leaves out.
        adam = self.optimizer.optimizer
        adam.found_inf = skip.to(torch.float32)
        adam.step()
        for buffer, before in self._statistics:
            buffer.copy_(torch.where(skip, before, buffer))
            before.copy_(buffer)
        if self.ema is not None:
            self.ema.update(self.bare, iteration=step + 1, skip=skip)
        adam.zero_grad(set_to_none=True)
        return {"grad_norm": norm, "lr": lr}

    def _backward(self, loss: Tensor | Sequence[Callable[[], Tensor]]) -> None:
        """Gradients of the loss, or of the mean of the micro-batches' losses."""
        if isinstance(loss, Tensor):
            self.accelerator.backward(_finite_or_nan(loss))
            return
        check_batch_statistics(self.bare, shared=len(loss) > 1)
        if not loss:
            raise ValueError("expected the loss of at least one micro-batch, got none")
        for micro_batch in loss[:-1]:
            # A wrapper decides in its forward whether the backward is to synchronise.
            with self.accelerator.no_sync(self.network):
                self.accelerator.backward(_finite_or_nan(micro_batch()) / len(loss))
        self.accelerator.backward(_finite_or_nan(loss[-1]()) / len(loss))

    def take_skipped(self) -> list[Skip]:
        """The updates skipped since the last call, in order; waits for the device."""
        self._read()
        taken = self._skips
        self._skips = []
        return taken

    def _read(self) -> None:
        """Count the updates that nobody has looked at yet."""
        if not self._unread:
            return
        updates, flags = zip(*self._unread, strict=True)
        self._unread = []
        for at, skipped in zip(updates, torch.stack(flags).tolist(), strict=True):
            self._counts = (
                (self._counts[0] + 1, self._counts[1] + 1) if skipped else (0, self._counts[1])
            )
            if skipped:
                self._skips.append(Skip(at, *self._counts))

    def averaged(self) -> nn.Module:
        """A copy with the EMA weights (the weights themselves without an EMA), in eval mode and in
        full precision.

        Full and plain also where the network is sharded; all processes must then ask for it.
        """
        if self._plain is not None:
            network = copy.deepcopy(self._plain).to(self.accelerator.device)
            network.load_state_dict(
                {name: gathered(value) for name, value in self.bare.state_dict().items()}
            )
        else:
            network = copy.deepcopy(self.bare)
            # Accelerate's autocast, which no student is sampled with after its export.
            for name in ("forward", "_original_forward"):
                network.__dict__.pop(name, None)
        if self.ema is not None:
            self.ema.copy_to(network)
        return network.eval()

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resume needs, as full tensors; of a sharded network all processes must ask
        for it."""
        settle(self.bare)
        self._read()
        state = add_prefix("weights", self.bare.state_dict()) | flatten_optimizer(
            self.optimizer, "optimizer"
        )
        state["skipped"] = torch.tensor(self._counts)
        if self.ema is not None:
            state |= add_prefix("ema", self.ema.state_dict())
        return {name: gathered(value) for name, value in state.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`tensors`.

        Raises:
            ValueError: a part is missing, unknown, or of another shape or dtype; it is named, and
                nothing is loaded but what comes before it.
        """
        settle(self.bare)
        expected = {
            name: value
            for name, value in self.tensors().items()
            if not name.startswith("optimizer.")
        }
        found = {
            name: value for name, value in tensors.items() if not name.startswith("optimizer.")
        }
        check_parts(found, expected, "a network")
        weights = with_prefix(tensors, "weights")
        now = self.bare.state_dict()
        self.bare.load_state_dict(
            {name: shared_like(value, now[name]) for name, value in weights.items()}
        )
        moments = {
            f"optimizer.{i}.{name}": shared_like(value, parameter)
            if value.shape == parameter.shape
            else value
            for i, parameter in enumerate(
                p for group in self.optimizer.param_groups for p in group["params"]
            )
            for name, value in with_prefix(tensors, f"optimizer.{i}").items()
        }
        unflatten_optimizer(
            self.optimizer, "optimizer", {**tensors, **moments}, what="an optimiser"
        )
        for buffer, before in self._statistics:
            before.copy_(buffer)
        if self.ema is not None:
            self.ema.load_state_dict(with_prefix(tensors, "ema"))
        in_a_row, in_all = tensors["skipped"].tolist()
        self._counts = (in_a_row, in_all)
        self._unread = []
        self._skips = []


def _in_bfloat16(forward: Callable[..., Any], accelerator: Accelerator) -> Callable[..., Any]:
    """`forward` under accelerate's autocast, whose answer is float32 again."""

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        with accelerator.autocast():
            answer = forward(*args, **kwargs)
        return map_tensors(lambda x: x.float() if x.dtype == torch.bfloat16 else x, answer)

    return call


def _finite_or_nan(loss: Tensor) -> Tensor:
    """The loss; where it is no number, so is its gradient, which all processes see, unlike each
    other's loss."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan).to(loss.dtype)
