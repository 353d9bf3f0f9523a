"""Measures of the benchmarks: seconds of variants that take turns, bytes, products, and where time
goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

Step = Callable[[], Any]


def training_step(model: nn.Module, arguments: tuple[Tensor, ...]) -> Step:
    """Forward, backward and AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(*arguments).square().mean().backward()
        optimizer.step()

    return step


def evaluation(model: nn.Module, arguments: tuple[Tensor, ...]) -> Step:
    """A forward in eval mode."""
    model.eval()

    @torch.no_grad()
    def step() -> None:
        model(*arguments)

    return step


def take_turns(
    steps: dict[str, Step],
    rounds: int,
    *,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each variant in each round; in every round all run once, in order.

    Args:
        steps: name -> what is timed.
        rounds: that count.
        warm_up: rounds before these, which warm caches and allocators up.
        clock: what counts the seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for n in range(rounds + warm_up):
        for name, step in steps.items():
            started = clock()
            step()
            if n >= warm_up:
                seconds[name].append(clock() - started)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def saved_bytes(model: nn.Module, arguments: tuple[Tensor, ...]) -> int:
    """Bytes that the graph of one forward keeps for the backward, each storage once.

    The weights of a dense network are among them, and what stands for them in an equivariant one.
    """
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y = model(*arguments)
    del y
    return sum(storages.values())


def products(model: nn.Module, arguments: tuple[Tensor, ...]) -> int:
    """Floating-point operations of the matrix products of one forward.

    The network is left in training mode, since the counter doesn't see into torch's fast path for
    inference.
    """
    model.train()
    with FlopCounterMode(display=False) as counter:
        model(*arguments)
    return counter.get_total_flops()


def where_time_goes(step: Step, rows: int = 6) -> dict[str, float]:
    """Milliseconds a step of the costliest operations, each without those that it calls."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(3):
            step()
    costs = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    return {
        event.key.removeprefix("aten::"): event.self_cpu_time_total / 3000 for event in costs[:rows]
    }


def relative(y: Tensor, reference: Tensor) -> float:
    """Relative L2 distance."""
    return ((y - reference).norm() / reference.norm()).item()
