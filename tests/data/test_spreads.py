"""Channels whose scale is not what it seems are named before training, with rows and what to do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastgen.config import DistillConfig
from fastgen.data import build_task
from fastgen.data.checks import data_notes
from fastgen.data.spreads import outliers
from fastgen.data.windows import unused_notes
from fastgen.export import save_network
from fastgen.jobs.planning import plan_distillation
from fastgen.models.transformer import CondTransformerRegressor

N = 300


def arrays(kind: str = "trajectories") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    if kind == "trajectories":
        return {"X": rng.normal(size=(N, 4, 2)), "Z": 2.4 * rng.normal(size=(N, 2, 3))}
    if kind == "vectors":
        return {"X": rng.normal(size=(N, 2)), "Z": 2.4 * rng.normal(size=(N, 3))}
    return {"X": rng.normal(size=(N, 3, 4, 4))}


def task_of(folder, parts: dict[str, np.ndarray], **options) -> Any:
    np.savez(folder / "data.npz", **parts)
    return build_task(SimpleNamespace(name="file", path=str(folder / "data.npz"), **options))


def row_of(folder, part: str, kind: str = "trajectories") -> int:
    """A row of the file that the split puts into this part."""
    return int(task_of(folder, arrays(kind)).rows[part][3])


# ---- Outliers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["trajectories", "vectors", "images"])
def test_data_without_fault_have_no_notes(tmp_path, kind):
    assert data_notes(task_of(tmp_path, arrays(kind)), 8) == []


@pytest.mark.parametrize("name", ["X", "Z"])
@pytest.mark.parametrize("kind", ["trajectories", "vectors"])
def test_an_outlier_is_named_with_channel_row_and_both_scales(tmp_path, kind, name):
    row = row_of(tmp_path, "train", kind)
    parts = arrays(kind)
    parts[name][row, ..., 1] = 1e6
    (line,) = data_notes(task_of(tmp_path, parts), 8)
    assert line.startswith(f"warning: {name} in channel 1 has outliers in 1 row ({row}) of {N}")
    assert "remove these rows or clip them" in line
    scale, robust = (
        float(line.split(words)[1].split(",")[0].split(";")[0])
        for words in ("its scale is ", "of its numbers ")
    )
    assert scale == pytest.approx(parts[name][..., 1].std(), rel=1e-3)
    assert robust == pytest.approx(1 if name == "X" else 2.4, rel=0.15)
    assert ("almost alike" in line) == (kind == "trajectories")


def test_an_outlier_among_images_is_named(tmp_path):
    row = row_of(tmp_path, "train", "images")
    parts = arrays("images")
    parts["X"][row, 0, 1, 2] = -1e6
    (line,) = data_notes(task_of(tmp_path, parts), 8)
    assert line.startswith(f"warning: X has outliers in 1 row ({row}) of {N}")


@pytest.mark.parametrize("part", ["validation", "test"])
def test_an_outlier_that_is_held_out_is_named_too(tmp_path, part):
    row = row_of(tmp_path, part)
    parts = arrays()
    parts["X"][row, 2, 0] = 1e6
    (line,) = data_notes(task_of(tmp_path, parts), 8)
    assert f"outliers in 1 row ({row})" in line and "scores" in line


@pytest.mark.parametrize("share", [0.01, 0.05])
def test_a_number_that_stands_for_nothing_is_found(tmp_path, share):
    parts = arrays()
    rows = np.arange(0, N, round(1 / share))
    parts["Z"][rows, :, 2] = -9999
    (line,) = data_notes(task_of(tmp_path, parts), 8)
    assert f"Z in channel 2 has outliers in {len(rows)} rows (" in line


def test_a_channel_that_is_constant_but_for_a_row_is_found(tmp_path):
    row = row_of(tmp_path, "train")
    parts = arrays()
    parts["Z"][:, :, 0] = 0.3
    parts["Z"][row, 0, 0] = 1e6
    (line,) = data_notes(task_of(tmp_path, parts), 8)
    assert f"({row})" in line and "and without them it is constant" in line


@pytest.mark.parametrize(
    "law",
    [
        lambda rng: rng.normal(size=(2000, 1)),
        lambda rng: rng.laplace(size=(2000, 1)),
        lambda rng: rng.lognormal(size=(2000, 1)),
        lambda rng: rng.exponential(size=(2000, 1)),
        lambda rng: rng.uniform(size=(2000, 1)),
        lambda rng: 10.0 * rng.integers(2, size=(2000, 1)) + 0.1 * rng.normal(size=(2000, 1)),
        lambda rng: (rng.uniform(size=(2000, 1)) < 0.05).astype(float),
        lambda rng: np.eye(50)[rng.integers(50, size=2000)],
        lambda rng: np.eye(10)[np.arange(300) % 10],
        lambda rng: 5.4e6 + rng.normal(size=(2000, 1)),
        lambda rng: np.zeros((2000, 1)),
    ],
)
def test_usual_laws_have_no_outliers(law):
    assert outliers(torch.from_numpy(law(np.random.default_rng(0)))) == []


def test_rare_words_and_the_corners_of_pictures_are_no_outliers(tmp_path):
    """Channels that are constant but for a row, where others are as large in many."""
    rng = np.random.default_rng(0)
    words = np.eye(40)[rng.integers(10, size=N)]
    row = row_of(tmp_path, "train", "vectors")
    words[row, 10:] = 1
    parts = {**arrays("vectors"), "Z": words}
    assert data_notes(task_of(tmp_path, parts), 8) == []
    words[row, 35] = -9999
    (line,) = data_notes(task_of(tmp_path, parts), 8)
    assert line.startswith(f"warning: Z in channel 35 has outliers in 1 row ({row})")


@pytest.mark.parametrize("kind", ["outliers", "noise"])
def test_many_channels_share_a_line(tmp_path, kind):
    rng = np.random.default_rng(0)
    parts = {"X": rng.normal(size=(N, 4, 60)), "Z": rng.normal(size=(N, 2, 3))}
    if kind == "outliers":
        parts["X"][row_of(tmp_path, "train"), :, :50] = 1e6
    else:
        parts["X"][..., :50] = 0.3 + 1e-6 * parts["X"][..., :50]
    *lines, rest = data_notes(task_of(tmp_path, parts), 8)
    assert len(lines) == 3
    assert " in channels 3, 4, 5, 6, 7, ... (47 in all)" in rest


def test_many_rows_are_looked_at_in_bounded_parts():
    x = torch.randn(70_000, 4, generator=torch.Generator().manual_seed(0))
    x[[5, 69_999], 3] = 1e5
    (found,) = outliers(x)
    assert (found.channel, found.rows) == (3, [5, 69_999])
    assert found.farthest == pytest.approx(1e5, rel=1e-4)
    assert found.robust == pytest.approx(1, rel=0.02)


# ---- Channels that hardly change -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["X", "Z"])
@pytest.mark.parametrize("centre", [0.3, -70.0])
def test_a_channel_of_noise_about_a_number_is_named(tmp_path, name, centre):
    parts = arrays()
    noise = np.random.default_rng(1).normal(size=parts[name].shape[:2])
    parts[name][..., 1] = centre * (1 + 3e-6 * noise)
    task = task_of(tmp_path, parts)
    (line,) = data_notes(task, 8)
    assert line.startswith(f"note: {name} hardly changes in channel 1, {centre:g} +- ")
    assert f"in all {len(task.train)} training rows" in line and "round the channel" in line


def test_a_channel_of_rounding_about_zero_is_named(tmp_path):
    parts = arrays()
    parts["Z"][..., 1] *= 1e-9
    (line,) = data_notes(task_of(tmp_path, parts), 8)
    assert line.startswith("note: Z hardly changes in channel 1")


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_other_units_are_no_fault(tmp_path, unit):
    parts = arrays()
    parts["Z"][..., 1] = (parts["Z"][..., 1] + 5) * unit
    assert data_notes(task_of(tmp_path, parts), 8) == []


def test_what_is_not_normalised_is_not_made_large(tmp_path):
    parts = arrays()
    parts["Z"][..., 1] = 0.3 + 1e-6 * parts["Z"][..., 1]
    lines = data_notes(task_of(tmp_path, parts, normalize=False), 8)
    assert not [line for line in lines if "hardly changes" in line]


# ---- Episodes and rows that are used -------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, 7, 20])
@pytest.mark.parametrize(("obs_horizon", "horizon"), [(1, 1), (2, 4), (3, 8)])
def test_rows_in_windows_are_counted(obs_horizon, horizon, stride):
    lengths = [3, 12, 9, 30, 10]
    need = obs_horizon + horizon - 1
    used = 0
    for length in lengths:
        rows = set()
        for first in range(0, length - need + 1, stride):
            rows |= set(range(first, first + need))
        used += len(rows)
    short = sum(length < need for length in lengths)
    lines = unused_notes(np.cumsum(lengths).tolist(), obs_horizon, horizon, stride)
    if used == sum(lengths):
        assert lines == []
        return
    (line,) = lines
    assert f"{used} of {sum(lengths)} rows" in line
    assert line.startswith("warning: " if short else "note: ")
    if short:
        assert f"{len(lengths) - short} of {len(lengths)} episodes are used" in line


def test_episodes_too_short_for_a_window_are_counted(tmp_path):
    """Forty of fifty."""
    lengths = [5, 5, 20, 5, 5] * 10
    rng = np.random.default_rng(0)
    parts = {
        "actions": rng.normal(size=(sum(lengths), 2)),
        "observations": rng.normal(size=(sum(lengths), 3)),
        "episode_ends": np.cumsum(lengths),
    }
    task = task_of(tmp_path, parts, obs_horizon=2, horizon=8)
    (line,) = data_notes(task, 8)
    assert line.startswith("warning: 10 of 50 episodes are used, and 200 of 400 rows: 40 (0, 1, 3,")
    assert "data.obs_horizon + data.horizon - 1 = 9 rows" in line
    assert data_notes(task_of(tmp_path, parts, obs_horizon=2, horizon=4), 8) == []


def test_the_dry_run_says_all_of_it(tmp_path):
    parts = arrays()
    parts["X"][row_of(tmp_path, "train"), 0, 0] = 1e6
    parts["Z"][..., 1] = 0.3 + 1e-6 * parts["Z"][..., 1]
    np.savez(tmp_path / "data.npz", **parts)
    options: Any = {"num_layers": 1, "num_attention_heads": 2, "embedding_dim": 8}
    save_network(tmp_path / "teacher", CondTransformerRegressor(2, 2, 3, 4, 2, **options))
    values = {
        "data": {"name": "file", "path": str(tmp_path / "data.npz")},
        "teacher": {"folder": str(tmp_path / "teacher")},
        "method": "kd",
        "train": {"batch_size": 8},
    }
    plan = plan_distillation(DistillConfig.model_validate(values))
    assert "warning: X in channel 0 has outliers in 1 row" in plan
    assert "note: Z hardly changes in channel 1" in plan
