"""The random numbers of training: pure functions of (seed, stage, step, name), whatever the number of processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._tensor import cond_to, generator_for

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Draws"]


class Draws:
    """The random numbers of one stage, each a pure function of (seed, stage, step, name).

    The whole global batch is drawn everywhere and sliced, so what a sample sees does not depend on the number of
    processes.
    """

    def __init__(self, seed: int, stage: str, accelerator: Accelerator, batch_size: int) -> None:
        world, rank = accelerator.num_processes, accelerator.process_index
        if batch_size % world:
            raise ValueError(f"expected train.batch_size divisible by the {world} processes, got {batch_size}")
        self.seed, self.stage, self.device, self.batch_size = seed, stage, accelerator.device, batch_size
        self.slice = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self._rank = rank
        self._epoch: tuple[int, Tensor] | None = None

    def generator(self, step: int, name: str, *, shared: bool = True) -> torch.Generator:
        """Fresh CPU generator; `shared` ones are equal on all processes."""
        return generator_for(self.seed, self.stage, name, step, 0 if shared else self._rank)

    def rows(self, step: int, n: int) -> Tensor:
        """This process' share of the rows of batch `step`: epochs of shuffled rows, each row once an epoch."""
        sample, last, parts = step * self.batch_size, (step + 1) * self.batch_size, []
        while sample < last:
            epoch, offset = divmod(sample, n)
            take = min(n - offset, last - sample)
            parts.append(self._permutation(epoch, n)[offset : offset + take])
            sample += take
        return torch.cat(parts)[self.slice]

    def normal(self, step: int, name: str, shape: tuple[int, ...]) -> Tensor:
        """This process' share of standard normal noise of the global batch; `shape` without the batch."""
        noise = torch.randn(self.batch_size, *shape, generator=self.generator(step, name))
        return cond_to(noise[self.slice], self.device)

    def uniform(self, step: int, name: str) -> Tensor:
        """This process' share of uniform numbers in [0, 1)."""
        return cond_to(torch.rand(self.batch_size, generator=self.generator(step, name))[self.slice], self.device)

    def integers(self, step: int, name: str, high: int) -> Tensor:
        """This process' share of uniform integers in [0, high)."""
        return torch.randint(high, (self.batch_size,), generator=self.generator(step, name))[self.slice]

    def _permutation(self, epoch: int, n: int) -> Tensor:
        if self._epoch is None or self._epoch[0] != epoch or len(self._epoch[1]) != n:
            self._epoch = (epoch, torch.randperm(n, generator=self.generator(epoch, "rows")))
        return self._epoch[1]
