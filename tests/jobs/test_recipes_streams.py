"""The recipes where nobody listens: the student is there, and the exit code is that of the work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastgen.export.folders import load_student
from support.recipes import PATIENCE, RECIPES, environment

pytestmark = pytest.mark.slow

FEW = "train.kd_steps=2 train.steps=2 train.evaluate_every=1 train.log_every=1"
# No UTF-8 anywhere: neither in names of files nor in what is printed.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """A line of bash about recipes; its exit code is that of the first command of a pipe."""
    line = line.replace("recipes/", f"'{sys.executable}' {RECIPES}/") + "; exit ${PIPESTATUS[0]}"
    return subprocess.run(
        ["bash", "-c", line],
        cwd=cwd,
        env=environment() | ASCII,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture
def place(home, tmp_path) -> Path:
    """A user's folder with letters that ASCII lacks."""
    folder = tmp_path / "прогон"
    shutil.copytree(home, folder, ignore=shutil.ignore_patterns("walks"))
    return folder


def test_a_run_without_listeners_in_a_folder_of_another_script(place):
    few = f"{FEW} teacher.calls=[1] teacher.ab2_calls=[]"
    distill = f"recipes/distill.py student.yaml {few} 'run_dir=ход ü'"
    done = shell(f"{distill} 2>&1 | head -c1", place)
    assert done.returncode == 0
    run = place / "ход ü"
    assert json.loads((run / "report" / "report.json").read_text())["student"]
    assert load_student(run / "student").steps == (1, 2)
    # Once more, with every stream closed, from what was saved.
    shutil.rmtree(run / "student")
    done = shell(f"{distill} --resume <&- >&- 2>&-", place)
    assert done.returncode == 0 and (run / "student").is_dir()
    done = shell("recipes/evaluate.py 'ход ü' >/dev/full", place)
    assert done.returncode == 0, done.stderr
    samples = "recipes/sample.py 'ход ü/student' z=walks.npz num_samples=1 'out=выход.npz'"
    done = shell(f"{samples} >&-", place)
    assert done.returncode == 0, done.stderr
    assert (place / "выход.npz").exists()
    # An error is one all the same.
    done = shell(f"{samples} 'z=нет.npz' >&- 2>&-", place)
    assert done.returncode == 2


def test_a_teacher_without_listeners(place):
    train = "recipes/train_teacher.py teacher.yaml train.steps=2 calls=[1] ab2_calls=[]"
    done = shell(f"{train} 'run_dir=учитель' >&- 2>/dev/full", place)
    assert done.returncode == 0
    assert (place / "учитель" / "teacher" / "scores.json").exists()
    for words in ("--help", "нет.yaml"):
        done = shell(f"recipes/distill.py {words} | head -c1", place)
        assert done.returncode == (2 if words == "нет.yaml" else 0), done.stderr
