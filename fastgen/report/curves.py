"""Curves of a report: the points that its pictures draw, from scores and from the log of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from ..records.log import CLOCKED
from .styles import Stages
from .tables import by_solver, solver_title, trained_stages

__all__ = [
    "Curve",
    "ScoreCurve",
    "diagnostic_curves",
    "drawable",
    "evaluation_curves",
    "score_curves",
    "smooth",
    "training_curves",
    "within",
]

# Columns of a log row that are neither losses nor scores.
_BOOKKEEPING = {"iteration", "step", "stage", "lr", "teacher_evaluations", *CLOCKED}
# Scores that are drawn over the updates, beside the primary one.
_WATCHED = ("spread", "std_ratio", "mode_error")

# Points (update, value).
Curve = list[tuple[float, float]]


# ---- Scores over network calls ------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreCurve:
    """A score of one sampler, over the number of its network calls.

    Attributes:
        label: what a legend calls the sampler.
        source: whose scores they are: "teacher", "student" (the exported one) or a stage.
        solver: "euler", "ab2", ...
        points: {calls: value}, by rising number of calls.
    """

    label: str
    source: str
    solver: str
    points: dict[int, float]


def score_curves(
    results: Mapping[str, Any], name: str, scale: str, stages: Stages
) -> list[ScoreCurve]:
    """The curves of one score in the order in which they are drawn; those without points are left
    out.

    Args:
        results: as for :func:`fastgen.report.page.write_report`.
        name: of the score, with the suffix of its set of conditions.
        scale: of the axis: "linear", "log" or "logit". What it can't show is left out.
        stages: the stages whose students are drawn.
    """
    samplers = [
        (f"teacher, {solver_title(solver)}", "teacher", solver)
        for solver in by_solver(results.get("teacher"))
    ]
    samplers.append(("student (exported)", "student", "euler"))
    for stage, title in trained_stages(results, stages).items():
        samplers.append((title, stage, "euler"))

    curves = []
    for label, source, solver in samplers:
        scores = by_solver(results.get(source)).get(solver, {})
        points = {
            calls: within(scores[calls][name], scale)
            for calls in sorted(scores)
            if drawable(scores[calls].get(name), scale)
        }
        if points:
            curves.append(ScoreCurve(label, source, solver, points))
    return curves


def drawable(value: Any, scale: str) -> TypeGuard[float]:
    """Whether a score is a finite number that an axis of that scale can show."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return scale != "log" or value > 0


def within(value: float, scale: str) -> float:
    """The score, moved inside the open interval (0, 1) if the scale is "logit"."""
    if scale != "logit":
        return value
    # 0 and 1 are infinitely far on a logit axis; no evaluation here can tell 0.9999 from 1.
    return min(max(value, 0.02), 0.9999)


# ---- Losses and validation over updates ---------------------------------------------------------


def training_curves(
    results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], stages: Stages
) -> tuple[dict[str, dict[str, Curve]], dict[str, Curve]]:
    """Losses and validation scores of a log.

    Args:
        results: holds `primary`, and the names of scores, by which they are told from losses.
        rows: of metrics.jsonl. Losses that are not above zero are left out, since their axis is
            logarithmic.
        stages: the stages that `results` may have rows of.

    Returns:
        ({stage: {loss: [(step, value)]}}, {stage: [(iteration, primary score)]}).
    """
    primary = results.get("primary")
    others = {primary, *_BOOKKEEPING}
    for source in ("teacher", "student", *stages):
        for scores in (results.get(source) or {}).values():
            others |= scores.keys()

    losses: dict[str, dict[str, Curve]] = {}
    validation: dict[str, Curve] = {}
    for count, row in enumerate(rows):
        stage = str(row.get("stage", "training"))
        step = row.get("step", count)
        for name, value in _losses(row, others).items():
            losses.setdefault(stage, {}).setdefault(name, []).append((step, value))
        score = row.get(primary) if primary is not None else None
        if drawable(score, "linear"):
            point = (row.get("iteration", step), float(score))
            validation.setdefault(stage, []).append(point)
    return losses, validation


def evaluation_curves(
    results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Curve]:
    """The primary validation score over the teacher evaluations of pairs and training so far:
    {stage: [(evaluations, score)]}; {} for a log without them.

    Args:
        results: holds `primary`.
        rows: of metrics.jsonl.
    """
    primary = results.get("primary")
    found: dict[str, Curve] = {}
    for row in rows:
        spent = row.get("teacher_evaluations")
        score = row.get(primary) if primary is not None else None
        if drawable(spent, "log") and drawable(score, "linear"):
            stage = str(row.get("stage", "training"))
            found.setdefault(stage, []).append((float(spent), float(score)))
    return found


def _losses(row: Mapping[str, Any], others: set[Any]) -> dict[str, float]:
    """The losses of a log row: its positive numbers that aren't `others` or norms of gradients."""
    found = {
        name: value
        for name, value in row.items()
        if name not in others and not name.endswith("grad_norm") and drawable(value, "log")
    }
    # `loss` and `total` repeat the named losses where there are any.
    named = {name: value for name, value in found.items() if name not in ("loss", "total")}
    return named or found


def smooth(points: Curve) -> Curve:
    """What a noisy loss does in the long run: geometric means over windows of about a twentieth of
    the curve."""
    half = max(1, len(points) // 40)
    means = []
    for i in range(len(points)):
        window = points[max(0, i - half) : i + half + 1]
        means.append(math.exp(sum(math.log(y) for _, y in window) / len(window)))
    return [(x, mean) for (x, _), mean in zip(points, means, strict=True)]


# ---- Diagnostics over updates -------------------------------------------------------------------


def diagnostic_curves(
    results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, dict[str, Curve]], dict[str, dict[str, Curve]]]:
    """Validation scores and diagnostics of a log, over the updates of all stages.

    Args:
        results: holds `primary`.
        rows: of metrics.jsonl. Values that aren't finite numbers are left out.

    Returns:
        ({score: {stage: [(iteration, value)]}}, {diagnostic: {bin: [(iteration, value)]}}). The
        scores are the primary one, spreads and mode errors. The diagnostics are what stages found
        by `diagnose`: one curve for each bin of t, or a single one with the bin "".
    """
    watched = [name for name in (results.get("primary"), *_WATCHED) if name is not None]
    scores: dict[str, dict[str, Curve]] = {}
    found: dict[str, dict[str, Curve]] = {}
    for count, row in enumerate(rows):
        x = row.get("iteration", count)
        stage = str(row.get("stage", "training"))
        for name in dict.fromkeys(watched):
            value = row.get(name)
            if drawable(value, "linear"):
                scores.setdefault(name, {}).setdefault(stage, []).append((x, float(value)))
        for name, label, value in _diagnosed(row.get("diagnostics") or {}):
            if drawable(value, "linear"):
                found.setdefault(name, {}).setdefault(label, []).append((x, float(value)))
    return scores, found


def _diagnosed(diagnostics: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(diagnostic, bin of t or "", value) of each number that a log row's diagnostics hold."""
    for name, value in diagnostics.items():
        if name in ("t", "gan_t"):
            continue
        if not isinstance(value, list):
            yield name, "", value
            continue
        # The GAN has its own range of t.
        gan = name.startswith("gan_")
        bounds = diagnostics.get("gan_t" if gan else "t") or []
        for k, entry in enumerate(value):
            label = f"bin {k + 1}"
            if len(bounds) > len(value):
                label = f"t {bounds[k]:.2f} to {bounds[k + 1]:.2f}"
            yield name, f"GAN, {label}" if gan else label, entry
