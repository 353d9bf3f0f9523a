"""Draws of training: random numbers that are pure functions of (seed, stage, step, name), however
many processes share a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._core.conditions import cond_to, map_tensors, tensors_in
from .._core.prefixes import drawn_lengths
from .._core.room import check_room
from .._core.seeds import generator_for
from .processes import Processes

__all__ = ["Draws", "check_batch_room", "check_shares", "row_bytes"]


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

    Every process draws for the whole batch and takes its share. So what a sample sees does not
    depend on how many processes there are, nor in how many micro-batches a process goes through its
    share. `step` counts updates from 0; `name` tells the draws of one update apart.

    Args:
        seed: of the run.
        stage: its name.
        processes: that share the batch.
        batch_size: B, samples of all processes together.
        accumulation: k, micro-batches of B / (k processes) samples whose gradients make one update.

    Attributes:
        device: on which `normal` and `uniform` return their numbers.
        slice: of the batch, this process' share.

    Raises:
        ValueError: the batch does not divide among the processes and their micro-batches.
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
        self.seed = seed
        self.stage = stage
        self.device = processes.device
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.slice = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self._rank = rank
        self._epoch = -1  # whose order of rows is kept
        self._order = torch.empty(0, dtype=torch.int64)

    def generator(self, step: int, name: str, *, shared: bool = True) -> torch.Generator:
        """A fresh generator on the CPU: the same one on all processes if `shared`, else one for
        each."""
        return generator_for(self.seed, self.stage, name, step, 0 if shared else self._rank)

    def rows(self, step: int, n: int) -> Tensor:
        """This process' share of the rows of batch `step`, of n rows of data."""
        return self.batch_rows(step, n)[self.slice]

    def batch_rows(self, step: int, n: int) -> Tensor:
        """All rows of batch `step`, of n rows of data.

        Batches go through shuffled rows, each row once an epoch, and from one epoch into the next.
        """
        sample = step * self.batch_size
        last = sample + self.batch_size
        parts = []
        while sample < last:
            epoch, offset = divmod(sample, n)
            take = min(n - offset, last - sample)
            parts.append(self._permutation(epoch, n)[offset : offset + take])
            sample += take
        return torch.cat(parts)

    def normal(self, step: int, name: str, shape: tuple[int, ...]) -> Tensor:
        """This process' share of standard normal noise, (B, *shape) for the whole batch."""
        noise = torch.randn(self.batch_size, *shape, generator=self.generator(step, name))
        return cond_to(noise[self.slice], self.device)

    def uniform(self, step: int, name: str) -> Tensor:
        """This process' share of B uniform numbers in [0, 1)."""
        numbers = torch.rand(self.batch_size, generator=self.generator(step, name))
        return cond_to(numbers[self.slice], self.device)

    def integers(self, step: int, name: str, high: int) -> Tensor:
        """This process' share of B uniform integers in [0, high), on the CPU."""
        size = (self.batch_size,)
        return torch.randint(high, size, generator=self.generator(step, name))[self.slice]

    def prefix_lengths(self, step: int, name: str, most: int, mask: Tensor | None) -> Tensor:
        """This process' share of B numbers of given tokens, each uniform in 0..`most`; where `mask`
        (B, T) says which tokens are real, below their number."""
        if mask is None:
            return self.integers(step, name, most + 1)
        return drawn_lengths(self.uniform(step, name), most, mask)

    def strata(self, step: int, name: str, shares: Sequence[float]) -> Tensor:
        """This process' share of B integers in [0, len(shares)), in random order, on the CPU. Of
        the whole batch k has its share of B, rounded up or down.

        Args:
            step, name: of the draw.
            shares: >= 0, relative numbers.
        """
        generator = self.generator(step, name)
        ends = torch.tensor(shares, dtype=torch.float64).cumsum(0)
        # Points at equal distances, of which an interval of length l holds l B, rounded.
        start = torch.rand((), generator=generator, dtype=torch.float64)
        order = torch.randperm(self.batch_size, generator=generator)
        points = ends[-1] * (order + start) / self.batch_size
        return torch.searchsorted(ends, points, right=True).clamp(max=len(ends) - 1)[self.slice]

    def micro_batches(self, value: Any) -> list[Any]:
        """`value`, a tensor or a condition with a row for each sample of this process' share, in
        `accumulation` equal parts."""
        k = self.accumulation
        size = (self.slice.stop - self.slice.start) // k
        return [map_tensors(lambda x, j=j: x[j * size : (j + 1) * size], value) for j in range(k)]

    def _permutation(self, epoch: int, n: int) -> Tensor:
        """The order of n rows in an epoch; that of the last one is kept."""
        if self._epoch != epoch or len(self._order) != n:
            self._epoch = epoch
            self._order = torch.randperm(n, generator=self.generator(epoch, "rows"))
        return self._order


def check_batch_room(batch_size: int, x0: Tensor) -> None:
    """Refuse a batch whose noise alone has no room: every process draws that of the whole batch.

    Args:
        batch_size: rows of all processes together.
        x0: of the data.

    Raises:
        ValueError: it names the key and the limit.
    """
    check_room("train.batch_size", batch_size, row_bytes(x0, None))


def row_bytes(x0: Tensor, cond: Any) -> int:
    """Bytes of a row of the data with its condition."""
    tensors = (x0, *tensors_in(cond))
    return sum(value[:1].numel() * value.element_size() for value in tensors)
