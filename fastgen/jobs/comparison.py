"""The students of several runs on one task: their scores, and how they differ from the first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from .._core.json_files import read_json
from ..config.files import load_config
from ..config.schemas import DistillConfig
from ..data import Task
from ..export.student import Student
from ..records.folder import RUN_CONFIG
from ..report.tables import Rows, reference_rows, score_blocks, score_table
from ..training.choice import compare_samples, validate_by, verdict
from .encoders import task_of
from .evaluation import exported_sampler, score_exported
from .sources import load_run_student

__all__ = ["compare_runs", "comparison_text"]

_STUDENT = "student"
# Beside a run's student.
_REPORT = Path("report") / "report.json"

# What a run answered to the validation rows with so many calls; None of a task that can't compare.
_Samples = dict[tuple[Path, int], Tensor | None]


def compare_runs(
    folders: Sequence[Path],
    factory: str | None = None,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The scores of the exported students of runs, all with the same conditions and noise.

    Args:
        folders: of two runs or more, distilled on the same data.
        factory: builds a network of the user's own, as `load_run_student`.
        progress: told what is measured next.

    Returns:
        {"primary": score, "floor": scores of fresh data, "runs": {run: {"scores": {calls: scores},
        "teacher_evaluations": number or None}}, "differences": list}, the last of each run from the
        first, {"run", "from", "calls", "scores": {score: {"difference", "low", "high"}},
        "verdict"}; empty where the task can't tell students apart.

    Raises:
        ValueError: fewer than two runs, one twice, or other data.
    """
    if len(folders) < 2 or len(set(folders)) < len(folders):
        raise ValueError(
            f"expected two runs or more, each once, got {', '.join(map(str, folders))}"
        )
    configs = {folder: load_config(DistillConfig, folder / RUN_CONFIG) for folder in folders}
    first, *others = folders
    for folder in others:
        if configs[folder].data != configs[first].data:
            raise ValueError(
                f"expected runs on the same data, got {folder} with other keys of data than "
                f"{first}; see their {RUN_CONFIG}"
            )
    task = task_of(configs[first])
    students = {folder: load_run_student(folder / _STUDENT, factory) for folder in folders}
    runs = {}
    for folder, student in students.items():
        progress(f"the student of {folder}")
        runs[str(folder)] = {
            "scores": score_exported(student, task),
            "teacher_evaluations": _evaluations(folder),
        }
    differences = []
    known: _Samples = {}
    for folder in others:
        progress(f"how {folder} differs from {first}")
        differences += _differences(task, students, first, folder, known)
    progress("fresh data")
    floor = {name: value for name, value in task.floor().items() if math.isfinite(value)}
    return {"primary": task.primary, "floor": floor, "runs": runs, "differences": differences}


def _evaluations(folder: Path) -> int | None:
    """What the student of a run took of its teacher, by its report; None where there is none."""
    path = folder / _REPORT
    if not path.is_file():
        return None
    return (read_json(path, only_finite=False).get("teacher_evaluations") or {}).get("total")


def _differences(
    task: Task, students: Mapping[Path, Student], a: Path, b: Path, known: _Samples
) -> list[dict[str, Any]]:
    """Of run b from run a: with every number of calls that both serve; where they share none, with
    the most calls of each. What was drawn stays in `known`."""
    calls = [(steps, steps) for steps in students[a].steps if steps in students[b].steps]
    calls = calls or [(max(students[a].steps), max(students[b].steps))]
    found = []
    for of_a, of_b in calls:
        for run, steps in ((a, of_a), (b, of_b)):
            if (run, steps) not in known:
                sampler = exported_sampler(students[run], steps)
                known[run, steps] = validate_by(task, sampler).samples
        reference = known[a, of_a]
        samples = known[b, of_b]
        compared = compare_samples(getattr(task, "compare", None), reference, samples)
        if not compared:
            continue
        scores = {name: _numbers(score) for name, score in compared.items()}
        found.append(
            {
                "run": str(b),
                "from": str(a),
                "calls": [of_b, of_a],
                "scores": scores,
                "verdict": verdict(compared),
            }
        )
    return found


def _numbers(score: Any) -> dict[str, float]:
    return {name: value for name, value in asdict(score).items() if name != "chooses"}


# ---- For people ----------------------------------------------------------------------------------


def comparison_text(found: Mapping[str, Any]) -> str:
    """What `compare_runs` found: a table of scores, then a line for each difference."""
    scores: dict[str, Rows] = {run: one["scores"] for run, one in found["runs"].items()}
    every = {f"{run} {calls}": row for run, rows in scores.items() for calls, row in rows.items()}
    results = {"student": every, "primary": found["primary"], "floor": found["floor"]}
    rows = reference_rows(results, {})
    for run, of_run in scores.items():
        for calls in sorted(of_run, key=int):
            rows.append((f"{run}, {_calls(int(calls))}", of_run[calls]))
    parts = [score_table(rows, score_blocks(results, {}))]
    taken = {run: one["teacher_evaluations"] for run, one in found["runs"].items()}
    if any(number is not None for number in taken.values()):
        said = [f"{run} {'unknown' if n is None else format(n, ',')}" for run, n in taken.items()]
        parts.append("teacher evaluations: " + "; ".join(said))
    parts += [_difference_line(one) for one in found["differences"]]
    if not found["differences"]:
        parts.append("no differences: the task can't tell students apart, or has too few rows")
    return "\n\n".join(parts)


def _difference_line(one: Mapping[str, Any]) -> str:
    of_b, of_a = one["calls"]
    calls = _calls(of_b) if of_b == of_a else f"{_calls(of_b)}, for {of_a}"
    scores = ", ".join(
        f"{name} {value['difference']:+.3g} ({value['low']:+.3g} to {value['high']:+.3g})"
        for name, value in one["scores"].items()
    )
    return (
        f"{one['run']} ({calls}) is {one['verdict']}: {one['run']} minus {one['from']}, with 95 % "
        f"intervals, lower is better: {scores}"
    )


def _calls(number: int) -> str:
    return f"{number} call{'s' if number > 1 else ''}"
