"""The student in a loop: milliseconds of one decision on one core, and of what is around it.

The student has the shape of the one that `recipes/configs/ring.yaml` distils: the shipped teacher
of `ring` with more layers, folded. Its weights are those of the teacher and of new layers, since
training doesn't change how long a call takes.

Milliseconds are those of the CPU, of the one thread that computes: on a busy machine others take
its turns. What is compared takes turns, call by call, and a ratio is the median of those of the
turns, so that what else the machine does meets both sides.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastgen
from bench_measures import take_turns
from fastgen.config import DataConfig
from fastgen.data.task import build_data
from fastgen.export import Student, export_onnx, export_student, load_network
from fastgen.export.original_units import sample_in_original_units
from fastgen.models.depth import with_layers
from fastgen.models.equivariance import fold
from fastgen.samplers import sample_teacher

TEACHER = Path(__file__).parents[1] / "recipes" / "teachers" / "ring"
TEACHER_CALLS = 100
CLOCK = time.thread_time
CALLS = 10  # of what takes a millisecond, in each turn

# What is measured -> (bar, whether more is better).
BARS = {
    "sample p50, CPU ms": (1.3, False),
    "sample p99, CPU ms": (3.0, False),
    "sample over its network": (1.05, False),
    "teacher's 100 calls over one decision": (60.0, True),
    "onnxruntime p50, CPU ms": (0.5, False),
    "load_student over import torch": (0.5, False),
}


def run_loop(layers: int, rounds: int) -> dict[str, float]:
    """Print and return all measures by name.

    Args:
        layers: of the student.
        rounds: turns of each comparison of single calls, times ten; others have fewer.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = measured(layers, rounds, Path(folder))
    for name, value in found.items():
        bar, more = BARS.get(name, (None, False))
        verdict = ""
        if bar is not None:
            met = value >= bar if more else value <= bar
            verdict = f"   bar {bar:g}: {'met' if met else 'missed'}"
        print(f"{name:40} {value:8.3f}{verdict}")
    return found


def measured(layers: int, rounds: int, folder: Path) -> dict[str, float]:
    """All measures of a student that is written to `folder`."""
    torch.set_num_threads(1)
    teacher = write_student(folder / "student", layers)
    student = fastgen.load_student(folder / "student")
    z = torch.tensor([[[1.0, 0.0], [-1.0, 0.1]]])  # start and goal
    generator = torch.Generator().manual_seed(0)

    def decision() -> None:
        student.sample(z, generator=generator)

    found = beside_its_network(student, decision, z, rounds)
    seconds = take_turns(
        {"decision": decision, "teacher": lambda: teacher_decision(teacher, student, z)},
        max(rounds // 20, 3),
        clock=CLOCK,
    )
    found["teacher's 100 calls over one decision"] = ratio(seconds["teacher"], seconds["decision"])
    found["onnxruntime p50, CPU ms"] = onnx_milliseconds(student, folder / "onnx", z, rounds)
    found["load_student over import torch"] = loading(folder / "student", max(rounds // 60, 1))
    return found


def write_student(path: Path, layers: int) -> torch.nn.Module:
    """Export the student; returns its teacher, folded as well."""
    task = build_data(DataConfig(name="ring", size=64)).train
    network, _ = load_network(TEACHER)
    export_student(
        path,
        with_layers(network, layers, torch.Generator().manual_seed(0)),
        t_list=[0.999, 0.0],
        pack=task.pack,
        horizon=task.X.shape[1:],
        x_normalizer=task.x_normalizer,
        z_normalizer=task.z_normalizer,
    )
    return fold(network).eval().requires_grad_(False)


def beside_its_network(
    student: Student, decision: Callable[[], None], z: Tensor, rounds: int
) -> dict[str, float]:
    """Milliseconds of single decisions, and their time over that of the network alone."""
    tokens, t_x, d_x = student.horizon[0] // student.pack, student.pack, student.horizon[1]
    x_t = torch.randn(1, tokens, t_x * d_x)
    t = torch.full((1,), student.t_list[0])

    @torch.no_grad()
    def network() -> None:
        student.network(x_t, t, z)

    seconds = take_turns(
        {"network": network, "sample": decision}, rounds * CALLS, warm_up=50, clock=CLOCK
    )
    samples = sorted(seconds["sample"])
    return {
        "network p50, CPU ms": 1e3 * statistics.median(seconds["network"]),
        "sample p50, CPU ms": 1e3 * statistics.median(samples),
        "sample p99, CPU ms": 1e3 * samples[int(0.99 * len(samples))],
        "sample over its network": ratio(seconds["sample"], seconds["network"]),
    }


def teacher_decision(teacher: torch.nn.Module, student: Student, z: Tensor) -> None:
    def solve(noise: Tensor, cond: Any) -> Any:
        return sample_teacher(teacher, noise, TEACHER_CALLS, cond)

    sample_in_original_units(
        teacher,
        solve,
        torch.randn(1, *student.noise_shape),
        z,
        x_normalizer=student.x_normalizer,
        z_normalizer=student.z_normalizer,
        pack=student.pack,
    )


def onnx_milliseconds(student: Student, path: Path, z: Tensor, rounds: int) -> float:
    """The median of single runs of the exported graph."""
    import onnxruntime

    export_onnx(student, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path / "model.onnx"), options)
    noise = np.random.default_rng(0).standard_normal((1, *student.noise_shape), np.float32)
    given = {"noise": noise, "cond": z.numpy()}
    seconds = take_turns(
        {"onnx": lambda: session.run(["x"], given)}, rounds * CALLS, warm_up=50, clock=CLOCK
    )
    return 1e3 * statistics.median(seconds["onnx"])


def loading(path: Path, rounds: int) -> float:
    """CPU seconds of `import fastgen` and `load_student`, over those of importing torch before, in
    new processes."""
    program = (
        "import sys, time; a = time.process_time(); import torch; b = time.process_time(); "
        "import fastgen; fastgen.load_student(sys.argv[1]); c = time.process_time(); "
        "print((c - b) / (b - a))"
    )
    ratios = []
    for _ in range(rounds + 1):  # the first one fills the caches of the file system
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)], check=True, capture_output=True, text=True
        )
        ratios.append(float(done.stdout))
    return statistics.median(ratios[1:])


def ratio(above: list[float], below: list[float]) -> float:
    """The median over turns of a ratio."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
