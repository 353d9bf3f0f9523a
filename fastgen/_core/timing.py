"""Clocks of a run: seconds by phase of an update, wall and CPU seconds by part of the job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["PhaseClock", "Stopwatch"]


class PhaseClock:
    """Counts wall seconds by phase; all phases add up to the time that passed.

    Of two phases, one inside the other, a second belongs to the inner one. On a GPU these are the
    host's seconds: work that was only enqueued counts where the host waits for it.

    Attributes:
        seconds: phase -> seconds since the last `take`.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]  # of each phase that is going on, seconds in phases inside it
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
        """The phases since the last call, with what was in none of them as "other"; starts anew."""
        now = time.perf_counter()
        other = max(0.0, now - self._since - sum(self.seconds.values()))
        taken = {**self.seconds, "other": other}
        self.seconds = {}
        self._since = now
        return taken


class Stopwatch:
    """Adds wall seconds to `seconds[name]` and CPU seconds to `seconds[name + "_cpu"]`.

    CPU seconds are those of this process over all its threads, which a busy machine changes less
    than those of the wall clock.

    Args:
        seconds: part of the job -> seconds, changed in place.
        name: of the part that is timed, from now on.
    """

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self.seconds = seconds
        self.name = name
        self.restart()

    def restart(self) -> None:
        """Forget what has passed since the last lap."""
        self._wall = time.perf_counter()
        self._cpu = time.process_time()

    def lap(self) -> None:
        """Add what has passed since the last lap or restart."""
        wall = time.perf_counter()
        cpu = time.process_time()
        self._add(self.name, wall - self._wall)
        self._add(f"{self.name}_cpu", cpu - self._cpu)
        self._wall = wall
        self._cpu = cpu

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
