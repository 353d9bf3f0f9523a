"""Parquet files: lists of one length, row groups, and what is wrong with a file."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fastgen.data.formats.description import time_notes
from fastgen.data.formats.parquet import open_parquet, read_columns

EPISODE = pa.array([0, 0, 1, 1])


def write(folder, name="a.parquet", **columns):
    pq.write_table(pa.table(columns), folder / name, row_group_size=3)
    return folder / name


def test_columns_of_all_shapes_are_read_from_several_files(tmp_path):
    matrix = [[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]] * 4
    columns = {
        "episode_index": EPISODE,
        "x_0": pa.array([1.5, 2.5, 3.5, 4.5]),
        "x_1": pa.array([1, 2, 3, 4]).cast(pa.float64()),
        "m": pa.array(matrix, pa.list_(pa.list_(pa.float32()))),
        "half": pa.array([1, 2, 3, 4]).cast(pa.float16()),
        "on": pa.array([True, False, True, True]),
        "img": pa.array([{"bytes": b"x", "path": "y"}] * 4),
        "blob": pa.array([b"x"] * 4),
        "said": pa.array(["x"] * 4),
    }
    path = write(tmp_path, **columns)
    source = open_parquet(path)
    assert list(source.ends) == [2, 4]
    kinds = {name: column.kind for name, column in source.columns.items()}
    assert (kinds["img"], kinds["blob"], kinds["said"]) == ("image", "other", "text")
    got = source.read(["x", "m", "half", "on"])
    assert torch.equal(got["x"][:, 0], torch.tensor([1.5, 2.5, 3.5, 4.5], dtype=torch.float64))
    assert got["m"].shape == (4, 3, 2) and got["m"].dtype == torch.float32
    assert got["half"].dtype == torch.float32
    assert got["on"].tolist() == [True, False, True, True]
    twice = read_columns([path, path], ["m"])["m"]
    assert torch.equal(twice, torch.cat([got["m"], got["m"]]))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (pa.array([[1.0], [1.0, 2.0], [1.0], [1.0]]), "rows of one length, got 1 to 2"),
        (pa.array([1.0, None, 2.0, 3.0]), "got 1 missing"),
        (pa.array([[1.0], None, [2.0], [3.0]]), "got 1 missing"),
    ],
)
def test_holes_and_ragged_rows_are_refused(tmp_path, values, said):
    source = open_parquet(write(tmp_path, episode_index=EPISODE, x=values))
    with pytest.raises(ValueError, match=said):
        source.read(["x"])


def test_what_is_no_parquet_file_is_said(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + bytes(20))
    with pytest.raises(ValueError, match="expected a Parquet file"):
        open_parquet(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        open_parquet(path)
    with pytest.raises(ValueError, match="expected a column episode_index or"):
        open_parquet(write(tmp_path, x=EPISODE))


def test_more_than_the_file_can_hold_is_refused(tmp_path):
    zeros = pa.array(torch.zeros(1 << 22).numpy())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"episode_index": zeros.cast(pa.int64())}), path)
    with pytest.raises(ValueError, match="bytes unpacked"):
        open_parquet(path)


def test_channels_of_different_kinds_are_joined_without_loss(tmp_path):
    """float32 can't hold 2^25 + 1."""
    path = tmp_path / "a.parquet"
    columns = {"episode": [0, 0], "x_0": [2**25 + 1] * 2, "x_1": pa.array([0.5] * 2, pa.float32())}
    pq.write_table(pa.table(columns), path)
    assert open_parquet(path).read(["x"])["x"].tolist() == [[2**25 + 1, 0.5]] * 2


def test_whole_numbers_that_no_tensor_holds_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    x = pa.array([2**64 - 1] * 2, pa.uint64())
    pq.write_table(pa.table({"episode": [0, 0], "x": x}), path)
    with pytest.raises(ValueError, match=r"x: expected whole numbers below 2\^63, got 18446744"):
        open_parquet(path).read(["x"])


def test_the_number_of_the_episode_may_be_a_list_of_one_and_not_of_two(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"episode": [[3], [3], [9]], "x": [1, 2, 3]}), path)
    assert list(open_parquet(path).ends) == [2, 3]
    pq.write_table(pa.table({"episode": [[3, 0], [3, 1]], "x": [1, 2]}), path)
    with pytest.raises(ValueError, match=r"one number in each row.*got rows of shape \(2,\)"):
        open_parquet(path)


def test_times_that_are_missing_are_said_and_do_not_refuse_the_rest(tmp_path):
    path = write(tmp_path, episode=EPISODE, timestamp=pa.array([0, 1, None, 1]), x=EPISODE)
    (note,) = time_notes(open_parquet(path))
    assert "timestamp: expected a value in every row, got 1 missing" in note
