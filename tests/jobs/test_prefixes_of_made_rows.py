"""Prefixes of trajectories that are made when they are taken: those of trajectories that are held,
bit for bit, and never of all rows at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastgen._core.conditions import take_rows
from fastgen._core.made_rows import MadeRows, made_of
from fastgen._core.prefixes import drawn_lengths, with_prefix
from fastgen.config import DataConfig, DistillConfig, TrainTeacherConfig
from fastgen.config.prefix import prefix_tokens
from fastgen.data import build_data
from fastgen.jobs.checks import check_plan
from fastgen.jobs.distillation import Distillation
from fastgen.jobs.setup import Setup
from fastgen.pretraining import train_teacher
from fastgen.records.folder import claim_run, open_run
from fastgen.training.accelerator import start_accelerator
from support.agreement import tensors_of
from support.padded import distillation, lazily, masks, network, walks

# Rows of walks are 384 numbers, those that are trained on 264: what is looked at is held.
MOST = 300
SMALL = {"embedding_dim": 16, "num_layers": 1, "num_attention_heads": 2}


def file_of(folder: Path, *, masked: bool) -> dict[str, Any]:
    """Data of walks, or of episodes whose windows have no padding."""
    X, Z = (value.numpy() for value in walks(3.0))
    if masked:
        mask, cond_mask = (one.numpy() for one in masks())
        np.savez(folder / "a.npz", X=X, Z=Z, mask=mask, cond_mask=cond_mask)
        cut = {}
    else:
        rows = {"actions": X.reshape(-1, 2), "observations": X.reshape(-1, 2) + 1.0}
        np.savez(folder / "a.npz", **rows, episode_ends=np.arange(1, 13) * 16)
        cut = {"horizon": 4, "obs_horizon": 3}
    # Statistics would be sums in another order.
    return {"name": "file", "path": str(folder / "a.npz"), "normalize": False, **cut}


def trained(cfg: DistillConfig) -> Path:
    """The run up to its last update."""
    with open_run(cfg) as run_dir:
        job = Distillation(cfg, run_dir, start_accelerator(1), teacher=network())
        job.notes()
        claim_run(run_dir, cfg)
        job.train()
        return run_dir


def held_and_made(
    monkeypatch: pytest.MonkeyPatch, folder: Path, train: Callable[[Path], Path]
) -> tuple[Path, Path]:
    """A run of data that are held, and of data that are made when they are taken."""
    held = train(folder / "held")
    lazily(monkeypatch, MOST)
    return held, train(folder / "made")


def same_runs(one: Path, other: Path) -> None:
    expected, found = tensors_of(one), tensors_of(other)
    assert expected.keys() == found.keys() and expected
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key


def test_what_is_given_waits_until_rows_are_taken(monkeypatch):
    X, Z = walks(0.0)
    mask = masks().mask
    uniform = torch.rand(len(X), generator=torch.Generator().manual_seed(0))
    lengths = drawn_lengths(uniform, 2, mask)
    cases = [(Z, lengths), ({"Z": Z, "mask": mask}, lengths)]
    expected = [with_prefix(cond, X, lengths) for cond, lengths in cases]
    lazily(monkeypatch)
    x = made_of(torch.clone, X)
    rows = torch.tensor([7, 0, 31])
    made_mask = made_of(torch.clone, mask)
    lengths = drawn_lengths(uniform, 2, made_mask)
    assert isinstance(lengths, MadeRows)
    cases = [(Z, cases[0][1]), ({"Z": Z, "mask": made_mask}, lengths)]
    for (cond, lengths), held in zip(cases, expected, strict=True):
        made = with_prefix(cond, x, lengths)
        assert isinstance(made["given"], MadeRows) and isinstance(made["prefix"], MadeRows)
        for name, value in take_rows(made, rows).items():
            assert torch.equal(value, held[name][rows]), name


def test_a_run_of_made_rows_is_that_of_held_ones(tmp_path, monkeypatch):
    data = file_of(tmp_path, masked=True)

    def train(folder: Path) -> Path:
        dmd = {"fake_score_warmup_steps": 1, "kd_weight": 0.2}
        train = {"prefix_max": 2}
        return trained(distillation(folder, "dmd2", dmd=dmd, data=data, train=train))

    same_runs(*held_and_made(monkeypatch, tmp_path, train))


def test_of_windows_without_padding_as_many_are_given(tmp_path, monkeypatch):
    cfg = distillation(tmp_path, "kd", train={"prefix_max": 2})
    data = DataConfig.model_validate(file_of(tmp_path, masked=False))
    held = Setup(cfg, network(), build_data(data).train)
    lazily(monkeypatch, MOST)
    made = Setup(cfg, network(), build_data(data).train)
    check_plan(made, processes=1)
    assert all(isinstance(value, MadeRows) for value in made.cond.values())
    rows = torch.arange(len(held.x0))
    for name, value in take_rows(made.cond, rows).items():
        assert torch.equal(value, held.cond[name]), name


def test_a_teacher_of_made_rows_is_that_of_held_ones(tmp_path, monkeypatch):
    data = file_of(tmp_path, masked=True)

    def train(folder: Path) -> Path:
        values = {
            "run_dir": str(folder),
            "data": data,
            "model": {**SMALL, "equivariant": False},
            "train": {"steps": 3, "batch_size": 8, "prefix_max": 2, "threads": 1},
            "calls": [1],
            "ab2_calls": [],
        }
        return train_teacher(TrainTeacherConfig.model_validate(values))

    same_runs(*held_and_made(monkeypatch, tmp_path, train))


def test_no_more_waypoints_are_given_than_the_longest_of_all_blocks_has(tmp_path, monkeypatch):
    data = file_of(tmp_path, masked=True)
    lazily(monkeypatch, MOST)
    train = build_data(DataConfig.model_validate(data)).train
    assert isinstance(train.X, MadeRows) and prefix_tokens(3, train) == 3
    with pytest.raises(ValueError, match="below the 4 waypoints of the longest trajectory.* got 4"):
        prefix_tokens(4, train)
