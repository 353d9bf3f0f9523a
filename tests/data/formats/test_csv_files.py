"""CSV files: channels side by side, text, episodes, and what is wrong with a line."""

from __future__ import annotations

import csv
import random
import sys

import pytest
import torch

from fastgen.data.formats import csv_files
from fastgen.data.formats.csv_columns import quick_columns
from fastgen.data.formats.csv_files import open_csv, together


def test_numbered_names_are_one_column():
    names = ["x_1", "x_0", "y.0", "z[0]", "z[1]", "w_0", "w_2", "v_0", "v"]
    assert together(names) == {
        "x": ["x_0", "x_1"],
        "y": ["y.0"],
        "z": ["z[0]", "z[1]"],
        "w_0": ["w_0"],
        "w_2": ["w_2"],
        "v_0": ["v_0"],
        "v": ["v"],
    }


def write(folder, text: str):
    path = folder / "a.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_are_read_with_any_usual_delimiter(tmp_path):
    for mark in ",;\t":
        lines = ["episode,x_0,x_1,who", "3,1,2.5,a", "3,2,-1e-3,b", "1,0,0,c"]
        text = "\ufeff" + "\n".join(lines).replace(",", mark) + "\n"
        source = open_csv(write(tmp_path, text))
        assert list(source.ends) == [2, 3]
        assert source.columns["who"].kind == "text"
        x = source.read(["x"])["x"]
        assert torch.equal(x, torch.tensor([[1, 2.5], [2, -1e-3], [0, 0]], dtype=torch.float64))


def test_a_missing_number_is_no_text(tmp_path):
    source = open_csv(write(tmp_path, "episode,x\n0,1\n0,\n"))
    assert source.columns["x"].kind == "numbers"
    assert source.read(["x"])["x"].isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("episode,x\n0,1\n0,1,2\n", "expected 2 fields in line 3, got 3"),
        ("episode,x,x\n0,1,1\n", "one column of each name, got x"),
        ("x,y\n0,1\n", "expected a column episode_index or episode or episode_id"),
        ("episode,x\n", "expected rows, got none"),
        ("episode,x\n0,1\n1,1\n0,1\n", "got episode 0 in several places"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("", "got an empty one"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        open_csv(write(tmp_path, text))


def test_another_code_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("episode,größe\n0,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="expected a CSV file in UTF-8"):
        open_csv(path)


def test_names_that_python_takes_for_numbers_are_text(tmp_path):
    source = open_csv(write(tmp_path, "episode,x\n0,1_0\n0,2_0\n"))
    assert source.columns["x"].kind == "text"


@pytest.mark.parametrize("number", ["", "0.5", "inf", "1700000000000000001"])
def test_the_number_of_an_episode_is_whole_and_was_not_rounded(tmp_path, number):
    text = f"episode,x\n{number},1\n{number},2\n"
    with pytest.raises(ValueError, match=r"whole and below 2\^53, got .* in row 0"):
        open_csv(write(tmp_path, text))


FIELDS = (
    *("1", "2.5", "-3", "", "nan", "NaN", "inf", "-Infinity", "1e400", "1e-400", " 4 ", "+1.5"),
    *("1_0", "abc", "NA", "null", "true", "2020-01-01", "0x10", "9007199254740993", "'1'", "٣"),
    *("12345678901234567890", '"7"', '""', '"a\nb"', '"1\n"', "1.", "-.5", ".", "-", "1e", "1,5"),
    *('"1,5"', "007", "1d5", "nan(3)", "#N/A", '"a""b"', '"x', "1\0", "\ufeff1", " "),
)


def random_table(rng: random.Random) -> bytes:
    """A few lines of odd fields, now and then of another length or another code."""
    columns = rng.randint(1, 4)
    mark = rng.choice(",;\t")
    pool = rng.sample(FIELDS, rng.randint(1, 4)) + ["1", "2.5"] * rng.randint(0, 5)
    quote = rng.choice(["", "", '"'])
    lines = [mark.join(f"{quote}c{i}{quote}" for i in range(columns))]
    for _ in range(rng.randint(0, 6)):
        length = columns if rng.random() < 0.97 else rng.randint(0, 5)
        lines.append(mark.join(rng.choice(pool) for _ in range(length)))
    data = rng.choice(["\n", "\r\n"]).join(lines).encode()
    if rng.random() < 0.05:
        data = data[: len(data) // 2] + b"\xff" + data[len(data) // 2 :]
    return data


def outcome(path) -> tuple:
    """Names and numbers of a file, or the error."""
    try:
        names, values = csv_files._read(path)
    except (ValueError, csv.Error) as error:
        return type(error), str(error)
    numbers = {name: value.nan_to_num(9.5, 8.5, 7.5).tolist() for name, value in values.items()}
    return names, numbers, {name: value.isnan().tolist() for name, value in values.items()}


def test_pyarrow_reads_what_python_reads(tmp_path, monkeypatch):
    rng = random.Random(0)
    path = tmp_path / "a.csv"
    quick = []

    def watched(*arguments):
        quick.append(quick_columns(*arguments) is not None)
        return quick_columns(*arguments)

    for _ in range(400):
        path.write_bytes(random_table(rng))
        monkeypatch.setattr(csv_files, "quick_columns", lambda *_: None)
        expected = outcome(path)
        monkeypatch.setattr(csv_files, "quick_columns", watched)
        assert outcome(path) == expected, path.read_bytes()
    assert sum(quick) > 200


def test_without_pyarrow_the_same_is_read(tmp_path, monkeypatch):
    path = write(tmp_path, "episode,x\n0,1.5\n0,2\n")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert quick_columns(path, ",", 2) is None
    assert open_csv(path).read(["x"])["x"].tolist() == [1.5, 2.0]


def test_text_further_down_than_pyarrow_looks_at_once_is_text(tmp_path):
    lines = ["episode,x,y", *(f"0,{i},{i}.5" for i in range(200_000)), "0,late,1"]
    source = open_csv(write(tmp_path, "\n".join(lines)))
    assert source.columns["x"].kind == "text"
    assert torch.equal(source.read(["y"])["y"][:-1], torch.arange(200_000).double() + 0.5)
