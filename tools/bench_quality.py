"""What DMD2, KD, a GAN and real data are worth, on tasks whose law is known: every row is a run of recipes/distill.py.

    python tools/bench.py quality [--cases modes ...] [--seeds 0 1 2] [--out runs/bench-quality]

A case is a task with a teacher; its rows are recipes, each with every seed, and what is compared are medians over the
seeds. Weak teachers are trained here: a quarter of the updates of the shipped teacher at the learning rates that these
had, so that a student has something to gain from real data. Runs are kept: what an earlier call finished is not
repeated, what it began goes on.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "recipes" / "configs"

# A discriminator that keeps modes: relativistic, R1 and R2 of weight 30 on perturbations of .05.
GAN = [
    "dmd.gan_loss=relativistic",
    "dmd.gan_r1_reg_weight=0.15",
    "dmd.gan_r2_reg_weight=0.15",
    "dmd.gan_r1_reg_alpha=0.05",
    "dmd.gan_use_same_t_noise=true",
]
ON_SAMPLES = [*GAN, "dmd.gan_features=sample", "dmd.gan_t={time_dist_type: uniform, min_t: 0.0, max_t: 0.1}"]
ON_FEATURES = [*GAN, "dmd.gan_loss=softplus", "dmd.gan_t={time_dist_type: uniform, min_t: 0.02, max_t: 0.3}"]
FAR = ["train.student_optimizer.lr=0.002", "train.student_optimizer.warmup_steps=30", "dmd.ema.decay=0.995"]
NO_VSD = ["dmd.vsd_weight=0"]


class Case(NamedTuple):
    """A task with a teacher, and recipes to compare on it.

    Attributes:
        config: of the distillation.
        rows: name -> overrides.
        weak: overrides of the training of a weak teacher, with its config; None: the shipped teacher.
        scores: what the table shows.
    """

    config: str
    rows: dict[str, list[str]]
    weak: tuple[str, list[str]] | None = None
    scores: tuple[str, ...] = ("energy_ratio", "success", "mode_error", "clearance", "spread")


POINTS = ("energy_distance", "success", "coverage", "spread", "mode_error")
CASES = {
    "modes": Case(
        "modes.yaml",
        {
            "KD": [],
            "KD + DMD": ["train.steps=300"],
            "KD + DMD + KD loss": ["train.steps=300", "dmd.kd_weight=0.25"],
            "KD + DMD + data": [
                "train.steps=300",
                "dmd.real_data_weight=1",
                "dmd.real_data_kernel=mmd",
                "dmd.real_data_conditional=false",
                "dmd.real_data_samples=128",
            ],
            "consistency": [
                "method=consistency",
                "train.kd_steps=0",
                "train.steps=1900",
                "train.student_optimizer.lr=0.002",
            ],
        },
        scores=POINTS,
    ),
    "weak modes": Case(
        "modes.yaml",
        {
            "KD": ["train.kd_steps=600"],
            "KD + DMD": ["train.kd_steps=600", "train.steps=300"],
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
                "dmd.real_data_weight=1",
                "dmd.real_data_kernel=mmd",
                "dmd.real_data_conditional=false",
                "dmd.real_data_samples=256",
                *NO_VSD,
                *FAR,
                "train.student_optimizer.betas=[0.9, 0.99]",
                "train.student_optimizer.lr=0.003",
            ],
        },
        ("modes-teacher.yaml", ["train.steps=425", "train.optimizer.final_lr_ratio=0.85"]),
        POINTS,
    ),
    "two rings": Case(
        "two-rings.yaml",
        {
            "1 step": [],
            "4 steps": ["dmd.student_steps=4"],
        },
    ),
    "weak ring": Case(
        "ring.yaml",
        {
            "KD": ["train.kd_steps=2000", "train.steps=0"],
            "KD + GAN + data": [
                "train.kd_steps=2000",
                "train.steps=500",
                "dmd.gan_loss_weight_gen=1",
                "dmd.real_data_weight=1",
                *NO_VSD,
                *ON_FEATURES,
                *FAR,
                "train.student_optimizer.lr=0.0005",
            ],
            "KD + data": ["train.kd_steps=2000", "train.steps=1000", "dmd.real_data_weight=1", *NO_VSD, *FAR],
        },
        ("ring-teacher.yaml", ["train.steps=2000", "train.optimizer.final_lr_ratio=0.85"]),
    ),
}


def run_quality(cases: list[str], seeds: list[int], out_dir: Path) -> dict[str, Any]:
    """Run, print the tables and return what goes into the JSON file."""
    result = {}
    for name in cases:
        case, folder = CASES[name], out_dir / name.replace(" ", "-")
        teacher = [] if case.weak is None else weak_teacher(folder / "teacher", *case.weak)
        rows: dict[str, Any] = {}
        reports: list[dict[str, Any]] = []
        for row, overrides in case.rows.items():
            label = row.replace(" ", "").replace("+", "-")
            reports = [
                distil(folder / f"{label}-{seed}", case.config, [f"seed={seed}", *teacher, *overrides])
                for seed in seeds
            ]
            rows[row] = summary(reports)
        result[name] = {"rows": rows, "teacher": reports[0]["teacher"], "floor": reports[0]["floor"]}
        show(name, case.scores, result[name])
    return result


def weak_teacher(folder: Path, config: str, overrides: list[str]) -> list[str]:
    """Train a teacher; returns the overrides that distil it."""
    if not (folder / "teacher" / "model.safetensors").exists():
        call("train_teacher.py", config, [f"run_dir={folder}", "train.threads=1", *overrides], folder)
    return [f"teacher.folder={folder / 'teacher'}"]


def distil(folder: Path, config: str, overrides: list[str]) -> dict[str, Any]:
    """One run, kept if it is there already; its report."""
    report = folder / "report" / "report.json"
    if not report.exists():
        call("distill.py", config, [f"run_dir={folder}", "train.threads=1", "keep=best", *overrides], folder)
    return json.loads(report.read_text(encoding="utf-8"))


def call(recipe: str, config: str, overrides: list[str], folder: Path) -> None:
    resume = ["--resume"] if (folder / "config.yaml").exists() else []  # what an earlier call was stopped in goes on
    subprocess.run(
        [sys.executable, str(ROOT / "recipes" / recipe), str(CONFIGS / config), *overrides, *resume], check=True
    )


def summary(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Per stage and number of calls the medians over the seeds, with least and largest, and the CPU seconds."""
    found: dict[str, Any] = {"selected": [report["selected"] for report in reports]}
    for stage in reports[0]["validation"]:
        found[stage] = {
            calls: {
                score: {"median": statistics.median(values), "least": min(values), "most": max(values)}
                for score in scores
                for values in [[report[stage][calls][score] for report in reports]]
            }
            for calls, scores in reports[0][stage].items()
        }
    seconds = [report["seconds"] for report in reports]
    found["cpu seconds"] = {
        name.removesuffix("_cpu"): statistics.median(s.get(name, 0.0) for s in seconds)
        for name in seconds[0]
        if name.endswith("_cpu")
    }
    return found


def show(name: str, scores: tuple[str, ...], case: dict[str, Any]) -> None:
    print(f"\n{name:<40}" + "".join(f"{score:>17}" for score in scores) + "    CPU s")
    for row, values in (("fresh data", case["floor"]), *((f"teacher {n}", v) for n, v in case["teacher"].items())):
        print(f"{row:<40}" + "".join(f"{values.get(score, float('nan')):>17.4f}" for score in scores))
    for row, stages in case["rows"].items():
        seconds = stages["cpu seconds"]
        for stage in (s for s in stages if s not in ("selected", "cpu seconds")):
            used = sum(v for s, v in seconds.items() if s in ("pairs", "kd", stage))
            for calls, values in stages[stage].items():
                label = f"{row}: {stage}, {calls} call{'s' * (calls != '1')}"
                cells = (values[s] for s in scores)
                shown = (f"{c['median']:.4f}+-{(c['most'] - c['least']) / 2:.4f}" for c in cells)
                print(f"{label:<40}" + "".join(f"{text:>17}" for text in shown) + f"{used:>9.0f}", flush=True)
