"""CSV files: channels side by side, text, episodes, and what is wrong with a line."""

from __future__ import annotations

import pytest
import torch

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
