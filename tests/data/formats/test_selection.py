"""The same episodes in every format: the same windows, normalisers and notes."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from fastgen.config.schemas import DataConfig
from fastgen.data.files import file_task
from fastgen.data.formats.detection import open_source
from fastgen.data.formats.selection import read_episodes, select
from fastgen.data.task import build_data

SETS = Path(__file__).parents[1] / "sets"

# A data set -> its columns of actions and observations.
PLACES: dict[str, tuple[list[str] | None, list[str] | None]] = {
    "episodes.npz": (["actions"], ["observations"]),
    "episodes.safetensors": (["actions"], ["observations"]),
    "episodes.csv": (["action"], ["state", "goal_x", "goal_y"]),
    "episodes.parquet": (["action"], ["state", "goal_x", "goal_y"]),
    "lerobot3": (None, None),
    "lerobot21": (None, None),
    "buffer.zarr": (None, ["state", "place"]),
    "buffer.zarr.zip": (None, ["state", "place"]),
    "buffer3.zarr": (None, ["state", "place"]),
    "buffer3.zarr.zip": (None, ["state", "place"]),
    "low_dim.hdf5": (None, ["obs/robot0_eef_pos", "obs/object"]),
    "drive/hdf5-v0": (None, ["observations/state", "observations/place"]),
    "drive/arrow-v0": (None, ["observations/state", "observations/place"]),
    "drive/parquet-v0": (None, ["observations/state", "observations/place"]),
}
WINDOWS = {"obs_horizon": 2, "horizon": 4, "stride": 1}


@pytest.fixture(scope="module")
def reference():
    return file_task(SETS / "episodes.npz", **WINDOWS)


@pytest.mark.parametrize("name", PLACES)
def test_every_format_gives_the_same_windows_and_normalisers_bit_for_bit(name, reference):
    actions, observations = PLACES[name]
    task = file_task(SETS / name, actions=actions, observations=observations, **WINDOWS)
    assert torch.equal(task.episodes, reference.episodes)
    for got, expected in ((task.train.X, reference.train.X), (task.train.Z, reference.train.Z)):
        assert got.dtype == expected.dtype and torch.equal(got, expected)
    for kind in ("x_normalizer", "z_normalizer"):
        got, expected = (getattr(t.train, kind).state() for t in (task, reference))
        assert got == expected


def test_images_and_text_are_left_out_with_a_note():
    source = open_source(SETS / "episodes.csv")
    notes = select(source, ["action"], ["state"]).notes
    assert any("remark (text)" in note for note in notes)
    assert any("not chosen: goal_x, goal_y" in note for note in notes)
    with pytest.raises(ValueError, match="'remark', which is text"):
        select(source, ["action"], ["remark"])


def test_usual_names_are_taken_and_said():
    source = open_source(SETS / "episodes.csv")
    selection = select(source)
    assert (selection.actions, selection.observations) == (("action",), ("state",))
    assert "actions are action, observations are state" in selection.notes[0]


def test_names_that_are_missing_or_twice_are_refused():
    source = open_source(SETS / "episodes.csv")
    with pytest.raises(ValueError, match="got 'stat'; there are action, goal_x, goal_y, state"):
        select(source, ["action"], ["stat"])
    with pytest.raises(ValueError, match="each column once"):
        select(source, ["action"], ["state", "state"])
    bare = dataclasses.replace(source, columns={"u": source.columns["action"]})
    with pytest.raises(ValueError, match="expected data.actions.*there are u"):
        select(bare)


def test_columns_of_different_precision_are_joined_without_loss(tmp_path):
    import numpy as np

    rows = np.arange(30)
    np.savez(
        tmp_path / "a.npz",
        action=rows[:, None].astype(np.float32),
        state=np.stack([rows + 0.1, rows + 0.2], 1).reshape(30, 2, 1),
        open=rows % 2 == 0,
        tick=rows + 2**40,
        episode=rows // 10,
    )
    source = open_source(tmp_path / "a.npz")
    selection = select(source, ["action"], ["state", "open", "tick"])
    arrays = read_episodes(source, selection)
    assert arrays["episode_ends"].tolist() == [10, 20, 30]
    assert arrays["observations"].shape == (30, 4)
    assert torch.equal(arrays["observations"][:, 3], torch.arange(30).double() + 2**40)
    assert arrays["observations"][:2, 2].tolist() == [1.0, 0.0]
    assert arrays["actions"].dtype == torch.float32


def test_a_config_names_columns_and_refuses_them_of_other_tasks(tmp_path):
    data = {"name": "file", "path": str(SETS / "episodes.csv"), "actions": "action"}
    cfg = DataConfig(**data, observations=["state", "goal_x"], obs_horizon=1, horizon=2)
    assert cfg.actions == ["action"]
    assert build_data(cfg).train.Z.shape[1:] == (1, 4)
    with pytest.raises(ValueError, match="expected no data.actions for the task ring"):
        build_data(DataConfig(name="ring", actions="action"))


def test_no_package_is_imported_before_its_format_is_read():
    import subprocess

    code = (
        "import sys, fastgen, fastgen.data.files, fastgen.data.task\n"
        "print(sorted({'pyarrow', 'h5py', 'numcodecs', 'zarr'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
