"""A report's numbers are those of the run, in its folder and in its table."""

import json
import os
import struct
import sys

import pytest
import torch

from fastgen.report import format_table, write_report
from fastgen.report.tables import by_solver
from support.reports import STAGES, curves, examples, results
from support.toy import without_pictures


@pytest.mark.slow
def test_the_folder_holds_numbers_pages_and_pictures(tmp_path):
    folder = write_report(
        tmp_path, results=results(), curves=curves(), examples=examples(), stages=STAGES
    )
    names = [
        "diagnostics.png",
        "report.json",
        "report.md",
        "score_vs_nfe.png",
        "training.png",
        "trajectories.png",
    ]
    assert folder == tmp_path / "report" and sorted(os.listdir(folder)) == names
    assert json.loads((folder / "report.json").read_text()) == results()
    page = (folder / "report.md").read_text()
    assert format_table(results(), stages=STAGES) in page and all(
        f"]({name})" in page for name in names if name.endswith(".png")
    )
    for name in (name for name in names if name.endswith(".png")):
        data = (folder / name).read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        assert data.startswith(b"\x89PNG") and width >= 700 and height >= 300
    with without_pictures():
        # A second report takes the place of the first, and one that fails leaves it.
        write_report(
            tmp_path,
            results={**results(), "seconds": {}},
            curves=[],
            examples=examples(),
            stages=STAGES,
        )
        before = (folder / "report.json").read_text()
        with pytest.raises(TypeError, match="results.selected to hold"):
            write_report(
                tmp_path,
                results={**results(), "selected": {1, 2}},
                curves=[],
                examples=examples(),
                stages=STAGES,
            )
        assert (folder / "report.json").read_text() == before


def test_a_report_of_someone_else_is_kept(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.md").write_text("# Quarterly report\n")
    with without_pictures(), pytest.raises(ValueError, match="got a folder with report.md"):
        write_report(
            tmp_path, results=results(), curves=curves(), examples=examples(), stages=STAGES
        )
    assert (tmp_path / "report" / "report.md").read_text() == "# Quarterly report\n"


def test_numbers_that_are_none_become_null_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fastgen.report.page.training_figure",
        lambda *_: (_ for _ in ()).throw(ImportError("no plots")),
    )
    broken = results()
    broken["student"]["1"] = {
        "success": float("nan"),
        "energy_ratio": torch.tensor(float("inf")),
        "clearance": 1,
    }
    with pytest.raises(ImportError, match="no plots; .*report.json and report.md are written"):
        write_report(tmp_path, results=broken, curves=[], examples=examples(), stages=STAGES)
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert numbers["student"]["1"] == {"success": None, "energy_ratio": None, "clearance": 1}
    assert set(numbers["null_reasons"]) == {"student.1.success", "student.1.energy_ratio"}
    assert numbers["null_reasons"]["student.1.energy_ratio"].startswith("the value was inf")


def test_without_matplotlib_the_numbers_are_kept_and_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'fastgen-distill\[viz\]'"):
        write_report(
            tmp_path, results=results(), curves=curves(), examples=examples(), stages=STAGES
        )
    assert sorted(os.listdir(tmp_path / "report")) == ["report.json", "report.md"]


def test_the_table_has_every_sampler_in_both_blocks():
    table = format_table(results(), stages=STAGES)
    everyone, near, *rest = table.split("\n\n")
    assert everyone.split("\n")[0].split() == [
        "all",
        "conditions",
        "energy_ratio",
        "success",
        "clearance",
    ]
    assert near.split("\n")[0].split() == ["near", "opposition", "energy_ratio", "success"]
    labels = [line.split("  ")[0] for line in everyone.split("\n")[2:]]
    assert labels[:5] == [
        "demonstrations",
        "teacher Euler 100",
        "teacher Euler 4",
        "teacher Euler 1",
        "teacher AB2 4",
    ]
    assert labels[5:] == ["KD only 2", "KD only 1", "KD + DMD 2", "KD + DMD 1"]
    assert everyone.count("<- exported") == 2 and "KD only 1  <- exported" in everyone
    assert (
        "demonstrations                1.0000   0.9995     1.0000" in everyone
    )  # the exact floor, not the measured one
    assert "seconds: kd 101.5; dmd 55.0" in rest[0] and "latency: student, ms 2.500" in rest[1]


def test_the_table_copes_with_what_a_run_did_not_measure():
    table = format_table(
        {"student": {"1": {"min_fde": float("nan"), "min_ade": 2.0}}, "floor": {"cv_min_fde": 6.2}}
    )
    assert (
        "constant velocity   6.2000        -" in table
        and "student 1              n/a   2.0000" in table
    )
    assert format_table({}) == ""


def test_rows_are_sorted_by_solver_and_calls():
    found = by_solver({"100": {"a": 1}, "ab2-4": {"a": 2}, "rk4-8": {"a": 3}, "best": {"a": 4}})
    assert found == {"euler": {100: {"a": 1}}, "ab2": {4: {"a": 2}}, "rk4": {8: {"a": 3}}}
