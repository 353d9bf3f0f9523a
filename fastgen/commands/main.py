"""The command `fastgen`: what is done with data and students that are there.

    fastgen inspect PATH               what is in a data set or a student's folder
    fastgen sample STUDENT z=FILE      samples of a student, into a file
    fastgen evaluate RUN               the scores of a run's student, or of a teacher
    fastgen export STUDENT --to onnx   a student for programs without fastgen
    fastgen compare RUN RUN ...        the students of several runs, and what of it is noise

`fastgen COMMAND --help` says more. Training and distilling are recipes, which a launcher starts:
`accelerate launch recipes/distill.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..jobs.command_line import user_errors
from . import compare, evaluate, export, inspect, sample

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "inspect": inspect.main,
    "sample": sample.main,
    "evaluate": evaluate.main,
    "export": export.main,
    "compare": compare.main,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name; None means ``sys.argv[1:]``.

    Raises:
        SystemExit: 2 for a command that isn't there, else what the command ends with.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("--help", "-h"):
        print(__doc__)
        raise SystemExit(0 if arguments else 2)
    name, *rest = arguments
    if name not in COMMANDS:
        with user_errors():
            raise ValueError(f"unknown command {name!r}, expected one of: {', '.join(COMMANDS)}")
    COMMANDS[name](rest)
