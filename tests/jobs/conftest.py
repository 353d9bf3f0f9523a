"""A user's folders: one with a module of networks, and one with a teacher and a student.

One teacher is trained and distilled once for all files, on random walks small enough for seconds.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.recipes import RECIPES, STUDENT, TEACHER, once, python, walks

# What the user has in nets.py.
MODULE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=3, *, scale=1.0):
        super().__init__()
        self.scale, self.map = scale, nn.Linear(width, width)

    def forward(self, sample, timestep, cond=None):
        return self.scale * self.map(sample)

    @classmethod
    def wide(cls):
        return cls(width=7)

def text():
    return "a network"

def broken():
    raise TypeError("no such width")

answer = 42
"""


@pytest.fixture
def nets(tmp_path, monkeypatch) -> Iterator[Path]:
    """The folder a user works in, with a module of their own."""
    (tmp_path / "nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))]
    )
    yield tmp_path
    for name in ("nets", "two", "package", "package.nets", "needy"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A user's folder: data, two configs, a teacher in runs/walks-teacher and its student in
    runs/walks."""

    def make(folder: Path) -> None:
        np.savez(folder / "walks.npz", **walks())
        (folder / "teacher.yaml").write_text(TEACHER)
        (folder / "student.yaml").write_text(STUDENT)
        done = python(RECIPES / "train_teacher.py", "teacher.yaml", cwd=folder)
        assert done.returncode == 0, done.stderr
        # As README says it: through accelerate's launcher.
        done = python(
            "-m", "accelerate.commands.launch", RECIPES / "distill.py", "student.yaml", cwd=folder
        )
        assert done.returncode == 0, done.stderr
        (folder / "printed.txt").write_text(done.stdout)

    return once(tmp_path_factory, "home", make)


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """`call("distill.py", ...)` is `python recipes/distill.py ...` in `tmp_path`, without the
    seconds that a new process takes to import everything; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    # Recipes take all cores; the tests beside this one want theirs.
    monkeypatch.setattr("fastgen.training.accelerator.use_all_cores", lambda *_, **__: None)

    def run(name: str, *arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", [str(RECIPES / name), *map(str, arguments)])
        capsys.readouterr()
        code: object = 0
        try:
            runpy.run_path(str(RECIPES / name), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run
