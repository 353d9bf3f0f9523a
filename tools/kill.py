"""Kill a small distillation and a small training of a teacher at random moments, resume them each
time, and compare their ends with uninterrupted ones'.

    python tools/kill.py [--kills 20] [--seed 0] [--out runs/kill]

Every branch is on: KD, DMD2 with a fake score, a discriminator, KD beside VSD, EMA, the best kept,
patience counted. The teacher, which gets a quarter of the kills, is trained with dropout, the one
draw from torch's global generator. A kill is SIGKILL to a process of its own, one after the other:
while a checkpoint is written (every second one), anywhere in training, and the last while the
student is scored and exported. After each, whatever looks like a checkpoint has to be a whole one.
At the end the student, the results of all stages, the newest checkpoints (weights, averages,
optimisers of all networks, best, patience) and the rows of metrics.jsonl have to be those of the
uninterrupted run, bit for bit but for clocks. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import matplotlib.figure  # noqa: F401  # loaded here, a fork need not: reports draw with it
import torch
import torch._dynamo  # noqa: F401  # and optimisers load it
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from fastgen.config import DistillConfig, TrainTeacherConfig
from fastgen.data.task import TASKS
from fastgen.data.tasks.modes import ModesTask
from fastgen.distillation import distill
from fastgen.models import build_model
from fastgen.pretraining import train_teacher
from fastgen.records.checkpoints import check_checkpoint, checkpoint_folders
from fastgen.records.log import read_log, timeless

TOO_LATE = "too late"
PATIENCE = 300.0  # seconds until a run that makes no checkpoint counts as hung
NETWORK = {"num_layers": 1, "num_attention_heads": 2, "embedding_dim": 64}
LOOP = {
    "batch_size": 16,
    "checkpoint_every": 2,
    "keep_checkpoints": 3,
    "evaluate_every": 4,
    "log_every": 3,
    "threads": 1,
}
CONFIG: dict[str, Any] = {
    "name": "kill",
    "data": {"name": "modes"},
    "teacher": {"calls": [1], "ab2_calls": [4]},
    "student": {"steps": 2},
    "dmd": {
        "fake_score_warmup_steps": 6,
        "vsd_norm": "rms",
        "gan_loss_weight_gen": 0.1,
        "gan_t": {"time_dist_type": "uniform", "min_t": 0.02, "max_t": 0.98},
        "gan_r1_reg_weight": 0.1,
        "gan_disc_warmup_steps": 4,
        "real_data_weight": 0.5,
        "kd_weight": 0.2,
    },
    "train": {
        **LOOP,
        "kd_steps": 20,
        "kd_pairs": 64,
        "kd_teacher_calls": 4,
        "steps": 20,
        "patience": 100,
    },
}
TEACHER_CONFIG: dict[str, Any] = {
    "name": "kill-teacher",
    "data": {"name": "few_modes", "size": 256},
    "model": {"equivariant": False, **NETWORK, "p_drop_emb": 0.1, "p_drop_attn": 0.2},
    "train": {**LOOP, "steps": 30},
    "calls": [1],
    "ab2_calls": [4],
}
TEACHER = {"in_dim": 2, "out_dim": 2, "cond_dim": 1, "in_horizon": 1, "cond_horizon": 1}


class FewModes(ModesTask):
    """Scores of so few samples say nothing, and take no time."""

    SAMPLES = 128
    QUICK_SAMPLES = 64
    FLOOR_DRAWS = 2  # one has no spread


TASKS["few_modes"] = FewModes


@dataclass(frozen=True)
class Job:
    """A run that is killed.

    Attributes:
        work: makes it in a folder, from its newest checkpoint if there is one.
        last: the file that it writes last, with the scores.
        scores: the entries of that file that equal runs share.
    """

    work: Callable[[Path], object]
    last: str
    scores: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("runs/kill"))
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    report = kill_and_compare(options.out, kills=options.kills, seed=options.seed)
    print(table(report))
    print(json.dumps(report))
    (options.out / "kill.json").write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(0 if report["passed"] else 1)


def kill_and_compare(out: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """Kill each job, a distillation and a training of a teacher; `kills` in all.

    Returns:
        {"seed", "kills": [{"job", "moment", "at", "half_written", "damaged"}],
        "compared": {what: number}, "different": [what], "passed"}.
    """
    draw = random.Random(seed)
    of_teacher = (kills + 2) // 4
    shares = {"distillation": kills - of_teacher, "teacher": of_teacher}
    done: list[dict[str, Any]] = []
    compared: Counter[str] = Counter()
    different: list[str] = []
    for name, share in shares.items():
        (out / name).mkdir()
        rows, counts, differs = kill_job(JOBS[name], out / name, share, draw)
        done += [{"job": name, **row} for row in rows]
        compared.update(counts)
        different += [f"{name}: {what}" for what in differs]
    found = {"seed": seed, "kills": done, "compared": dict(compared), "different": different}
    return {**found, "passed": not different and not any(kill["damaged"] for kill in done)}


def kill_job(
    job: Job, out: Path, kills: int, draw: random.Random
) -> tuple[list[dict[str, Any]], dict[str, int], list[str]]:
    """Run a job once to the end in `out/whole`, once with `kills` kills in `out/killed`.

    Returns:
        (a row for each kill, {what was compared: how many}, [what differs]).
    """
    whole = out / "whole"
    killed = out / "killed"
    code = join(started(job, whole))
    if code != 0:
        raise RuntimeError(f"the uninterrupted run ended with {code}: see {log_of(whole)}")
    total = newest(whole)
    # From the last checkpoint to the last file: a kill must come before.
    last_save = checkpoint_folders(whole)[-1].stat().st_mtime
    hand_over = (whole / job.last).stat().st_mtime - last_save
    done: list[dict[str, Any]] = []
    for number in tqdm(range(kills), desc="kills"):
        left = kills - number
        last = left == 1 and kills > 1
        there = newest(killed)
        # A kill soon after the last checkpoint leaves none to be killed in.
        last = last or there >= total
        moment = "hand-over" if last else ("write", "anywhere")[number % 2]
        # On the average the kills before the last share what is left to train.
        further = total - there
        if not last:
            most = min(2 * (total - 8 - there) // left, total - 8 - there)
            further = draw.randint(0, max(0, most))
        at = there + further
        done.append(kill_once(job, killed, moment, at, hand_over, draw))
        if done[-1]["moment"] == TOO_LATE:
            break
    code = join(started(job, killed))
    if code != 0:
        raise RuntimeError(f"the last resumed run ended with {code}: see {log_of(killed)}")
    return done, *compare(job, whole, killed)


def kill_once(
    job: Job, run: Path, moment: str, at: int, hand_over: float, draw: random.Random
) -> dict[str, Any]:
    """Start or resume the run, kill it at a random `moment` after checkpoint `at`, and look at what
    is left.

    Args:
        hand_over: seconds that a run takes after its last checkpoint.
    """
    process = started(job, run)
    wait(process, lambda: newest(run) >= at)
    if moment == "write":
        # Whatever it is called: a new name is a checkpoint that has begun to be written.
        before = names(run)
        wait(process, lambda: bool(names(run) - before))
        time.sleep(draw.uniform(0.0, 0.002))
    else:
        longest = hand_over if moment == "hand-over" else min(0.4, hand_over)
        time.sleep(draw.uniform(0.0, 0.7) * longest)
    process.kill()
    code = join(process)
    if code == 0 and moment == "hand-over":
        moment = TOO_LATE  # it was quicker than the run that was measured
    elif code != -signal.SIGKILL:
        raise RuntimeError(
            f"the run ended by itself with {code} before it was killed: see {log_of(run)}"
        )
    damaged = []
    for folder in checkpoint_folders(run):
        try:
            check_checkpoint(folder)
        except (ValueError, OSError, KeyError, TypeError) as error:
            damaged.append(f"{folder.name}: {error}")
    return {
        "moment": moment,
        "at": newest(run),
        "half_written": len(half_written(run)),
        "damaged": damaged,
    }


# ---- The runs ------------------------------------------------------------------------------------


def started(job: Job, run: Path) -> BaseProcess:
    """A job in a process of its own, from its newest checkpoint if there is one."""
    # Forked: the seconds that imports take are no training to be killed in.
    process = multiprocessing.get_context("fork").Process(target=work, args=(job, run))
    process.start()
    return process


def work(job: Job, run: Path) -> None:
    with open(log_of(run), "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    job.work(run)


def distil(run: Path) -> None:
    torch.manual_seed(0)
    cfg = DistillConfig.model_validate({**CONFIG, "run_dir": str(run), "resume": True})
    teacher = build_model({"class": "CondTransformerRegressor", **TEACHER, **NETWORK})
    task = FewModes(size=256)
    distill(cfg, teacher=teacher, task=task)


def pretrain(run: Path) -> None:
    train_teacher(
        TrainTeacherConfig.model_validate({**TEACHER_CONFIG, "run_dir": str(run), "resume": True})
    )


JOBS = {
    "distillation": Job(
        distil,
        "report/report.json",
        ("teacher", "student", "kd", "dmd", "validation", "selected", "warnings"),
    ),
    "teacher": Job(pretrain, "teacher/scores.json", ("teacher", "floor")),
}


def log_of(run: Path) -> Path:
    return run.with_suffix(".log")


def join(process: BaseProcess) -> int | None:
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        raise RuntimeError("the run hangs")
    return process.exitcode


def wait(process: BaseProcess, until: Callable[[], bool]) -> None:
    """Return when `until()` or when the process has ended."""
    deadline = time.monotonic() + PATIENCE
    while not until() and process.exitcode is None:
        time.sleep(0.0005)
        if time.monotonic() > deadline:
            process.kill()
            raise RuntimeError("the run hangs")


def newest(run: Path) -> int:
    """Number of the newest checkpoint, 0 before one."""
    folders = checkpoint_folders(run)
    return int(folders[-1].name.removeprefix("step_")) if folders else 0


def names(run: Path) -> set[str]:
    """Checkpoints, and what is being written beside them, but not what is being removed."""
    return {path.name for path in (run / "checkpoints").glob("*") if not path.name.endswith(".old")}


def half_written(run: Path) -> list[Path]:
    """What a checkpoint is called while it is written."""
    return list((run / "checkpoints").glob(".step_*.new-*"))


# ---- Comparing -----------------------------------------------------------------------------------


def compare(job: Job, whole: Path, other: Path) -> tuple[dict[str, int], list[str]]:
    """({what was compared: how many}, [what differs]) of two finished runs of a job."""
    tensors, different = compare_tensors(whole, other)
    checkpoints = checkpoint_folders(whole)
    for folder in checkpoints:
        one = read(folder / "state.json")
        two = read(other / "checkpoints" / folder.name / "state.json")
        keys = [key for key in one if key != "seconds" and one[key] != two.get(key)]
        different += [f"{folder.name}: {key}" for key in keys]
    rows = [timeless(row) for row in read_log(whole)]
    others = [timeless(row) for row in read_log(other)]
    if len(rows) != len(others):
        different.append(f"rows of metrics.jsonl: {len(rows)} and {len(others)}")
    for i, (row, its) in enumerate(zip(rows, others, strict=False)):
        if row != its:
            different.append(f"metrics.jsonl row {i}")
    one = read(whole / job.last)
    two = read(other / job.last)
    different += [f"{job.last}: {key}" for key in job.scores if one[key] != two[key]]
    compared = {
        "tensors": tensors,
        "checkpoints": len(checkpoints),
        "rows": len(rows),
        "scores": len(job.scores),
    }
    return compared, different


def compare_tensors(whole: Path, other: Path) -> tuple[int, list[str]]:
    """(tensors that were compared, [what differs]) of the safetensors of two finished runs."""
    compared = 0
    different: list[str] = []
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
    if files != sorted(path.relative_to(other) for path in other.rglob("*.safetensors")):
        different.append("names of the files")
    for file in files:
        if not (other / file).exists():
            continue
        one = load_file(whole / file)
        two = load_file(other / file)
        different += [f"{file}: {name}" for name in sorted(one.keys() ^ two.keys())]
        common = sorted(one.keys() & two.keys())
        different += [f"{file}: {name}" for name in common if not same_bits(one[name], two[name])]
        compared += len(common)
    return compared, different


def read(file: Path) -> dict[str, Any]:
    """The JSON of a file, empty where there is none."""
    return json.loads(file.read_text()) if file.exists() else {}


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def table(report: dict[str, Any]) -> str:
    """The kills by moment, then what was compared."""
    lines = [f"{'moment':<12}{'kills':>6}{'half-written':>14}{'damaged':>9}"]
    for moment in ("write", "anywhere", "hand-over", TOO_LATE):
        rows = [kill for kill in report["kills"] if kill["moment"] == moment]
        cut = sum(bool(kill["half_written"]) for kill in rows)
        damaged = sum(bool(kill["damaged"]) for kill in rows)
        lines.append(f"{moment:<12}{len(rows):>6}{cut:>14}{damaged:>9}")
    compared = [f"{count} {what}" for what, count in report["compared"].items()]
    lines.append(f"compared bit for bit: {', '.join(compared)}")
    lines.append(f"different: {'; '.join(report['different'][:10]) or 'nothing'}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
