"""Faults: a small distillation in a process of its own, in which something goes wrong.

Processes whose start is no part of a test are forks of a warm one (support/warm.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from fastgen.records.checkpoints import load_newest_checkpoint
from fastgen.records.log import read_log, timeless
from support import launching
from support.warm import run_all

__all__ = [
    "JOB",
    "PATIENCE",
    "assert_equal_runs",
    "command",
    "environment",
    "pair",
    "run",
    "state",
    "the_line",
]

PATIENCE = 300  # seconds: an end for tests that hang, not a promise of speed

# `python job.py <run_dir> <fault> <options as JSON>`: a distillation of tests/support/toy.py, in
# which a fault comes about.
JOB = f"""
import json, os, resource, signal, sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from fastgen.jobs.command_line import user_errors
from fastgen.jobs.distillation import Distillation, distill
from fastgen.methods.kd import KnowledgeDistillation
from fastgen.methods.matching import DistributionMatching
from support.toy import ToyTask, ToyTeacher, with_everything, without_pictures

run_dir, fault, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
rank = int(os.environ.get("RANK", "0"))
resume = options.pop("resume", False)
sizes = {{"kd_steps": 12, "steps": 12, "checkpoint_every": 3, "evaluate_every": 4, "log_every": 2}}
cfg = with_everything(run_dir, **sizes | options).model_copy(update={{"resume": resume}})
update = DistributionMatching.update

def faulty(self, at):
    if at == 9:
        if fault == "sigterm" and rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        if fault == "sigterm to all":
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)
        if fault == "sigint" and rank == 0:
            os.kill(os.getpid(), signal.SIGINT)
        if fault == "sighup" and rank == 0:
            os.kill(os.getpid(), signal.SIGHUP)
        if fault == "launcher goes":
            launcher = os.getppid()
            if rank == 0:
                os.kill(launcher, getattr(signal, os.environ["WITH_SIGNAL"]))
            while os.getppid() == launcher:
                time.sleep(0.01)
            time.sleep(2)  # until it is seen
        if fault == "error" and rank == 1:
            raise ValueError("a broken sample")
    if at == 8:
        if fault == "full":  # files of more than a few bytes can't be written any more
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        if fault == "read-only":
            os.chmod(run_dir + "/checkpoints", 0o555)
            os.setuid(65534) if os.getuid() == 0 else None
    if fault == "nan" and 6 <= at < 9 or fault == "nan for ever" and at >= 6:
        self.x0 = self.x0 * float("nan")
    logs = update(self, at)
    if fault == "nan" and at == 8:
        self.x0 = ToyTask().train.network_inputs()[0]
    return logs

DistributionMatching.update = faulty
if fault == "long update":
    def long_update(self, at):
        print("begun", flush=True)
        time.sleep({PATIENCE})

    KnowledgeDistillation.update = long_update
if fault == "sigterm in pairs":
    Distillation.pairs = lambda self: os.kill(os.getpid(), signal.SIGTERM)
with user_errors(resumable=True), without_pictures():
    distill(cfg, teacher=ToyTeacher(), task=ToyTask())
"""


def environment() -> dict[str, str]:
    # Nobody's accelerate config; a launch on a CPU has to say that it is one.
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HOME": os.devnull,
        "ACCELERATE_USE_CPU": "true",
    }


def command(
    folder: Path, fault: str, *, processes: int = 1, run: str = "run", **options: object
) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    job = [str(folder / "job.py"), str(folder / run), fault, json.dumps(options)]
    return [sys.executable, *(launch if processes > 1 else []), *job]


def run(
    folder: Path, fault: str = "none", *, processes: int = 1, **options
) -> subprocess.CompletedProcess[str]:
    """The job, to its end."""
    words = command(folder, fault, processes=processes, **options)
    if processes == 1:
        (done,) = run_all([(words[1:], environment(), folder)], PATIENCE)
        return done
    return subprocess.run(
        words,
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def pair(folder: Path, fault: str, **options) -> list[tuple[int, str]]:
    """(exit code, stderr) of two processes that share the job, without a launcher that would end
    one for the other."""
    words = command(folder, fault, **options)[1:]
    done = launching.pair(words, environment(), folder, PATIENCE)
    return [(process.returncode, process.stderr) for process in done]


def the_line(stderr: str) -> str:
    """The last line of a process that ended as a user can understand."""
    assert "Traceback" not in stderr, stderr
    return stderr.strip().splitlines()[-1]


def state(run_dir: Path) -> tuple[dict[str, torch.Tensor], dict]:
    found = load_newest_checkpoint(run_dir)
    assert found is not None
    return found


def assert_equal_runs(whole: Path, other: Path) -> None:
    for file in ("student/student.safetensors", "stages/kd.safetensors", "stages/dmd.safetensors"):
        one = load_file(whole / file)
        two = load_file(other / file)
        assert one.keys() == two.keys() and all(
            torch.equal(value, two[key]) for key, value in one.items()
        ), file
    logs = [[timeless(row) for row in read_log(run)] for run in (whole, other)]
    assert logs[0] == logs[1]
