"""JSON reads back as it was written, and what isn't JSON is refused in one line."""

import os
from pathlib import Path

import pytest
import torch

from fastgen._core.json_files import plain_json, read_json, write_json


def test_json_floats_read_back_exactly(tmp_path):
    values = [0.1, 1 / 3, 1e-308, -2.5e300, 0.999]
    write_json(tmp_path / "x.json", {"values": values})
    assert read_json(tmp_path / "x.json")["values"] == values


def test_plain_json_speaks_of_what_it_cannot_hold():
    given = {
        "a": (1, 2.5),
        "t": torch.tensor([1.0, float("nan")]),
        "p": Path("x"),
        "n": float("inf"),
        3: True,
    }
    assert plain_json(given, "d") == {
        "a": [1, 2.5],
        "t": [1.0, None],
        "p": "x",
        "n": None,
        "3": True,
    }
    with pytest.raises(TypeError, match=r"expected d.a\[1\] to hold numbers.*got set"):
        plain_json({"a": [1, {2}]}, "d")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[1]",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": 1' + b"0" * 400 + b"}",
        b'{"a": -1' + b"0" * 9000 + b"}",
        b'{"a": 1, "a": 2}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": 1',
    ],
)
def test_what_is_not_json_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match="x.json: expected") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_a_whole_number_that_no_float_holds_is_infinity_where_infinity_is_read(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(f'{{"a": 1{"0" * 400}, "b": -1{"0" * 9000}, "c": 1{"0" * 30}, "d": 1e999}}')
    read = read_json(path, only_finite=False)
    assert read == {"a": float("inf"), "b": -float("inf"), "c": 10**30, "d": float("inf")}
    assert type(read["c"]) is int


def test_only_plain_files_of_a_sane_size_are_read(tmp_path):
    with pytest.raises(ValueError, match="expected a file, found none"):
        read_json(tmp_path / "none.json")
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    with pytest.raises(ValueError, match="found something that is not a file"):
        read_json(tmp_path / "pipe")
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(ValueError, match="expected at most"):
        read_json(tmp_path / "huge.json")
