"""The scores of a report as plain text: rows of samplers, columns of scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .styles import Stages, stage_style

__all__ = [
    "WARM_START",
    "Rows",
    "by_solver",
    "demonstrations_score",
    "format_table",
    "reference_rows",
    "score_blocks",
    "score_table",
    "solver_title",
    "trained_stages",
]

# The stage whose student every later stage starts from.
WARM_START = "kd"
# Scores of the conditions near opposition end so; the others are of all conditions.
NEAR = "_near"

# Network calls, as "4" or "ab2-4" -> {score: value}.
Rows = Mapping[str, Mapping[str, Any]]


# ---- What the results hold ----------------------------------------------------------------------


def score_blocks(results: Mapping[str, Any], stages: Stages) -> dict[str, list[str]]:
    """Names of the scores, by the set of conditions that they were measured on.

    Returns:
        {"": names} for all conditions and, where there are any, {"_near": names} for those near
        opposition. Names come without the suffix; the primary score is the first.
    """
    found: dict[str, None] = {}
    for source in ("student", *stages, "teacher"):
        for scores in (results.get(source) or {}).values():
            found |= dict.fromkeys(scores)
    primary = results.get("primary")
    names = sorted(found, key=lambda name: name.removesuffix(NEAR) != primary)

    blocks = {"": [name for name in names if not name.endswith(NEAR)]}
    near = [name.removesuffix(NEAR) for name in names if name.endswith(NEAR)]
    if near:
        blocks[NEAR] = near
    return blocks


def by_solver(rows: Rows | None) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Rows sorted by solver: {"1": scores, "ab2-4": scores} becomes {"euler": {1: scores},
    "ab2": {4: scores}}. Rows whose key names no number of calls are left out.
    """
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for key, scores in (rows or {}).items():
        solver, _, calls = str(key).rpartition("-")
        if calls.isdigit():
            found.setdefault(solver or "euler", {})[int(calls)] = scores
    return found


def solver_title(solver: str) -> str:
    """What a person calls a solver: "Euler", "AB2"."""
    return "Euler" if solver == "euler" else solver.upper()


def trained_stages(results: Mapping[str, Any], stages: Stages) -> dict[str, str]:
    """What the students of a run are called, by the stage that trained them: "KD only", "KD + DMD".

    Only stages that `results` has rows of are there, in the order of `stages`.
    """
    titles = {}
    for stage, style in stages.items():
        if not results.get(stage):
            continue
        if stage == WARM_START:
            titles[stage] = f"{style.title} only"
        elif results.get(WARM_START):
            titles[stage] = f"{stage_style(WARM_START, stages).title} + {style.title}"
        else:
            titles[stage] = style.title
    return titles


def demonstrations_score(floor: Mapping[str, Any] | None, name: str) -> float | None:
    """The score that the demonstrations themselves reach, or None where it isn't known.

    It is the exact one where the task knows it (`success_floor`, `mode_error_floor_near`), else the
    measured one.
    """
    floor = floor or {}
    near = NEAR if name.endswith(NEAR) else ""
    exact = f"{name.removesuffix(NEAR)}_floor{near}"
    return floor.get(exact, floor.get(name))


# ---- The table ----------------------------------------------------------------------------------


def format_table(results: Mapping[str, Any], *, stages: Stages | None = None) -> str:
    """The scores as plain text for a terminal.

    There is one row per sampler and number of network calls, and one block of columns per set of
    conditions. Sizes of the networks, seconds, latencies and the evaluations of the teacher follow.

    Args:
        results: as for :func:`fastgen.report.page.write_report`.
        stages: as for :func:`fastgen.report.page.write_report`. Without them the student has one
            row, the exported one, and not a row for each stage.
    """
    stages = stages or {}
    parts = []
    table = score_table(_labelled_rows(results, stages), score_blocks(results, stages))
    if table:
        parts.append(table)
    networks = results.get("networks") or {}
    if networks:
        parts.append("networks: " + "; ".join(_network(who, networks[who]) for who in networks))
    for name in ("seconds", "latency"):
        values = results.get(name) or {}
        if values:
            pairs = [f"{key} {_number(value, 3)}" for key, value in values.items()]
            parts.append(f"{name}: " + "; ".join(pairs))
    evaluations = results.get("teacher_evaluations") or {}
    if evaluations:
        pairs = [f"{part} {count:,}" for part, count in evaluations.items()]
        parts.append("teacher evaluations: " + "; ".join(pairs))
    return "\n\n".join(parts)


def score_table(
    rows: Sequence[tuple[str, Mapping[str, Any]]], blocks: Mapping[str, Sequence[str]]
) -> str:
    """Rows (label, {score: value}) as plain text, a block of columns per set of conditions.

    Args:
        rows: in their order.
        blocks: names of the scores, as `score_blocks` returns them.
    """
    titles = {"": "all conditions", NEAR: "near opposition"}
    if len(blocks) == 1:
        titles = {"": ""}
    parts = []
    for suffix, names in blocks.items():
        if names:
            head = [titles[suffix], *names]
            cells = [
                [label, *(_number(scores.get(name + suffix)) for name in names)]
                for label, scores in rows
            ]
            parts.append(_aligned([head, *cells]))
    return "\n\n".join(parts)


def _network(who: str, facts: Mapping[str, Any]) -> str:
    """A network for people: "student 6 layers, 389,232 numbers"."""
    layers = facts.get("layers")
    numbers = f"{facts['numbers']:,} numbers"
    if layers is None:
        return f"{who} {numbers}"
    plural = "layer" if layers == 1 else "layers"
    return f"{who} {layers} {plural}, {numbers}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lines of text, the first underlined: labels on the left, numbers on the right of columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for label, *cells in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([label.ljust(widths[0]), *numbers]).rstrip())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _labelled_rows(
    results: Mapping[str, Any], stages: Stages
) -> list[tuple[str, Mapping[str, Any]]]:
    """(label, scores) of each row: references, the teacher from many calls to few, students."""
    rows = reference_rows(results, stages)
    for solver, points in by_solver(results.get("teacher")).items():
        for calls in sorted(points, reverse=True):
            rows.append((f"teacher {solver_title(solver)} {calls}", points[calls]))

    students = trained_stages(results, stages) or {"student": "student"}
    for stage, title in students.items():
        mark = "  <- exported" if stage == results.get("selected") else ""
        points = by_solver(results.get(stage)).get("euler", {})
        for calls in sorted(points, reverse=True):
            rows.append((f"{title} {calls}{mark}", points[calls]))
    return rows


def reference_rows(
    results: Mapping[str, Any], stages: Stages
) -> list[tuple[str, Mapping[str, Any]]]:
    """Rows of what needs no network: the demonstrations, and the constant velocity."""
    floor = results.get("floor") or {}
    names = [
        name + suffix for suffix, block in score_blocks(results, stages).items() for name in block
    ]
    references = {
        "demonstrations": {name: demonstrations_score(floor, name) for name in names},
        "constant velocity": {name: floor.get(f"cv_{name}") for name in names},
    }
    return [
        (label, scores)
        for label, scores in references.items()
        if any(value is not None for value in scores.values())
    ]


def _number(value: Any, digits: int = 4) -> str:
    if value is None:
        return "-"
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "n/a"
    return f"{value:.{digits}f}" if abs(value) < 10 else f"{value:.1f}"
