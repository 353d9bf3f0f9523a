"""What another run wrote is not gone on from: pairs, checkpoints and results carry the name of the
run that made them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgen.config import DistillConfig, TrainTeacherConfig
from fastgen.distillation import distill
from fastgen.methods.kd import KnowledgeDistillation
from fastgen.methods.matching import DistributionMatching
from fastgen.methods.pretraining import FlowMatchingTraining
from fastgen.pretraining import train_teacher
from fastgen.records.checkpoints import checkpoint_folders
from support.recipes import walks
from support.runs import weights
from support.toy import ToyTask, ToyTeacher, plug_pulled, toy_config, without_pictures

pytestmark = pytest.mark.slow


def config(run_dir: Path, seed: int = 0, *, resume: bool = False) -> DistillConfig:
    changes = {"seed": seed, "resume": resume}
    return toy_config(run_dir, kd_pairs=16).model_copy(update=changes)


def broken_off(run_dir: Path, seed: int, stage: type, step: int) -> Path:
    with plug_pulled(stage, step):
        distill(config(run_dir, seed), teacher=ToyTeacher(), task=ToyTask())
    return run_dir


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, Path]:
    """Two runs that differ in their seed, broken off in DMD."""
    folder = tmp_path_factory.mktemp("two")
    one = broken_off(folder / "0", 0, DistributionMatching, 7)
    return one, broken_off(folder / "1", 1, DistributionMatching, 7)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("pairs.safetensors", r"pairs\.safetensors was made by another run: delete the file"),
        (
            "checkpoints",
            r"checkpoints/step_\d+ is a checkpoint that was made by another run: restore the",
        ),
        ("stages", r"stages/kd.*\.safetensors was made by another run: restore the run's own"),
    ],
)
def test_what_another_seed_made_is_refused_by_name(tmp_path, two, what, said):
    run = tmp_path / "run"
    shutil.copytree(two[0], run)
    if what == "pairs.safetensors":
        # KD asks for them; in DMD nobody does.
        shutil.rmtree(run)
        broken_off(run, 0, KnowledgeDistillation, 5)
    if (run / what).is_dir():
        shutil.rmtree(run / what)
        shutil.copytree(two[1] / what, run / what)
    else:
        shutil.copyfile(two[1] / what, run / what)
    with pytest.raises(ValueError, match=said) as caught:
        distill(config(run, resume=True), teacher=ToyTeacher(), task=ToyTask())
    assert "\n" not in str(caught.value)


def test_a_run_that_was_moved_goes_on_to_the_same_end(tmp_path, two):
    shutil.copytree(two[0], tmp_path / "moved")
    with without_pictures():
        distill(config(tmp_path / "moved", resume=True), teacher=ToyTeacher(), task=ToyTask())
        distill(config(tmp_path / "whole"), teacher=ToyTeacher(), task=ToyTask())
    whole = weights(tmp_path / "whole")
    moved = weights(tmp_path / "moved")
    assert whole.keys() == moved.keys()
    assert all(torch.equal(value, moved[name]) for name, value in whole.items())


# ---- Teachers ------------------------------------------------------------------------------------


def teacher_config(folder: Path, *, resume: bool = False) -> TrainTeacherConfig:
    return TrainTeacherConfig.model_validate(
        {
            "name": "walks",
            "run_dir": str(folder / "run"),
            "resume": resume,
            "data": {"name": "file", "path": str(folder / "walks.npz"), "pack": 2},
            "model": {
                "equivariant": False,
                "embedding_dim": 16,
                "num_layers": 1,
                "num_attention_heads": 2,
            },
            "train": {
                "steps": 6,
                "batch_size": 8,
                "log_every": 2,
                "evaluate_every": 3,
                "checkpoint_every": 2,
                "threads": 1,
            },
            "calls": [1],
            "ab2_calls": [2],
        }
    )


def test_a_teacher_in_training_goes_on_with_its_own_data_alone(tmp_path):
    arrays = walks()
    np.savez(tmp_path / "walks.npz", **arrays)
    with plug_pulled(FlowMatchingTraining, 5):
        train_teacher(teacher_config(tmp_path))
    others = {
        "data": {**arrays, "X": 2.0 * arrays["X"]},
        "evaluation data": {**arrays, "X": arrays["X"] + np.eye(120)[0][:, None, None]},
    }
    for other in others.values():
        np.savez(tmp_path / "walks.npz", **other)
        with pytest.raises(ValueError, match="begun with another (evaluation )?data: resume with"):
            train_teacher(teacher_config(tmp_path, resume=True))
    np.savez(tmp_path / "walks.npz", **arrays)
    train_teacher(teacher_config(tmp_path, resume=True))
    assert len(checkpoint_folders(tmp_path / "run")) > 0
