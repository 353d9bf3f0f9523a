"""What is in a data set, what would be used of it, and what is odd: lines for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from ..._core.files import expand_home
from ..._core.messages import listed
from .angle_jumps import angle_like_channels
from .array_files import READERS, read_tensors
from .detection import open_source
from .selection import Selection, first_rows, for_an_encoder, is_large, select
from .source import Column, Source

__all__ = ["describe_data", "time_notes"]

# Columns that are listed one by one.
_MOST_COLUMNS = 12
# The arrays of a file of episodes that need not be named to train on them.
_EPISODES = {"actions", "observations", "episode_ends"}
# Rows whose distance in time is another than usual by more than this part of it are odd.
_UNEVEN = 0.1


def describe_data(
    path: str | Path,
    actions: Sequence[str] | None = None,
    observations: Sequence[str] | None = None,
) -> list[str]:
    """About twenty lines on a data set.

    Args:
        path: of a file or folder, as `open_source`.
        actions, observations: names of columns, as `select`.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `open_source`; or columns that aren't there.
    """
    path = expand_home(path)
    to_name = False
    if path.suffix.lower() in READERS and path.is_file():
        tensors = read_tensors(path)
        if "X" in tensors:
            return _arrays(path, tensors)
        to_name = actions is None and observations is None and set(tensors) != _EPISODES
    source = open_source(path)
    try:
        selection = select(source, actions, observations)
    except ValueError as error:
        if actions is not None and observations is not None:
            raise
        notes = [*source.notes, *for_an_encoder(source.columns)]
        return [*_head(source), *_table(source, {}, {}), *notes, f"to choose: {error}"]
    used = {**dict.fromkeys(selection.observations, "observations")}
    used |= dict.fromkeys(selection.actions, "actions")
    large = is_large(source, sorted(used)) and source.pieces is not None
    values = first_rows(source, sorted(used)) if large else source.read(sorted(used))
    lines = [*_head(source), *_table(source, used, values)]
    if large:
        rows = min(map(len, values.values()))
        lines.append(f"note: ranges and what is odd are of the first {rows} rows alone")
    if to_name:
        lines.append(
            f"to choose: of these arrays, data.actions={','.join(selection.actions)} "
            f"data.observations={','.join(selection.observations)} must be named to train on them"
        )
    return [*lines, *selection.notes, *_oddities(source, selection, values)]


def _arrays(path: Path, tensors: dict[str, Tensor]) -> list[str]:
    lines = [f"arrays at {path}, rows of X to train on as they are"]
    for name, value in sorted(tensors.items()):
        lines.append(f"  {name}  {tuple(value.shape)}  {value.dtype}")
    return lines


def _head(source: Source) -> list[str]:
    lengths = [stop - start for start, stop in pairwise([0, *source.ends])]
    rate = "" if source.rate is None else f", {source.rate:g} rows per second"
    return [
        f"{source.format} at {source.path}",
        f"{len(lengths)} episodes of {min(lengths)} to {max(lengths)} rows (median "
        f"{median(lengths):g}), {source.rows} rows{rate}",
    ]


def _table(source: Source, used: dict[str, str], values: dict[str, Tensor]) -> list[str]:
    """A line for each column, those that are used first."""
    order = [*used, *(name for name in source.columns if name not in used)]
    shown = order[:_MOST_COLUMNS]
    width = max((len(name) for name in shown), default=0)
    lines = []
    for name in shown:
        column = source.columns[name]
        if name in values and column.kind == "numbers":
            # Of lists the file may not say the length.
            column = replace(column, shape=tuple(values[name].shape[1:]))
        line = f"  {name:{width}}  {used.get(name, '-'):12}  {_said(column)}"
        if name in values:
            line += _range(values[name])
        lines.append(line)
    if len(order) > len(shown):
        lines.append(f"  and {len(order) - len(shown)} columns more")
    return lines


def _range(numbers: Tensor) -> str:
    """Least and greatest of the finite ones."""
    finite = numbers.double()[torch.isfinite(numbers)]
    if not finite.numel():
        return "  no finite number"
    return f"  {float(finite.min()):.4g} to {float(finite.max()):.4g}"


def _said(column: Column) -> str:
    if column.kind != "numbers":
        shape = "x".join(map(str, column.shape))
        return " ".join(filter(None, [column.kind, shape, column.dtype.replace(column.kind, "")]))
    if not column.width:
        return f"lists of {column.dtype}"
    shape = "x".join(map(str, column.shape)) or "1"
    channels = f" ({listed(column.channels, 6)})" if column.channels else ""
    return f"{shape} {column.dtype}{channels}"


def _oddities(source: Source, selection: Selection, values: dict[str, Tensor]) -> list[str]:
    """What who trains on it should look at."""
    lines = []
    for name in (*selection.actions, *selection.observations):
        rows = _flat(values[name])
        bad = int((~torch.isfinite(rows)).any(1).sum())
        if bad:
            lines.append(f"warning: NaN or infinity in {bad} rows of {name}: remove them")
            continue
        still = (rows == rows[0]).all(0).nonzero().flatten().tolist()
        if still:
            lines.append(f"warning: constant channels of {name}: {listed(still)}")
    lines += _angles(source, "action_channels", selection.actions, values)
    lines += _angles(source, "observation_channels", selection.observations, values)
    return [*lines, *time_notes(source)]


def _flat(column: Tensor) -> Tensor:
    """The numbers of each row, (N, d) float64."""
    return column.reshape(len(column), -1).double()


def _angles(
    source: Source, key: str, columns: Sequence[str], values: dict[str, Tensor]
) -> list[str]:
    """A line for each channel of the joined columns that looks like an angle, with what to say of
    it under a key of `data.normalize`."""
    lines = []
    first = 0
    for name in columns:
        rows = _flat(values[name])
        found = angle_like_channels(rows, source.ends) if bool(rows.isfinite().all()) else []
        names = source.columns[name].channels
        for channel, unit, jumps in found:
            called = names[channel] if len(names) == rows.shape[1] else f"channel {channel}"
            turn = {"radians": "2 pi", "degrees": "360"}[unit]
            first_turned = "" if unit == "radians" else "turn it into radians, then "
            lines.append(
                f"note: {called} of {name} looks like an angle in {unit}, with {jumps} jumps of "
                f"{turn}, which a network would learn; {first_turned}name it in "
                f"data.normalize.{key}: {{angle: [{first + channel}]}}, of which networks see "
                "cosine and sine"
            )
        first += rows.shape[1]
    return lines


def time_notes(source: Source) -> list[str]:
    """A line where rows of an episode aren't in order of time, or not evenly spaced, or spaced
    otherwise than the rate says."""
    column = source.columns.get("timestamp")
    if column is None or column.kind != "numbers" or column.width != 1:
        return []
    try:
        time = source.read(["timestamp"])["timestamp"].reshape(-1).double()
    except ValueError as error:  # nothing is trained on it
        return [f"warning: timestamp can't be read: {error}"]
    steps = time[1:] - time[:-1]
    within = torch.ones(len(steps), dtype=torch.bool)
    within[torch.tensor(source.ends[:-1], dtype=torch.long) - 1] = False
    steps = steps[within]
    if not len(steps):
        return []
    usual = float(steps.median())
    back = int((steps <= 0).sum())
    odd = int(((steps - usual).abs() > _UNEVEN * abs(usual)).sum())
    notes = []
    if back:
        notes.append(
            f"warning: {back} steps of timestamp go back or stand still: sort the rows of each "
            "episode by it"
        )
    if odd:
        notes.append(f"warning: {odd} steps of timestamp are not of {usual:g} s")
    rate = source.rate
    if rate is not None and usual > 0 and abs(usual * rate - 1) > _UNEVEN:
        notes.append(
            f"warning: rows are said to be {rate:g} per second, but timestamp steps by {usual:g} s"
        )
    return notes
