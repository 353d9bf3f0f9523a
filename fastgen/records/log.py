"""The log of a run: rows of ``metrics.jsonl``, and the progress that is shown to people.

A row has `iteration`, `stage` and `step` (updates of the stage), losses or scores or both, and how
fast it went: `seconds` of the stage so far, `samples_per_s` and `phases` (seconds by name) since
the row before, `peak_memory_mb` so far. These four differ between runs that are equal otherwise;
`timeless` leaves them out. `teacher_evaluations` are the rows that pairs and training have asked of
a teacher so far.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .._core.files import open_file, write_file
from .._core.json_files import parse_json, plain_json
from .._core.json_kinds import count, listed, mapping, maybe, number, plain, record, text
from .._core.messages import brief
from .._core.timing import PhaseClock

__all__ = [
    "CLOCKED",
    "RunLog",
    "check_tracker",
    "numbers",
    "peak_memory",
    "progress_bar",
    "quiet",
    "read_log",
    "say",
    "timeless",
]

LOG = "metrics.jsonl"
# Keys of a row that say how fast a run was, not what it computed.
CLOCKED = ("seconds", "samples_per_s", "phases", "peak_memory_mb")
# The most that a log may be: a row for each of a million updates is less than half of it.
_MOST_BYTES = 1 << 30
_MOST_ROW = 1 << 24
_MOVE = "restore the log, or move it away to go on without the rows so far"
_SKIP = record({"in_a_row": count, "in_all": count, "rows": listed(count)})
_BOUNDS = {"t": listed(number), "gan_t": listed(number)}
_DIAGNOSTICS = record({}, optional=_BOUNDS, others=plain)
# What a row may hold. Losses, scores and what else a method logs are under names of their own.
_ROW = record(
    {},
    optional={
        "iteration": count,
        "stage": text,
        "step": count,
        "seconds": number,
        "teacher_evaluations": count,
        "samples_per_s": number,
        "phases": mapping(number),
        "peak_memory_mb": number,
        "warnings": listed(text),
        "stopped_early": text,
        "compared": mapping(mapping(maybe(number))),
        "diagnostics": _DIAGNOSTICS,
        "skipped": mapping(_SKIP),
    },
    others=plain,
)
LINE_EVERY = 5.0  # least seconds between two lines of progress in a file


def timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the log without the keys of the clock, which no two runs share."""
    return {key: value for key, value in row.items() if key not in CLOCKED}


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; none where there is no such file.

    Raises:
        ValueError: no file, one of more than a gigabyte, or a line that is no row, with its number.
            A last line without an end is left out: a kill has cut it short.
    """
    rows = []
    for line, row in _numbered_rows(run_dir):
        if wrong := _ROW(row, "row"):
            raise ValueError(
                f"expected a row of JSON in line {line} of {run_dir / LOG}, got another: {wrong}"
            )
        rows.append(row)
    return rows


def _numbered_rows(run_dir: Path) -> Iterator[tuple[int, Any]]:
    """(number of the line, value) of each line of metrics.jsonl, one in memory at a time."""
    path = run_dir / LOG
    if not os.path.lexists(path):
        return
    with open_file(path, _MOVE) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MOST_BYTES:
            said = f"expected at most {_MOST_BYTES:,} bytes, got {size:,}"
            raise ValueError(f"{path}: {said}; {_MOVE}")
        at = 0
        while line := file.readline(_MOST_ROW + 1):
            at += 1
            if len(line) > _MOST_ROW:
                raise ValueError(
                    f"expected a row of at most {_MOST_ROW:,} bytes in line {at} of {path}, got "
                    f"more; {_MOVE}"
                )
            if not line.endswith(b"\n"):
                return  # a kill has cut it short
            if line == b"\n":
                continue
            try:
                yield at, parse_json(line, "row")
            except ValueError as error:
                raise ValueError(
                    f"expected a row of JSON in line {at} of {path}, got "
                    f"{brief(line.decode(errors='replace'))}; {_MOVE}"
                ) from error


def peak_memory() -> int | None:
    """The most memory of this process so far, in bytes.

    That is what torch held on the GPU, or without a GPU the resident size of the process; None
    where the system doesn't tell.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # a system without it
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class RunLog:
    """Writes the rows of a run.

    Args:
        run_dir: folder of the run.
        batch_size: samples of an update, over all processes.
        main_process: whether this process writes; others only keep the clock.
        track: called with the numbers of each row and its iteration, for trackers.

    Attributes:
        clock: of the phases between two rows.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        batch_size: int,
        main_process: bool,
        track: Callable[[dict[str, float], int], None] | None = None,
    ) -> None:
        self.run_dir = run_dir
        self.batch_size = batch_size
        self.main_process = main_process
        self.track = track
        self.clock = PhaseClock()
        self._updates = 0  # since the last row

    def count(self) -> None:
        """One more update was done."""
        self._updates += 1

    def write(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write a row, which has `iteration`, `stage` and `step`; returns it with speed and
        memory."""
        row = dict(row)
        phases = self.clock.take()
        training = [name for name in phases if name not in ("validation", "checkpoint")]
        seconds = sum(phases[name] for name in training)
        if self._updates and seconds > 0:
            row["samples_per_s"] = round(self._updates * self.batch_size / seconds, 1)
        self._updates = 0
        row["phases"] = {name: round(value, 4) for name, value in phases.items()}
        peak = peak_memory()
        if peak is not None:
            row["peak_memory_mb"] = round(peak / 1e6, 1)
        self.note(row)
        return row

    def note(self, row: dict[str, Any]) -> None:
        """Write a row as it is, such as that of an update which only now is known to have been
        skipped."""
        if self.main_process:
            with open(self.run_dir / LOG, "a", encoding="utf-8") as file:
                file.write(json.dumps(plain_json(row, "row")) + "\n")
            if self.track is not None:
                self.track(numbers(row), row["iteration"])

    def truncate(self, stages: Sequence[str], position: int, updates: int) -> None:
        """Drop the rows of what is about to be done again.

        Args:
            stages: names of all stages of the run, in order.
            position: of the stage that is gone on with.
            updates: of it that are done. Rows after them go; if none are, that of update 0 goes,
                too.

        Raises:
            ValueError: a row of something else; nothing is dropped.
        """
        path = self.run_dir / LOG
        if not self.main_process or not os.path.lexists(path):
            return
        last = (position, updates if updates else -1)
        kept = []
        for _, row in _numbered_rows(self.run_dir):
            if not _is_row(row, stages) or _ROW(row, "row"):
                raise ValueError(
                    f"expected rows of {', '.join(stages)} in {path}, got {brief(row)}; {_MOVE}"
                )
            if (stages.index(row["stage"]), row["step"]) <= last:
                kept.append(row)
        write_file(path, "".join(json.dumps(row) + "\n" for row in kept).encode())


def _is_row(row: Any, stages: Sequence[str]) -> bool:
    if not isinstance(row, dict) or count(row.get("step"), "step"):
        return False
    return isinstance(row.get("stage"), str) and row["stage"] in stages


def numbers(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a row as trackers take them, such as {"kd/loss": 0.5, "kd/phases/data": 0.25}.

    Entries of lists are named by their index. `iteration`, the x-axis, and what is no number are
    left out.

    Args:
        row: of the log.
        prefix: of the names; "": the stage of the row.
    """
    stage = row.get("stage")
    found: dict[str, float] = {}
    for key, value in row.items():
        name = f"{prefix}{key}" if prefix or stage is None else f"{stage}/{key}"
        if isinstance(value, torch.Tensor):
            value = value.tolist()
        if isinstance(value, list | tuple):
            value = {str(k): entry for k, entry in enumerate(value)}
        if isinstance(value, Mapping):
            found |= numbers(value, f"{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "iteration":
            found[name] = float(value)
    return found


def check_tracker(name: str | None) -> None:
    """Refuse a tracker without its package.

    Args:
        name: of the tracker; None: there is none.

    Raises:
        ValueError: such as `expected the package wandb for train.tracker=wandb, got none: ...`.
    """
    if name is not None and importlib.util.find_spec(name) is None:
        raise ValueError(
            f"expected the package {name} for train.tracker={name}, got none: pip install {name}, "
            "or set train.tracker=null"
        )


def quiet() -> None:
    """Silence the warnings and the logging of this process, which is not the main one."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def say(text: str) -> None:
    """Write a line to stderr, above the bar if there is one."""
    tqdm.write(text, file=sys.stderr)


# ---- Progress ------------------------------------------------------------------------------------


class Lines:
    """Progress as whole lines, for files and pipes; used like a bar of tqdm.

    A line is written at a `set_postfix`, if the last one is `every` seconds old, and at the end.
    """

    def __init__(
        self, title: str, total: int, initial: int = 0, *, every: float = LINE_EVERY
    ) -> None:
        self.title = title
        self.total = total
        self.n = initial
        self.every = every
        self._shown = -1  # n of the last line
        self._last = -float("inf")  # its time
        self._text = ""

    def update(self, n: int = 1) -> None:
        self.n += n

    def set_postfix(self, ordered_dict: Any = None, /) -> None:
        self._text = ", ".join(f"{key} {value}" for key, value in (ordered_dict or {}).items())
        if time.monotonic() - self._last >= self.every:
            self._show()

    def _show(self) -> None:
        self._shown = self.n
        self._last = time.monotonic()
        text = f", {self._text}" if self._text else ""
        print(f"{self.title}: {self.n}/{self.total}{text}", file=sys.stderr)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        if self.n != self._shown:
            self._show()


def progress_bar(title: str, total: int, initial: int = 0, *, shown: bool = True) -> Any:
    """Progress of `total` updates or rows, `initial` of which are done, as a context manager.

    It is a bar of tqdm in a terminal and `Lines` anywhere else; nothing is seen unless `shown`.
    """
    if shown and not sys.stderr.isatty():
        return Lines(title, total, initial)
    return tqdm(total=total, initial=initial, desc=title, disable=not shown, mininterval=0.5)
