"""The recipe that says what is in a data set takes columns as configs name them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from fastgen.jobs.command_line import column_names

ROOT = Path(__file__).parents[2]
DATA = str(ROOT / "tests" / "data" / "sets" / "low_dim.hdf5")


@pytest.mark.parametrize(
    ("text", "names"),
    [("a", ["a"]), ("a,b/c", ["a", "b/c"]), ("[a, b/c]", ["a", "b/c"]), ('["a, b"]', ["a, b"])],
)
def test_names_are_read_as_a_list_or_with_commas(text, names):
    assert column_names({"observations": text}, "observations") == names
    assert column_names({}, "observations") is None


@pytest.mark.parametrize("text", ["", "a,,b", "[1, 2]", "[[a]]", "[a", "['']"])
def test_what_are_no_names_is_refused(text):
    with pytest.raises(ValueError, match="observations"):
        column_names({"observations": text}, "observations")


def test_both_spellings_say_the_same(monkeypatch, capsys):
    said = []
    for names in ("[obs/robot0_eef_pos, obs/object]", "obs/robot0_eef_pos,obs/object"):
        monkeypatch.setattr(sys, "argv", ["inspect_data.py", DATA, f"observations={names}"])
        runpy.run_path(str(ROOT / "recipes" / "inspect_data.py"), run_name="__main__")
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "obs/object          observations" in said[0]
    assert "teacher.encoder.columns='[obs/image]'" in said[0]
