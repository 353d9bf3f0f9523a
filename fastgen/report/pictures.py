"""Pictures of samples: what teacher and student draw from the same conditions and noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .axes import add_legend, new_figure
from .styles import COLOURS, GREY, PALE
from .trajectories import box_around, trajectory_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["sample_figure"]


def sample_figure(examples: Mapping[str, Any]) -> Figure:
    """Samples of teacher and student beside the data, drawn as the scene's `kind` says.

    - no kind: trajectories, over their scene (:func:`trajectory_figure`);
    - "points": scatter plots of the plane, of samples (2,) or (1, 2);
    - "images": mosaics of samples (C, H, W), one condition a row, in the data's range of
      brightness. Of one or two channels the first is shown, of more the first three as colours. The
      training image nearest to each of the student's samples is drawn beside them if it is given;
    - "values": histograms of the first six numbers of a sample.

    Args:
        examples: as for :func:`fastgen.report.page.write_report`.
    """
    kind = (examples.get("scene") or {}).get("kind")
    if kind is None:
        return trajectory_figure(examples)
    samples = {"data": torch.as_tensor(examples["X_true"])[:, None]}
    for who in ("teacher", "student", "nearest"):
        if who in examples:
            samples[who] = torch.as_tensor(examples[who])
    samples = {who: x.detach().cpu().double() for who, x in samples.items()}
    draw = {"points": _points, "images": _images, "values": _histograms}[kind]
    figure = draw(samples, examples.get("labels") or {})

    n, each = samples["teacher"].shape[:2]
    many = f"{n} samples" if each == 1 else f"{each} samples for each of {n} conditions"
    text = f"{many}; teacher and student start from the same noise"
    figure.suptitle(text, fontsize=12, color=GREY)
    return figure


def _points(samples: Mapping[str, Tensor], labels: Mapping[str, Any]) -> Figure:
    """Scatter plots beside each other, to one scale; the data are pale behind the samples."""
    points = {who: x.reshape(-1, 2) for who, x in samples.items()}
    data = points["data"]
    limits = box_around([x.tolist() for x in points.values()])
    aspect = (limits[3] - limits[2]) / (limits[1] - limits[0])
    height = 4.0 * min(max(aspect, 0.4), 1.6) + 1.2
    figure, grid = new_figure(13.0, height, 1, 3)
    dots = {"markersize": 4, "linestyle": "none"}
    for (who, x), ax in zip(points.items(), grid[0], strict=True):
        ax.set(xlim=limits[:2], ylim=limits[2:])
        ax.set_aspect("equal")
        if who != "data":
            ax.plot(*data.T.tolist(), "o", color=PALE, zorder=2, **dots)
        ax.plot(*x.T.tolist(), "o", color=_colour(who), alpha=0.6, zorder=3, **dots)
        _title(ax, who, labels)
    return figure


def _images(samples: Mapping[str, Tensor], labels: Mapping[str, Any]) -> Figure:
    """Mosaics beside each other, each as wide as its images are."""
    shown = {who: _in_colour(x) for who, x in samples.items()}
    low, high = (float(bound) for bound in torch.aminmax(shown["data"]))
    n, each = shown["teacher"].shape[:2]
    mosaics = {}
    for who, x in shown.items():
        columns = math.ceil(math.sqrt(n)) if each == 1 else x.shape[1]
        brightness = (x - low) / ((high - low) or 1.0)
        mosaics[who] = _mosaic(brightness.flatten(0, 1), columns)

    widths = [mosaic.shape[1] / mosaic.shape[0] for mosaic in mosaics.values()]
    height = min(6.0, 15.0 / sum(widths))
    width = max(8.0, height * sum(widths) + 0.6)
    options = {"gridspec_kw": {"width_ratios": widths}}
    figure, grid = new_figure(width, height + 1.0, 1, len(mosaics), **options)
    figure.set_layout_engine("constrained", wspace=0.06)
    for (who, mosaic), ax in zip(mosaics.items(), grid[0], strict=True):
        ax.imshow(mosaic.numpy(), interpolation="nearest")
        ax.grid(False)
        ax.set_axis_off()
        _title(ax, who, labels)
    return figure


def _in_colour(x: Tensor) -> Tensor:
    """Images (n, K, C, H, W) with three channels: the first three, or the first one as grey."""
    if x.shape[2] >= 3:
        return x[:, :, :3]
    return x[:, :, :1].expand(-1, -1, 3, -1, -1)


def _mosaic(x: Tensor, columns: int) -> Tensor:
    """One picture (height, width, 3) of images (n, 3, H, W): `columns` a row, white between them.

    Brightness outside [0, 1] is clamped; NaN is black.
    """
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


def _histograms(samples: Mapping[str, Tensor], labels: Mapping[str, Any]) -> Figure:
    """A panel for each of the first six numbers of a sample: data, teacher and student over each
    other."""
    numbers = {who: x.flatten(2).flatten(0, 1) for who, x in samples.items()}
    total = numbers["data"].shape[1]
    count = min(6, total)
    columns = min(3, count)
    rows = -(-count // columns)
    figure, grid = new_figure(max(7.0, 4.2 * columns), 3.2 * rows + 1.2, rows, columns)
    for ax in grid.flat[count:]:
        ax.set_visible(False)
    for k, ax in enumerate(grid.flat[:count]):
        _draw_histograms(ax, {who: x[:, k] for who, x in numbers.items()}, labels)
        ax.set_title(f"number {k + 1} of {total}")
        ax.set_yticks([])
    add_legend(figure, grid.flat[:1], 3)
    return figure


def _draw_histograms(ax: Axes, values: Mapping[str, Tensor], labels: Mapping[str, Any]) -> None:
    """Histograms of one number, over the range of the data and a margin.

    Values outside of the range are counted in the first or last bin, so that they show.
    """
    low, high = (float(bound) for bound in torch.aminmax(values["data"]))
    margin = 0.25 * (high - low) or 1.0
    low = low - margin
    high = high + margin
    for who, x in values.items():
        ax.hist(
            x.nan_to_num(high).clamp(low, high).tolist(),
            bins=30,
            range=(low, high),
            density=True,
            histtype="stepfilled" if who == "data" else "step",
            color=PALE if who == "data" else _colour(who),
            linewidth=1.8,
            label=str(labels.get(who, who)),
        )


def _title(ax: Axes, who: str, labels: Mapping[str, Any]) -> None:
    ax.set_title(str(labels.get(who, who)), color=_colour(who), fontweight="bold", fontsize=14)


def _colour(who: str) -> str:
    return COLOURS.get(who, GREY)
