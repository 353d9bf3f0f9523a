"""The figure of diagnostics: what shows that a student collapses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .axes import add_legend, far_apart, log_axis, new_figure, title_with_meaning
from .curves import Curve, diagnostic_curves
from .figures import draw_validation
from .styles import COLOURS, INK, Stages, score_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["diagnostics_figure"]


@dataclass(frozen=True)
class _Panel:
    """How a diagnostic is drawn that has a curve for each bin of t."""

    title: str
    meaning: str
    level: float  # that the meaning speaks of, drawn as a dotted line
    scale: str


_BINNED = {
    "gap": _Panel("teacher-fake gap", "0: the judges agree", 0.0, "linear"),
    "lag": _Panel("fake score's loss / teacher's", "above 1: it lags behind", 1.0, "log"),
    "gan_accuracy": _Panel("discriminator's accuracy", "0.5: chance", 0.5, "linear"),
}
# Gradient at the student's sample -> its label.
_GRADIENTS = {"vsd_grad": "gradient of VSD", "gan_grad": "gradient of the GAN, weighted"}


def diagnostics_figure(
    results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], stages: Stages
) -> Figure:
    """What shows a collapse, over the updates of all stages: scores above, diagnostics below.

    Scores have a dashed line from where their stage began. Binned diagnostics have a curve per bin
    of t, from dark (small t) to light. A panel is missing where no stage measured it.

    Args:
        results, stages: as for :func:`fastgen.report.page.write_report`.
        rows: of metrics.jsonl.
    """
    scores, found = diagnostic_curves(results, rows)
    binned = [name for name in _BINNED if name in found]
    gradients = {name: found[name][""] for name in _GRADIENTS if found.get(name, {}).get("")}
    panels = [count for count in (len(scores), len(binned) + bool(gradients)) if count]
    columns = max(panels, default=1)
    height = len(panels) or 1
    figure, axes = new_figure(max(4.3 * columns, 7.0), 3.7 * height + 0.4, height, columns)
    for ax in axes.flat:
        ax.set_visible(False)

    for ax, (name, curves) in zip(axes[0], scores.items(), strict=False):
        ax.set_visible(True)
        draw_validation(ax, curves, stages, with_start=True)
        style = score_style(name, "lower is better")
        title_with_meaning(ax, style.title, style.meaning)
    for ax, name in zip(axes[-1], binned, strict=False):
        ax.set_visible(True)
        _draw_bins(ax, _BINNED[name], found[name])
    if gradients:
        ax = axes[-1][len(binned)]
        ax.set_visible(True)
        _draw_gradients(ax, gradients)

    for ax in axes[-1]:
        ax.set_xlabel("update, all stages")
    add_legend(figure, (ax for ax in axes.flat if ax.get_visible()), 6)
    if not panels:
        axes[0][0].set(title="no validation in this run", xticks=[], yticks=[], visible=True)
    return figure


def _draw_bins(ax: Axes, panel: _Panel, bins: Mapping[str, Curve]) -> None:
    """A diagnostic with a curve for each bin of t."""
    from matplotlib import colormaps

    for k, (label, points) in enumerate(bins.items()):
        colour = colormaps["viridis"](0.9 * k / max(1, len(bins) - 1))
        ax.plot(*zip(*points, strict=True), "o-", color=colour, markersize=4, label=label)
    values = [value for points in bins.values() for _, value in points]
    if panel.scale == "log" and min(values) > 0:
        log_axis(ax, min(*values, panel.level), max(*values, panel.level))
    ax.axhline(panel.level, color=INK, linestyle=":", linewidth=1.4)
    title_with_meaning(ax, panel.title, panel.meaning)


def _draw_gradients(ax: Axes, gradients: Mapping[str, Curve]) -> None:
    """Sizes of the gradients that the losses send to the student's sample."""
    colours = (COLOURS["gradient"], COLOURS["other"])
    for (name, points), colour in zip(gradients.items(), colours, strict=False):
        label = _GRADIENTS[name]
        ax.plot(*zip(*points, strict=True), "o-", color=colour, markersize=5, label=label)
    values = [value for points in gradients.values() for _, value in points]
    if far_apart(values):
        log_axis(ax, min(values), max(values))
    else:
        ax.set_ylim(0.0, 1.1 * max(values) or 1.0)
    title_with_meaning(ax, "gradients at the sample", "root mean square")
