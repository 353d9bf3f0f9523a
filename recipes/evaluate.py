"""Score what a run made.

python recipes/evaluate.py runs/weave              the exported student, as its users sample it
python recipes/evaluate.py runs/mine factory=package.module:callable
                                                   one with a network of your own
python recipes/evaluate.py recipes/teachers/weave  a teacher, at every number of calls; this
                                                   rewrites its scores.json
"""

from __future__ import annotations

from pathlib import Path

from fastgen.config import TeacherConfig
from fastgen.jobs.command_line import parse_path_and_options, user_errors
from fastgen.jobs.distillation import score_student
from fastgen.jobs.pretraining import score_teacher
from fastgen.report.tables import format_table
from fastgen.training.accelerator import use_all_cores


def main() -> None:
    with user_errors():
        folder, options = parse_path_and_options(__doc__, ["factory"])
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
        evaluate_teacher(folder / "teacher")
    elif (folder / "model.safetensors").is_file():
        evaluate_teacher(folder)
    else:
        raise ValueError(
            f"expected a run folder or a teacher's folder, got {folder} with neither student/ "
            "nor teacher/"
        )


def evaluate_teacher(folder: Path) -> None:
    rows = TeacherConfig()
    score_teacher(folder, calls=rows.calls, ab2_calls=rows.ab2_calls)


if __name__ == "__main__":
    main()
