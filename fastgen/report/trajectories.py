"""Pictures of trajectories: samples of teacher and student over the scene that they move in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .axes import add_legend, new_figure
from .styles import COLOURS, GREY, INK, PALE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["box_around", "trajectory_figure"]

# A point (x, y); a path of points; a box (x from, x to, y from, y to).
Point = Sequence[float]
Path = Sequence[Point]
Box = tuple[float, float, float, float]


def trajectory_figure(examples: Mapping[str, Any]) -> Figure:
    """Samples of teacher and student for the same conditions, over the scene.

    One condition is a column, with the teacher above and the student below. Where tracks are much
    longer than wide, a condition is a pair, with the teacher left and the student right.

    The condition Z is drawn as start and goal where the scene says that it has one ("goal") or has
    obstacles and Z is two points, and where there are discs, whose centres are the other points of
    Z; else it is the past track. Of
    more than two channels the first two are drawn; a single one is drawn against time.

    Args:
        examples: as for :func:`fastgen.report.page.write_report`. Their `scene` may hold "x_label"
            and "y_label", the names of the axes.
    """
    scene = examples.get("scene") or {}
    labels = examples.get("labels") or {}
    z = _xy_points(examples["Z"])
    truth = _xy_points(examples["X_true"])
    paths = {who: _xy_points(examples[who]) for who in ("teacher", "student")}
    n = len(truth)
    equal = bool(scene.get("equal", True))
    has_goal = _has_goal(scene, len(z[0]))

    limits: Box | None = scene.get("limits")
    boxes = [
        box_around([z[i], truth[i], *paths["teacher"][i], *paths["student"][i]])
        if limits is None
        else limits
        for i in range(n)
    ]
    in_pairs = equal and _much_wider_than_high(boxes)
    if in_pairs:
        figure, axes = _pairs(n)
        boxes = [_with_aspect(box, 1.8) for box in boxes]
    else:
        figure, grid = new_figure(2.6 * n + 0.4, 5.9, 2, n)
        axes = list(grid.T)

    for i in range(n):
        for who, ax in zip(paths, axes[i], strict=True):
            _draw_scene(ax, _obstacles(scene, z[i]), boxes[i], equal, frame_only=not in_pairs)
            _draw_samples(ax, z[i], paths[who][i], truth[i], who, has_goal)
    _write_labels(figure, axes, labels, scene, in_pairs=in_pairs)
    each = f"{len(paths['teacher'][0])} samples for each of {n} conditions"
    text = f"{each}; teacher and student start from the same noise"
    figure.suptitle(text, fontsize=12, color=GREY)
    add_legend(figure, axes[0], 6, ("start", "goal", "obstacle", "past (given)"))
    return figure


def _has_goal(scene: Mapping[str, Any], points: int) -> bool:
    """Whether conditions of so many points begin with start and goal."""
    if "discs" in scene or scene.get("goal"):
        return True
    return bool(scene.get("obstacles")) and points == 2


def _pairs(n: int) -> tuple[Figure, list[Any]]:
    """A figure with two pairs of axes a row, and its pairs. The narrow column between them is
    empty."""
    rows = -(-n // 2)
    options = {"gridspec_kw": {"width_ratios": [1, 1, 0.04, 1, 1]}}
    figure, grid = new_figure(15.0, 2.3 * rows + 1.2, rows, 5, **options)
    pairs = []
    for i in range(n):
        left = 3 * (i % 2)
        pairs.append(grid[i // 2][left : left + 2])
    used = {ax for pair in pairs for ax in pair}
    for ax in grid.flat:
        ax.set_visible(ax in used)
    return figure, pairs


def _write_labels(
    figure: Figure,
    axes: Sequence[Any],
    labels: Mapping[str, Any],
    scene: Mapping[str, Any],
    *,
    in_pairs: bool,
) -> None:
    """Say who drew the samples: over the first pairs, or beside the first column."""
    for who, k in (("teacher", 0), ("student", 1)):
        style = {"color": COLOURS[who], "fontweight": "bold", "fontsize": 15}
        title = str(labels.get(who, who))
        if not in_pairs:
            axes[0][k].set_ylabel(title, **style)
            continue
        for pair in axes[:2]:
            pair[k].set_title(title, **style)
    if in_pairs:
        figure.supxlabel(str(scene.get("x_label", "")), fontsize=12)
        figure.supylabel(str(scene.get("y_label", "")), fontsize=12)


# ---- What is drawn into a panel -----------------------------------------------------------------


def _obstacles(scene: Mapping[str, Any], z: Path) -> list[Path]:
    """Corners of every obstacle of one condition: the scene's own, and discs around the points of
    z after start and goal."""
    obstacles = list(scene.get("obstacles") or [])
    if "discs" in scene:
        radius = scene["discs"]
        turns = [2 * math.pi * k / 48 for k in range(48)]
        for x, y in z[2:]:
            disc = [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
            obstacles.append(disc)
    return obstacles


def _draw_scene(
    ax: Axes, obstacles: Sequence[Path], box: Box, equal: bool, *, frame_only: bool
) -> None:
    """Limits, obstacles and, with `frame_only`, a frame in the place of ticks and grid."""
    from matplotlib.patches import Polygon

    ax.set(xlim=box[:2], ylim=box[2:])
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


def _draw_samples(
    ax: Axes, z: Path, samples: Sequence[Path], truth: Path, who: str, has_goal: bool
) -> None:
    """The samples of one condition, the condition, and what really happened after a past track."""
    first = z[:1] if has_goal else z[-1:]
    for k, path in enumerate(samples):
        x, y = zip(*first, *path, strict=True)
        label = f"{who}'s samples" if k == 0 else None
        ax.plot(x, y, color=COLOURS[who], alpha=0.65, linewidth=1.4, zorder=3, label=label)
    if has_goal:
        # The recorded path isn't drawn: start, goal and obstacles already say what is right.
        dot = {"color": INK, "linestyle": "none", "zorder": 5}
        ax.plot(*z[0], "o", markersize=9, label="start", **dot)
        ax.plot(*z[1], "*", markersize=17, markeredgecolor="white", label="goal", **dot)
        return
    future = {"linestyle": (0, (3, 2)), "zorder": 4, "label": "what really happened"}
    ax.plot(*zip(*first, *truth, strict=True), color=INK, **future)
    ax.plot(*zip(*z, strict=True), color=INK, linewidth=3, zorder=5, label="past (given)")
    ax.plot(*z[-1], "o", color=INK, markersize=7, zorder=5)


# ---- Points and boxes ---------------------------------------------------------------------------


def _xy_points(values: Tensor | Sequence) -> list:
    """(..., T, d) as nested lists of (x, y): the first two channels, or the index and the only
    channel."""
    x = torch.as_tensor(values).detach().cpu().double()
    if x.shape[-1] == 1:
        time = torch.arange(1, x.shape[-2] + 1, dtype=x.dtype).expand(x.shape[:-1])
        x = torch.stack([time, x[..., 0]], dim=-1)
    return x[..., :2].tolist()


def box_around(paths: Sequence[Path]) -> Box:
    """A box with a margin around all finite points."""
    xs = [x for path in paths for x, _ in path if math.isfinite(x)] or [0.0]
    ys = [y for path in paths for _, y in path if math.isfinite(y)] or [0.0]
    margin = 0.05 * max(max(xs) - min(xs), max(ys) - min(ys), 1e-9)
    return min(xs) - margin, max(xs) + margin, min(ys) - margin, max(ys) + margin


def _much_wider_than_high(boxes: Sequence[Box]) -> bool:
    widths = [x1 - x0 for x0, x1, _, _ in boxes]
    heights = [y1 - y0 for _, _, y0, y1 in boxes]
    return sum(widths) > 1.8 * sum(heights)


def _with_aspect(box: Box, aspect: float) -> Box:
    """The smallest box around `box` that has the same centre and is `aspect` times as wide as
    high."""
    x0, x1, y0, y1 = box
    width = max(x1 - x0, aspect * (y1 - y0))
    height = max(y1 - y0, (x1 - x0) / aspect)
    x = (x0 + x1) / 2
    y = (y0 + y1) / 2
    return x - width / 2, x + width / 2, y - height / 2, y + height / 2
