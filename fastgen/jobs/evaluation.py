"""Scores and latency of a network as a sampler in original units.

Teacher and student, at every number of network calls, go through the same normalisation, packing,
conditions and noise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._core.conditions import cond_to, take_rows
from .._core.modules import evaluating
from .._core.seeds import generator_for
from ..data import Data, Task
from ..data.trajectories import TrajectoryData
from ..normalizer import pack_tokens, unpack_tokens
from ..samplers.student import sample_student, served_steps
from ..samplers.teacher import sample_teacher

Sampler = Callable[[Any, Tensor], Tensor]  # (Z, noise) -> X, original units
T_MAX_EPS = 0.999
_CHUNK = 4096
_CHUNK_NUMBERS = 2**22


def teacher_sampler(
    network: nn.Module, data: Data, calls: int, method: str = "euler", *, pred_type: str = "flow"
) -> Sampler:
    """Sampler that solves the teacher's ODE in `calls` steps of `method`, from t = 1 (.999 for
    "eps") to 0."""
    # At t = 1 a noise prediction says nothing about x0.
    grid = [T_MAX_EPS * (1.0 - i / calls) for i in range(calls + 1)] if pred_type == "eps" else None

    def generate(noise: Tensor, cond: Any, generator: torch.Generator) -> Tensor:
        x = sample_teacher(
            network, noise, calls, cond, method=method, pred_type=pred_type, t_grid=grid
        )
        assert isinstance(x, Tensor)  # a pair only with return_all_steps
        return x

    return _in_original_units(network, data, generate)


def student_sampler(
    network: nn.Module,
    data: Data,
    t_list: Sequence[float],
    *,
    sample_type: str = "ode",
    pred_type: str = "flow",
    seed: int = 0,
) -> Sampler:
    """Sampler that calls the student once per rung of `t_list`; the fresh noise of `sde` is drawn
    from `seed`."""

    def generate(noise: Tensor, cond: Any, generator: torch.Generator) -> Tensor:
        x = sample_student(
            network,
            noise,
            t_list,
            cond,
            sample_type=sample_type,
            pred_type=pred_type,
            generator=generator,
        )
        assert isinstance(x, Tensor)  # a pair only with return_all_steps
        return x

    return _in_original_units(network, data, generate, seed)


def nested_t_lists(t_list: Sequence[float], sample_type: str = "sde") -> dict[int, list[float]]:
    """Step counts that a student of these rungs serves (`served_steps`), with their rungs."""
    rungs = list(t_list[:-1])
    end = t_list[-1]
    n = len(rungs)
    return {k: [*rungs[:: n // k], end] for k in served_steps(n, sample_type)}


def evaluate_student(
    network: nn.Module, task: Task, t_list: Sequence[float], *, sample_type: str, pred_type: str
) -> dict[str, dict[str, float]]:
    """Scores at every step count of :func:`nested_t_lists`, keyed by the number of calls as
    text."""
    return {
        str(k): task.evaluate(
            student_sampler(
                network, task.train, rungs, sample_type=sample_type, pred_type=pred_type
            )
        )
        for k, rungs in nested_t_lists(t_list, sample_type).items()
    }


def evaluate_teacher(
    network: nn.Module,
    task: Task,
    calls: Sequence[int],
    ab2_calls: Sequence[int],
    *,
    pred_type: str = "flow",
    progress: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    """Scores of the teacher by Euler (keys "1", "2", ...) and two-step Adams-Bashforth ("ab2-4",
    ...)."""
    rows = {}
    for n, method, name in [(n, "euler", str(n)) for n in calls] + [
        (n, "ab2", f"ab2-{n}") for n in ab2_calls
    ]:
        progress(name)
        rows[name] = task.evaluate(
            teacher_sampler(network, task.train, n, method, pred_type=pred_type)
        )
    return rows


def latency_ms(sample: Sampler, data: Data, batch: int, *, repeats: int = 7) -> float:
    """Median milliseconds of one call with `batch` conditions, after one call to warm up."""
    z = take_rows(data.Z, torch.arange(batch) % len(data))
    noise = torch.randn(batch, *data.X.shape[1:], generator=generator_for(0, "latency"))
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        sample(z, noise)
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds[1:])


def chunk_rows(data: Data, most: int) -> int:
    """Rows that a network is given at once: `most` trajectories, fewer samples where these are
    large."""
    return (
        most
        if isinstance(data, TrajectoryData)
        else max(1, min(most, _CHUNK_NUMBERS // data.X[0].numel()))
    )


def _in_original_units(
    network: nn.Module,
    data: Data,
    generate: Callable[[Tensor, Any, torch.Generator], Tensor],
    seed: int = 0,
) -> Sampler:
    parameter = next(network.parameters())

    @torch.no_grad()
    def sample(z: Any, noise: Tensor) -> Tensor:
        cond = z if data.z_normalizer is None else data.z_normalizer.normalize(z)
        cond = cond_to(cond, parameter.device, parameter.dtype)
        start = noise if data.pack == 1 else pack_tokens(noise, data.pack)
        start = start.to(parameter.device, parameter.dtype)
        generator = generator_for(seed, "sampler")
        # Chunks bound the memory; the first noise is drawn before, so that a one-step sample does
        # not depend on them.
        rows = chunk_rows(data, _CHUNK)
        chunks = [slice(first, first + rows) for first in range(0, len(start), rows)]
        with evaluating(network):
            parts = [generate(start[chunk], take_rows(cond, chunk), generator) for chunk in chunks]
        x = torch.cat(parts) if data.pack == 1 else unpack_tokens(torch.cat(parts), data.pack)
        return x.cpu() if data.x_normalizer is None else data.x_normalizer.denormalize(x.cpu())

    return sample
