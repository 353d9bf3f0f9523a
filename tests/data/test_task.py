"""A task is one line of a table, and so is a format of files."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch

from fastgen.data import Task, build_task
from fastgen.data.formats.array_files import READERS
from fastgen.data.task import TASKS
from fastgen.data.tasks.modes import ModesTask


@pytest.mark.parametrize("name", TASKS)
def test_every_task_takes_what_every_config_has(name):
    parameters = inspect.signature(TASKS[name]).parameters
    assert {"pack", "seed", "symmetry"} <= parameters.keys()
    assert all(each.default is not each.empty for each in parameters.values())


def test_a_new_task_is_one_line(monkeypatch):
    monkeypatch.setitem(TASKS, "mine", ModesTask)
    task = build_task(SimpleNamespace(name="mine", size=10, path=None))
    assert isinstance(task, Task) and len(task.train) == 10
    with pytest.raises(ValueError, match="no data.path for the task mine, got 'x'; leave it out"):
        build_task(SimpleNamespace(name="mine", path="x"))


def test_a_new_format_is_one_line(monkeypatch, tmp_path):
    path = tmp_path / "numbers.mine"
    path.write_text("40")
    monkeypatch.setitem(READERS, ".mine", lambda file: {"X": torch.rand(int(file.read_text()), 3)})
    task = build_task(SimpleNamespace(name="file", path=str(path)))
    assert isinstance(task, Task) and task.train.X.shape[1:] == (3,)
    path.rename(tmp_path / "numbers.yours")
    with pytest.raises(
        ValueError, match="ends in .npz or .safetensors or .mine, got numbers.yours"
    ):
        build_task(SimpleNamespace(name="file", path=str(tmp_path / "numbers.yours")))
