"""Figures of a run's numbers: scores against network calls, losses and validation over updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .axes import add_legend, far_apart, log_axis, new_figure, score_axis, title_with_meaning
from .curves import Curve, ScoreCurve, drawable, score_curves, smooth, training_curves, within
from .styles import COLOURS, GREY, INK, Stages, score_style, stage_style
from .tables import WARM_START, demonstrations_score, score_blocks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_validation", "evaluations_figure", "score_figure", "training_figure"]


# ---- Scores --------------------------------------------------------------------------------------


def score_figure(results: Mapping[str, Any], stages: Stages) -> Figure:
    """Each score against the number of network calls, for the teacher's solvers and the students.

    A score is a column, a set of conditions is a row.

    Args:
        results, stages: as for :func:`fastgen.report.page.write_report`.
    """
    blocks = score_blocks(results, stages)
    columns = max(1, *(len(names) for names in blocks.values()))
    width = max(3.5 * columns, 7.0)
    height = 3.4 * len(blocks) + 0.8
    figure, axes = new_figure(width, height, len(blocks), columns)
    last = list(blocks)[-1]
    for row, (suffix, names) in zip(axes, blocks.items(), strict=True):
        for ax in row[len(names) :]:
            ax.set_visible(False)
        for ax, name in zip(row, names, strict=False):
            style = score_style(name)
            title_with_meaning(ax, style.title, style.meaning)
            _draw_score(ax, results, name + suffix, style.scale, stages)
            if suffix == last:
                ax.set_xlabel("network calls (NFE)")
        if len(blocks) > 1:
            conditions = "near opposition" if suffix else "all conditions"
            row[0].set_ylabel(conditions, fontweight="bold", fontsize=13)
    add_legend(figure, axes.flat, 7, ("demonstrations", "constant velocity"))
    return figure


def _draw_score(
    ax: Axes, results: Mapping[str, Any], name: str, scale: str, stages: Stages
) -> None:
    """One panel: a curve for each sampler, level lines for what needs no network."""
    floor = results.get("floor") or {}
    levels = {
        "demonstrations": demonstrations_score(floor, name),
        "constant velocity": floor.get(f"cv_{name}"),
    }
    levels = {label: value for label, value in levels.items() if drawable(value, scale)}
    curves = score_curves(results, name, scale, stages)
    if not curves and not levels:
        ax.text(0.5, 0.5, "no finite value", transform=ax.transAxes, ha="center", color=GREY)
        return

    low, high = _range_to_show(curves, list(levels.values()), scale)
    score_axis(ax, scale, within(low, scale), within(high, scale))
    _calls_axis(ax, sorted({calls for curve in curves for calls in curve.points}))
    for curve in curves:
        style = _curve_style(curve, stages)
        ax.plot(*zip(*curve.points.items(), strict=True), label=curve.label, **style)
        _mark_values_outside(ax, curve.points, style["color"])
    lines = {"demonstrations": (INK, "--"), "constant velocity": (GREY, ":")}
    for label, value in levels.items():
        colour, dashes = lines[label]
        ax.axhline(value, color=colour, linestyle=dashes, linewidth=1.7, label=label, zorder=2)


def _range_to_show(
    curves: Sequence[ScoreCurve], levels: Sequence[float], scale: str
) -> tuple[float, float]:
    """Lowest and highest value of a panel. A linear one may leave out one or two Euler steps of the
    teacher."""
    values = [*levels, *(value for curve in curves for value in curve.points.values())]
    low = min(values)
    high = max(values)
    if scale != "linear":
        return low, high

    # One or two Euler steps are so far off that nothing else could be told apart beside them.
    near = list(levels)
    for curve in curves:
        teacher_euler = curve.source == "teacher" and curve.solver == "euler"
        near += [value for calls, value in curve.points.items() if calls > 2 or not teacher_euler]
    if near and high - low > 3 * (max(near) - min(near)) > 0:
        return min(near), max(near)
    return low, high


def _mark_values_outside(ax: Axes, points: Mapping[int, float], colour: str) -> None:
    """At the edge of the panel, a triangle and the number for each value that lies beyond it."""
    bottom, top = ax.get_ylim()
    for calls, value in points.items():
        if value > top:
            edge = top
            marker = "^"
            offset = -17
        elif value < bottom:
            edge = bottom
            marker = "v"
            offset = 8
        else:
            continue
        ax.plot(calls, edge, marker, color=colour, markersize=8, clip_on=False, zorder=6)
        ax.annotate(
            f"{value:.2g}",
            (calls, edge),
            color=colour,
            xytext=(0, offset),
            textcoords="offset points",
            ha="center",
            fontsize=10,
        )


def _curve_style(curve: ScoreCurve, stages: Stages) -> dict[str, Any]:
    """How matplotlib draws the curve of a sampler."""
    if curve.source == "teacher":
        colour = COLOURS["teacher" if curve.solver == "euler" else "ab2"]
        return {"color": colour, "marker": "o", "zorder": 3}
    if curve.source == "student":
        star = {"marker": "*", "markersize": 19, "markeredgecolor": "white"}
        return {"color": COLOURS["student"], **star, "zorder": 4}
    return {
        "color": stage_style(curve.source, stages).colour,
        "marker": "s" if curve.source == WARM_START else "D",
        "linestyle": "--",
        "markersize": 6,
        "markeredgecolor": "white",
        "markeredgewidth": 0.8,
        # On top of the star: one of the stages' students is the one that was exported.
        "zorder": 5,
    }


def _calls_axis(ax: Axes, calls: Sequence[int]) -> None:
    """Give `ax` a horizontal log2 axis for numbers of calls, with ticks at these numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter

    if not calls:
        return
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(_spaced(calls)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
    ax.set_xlim(calls[0] / 1.45, calls[-1] * 1.35)


def _spaced(calls: Sequence[int]) -> list[int]:
    """Those of `calls` whose labels don't touch on a log2 axis. Powers of two go first."""
    kept: list[int] = []
    for k in sorted(calls, key=lambda k: (k & (k - 1) != 0, -k)):
        if all(abs(math.log2(k / other)) > 0.5 for other in kept):
            kept.append(k)
    return kept


# ---- Training ------------------------------------------------------------------------------------


def training_figure(
    results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], stages: Stages
) -> Figure:
    """Losses of each stage over its updates, and the validation score over the whole run.

    Args:
        results, stages: as for :func:`fastgen.report.page.write_report`.
        rows: of metrics.jsonl.
    """
    losses, validation = training_curves(results, rows, stages)
    columns = max(1, len(losses) + bool(validation))
    figure, axes = new_figure(max(4.9 * columns, 7.0), 4.2, 1, columns)
    for ax, (stage, curves) in zip(axes[0], losses.items(), strict=False):
        _draw_losses(ax, stage, curves, stages)
    if validation:
        ax = axes[0][-1]
        draw_validation(ax, validation, stages)
        style = score_style(str(results.get("primary")), "lower is better")
        ax.set_title(f"validation: {style.title}", fontweight="bold")
        ax.set(xlabel="update, all stages", ylabel=style.meaning)
        ax.legend(frameon=False)
    if not losses and not validation:
        axes[0][0].set(title="no training in this run", xticks=[], yticks=[])
    return figure


def evaluations_figure(curves: Mapping[str, Curve], primary: str, stages: Stages) -> Figure:
    """The validation score over what was asked of the teacher. KD stands at the cost of its pairs.

    Args:
        curves: as of `evaluation_curves`, not empty.
        primary: name of the score.
        stages: as for :func:`fastgen.report.page.write_report`.
    """
    figure, axes = new_figure(7.0, 4.2, 1, 1)
    ax = axes[0][0]
    draw_validation(ax, curves, stages)
    style = score_style(primary, "lower is better")
    ax.set_title(f"validation: {style.title}", fontweight="bold")
    ax.set(xlabel="teacher evaluations of pairs and training", ylabel=style.meaning)
    ax.legend(frameon=False)
    return figure


def _draw_losses(ax: Axes, stage: str, losses: Mapping[str, Curve], stages: Stages) -> None:
    """One panel: each loss of a stage, pale as it was logged and full where it is smoothed."""
    style = stage_style(stage, stages)
    colours = [style.colour, COLOURS["other"], INK, COLOURS["ab2"]]
    for k, (name, points) in enumerate(losses.items()):
        colour = colours[k] if k < len(colours) else GREY
        ax.plot(*zip(*points, strict=True), color=colour, alpha=0.3, linewidth=1)
        ax.plot(*zip(*smooth(points), strict=True), color=colour, label=name.replace("_", " "))
    values = [value for points in losses.values() for _, value in points]
    log_axis(ax, min(values), max(values))
    ax.set_title(style.heading or style.title, fontweight="bold")
    ax.set(xlabel="update", ylabel="loss")
    ax.legend(frameon=False)


def draw_validation(
    ax: Axes, curves: Mapping[str, Curve], stages: Stages, *, with_start: bool = False
) -> None:
    """A validation score over the updates, in the colours of the stages.

    Args:
        ax: the panel.
        curves: {stage: points (update, score)}.
        stages: the styles of the stages.
        with_start: draw a dashed line at the score that each stage began with.
    """
    for stage, points in curves.items():
        style = stage_style(stage, stages)
        updates, scores = zip(*points, strict=True)
        label = f"during {style.title}"
        ax.plot(updates, scores, "o-", color=style.colour, markersize=5, label=label)
        if with_start:
            ends = [updates[0], updates[-1]]
            level = [scores[0], scores[0]]
            label = f"where {style.title} began"
            ax.plot(ends, level, "--", color=style.colour, linewidth=1.2, label=label)
    values = [score for points in curves.values() for _, score in points]
    # The teacher in one call, where a stage may start, is so far off that a linear axis would show
    # nothing else.
    if far_apart(values):
        log_axis(ax, min(values), max(values))
