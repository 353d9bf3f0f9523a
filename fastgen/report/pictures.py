"""Pictures of samples: what teacher and student draw from the same conditions and the same noise;
and what all pictures share.

A thing has one colour in all pictures, from the palette of Okabe and Ito, which can be told apart
by colour-blind readers, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .tables import box_around, with_aspect, xy_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "GREY",
    "INK",
    "STYLE",
    "add_legend",
    "new_figure",
    "sample_figure",
    "trajectory_figure",
]

INK = "#000000"
GREY = "#6b6b6b"
PALE = "#c9c9c9"
COLOURS = {
    "teacher": "#0072B2",
    "ab2": "#56B4E9",
    "student": "#D55E00",
    "kd": "#E69F00",
    "dmd": "#009E73",
    "other": "#CC79A7",
}
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "lines.linewidth": 1.8,
    "legend.fontsize": 12,
    "legend.frameon": False,
    "savefig.dpi": 110,
}


def new_figure(
    width: float, height: float, rows: int, columns: int, **options: Any
) -> tuple[Figure, Any]:
    """A figure and its grid of axes, without pyplot: no window system and no global state."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'fastgen-distill[viz]'") from error
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False, **options)


def add_legend(figure: Figure, axes: Any, most: int, order: Sequence[str] = ()) -> None:
    """One legend for the figure, below it, with each label once."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    labels = sorted(handles, key=lambda label: order.index(label) if label in order else len(order))
    if labels:
        columns = min(most, len(labels))
        figure.legend(
            [handles[k] for k in labels],
            labels,
            loc="outside lower center",
            ncols=columns,
            frameon=False,
        )


# ---- Samples of any shape ------------------------------------------------------------------------


def sample_figure(examples: Mapping[str, Any]) -> Figure:
    """Samples of teacher and student beside the data, drawn as the scene's `kind` says.

    No `kind`: trajectories, over their scene (:func:`trajectory_figure`). "points": scatter plots
    of the plane, of samples (2,) or (1, 2). "images": mosaics, one condition a row, in the data's
    range of brightness; of two channels and of more than three the first, or the first three as
    colours. "values": histograms of the first six numbers of a sample.

    Args:
        examples: as for :func:`fastgen.report.page.write_report`.
    """
    kind = (examples.get("scene") or {}).get("kind")
    if kind is None:
        return trajectory_figure(examples)
    drawn = {"data": torch.as_tensor(examples["X_true"])[:, None]}
    drawn |= {who: torch.as_tensor(examples[who]) for who in ("teacher", "student")}
    drawn = {who: x.detach().cpu().double() for who, x in drawn.items()}
    figure = {"points": _points, "images": _images, "values": _histograms}[kind](
        drawn, examples.get("labels") or {}
    )
    n, each = drawn["teacher"].shape[:2]
    many = f"{n} samples" if each == 1 else f"{each} samples for each of {n} conditions"
    figure.suptitle(
        f"{many}; teacher and student start from the same noise", fontsize=12, color=GREY
    )
    return figure


def _points(drawn: Mapping[str, Tensor], labels: Mapping[str, Any]) -> Figure:
    drawn = {who: x.reshape(-1, 2) for who, x in drawn.items()}
    data = drawn["data"]
    limits = box_around({}, [x.tolist() for x in drawn.values()])
    aspect = (limits[3] - limits[2]) / (limits[1] - limits[0])
    figure, grid = new_figure(13.0, 4.0 * min(max(aspect, 0.4), 1.6) + 1.2, 1, 3)
    for (who, x), ax in zip(drawn.items(), grid[0], strict=True):
        ax.set(xlim=limits[:2], ylim=limits[2:])
        ax.set_aspect("equal")
        if who != "data":
            ax.plot(*data.T.tolist(), "o", color=PALE, markersize=4, linestyle="none", zorder=2)
        style = {"color": _colour(who), "markersize": 4, "linestyle": "none", "alpha": 0.6}
        ax.plot(*x.T.tolist(), "o", zorder=3, **style)
        _title(ax, who, labels)
    return figure


def _images(drawn: Mapping[str, Tensor], labels: Mapping[str, Any]) -> Figure:
    shown = {
        who: x[:, :, :3] if x.shape[2] >= 3 else x[:, :, :1].expand(-1, -1, 3, -1, -1)
        for who, x in drawn.items()
    }
    low, high = (float(bound) for bound in torch.aminmax(shown["data"]))
    n, each = shown["teacher"].shape[:2]
    mosaics = {}
    for who, x in shown.items():
        columns = math.ceil(math.sqrt(n)) if each == 1 else x.shape[1]
        mosaics[who] = _mosaic(((x - low) / ((high - low) or 1.0)).flatten(0, 1), columns)
    widths = [mosaic.shape[1] / mosaic.shape[0] for mosaic in mosaics.values()]
    height = min(6.0, 15.0 / sum(widths))
    options = {"gridspec_kw": {"width_ratios": widths}}
    figure, grid = new_figure(
        max(8.0, height * sum(widths) + 0.6), height + 1.0, 1, len(mosaics), **options
    )
    figure.set_layout_engine("constrained", wspace=0.06)
    for (who, mosaic), ax in zip(mosaics.items(), grid[0], strict=True):
        ax.imshow(mosaic.numpy(), interpolation="nearest")
        ax.grid(False)
        ax.set_axis_off()
        _title(ax, who, labels)
    return figure


def _mosaic(x: Tensor, columns: int) -> Tensor:
    """Images (n, 3, H, W) as one (rows, columns, 3), so many beside each other."""
    _, _, height, width = x.shape
    tiles = x.nan_to_num().clamp(0.0, 1.0).permute(0, 2, 3, 1)
    rows = -(-len(tiles) // columns)
    gap = max(1, width // 16)
    canvas = x.new_ones(rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    for k, tile in enumerate(tiles):
        top = k // columns * (height + gap)
        left = k % columns * (width + gap)
        canvas[top : top + height, left : left + width] = tile
    return canvas


def _histograms(drawn: Mapping[str, Tensor], labels: Mapping[str, Any]) -> Figure:
    numbers = {who: x.flatten(2).flatten(0, 1) for who, x in drawn.items()}
    count = min(6, numbers["data"].shape[1])
    columns = min(3, count)
    figure, grid = new_figure(
        max(7.0, 4.2 * columns), 3.2 * -(-count // columns) + 1.2, -(-count // columns), columns
    )
    for k, ax in enumerate(grid.flat):
        ax.set_visible(k < count)
        if k >= count:
            continue
        low, high = (float(bound) for bound in torch.aminmax(numbers["data"][:, k]))
        margin = 0.25 * (high - low) or 1.0
        low = low - margin
        high = high + margin
        for who, x in numbers.items():
            # What lies outside is counted at the edge, so that it shows.
            values = x[:, k].nan_to_num(high).clamp(low, high).tolist()
            style = {
                "histtype": "stepfilled" if who == "data" else "step",
                "density": True,
                "linewidth": 1.8,
            }
            colour = PALE if who == "data" else _colour(who)
            ax.hist(
                values,
                bins=30,
                range=(low, high),
                color=colour,
                label=str(labels.get(who, who)),
                **style,
            )
        ax.set_title(f"number {k + 1} of {numbers['data'].shape[1]}")
        ax.set_yticks([])
    add_legend(figure, grid.flat[:1], 3)
    return figure


def _title(ax: Axes, who: str, labels: Mapping[str, Any]) -> None:
    ax.set_title(str(labels.get(who, who)), color=_colour(who), fontweight="bold", fontsize=14)


def _colour(who: str) -> str:
    return COLOURS.get(who, GREY)


# ---- Trajectories --------------------------------------------------------------------------------


def trajectory_figure(examples: Mapping[str, Any]) -> Figure:
    """Samples of teacher and student for the same conditions, over the scene.

    One condition a column, teacher above and student below; where tracks are much longer than wide,
    pairs with the teacher left and the student right. The condition is drawn as start and goal
    where there are obstacles and Z is two points, or discs, whose centres are the other points of
    Z; else as the past track. Of more than two channels two are drawn, a single one is drawn
    against time.

    Args:
        examples: as for :func:`write_report`; `scene` may hold "x_label" and "y_label", the names
            of the axes.
    """
    scene = examples.get("scene") or {}
    labels = examples.get("labels") or {}
    z = xy_points(examples["Z"])
    truth = xy_points(examples["X_true"])
    paths = {who: xy_points(examples[who]) for who in ("teacher", "student")}
    n = len(truth)
    equal = bool(scene.get("equal", True))
    has_goal = "discs" in scene or (bool(scene.get("obstacles")) and len(z[0]) == 2)
    limits = [
        box_around(scene, [z[i], truth[i], *paths["teacher"][i], *paths["student"][i]])
        for i in range(n)
    ]
    wide = equal and sum(x1 - x0 for x0, x1, *_ in limits) > 1.8 * sum(
        y1 - y0 for *_, y0, y1 in limits
    )
    if wide:
        # Two conditions a row; the narrow column between them is empty.
        rows = -(-n // 2)
        figure, grid = new_figure(
            15.0, 2.3 * rows + 1.2, rows, 5, gridspec_kw={"width_ratios": [1, 1, 0.04, 1, 1]}
        )
        axes = [grid[i // 2][3 * (i % 2) : 3 * (i % 2) + 2] for i in range(n)]
        for ax in {*grid.flat} - {ax for pair in axes for ax in pair}:
            ax.set_visible(False)
        limits = [with_aspect(box, 1.8) for box in limits]
    else:
        figure, grid = new_figure(2.6 * n + 0.4, 5.9, 2, n)
        axes = list(grid.T)
    for i in range(n):
        for who, ax in zip(paths, axes[i], strict=True):
            _draw_scene(ax, _obstacles(scene, z[i]), limits[i], equal, frame_only=not wide)
            _draw_samples(ax, z[i], paths[who][i], truth[i], who, has_goal)
    for i in range(min(n, 2 if wide else 1)):
        for who, ax in zip(paths, axes[i], strict=True):
            style = {"color": COLOURS[who], "fontweight": "bold", "fontsize": 15}
            title = str(labels.get(who, who))
            ax.set_title(title, **style) if wide else ax.set_ylabel(title, **style)
    if wide:
        figure.supxlabel(str(scene.get("x_label", "")), fontsize=12)
        figure.supylabel(str(scene.get("y_label", "")), fontsize=12)
    each = f"{len(paths['teacher'][0])} samples for each of {n} conditions; teacher and student start from the same noise"
    figure.suptitle(each, fontsize=12, color=GREY)
    add_legend(figure, axes[0], 6, ("start", "goal", "obstacle", "past (given)"))
    return figure


def _obstacles(scene: Mapping[str, Any], z: list) -> list:
    """Corners of every obstacle of one condition: the scene's own, and discs around the points
    after start and goal."""
    turns = [2 * math.pi * k / 48 for k in range(48)]
    radius = scene.get("discs", 0.0)
    centres = z[2:] if "discs" in scene else []
    discs = [
        [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
        for x, y in centres
    ]
    return [*(scene.get("obstacles") or []), *discs]


def _draw_scene(
    ax: Axes, obstacles: list, limits: Sequence[float], equal: bool, *, frame_only: bool
) -> None:
    from matplotlib.patches import Polygon

    ax.set(xlim=limits[:2], ylim=limits[2:])
    if equal:
        ax.set_aspect("equal")
    if frame_only:
        ax.grid(False)
        ax.set(xticks=[], yticks=[])
        for side in ax.spines.values():
            side.set(visible=True, color=GREY)
    for k, corners in enumerate(obstacles):
        label = "obstacle" if k == 0 else None
        ax.add_patch(
            Polygon(corners, closed=True, facecolor=PALE, edgecolor=GREY, label=label, zorder=1)
        )


def _draw_samples(ax: Axes, z: list, samples: list, truth: list, who: str, has_goal: bool) -> None:
    first = z[:1] if has_goal else z[-1:]
    for k, path in enumerate(samples):
        x, y = zip(*first, *path, strict=True)
        label = f"{who}'s samples" if k == 0 else None
        ax.plot(x, y, color=COLOURS[who], alpha=0.65, linewidth=1.4, zorder=3, label=label)
    if has_goal:
        ax.plot(*z[0], "o", color=INK, markersize=9, zorder=5, label="start", linestyle="none")
        ax.plot(
            *z[1],
            "*",
            color=INK,
            markeredgecolor="white",
            markersize=17,
            zorder=5,
            label="goal",
            linestyle="none",
        )
        return
    # The recorded future is worth showing only where the picture doesn't already say what is right.
    ax.plot(
        *zip(*first, *truth, strict=True),
        color=INK,
        linestyle=(0, (3, 2)),
        zorder=4,
        label="what really happened",
    )
    ax.plot(*zip(*z, strict=True), color=INK, linewidth=3, zorder=5, label="past (given)")
    ax.plot(*z[-1], "o", color=INK, markersize=7, zorder=5)
