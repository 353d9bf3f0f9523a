"""LeRobot data sets: what its own writer made, several files of rows, and what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fastgen.data.formats.description import describe_data
from fastgen.data.formats.detection import open_source

SETS = Path(__file__).parents[1] / "sets"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture(params=["lerobot3", "lerobot21"])
def folder(request, tmp_path) -> Path:
    return Path(shutil.copytree(SETS / request.param, tmp_path / request.param))


def rows(folder: Path) -> Path:
    """A file of rows."""
    return sorted((folder / "data").rglob("*.parquet"))[0]


def test_what_the_writer_said_is_known(folder):
    source = open_source(folder)
    assert source.rate == 10
    assert list(source.ends) == [9, 23, 34, 58, 66, 83, 95, 105]
    state = source.columns["observation.state"]
    assert (state.channels, state.dtype, state.width) == (("x", "y", "heading"), "float32", 3)
    assert source.columns["observation.image"].kind == "image"


def test_a_missing_file_and_a_pointer_to_one_are_named(folder):
    file = rows(folder)
    content = file.read_bytes()
    file.write_bytes(POINTER)
    with pytest.raises(ValueError, match=rf"{file.name}: expected data, got a pointer.*git lfs"):
        open_source(folder)
    file.unlink()
    with pytest.raises(ValueError, match=rf"{file.name}: expected a file, found none; download"):
        open_source(folder)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="expected a Parquet file"):
        open_source(folder).read(["action"])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("codebase_version", "v1.6", "expected codebase_version v2.0, v2.1, v3.0, got 'v1.6'"),
        ("total_frames", 104, "expected total_frames 105, as its episodes say, got 104"),
        ("total_episodes", 9, "expected total_episodes 8"),
        ("features", {}, "expected features"),
        ("features", {"action": {"dtype": "float32"}}, "expected a shape of whole numbers"),
        ("features", {"a": {"dtype": "int64", "shape": [1]}}, "expected the column a"),
    ],
)
def test_what_contradicts_the_tables_is_refused(folder, key, value, said):
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=said):
        open_source(folder)


def test_rows_of_another_order_are_refused(folder):
    table = pq.read_table(rows(folder))
    at = table.schema.get_field_index("episode_index")
    table = table.set_column(at, "episode_index", pa.array([7] * len(table)))
    pq.write_table(table, rows(folder))
    with pytest.raises(ValueError, match="in order, as meta says"):
        open_source(folder).read(["action"])


def test_rows_may_lie_in_several_files(tmp_path):
    """Version 3.0 begins a file where another one is full."""
    folder = Path(shutil.copytree(SETS / "lerobot3", tmp_path / "a"))
    whole = open_source(folder).read(["action"])["action"]
    first = folder / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(first)
    pq.write_table(table.slice(0, 34), first)
    pq.write_table(table.slice(34), first.with_name("file-001.parquet"))
    meta = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    episodes = pq.read_table(meta)
    at = episodes.schema.get_field_index("data/file_index")
    files = pa.array([0] * 3 + [1] * 5)
    pq.write_table(episodes.set_column(at, "data/file_index", files), meta)
    assert torch.equal(open_source(folder).read(["action"])["action"], whole)
    first.with_name("file-001.parquet").unlink()
    with pytest.raises(ValueError, match="file-001.parquet: expected a file, found none"):
        open_source(folder)


def test_rows_of_an_episode_out_of_time_are_refused(folder):
    table = pq.read_table(rows(folder))
    order = list(range(len(table)))
    order[0], order[3] = order[3], order[0]
    pq.write_table(table.take(order), rows(folder))
    with pytest.raises(
        ValueError, match="rows of episode 0 in order of frame_index, got 1 after 3"
    ):
        open_source(folder).read(["action"])


def test_lengths_are_compared_before_room_is_taken_for_them(tmp_path):
    folder = Path(shutil.copytree(SETS / "lerobot3", tmp_path / "a"))
    meta = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(meta)
    at = table.schema.get_field_index("length")
    pq.write_table(table.set_column(at, "length", pa.array([2**39] * 8)), meta)
    change(folder, total_frames=2**42)
    with pytest.raises(ValueError, match="in order, as meta says"):
        open_source(folder).read(["action"])


def change(folder: Path, **info) -> None:
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **info}))


def test_a_rate_that_is_none_or_not_that_of_the_times_is_said(folder):
    change(folder, fps=30)
    assert "30 per second, but timestamp steps by 0.1 s" in "\n".join(describe_data(folder))
    change(folder, fps=-3)
    assert "fps of meta/info.json is no rate, got -3" in "\n".join(describe_data(folder))


def test_a_shape_that_contradicts_the_rows_is_named(folder):
    features = json.loads((folder / "meta" / "info.json").read_text())["features"]
    features["action"]["shape"] = [3]
    change(folder, features=features)
    with pytest.raises(ValueError, match=r"expected rows of action of shape \(3,\)"):
        open_source(folder).read(["action"])
