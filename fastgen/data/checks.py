"""Checks of training data: lines about what is odd, said before the first update.

They name constant and almost constant channels, those that lose digits, outliers, repeated rows,
too few rows, episodes that no window fits in, and a group that doesn't act on the data as declared,
or not with all of its elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._core.conditions import named_tensors, tensors_in
from .._core.made_rows import MadeRows, even_rows
from .._core.messages import listed
from ..channel_kinds import KindNormalizer
from ..normalizer import is_constant
from .held_out import HeldOutTask
from .invariance import Violation, moment_violations
from .precision import lost_channels
from .samples import SampleData, SampleTask
from .spreads import Outliers, near_constants, outliers
from .trajectories import TrajectoryData

__all__ = ["constant_channels", "data_notes", "repeated_rows"]

# So many channels of one fault have a line of their own; the others share one.
_MOST_CHANNELS = 3
# Numbers of windows that are looked at of data that memory doesn't hold.
_MOST_LOOKED_AT = 1 << 21
# Larger angles are turns or degrees; a whole turn may be rounded up.
_MOST_RADIANS = 2 * math.pi * (1 + 1e-3)


def data_notes(task: Any, batch_size: int) -> list[str]:
    """Lines about the training data of `task`.

    Those that start with "warning:" are about what a user would mend. Rows are numbered from 0, as
    in the file where the task is one of a file (of episodes: by windows).
    """
    data = task.train
    if isinstance(task, HeldOutTask | SampleTask):
        rows = task.rows["train"]
    else:
        rows = torch.arange(len(data.X))
    notes = [
        *(task.notes if isinstance(task, HeldOutTask) else ()),
        *_few_rows(data, batch_size),
    ]
    if isinstance(data, TrajectoryData) and isinstance(data.X, MadeRows):
        pick = even_rows(len(data), _MOST_LOOKED_AT // (data.X[0].numel() + data.Z[0].numel()) + 1)
        notes.append(
            f"note: {len(pick)} of {len(data)} training windows, evenly spread, are looked at for "
            "what is odd, since they are cut when they are taken"
        )
        masks = data.masks.rows(pick)
        data = replace(data, X=data.X[pick], Z=data.Z[pick], is_pad=None, masks=masks)
        rows = rows[pick]
    return [
        *notes,
        *_constant(data),
        *_near_constant(data),
        *_lost_digits(data),
        *_outliers(task, data),
        *_repeated(data, rows),
        *_unfaithful(data),
        *_degrees(data),
        *_broken_symmetry(task, data, rows),
    ]


def _few_rows(data: TrajectoryData | SampleData, batch_size: int) -> list[str]:
    if len(data.X) >= batch_size:
        return []
    return [
        f"warning: expected at least train.batch_size = {batch_size} training rows, got "
        f"{len(data.X)}, so that a batch repeats some; give more data or lower train.batch_size"
    ]


def _constant(data: TrajectoryData | SampleData) -> list[str]:
    return [
        f"warning: {name} is constant in {_channels(found)}: nothing can be learned of it; drop it "
        "from the data, unless the teacher was trained with it"
        for name, found in constant_channels(data).items()
    ]


def _lost_digits(data: TrajectoryData | SampleData) -> list[str]:
    """Channels that reach networks, which compute in float32, without their digits: those far from
    zero that nothing is taken off."""
    lines = []
    for name, normalizer in (("X", data.x_normalizer), ("Z", data.z_normalizer)):
        value = getattr(data, name)
        if not isinstance(value, Tensor) or value.dtype != torch.float64:
            continue
        seen = value if normalizer is None else normalizer.normalize(value)
        if lost := lost_channels(seen):
            lines.append(
                f"warning: {name} loses digits in {_channels(lost)}, whose numbers are far from "
                "zero for their spread, since networks see them in float32 and nothing takes their "
                "mean off; take it off in the data, with a teacher trained so"
            )
    return lines


def _degrees(data: TrajectoryData | SampleData) -> list[str]:
    """Angles beyond a whole turn, which may be no radians."""
    lines = []
    for name, normalizer in (("X", data.x_normalizer), ("Z", data.z_normalizer)):
        if not isinstance(normalizer, KindNormalizer):
            continue
        at = [channel for (channel,) in normalizer.kinds.kinds.get("angle", ())]
        sizes = getattr(data, name)[..., at].abs().flatten(0, 1).amax(0).tolist()
        large = [channel for channel, size in zip(at, sizes, strict=True) if size > _MOST_RADIANS]
        if large:
            lines.append(
                f"note: {name} looks like degrees in {_channels(large)}, with angles up to "
                f"{max(sizes):.4g}; angles are in radians, and those of samples within [-pi, pi]: "
                "turn degrees into radians; whole turns that are counted are lost"
            )
    return lines


def _near_constant(data: TrajectoryData | SampleData) -> list[str]:
    if not isinstance(data, TrajectoryData):
        return []
    lines = []
    for name, value, normalizer in (
        ("X", data.X, data.x_normalizer),
        ("Z", data.Z, data.z_normalizer),
    ):
        found = near_constants(value, normalizer)
        for one in found[:_MOST_CHANNELS]:
            lines.append(
                f"note: {name} hardly changes in channel {one.channel}, {one.mean:.6g} +- "
                f"{one.scale:.2g} in all {len(value)} training rows: normalising multiplies its "
                f"changes by {1 / one.scale:.2g}; if they are noise, round the channel or drop "
                "it, unless the teacher was trained with it; if it is a time or a place far from "
                "the origin, all is well"
            )
        if others := [one.channel for one in found[_MOST_CHANNELS:]]:
            lines.append(f"note: {name} hardly changes in {_channels(others)} either")
    return lines


def _outliers(task: Any, data: TrajectoryData | SampleData) -> list[str]:
    """Rows that decide the scale of a channel, those held out for scores among them."""
    parts = {"train": (data.X, data.Z)}
    numbers = torch.arange(len(data.X))
    if isinstance(task, HeldOutTask | SampleTask):
        parts |= {part: task.split(part) for part in ("validation", "test")}
        numbers = torch.cat([task.rows[part] for part in parts])
    normalised = isinstance(data, TrajectoryData)
    lines = []
    for name, values in _of_all_parts([{"X": x} | named_tensors(z) for x, z in parts.values()]):
        found = outliers(*values)
        for one in found[:_MOST_CHANNELS]:
            place = name if one.channel is None else f"{name} in channel {one.channel}"
            held_out = all(row >= len(data.X) for row in one.rows)
            lines.append(
                f"warning: {place} has outliers in {_rows(numbers[one.rows].tolist())} of "
                f"{len(numbers)}, up to {one.farthest:.4g} from the median: with them its scale "
                f"is {one.scale:.4g}, {_without(one)}{_effect(held_out, normalised)}; remove "
                "these rows or clip them, unless they are right"
            )
        if others := [one.channel for one in found[_MOST_CHANNELS:]]:
            lines.append(f"warning: {name} has outliers in {_channels(others)}, too")
    return lines


def _of_all_parts(parts: Sequence[Mapping[str, Tensor]]) -> Iterator[tuple[str, list[Tensor]]]:
    """The floating tensors by name, of each part."""
    for name, value in parts[0].items():
        if value.is_floating_point():
            yield name, [part[name] for part in parts]


def _rows(numbers: Sequence[int]) -> str:
    return f"{len(numbers)} {'row' if len(numbers) == 1 else 'rows'} ({listed(numbers)})"


def _without(found: Outliers) -> str:
    if found.robust == 0:
        return "and without them it is constant"
    return f"and by the middle 80% of its numbers {found.robust:.4g}"


def _effect(held_out: bool, normalised: bool) -> str:
    """What outliers do; `held_out` if none of them is trained on."""
    if held_out:
        return ", so that scores, for which they are held out, would tell of little else"
    return ", so that networks see all other rows almost alike" if normalised else ""


def _channels(found: Sequence[int | None]) -> str:
    return f"{'channel' if len(found) == 1 else 'channels'} {listed(found)}"


def _repeated(data: TrajectoryData | SampleData, rows: Tensor) -> list[str]:
    repeated = repeated_rows(data)
    if not repeated:
        return []
    pairs = [f"{rows[later]} (as {rows[earlier]})" for earlier, later in repeated]
    return [
        f"note: {len(repeated)} of {len(data.X)} training rows repeat an earlier one: "
        f"{listed(pairs)}"
    ]


def _unfaithful(data: TrajectoryData | SampleData) -> list[str]:
    if not isinstance(data, TrajectoryData) or data.symmetry is None:
        return []
    symmetry = data.symmetry
    # Groups load escnn, which data without a symmetry doesn't need.
    from ..models.representations import kernel_note
    from ..models.specs import parse_group, parse_representation

    group = parse_group(symmetry["group"])
    reps = {
        key: parse_representation(group, symmetry[key]) for key in ("in_rep", "cond_rep", "out_rep")
    }
    note = kernel_note(reps)
    return [] if note is None else [f"note: data.symmetry: {note}"]


def _broken_symmetry(task: Any, data: TrajectoryData | SampleData, rows: Tensor) -> list[str]:
    if not isinstance(data, TrajectoryData) or data.symmetry is None:
        return []
    episodes = task.episodes[rows] if isinstance(task, HeldOutTask) else None
    group = data.symmetry["group"]
    return [_said(violation, group) for violation in moment_violations(data, episodes)]


def _said(violation: Violation, group: str) -> str:
    if violation.moment == "mean":
        what = "their mean"
        unit = "the root mean square"
    else:
        what = "their second moment, E[v v^T] of v = (X, Z)"
        unit = "it"
    return (
        f"warning: the data are not invariant under {group} as data.symmetry declares it: element "
        f"{violation.element} changes {what}, by {violation.change:.2g} of {unit} (chance of that "
        f"if they were: {violation.p_value:.1g}), most in {listed(violation.channels)}; are the "
        "representations of these channels right, and the channels in the order of in_rep, "
        "cond_rep, out_rep?"
    )


def constant_channels(data: TrajectoryData | SampleData) -> dict[str, list[int]]:
    """The channels of "X" and "Z" that have one value in every row and waypoint.

    Channels are the last axis of trajectories and of vectors (N, d); a pixel of an image may well
    be constant. A Z that is constant as a whole stands for no condition and isn't listed.

    Returns:
        {"X" or "Z": channels}, without empty lists.
    """
    parts: dict[str, Any] = {"X": data.X, "Z": data.Z}
    found = {}
    for name, value in parts.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or len(value) < 2:
            continue
        if isinstance(data, SampleData) and value.ndim != 2:
            continue
        constant = is_constant(value.reshape(-1, value.shape[-1]))
        if bool(constant.any()) and not (name == "Z" and bool(constant.all())):
            found[name] = constant.nonzero().flatten().tolist()
    return found


def repeated_rows(data: TrajectoryData | SampleData) -> list[tuple[int, int]]:
    """(first, later) rows that agree in every number of X and Z, in the order of the later ones."""
    parts = [value.reshape(len(data.X), -1) for value in (data.X, *tensors_in(data.Z))]
    generator = torch.Generator().manual_seed(0)
    # A random sum of a row's numbers: equal rows have equal keys.
    key = torch.zeros(len(data.X), dtype=torch.float64)
    for part in parts:
        weights = torch.rand(part.shape[1], dtype=torch.float64, generator=generator)
        # In blocks, since a copy of the data in float64 may be more than fits; and row by row,
        # since a matrix product rounds equal rows of two blocks differently.
        key += torch.cat([(block.double() * weights).sum(1) for block in part.split(4096)])
    if len(key.unique()) == len(key):
        return []

    order = key.argsort(stable=True).tolist()
    first = order[0]
    pairs = []
    for row in order[1:]:
        if all(torch.equal(part[first], part[row]) for part in parts):
            pairs.append((first, row))
        else:
            first = row
    return sorted(pairs, key=lambda pair: pair[1])
