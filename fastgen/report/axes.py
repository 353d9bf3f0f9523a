"""Figures and their axes: what all pictures of a report share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .styles import GREY, MATPLOTLIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "add_legend",
    "far_apart",
    "log_axis",
    "new_figure",
    "score_axis",
    "title_with_meaning",
]


def new_figure(
    width: float, height: float, rows: int, columns: int, **options: Any
) -> tuple[Figure, Any]:
    """A figure and its grid of axes, (rows, columns).

    It is made without pyplot, so it needs no window system and leaves no global state.

    Args:
        width, height: of the figure, in inches.
        rows, columns: of the grid.
        options: for matplotlib's `Figure.subplots`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'fastgen-distill[viz]'") from error
    with rc_context(MATPLOTLIB):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False, **options)


def add_legend(figure: Figure, axes: Any, most: int, order: Sequence[str] = ()) -> None:
    """One legend below the figure, which has each label of its axes once.

    Args:
        figure: that gets the legend.
        axes: whose labels it holds.
        most: labels in a row.
        order: labels that go first.
    """
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles:
        return

    first = [label for label in order if label in handles]
    labels = first + [label for label in handles if label not in first]
    figure.legend(
        [handles[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=min(most, len(labels)),
        frameon=False,
    )


def title_with_meaning(ax: Axes, title: str, meaning: str) -> None:
    """Write the title of a panel, and below it in grey how to read the panel."""
    ax.set_title(title + "\n", fontweight="bold")
    ax.text(0.5, 1.03, meaning, transform=ax.transAxes, ha="center", color=GREY)


def log_axis(ax: Axes, low: float, high: float) -> None:
    """Give `ax` a vertical log axis that holds all of [low, high], with plain numbers as ticks.

    Ticks are powers of ten; where fewer than three of these fit, 1, 2, 5 times powers of ten; and
    where these are too few, 1, 1.5, 2, 3, 4, 5, 7 times powers of ten.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter

    bottom = low / 1.2
    top = high * 1.2
    ax.set_yscale("log")
    ax.set_ylim(bottom, top)

    decades = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    inside: list[float] = []
    for multiples in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [multiple * 10.0**decade for decade in decades for multiple in multiples]
        inside = [tick for tick in ticks if bottom <= tick <= top]
        if len(inside) >= 3:
            break
    ax.yaxis.set_major_locator(FixedLocator(inside))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_locator(FixedLocator([]))


def far_apart(values: Sequence[float]) -> bool:
    """Whether positive values differ so much that a linear axis would flatten the small ones."""
    return 0 < 3 * min(values) < max(values)


def score_axis(ax: Axes, scale: str, low: float, high: float) -> None:
    """Give `ax` a vertical axis for scores in [low, high], with a few plain numbers as ticks.

    Args:
        ax: the panel.
        scale: "linear", "log" or "logit". Where scores are close together, "log" is drawn linear.
        low, high: the range to show. On a logit axis, both lie inside (0, 1).
    """
    if scale == "logit":
        _logit_axis(ax, low, high)
    elif scale == "log" and high > 2 * low:
        log_axis(ax, low, high)
    else:
        _linear_axis(ax, low, high)


def _logit_axis(ax: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter

    ax.set_yscale("logit")
    # The margin is a factor of the odds, since a logit axis is a log axis of odds.
    lowest_odds = low / (1 - low) / 1.7
    highest_odds = high / (1 - high) * 1.7
    ax.set_ylim(lowest_odds / (1 + lowest_odds), highest_odds / (1 + highest_odds))

    ticks = [0.02, 0.1, 0.5, 0.9, 0.97, 0.99, 0.997, 0.999, 0.9997]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    ax.yaxis.set_minor_locator(FixedLocator([]))


def _linear_axis(ax: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import MaxNLocator

    margin = 0.12 * (high - low) or 0.1 * abs(high) or 0.1
    ax.set_ylim(low - margin, high + margin)
    ax.yaxis.set_major_locator(MaxNLocator(5))
