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
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench_bars import Bar, bars_of
from bench_budget_bars import budget_bars
from bench_budgets import Spent, cpu_seconds, kd_of_equal_budget, spent
from bench_cases import CASES, Case, Measure
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
MEASURES: dict[str, Measure] = {
    "turned": Measure(lambda folder: {"kept": kept_when_turned(folder)})
}


def run_quality(cases: list[str], options: Options, out_dir: Path) -> dict[str, Any]:
    """Run, print the tables and return what goes into the JSON file."""
    result = {}
    for name in cases:
        case = CASES[name]
        folder = out_dir / label_of(name)
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
    teacher: list[str] = []
    if case.weak is not None and not case.teachers:
        teacher = weak_teacher(folder / "teacher", *case.weak)
    rows: dict[str, Any] = {}
    teachers: dict[str, Any] = {}
    reports: dict[str, list[dict[str, Any]]] = {}
    for row, overrides in case.rows.items():
        if options.rows and row not in options.rows:
            continue
        reports[row] = []
        for seed in options.seeds:
            run = run_folder(folder, row, seed)
            drawn = [f"seed={seed}"]
            if case.teachers and case.weak is not None:
                drawn.append(f"data.seed={seed}")
                config, trained = case.weak
                trained = [*drawn, *trained, *case.teachers[row]]
                teacher = weak_teacher(Path(f"{run}-teacher"), config, trained)
            asked = [*drawn, *teacher, *options.overrides, *overrides]
            if row in case.equal:
                asked += kd_of_equal_budget(run_folder(folder, case.equal[row], seed))
            reports[row].append(distil(run, case.config, asked))
            if case.measure:
                add_measured(reports[row][-1], MEASURES[case.measure].of_student(run / "student"))
        rows[row] = summary(reports[row])
        # Of teachers that are trained with each seed, the first one's.
        own = f"{row}, " if case.teachers else ""
        teachers |= {own + calls: scores for calls, scores in reports[row][0]["teacher"].items()}
    for row in rows:
        rows[row]["from KD alone"] = gains_over_kd(row, case.equal, reports)
    floor = next(iter(reports.values()))[0]["floor"]
    return {"rows": rows, "teacher": teachers, "floor": floor}


def run_folder(folder: Path, row: str, seed: int) -> Path:
    return folder / f"{label_of(row, '')}-{seed}"


def label_of(name: str, space: str = "-") -> str:
    """The name of a case or a row in a file's name."""
    return name.translate({ord(" "): space, ord("+"): "-", ord(","): "-" if not space else ""})


def add_measured(report: dict[str, Any], found: dict[str, float]) -> None:
    """Add scores of the exported student to a report, beside those of its most calls."""
    for rows in (report["student"], report[report["selected"]]):
        rows[most_calls(rows)] |= found


def most_calls(rows: dict[str, Any]) -> str:
    return max(rows, key=int)


def gains_over_kd(
    row: str, equal: dict[str, str], reports: dict[str, list[dict[str, Any]]]
) -> dict[str, list[float]]:
    """Of each score, the exported student's less that of KD alone, by seed.

    KD alone is the row that spends as much as this one; where there is none, the KD that this very
    run began with; {} without either.

    Args:
        row: name.
        equal: of the case.
        reports: of each row, by seed.
    """
    alone = next((kd for kd, other in equal.items() if other == row and kd in reports), None)
    if alone is not None:
        before = [report["student"] for report in reports[alone]]
    elif all(report["kd"] and report["selected"] != "kd" for report in reports[row]):
        before = [report["kd"] for report in reports[row]]
    else:
        return {}
    found: dict[str, list[float]] = {}
    for report, kd in zip(reports[row], before, strict=True):
        student = report["student"][most_calls(report["student"])]
        for score, value in kd[most_calls(kd)].items():
            if score in student:
                found.setdefault(score, []).append(student[score] - value)
    return found


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
    report = folder / "report" / "report.json"
    fixed = [f"run_dir={folder}", "train.threads=1", "keep=best"]
    call("distill.py", config, [*fixed, *overrides], report)
    return json.loads(report.read_text(encoding="utf-8"))


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
    subprocess.run(command, check=True)


def training_seconds(folder: Path, config: str) -> float:
    """CPU seconds of one thread that training the teacher of a distillation's `config` takes."""
    config = config.replace(".yaml", "-teacher.yaml")
    updates = load_config(TrainTeacherConfig, CONFIGS / config).train.steps
    weak_teacher(folder, config, [f"train.steps={TIMED}", "calls=[]", "ab2_calls=[4]"])
    text = (folder / "teacher" / "config.json").read_text(encoding="utf-8")
    return json.loads(text)["description"]["seconds_cpu"] / TIMED * updates


def summary(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each stage and number of calls the median, least and largest scores over the seeds, the
    same of the exported student, and what it took.

    Stages that not all seeds have are left out.
    """
    found: dict[str, Any] = {"selected": [report["selected"] for report in reports]}
    stages = [
        stage
        for stage in reports[0]["validation"]
        if all(stage in report["validation"] for report in reports)
    ]
    for stage in (*stages, "student"):
        found[stage] = {
            calls: {
                score: spread_of([report[stage][calls][score] for report in reports])
                for score in scores
                if all(score in report[stage][calls] for report in reports)
            }
            for calls, scores in reports[0][stage].items()
        }
    found["cpu seconds"] = median_of_parts([cpu_seconds(report) for report in reports])
    found["evaluations"] = median_of_parts([report["teacher_evaluations"] for report in reports])
    found["spent"] = [spent(report)._asdict() for report in reports]
    return found


def median_of_parts(parts: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(part.get(name, 0) for part in parts) for name in parts[0]}


def spread_of(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def show(name: str, scores: tuple[str, ...], case: dict[str, Any]) -> None:
    """Print the table of a case, and what its students differ by from those of KD alone.

    Evaluations of the teacher and CPU seconds are those of pairs, KD and the stage; of the exported
    student those of the whole run without its report.
    """
    print("\n" + line_of(name, scores) + f"{'evaluations':>13}{'CPU s':>9}")
    references = {"fresh data": case["floor"]}
    for calls, values in case["teacher"].items():
        references[f"teacher {calls}"] = values
    for row, values in references.items():
        print(line_of(row, [f"{values.get(score, float('nan')):.4f}" for score in scores]))
    for row, found in case["rows"].items():
        for stage in (*stages_of(found), "student"):
            taken = taken_by(found, stage)
            who = f"chosen ({', '.join(sorted(set(found['selected'])))})"
            for calls, values in found[stage].items():
                label = f"{row}: {stage if stage != 'student' else who}, {calls}"
                cells = [shown_spread(values.get(score)) for score in scores]
                cost = f"{taken.evaluations:>13,.0f}{taken.seconds:>9.0f}"
                print(line_of(label, cells) + cost, flush=True)
    for row, found in case["rows"].items():
        for score in scores:
            if score in found["from KD alone"]:
                by_seed = " ".join(f"{value:+.4f}" for value in found["from KD alone"][score])
                print(f"{row}, {score} less that of KD alone, by seed: {by_seed}")


def stages_of(found: dict[str, Any]) -> list[str]:
    """The trained stages in the summary of a row."""
    return [name for name in found["evaluations"] if name != "pairs" and name in found]


def taken_by(found: dict[str, Any], stage: str) -> Spent:
    """Medians of what a stage of a row took, with its pairs and KD; "student": the whole run."""
    if stage == "student":
        each = [Spent(**run) for run in found["spent"]]
        return Spent(*(statistics.median(values) for values in zip(*each, strict=True)))
    parts = dict.fromkeys(("pairs", "kd", stage))
    return Spent(
        sum(found["evaluations"].get(part, 0) for part in parts),
        sum(found["cpu seconds"].get(part, 0.0) for part in parts),
    )


def shown_spread(cell: dict[str, float] | None) -> str:
    if cell is None:
        return ""
    return f"{cell['median']:.4f}+-{(cell['most'] - cell['least']) / 2:.4f}"


def line_of(label: str, cells: Sequence[str]) -> str:
    return f"{label:<44}" + "".join(f"{cell:>17}" for cell in cells)
