"""The how-to of the maze, with few updates and nothing recorded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import record_maze

__all__ = ["run_maze", "run_record"]

_SMALL = ["train.batch_size=16", "train.threads=1"]
_BUDGETS = {
    "name=maze-teacher": ["train.steps=2", "calls=[1]", "ab2_calls=[]"],
    "name=maze": [
        *("train.kd_steps=2", "train.kd_pairs=16", "train.kd_teacher_calls=4"),
        *("teacher.calls=[1]", "teacher.ab2_calls=[]"),
    ],
}


def run_maze(
    call: Callable[..., tuple[object, str, str]], folder: Path, typed: Sequence[Sequence[str]]
) -> None:
    """The runs that the commands `typed` make, once."""
    if (folder / "runs" / "maze" / "report").exists():
        return
    for script, *arguments in typed:
        for name in _BUDGETS.keys() & {*arguments}:
            code, _, err = call(script, *arguments, *_BUDGETS[name], *_SMALL)
            assert code == 0, err


def run_record(monkeypatch, arguments: list[str]) -> None:
    """Read the arguments of tools/record_maze.py as it does, and record nothing."""
    asked = []
    monkeypatch.setattr(record_maze, "record", lambda folder, _: asked.append(folder) or 0)
    monkeypatch.setattr(sys, "argv", ["tools/record_maze.py", *arguments])
    record_maze.main()
    assert asked == [Path(arguments[0])]
