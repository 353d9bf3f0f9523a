"""zarr replay buffers: packed by any of the codecs, and what is damaged, missing or promised."""

from __future__ import annotations

import bz2
import gzip
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgen.data.formats.detection import open_source

SETS = Path(__file__).parents[1] / "sets"
ENDS = np.array([2, 5], "<i8")
PACKED = {
    None: lambda raw: raw,
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "bz2": bz2.compress,
}


def write(folder: Path, name: str, values: np.ndarray, chunk: int, codec=None, **meta) -> None:
    """An array of version 2 by its specification, chunks of `chunk` rows."""
    place = folder / name
    place.mkdir(parents=True)
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    described = {
        "zarr_format": 2,
        "shape": list(values.shape),
        "chunks": [chunk, *values.shape[1:]],
        "dtype": values.dtype.str,
        "compressor": codec and {"id": codec},
        "fill_value": 0,
        "filters": None,
        "order": "C",
    }
    (place / ".zarray").write_text(json.dumps({**described, **meta}))
    for index in range(-(-len(values) // chunk)):
        rows = np.zeros((chunk, *values.shape[1:]), values.dtype)
        part = values[index * chunk : (index + 1) * chunk]
        rows[: len(part)] = part
        raw = rows.tobytes("F" if meta.get("order") == "F" else "C")
        key = ".".join([str(index)] + ["0"] * (values.ndim - 1))
        (place / key).write_bytes(PACKED[codec](raw))


def buffer(folder: Path, values: np.ndarray, chunk: int = 2, codec=None, **meta) -> Path:
    write(folder, "data/x", values, chunk, codec, **meta)
    write(folder, "meta/episode_ends", ENDS, 2)
    return folder


@pytest.mark.parametrize("codec", PACKED)
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", ">i2", "|u1", "|b1"])
def test_arrays_are_read_as_they_were_written(tmp_path, codec, dtype):
    values = np.arange(15).reshape(5, 3).astype(dtype)
    for order in "CF":
        folder = buffer(tmp_path / order, values, codec=codec, order=order)
        x = open_source(folder).read(["x"])["x"]
        assert x.dtype in (torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool)
        assert np.array_equal(x.numpy(), values.astype(x.numpy().dtype))


def test_a_missing_or_cut_chunk_is_named(tmp_path):
    folder = buffer(tmp_path / "a", np.ones((5, 3)), codec="zlib")
    chunk = folder / "data" / "x" / "1.0"
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-6])
    with pytest.raises(ValueError, match=r"chunk 1\.0 of data/x: expected 48 bytes packed by"):
        open_source(folder).read(["x"])
    chunk.write_bytes(zlib.compress(bytes(47)))
    with pytest.raises(ValueError, match="expected 48 bytes, got 47"):
        open_source(folder).read(["x"])
    chunk.unlink()
    with pytest.raises(ValueError, match="expected it, got none"):
        open_source(folder).read(["x"])
    (folder / "data" / "x" / "0.0").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="git lfs pull"):
        open_source(folder).read(["x"])


def test_bombs_and_sizes_that_lie_are_refused(tmp_path):
    big = 1 << 30
    for name, shape, chunks in (("a", [5, big], [2, big]), ("b", [5, 3], [big, 3])):
        folder = buffer(tmp_path / name, np.ones((5, 3)), shape=shape, chunks=chunks)
        with pytest.raises(ValueError, match="bytes unpacked"):
            open_source(folder).read(["x"])
    folder = buffer(tmp_path / "c", np.ones((5, 3)), codec="zlib")
    (folder / "data" / "x" / "0.0").write_bytes(zlib.compress(bytes(1 << 24)))
    with pytest.raises(ValueError, match="expected 48 bytes"):
        open_source(folder).read(["x"])


def test_objects_are_never_unpickled(tmp_path):
    folder = buffer(tmp_path / "a", np.ones((5, 3)), dtype="|O", filters=[{"id": "pickle"}])
    source = open_source(folder)
    assert source.columns["x"].kind == "other"
    with pytest.raises(ValueError, match="expected numbers"):
        source.read(["x"])
    folder = buffer(tmp_path / "b", np.ones((5, 3)), filters=[{"id": "pickle"}])
    with pytest.raises(ValueError, match="packed by 'pickle', got: a codec that isn't read"):
        open_source(folder).read(["x"])


@pytest.mark.parametrize("harm", [{"shape": "x"}, {"chunks": [0, 3]}, {"order": "D"}])
def test_a_description_that_is_none_is_refused(tmp_path, harm):
    with pytest.raises(ValueError, match="expected the description of a zarr array"):
        open_source(buffer(tmp_path / "a", np.ones((5, 3)), **harm))


def test_a_group_that_is_no_replay_buffer_is_refused(tmp_path):
    write(tmp_path / "a", "x", np.ones((5, 3)), 2)
    with pytest.raises(ValueError, match="expected a replay buffer.*got x"):
        open_source(tmp_path / "a")


def test_a_damaged_archive_is_refused(tmp_path):
    path = tmp_path / "b.zarr.zip"
    shutil.copy(SETS / "buffer.zarr.zip", path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="expected a zip archive"):
        open_source(path)


def test_whole_numbers_that_no_tensor_holds_are_refused(tmp_path):
    folder = buffer(tmp_path / "a", np.full((5, 3), 2**64 - 1, "<u8"))
    with pytest.raises(ValueError, match=r"data/x: expected whole numbers below 2\^63"):
        open_source(folder).read(["x"])


def test_transposes_follow_one_another(tmp_path):
    """Twice is not at all."""
    folder = Path(shutil.copytree(SETS / "buffer3.zarr", tmp_path / "a"))
    expected = open_source(folder).read(["state"])["state"]
    path = folder / "data" / "state" / "zarr.json"
    meta = json.loads(path.read_text())
    turn = {"name": "transpose", "configuration": {"order": [1, 0]}}
    path.write_text(json.dumps({**meta, "codecs": [turn, turn, *meta["codecs"]]}))
    assert torch.equal(open_source(folder).read(["state"])["state"], expected)


@pytest.mark.parametrize("dtype", ["<f1", "|b2"])
def test_a_dtype_that_is_none_is_no_number(tmp_path, dtype):
    source = open_source(buffer(tmp_path / "a", np.ones((5, 3)), dtype=dtype))
    assert source.columns["x"].kind == "other"


def test_another_version_of_an_array_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a, data/x/\.zarray: expected zarr_format 2, got 4"):
        open_source(buffer(tmp_path / "a", np.ones((5, 3)), zarr_format=4))


def test_no_numbers_take_no_time(tmp_path):
    shape = {"shape": [5, 0, 1 << 39], "chunks": [1, 1, 1]}
    source = open_source(buffer(tmp_path / "a", np.ones((5, 3)), **shape))
    assert not source.read(["x"])["x"].numel()
