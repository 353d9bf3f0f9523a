"""Compare the students of runs on the same data.

    fastgen compare runs/a runs/b [runs/c ...] [key=value ...]

Each is given the same conditions and noise. The table has its scores with each number of network
calls, beside those that fresh data would have; below it is the difference of each run from the
first, with an interval that says how much of it is noise.

Keys, with their defaults:

    out           none; a new JSON file for all of these numbers
    factory       package.module:callable that builds a network of your own
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .._core.json_files import write_json
from ..jobs.command_line import parse_paths_and_options, user_errors
from ..jobs.comparison import compare_runs, comparison_text
from ..training.accelerator import use_all_cores

__all__ = ["compare", "main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the runs that the arguments name; None means ``sys.argv[1:]``."""
    with user_errors():
        folders, options = parse_paths_and_options(__doc__, ["out", "factory"], arguments)
        use_all_cores()
        compare([Path(folder) for folder in folders], **options)


def compare(folders: Sequence[Path], out: str | None = None, factory: str | None = None) -> None:
    """Print the comparison, and write it to the file `out`.

    Raises:
        ValueError: runs that can't be compared, or an `out` that is there.
    """
    if out is not None and Path(out).exists():
        raise ValueError(f"expected out=FILE as a new file, got {out}, which exists")
    found = compare_runs(
        folders,
        factory,
        progress=lambda what: print(f"scoring: {what}", file=sys.stderr, flush=True),
    )
    print(comparison_text(found))
    if out is not None:
        write_json(Path(out), found)
