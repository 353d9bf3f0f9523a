"""Threads of torch on a CPU: as many as the work at hand can use.

Threads that share a small product wait for each other longer than they compute. On a busy machine
it is worse: a thread that waits takes the core that the thread it waits for would need. So what is
small gets one thread.

The number of threads changes the last digits of sums. It is therefore decided by the work alone,
never by a measurement: the same run has the same threads wherever it has as many cores, and ends
with the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["cores_of_this_process", "operations_of", "threads_for", "using_threads"]

# Floating point operations of one training step that pay for another thread: some 75 ms of one core
# (`python tools/bench.py threads`).
_PER_THREAD = 3e9


def cores_of_this_process() -> int:
    """The cores that this process may run on, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def threads_for(operations: float, most: int) -> int:
    """Threads for a training step: ``operations / 3e9``, rounded down, from 1 to `most`.

    Args:
        operations: floating point operations of the step.
        most: threads to be had.
    """
    return int(min(float(most), max(1.0, operations // _PER_THREAD)))


@contextmanager
def using_threads(number: int) -> Iterator[None]:
    """Inside, torch has `number` threads in this process; what it had comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def operations_of(call: Callable[[], Any]) -> int:
    """Floating point operations of the products and convolutions in `call()`.

    Operators that torch has no count for are left out.
    """
    counter = _Counter()
    with counter:
        call()
    return counter.total


class _Counter(TorchDispatchMode):
    """Adds up the operations of what torch is asked for inside.

    Attributes:
        total: floating point operations so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        answer = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.total += count(*args, **kwargs, out_val=answer)
        return answer
