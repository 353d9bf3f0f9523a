"""Processes of a run, as one of them sees them: all that training asks of a launcher.

Training, stages and draws know this one object. :mod:`fastgen.training.accelerator` makes it of
accelerate, which knows many processes and devices; :class:`OneProcess` needs no such library.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["OneProcess", "Processes", "Track", "Value"]

Value = TypeVar("Value")
# Sends the numbers of a row, by name, and its iteration to a tracker.
Track = Callable[[dict[str, float], int], None]


class Processes(Protocol):
    """The processes that share the batches of a run, in the eyes of one of them.

    `gather`, `mean` and `of_main` are collective: all processes must call them, in one order.

    Attributes:
        device: where the networks and batches of this process are.
        num_processes: how many share a batch.
        process_index: which of them this one is, from 0.
        is_main_process: whether this one writes, logs and exports.
        mixed_precision: "no", or "bf16" for the matrix products of training.
        is_fsdp2: whether the processes share the weights of trained networks, too.
    """

    device: torch.device
    num_processes: int
    process_index: int
    is_main_process: bool
    mixed_precision: str
    is_fsdp2: bool

    def prepare(
        self, network: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The network as training calls it, whose gradients are means over all processes, and an
        optimiser of its parameters. Both are given at once: shards are new parameters."""
        ...

    def autocast(self) -> AbstractContextManager[None]:
        """Inside, matrix products are in the mixed precision of the run."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` to those of its parameters."""
        ...

    def no_sync(self, network: nn.Module) -> AbstractContextManager[None]:
        """Inside, a prepared network keeps its gradients to its own process."""
        ...

    def gather(self, x: Tensor) -> Tensor:
        """The rows of `x` of all processes, in their order."""
        ...

    def mean(self, x: Tensor) -> Tensor:
        """The mean of `x` over all processes."""
        ...

    def of_main(self, value: Value) -> Value:
        """The main process' `value`, which must be one that pickle knows."""
        ...

    def start_tracker(self, name: str, run_dir: Path, iteration: int) -> Track:
        """Begin to send numbers to the tracker `name`, or go on in the run that it has there.

        Args:
            iteration: of the checkpoint that is gone on from. What was sent of later ones is sent
                again.
        """
        ...

    def finish_trackers(self) -> None:
        """Let trackers send what they still hold. The processes stay together."""
        ...

    def free_memory(self) -> None:
        """Let go of all that was prepared."""
        ...


class OneProcess(Processes):
    """One process alone on one device, in full precision and without a tracker.

    Args:
        device: of its networks and batches.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.num_processes = 1
        self.process_index = 0
        self.is_main_process = True
        self.mixed_precision = "no"
        self.is_fsdp2 = False

    def prepare(
        self, network: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        return network, optimizer

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def no_sync(self, network: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def gather(self, x: Tensor) -> Tensor:
        return x

    def mean(self, x: Tensor) -> Tensor:
        return x

    def of_main(self, value: Value) -> Value:
        return value

    def start_tracker(self, name: str, run_dir: Path, iteration: int) -> Track:
        """Refuse it.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"expected train.tracker=null without accelerate, got {name}; set it to null, or start "
            "the run through fastgen.training.accelerator"
        )

    def finish_trackers(self) -> None:
        pass

    def free_memory(self) -> None:
        pass
