"""The log of a run: rows of ``metrics.jsonl``, and the progress that is shown to people.

A row has `iteration`, `stage` and `step` (updates of the stage), losses or scores or both, and how
fast it went: `seconds` of the stage so far, `samples_per_s` and `phases` (seconds by name) since
the row before, `peak_memory_mb` so far. The last four differ between runs that are equal otherwise;
`timeless` leaves them out.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .._core.files import write_file
from .._core.json_files import plain_json
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
LINE_EVERY = 5.0  # least seconds between two lines of progress in a file


def timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the log without the keys of the clock, which no two runs share."""
    return {key: value for key, value in row.items() if key not in CLOCKED}


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; none where there is no such file.

    Raises:
        ValueError: a line that is no JSON, with its number. A last line without an end is left
            out: a kill has cut it short.
    """
    path = run_dir / LOG
    if not path.exists():
        return []
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"expected a row of JSON in line {number} of {path}, got {brief(line)}"
            ) from error
    return rows


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
        if not self.main_process or not path.exists():
            return
        last = (position, updates if updates else -1)
        kept = []
        for row in read_log(self.run_dir):
            if not _is_row(row, stages):
                raise ValueError(
                    f"expected rows of {', '.join(stages)} in {path}, got {brief(row)}"
                )
            if (stages.index(row["stage"]), row["step"]) <= last:
                kept.append(row)
        write_file(path, "".join(json.dumps(row) + "\n" for row in kept).encode())


def _is_row(row: Any, stages: Sequence[str]) -> bool:
    return isinstance(row, dict) and row.get("stage") in stages and isinstance(row.get("step"), int)


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
