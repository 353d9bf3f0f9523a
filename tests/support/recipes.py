"""The recipes as a user runs them: a file of random walks, configs for seconds, processes."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.warm import run_all

__all__ = [
    "DATA",
    "KD_STEPS",
    "PATIENCE",
    "RECIPES",
    "STUDENT",
    "TEACHER",
    "content",
    "environment",
    "once",
    "python",
    "start",
    "stop",
    "the_error",
    "walks",
]

RECIPES = Path(__file__).parents[2] / "recipes"
PATIENCE = 300  # seconds: an end for tests that hang, not a promise of speed
DATA = """
data:
  name: file
  path: walks.npz
  pack: 2
  symmetry: {group: D4, in_rep: [standard], cond_rep: [standard]}
"""
TEACHER = f"""
name: walks-teacher
{DATA}
model: {{embedding_dim: 16, num_layers: 1, num_attention_heads: 2}}
train: {{steps: 10, batch_size: 16, log_every: 5, evaluate_every: 5, threads: 1}}
calls: [1, 2]
ab2_calls: [4]
"""
STUDENT = f"""
name: walks
{DATA}
teacher: {{folder: runs/walks-teacher/teacher, calls: [1, 2], ab2_calls: [4]}}
method: dmd2
student: {{steps: 2}}
dmd: {{fake_score_warmup_steps: 6, vsd_norm: rms}}
train: {{kd_steps: 30, kd_pairs: 64, kd_teacher_calls: 4, steps: 10, batch_size: 16, log_every: 5,
  evaluate_every: 10, threads: 1}}
"""
KD_STEPS = 30


def walks(n: int = 120) -> dict[str, np.ndarray]:
    """Random walks of four points that start at the last of two observed ones."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, 2, 2))
    return {"X": z[:, -1:] + 0.3 * rng.normal(size=(n, 4, 2)).cumsum(1), "Z": z}


def environment() -> dict[str, str]:
    # One thread, and nobody's accelerate config: what is computed must not depend on the machine.
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": os.devnull}


def python(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A Python process of its own, to its end; of a recipe, a fork (support/warm.py)."""
    words = [str(word) for word in arguments]
    if words[0].startswith(str(RECIPES)):
        (done,) = run_all([(words, environment(), cwd)], PATIENCE)
        return done
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """A Python process that is left running."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop(
    process: subprocess.Popen[str], with_signal: int, when: Callable[[], bool]
) -> tuple[int, str]:
    """Send a signal as soon as `when()`; exit code and stderr."""
    deadline = time.monotonic() + PATIENCE
    try:
        while not when():
            assert process.poll() is None, (
                f"ended before it could be stopped: {process.communicate()[1]}"
            )
            assert time.monotonic() < deadline, "never came to the point where it was to be stopped"
            time.sleep(0.002)
        process.send_signal(with_signal)
        return process.wait(PATIENCE), process.communicate()[1]
    finally:
        process.kill()


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name`, filled by `make` once a test session, whichever worker process comes
    first."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / name
    with open(base / f"{name}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / f"{name}.made").exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            (base / f"{name}.made").touch()
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def the_error(err: str) -> str:
    """The one line on stderr."""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line
