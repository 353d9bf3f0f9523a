"""The random numbers of training: pure functions of (seed, stage, step, name), whatever the number
of processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._core.conditions import cond_to, map_tensors
from .._core.seeds import generator_for
from .processes import Processes

__all__ = ["Draws", "check_shares"]


def check_shares(batch_size: int, processes: int, accumulation: int = 1) -> None:
    """Refuse a global batch that does not divide among the processes and each one's micro-batches.

    Raises:
        ValueError: `batch_size` is no multiple of `processes * accumulation`.
    """
    if batch_size % (processes * accumulation):
        times = f" times {accumulation} micro-batches" if accumulation > 1 else ""
        raise ValueError(
            f"expected train.batch_size to be a multiple of the {processes} processes{times}, got "
            f"{batch_size}"
        )


class Draws:
    """The random numbers of one stage, each a pure function of (seed, stage, step, name).

    The whole global batch is drawn everywhere and sliced, so what a sample sees does not depend on
    the number of processes, nor on the number of micro-batches in which a process goes through its
    share.

    Args:
        seed, stage: of the draws.
        processes: that share the batch.
        batch_size: B, of all processes together.
        accumulation: k, micro-batches of B / (k processes) samples whose gradients are added up to
            one update.

    Raises:
        ValueError: a batch that does not divide among the processes and their micro-batches.
    """

    def __init__(
        self,
        seed: int,
        stage: str,
        processes: Processes,
        batch_size: int,
        *,
        accumulation: int = 1,
    ) -> None:
        world = processes.num_processes
        rank = processes.process_index
        check_shares(batch_size, world, accumulation)
        self.accumulation = accumulation
        self.seed = seed
        self.stage = stage
        self.device = processes.device
        self.batch_size = batch_size
        self.slice = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self._rank = rank
        self._epoch: tuple[int, Tensor] | None = None

    def generator(self, step: int, name: str, *, shared: bool = True) -> torch.Generator:
        """Fresh CPU generator; `shared` ones are equal on all processes."""
        return generator_for(self.seed, self.stage, name, step, 0 if shared else self._rank)

    def rows(self, step: int, n: int) -> Tensor:
        """This process' share of the rows of batch `step`."""
        return self.batch_rows(step, n)[self.slice]

    def batch_rows(self, step: int, n: int) -> Tensor:
        """All rows of batch `step` of n rows of data: epochs of shuffled rows, each row once an
        epoch."""
        sample = step * self.batch_size
        last = (step + 1) * self.batch_size
        parts = []
        while sample < last:
            epoch, offset = divmod(sample, n)
            take = min(n - offset, last - sample)
            parts.append(self._permutation(epoch, n)[offset : offset + take])
            sample += take
        return torch.cat(parts)

    def normal(self, step: int, name: str, shape: tuple[int, ...]) -> Tensor:
        """This process' share of standard normal noise of the global batch; `shape` without the
        batch."""
        noise = torch.randn(self.batch_size, *shape, generator=self.generator(step, name))
        return cond_to(noise[self.slice], self.device)

    def uniform(self, step: int, name: str) -> Tensor:
        """This process' share of uniform numbers in [0, 1)."""
        return cond_to(
            torch.rand(self.batch_size, generator=self.generator(step, name))[self.slice],
            self.device,
        )

    def integers(self, step: int, name: str, high: int) -> Tensor:
        """This process' share of uniform integers in [0, high)."""
        return torch.randint(high, (self.batch_size,), generator=self.generator(step, name))[
            self.slice
        ]

    def micro_batches(self, value: Any) -> list[Any]:
        """This process' share, a Tensor or a condition with a row per sample, in `accumulation`
        equal parts."""
        k = self.accumulation
        size = (self.slice.stop - self.slice.start) // k
        return [map_tensors(lambda x, j=j: x[j * size : (j + 1) * size], value) for j in range(k)]

    def _permutation(self, epoch: int, n: int) -> Tensor:
        if self._epoch is None or self._epoch[0] != epoch or len(self._epoch[1]) != n:
            self._epoch = (epoch, torch.randperm(n, generator=self.generator(epoch, "rows")))
        return self._epoch[1]
