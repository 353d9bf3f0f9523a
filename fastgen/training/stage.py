"""A stage of training: what the loop asks of it, and one update over micro-batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .._core.timing import PhaseClock
from .draws import Draws
from .trained_network import TrainedNetwork

__all__ = ["Losses", "Stage"]


class Stage(Protocol):
    """One part of a run: `steps` calls of `update`. A class that says so inherits what it need not
    offer.

    Attributes:
        warmup: first updates that leave the network of `averaged` as it was.
        clock: what counts the seconds of an update by phase; the trainer gives it its own.
    """

    name: str
    steps: int
    warmup: int = 0
    clock: PhaseClock = PhaseClock()

    def update(self, step: int) -> dict[str, Tensor | float]:
        """Do update `step` and return what is worth logging."""
        ...

    def trained(self) -> dict[str, TrainedNetwork]:
        """The networks whose state a checkpoint must hold."""
        ...

    def averaged(self) -> nn.Module:
        """The network whose quality the stage is about, with EMA weights."""
        ...

    def diagnose(self, step: int) -> dict[str, float | list[float]]:
        """What is logged beside the scores after `step` updates, drawn from generators of its own;
        nothing: {}."""
        return {}

    def batch_rows(self, step: int, part: str) -> Tensor:
        """Rows of the data in the batch, over all processes, of update `step` of the network `part`
        of `trained`."""
        return torch.empty(0, dtype=torch.int64)


Losses = Callable[
    ..., dict[str, Tensor]
]  # of one micro-batch, by name; what is descended is "total", or "loss"


def _split(draws: Draws, *batch: Any) -> list[tuple[Any, ...]]:
    """The micro-batches of a process' share, each with its part of every part of the batch."""
    parts = [draws.micro_batches(value) for value in batch]
    return [tuple(part[j] for part in parts) for j in range(draws.accumulation)]


def _update(
    network: TrainedNetwork, step: int, losses: Losses, draws: Draws, *batch: Any
) -> dict[str, Any]:
    """One update of `network` on `losses(*batch)`, micro-batch by micro-batch."""
    return _accumulate(network, step, lambda part: losses(*part), (_split(draws, *batch),))


def _accumulate(
    network: TrainedNetwork, step: int, losses: Losses, parts: tuple[Sequence[Any], ...]
) -> dict[str, Tensor | float]:
    """One update of `network` on the mean of `losses(*part)` over the micro-batches; the means,
    norm and rate."""
    logs: dict[str, Tensor | float] = {}

    def of(part: tuple[Any, ...]) -> Tensor:
        found = losses(*part)
        for name, value in found.items():
            logs[name] = logs.get(name, 0.0) + value.detach() / len(parts[0])
        return found["total" if "total" in found else "loss"]

    done = network.update([functools.partial(of, part) for part in zip(*parts, strict=True)], step)
    return logs | done
