"""Score what a run made.

    fastgen evaluate runs/weave              the exported student, as its users sample it
    fastgen evaluate runs/mine factory=package.module:callable
                                             one with a network of your own
    fastgen evaluate recipes/teachers/weave  a teacher, at every number of calls; this rewrites its
                                             scores.json

In a checkout also `python recipes/evaluate.py runs/weave`.

The scores of a student are those of its run's report, to the last digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..config import TeacherConfig
from ..jobs.command_line import parse_path_and_options, user_errors
from ..jobs.distillation import score_student
from ..jobs.pretraining import score_teacher
from ..report.tables import format_table
from ..training.accelerator import use_all_cores

__all__ = ["evaluate", "main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Score what the arguments name; None means ``sys.argv[1:]``."""
    with user_errors():
        folder, options = parse_path_and_options(__doc__, ["factory"], arguments)
        use_all_cores()
        evaluate(Path(folder), options.get("factory"))


def evaluate(folder: Path, factory: str | None) -> None:
    """Print the scores of the student in a run folder; else measure the teacher in it.

    Raises:
        ValueError: the folder holds neither.
    """
    if (folder / "student").is_dir():
        print(format_table({"student": score_student(folder, factory)}))
    elif (folder / "teacher").is_dir():
        _score_teacher(folder / "teacher")
    elif (folder / "model.safetensors").is_file():
        _score_teacher(folder)
    else:
        raise ValueError(
            f"expected a run folder or a teacher's folder, got {folder} with neither student/ "
            "nor teacher/"
        )


def _score_teacher(folder: Path) -> None:
    rows = TeacherConfig()
    score_teacher(folder, calls=rows.calls, ab2_calls=rows.ab2_calls)
