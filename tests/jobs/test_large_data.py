"""A run on data that memory doesn't hold is the run on data that it does, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastgen.config import DistillConfig, TrainTeacherConfig
from fastgen.config.files import validate
from fastgen.data import windows
from fastgen.data.formats import array_files, selection
from fastgen.distillation import distill
from fastgen.export.folders import load_student
from fastgen.jobs.planning import plan_distillation
from fastgen.pretraining import train_teacher

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("blank_pictures")]

SETS = Path(__file__).parents[1] / "data" / "sets"
DATA: dict[str, Any] = {"name": "file", "obs_horizon": 2, "horizon": 4, "pad_after": 3}
MODEL = {"equivariant": False, "embedding_dim": 16, "num_layers": 1, "num_attention_heads": 2}
TINY = {"batch_size": 8, "evaluate_every": 2, "threads": 1}


def run(folder: Path, cache: Path) -> tuple[DistillConfig, Path]:
    """A teacher and its student; the config of the student and its run."""
    data = {**DATA, "path": str(SETS / "lerobot3"), "cache": str(cache)}
    base = {"name": "mine", "data": data, "seed": 3}
    asked = {**base, "model": MODEL, "train": {**TINY, "steps": 4}, "calls": [1], "ab2_calls": []}
    teacher = train_teacher(validate(TrainTeacherConfig, {**asked, "run_dir": str(folder / "t")}))
    cfg = validate(
        DistillConfig,
        {
            **base,
            "run_dir": str(folder / "s"),
            "teacher": {"folder": str(teacher / "teacher"), "calls": [1], "ab2_calls": []},
            "student": {"steps": 1},
            "method": "dmd2",
            "train": {
                **TINY,
                "steps": 3,
                "kd_steps": 3,
                "kd_pairs": 24,
                "kd_teacher_calls": 4,
                "cooldown": 0,
            },
        },
    )
    return cfg, distill(cfg)


def test_a_student_of_mapped_rows_is_the_student_of_rows_in_memory(tmp_path, monkeypatch):
    held = run(tmp_path / "held", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(windows, "MOST_NUMBERS", 0)
    monkeypatch.setattr(selection, "MOST_NUMBERS", 0)
    monkeypatch.setattr(array_files, "_MOST_BYTES", 0)
    made = run(tmp_path / "made", tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("action.npy"))
    states = []
    for _, folder in (held, made):
        student = load_student(folder / "student")
        states.append(student.network.state_dict())
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name
    assert "student" in plan_distillation(made[0])
