"""Stages of training: what the loop asks of one, and an update made of micro-batches.

A stage owns networks with their optimisers and says what `update(step)` does to them;
:class:`fastgen.training.trainer.Trainer` owns the loop, the clock, the log and the checkpoints.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .._core.timing import PhaseClock
from .draws import Draws
from .trained_network import TrainedNetwork

__all__ = ["Losses", "Stage", "micro_batches", "one_update", "update_in_parts"]

# The losses of one micro-batch, by name. What is descended is "total", or else "loss".
Losses = Callable[..., dict[str, Tensor]]


class Stage(Protocol):
    """One part of a run, made of updates that are counted from 0.

    A class that inherits it need not write what has a default here.

    Attributes:
        name: of the stage.
        updates: in all.
        warmup: first updates that leave the network of `averaged` as it was.
        clock: counts the seconds of updates by phase; the trainer gives the stage its own.
    """

    name: str
    updates: int
    warmup: int = 0
    clock: PhaseClock = PhaseClock()

    def update(self, step: int) -> dict[str, Tensor | float]:
        """Make update `step`; returns what is worth logging, "loss" among it."""
        ...

    def trained(self) -> dict[str, TrainedNetwork]:
        """The networks, by name, whose state a checkpoint must hold."""
        ...

    def averaged(self) -> nn.Module:
        """A copy of the network that the stage is about, with its averaged weights."""
        ...

    def diagnose(self, step: int) -> dict[str, float | list[float]]:
        """What is logged beside the scores after `step` updates; {} for nothing.

        It may draw from generators of its own alone.
        """
        return {}

    def cause(self, step: int, part: str) -> str | None:
        """Which network that the loss of update `step` asked answers no number, at which time and
        for which row; None if none is found.

        Asked where a loss was not finite, by all processes. It may draw from generators of its own
        alone. `step` and `part` are as in `batch_rows`.
        """
        return None

    def batch_rows(self, step: int, part: str) -> Tensor:
        """Which rows of the data were in the batches of update `step`, over all processes.

        Args:
            step: from 0.
            part: the network whose batches are meant, by its name in `trained`.
        """
        return torch.empty(0, dtype=torch.int64)


def micro_batches(draws: Draws, *batch: Any) -> list[tuple[Any, ...]]:
    """The micro-batches of a process' share of a batch.

    Args:
        draws: of the stage, which know how many micro-batches there are.
        batch: the parts of the share, such as x0, noise and cond, each with a row per sample.

    Returns:
        a tuple like `batch` for each micro-batch, with its rows of every part.
    """
    parts = [draws.micro_batches(value) for value in batch]
    return [tuple(part[j] for part in parts) for j in range(draws.accumulation)]


def one_update(
    network: TrainedNetwork, index: int, losses: Losses, draws: Draws, *batch: Any
) -> dict[str, Tensor | float]:
    """Update `network` on the mean of `losses(*batch)` over the micro-batches of `batch`.

    Args and result are those of :func:`update_in_parts`, with `draws` and `batch` as in
    :func:`micro_batches`.
    """
    return update_in_parts(network, index, losses, micro_batches(draws, *batch))


def update_in_parts(
    network: TrainedNetwork, index: int, losses: Losses, parts: Sequence[tuple[Any, ...]]
) -> dict[str, Tensor | float]:
    """Update `network` on the mean of `losses(*part)` over `parts`, one after the other.

    Args:
        network: that is updated.
        index: of this update among those of `network`, from 0.
        losses: of one micro-batch.
        parts: what `losses` is called with, for each micro-batch.

    Returns:
        the mean of each loss, by its name, with `grad_norm` and `lr`.
    """
    logs: dict[str, Tensor | float] = {}

    def descended(part: tuple[Any, ...]) -> Tensor:
        found = losses(*part)
        for name, value in found.items():
            logs[name] = logs.get(name, 0.0) + value.detach() / len(parts)
        return found["total" if "total" in found else "loss"]

    done = network.update([functools.partial(descended, part) for part in parts], index)
    return logs | done
