"""The command `fastgen`: what a report says is said again, and two runs are told apart or not."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest

from fastgen.commands.main import COMMANDS, main
from fastgen.config.files import load_config
from fastgen.config.schemas import DistillConfig
from fastgen.jobs.comparison import compare_runs
from fastgen.jobs.distillation import score_student
from support.recipes import the_error

ROOT = Path(__file__).parents[2]
ENTRY = "fastgen.commands.main:main"


@pytest.fixture
def fastgen(monkeypatch, capsys):
    """`fastgen("inspect", ...)` is the command, in this process; (exit code, stdout, stderr)."""
    monkeypatch.setattr("fastgen.training.accelerator.use_all_cores", lambda *_, **__: None)

    def run(*arguments: object) -> tuple[object, str, str]:
        capsys.readouterr()
        code: object = 0
        try:
            main([*map(str, arguments)])
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def test_the_package_brings_the_command():
    assert f'[project.scripts]\nfastgen = "{ENTRY}"\n' in (ROOT / "pyproject.toml").read_text()
    module, _, name = ENTRY.partition(":")
    assert getattr(importlib.import_module(module), name) is main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_how_it_is_called(fastgen, name):
    code, out, _ = fastgen(name, "--help")
    assert code == 0 and f"fastgen {name} " in out
    assert name in fastgen("--help")[1]
    # Without a path there is nothing to do.
    assert fastgen(name)[0] == 2


def test_an_unknown_command_is_one_line(fastgen):
    code, out, err = fastgen("smaple", "x")
    assert (code, out) == (2, "")
    assert "unknown command 'smaple', expected one of: inspect, " in the_error(err)


@pytest.mark.slow
def test_a_student_has_the_scores_of_its_report_to_the_last_digit(home, fastgen, monkeypatch):
    monkeypatch.chdir(home)
    run = Path("runs") / "walks"
    report = json.loads((run / "report" / "report.json").read_text())
    assert score_student(run) == report["student"]
    code, out, _ = fastgen("evaluate", run)
    assert code == 0 and "energy_distance" in out


@pytest.mark.slow
def test_a_students_folder_is_told_by_its_card(home, fastgen):
    run = home / "runs" / "walks"
    card = (run / "student" / "README.md").read_text()
    for path in (run, run / "student"):
        code, out, _ = fastgen("inspect", path)
        assert code == 0 and out == f"{run / 'student'} is whole: its files have the recorded " + (
            f"checksums.\n\n{card}\n"
        )
    code, _, err = fastgen("inspect", run, "actions=a")
    assert code == 2 and "actions and observations of data" in the_error(err)


@pytest.fixture
def runs(home, tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A run, and the same once more."""
    monkeypatch.chdir(home)
    again = Path(shutil.copytree(home / "runs" / "walks", tmp_path / "again"))
    return home / "runs" / "walks", again


@pytest.mark.slow
def test_a_run_is_not_told_apart_from_itself(runs, fastgen, tmp_path):
    a, b = runs
    code, out, err = fastgen("compare", a, b, "--out", tmp_path / "found.json")
    assert code == 0, err
    found = json.loads((tmp_path / "found.json").read_text())
    report = json.loads((a / "report" / "report.json").read_text())
    assert found["runs"][str(a)]["scores"] == found["runs"][str(b)]["scores"] == report["student"]
    assert found["floor"] == {k: v for k, v in report["floor"].items() if v is not None}
    assert found["runs"][str(a)]["teacher_evaluations"] == report["teacher_evaluations"]["total"]
    assert [one["calls"] for one in found["differences"]] == [[1, 1], [2, 2]]
    for one in found["differences"]:
        assert one["verdict"] == "not told apart"
        assert all(score["difference"] == 0 for score in one["scores"].values())
    assert "demonstrations" in out and f"{b} (2 calls) is not told apart" in out
    # What is there stays.
    code, _, err = fastgen("compare", a, b, f"out={tmp_path / 'found.json'}")
    assert code == 2 and "expected out=FILE as a new file" in the_error(err)


@pytest.mark.slow
def test_runs_that_cannot_be_compared_are_refused(runs):
    a, b = runs
    with pytest.raises(ValueError, match="expected two runs or more, each once"):
        compare_runs([a])
    with pytest.raises(ValueError, match="expected two runs or more, each once"):
        compare_runs([a, a])
    config = (b / "config.yaml").read_text()
    seed = load_config(DistillConfig, b / "config.yaml").data.seed
    (b / "config.yaml").write_text(config.replace(f"seed: {seed}", f"seed: {seed + 1}"))
    with pytest.raises(ValueError, match="expected runs on the same data, got .*again"):
        compare_runs([a, b])
