"""Quality of students: what DMD2, KD, a GAN and real data are worth on tasks whose law is known.

    python tools/bench.py quality [--cases modes ...] [--seeds 0 1 2] [--out runs/bench-quality]

A case is a task with a teacher. Its rows are recipes, each with every seed; every run is one of
recipes/distill.py, and what is compared are medians over the seeds.

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

from bench_bars import bars_of
from fastgen.config import TrainTeacherConfig
from fastgen.config.files import load_config
from fastgen.data.tasks.ring import RingTask, succeeds
from fastgen.export.folders import load_student

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "recipes" / "configs"
# Updates of a teacher whose seconds are measured.
TIMED = 200

# A discriminator that keeps modes: relativistic, R1 and R2 of weight 30 on perturbations of .05.
GAN = [
    "dmd.gan_loss=relativistic",
    "dmd.gan_r1_reg_weight=0.15",
    "dmd.gan_r2_reg_weight=0.15",
    "dmd.gan_r1_reg_alpha=0.05",
    "dmd.gan_use_same_t_noise=true",
]
ON_SAMPLES = [
    *GAN,
    "dmd.gan_features=sample",
    "dmd.gan_t={time_dist_type: uniform, min_t: 0.0, max_t: 0.1}",
]
ON_FEATURES = [
    *GAN,
    "dmd.gan_loss=softplus",
    "dmd.gan_t={time_dist_type: uniform, min_t: 0.02, max_t: 0.3}",
]
FAR = [
    "train.student_optimizer.lr=0.002",
    "train.student_optimizer.warmup_steps=30",
    "student.ema.decay=0.995",
]
NO_VSD = ["dmd.vsd_weight=0"]
PATHS = ("energy_ratio", "success", "mode_error", "clearance", "spread")


class Case(NamedTuple):
    """A task with a teacher, and recipes to compare on it.

    Attributes:
        config: of the distillation.
        rows: name -> overrides.
        weak: overrides of the training of a weak teacher, with its config; None: the shipped
            teacher.
        scores: what the table shows.
        teachers: row -> further overrides of its own weak teacher, of which one is trained with
            each seed. {} where all rows share one.
    """

    config: str
    rows: dict[str, list[str]]
    weak: tuple[str, list[str]] | None = None
    scores: tuple[str, ...] = PATHS
    teachers: dict[str, list[str]] = {}


POINTS = ("energy_distance", "success", "coverage", "spread", "mode_error")
# The scores of a weak teacher that its students' tables need, and no more: each takes thousands of
# paths.
FEW_CALLS = ["calls=[100]", "ab2_calls=[8]"]
DATA = ["dmd.real_data_weight=1"]
POINT_DATA = [
    *DATA,
    "dmd.real_data_kernel=mmd",
    "dmd.real_data_conditional=false",
    "dmd.real_data_samples=256",
]
DMD = ["train.steps=300"]
# Each rung of four is easier to learn.
FOUR = ["student.steps=4", "train.kd_steps=3000"]
CASES = {
    "modes": Case(
        "modes.yaml",
        {
            "KD + DMD": DMD,
            "KD + DMD + KD loss": [*DMD, "dmd.kd_weight=0.25"],
        },
        scores=POINTS,
    ),
    "weak modes": Case(
        "modes.yaml",
        {
            "KD + DMD": ["train.kd_steps=600", *DMD],
            "KD + GAN": [
                "train.kd_steps=600",
                "method=ladd",
                "train.steps=1000",
                "train.batch_size=256",
                *ON_SAMPLES,
                *FAR,
            ],
            "KD + data": [
                "train.kd_steps=600",
                "train.steps=2000",
                "train.batch_size=256",
                *POINT_DATA,
                *NO_VSD,
                *FAR,
                "train.student_optimizer.betas=[0.9, 0.99]",
                "train.student_optimizer.lr=0.003",
            ],
        },
        ("modes-teacher.yaml", ["train.steps=425", "train.optimizer.final_lr_ratio=0.85"]),
        POINTS,
    ),
    "ring": Case(
        "ring-kd.yaml",
        {
            "KD": [],
            "KD + DMD + KD loss": [*DMD, "dmd.kd_weight=0.25", "train.kd_steps=4000"],
            "KD, 4 steps": FOUR,
        },
        scores=(*PATHS, "success_near", "spread_near"),
    ),
    "two rings": Case(
        "two-rings.yaml",
        {
            "1 step": [],
            "4 steps": FOUR,
        },
    ),
    "weak ring": Case(
        "ring-kd.yaml",
        {
            "KD + data": ["train.kd_steps=2000", "train.steps=1000", *DATA, *NO_VSD, *FAR],
            "KD + GAN + data": [
                "train.kd_steps=2000",
                "train.steps=500",
                "dmd.gan_loss_weight_gen=1",
                *DATA,
                *NO_VSD,
                *ON_FEATURES,
                *FAR,
                "train.student_optimizer.lr=0.0005",
            ],
        },
        (
            "ring-teacher.yaml",
            ["train.steps=2000", "train.optimizer.final_lr_ratio=0.85", *FEW_CALLS],
        ),
    ),
    # A twentieth of the demonstrations, drawn anew with each seed, as is the teacher.
    "little data": Case(
        "ring-kd.yaml",
        {
            name: ["train.kd_steps=1500", "train.kd_pairs=16000", "data.size=200"]
            for name in ("equivariant", "dense")
        },
        (
            "ring-teacher.yaml",
            [
                "train.steps=2000",
                "train.ema_decay=0.99",
                "data.size=200",
                "calls=[]",
                "ab2_calls=[16]",
            ],
        ),
        (*PATHS, "success_near", "kept"),
        {"equivariant": [], "dense": ["model.equivariant=false"]},
    ),
}


def run_quality(cases: list[str], seeds: list[int], out_dir: Path) -> dict[str, Any]:
    """Run, print the tables and return what goes into the JSON file."""
    result = {}
    for name in cases:
        case = CASES[name]
        folder = out_dir / name.replace(" ", "-")
        found = run_case(case, seeds, folder)
        if case.weak is None:
            found["teacher seconds"] = training_seconds(folder / "timed-teacher", case.config)
        show(name, case.scores, found)
        bars = bars_of(name, found)
        for label, bar in bars.items():
            verdict = "met   " if bar.met() else "MISSED"
            print(f"{verdict} {label}: {bar.got:.4f} against {bar.bar:.4f}", flush=True)
        found["bars"] = {label: {**bar._asdict(), "met": bar.met()} for label, bar in bars.items()}
        result[name] = found
    return result


def run_case(case: Case, seeds: list[int], folder: Path) -> dict[str, Any]:
    """Summaries of the case's rows, and the scores of its teacher and of its floor."""
    teacher: list[str] = []
    if case.weak is not None and not case.teachers:
        teacher = weak_teacher(folder / "teacher", *case.weak)
    rows: dict[str, Any] = {}
    teachers: dict[str, Any] = {}
    reports: list[dict[str, Any]] = []
    for row, overrides in case.rows.items():
        label = row.translate({ord(" "): None, ord("+"): "-", ord(","): "-"})
        reports = []
        for seed in seeds:
            run = folder / f"{label}-{seed}"
            drawn = [f"seed={seed}"]
            if case.teachers and case.weak is not None:
                drawn.append(f"data.seed={seed}")
                config, trained = case.weak
                trained = [*drawn, *trained, *case.teachers[row]]
                teacher = weak_teacher(Path(f"{run}-teacher"), config, trained)
            reports.append(distil(run, case.config, [*drawn, *teacher, *overrides]))
            if "kept" in case.scores:
                reports[-1]["kd"]["1"]["kept"] = kept_when_turned(run / "student")
        rows[row] = summary(reports)
        # Of teachers that are trained with each seed, the first one's.
        own = f"{row}, " if case.teachers else ""
        teachers |= {own + calls: scores for calls, scores in reports[0]["teacher"].items()}
    return {"rows": rows, "teacher": teachers, "floor": reports[0]["floor"]}


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
    """Of each stage and number of calls the median, least and largest scores over the seeds; and
    the CPU seconds."""
    found: dict[str, Any] = {"selected": [report["selected"] for report in reports]}
    for stage in reports[0]["validation"]:
        found[stage] = {}
        for calls, scores in reports[0][stage].items():
            found[stage][calls] = {
                score: spread_of([report[stage][calls][score] for report in reports])
                for score in scores
            }
    seconds = [report["seconds"] for report in reports]
    found["cpu seconds"] = {
        name.removesuffix("_cpu"): statistics.median(s.get(name, 0.0) for s in seconds)
        for name in seconds[0]
        if name.endswith("_cpu")
    }
    return found


def spread_of(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def show(name: str, scores: tuple[str, ...], case: dict[str, Any]) -> None:
    """Print the table of a case."""
    print("\n" + line_of(name, scores) + "    CPU s")
    references = {"fresh data": case["floor"]}
    for calls, values in case["teacher"].items():
        references[f"teacher {calls}"] = values
    for row, values in references.items():
        print(line_of(row, [f"{values.get(score, float('nan')):.4f}" for score in scores]))
    for row, stages in case["rows"].items():
        seconds = stages["cpu seconds"]
        for stage in stages:
            if stage in ("selected", "cpu seconds"):
                continue
            used = sum(v for name, v in seconds.items() if name in ("pairs", "kd", stage))
            for calls, values in stages[stage].items():
                label = f"{row}: {stage}, {calls} {'call' if calls == '1' else 'calls'}"
                cells = [values[score] for score in scores]
                shown = [f"{c['median']:.4f}+-{(c['most'] - c['least']) / 2:.4f}" for c in cells]
                print(line_of(label, shown) + f"{used:>9.0f}", flush=True)


def line_of(label: str, cells: Sequence[str]) -> str:
    return f"{label:<40}" + "".join(f"{cell:>17}" for cell in cells)
