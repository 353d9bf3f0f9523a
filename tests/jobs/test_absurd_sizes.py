"""Absurd sizes and seeds are one line that names the key and the limit, before any work."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from fastgen.config import DistillConfig, TrainTeacherConfig
from fastgen.config.files import load_config
from fastgen.export.student import Student
from support.recipes import RECIPES, content, the_error

SEED = f"seed: .*less than or equal to {2**64 - 1}, got"


@pytest.mark.parametrize(
    ("recipe", "argument", "said"),
    [
        ("distill.py", "train.kd_pairs=1e11", "expected train.kd_pairs <= .*got 100,000,000,000"),
        ("distill.py", "train.batch_size=1e11", "expected train.batch_size <= .*got 100,000,0"),
        ("distill.py", "data.size=1e12", "expected data.size <= .*got 1,000,000,000,000"),
        ("distill.py", "data.size=99999999999999999999999", "expected data.size <= "),
        ("distill.py", f"seed={2**64}", SEED),
        ("distill.py", "seed=-1", "seed: .*greater than or equal to 0, got -1"),
        ("distill.py", f"data.seed={2**70}", f"data.{SEED}"),
        ("distill.py", "run_dir=~nobody-of-this-name/x", "run_dir: .~nobody.*home folder"),
        ("distill.py", "teacher.folder=~nobody-of-this-name/x", "teacher.folder: .~nobody"),
        ("distill.py", "train={1: 2}", "expected keys of text, got 1; put it in quotes"),
        ("distill.py", "train={on: 2}", "expected keys of text, got True"),
        ("train_teacher.py", "train.batch_size=1e11", "expected train.batch_size <= "),
        ("train_teacher.py", "model.embedding_dim=1e9", "lower train.batch_size or model.emb"),
        ("train_teacher.py", "data.size=1e12", "expected data.size <= "),
        ("train_teacher.py", f"seed={2**64}", SEED),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_absurd_sizes_are_refused(call, tmp_path, recipe, argument, said, flags):
    run = [] if "run_dir" in argument else ["run_dir=run"]
    dense = ["model.equivariant=false"] if recipe == "train_teacher.py" else []
    code, out, err = call(recipe, argument, *run, *dense, *flags)
    assert (code, out) == (2, "") and re.search(said, the_error(err)), err
    assert content(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["num_samples=1e12"], "expected num_samples <= .*got 1,000,000,000,000"),
        (["num_samples=" + "9" * 5000], "expected num_samples as a whole number, got '99"),
        ([f"seed={2**64}"], f"expected seed <= {2**64 - 1}, got"),
        (["seed=-1"], "expected seed as a whole number, got '-1'"),
        (["num_samples=1.5"], "expected num_samples as a whole number, got '1.5'"),
        (["num_samples=٣"], "expected num_samples as a whole number"),
        (["out=~nobody-of-this-name/x.npz"], "home folder which isn't known"),
    ],
)
def test_absurd_samples_are_refused(call, monkeypatch, tmp_path, arguments, said):
    monkeypatch.setattr("fastgen.commands.sample.load_run_student", lambda *_: student())
    code, out, err = call("sample.py", "student", *arguments)
    assert (code, out) == (2, "") and re.search(said, the_error(err)), err
    assert content(tmp_path) == {}


def test_numbers_with_an_exponent_are_numbers(call, monkeypatch):
    cfg = load_config(DistillConfig, RECIPES / "configs" / "ring.yaml", ["train.kd_pairs=2e3"])
    assert cfg.train.kd_pairs == 2000
    monkeypatch.setattr("fastgen.commands.sample.load_run_student", lambda *_: student())
    code, out, _ = call("sample.py", "student", "num_samples=1e1")
    assert code == 0 and "X (10, 3)" in out


def test_whole_numbers_of_numpy_are_whole_numbers():
    drawn = student().sample(num_samples=np.int64(5), steps=np.int32(1))  # pyright: ignore[reportArgumentType]
    assert drawn.shape == (1, 5, 3)
    assert TrainTeacherConfig(seed=np.int64(3)).seed == 3  # pyright: ignore[reportArgumentType]
    for wrong in (5.0, True, "5"):
        with pytest.raises(ValueError, match="expected num_samples as a whole number"):
            student().sample(num_samples=wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="expected num_samples <= "):
        student().sample(num_samples=10**12)


def student() -> Student:
    class Net(torch.nn.Module):
        def forward(self, x, t, cond=None):
            return x

    return Student(
        Net(),
        t_list=[1.0, 0.0],
        steps=[1],
        sample_type="ode",
        pred_type="flow",
        horizon=(3,),
        cond_horizon=None,
        config={"description": {"condition": "none"}},
    )
