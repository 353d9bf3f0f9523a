"""Quality of students: what DMD2, KD, a GAN and real data are worth on tasks whose law is known,
and on images.

    python tools/bench.py quality [--cases fashion ...] [--rows "KD + DMD" ...] [--seeds 0 1 2]
        [--overrides train.steps=100 ...] [--out runs/bench-quality]

A case (:mod:`bench_cases`) is a task with a teacher. Its rows are recipes, each with every seed;
every run is one of recipes/distill.py, and what is compared are medians over the seeds. Beside the
scores stand teacher evaluations, CPU seconds, and by seed the difference from KD alone, which is
given as much of both where a case says so (:mod:`bench_budgets`).

Weak teachers are trained here: a quarter of the updates of the shipped teacher, at the learning
rates that these had, so that a student has something to gain from real data.

What a distillation costs is compared with what its teacher's training takes on the same machine.
Both are CPU seconds of one thread; the teacher's are told from its first 200 updates.

Runs are kept: what an earlier call finished is not repeated, what it began goes on, and another
recipe needs another folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

import bench_guided
import bench_peer
import bench_prefix
import bench_weights
from bench_bars import Bar, bars_of
from bench_budget_bars import budget_bars
from bench_budgets import REPORT, kd_of_equal_budget, read_report, spent
from bench_cases import CASES, Case, Measure
from bench_tables import add_measured, gains_over_kd, show, summary
from fastgen.config import TrainTeacherConfig
from fastgen.config.files import load_config
from fastgen.data.tasks.ring import RingTask, succeeds
from fastgen.export.folders import load_student

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "recipes" / "configs"
# Updates of a teacher whose seconds are measured.
TIMED = 200


class Options(NamedTuple):
    """What a call asks for beside its cases.

    Attributes:
        seeds: of every row.
        rows: the rows that are run; () for all. Bars need all of them.
        overrides: of every distillation, as if they stood in its config; the rows' own win.
    """

    seeds: list[int]
    rows: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()


# What is measured of exported students, by the name that a case gives.
MEASURES = {
    "prefixes": Measure(bench_prefix.of_student),
    "turned": Measure(lambda folder: {"kept": kept_when_turned(folder)}),
    "guided": Measure(bench_guided.of_student, bench_guided.prepare, bench_guided.of_teacher),
    "weights": Measure(
        bench_weights.of_student,
        bench_weights.prepare,
        bench_weights.of_teacher,
        bench_weights.of_data,
    ),
}


def run_quality(cases: list[str], options: Options, out_dir: Path) -> dict[str, Any]:
    """Run, print the tables and return what goes into the JSON file."""
    result = {}
    for name in cases:
        case = CASES[name]
        folder = out_dir / label_of(case.folder or name)
        found = run_case(case, options, folder)
        if case.timed:
            found["teacher seconds"] = training_seconds(folder / "timed-teacher", case.config)
        show(name, case.scores, found)
        if found["rows"].keys() == case.rows.keys():
            found["bars"] = shown_bars(bars_of(name, found) | budget_bars(name, case.equal, found))
        result[name] = found
    return result


def shown_bars(bars: dict[str, Bar]) -> dict[str, dict[str, Any]]:
    """Print each bar by its name, met or not; the same for the JSON file."""
    for label, bar in bars.items():
        verdict = "met   " if bar.met() else "MISSED"
        print(f"{verdict} {label}: {bar.got:.4f} against {bar.bar:.4f}", flush=True)
    return {label: {**bar._asdict(), "met": bar.met()} for label, bar in bars.items()}


def run_case(case: Case, options: Options, folder: Path) -> dict[str, Any]:
    """Summaries of the case's rows, and the scores of its teacher and of its floor."""
    extra = MEASURES.get(case.measure)
    if extra is not None and extra.prepare is not None:
        extra.prepare(folder)
    teacher: list[str] = []
    if case.weak is not None and not case.teachers:
        config, trained = case.weak
        teacher = weak_teacher(folder / "teacher", config, filled(trained, folder))
    reports: dict[str, list[dict[str, Any]]] = {}
    for row in case.rows:
        if options.rows and row not in options.rows:
            continue
        try:
            reports[row] = [
                run_row(case, row, seed, teacher, options, folder) for seed in options.seeds
            ]
        except ImportError as error:  # of a peer
            print(f"{row} is left out: {error}")
    rows: dict[str, Any] = {row: summary(found) for row, found in reports.items()}
    for row in rows:
        rows[row]["from KD alone"] = gains_over_kd(row, case.equal, reports)
    floor = dict(next(iter(reports.values()))[0]["floor"])
    teachers = {}
    for row, found in reports.items():
        # Of teachers that are trained with each seed, the first one's.
        own = f"{row}, " if case.teachers else ""
        teachers |= {own + calls: scores for calls, scores in found[0]["teacher"].items()}
    if extra is not None and extra.of_teacher is not None:
        teachers |= extra.of_teacher(folder)
    if extra is not None and extra.of_data is not None:
        floor |= extra.of_data()
    return {"rows": rows, "teacher": teachers, "floor": floor}


def run_row(
    case: Case, row: str, seed: int, teacher: list[str], options: Options, folder: Path
) -> dict[str, Any]:
    """The report of one run of a row, with what is measured of its student.

    Args:
        case, row, seed: which.
        teacher: overrides of a teacher that all rows share.
        options: of the call.
        folder: of the case.

    Raises:
        ImportError: of a peer that can't be imported.
    """
    run = run_folder(folder, row, seed)
    if row in case.peer:
        other = read_report(run_folder(folder, case.peer[row], seed))
        return bench_peer.distil_by_peer(run, seed, spent(other).seconds)
    drawn = [f"seed={seed}"]
    if case.teachers and case.weak is not None:
        drawn.append(f"data.seed={seed}")
        config, trained = case.weak
        trained = [*drawn, *trained, *case.teachers[row]]
        teacher = weak_teacher(Path(f"{run}-teacher"), config, trained)
    asked = [*drawn, *teacher, *options.overrides, *filled(case.rows[row], folder)]
    if row in case.equal:
        asked += kd_of_equal_budget(run_folder(folder, case.equal[row], seed))
    report = distil(run, case.config, asked)
    if case.measure:
        add_measured(report, MEASURES[case.measure].of_student(run / "student"))
    return report


def filled(overrides: list[str], folder: Path) -> list[str]:
    """Overrides with the folder of their case in place of `{folder}`."""
    return [text.replace("{folder}", str(folder)) for text in overrides]


def run_folder(folder: Path, row: str, seed: int) -> Path:
    return folder / f"{label_of(row, '')}-{seed}"


def label_of(name: str, space: str = "-") -> str:
    """The name of a case or a row in a file's name."""
    return name.translate({ord(" "): space, ord("+"): "-", ord(","): "-" if not space else ""})


def weak_teacher(folder: Path, config: str, overrides: list[str]) -> list[str]:
    """Train a teacher; returns the overrides that distil it."""
    done = folder / "teacher" / "model.safetensors"
    call("train_teacher.py", config, [f"run_dir={folder}", "train.threads=1", *overrides], done)
    rows = ("calls", "ab2_calls")
    asked = [f"teacher.{text}" for text in overrides if text.split("=")[0] in rows]
    return [f"teacher.folder={folder / 'teacher'}", *asked]


def kept_when_turned(folder: Path) -> float:
    """Share of an exported ring student's successful paths that still succeed when scene and noise
    are turned or mirrored, over the seven elements of D4 that move anything."""
    student = load_student(folder)
    references, noise = RingTask().references("all")
    Z = references.Z.repeat_interleave(RingTask.SAMPLES, 0).float()

    def succeed(g: torch.Tensor) -> torch.Tensor:
        return succeeds(student.sample(Z @ g.T, noise=noise @ g.T), (Z @ g.T).double())

    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    mirror = torch.diag(torch.tensor([1.0, -1.0]))
    turns = [torch.linalg.matrix_power(quarter, k) for k in range(4)]
    before = succeed(turns[0])
    after = torch.stack([succeed(g) for g in (*turns[1:], *(turn @ mirror for turn in turns))])
    return float(after[:, before].double().mean())


def distil(folder: Path, config: str, overrides: list[str]) -> dict[str, Any]:
    """One run, kept if it is there already; its report."""
    fixed = [f"run_dir={folder}", "train.threads=1", "keep=best"]
    call("distill.py", config, [*fixed, *overrides], folder / REPORT)
    return read_report(folder)


def call(recipe: str, config: str, overrides: list[str], done: Path) -> None:
    """Run a recipe, or what is left of it; do nothing if it has made the file `done`.

    Raises:
        ValueError: the folder holds a run of another recipe.
    """
    folder = Path(overrides[0].removeprefix("run_dir="))
    asked = {
        "recipe": recipe,
        "config": (CONFIGS / config).read_text(encoding="utf-8"),
        "overrides": overrides,
    }
    stamp = folder / "asked.json"
    if folder.exists():
        known = json.loads(stamp.read_text(encoding="utf-8")) if stamp.exists() else None
        if known != asked:
            raise ValueError(
                f"{folder} holds a run of another recipe: choose another --out, or remove it"
            )
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    stamp.write_text(json.dumps(asked), encoding="utf-8")
    command = [sys.executable, str(ROOT / "recipes" / recipe), str(CONFIGS / config), *overrides]
    if (folder / "config.yaml").exists():
        command.append("--resume")
    # Factories of teachers lie beside this file.
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run(command, check=True, env=env)


def training_seconds(folder: Path, config: str) -> float:
    """CPU seconds of one thread that training the teacher of a distillation's `config` takes."""
    config = config.replace(".yaml", "-teacher.yaml")
    updates = load_config(TrainTeacherConfig, CONFIGS / config).train.steps
    weak_teacher(folder, config, [f"train.steps={TIMED}", "calls=[]", "ab2_calls=[4]"])
    text = (folder / "teacher" / "config.json").read_text(encoding="utf-8")
    return json.loads(text)["description"]["seconds_cpu"] / TIMED * updates
