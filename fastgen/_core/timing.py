"""Clocks of a run: seconds by phase, wall and CPU seconds by part of the job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["PhaseClock", "Stopwatch"]


class PhaseClock:
    """Seconds by phase. A phase inside another one is taken off the outer one, so that all add up
    to what passed.

    On a GPU these are the host's seconds: work that was only enqueued counts where the host waits
    for it.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]
        self._since = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside as `name`."""
        started = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            passed = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + passed - self._inner.pop()
            self._inner[-1] += passed

    def take(self) -> dict[str, float]:
        """The phases since the last call, with what is in none of them as "other"; starts anew."""
        now = time.perf_counter()
        found = {**self.seconds, "other": max(0.0, now - self._since - sum(self.seconds.values()))}
        self.seconds = {}
        self._since = now
        return found


class Stopwatch:
    """Adds the wall and the CPU seconds between `restart` and `lap` to `seconds[name]` and
    `seconds[name + "_cpu"]`.

    CPU seconds are this process' own, over all its threads: what a busy machine does to the wall
    clock isn't in them.
    """

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self.seconds = seconds
        self.name = name
        self.restart()

    def restart(self) -> None:
        """Forget what has passed since the last lap."""
        self._last = time.perf_counter(), time.process_time()

    def lap(self) -> None:
        """Add what has passed since the last lap or restart."""
        now = time.perf_counter(), time.process_time()
        for name, before, after in zip(
            (self.name, f"{self.name}_cpu"), self._last, now, strict=True
        ):
            self.seconds[name] = self.seconds.get(name, 0.0) + after - before
        self._last = now
