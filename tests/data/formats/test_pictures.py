"""Packed pictures: the same pixels in every format, bounded before they are unpacked."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastgen.data.formats.batches import row_batches
from fastgen.data.formats.description import describe_data
from fastgen.data.formats.detection import open_source
from fastgen.data.formats.pictures import MOST_BYTES, unpacked
from fastgen.data.formats.selection import select
from fastgen.data.observations import load_observations

SETS = Path(__file__).parents[1] / "sets"
# A data set -> its column of pictures.
ARRAYS = {
    "buffer.zarr": "img",
    "buffer.zarr.zip": "img",
    "buffer3.zarr": "img",
    "buffer3.zarr.zip": "img",
    "low_dim.hdf5": "obs/image",
    "lerobot3": "observation.image",
    "lerobot21": "observation.image",
}
PACKED = [f"pictures/{kind}-v0" for kind in ("hdf5", "arrow", "parquet")]


def pictures(name: str, column: str, size: int = 16) -> Tensor:
    return torch.cat(
        [rows[column] for rows in row_batches(open_source(SETS / name), [column], size)]
    )


def png(pixels: np.ndarray, **how: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=how.get("format", "PNG"))
    return buffer.getvalue()


def test_pictures_are_the_same_in_every_format():
    expected = pictures("buffer.zarr", "img")
    assert expected.shape == (105, 8, 8, 3) and expected.dtype == torch.uint8
    for name, column in ARRAYS.items():
        assert torch.equal(pictures(name, column), expected), name


def test_pictures_of_minari_are_those_that_were_recorded_but_for_their_packing():
    expected = pictures(PACKED[0], "observations/picture")
    assert expected.shape == (15, 32, 32, 3) and expected.dtype == torch.uint8
    for name in PACKED[1:]:
        assert torch.equal(pictures(name, "observations/picture"), expected), name
    source = open_source(SETS / PACKED[0])
    place = source.read(["observations/state"])["observations/state"][:, 0].numpy()
    episode = np.repeat([0, 1, 2], (4, 6, 5))[:, None, None]
    rows, columns = np.indices((32, 32)) / 8
    level = 64 * (np.cos(rows + place[:, None, None]) + np.sin(columns * (episode + 1))) + 127
    error = np.abs(expected[..., 0].numpy() - level).mean((1, 2))
    # JPEG loses some levels of 256; another row's picture is tens of them away.
    assert error.max() < 6 < np.abs(expected[:-1, ..., 0].numpy() - level[1:]).mean((1, 2)).min()


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
@pytest.mark.parametrize("name", ["buffer.zarr", "low_dim.hdf5", "lerobot3", "episodes.npz"])
def test_batches_of_any_size_are_the_rows_in_order(name, size):
    source = open_source(SETS / name)
    names = [n for n, column in source.columns.items() if column.kind == "numbers"][:3]
    expected = source.read(names)
    batches = list(row_batches(source, names, size))
    assert [len(batch[names[0]]) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    for column in names:
        assert torch.equal(torch.cat([batch[column] for batch in batches]), expected[column])


def test_what_would_use_pictures_is_said():
    source = open_source(SETS / "lerobot3")
    notes = "\n".join(select(source).notes)
    assert "observation.image (images)" in notes
    assert "teacher.encoder.columns='[observation.image]'" in notes
    text = "\n".join(describe_data(SETS / "low_dim.hdf5"))
    assert "teacher.encoder.columns='[obs/image]'" in text and "image 8x8x3 uint8" in text


# ---- What is no picture, or too large a one ------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is as large as asked, with hardly anything in it."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


SMALL = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (bomb(5000, 5000), f"expected pictures of at most {MOST_BYTES:,} bytes, got 5000 x 5000"),
        (bomb(12_000, 12_000), "expected a picture, PNG or JPEG"),
        (bomb(60_000, 60_000), "expected a picture, PNG or JPEG"),
        (png(SMALL)[:-30], "expected a picture, PNG or JPEG, got one that can't be read"),
        (b"", "expected a picture, PNG or JPEG"),
        (b"GIF89a" + bytes(40), "expected a picture, PNG or JPEG"),
        (None, "expected the bytes of a picture in each row, got none, or a path alone"),
        (png(SMALL[:3]), r"expected pictures of one size, got \(4, 4, 3\) and \(3, 4, 3\)"),
    ],
)
def test_what_cannot_be_unpacked_is_refused(file, message):
    with pytest.raises(ValueError, match=message) as caught:
        list(unpacked([png(SMALL), file], "here"))
    assert str(caught.value).startswith("here")


def test_a_palette_is_refused_and_grey_has_one_channel():
    buffer = io.BytesIO()
    Image.fromarray(SMALL).convert("P").save(buffer, format="PNG")
    with pytest.raises(ValueError, match="expected pictures in grey, RGB or RGBA, got 'P'"):
        list(unpacked([buffer.getvalue()], "here"))
    (grey,) = unpacked([png(SMALL[..., 0])], "here")
    assert torch.equal(grey[0, ..., 0], torch.from_numpy(SMALL[..., 0].copy()))
    deep = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000
    (found,) = unpacked([png(deep)], "here")
    assert found.dtype == torch.int64 and np.array_equal(found[0, ..., 0], deep)


DEEP = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000
GREY = DEEP.astype(np.uint8)


@pytest.mark.parametrize("files", [(GREY, DEEP), (DEEP, GREY)])
def test_pictures_of_two_depths_are_refused(files):
    packed = [png(pixels) for pixels in files]
    with pytest.raises(ValueError, match="here: expected pictures of one depth, got 8 and 16 bits"):
        list(unpacked(packed, "here"))


def test_a_depth_may_not_change_after_a_piece():
    """Pictures that are handed on are compared with the next one, too."""
    large = np.zeros((1500, 1500), np.uint16)
    with pytest.raises(ValueError, match="expected pictures of one depth"):
        list(unpacked([png(large), png(large.astype(np.uint8))], "here"))


def test_pictures_of_two_depths_in_two_files_are_refused(tmp_path):
    """Whatever lies between them: an episode, or more rows than are read at once."""
    rows = [png(GREY)] * 20 + [png(DEEP)] * 20
    table = {"episode_index": np.repeat([0, 1], 20), "action": np.arange(40.0)}
    pq.write_table(pa.table({**table, "img": pa.array(rows, pa.binary())}), tmp_path / "t.parquet")
    write_episodes(tmp_path / "t.hdf5", [packed_files(rows[:20]), packed_files(rows[20:])])
    for name in ("t.parquet", "t.hdf5"):
        with pytest.raises(ValueError, match="expected pictures of one depth"):
            list(row_batches(open_source(tmp_path / name), ["img"], 8))


def test_frames_of_two_depths_are_refused(tmp_path):
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file, pixels in zip(files, (GREY, DEEP), strict=True):
        file.write_bytes(png(pixels))
    with pytest.raises(ValueError, match="b.png: expected pictures of one depth"):
        load_observations(files, ["image"])


def test_wider_numbers_of_some_files_are_taken(tmp_path):
    np.savez(tmp_path / "a.npz", action=np.ones((6, 1)), episode_ends=[3, 6])
    source = open_source(tmp_path / "a.npz")
    mixed = [torch.ones(3, 1, dtype=torch.int64), torch.ones(3, 1)]
    other = type(source)(**{**vars(source), "pieces": lambda name: iter(mixed)})
    (batch,) = row_batches(other, ["action"], 6)
    assert torch.equal(batch["action"], torch.ones(6, 1))


def packed_files(rows: list[bytes]) -> np.ndarray:
    """Files of different length, as HDF5 takes them."""
    found = np.empty(len(rows), object)
    found[:] = [np.frombuffer(row, np.uint8) for row in rows]
    return found


def write_episodes(path: Path, files: list[np.ndarray]) -> None:
    """A robomimic file with a column of packed pictures."""
    with h5py.File(path, "w") as file:
        for episode, rows in enumerate(files):
            group = file.create_group(f"data/demo_{episode}")
            group["actions"] = np.ones((len(rows), 2))
            if rows.ndim == 1:
                group.create_dataset("img", data=rows, dtype=h5py.vlen_dtype(np.uint8))
            else:
                group.create_dataset("img", data=rows)


def test_files_of_one_length_are_pictures_as_well(tmp_path):
    rows = [png(GREY)] * 5
    same = np.stack([np.frombuffer(row, np.uint8) for row in rows])
    write_episodes(tmp_path / "t.hdf5", [packed_files(rows), same])
    (batch,) = row_batches(open_source(tmp_path / "t.hdf5"), ["img"], 10)
    assert np.array_equal(batch["img"][..., 0], np.stack([GREY] * 10))


def test_files_of_one_length_are_bounded_before_they_are_read(tmp_path):
    path = tmp_path / "t.hdf5"
    write_episodes(path, [packed_files([png(GREY)] * 4)])
    with h5py.File(path, "a") as file:
        group = file.create_group("data/demo_1")
        group["actions"] = np.ones((4, 2))
        # Chunks that are never written take no room on the disk.
        group.create_dataset("img", (4, 1 << 23), np.uint8, chunks=(1, 1 << 16))
    with pytest.raises(ValueError, match="expected at most 200 times the .* bytes that are stored"):
        list(row_batches(open_source(path), ["img"], 4))


def test_a_file_of_a_picture_is_no_larger_than_a_picture(tmp_path, monkeypatch):
    path = tmp_path / "t.hdf5"
    rows = [png(GREY)] * 4
    same = np.stack([np.frombuffer(row, np.uint8) for row in rows])
    write_episodes(path, [packed_files(rows), same])
    monkeypatch.setattr("fastgen.data.formats.hdf5.MOST_BYTES", same.shape[1] - 1)
    with pytest.raises(ValueError, match="expected files of pictures of at most"):
        list(row_batches(open_source(path), ["img"], 4))


def test_a_declared_shape_may_have_its_channels_first_and_no_other():
    for shape in ((4, 4, 3), (3, 4, 4)):
        (found,) = unpacked([png(SMALL)], "here", shape)
        assert torch.equal(found[0], torch.from_numpy(SMALL))
    with pytest.raises(ValueError, match=r"expected a picture of shape \(5, 4, 3\), got \(4, 4, 3"):
        list(unpacked([png(SMALL)], "here", (5, 4, 3)))


def test_pictures_in_a_plain_table_are_read(tmp_path):
    rows = [png(SMALL + k) for k in range(40)]
    table = {
        "episode_index": np.repeat([0, 1], 20),
        "action": np.arange(40.0),
        "binary": pa.array(rows, pa.binary()),
        "struct": pa.array([{"bytes": row, "path": None} for row in rows]),
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    (batch,) = row_batches(source, ["binary", "struct"], 64)
    expected = torch.stack([torch.from_numpy(SMALL + k) for k in range(40)])
    assert torch.equal(batch["binary"], expected) and torch.equal(batch["struct"], expected)


def test_rows_that_are_missing_or_too_many_are_said(tmp_path):
    np.savez(tmp_path / "a.npz", action=np.ones((6, 1)), episode_ends=[3, 6])
    source = open_source(tmp_path / "a.npz")
    for rows, found in ((torch.ones(5, 1), 5), (torch.ones(8, 1), 8)):
        other = type(source)(**{**vars(source), "pieces": lambda name, rows=rows: iter(rows[None])})
        with pytest.raises(ValueError, match=f"expected 6 rows of action, got {found}"):
            list(row_batches(other, ["action"], 4))
    mixed = [torch.ones(3, 2), torch.ones(3, 3)]
    other = type(source)(**{**vars(source), "pieces": lambda name: iter(mixed)})
    with pytest.raises(ValueError, match="expected action with rows of one shape"):
        list(row_batches(other, ["action"], 4))
