"""Minari data sets: the last observation is left out, and what contradicts the metadata."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fastgen.data.formats.detection import open_source

SETS = Path(__file__).parents[1] / "sets" / "drive"


@pytest.fixture(params=["hdf5", "arrow", "parquet"])
def folder(request, tmp_path) -> Path:
    return Path(shutil.copytree(SETS / f"{request.param}-v0", tmp_path / "set"))


def test_observations_are_as_many_as_actions(folder):
    for path in (folder, folder / "data"):
        source = open_source(path)
        assert list(source.ends) == [9, 23, 34, 58, 66, 83, 95, 105]
        values = source.read(["actions", "observations/state"])
        assert {len(rows) for rows in values.values()} == {105}
        assert source.columns["observations/mission"].kind == "text"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data_format", "rlds", "expected data_format hdf5, arrow or parquet, got 'rlds'"),
        ("total_steps", 3, "expected total_episodes and total_steps"),
    ],
)
def test_what_contradicts_the_metadata_is_refused(folder, key, value, said):
    path = folder / "data" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=said):
        open_source(folder)


def test_a_missing_episode_is_named(folder):
    for part in (folder / "data").rglob("part-0.*"):
        if part.parent.name == "3":
            part.unlink()
    (folder / "data" / "main_data.hdf5").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"(data/3|main_data.hdf5): expected"):
        open_source(folder)


def test_steps_that_the_rows_do_not_hold_are_refused(tmp_path):
    """The row after the last step is padding; both tables may say that it is a step."""
    for kind in ("arrow", "parquet"):
        folder = Path(shutil.copytree(SETS / f"{kind}-v0", tmp_path / kind))
        for place, steps in (("metadata.json", 106), ("3/metadata.json", 25)):
            path = folder / "data" / place
            path.write_text(json.dumps({**json.loads(path.read_text()), "total_steps": steps}))
        with pytest.raises(ValueError, match="expected 26 rows, one more than steps, got 25"):
            open_source(folder).read(["actions"])


def test_packed_columns_are_measured_and_those_not_asked_for_are_not_unpacked(tmp_path):
    folder = Path(shutil.copytree(SETS / "arrow-v0", tmp_path / "a"))
    file = folder / "data" / "0" / "part-0.arrow"
    with pa.OSFile(str(file)) as source:
        table = pa.ipc.open_file(source).read_all()
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(len(table) << 18, "u1")), 1 << 18)
    table = table.append_column("zeros", zeros)
    packed = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(str(file), table.schema, options=packed) as writer:
        writer.write_table(table)
    before = pa.default_memory_pool().max_memory()
    assert len(open_source(folder).read(["actions"])["actions"]) == 105
    assert pa.default_memory_pool().max_memory() < before + (1 << 20)
    with pytest.raises(ValueError, match="bytes unpacked"):
        open_source(folder).read(["zeros"])
