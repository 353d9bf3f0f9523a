"""Which columns of a data set are actions and which are observations, and those columns as
tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..._core.made_rows import MadeRows, RowMaker
from ..._core.messages import first_names, listed
from ..precision import exact_numbers
from .kept_rows import kept_columns
from .source import BOOKKEEPING, STATES, VIDEO, Column, Source

__all__ = [
    "MOST_NUMBERS",
    "Selection",
    "channel_names",
    "chosen_actions",
    "first_rows",
    "for_an_encoder",
    "is_large",
    "read_episodes",
    "select",
]

# Rows of more numbers than this are mapped.
MOST_NUMBERS = 1 << 26

_ACTIONS = ("action", "actions")
# Where no observations are named: all of `STATES` that are there, else the first of these.
_OBSERVATIONS = ("observations", "observation", "state", "states", "obs")
# Parts of names that mean padding.
_PADDING = ("mask", "is_pad", "padding")


@dataclass(frozen=True)
class Selection:
    """The columns that are used, by name in the order of their channels, and what is said of the
    choice."""

    actions: tuple[str, ...]
    observations: tuple[str, ...]
    notes: tuple[str, ...]


def select(
    source: Source,
    actions: Sequence[str] | None = None,
    observations: Sequence[str] | None = None,
) -> Selection:
    """The columns of actions and of observations.

    Args:
        source: the data set.
        actions: names of columns; None: `action`, or `actions`.
        observations: names of columns; None: `observation.state` and
            `observation.environment_state`, as far as they are there, or else the first of
            `observations`, `observation`, `state`, `states`, `obs`.

    Raises:
        ValueError: a name that isn't there, comes twice, or isn't of numbers; or none was given,
            and no column has one of those names.
    """
    chosen_actions = _checked(source, "actions", actions, _default(source, _ACTIONS))
    states = [name for name in STATES if name in source.columns]
    usual = states or _default(source, _OBSERVATIONS)
    chosen_observations = _checked(source, "observations", observations, usual)
    notes = list(source.notes)
    if actions is None or observations is None:
        notes.append(
            f"note: actions are {', '.join(chosen_actions)}, observations are "
            f"{', '.join(chosen_observations)}; data.actions and data.observations choose others"
        )
    notes += _left_out(source.columns, {*chosen_actions, *chosen_observations})
    return Selection(tuple(chosen_actions), tuple(chosen_observations), tuple(notes))


def is_large(source: Source, names: Sequence[str]) -> bool:
    """Whether the rows of these columns are more than memory should hold."""
    widths = 0
    for name in names:
        width = source.columns[name].width
        if not width and source.pieces is not None:  # of lists the file may not say the length
            width = first_rows(source, [name])[name][:1].numel()
        widths += width
    return source.rows * widths > MOST_NUMBERS


def first_rows(source: Source, names: Sequence[str]) -> dict[str, Tensor]:
    """The first piece of each of these columns."""
    assert source.pieces is not None
    return {name: next(source.pieces(name)) for name in names}


def chosen_actions(source: Source, actions: Sequence[str] | None = None) -> tuple[str, ...]:
    """The columns of actions alone; arguments and errors as `select`."""
    return tuple(_checked(source, "actions", actions, _default(source, _ACTIONS)))


def read_episodes(
    source: Source, selection: Selection, cache: str | Path | None = None
) -> dict[str, Tensor]:
    """The arrays of `fastgen.data.windows.windows_of`: `actions` (M, d_x), `observations` (M, d_z)
    and `episode_ends` (E,). Columns are joined in their order; a row of several axes is flattened.

    Of more than 2^26 numbers the columns are mapped, and rows are joined when they are taken.

    Args:
        cache: as `kept_columns`.

    Raises:
        ValueError: as `kept_columns`, or a column of another number of rows.
    """
    names = sorted({*selection.actions, *selection.observations})
    large = is_large(source, names)
    if large and source.pieces is not None:
        arrays = kept_columns(source, names, cache)
    else:
        arrays = source.read(names)
    for name in names:
        if len(arrays[name]) != source.rows:
            raise ValueError(
                f"{source.path}: expected {source.rows} rows of {name}, got {len(arrays[name])}"
            )
    found = {}
    for key, columns in (("actions", selection.actions), ("observations", selection.observations)):
        side = _SideBySide([arrays[name] for name in columns], columns)
        found[key] = MadeRows(side) if large else side.take(slice(None))
    return {**found, "episode_ends": torch.tensor(source.ends)}


class _SideBySide(RowMaker):
    """The channels of some columns (M, *shape), side by side: (M, d)."""

    def __init__(self, parts: Sequence[Tensor], names: Sequence[str]) -> None:
        self._parts = parts
        self._names = names
        like = self.take(slice(1))
        self.shape = (len(parts[0]), like.shape[1])
        self.dtype = like.dtype

    def take(self, rows: Tensor | slice) -> Tensor:
        return _joined([part[rows] for part in self._parts], self._names)

    def contents(self) -> Iterator[Tensor]:
        yield from self._parts


def channel_names(source: Source, columns: Sequence[str]) -> list[str]:
    """The names of the channels of joined columns, as the file gives them. A column of one number
    without a name gives it its own, any other its name and a number, such as action_2."""
    found: list[str] = []
    for name in columns:
        column = source.columns[name]
        if column.channels and len(column.channels) == column.width:
            found += column.channels
        elif column.width == 1:
            found.append(name)
        else:
            found += [f"{name}_{index}" for index in range(column.width)]
    return found


def _default(source: Source, names: Sequence[str]) -> list[str]:
    """The first of the names that is a column of numbers, alone."""
    return [name for name in names if name in source.columns][:1]


def _checked(
    source: Source, key: str, given: Sequence[str] | None, usual: Sequence[str]
) -> list[str]:
    """The names that were given, or the usual ones."""
    names = list(usual if given is None else given)
    usable = [
        name
        for name, column in source.columns.items()
        if column.kind == "numbers" and name not in BOOKKEEPING
    ]
    if not names:
        raise ValueError(
            f"expected data.{key}, names of columns of {source.path}, got none, and none has a "
            f"usual name; there are {first_names(usable, 30) or 'none of numbers'}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"expected data.{key} with each column once, got {', '.join(names)}")
    for name in names:
        if name not in source.columns:
            raise ValueError(
                f"expected data.{key} to name columns of {source.path}, got {name!r}; there are "
                f"{first_names(usable, 30) or 'none of numbers'}"
            )
        column = source.columns[name]
        if column.kind != "numbers":
            raise ValueError(
                f"expected data.{key} to name columns of numbers, got {name!r}, which is "
                f"{_described(column)}; there are {first_names(usable, 30) or 'none of numbers'}"
            )
    return names


def _described(column: Column) -> str:
    return {"image": "an image", "text": "text"}.get(column.kind, column.dtype or column.kind)


def _left_out(columns: Mapping[str, Column], used: Collection[str]) -> list[str]:
    """Lines on the columns that are not used."""
    unused = {name: column for name, column in columns.items() if name not in used}
    notes = []
    by_kind = {"image": [], "text": [], "other": [], "numbers": []}
    for name, column in unused.items():
        if name not in BOOKKEEPING:
            by_kind[column.kind].append(name)
    foreign = [
        f"{', '.join(by_kind[kind][:6])} ({what})"
        for kind, what in (("image", "images"), ("text", "text"), ("other", "no numbers"))
        if by_kind[kind]
    ]
    if foreign:
        notes.append(f"note: left out, since they aren't columns of numbers: {'; '.join(foreign)}")
    notes += for_an_encoder(unused)
    if by_kind["numbers"]:
        notes.append(f"note: left out, not chosen: {listed(by_kind['numbers'], 8)}")
    padding = [n for n in by_kind["numbers"] if any(part in n.lower() for part in _PADDING)]
    if padding:
        notes.append(
            f"warning: {', '.join(padding[:3])} may mark padding, which is learned as data here; "
            "save episodes without padded rows"
        )
    return notes


def for_an_encoder(columns: Mapping[str, Column]) -> list[str]:
    """A line on the pictures among some columns: how they would be used."""
    notes = []
    pictures = [name for name, column in columns.items() if column.kind != "numbers"]
    usable = [name for name in pictures if columns[name].is_array]
    if usable:
        notes.append(
            "note: an encoder makes observations of pictures: teacher.encoder.columns="
            f"'[{', '.join(usable[:6])}]'"
        )
    videos = [name for name in pictures if columns[name].dtype == VIDEO]
    if videos:
        notes.append(
            f"note: {', '.join(videos[:6])}: no videos are read; record pictures in their place "
            "(use_videos=False of lerobot), or save the frames as an array of uint8"
        )
    return notes


def _joined(parts: Sequence[Tensor], names: Sequence[str]) -> Tensor:
    """The channels of some columns (M, *shape), side by side: (M, d)."""
    flat = []
    for name, part in zip(names, parts, strict=True):
        # Yes-or-no channels, as of a gripper, are 0 and 1.
        part = part.long() if part.dtype == torch.bool else exact_numbers(name, part)
        flat.append(part.flatten(1) if part.ndim > 1 else part[:, None])
    if len({part.dtype for part in flat}) > 1:
        # float64 holds what float32 and all whole numbers of a recording hold.
        flat = [part.double() for part in flat]
    return flat[0] if len(flat) == 1 else torch.cat(flat, 1)
