"""Runs that distil the saved posterior estimators of sbi, in a few updates."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fastgen.config import DistillConfig
from fastgen.config.files import validate
from fastgen.distillation import distill

from .toy import without_pictures

__all__ = ["KEYWORDS", "SAVED", "distilled"]

SAVED = Path(__file__).parents[1] / "data" / "posterior"
KEYWORDS: dict[str, Any] = {"x": "input", "t": "time", "cond": "condition"}


def distilled(run: Path, data: Path, **teacher: Any) -> Path:
    """The folder of a finished run: 30 updates of KD and 30 of DMD2, whose scores are finite.

    Args:
        run: the folder.
        data: file of the simulations.
        teacher: keys of the estimator.
    """
    given = {
        "name": "posterior",
        "method": "dmd2",
        "run_dir": str(run),
        "data": {"name": "file", "path": str(data)},
        "teacher": {"keywords": KEYWORDS, "calls": [1], "ab2_calls": [2], **teacher},
        "dmd": {"fake_score_warmup_steps": 5},
        "train": {
            "batch_size": 16,
            "kd_steps": 30,
            "kd_pairs": 64,
            "kd_teacher_calls": 4,
            "steps": 30,
            "threads": 1,
        },
    }
    with without_pictures():
        done = distill(validate(DistillConfig, given))
    report = json.loads((done / "report" / "report.json").read_text())
    assert all(math.isfinite(value) for value in report["student"]["1"].values())
    return done
