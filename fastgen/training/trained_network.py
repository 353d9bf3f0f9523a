"""Networks in training: weights, optimiser, learning-rate law and average, all that an update needs
and a checkpoint holds."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._core.caches import renew_before_calls, renew_caches
from .._core.conditions import map_tensors
from .._core.copies import copied
from .._core.modules import as_built, load_state, state_of
from .._core.processes import gathered, settle, shared_like
from ..config.groups import EMAConfig
from ..config.training import OptimizerConfig
from ..ema import ExponentialMovingAverage
from ..networks import unwrap
from ..records.checkpoints import (
    add_prefix,
    check_parts,
    flatten_optimizer,
    unflatten_optimizer,
    with_prefix,
)
from .optimizers import adam
from .processes import Processes
from .used import UsedParameters

__all__ = ["Skip", "TrainedNetwork", "check_compiler"]

# What accelerate puts into a network itself, for its autocast.
_REPLACED = ("forward", "_original_forward")


def check_compiler(device: torch.device, *, wanted: bool) -> None:
    """Refuse to compile networks where nothing can.

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

    Args:
        shared: whether processes or micro-batches share a batch.

    Raises:
        ValueError: they do, and a batch normalisation is in train mode.
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
        at: the network's `at` when it was made.
        in_a_row: updates skipped in a row, up to this one.
        in_all: updates skipped in all, up to this one.
    """

    at: int
    in_a_row: int
    in_all: int


class TrainedNetwork:
    """A network with its optimiser, its learning-rate law and, if asked for, its average (EMA).

    An update whose loss or gradient is not finite is skipped on all processes: weights, optimiser,
    average and running statistics stay as they were. The device decides that by itself, so that an
    update doesn't wait for it; `take_skipped` does.

    Args:
        network: trained in place, on the device of `processes`.
        optimizer: AdamW, its rates and the norm to which gradients are clipped.
        total: updates of the whole training, which make one cosine of the learning rate.
        processes: that share a batch.
        ema: of the average; None: there is none.
        ema_on_cpu: whether the average is kept in CPU memory.
        compiled: whether training calls the network compiled.

    Attributes:
        bare: the network itself.
        network: the network as training calls it, which may be wrapped and compiled.
        at: what `take_skipped` tells an update by, such as the update of the stage to which it
            belongs. Set it before an update.
        share_of_rate: how far learning rates lie above their last one, relative to where the law
            has them; 1 unless a stage ends early.

    Raises:
        ValueError: a batch normalisation would see a part of the batch; or the average of a network
            in shards is to be kept in CPU memory.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerConfig,
        total: int,
        processes: Processes,
        *,
        ema: EMAConfig | None = None,
        ema_on_cpu: bool = False,
        compiled: bool = False,
    ) -> None:
        check_batch_statistics(network, shared=processes.num_processes > 1)
        sharded = processes.is_fsdp2
        if sharded and ema_on_cpu:
            raise ValueError(
                "expected train.ema_on_cpu=false with FSDP, which shares the average as it does "
                "weights"
            )
        self.processes = processes
        self.cfg = optimizer
        self.total = total
        # Sharding turns the network itself into shards: what is handed out is made from a copy.
        self._plain = copied(network).cpu() if sharded else None
        self.bare = as_built(network).to(processes.device)
        renew_before_calls(unwrap(self.bare))
        own = vars(self.bare)
        self._own_methods = {name: own[name] for name in _REPLACED if name in own}
        optimizer_of_bare = adam(self.bare, optimizer)
        if sharded and processes.mixed_precision == "bf16":
            # FSDP, to which accelerate leaves half precision, would cast times as well, and is told
            # to keep float32.
            self.bare.forward = _in_bfloat16(self.bare.forward, processes)
        # In one call, so that sharding can put its new parameters into the optimiser.
        prepared, self.optimizer = processes.prepare(self.bare, optimizer_of_bare)
        # Compiled from outside: weights keep their names, and an unwrapped network runs uncompiled.
        self.network: Any = torch.compile(prepared) if compiled else prepared
        self._parameters = list(self.bare.parameters())
        self._used: UsedParameters | None = None
        if processes.num_processes > 1:
            self._used = UsedParameters(self.bare, prepared, processes)
        self.ema: ExponentialMovingAverage | None = None
        if ema is not None:
            device = "cpu" if ema_on_cpu else None
            self.ema = ExponentialMovingAverage(self.bare, ema, device=device)
        # Running statistics change in a forward: beside each its value before the update.
        self._statistics = [
            (buffer, buffer.clone())
            for module in self.bare.modules()
            if isinstance(module, nn.modules.batchnorm._NormBase)
            for buffer in module.buffers(recurse=False)
        ]
        self.at = 0
        self.share_of_rate = 1.0
        self._unread: list[tuple[int, Tensor]] = []  # (at, whether it was skipped) of an update
        self._skips: list[Skip] = []  # that were read, and nobody has taken
        self._in_a_row = 0
        self._in_all = 0

    def update(
        self, loss: Tensor | Sequence[Callable[[], Tensor]], index: int
    ) -> dict[str, Tensor | float]:
        """Make one update.

        Args:
            loss: a scalar; or, for each of k micro-batches of equal size, a function that returns
                its loss, of which the mean is descended. They are called one after the other, so
                that one graph is alive at a time, and processes exchange gradients after the last.
            index: of this update of the network, from 0.

        Returns:
            `grad_norm` before clipping, a scalar on the device, and `lr`, the learning rate.

        Raises:
            ValueError: no micro-batch.
        """
        lr = self.cfg.cooled(self.cfg.lr_at(index, self.total), self.share_of_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._backward(loss)
        # Torch's own: accelerate's clipping compares parameters to find the network, which fails
        # for shards.
        norm = gathered(nn.utils.clip_grad_norm_(self._parameters, self.cfg.clip_grad_norm))
        # The norm is the same on all processes, a loss is each one's own: all must skip, or none.
        skip = ~norm.isfinite()
        self._unread.append((self.at, skip))
        # Torch's kernel leaves a step out by itself where this says so; a loss scale needs that.
        kernel: Any = self.optimizer
        kernel.found_inf = skip.to(torch.float32)
        kernel.step()
        for buffer, before in self._statistics:
            buffer.copy_(torch.where(skip, before, buffer))
            before.copy_(buffer)
        if self.ema is not None:
            self.ema.update(self.bare, iteration=index + 1, skip=skip)
        kernel.zero_grad(set_to_none=True)
        return {"grad_norm": norm, "lr": lr}

    def _backward(self, loss: Tensor | Sequence[Callable[[], Tensor]]) -> None:
        """Gradients of the loss, or of the mean of the micro-batches' losses."""
        losses = [lambda: loss] if isinstance(loss, Tensor) else loss
        check_batch_statistics(self.bare, shared=len(losses) > 1)
        if not losses:
            raise ValueError("expected the loss of at least one micro-batch, got none")
        if self._used is not None:
            self._used.begin()
        for micro_batch in losses[:-1]:
            # A wrapper decides in its forward whether the backward is to synchronise.
            with self.processes.no_sync(self.network):
                self.processes.backward(_finite_or_nan(micro_batch()) / len(losses))
        last = _finite_or_nan(losses[-1]()) / len(losses)
        if self._used is None:
            self.processes.backward(last)
        else:
            self.processes.backward(self._used.reaching_all(last))
            self._used.agree()

    def take_skipped(self) -> list[Skip]:
        """The updates skipped since the last call, in order; waits for the device."""
        self._read()
        taken = self._skips
        self._skips = []
        return taken

    def _read(self) -> None:
        """Ask the device which of the latest updates were skipped, and count them."""
        if not self._unread:
            return
        flags = torch.stack([skip for _, skip in self._unread]).tolist()
        for (at, _), skipped in zip(self._unread, flags, strict=True):
            if skipped:
                self._in_a_row += 1
                self._in_all += 1
                self._skips.append(Skip(at, self._in_a_row, self._in_all))
            else:
                self._in_a_row = 0
        self._unread = []

    def averaged(self) -> nn.Module:
        """A copy of the network with the average as its weights, or with the weights themselves
        where there is no average; in eval mode and in full precision.

        Of a network in shards, too, it is whole and plain; all processes must then ask for it.
        """
        if self._plain is not None:
            network = copied(self._plain).to(self.processes.device)
            load_state(network, {n: gathered(value) for n, value in state_of(self.bare).items()})
        else:
            with self._unprepared():
                network = copied(self.bare)
        if self.ema is not None:
            self.ema.copy_to(network)
        network.eval()
        renew_caches(network)
        return network

    @contextlib.contextmanager
    def _unprepared(self) -> Iterator[None]:
        """Inside, the network has the methods that it came with, without accelerate's autocast:
        no student is sampled with that after its export."""
        attributes = vars(self.bare)
        prepared = {name: attributes.pop(name) for name in _REPLACED if name in attributes}
        attributes.update(self._own_methods)
        try:
            yield
        finally:
            for name in self._own_methods:
                del attributes[name]
            attributes.update(prepared)

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resume needs, as full tensors; of a network in shards all processes must ask
        for it."""
        settle(self.bare)
        self._read()
        state = add_prefix("weights", state_of(self.bare))
        state |= flatten_optimizer(self.optimizer, "optimizer")
        state["skipped"] = torch.tensor([self._in_a_row, self._in_all])
        if self.ema is not None:
            state |= add_prefix("ema", self.ema.state_dict())
        return {name: gathered(value) for name, value in state.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`tensors`.

        Raises:
            ValueError: a part is missing, unknown, or of another shape or dtype; it is named.
                Nothing is loaded but what comes before it.
        """
        settle(self.bare)
        check_parts(_without_optimizer(tensors), _without_optimizer(self.tensors()), "a network")
        now = state_of(self.bare)
        weights = with_prefix(tensors, "weights")
        load_state(self.bare, {n: shared_like(value, now[n]) for n, value in weights.items()})
        state = {**tensors, **self._shared_moments(tensors)}
        unflatten_optimizer(self.optimizer, "optimizer", state, what="an optimiser")
        for buffer, before in self._statistics:
            before.copy_(buffer)
        if self.ema is not None:
            self.ema.load_state_dict(with_prefix(tensors, "ema"))
        in_a_row, in_all = tensors["skipped"].tolist()
        self._in_a_row = in_a_row
        self._in_all = in_all
        self._unread = []
        self._skips = []

    def _shared_moments(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The optimiser's state in `tensors`, its moments in shards where their parameters are."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {}
        for i, parameter in enumerate(parameters):
            for name, value in with_prefix(tensors, f"optimizer.{i}").items():
                # A count of steps has another shape.
                moment = value.shape == parameter.shape
                shared = shared_like(value, parameter) if moment else value
                moments[f"optimizer.{i}.{name}"] = shared
        return moments


def _in_bfloat16(forward: Callable[..., Any], processes: Processes) -> Callable[..., Any]:
    """`forward` under the autocast of `processes`, with an answer that is float32 again."""

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        with processes.autocast():
            answer = forward(*args, **kwargs)
        return map_tensors(lambda x: x.float() if x.dtype == torch.bfloat16 else x, answer)

    return call


def _finite_or_nan(loss: Tensor) -> Tensor:
    """The loss, with a gradient of NaN where it is no number: processes see each other's gradients,
    not each other's losses."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan).to(loss.dtype)


def _without_optimizer(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if not name.startswith("optimizer.")}
