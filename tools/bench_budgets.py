"""What a distillation has spent, and KD alone that spends as much."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from fastgen.config import DistillConfig
from fastgen.config.files import load_config
from fastgen.records.log import read_log

REPORT = Path("report") / "report.json"  # in the folder of a run
# The part of a run that is no part of its budget, as evaluations and as seconds are named.
_OF_REPORT = "report"
_HAND_OVER = "hand_over"
# KD updates are a multiple of this.
_ROUND = 10


class Spent(NamedTuple):
    """What a distillation took without its report: decision, pairs, training, validation.

    Attributes:
        evaluations: rows through the teacher.
        seconds: of the CPU.
    """

    evaluations: int
    seconds: float


def read_report(run: Path) -> dict[str, Any]:
    """The report.json of a run that is finished."""
    return json.loads((run / REPORT).read_text(encoding="utf-8"))


def spent(report: dict[str, Any]) -> Spent:
    """What the run of a report.json took."""
    evaluations = report["teacher_evaluations"]
    seconds = cpu_seconds(report)
    return Spent(
        evaluations["total"] - evaluations[_OF_REPORT],
        sum(taken for part, taken in seconds.items() if part != _HAND_OVER),
    )


def cpu_seconds(report: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of a run by its parts."""
    parts = report["seconds"].items()
    return {part.removesuffix("_cpu"): taken for part, taken in parts if part.endswith("_cpu")}


def kd_of_equal_budget(run: Path) -> list[str]:
    """Overrides by which KD alone takes as many evaluations and CPU seconds as a finished run.

    With E evaluations and S seconds of the run (`spent`), e and p those of one of its pairs, and u
    the seconds of one of the KD updates that it made, validations included: E / e pairs, and
    (S - p E / e) / u updates.

    Args:
        run: folder of a run that began with KD.

    Raises:
        ValueError: a run without KD.
    """
    report = read_report(run)
    train = load_config(DistillConfig, run / "config.yaml").train
    if not train.kd_steps:
        raise ValueError(f"expected a run that began with KD, got none in {run}")
    seconds = cpu_seconds(report)
    all_spent = spent(report)
    of_a_pair = report["teacher_evaluations"]["pairs"] // train.kd_pairs
    pairs = all_spent.evaluations // of_a_pair
    for_pairs = pairs * seconds["pairs"] / train.kd_pairs
    updates = (all_spent.seconds - for_pairs) / (seconds["kd"] / _kd_updates(run))
    rounded = max(_ROUND, _ROUND * round(updates / _ROUND))
    return [f"train.kd_pairs={pairs}", f"train.kd_steps={rounded}"]


def _kd_updates(run: Path) -> int:
    """KD updates that a run made, which may have ended early."""
    return max(row["step"] for row in read_log(run) if row["stage"] == "kd")
