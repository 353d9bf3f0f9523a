"""The declared range of data: refused where data lie outside it."""

from __future__ import annotations

from typing import Any

import torch

from .._core.made_rows import blocks_of
from .._core.messages import listed
from ..box import Box
from .held_out import HeldOutTask
from .samples import SampleData, SampleTask

__all__ = ["check_range"]


def check_range(task: Any, box: Box | None) -> None:
    """Refuse data that lie outside the range declared of them; None declares none.

    Args:
        task: its training data, and the rows that are held out of a file for scores.
        box: in the units of the data.

    Raises:
        ValueError: lists of numbers for samples that are no trajectories; numbers for another count
            of channels; rows outside: how many, and which, as
            numbered in the file.
    """
    if box is None:
        return
    train = task.train.X
    if len(box.lo) > 1 and isinstance(task.train, SampleData):
        raise ValueError(
            f"expected data.range=[lo, hi] with one number each for samples {tuple(train.shape)}, "
            "got lists; only trajectories (N, T, d) have a last axis of channels, which lists are "
            "for"
        )
    try:
        box.check_channels(train.shape[-1])
    except ValueError as error:
        raise ValueError(f"data.range: {error}") from error
    parts = {"train": train}
    numbers = {"train": torch.arange(len(train))}
    if isinstance(task, HeldOutTask | SampleTask):
        parts |= {part: task.split(part)[0] for part in ("validation", "test")}
        numbers = task.rows
    outside: list[int] = []
    for part, x in parts.items():
        inside = torch.cat([box.contains(block) for block in blocks_of(x)])
        outside += numbers[part][~inside].tolist()
    if not outside:
        return
    lo = min(float(block.min()) for x in parts.values() for block in blocks_of(x))
    hi = max(float(block.max()) for x in parts.values() for block in blocks_of(x))
    count = sum(len(x) for x in parts.values())
    raise ValueError(
        f"expected data within data.range={box.state()}, got {len(outside)} of {count} rows "
        f"outside it ({listed(sorted(outside))}), with numbers from {lo:.6g} to {hi:.6g}; declare "
        "the range that the data really have, in their own units, or remove these rows"
    )
