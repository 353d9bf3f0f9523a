"""What a run has reached, for a person: a table, three pictures, and the same numbers for machines.

    report/report.json        every score, NaN and infinity as null with the reason beside
    report/report.md          the table, what its columns mean, the pictures
    report/trajectories.png   samples of teacher and student for the same conditions and the same noise; samples.png
                              where they aren't trajectories
    report/score_vs_nfe.png   each score against the number of network calls
    report/training.png       losses of each stage and the validation score
    report/diagnostics.png    what shows a collapse, of runs whose log holds validations: spread, mode error and score
                              since the start of each stage; gap and lag between the judges,
                              gradients, discriminator

This module and `pictures`, which draws the samples, are the only ones that plot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .pictures import (
    COLOURS,
    GREY,
    INK,
    add_legend,
    new_figure,
    trajectory_figure,
)
from .tables import (
    METHOD_TITLES,
    SCORES,
    demonstrations_score,
    diagnostic_curves,
    drawable,
    format_table,
    score_blocks,
    score_curves,
    smooth,
    training_curves,
    within,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "diagnostics_figure",
    "format_table",
    "score_figure",
    "training_figure",
    "trajectory_figure",
]


_STAGES = {
    "kd": "KD: regression on teacher pairs",
    **METHOD_TITLES,
    "flow_matching": "flow matching",
}


# ---- Scores --------------------------------------------------------------------------------------


def score_figure(results: Mapping[str, Any]) -> Figure:
    """Small multiples: each score against the number of network calls, for the teacher's solvers
    and the students.

    Args:
        results: as for :func:`write_report`.
    """
    blocks = score_blocks(results)
    columns = max(1, *(len(names) for names in blocks.values()))
    figure, axes = new_figure(
        max(3.5 * columns, 7.0), 3.4 * len(blocks) + 0.8, len(blocks), columns
    )
    for row, (suffix, names) in zip(axes, blocks.items(), strict=True):
        for ax in row[len(names) :]:
            ax.set_visible(False)
        for ax, name in zip(row, names, strict=False):
            title, good, scale = SCORES.get(name, (name.replace("_", " "), "", "linear"))
            ax.set_title(title + "\n", fontweight="bold")
            ax.text(0.5, 1.03, good, transform=ax.transAxes, ha="center", color=GREY)
            _draw_score(ax, results, name + suffix, scale)
            if suffix == list(blocks)[-1]:
                ax.set_xlabel("network calls (NFE)")
        if len(blocks) > 1:
            row[0].set_ylabel(
                "near opposition" if suffix else "all conditions", fontweight="bold", fontsize=13
            )
    add_legend(figure, axes.flat, 7, ("demonstrations", "constant velocity"))
    return figure


def _draw_score(ax: Axes, results: Mapping[str, Any], name: str, scale: str) -> None:
    """One panel: curves over NFE, demonstrations and constant velocity as level lines."""
    floor = results.get("floor") or {}
    levels = [("demonstrations", demonstrations_score(floor, name), INK, "--")]
    levels.append(("constant velocity", floor.get(f"cv_{name}"), GREY, ":"))
    levels = [(label, value, *style) for label, value, *style in levels if drawable(value, scale)]
    curves = {label: points for label, points in score_curves(results, name, scale) if points}
    if not curves and not levels:
        ax.text(0.5, 0.5, "no finite value", transform=ax.transAxes, ha="center", color=GREY)
        return
    values = [value for _, value, *_ in levels] + [
        value for points in curves.values() for value in points.values()
    ]
    low = min(values)
    high = max(values)
    if scale == "linear":
        # One or two Euler steps are so far off that nothing else could be told apart beside them.
        near = [value for _, value, *_ in levels]
        near += [
            v
            for label, points in curves.items()
            for k, v in points.items()
            if label != "teacher, Euler" or k > 2
        ]
        if near and high - low > 3 * (max(near) - min(near)) > 0:
            low = min(near)
            high = max(near)
    calls = sorted({k for points in curves.values() for k in points})
    _score_axes(ax, scale, low, high, calls)
    bottom, top = ax.get_ylim()
    for label, points in curves.items():
        style = _curve_style(label)
        ax.plot(list(points), list(points.values()), label=label, **style)
        for k, value in points.items():
            if not bottom <= value <= top:
                edge, offset = (top, -17) if value > top else (bottom, 8)
                where = {
                    "xytext": (0, offset),
                    "textcoords": "offset points",
                    "ha": "center",
                    "fontsize": 10,
                }
                ax.plot(
                    k,
                    edge,
                    "^" if value > top else "v",
                    color=style["color"],
                    markersize=8,
                    clip_on=False,
                    zorder=6,
                )
                ax.annotate(f"{value:.2g}", (k, edge), color=style["color"], **where)
    for label, value, colour, line in levels:
        ax.axhline(value, color=colour, linestyle=line, linewidth=1.7, label=label, zorder=2)


def _curve_style(label: str) -> dict[str, Any]:
    if label.startswith("teacher"):
        return {
            "color": COLOURS["teacher" if label.endswith("Euler") else "ab2"],
            "marker": "o",
            "zorder": 3,
        }
    if label.startswith("student"):
        return {
            "color": COLOURS["student"],
            "marker": "*",
            "markersize": 19,
            "markeredgecolor": "white",
            "zorder": 4,
        }
    # On top of the star: one of the two is the student that was exported.
    kd = label == "KD only"
    style = {
        "color": COLOURS["kd" if kd else "dmd"],
        "marker": "s" if kd else "D",
        "linestyle": "--",
        "markersize": 6,
    }
    return {**style, "markeredgecolor": "white", "markeredgewidth": 0.8, "zorder": 5}


def _score_axes(ax: Axes, scale: str, low: float, high: float, calls: Sequence[int]) -> None:
    """A log2 axis of calls with a tick for each of them, a vertical axis with few ticks that are
    plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    if calls:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator(_spaced(calls)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
        ax.set_xlim(calls[0] / 1.45, calls[-1] * 1.35)
    if scale == "logit":
        ax.set_yscale("logit")
        odds = [p / (1 - p) for p in (within(low, scale), within(high, scale))]
        ax.set_ylim(*(odd / (1 + odd) for odd in (odds[0] / 1.7, odds[1] * 1.7)))
        ax.yaxis.set_major_locator(
            FixedLocator([0.02, 0.1, 0.5, 0.9, 0.97, 0.99, 0.997, 0.999, 0.9997])
        )
        ax.yaxis.set_major_formatter(FuncFormatter(lambda p, _: f"{100 * p:g} %"))
        ax.yaxis.set_minor_locator(FixedLocator([]))
    elif scale == "log" and high > 2 * low:
        _log_axis(ax, low, high)
    else:
        margin = 0.12 * (high - low) or 0.1 * abs(high) or 0.1
        ax.set_ylim(low - margin, high + margin)
        ax.yaxis.set_major_locator(MaxNLocator(5))


def _spaced(calls: Sequence[int]) -> list[int]:
    """Those of `calls` whose labels don't touch on a log2 axis; powers of two go first."""
    kept: list[int] = []
    for k in sorted(calls, key=lambda k: (k & (k - 1) != 0, -k)):
        if all(abs(math.log2(k / other)) > 0.5 for other in kept):
            kept.append(k)
    return kept


def _log_axis(ax: Axes, low: float, high: float) -> None:
    """A vertical log axis from below `low` to above `high`, with ticks at 1, 2, 5 (or more, if
    these are too few)."""
    from matplotlib.ticker import FixedLocator, FuncFormatter

    bottom = low / 1.2
    top = high * 1.2
    ax.set_yscale("log")
    ax.set_ylim(bottom, top)
    decades = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    choices = [
        [m * 10.0**e for e in decades for m in ms]
        for ms in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7))
    ]
    inside = [[tick for tick in ticks if bottom <= tick <= top] for ticks in choices]
    ax.yaxis.set_major_locator(
        FixedLocator(next((ticks for ticks in inside if len(ticks) >= 3), inside[-1]))
    )
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_locator(FixedLocator([]))


# ---- Training ------------------------------------------------------------------------------------


def training_figure(results: Mapping[str, Any], curves: Sequence[Mapping[str, Any]]) -> Figure:
    """Losses of each stage over its updates, and the validation score over the whole run.

    Args:
        results, curves: as for :func:`write_report`.
    """
    stages, validation = training_curves(results, curves)
    columns = max(1, len(stages) + bool(validation))
    figure, axes = new_figure(max(4.9 * columns, 7.0), 4.2, 1, columns)
    for ax, (stage, losses) in zip(axes[0], stages.items(), strict=False):
        colours = iter(
            (COLOURS.get(stage, COLOURS["teacher"]), COLOURS["other"], INK, COLOURS["ab2"], GREY)
        )
        for name, points in losses.items():
            colour = next(colours, GREY)
            ax.plot(*zip(*points, strict=True), color=colour, alpha=0.3, linewidth=1)
            ax.plot(*zip(*smooth(points), strict=True), color=colour, label=name.replace("_", " "))
        values = [value for points in losses.values() for _, value in points]
        _log_axis(ax, min(values), max(values))
        ax.set_title(_STAGES.get(stage, stage), fontweight="bold")
        ax.set(xlabel="update", ylabel="loss")
        ax.legend(frameon=False)
    if validation:
        ax = axes[0][-1]
        for stage, points in validation.items():
            colour = COLOURS.get(stage, COLOURS["teacher"])
            ax.plot(
                *zip(*points, strict=True),
                "o-",
                color=colour,
                markersize=5,
                label=f"during {_stage_name(stage)}",
            )
        values = [value for points in validation.values() for _, value in points]
        # A start from the teacher in one call is so far off that nothing else could be told apart
        # beside it.
        if 0 < 3 * min(values) < max(values):
            _log_axis(ax, min(values), max(values))
        primary = str(results.get("primary"))
        title, good, _ = SCORES.get(primary, (primary.replace("_", " "), "lower is better", ""))
        ax.set_title(f"validation: {title}", fontweight="bold")
        ax.set(xlabel="update, all stages", ylabel=good)
        ax.legend(frameon=False)
    if not stages and not validation:
        axes[0][0].set(title="no training in this run", xticks=[], yticks=[])
    return figure


def _stage_name(stage: str) -> str:
    return stage.upper() if len(stage) <= 3 else stage.replace("_", " ")


# ---- Diagnostics ---------------------------------------------------------------------------------

# Diagnostic -> (title, what to see in it, level of reference, scale).
_BINNED = {
    "gap": ("teacher-fake gap", "0: the judges agree", 0.0, "linear"),
    "lag": ("fake score's loss / teacher's", "above 1: it lags behind", 1.0, "log"),
    "gan_accuracy": ("discriminator's accuracy", "0.5: chance", 0.5, "linear"),
}
_GRADIENTS = {"vsd_grad": "gradient of VSD", "gan_grad": "gradient of the GAN, weighted"}


def diagnostics_figure(results: Mapping[str, Any], curves: Sequence[Mapping[str, Any]]) -> Figure:
    """What shows a collapse, over the updates of all stages: scores above, the judges of the
    student below.

    Scores have a dashed line from where their stage began. Binned diagnostics have a curve per bin
    of t, from dark (small t) to light; where a panel is missing, a stage didn't measure it.

    Args:
        results, curves: as for :func:`write_report`; what isn't in them isn't drawn.
    """
    scores, found = diagnostic_curves(results, curves)
    binned = [name for name in _BINNED if name in found]
    gradients = {name: found[name][""] for name in _GRADIENTS if found.get(name, {}).get("")}
    counts = [count for count in (len(scores), len(binned) + bool(gradients)) if count]
    columns = max(counts, default=1)
    figure, axes = new_figure(
        max(4.3 * columns, 7.0), 3.7 * len(counts or [1]) + 0.4, len(counts or [1]), columns
    )
    for ax in axes.flat:
        ax.set_visible(False)
    rows = iter(axes)
    if scores:
        for ax, (name, stages) in zip(next(rows), scores.items(), strict=False):
            _draw_validation(ax, name, stages)
    if binned or gradients:
        row = next(rows)
        for ax, name in zip(row, binned, strict=False):
            _draw_bins(ax, name, found[name])
        if gradients:
            _draw_gradients(row[len(binned)], gradients)
    for ax in axes[-1]:
        ax.set_xlabel("update, all stages")
    add_legend(figure, (ax for ax in axes.flat if ax.get_visible()), 6)
    if not counts:
        axes[0][0].set(title="no validation in this run", xticks=[], yticks=[], visible=True)
    return figure


def _draw_validation(
    ax: Axes, name: str, stages: Mapping[str, Sequence[tuple[float, float]]]
) -> None:
    title, good, _ = SCORES.get(name, (name.replace("_", " "), "lower is better", ""))
    for stage, points in stages.items():
        colour = COLOURS.get(stage, COLOURS["teacher"])
        ax.plot(
            *zip(*points, strict=True),
            "o-",
            color=colour,
            markersize=5,
            label=f"during {_stage_name(stage)}",
        )
        ends = [points[0][0], points[-1][0]]
        level = [points[0][1]] * 2
        ax.plot(
            ends,
            level,
            "--",
            color=colour,
            linewidth=1.2,
            label=f"where {_stage_name(stage)} began",
        )
    values = [value for points in stages.values() for _, value in points]
    if 0 < 3 * min(values) < max(values):
        _log_axis(ax, min(values), max(values))
    _title(ax, title, good)


def _draw_bins(ax: Axes, name: str, bins: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    from matplotlib import colormaps

    title, meaning, level, scale = _BINNED[name]
    for k, (label, points) in enumerate(bins.items()):
        colour = colormaps["viridis"](0.9 * k / max(1, len(bins) - 1))
        ax.plot(*zip(*points, strict=True), "o-", color=colour, markersize=4, label=label)
    values = [value for points in bins.values() for _, value in points]
    if scale == "log" and min(values) > 0:
        _log_axis(ax, min(*values, level), max(*values, level))
    ax.axhline(level, color=INK, linestyle=":", linewidth=1.4)
    _title(ax, title, meaning)


def _draw_gradients(ax: Axes, gradients: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    for (name, points), colour in zip(
        gradients.items(), (COLOURS["dmd"], COLOURS["other"]), strict=False
    ):
        ax.plot(
            *zip(*points, strict=True), "o-", color=colour, markersize=5, label=_GRADIENTS[name]
        )
    values = [value for points in gradients.values() for _, value in points]
    if 0 < 3 * min(values) < max(values):
        _log_axis(ax, min(values), max(values))
    else:
        ax.set_ylim(0.0, 1.1 * max(values) or 1.0)
    _title(ax, "gradients at the sample", "root mean square")


def _title(ax: Axes, title: str, meaning: str) -> None:
    ax.set_visible(True)
    ax.set_title(title + "\n", fontweight="bold")
    ax.text(0.5, 1.03, meaning, transform=ax.transAxes, ha="center", color=GREY)
