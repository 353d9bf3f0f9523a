"""Say what is in a data set or in a student's folder.

    fastgen inspect DATA             a file or a folder: what would be used of it, and what is odd
    fastgen inspect DATA actions=action observations=obs/pos,obs/vel
                                     the columns to use, or as in a config "observations=[a, b]"
    fastgen inspect runs/x           a run's student, or a student's own folder: whether it is
                                     whole, and its card

In a checkout also `python recipes/inspect_data.py DATA`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..data.formats.description import describe_data
from ..export.card import student_card
from ..export.folders import STUDENT_FILE, has_custom_network, load_student
from ..export.schema import STUDENT_FORMAT, read_export
from ..jobs.command_line import column_names, parse_path_and_options, user_errors

__all__ = ["describe_student", "main"]

_KEYS = ("actions", "observations")


def main(arguments: Sequence[str] | None = None) -> None:
    """Say what is at a path; None means ``sys.argv[1:]``."""
    with user_errors():
        path, options = parse_path_and_options(__doc__, _KEYS, arguments)
        names = {key: column_names(options, key) for key in _KEYS}
        folder = _student_folder(Path(path))
        if folder is None:
            print("\n".join(describe_data(path, **names)))
            return
        if options:
            raise ValueError(f"expected actions and observations of data, got them with {folder}")
        print(describe_student(folder))


def describe_student(folder: Path) -> str:
    """The card of a student whose files are whole.

    Raises:
        ValueError: a file that is missing, damaged or edited.
    """
    if has_custom_network(folder):
        _, config, tensors = read_export(folder, STUDENT_FORMAT, STUDENT_FILE)
        numbers = sum(map(math.prod, tensors.shapes.values()))
    else:
        student = load_student(folder)
        config = student.config
        numbers = sum(p.numel() for p in student.network.parameters())
    return f"{folder} is whole: its files have the recorded checksums.\n\n" + student_card(
        config, numbers
    )


def _student_folder(path: Path) -> Path | None:
    """The folder of a student that `path` is, or has as a run's folder does; None for data."""
    for folder in (path, path / "student"):
        if (folder / STUDENT_FILE).is_file():
            return folder
    return None
