"""Students with the raw weights of a run: those of its newest checkpoint, and told where there are
none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fastgen.distillation import distill
from fastgen.export import load_student
from fastgen.jobs.raw_weights import student_folder, student_with
from fastgen.records.checkpoints import checkpoint_folders, read_checkpoint, with_prefix
from support.toy import ToyTask, ToyTeacher, toy_config, without_pictures

TOY = {"teacher": ToyTeacher(), "task": ToyTask()}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose student of DMD is kept, with checkpoints in that stage."""
    folder = tmp_path_factory.mktemp("raw") / "run"
    cfg = toy_config(folder, kd_steps=1, kd_pairs=8).model_copy(update={"keep": "dmd"})
    with without_pictures():
        distill(cfg, teacher=ToyTeacher(), task=ToyTask())
    return folder


@pytest.fixture
def copied(run, tmp_path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def load(folder: Path):
    return load_student(folder, network=ToyTeacher())


def with_toy(monkeypatch):
    """The toy's network is no class of fastgen, and no factory's."""
    monkeypatch.setattr("fastgen.jobs.raw_weights.load_run_student", lambda at, _: load(at))


def test_raw_weights_are_those_of_the_newest_checkpoint(copied, monkeypatch):
    with_toy(monkeypatch)
    folder = student_with("raw", copied, **TOY)
    checkpoint = read_checkpoint(checkpoint_folders(copied)[-2])
    expected = with_prefix(checkpoint.tensors, "student.weights")
    raw = load(folder)
    found = raw.network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    average = load(student_with("average", copied / "student", **TOY))
    updates = checkpoint.meta["step"]
    assert raw.config["description"]["weights"] == f"raw, after {updates} updates of dmd"
    z, noise = TOY["task"].train.Z, torch.randn(48, 4, 2)
    assert not torch.equal(raw.sample(z, noise=noise), average.sample(z, noise=noise))
    for name in ("t_list", "steps", "horizon", "sample_type", "pack"):
        assert getattr(raw, name) == getattr(average, name)


def test_what_is_not_there_is_said(copied, monkeypatch):
    with_toy(monkeypatch)
    shutil.copytree(copied / "student", copied.parent / "alone")
    with pytest.raises(ValueError, match="the folder of a run, which holds its weights"):
        student_with("raw", copied.parent / "alone", **TOY)
    assert student_folder(copied.parent / "alone") == copied.parent / "alone"
    checkpoint = checkpoint_folders(copied)[-2]
    monkeypatch.setattr(
        "fastgen.jobs.raw_weights.read_checkpoint",
        lambda folder: _of_kd(read_checkpoint(folder)),
    )
    with pytest.raises(ValueError, match="a checkpoint of dmd, .*, got one of kd alone"):
        student_with("raw", copied, **TOY)
    shutil.rmtree(checkpoint)
    with pytest.raises(ValueError, match="a smaller train.checkpoint_every"):
        student_with("raw", copied, **TOY)
    assert not (copied / "student-raw").exists()


def _of_kd(checkpoint):
    meta = json.loads(json.dumps(checkpoint.meta))
    meta["position"] = 0
    return checkpoint._replace(meta=meta)
