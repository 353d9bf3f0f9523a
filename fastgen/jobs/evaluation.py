"""Scores and latency of a network as a sampler in original units.

Teacher and student, at every number of network calls, get the same conditions and noise, and go
through the code that users of a student call (`export.original_units.sample_in_original_units`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._core.conditions import take_rows
from .._core.modules import evaluating
from .._core.seeds import generator_for
from .._core.threads import using_threads
from ..box import Box
from ..config.student import StudentConfig
from ..data import Data, Task
from ..data.trajectories import TrajectoryData
from ..export.original_units import sample_in_original_units
from ..export.student import Student
from ..samplers.student import sample_student, served_steps
from ..samplers.teacher import sample_teacher
from ..teachers.answer import Watched

__all__ = [
    "MOST_NUMBERS",
    "MOST_ROWS",
    "Sampler",
    "chunk_rows",
    "evaluate_student",
    "evaluate_teacher",
    "exported_sampler",
    "latency_ms",
    "nested_t_lists",
    "noise_shape",
    "score_exported",
    "served_t_lists",
    "student_sampler",
    "teacher_sampler",
]

Sampler = Callable[[Any, Tensor], Tensor]  # (Z, noise) -> X, original units

# Rows and numbers of noise that a network is given at once.
MOST_ROWS = 4096
MOST_NUMBERS = 2**22
# Rows without a number that a network is asked again with, to find out where it has none.
_MOST_BAD = 64
# Where the ODE of a teacher that predicts noise starts: at t = 1 its prediction says nothing of x0.
_T_MAX_EPS = 0.999


def teacher_sampler(
    network: nn.Module,
    data: Data,
    calls: int,
    method: str = "euler",
    *,
    pred_type: str = "flow",
    box: Box | None = None,
) -> Sampler:
    """The teacher as a sampler: its ODE in `calls` steps of `method`, from t = 1 (.999 for "eps")
    to 0, and its samples clamped to `box`."""
    grid = None
    if pred_type == "eps":
        grid = [_T_MAX_EPS * (1.0 - i / calls) for i in range(calls + 1)]

    def generate(
        network: nn.Module, noise: Tensor, cond: Any, generator: torch.Generator
    ) -> Tensor:
        x = sample_teacher(
            network, noise, calls, cond, method=method, pred_type=pred_type, t_grid=grid
        )
        assert isinstance(x, Tensor)  # a pair only with return_all_steps
        return x

    return _in_original_units(network, data, generate, {"the teacher": network}, box=box)


def student_sampler(
    network: nn.Module,
    data: Data,
    t_list: Sequence[float],
    *,
    sample_type: str = "ode",
    pred_type: str = "flow",
    seed: int = 0,
    source: nn.Module | None = None,
    box: Box | None = None,
) -> Sampler:
    """The student as a sampler: one call for each rung of `t_list`, and the sample clamped to
    `box`. The fresh noise of "sde" is drawn from `seed`, the same at every call of the sampler.
    Samples that are not finite are said of `source`, the teacher that the student started from, if
    it is no better."""

    def generate(
        network: nn.Module, noise: Tensor, cond: Any, generator: torch.Generator
    ) -> Tensor:
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

    named = {"the student": network}
    if source is not None:
        named = {"the teacher (called as its student is)": source, **named}
    return _in_original_units(network, data, generate, named, seed, box=box)


def nested_t_lists(t_list: Sequence[float], sample_type: str = "sde") -> dict[int, list[float]]:
    """{calls: rungs} for every number of calls that a student of these rungs serves
    (`served_steps`)."""
    most = len(t_list) - 1
    return {calls: list(t_list[:: most // calls]) for calls in served_steps(most, sample_type)}


def served_t_lists(how: StudentConfig) -> dict[int, list[float]]:
    """{calls: rungs} for every number of calls that a run's student serves: those it was asked for
    where these are several, else what `nested_t_lists` says."""
    if len(how.t_lists) > 1:
        return {calls: list(t_list) for calls, t_list in how.t_lists.items()}
    return nested_t_lists(how.t_list, how.sample_type)


def evaluate_student(
    network: nn.Module,
    task: Task,
    t_list: Sequence[float],
    *,
    sample_type: str,
    pred_type: str,
    box: Box | None = None,
    t_lists: Mapping[int, Sequence[float]] | None = None,
) -> dict[str, dict[str, float]]:
    """Scores of the student, {number of calls as text: {score: value}}, its samples clamped to
    `box`: for each number in `t_lists`, {calls: rungs}; None: for every number of calls that a
    student of the rungs `t_list` serves (`nested_t_lists`)."""
    options: dict[str, Any] = {"sample_type": sample_type, "pred_type": pred_type, "box": box}
    rows = {}
    if t_lists is None:
        t_lists = nested_t_lists(t_list, sample_type)
    for calls, rungs in t_lists.items():
        sampler = student_sampler(network, task.train, rungs, **options)
        rows[str(calls)] = task.evaluate(sampler)
    return rows


def evaluate_teacher(
    network: nn.Module,
    task: Task,
    calls: Sequence[int],
    ab2_calls: Sequence[int],
    *,
    pred_type: str = "flow",
    box: Box | None = None,
    progress: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    """Scores of the teacher, {solver: {score: value}}.

    Args:
        calls: of Euler's method, in rows "1", "2", ...
        ab2_calls: of two-step Adams-Bashforth, in rows "ab2-4", ...
        box: that its samples are clamped to; None: they aren't.
        progress: told the name of each row before it is measured.
    """
    euler = [(str(n), n, "euler") for n in calls]
    ab2 = [(f"ab2-{n}", n, "ab2") for n in ab2_calls]
    rows = {}
    for name, n, method in [*euler, *ab2]:
        progress(name)
        sampler = teacher_sampler(network, task.train, n, method, pred_type=pred_type, box=box)
        rows[name] = task.evaluate(sampler)
    return rows


def score_exported(student: Student, task: Task) -> dict[str, dict[str, float]]:
    """Scores of an exported student, {network calls as text: {score: value}}."""
    return {str(steps): task.evaluate(exported_sampler(student, steps)) for steps in student.steps}


def exported_sampler(student: Student, steps: int) -> Sampler:
    """An exported student as a sampler of `steps` network calls; the fresh noise of "sde" is the
    same at every call of the sampler."""

    def sample(z: Any, noise: Tensor) -> Tensor:
        generator = generator_for(0, "sampler")
        return student.sample(z, noise=noise, steps=steps, generator=generator)

    return sample


def latency_ms(sample: Sampler, data: Data, batch: int, *, repeats: int = 7) -> float:
    """Median milliseconds of sampling `batch` conditions once, after once to warm up; on a CPU with
    all threads of torch or with one, whichever is faster."""
    z = take_rows(getattr(data, "cond", data.Z), torch.arange(batch) % len(data))
    noise = torch.randn(batch, *noise_shape(data), generator=generator_for(0, "latency"))
    medians = []
    for threads in sorted({1, torch.get_num_threads()}):
        seconds = []
        with using_threads(threads):
            for _ in range(repeats + 1):
                started = time.perf_counter()
                sample(z, noise)
                seconds.append(time.perf_counter() - started)
        medians.append(statistics.median(seconds[1:]))
    return 1e3 * min(medians)


def noise_shape(data: Data) -> tuple[int, ...]:
    """The shape of the noise that a sample is made of. A user's own data need not say."""
    return getattr(data, "noise_shape", tuple(data.X.shape[1:]))


def chunk_rows(data: Data, most: int) -> int:
    """How many rows a network is given at once: `most` trajectories; fewer of other samples whose
    rows hold many numbers."""
    if isinstance(data, TrajectoryData):
        return most
    return max(1, min(most, MOST_NUMBERS // data.X[0].numel()))


def _in_original_units(
    network: nn.Module,
    data: Data,
    generate: Callable[[nn.Module, Tensor, Any, torch.Generator], Tensor],
    named: Mapping[str, nn.Module],
    seed: int = 0,
    *,
    box: Box | None = None,
) -> Sampler:
    """The sampler of `generate`, which is given (network, noise, cond) as the network sees them.

    It is the code that users of a student call, in chunks of rows and with the samples in CPU
    memory. Samples that are not finite are an error that says which of the `named` networks is the
    first to answer no number, at which time and for which of the rows that were given.
    """

    def sampled(called: nn.Module, z: Any, noise: Tensor) -> Tensor:
        generator = generator_for(seed, "sampler")
        # The first noise is given whole, so that a one-step sample doesn't depend on the chunks.
        with evaluating(network):
            return sample_in_original_units(
                network,
                lambda noise, cond: generate(called, noise, cond, generator),
                noise,
                z,
                x_normalizer=data.x_normalizer,
                z_normalizer=data.z_normalizer,
                pack=data.pack,
                box=box,
                rows=chunk_rows(data, MOST_ROWS),
                device=torch.device("cpu"),
            )

    def sample(z: Any, noise: Tensor) -> Tensor:
        x = sampled(network, z, noise)
        finite = torch.isfinite(x.flatten(1)).all(1)
        if not bool(finite.all()):
            bad = (~finite).nonzero().flatten()[:_MOST_BAD]
            for who, asked in named.items():
                sampled(Watched(asked, who, bad), take_rows(z, bad), noise[bad])
        return x

    return sample
