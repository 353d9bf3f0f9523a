"""The log of a run: rows of ``metrics.jsonl``, progress for people, and how fast it goes.

A row says beside losses and scores how many samples a second were trained on, where the time went
since the row before (`phases`, seconds by name) and the peak of memory so far. These keys differ
between runs that are equal otherwise: `timeless` leaves them out.
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
TRACKERS = ("tensorboard", "wandb")
LINE_EVERY = 5.0  # least seconds between two progress lines of a file


def timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the log without the keys that no two runs share."""
    return {key: value for key, value in row.items() if key not in CLOCKED}


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; a last line that a kill cut short is left out.

    Raises:
        ValueError: another line that is no JSON, with its number.
    """
    path = run_dir / LOG
    if not path.exists():
        return []
    lines: Sequence[str] = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            rows += [json.loads(line)] if line else []
        except ValueError as error:
            raise ValueError(
                f"expected a row of JSON in line {number} of {path}, got {brief(line)}"
            ) from error
    return rows


def peak_memory() -> int | None:
    """Bytes: the most that torch held on this process' GPU, without a GPU the process' largest
    resident size; None where the system doesn't tell."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # a system without it
        return None
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


class RunLog:
    """Writes the rows of one run; only the main process does.

    Args:
        run_dir: folder of the run.
        batch_size: samples of an update, over all processes.
        main_process: whether this process writes.
        track: also called with the numbers of each row and its iteration.
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
        self._updates = 0

    def count(self) -> None:
        """One more update was done."""
        self._updates += 1

    def write(self, row: dict[str, Any]) -> dict[str, Any]:
        """Add a row; `row` has `iteration`, `stage` and `step`. Returns it with speed and
        memory."""
        phases = self.clock.take()
        # Validations and checkpoints are not training.
        seconds = sum(
            value for name, value in phases.items() if name not in ("validation", "checkpoint")
        )
        if self._updates and seconds > 0:
            row = {**row, "samples_per_s": round(self._updates * self.batch_size / seconds, 1)}
        self._updates = 0
        row = {**row, "phases": {name: round(value, 4) for name, value in phases.items()}}
        if (peak := peak_memory()) is not None:
            row["peak_memory_mb"] = round(peak / 1e6, 1)
        self.note(row)
        return row

    def note(self, row: dict[str, Any]) -> None:
        """Add a row as it is, such as one of an update that only now is known to have been
        skipped."""
        if self.main_process:
            with open(self.run_dir / LOG, "a", encoding="utf-8") as file:
                file.write(json.dumps(plain_json(row, "row")) + "\n")
            if self.track is not None:
                self.track(numbers(row), row["iteration"])

    def truncate(self, stages: Sequence[str], position: int, step: int) -> None:
        """Drop the rows after `step` updates of stage number `position`, which are about to be made
        again; at the start of a stage also the row of its update 0."""
        path = self.run_dir / LOG
        if self.main_process and path.exists():
            done = position, step if step else -1
            rows = []
            for row in read_log(self.run_dir):
                if (
                    not isinstance(row, dict)
                    or row.get("stage") not in stages
                    or not isinstance(row.get("step"), int)
                ):
                    raise ValueError(
                        f"expected rows of {', '.join(stages)} in {path}, got {brief(row)}"
                    )
                if (stages.index(row["stage"]), row["step"]) <= done:
                    rows.append(row)
            write_file(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def numbers(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a row as trackers take them: below the stage's name, nested ones as
    "phases/data", lists by index.

    `iteration`, the x-axis, and what is no number are left out.
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
    """Refuse a tracker whose package isn't there.

    Raises:
        ValueError: such as `expected the package wandb for train.tracker=wandb, got none: ...`.
    """
    if name is not None and importlib.util.find_spec(name) is None:
        raise ValueError(
            f"expected the package {name} for train.tracker={name}, got none: pip install {name}, "
            "or set train.tracker=null"
        )


def quiet() -> None:
    """Silence warnings and logging of this process, for all but the main one; errors are still
    raised."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def say(text: str) -> None:
    """A line on stderr, above the bar if there is one."""
    tqdm.write(text, file=sys.stderr)


# ---- Progress ------------------------------------------------------------------------------------


class Lines:
    """Progress as whole lines, for files and pipes: one at a `set_postfix`, at most every `every`
    seconds, and one at the end."""

    def __init__(
        self, title: str, total: int, initial: int = 0, *, every: float = LINE_EVERY
    ) -> None:
        self.title = title
        self.total = total
        self.n = initial
        self.every = every
        self._shown = -1
        self._last = -float("inf")
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
        print(
            f"{self.title}: {self.n}/{self.total}" + (f", {self._text}" if self._text else ""),
            file=sys.stderr,
        )

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        if self.n != self._shown:
            self._show()


def progress_bar(title: str, total: int, initial: int = 0, *, shown: bool = True) -> Any:
    """A bar of tqdm in a terminal, `Lines` anywhere else; nothing unless `shown`."""
    if shown and not sys.stderr.isatty():
        return Lines(title, total, initial)
    return tqdm(total=total, initial=initial, desc=title, disable=not shown, mininterval=0.5)
