"""Score what a run made.

python recipes/evaluate.py runs/ring             the exported student, through load_student(...).sample
python recipes/evaluate.py runs/mine factory=package.module:callable     one with a network of your own
python recipes/evaluate.py recipes/teachers/ring a teacher, at every number of calls; rewrites its
scores.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from fastgen.config import TeacherConfig
from fastgen.jobs.command_line import user_errors
from fastgen.jobs.distillation import score_student
from fastgen.jobs.pretraining import score_teacher
from fastgen.report.tables import format_table
from fastgen.training.accelerator import use_all_cores


def main() -> None:
    with user_errors():
        given = {
            key: value for key, _, value in (argument.partition("=") for argument in sys.argv[2:])
        }
        if len(sys.argv) < 2 or sys.argv[1].startswith("-") or given.keys() - {"factory"}:
            print(__doc__)
            raise SystemExit(0 if "--help" in sys.argv else 2)
        folder = Path(sys.argv[1])
        use_all_cores()
        if (folder / "student").is_dir():
            print(format_table({"student": score_student(folder, given.get("factory"))}))
        elif (folder / "teacher").is_dir() or (folder / "model.safetensors").is_file():
            teacher = folder / "teacher" if (folder / "teacher").is_dir() else folder
            rows = TeacherConfig()
            score_teacher(teacher, calls=rows.calls, ab2_calls=rows.ab2_calls)
        else:
            raise ValueError(
                f"expected a run folder or a teacher's folder, got {folder} with neither student/ "
                "nor teacher/"
            )


if __name__ == "__main__":
    main()
