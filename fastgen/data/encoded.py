"""Encoded observations: what a frozen encoder makes of the raw rows of a data set, once, kept in a
cache beside the data.

The cache is a folder `<name of the data>.encoded`, or one that is named. Each of its files holds
the features of one batch of rows and is called after a checksum of these rows and of the encoder.
It is written aside and renamed. So whatever is there is whole and of no other rows or weights: a
run that was killed goes on where it was, and of data to which rows were added only these are
encoded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._core.files import expand_home, named_path, remove_unfinished
from .._core.locks import locked_folder
from .._core.messages import brief
from .._core.modules import state_of
from .._core.row_encoding import RowKind, encode_rows
from .._core.tensor_files import load_tensors, save_tensors
from ..records.origin import digest
from .formats.batches import row_batches
from .formats.selection import Selection, chosen_actions, read_episodes
from .formats.source import VIDEO, Source

__all__ = ["RowEncoder", "encoded_episodes"]

_VERSION = 1


@dataclass(frozen=True)
class RowEncoder:
    """An encoder of raw rows.

    Attributes:
        module: frozen, in eval mode, where it computes; see `encode_rows`.
        columns: that it is called with.
        batch_size: rows that it is called with at once. A part of what it computes: kernels round
            otherwise for other sizes.
        cache: the folder of what was encoded; None: beside the data.
        told: what else it was made from, such as the arguments of its factory.
        rows: what it was called with, by column, once it was (`encoded_episodes`).
    """

    module: nn.Module
    columns: tuple[str, ...]
    batch_size: int = 256
    cache: str | None = None
    told: Any = None
    rows: dict[str, RowKind] = field(default_factory=dict, compare=False)

    @property
    def batch_bytes(self) -> int:
        """Bytes of the rows that it is called with at once."""
        each = (math.prod(kind.shape) * kind.dtype.itemsize for kind in self.rows.values())
        return self.batch_size * sum(each)

    def checksum(self) -> str:
        """Of all that its answers depend on but the rows."""
        state = state_of(self.module)
        device = next((value.device.type for value in state.values()), "cpu")
        kind = type(self.module)
        said = [_VERSION, kind.__module__, kind.__qualname__, self.told, self.columns]
        said += [self.batch_size, device, _said_of(state)]
        return hashlib.sha256(json.dumps(said, default=str).encode()).hexdigest()


def encoded_episodes(
    source: Source, encoder: RowEncoder, actions: Sequence[str] | None
) -> tuple[dict[str, Tensor], tuple[str, ...], list[str]]:
    """The arrays of `fastgen.data.windows.windows_of`, whose observations are features; the names
    of the actions' columns; what was done, a line.

    Args:
        source: the data set.
        encoder: of its rows.
        actions: as in `fastgen.data.formats.selection.select`.

    Raises:
        ValueError: a column that isn't there or isn't of arrays, an encoder that can't be called
            with them, a cache that can't be written.
    """
    names = chosen_actions(source, actions)
    _check_columns(source, encoder.columns)
    arrays = read_episodes(source, Selection(names, names, ()))
    batches = row_batches(source, sorted(encoder.columns), encoder.batch_size)
    features, made = _features(source.path, encoder, batches)
    arrays["observations"] = features
    note = (
        f"note: observations are {features.shape[1]} numbers a row that the encoder made of "
        f"{', '.join(encoder.columns)}; {made} of {source.rows} rows were encoded now"
    )
    return arrays, names, [*source.notes, note]


def _check_columns(source: Source, columns: Sequence[str]) -> None:
    """ValueError for a column that can't be read as an array."""
    if len(set(columns)) < len(columns):
        raise ValueError(
            f"expected teacher.encoder.columns with each column once, got {', '.join(columns)}"
        )
    for name in columns:
        column = source.columns.get(name)
        if column is None:
            raise ValueError(
                f"expected teacher.encoder.columns to name columns of {source.path}, got {name!r}; "
                f"there are {', '.join(source.columns)}"
            )
        if column.dtype == VIDEO:
            raise ValueError(
                f"expected teacher.encoder.columns of arrays or pictures, got {name!r}, whose rows "
                f"are frames of videos in {source.path}; record it with pictures in place of "
                "videos (use_videos=False of lerobot), or unpack the frames and save them as an "
                "array (M, height, width, 3) of uint8 in a .zarr, .hdf5 or .npz file"
            )
        if not column.is_array:
            raise ValueError(
                f"expected teacher.encoder.columns of arrays or pictures, got {name!r}, which is "
                f"{column.dtype or column.kind} in {source.path}; save its rows as an array, such "
                "as (M, height, width, 3) of uint8 in a .zarr, .hdf5 or .npz file"
            )


def _features(
    path: Path, encoder: RowEncoder, batches: Iterable[Mapping[str, Tensor]]
) -> tuple[Tensor, int]:
    """The features (M, d) of all rows, and of how many they were not known."""
    path = named_path(path)  # `.` has no name of its own
    home = path.with_name(f"{path.name}.encoded")
    if encoder.cache is not None:
        home = expand_home(encoder.cache)
    checksum = encoder.checksum()
    parts = []
    made = 0
    try:
        home.mkdir(parents=True, exist_ok=True)
        # Of several processes one encodes, and the others find what it wrote.
        with locked_folder(home):
            remove_unfinished(home)
            for batch in batches:
                for name, values in batch.items():
                    encoder.rows[name] = RowKind(tuple(values.shape[1:]), values.dtype)
                file = home / f"{_checksum_of(batch, checksum)}.safetensors"
                part = _kept(file, len(batch[encoder.columns[0]]))
                if part is None:
                    part = encode_rows(encoder.module, encoder.columns, batch)
                    save_tensors(file, {"features": part})
                    made += len(part)
                parts.append(part)
    except OSError as error:
        raise ValueError(
            f"{home}: expected a folder that can be written, for what the encoder made, got: "
            f"{brief(error)}; teacher.encoder.cache names another one"
        ) from error
    if len({(part.shape[1], part.dtype) for part in parts}) > 1:
        raise ValueError("expected an encoder that answers as many numbers to any rows")
    return torch.cat(parts), made


def _kept(file: Path, rows: int) -> Tensor | None:
    """What was kept of a batch of so many rows; None if nothing or nothing whole was."""
    if not file.exists():
        return None
    try:
        found = load_tensors(file).get("features")
    except ValueError:
        return None
    return found if found is not None and found.ndim == 2 and len(found) == rows else None


def _checksum_of(batch: Mapping[str, Tensor], encoder: str) -> str:
    return hashlib.sha256(json.dumps([encoder, _said_of(batch)]).encode()).hexdigest()


def _said_of(tensors: Mapping[str, Tensor]) -> list[Any]:
    """The names of tensors, sorted, and a checksum of them in this order."""
    names = sorted(tensors)
    return [names, digest(tensors[name] for name in names)]
