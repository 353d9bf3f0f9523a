"""Rows that memory doesn't hold: copied once, whole or not at all, and anew where data change."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fastgen._core.made_rows import MadeRows
from fastgen.data import windows
from fastgen.data.files import file_task
from fastgen.data.formats import array_files, kept_rows, selection
from fastgen.data.formats.description import describe_data
from fastgen.data.formats.detection import open_source
from fastgen.data.formats.kept_rows import kept_columns
from support import large_rows

from .test_selection import PLACES, WINDOWS

SETS = Path(__file__).parents[1] / "sets"
TESTS = Path(__file__).parents[2]


@pytest.fixture
def no_memory(monkeypatch):
    """Nothing is small enough to be held."""
    monkeypatch.setattr(selection, "MOST_NUMBERS", 0)
    monkeypatch.setattr(windows, "MOST_NUMBERS", 0)
    monkeypatch.setattr(array_files, "_MOST_BYTES", 0)


@pytest.fixture
def table(tmp_path) -> Path:
    """A Parquet file of three episodes."""
    path = tmp_path / "data" / "a.parquet"
    path.parent.mkdir()
    columns = {"episode_index": np.arange(12) // 4, "action": np.arange(12.0)}
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", PLACES)
def test_every_format_gives_the_same_batches_where_memory_holds_no_rows(name, no_memory, tmp_path):
    actions, observations = PLACES[name]
    made = file_task(
        SETS / name, actions=actions, observations=observations, cache=tmp_path, **WINDOWS
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "MOST_NUMBERS", 1 << 26)
        patch.setattr(windows, "MOST_NUMBERS", 1 << 26)
        patch.setattr(array_files, "_MOST_BYTES", 1 << 28)
        held = file_task(SETS / name, actions=actions, observations=observations, **WINDOWS)
    assert isinstance(made.train.X, MadeRows) and not isinstance(held.train.X, MadeRows)
    assert torch.equal(made.episodes, held.episodes)
    for one, other in ((held.train.X, made.train.X), (held.train.Z, made.train.Z)):
        assert other.dtype == one.dtype and torch.equal(other[:], one)
    for one, other in zip(held.train.network_inputs(), made.train.network_inputs(), strict=True):
        assert torch.equal(other[:], one)


def test_copies_lie_beside_the_data_and_are_made_once(table, monkeypatch):
    source = open_source(table)
    values = kept_columns(source, ["action"])["action"]
    assert torch.equal(values, torch.arange(12.0).double())
    (folder,) = (table.parent / "a.parquet.rows").iterdir()
    assert [path.name for path in folder.iterdir()] == ["action.npy"]
    monkeypatch.setattr(kept_rows, "_keep", None)
    assert torch.equal(kept_columns(open_source(table), ["action"])["action"], values)


def test_data_that_change_are_copied_anew_and_the_old_copy_goes(table):
    kept_columns(open_source(table), ["action"])
    (old,) = (table.parent / "a.parquet.rows").iterdir()
    pq.write_table(pa.table({"episode_index": [0, 1], "action": [7.0, 8.0]}), table)
    assert kept_columns(open_source(table), ["action"])["action"].tolist() == [7.0, 8.0]
    (new,) = (table.parent / "a.parquet.rows").iterdir()
    assert new.name != old.name


@pytest.mark.parametrize("said", [".", "data/.."])
def test_a_folder_that_is_said_from_within_has_its_copies_beside_it(
    said, no_memory, tmp_path, monkeypatch
):
    folder = Path(shutil.copytree(SETS / "lerobot21", tmp_path / "a"))
    monkeypatch.chdir(folder)
    kept = kept_columns(open_source(Path(said)), ["action"])["action"]
    assert torch.equal(kept, open_source(folder).read(["action"])["action"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.rows"]


def test_copies_among_the_data_are_no_part_of_them(tmp_path, monkeypatch):
    folder = Path(shutil.copytree(SETS / "lerobot21", tmp_path / "a"))
    cache = folder / "cache"
    kept = kept_columns(open_source(folder), ["action"], cache)["action"]
    monkeypatch.setattr(kept_rows, "_keep", None)
    assert torch.equal(kept_columns(open_source(folder), ["action"], cache)["action"], kept)


@pytest.mark.parametrize("place", ["notes", "0123456789abcdef"])
def test_what_else_lies_in_a_folder_of_that_name_stays(table, place):
    own = table.parent / "a.parquet.rows" / place / "own.txt"
    own.parent.mkdir(parents=True)
    own.write_text("kept")
    kept_columns(open_source(table), ["action"])
    assert own.read_text() == "kept"


@pytest.mark.parametrize("harm", ["cut", "empty", "other"])
def test_a_copy_that_is_damaged_is_made_anew(table, harm):
    kept_columns(open_source(table), ["action"])
    (path,) = (table.parent / "a.parquet.rows").glob("*/action.npy")
    if harm == "other":
        np.save(path, np.zeros(3))
    else:
        path.write_bytes(path.read_bytes()[:-8] if harm == "cut" else b"")
    assert len(kept_columns(open_source(table), ["action"])["action"]) == 12


def test_a_wider_dtype_later_on_is_the_dtype_of_all(tmp_path, no_memory):
    folder = Path(shutil.copytree(SETS / "lerobot21", tmp_path / "a"))
    path = sorted((folder / "data").rglob("*.parquet"))[2]
    rows = pq.read_table(path)
    place = rows.schema.get_field_index("action")
    wide = rows.column("action").cast(pa.list_(pa.float64()))
    pq.write_table(rows.set_column(place, "action", wide), path)
    source = open_source(folder)
    kept = kept_columns(source, ["action"], tmp_path)["action"]
    expected = source.read(["action"])["action"]
    assert kept.dtype == expected.dtype == torch.float64 and torch.equal(kept, expected)


def test_no_room_on_the_disk_is_said_before_a_byte_is_written(table, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(kept_rows.shutil, "disk_usage", lambda _: usage(5))
    with pytest.raises(ValueError, match=r"GB free on the disk, .* action of .* data.cache names"):
        kept_columns(open_source(table), ["action"])
    assert not list((table.parent / "a.parquet.rows").rglob("*.npy"))


def test_a_folder_that_can_not_be_written_is_one_line(table, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="expected a folder that can be written.*data.cache names"):
        kept_columns(open_source(table), ["action"], tmp_path / "taken")


def test_names_of_columns_are_no_paths(tmp_path):
    names = ["obs/x", "..", ".hidden", "a" * 300, "b\0c", "C:d"]
    files = [kept_rows._file_of(name) for name in names]
    assert len(set(files)) == len(names)
    for file in files:
        (tmp_path / file).write_bytes(b"")
        assert not file.startswith(".")


def test_a_data_set_is_described_without_copies(no_memory, tmp_path):
    folder = Path(shutil.copytree(SETS / "lerobot3", tmp_path / "a"))
    text = "\n".join(describe_data(folder))
    assert "of the first 105 rows alone" in text and "observation.state" in text
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def _child(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    # Memory is measured as it is used: what an allocator keeps for later is no matter of ours.
    plain = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_MMAP_THRESHOLD_": "262144"}
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **plain, **more}
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_copy_that_is_killed_leaves_nothing_that_is_taken_for_whole(table):
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from dataclasses import replace\n"
        "from fastgen.data.formats.detection import open_source\n"
        "from fastgen.data.formats.kept_rows import kept_columns\n"
        "source = open_source(Path(sys.argv[1]))\n"
        "def pieces(name):\n"
        "    yield source.read([name])[name][:5]\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "kept_columns(replace(source, pieces=pieces), ['action'])\n"
    )
    assert _child("-c", script, str(table)).returncode == -signal.SIGKILL
    home = table.parent / "a.parquet.rows"
    assert list(home.rglob("action.npy")) and not list(home.glob("*/action.npy"))
    assert len(kept_columns(open_source(table), ["action"])["action"]) == 12
    assert [path.name for path in home.rglob("*.npy")] == ["action.npy"]
    assert not list(home.rglob(".*"))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits what Linux counts")
def test_rows_are_windowed_in_a_third_of_the_memory_that_they_take(tmp_path):
    """384 MB of rows, and windows of 1.9 GB, in 133 MB beside what imports take."""
    rows, width = 1_000_000, 96
    large_rows.write(tmp_path / "a", rows, width)
    done = _child(str(TESTS / "support" / "large_rows.py"), "open", str(tmp_path / "a"), "133")
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    half = width // 2
    per_episode = large_rows.EPISODE - large_rows.HORIZON - large_rows.OBS_HORIZON + 2
    assert said["train"] == round(0.7 * rows / large_rows.EPISODE) * per_episode
    X, Z = [], []
    for window in said["windows"]:
        episode, offset = divmod(window, per_episode)
        t = episode * large_rows.EPISODE + offset + large_rows.OBS_HORIZON - 1
        made = large_rows.rows_of(t - 1, t + large_rows.HORIZON, width)
        X.append(made[1:, :half])
        Z.append(made[: large_rows.OBS_HORIZON, half:])
    assert bytes.fromhex(said["X"]) == np.stack(X).tobytes()
    assert bytes.fromhex(said["Z"]) == np.stack(Z).tobytes()
    # A uniform law on [-.3, .7] times a scale.
    scale = np.linspace(0.5, 2.0, width)[:half]
    mean, sd = map(np.array, said["moments"])
    assert np.abs(mean / scale - 0.2).max() < 0.01 and np.abs(sd / scale - 12**-0.5).max() < 0.01
    x0 = np.frombuffer(bytes.fromhex(said["x0"]), np.float32).reshape(np.stack(X).shape)
    assert np.abs(x0 - (np.stack(X) - mean) / sd).max() < 1e-6


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits what Linux counts")
def test_padded_windows_and_their_masks_need_no_memory(tmp_path):
    """5 MB of rows, and padded windows of 307 MB with 19 MB of masks, in 150 MB."""
    rows, width, horizon = 150_000, 8, 128
    large_rows.write(tmp_path / "a", rows, width)
    script = str(TESTS / "support" / "large_rows.py")
    done = _child(script, "open", str(tmp_path / "a"), "150", str(horizon))
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    # Each row is the current one of a window.
    assert said["train"] == round(0.7 * rows / large_rows.EPISODE) * large_rows.EPISODE
    X, masks = [], []
    for t in said["windows"]:
        end = (t // large_rows.EPISODE + 1) * large_rows.EPISODE
        coming = np.arange(t, t + horizon)
        made = large_rows.rows_of(t, end, width)[:, : width // 2]
        X.append(made[np.minimum(coming, end - 1) - t])
        masks.append(coming < end)
    assert bytes.fromhex(said["X"]) == np.stack(X)[:, :horizon].tobytes()
    assert bytes.fromhex(said["mask"]) == np.stack(masks).tobytes()
    assert not np.stack(masks).all()
    x0 = np.frombuffer(bytes.fromhex(said["x0"]), np.float32).reshape(np.stack(X).shape)
    mean, sd = map(np.array, said["moments"])
    expected = np.where(np.stack(masks)[..., None], (np.stack(X) - mean) / sd, 0)
    assert np.abs(x0 - expected).max() < 1e-6
