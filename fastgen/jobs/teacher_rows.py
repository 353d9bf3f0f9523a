"""Scores of a run's teacher: read where they were measured before, measured where they pay.

Measured rows are kept in the run folder, from which a resumed run reads them, and beside the
teacher if it is a folder of this package that can be written and has no scores of its own: a later
run on the same weights and data measures nothing. A folder of another library stays as it is. A
report may ask a quarter of what training did; rows beyond that
are left out, those of many Euler steps first, which decide nothing that AB2 doesn't.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .._core.json_files import plain_json, read_json, write_json
from .._core.json_kinds import count, mapping, maybe, number, record
from .._core.locks import locked_folder
from .._core.versions import package_version
from ..data import Task
from ..export.networks import SCORES_FILE
from ..export.schema import is_export
from ..records.log import say
from .evaluation import evaluate_teacher
from .setup import Setup

__all__ = ["MEASURED", "Known", "Row", "measured_rows", "rows_key"]

MEASURED = "measured_scores.json"
_SCORES = mapping(maybe(number))
_KNOWN = mapping(
    record({"teacher": mapping(_SCORES), "floor": _SCORES, "evaluations": mapping(count)})
)


class Row(NamedTuple):
    """One row of the teacher: its name, its calls, and whether they are AB2's or Euler's."""

    name: str
    calls: int
    ab2: bool


@dataclass
class Known:
    """What is known of a teacher on some data.

    Attributes:
        teacher: row -> scores.
        floor: scores of fresh data; {} until they are measured.
        evaluations: row -> what it took to measure it.
    """

    teacher: dict[str, dict[str, float]] = field(default_factory=dict)
    floor: dict[str, float] = field(default_factory=dict)
    evaluations: dict[str, int] = field(default_factory=dict)


def rows_key(setup: Setup, origin: Mapping[str, Any]) -> str:
    """A checksum of all that the scores of a teacher depend on.

    Args:
        setup: the networks of the run.
        origin: of its data and its teacher, as a run folder has it.
    """
    cfg = setup.cfg
    guidance = None
    if cfg.teacher.null_cond is not None:
        dmd = cfg.dmd
        guidance = [dmd.guidance_scale, dmd.guidance_interval, dmd.guidance_rescale]
    settings = [package_version(), cfg.student.pred_type, cfg.teacher.dtype, cfg.data.box, guidance]
    text = json.dumps([dict(origin), settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def measured_rows(
    setup: Setup, task: Task, run_dir: Path, key: str, *, part: str, most: int
) -> tuple[Known, list[str]]:
    """The teacher's rows and those of fresh data, and the names of the rows that are left out.

    The cheapest row is measured whatever it costs. Then come AB2's from many calls to few, and
    Euler's from few to many, each if it fits. `teacher.measure=true` measures all of them anew.

    Args:
        setup, task: of the run.
        run_dir: its folder.
        key: as of `rows_key`.
        part: of the run, in which evaluations are counted.
        most: evaluations that this may take.
    """
    teacher = setup.cfg.teacher
    own = run_dir / MEASURED
    beside = None
    if teacher.folder is not None and is_export(Path(teacher.folder)):
        beside = Path(teacher.folder) / MEASURED
    known = (_read(own) or {}).get(key, Known())
    # What this run has measured before it was stopped, it has paid for.
    spent = sum(known.evaluations.values())
    setup.rows.add(spent)
    shared = Known()
    if beside is not None and not teacher.measure:
        shared = (_read(beside) or {}).get(key, Known())
    left_out = []
    for place, row in enumerate(_in_order(setup)):
        if row.name in known.teacher:
            continue
        if row.name in shared.teacher:
            known.teacher[row.name] = shared.teacher[row.name]
            continue
        cost = _cost_of(row, {**shared.evaluations, **known.evaluations})
        fits = cost is None or spent + cost <= most
        if not (fits or place == 0 or teacher.measure):
            left_out.append(row.name)
            continue
        before = setup.rows.rows.get(part, 0)
        known.teacher[row.name] = _scores_of(row, setup, task)
        known.evaluations[row.name] = setup.rows.rows.get(part, 0) - before
        spent += known.evaluations[row.name]
        _write(own, {**(_read(own) or {}), key: known})
    known.floor = known.floor or shared.floor or task.floor()
    if known.evaluations:
        _write(own, {**(_read(own) or {}), key: known})
        if beside is not None:
            _share(beside, key, known)
    return known, left_out


def _in_order(setup: Setup) -> list[Row]:
    """The rows that the config asks for: the cheapest, AB2's from many calls, Euler's from few."""
    teacher = setup.cfg.teacher
    euler = [Row(str(calls), calls, False) for calls in sorted(set(teacher.calls))]
    ab2 = [Row(f"ab2-{n}", n, True) for n in sorted(set(teacher.ab2_calls), reverse=True)]
    rows = sorted(euler + ab2, key=lambda row: row.calls)[:1]
    return rows + [row for row in ab2 + euler if row not in rows]


def _cost_of(row: Row, evaluations: Mapping[str, int]) -> int | None:
    """What a row takes, by what others took; None where nothing was measured."""
    for name, taken in evaluations.items():
        if taken:
            return row.calls * taken // int(name.rpartition("-")[2])
    return None


def _scores_of(row: Row, setup: Setup, task: Task) -> dict[str, float]:
    """The scores of one row, measured now."""
    found = evaluate_teacher(
        setup.teacher,
        task,
        [] if row.ab2 else [row.calls],
        [row.calls] if row.ab2 else [],
        pred_type=setup.cfg.student.pred_type,
        box=setup.cfg.data.box,
        progress=lambda name: print(f"teacher {name}", file=sys.stderr, flush=True),
    )
    return found[row.name]


# ---- Files ---------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Known] | None:
    """What a file knows, by key; {} where there is none, None where it is damaged or foreign."""
    try:
        found = read_json(path) if path.exists() else {}
    except (OSError, ValueError):
        return None
    if _KNOWN(found, "scores") is not None:
        return None
    return {key: Known(**values) for key, values in found.items()}


def _write(path: Path, of_keys: Mapping[str, Known]) -> None:
    """Write what is known, by key."""
    values = {key: vars(known) for key, known in of_keys.items()}
    write_json(path, plain_json(values, "scores"))


def _share(path: Path, key: str, known: Known) -> None:
    """Add what is known to a file beside the teacher, where the folder can be written.

    Rows that others measured stay there, also those of a run that shares its own just now, and so
    does a file that is something else. Beside scores of the teacher's own nothing is written.
    """
    if (path.parent / SCORES_FILE).exists():
        return
    try:
        with locked_folder(path.parent):
            _merge(path, key, known)
    except OSError:
        return


def _merge(path: Path, key: str, known: Known) -> None:
    """Add what is known to a file that nobody else writes meanwhile."""
    found = _read(path)
    if found is None:
        say(f"{path} is damaged or no file of measured scores: left as it is; remove it")
        return
    before = found.get(key, Known())
    both = Known(
        {**before.teacher, **known.teacher},
        {**before.floor, **known.floor},
        {**before.evaluations, **known.evaluations},
    )
    _write(path, {**found, key: both})
