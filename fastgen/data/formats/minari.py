"""Minari: a folder with `data/metadata.json`, whose episodes lie in one HDF5 file, or in a folder
each of Arrow or Parquet files.

An episode has one observation more than actions; the last one, which no action follows, is left
out. Members of an observation that is a dict are columns of their own, `observations/goal`. What
Minari takes for pictures it packs as JPEG.
Written by https://github.com/Farama-Foundation/Minari (MIT).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._core.json_files import read_json
from ..._core.messages import brief
from .arrow import columns_of, files_of, numbers_of
from .hdf5 import open_minari_hdf5
from .parquet import parquet_columns, picture_pieces, read_columns
from .parts import check_part, check_unpacked, foreign, needed
from .pictures import PICTURES_AT_ONCE, unpacked
from .source import Column, Source

__all__ = ["open_minari"]

_MOST_EPISODES = 1 << 22


def open_minari(path: Path) -> Source:
    """A Minari data set.

    Args:
        path: its folder, or the folder `data` in it.

    Raises:
        ValueError: another format of its data, a file that is missing, damaged or contradicts
            `metadata.json`.
    """
    folder = path / "data" if (path / "data" / "metadata.json").is_file() else path
    where = folder / "metadata.json"
    metadata = read_json(where, only_finite=False)
    kind = metadata.get("data_format")
    if kind == "hdf5":
        source = open_minari_hdf5(folder / "main_data.hdf5")
    elif kind in ("arrow", "parquet"):
        source = _open_tables(folder, kind, metadata)
    else:
        raise ValueError(f"{where}: expected data_format hdf5, arrow or parquet, got {brief(kind)}")
    found = (len(source.ends), source.rows)
    said = (metadata.get("total_episodes"), metadata.get("total_steps"))
    if said != found:
        raise ValueError(
            f"{where}: expected total_episodes and total_steps {found}, as the episodes say, got "
            f"{brief(said)}; copy the data set anew"
        )
    return replace(source, path=path)


def _open_tables(folder: Path, kind: str, metadata: dict[str, Any]) -> Source:
    count = metadata.get("total_episodes")
    if not isinstance(count, int) or not 0 < count < _MOST_EPISODES:
        raise ValueError(
            f"{folder / 'metadata.json'}: expected total_episodes > 0, got {brief(count)}"
        )
    files = []
    lengths = []
    for index in range(count):
        where = folder / str(index) / "metadata.json"
        steps = read_json(where, only_finite=False).get("total_steps")
        if not isinstance(steps, int) or isinstance(steps, bool) or not 0 < steps < 1 << 40:
            raise ValueError(f"{where}: expected total_steps > 0, got {brief(steps)}")
        lengths.append(steps)
        parts = sorted((folder / str(index)).glob(f"part-*.{kind}"))
        if len(parts) != 1:
            raise ValueError(
                f"{folder / str(index)}: expected one file part-0.{kind}, got {len(parts)}; copy "
                "the data set anew"
            )
        files.append(parts[0])
    columns = _columns(files[0], kind)
    ends = torch.tensor(lengths).cumsum(0).tolist()

    def read(names: Sequence[str]) -> dict[str, Tensor]:
        return _read(files, lengths, kind, names)

    def pieces(name: str) -> Iterator[Tensor]:
        if columns[name].packed:
            yield from _pictures(files, lengths, kind, name)
            return
        for values in _episodes(files, lengths, kind, [name]):
            yield values[name]

    return Source(f"Minari {kind.capitalize()}", folder, columns, ends, read, pieces)


def _columns(path: Path, kind: str) -> dict[str, Column]:
    """The columns of an episode."""
    if kind == "parquet":
        return parquet_columns(path)[0]
    with _arrow(path) as file:
        return columns_of(_reader(file).schema)


def _numbers(path: Path, kind: str, names: Sequence[str]) -> dict[str, Tensor]:
    """Some columns of an episode, (n, *shape) each."""
    if kind == "parquet":
        return read_columns([path], names)
    with _table(path, names) as table:
        # Bytes become whole numbers of eight.
        check_unpacked(str(path), 8 * table.nbytes, path.stat().st_size)
        return {name: numbers_of(_member(table, name), f"{path}, {name}") for name in names}


@contextmanager
def _table(path: Path, names: Sequence[str]) -> Iterator[Any]:
    """Some columns of an Arrow file; others, which may be packed, are not unpacked."""
    whole = {name.partition("/")[0] for name in names}
    with _arrow(path) as file:
        table = _reader(file, whole).read_all()
        table.validate(full=True)
        yield table


@contextmanager
def _arrow(path: Path) -> Iterator[Any]:
    """An Arrow file, mapped into memory."""
    pa = needed("pyarrow", "parquet", "Arrow files")
    check_part(path)
    errors = (pa.ArrowException, ValueError, LookupError, OSError, TypeError, MemoryError)
    with foreign(path, "an Arrow file", errors), pa.memory_map(str(path)) as file:
        yield file


def _reader(file: Any, names: Collection[str] = ()) -> Any:
    """A reader of all columns, or of `names` alone."""
    pa = needed("pyarrow", "parquet", "Arrow files")
    reader = pa.ipc.open_file(file)
    if not names:
        return reader
    places = [reader.schema.get_field_index(name) for name in names]
    if min(places) < 0:
        raise LookupError(f"no column {', '.join(sorted(set(names) - set(reader.schema.names)))}")
    file.seek(0)
    return pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=sorted(places)))


def _read(
    files: Sequence[Path],
    lengths: Sequence[int],
    kind: str,
    names: Sequence[str],
) -> dict[str, Tensor]:
    pieces: dict[str, list[Tensor]] = {name: [] for name in names}
    for values in _episodes(files, lengths, kind, names):
        for name in names:
            pieces[name].append(values[name])
    for name, parts in pieces.items():
        if len({tuple(part.shape[1:]) for part in parts}) > 1:
            raise ValueError(f"{files[0].parent.parent}: expected {name} with rows of one shape")
    return {name: torch.cat(parts) for name, parts in pieces.items()}


def _pictures(
    files: Sequence[Path], lengths: Sequence[int], kind: str, name: str
) -> Iterator[Tensor]:
    """The pictures of one episode after another, without the last one of each."""
    for path, length in zip(files, lengths, strict=True):
        left = length
        for piece in _pictures_in(path, kind, name):
            yield piece[: max(left, 0)]
            left -= len(piece)
        if left != -1:
            raise _other_rows(path, length, length - left)


def _pictures_in(path: Path, kind: str, name: str) -> Iterator[Tensor]:
    """All pictures of an episode, some at a time."""
    if kind == "parquet":
        yield from picture_pieces([path], name)
        return
    with _table(path, [name]) as table:
        check_unpacked(str(path), table.nbytes, path.stat().st_size)
        values = _member(table, name)
        for start in range(0, len(values), PICTURES_AT_ONCE):
            part = values.slice(start, PICTURES_AT_ONCE)
            yield from unpacked(files_of(part), f"{path}, {name}")


def _episodes(
    files: Sequence[Path], lengths: Sequence[int], kind: str, names: Sequence[str]
) -> Iterator[dict[str, Tensor]]:
    """Some columns of one episode after another."""
    for path, length in zip(files, lengths, strict=True):
        values = _numbers(path, kind, names)
        for name in names:
            # Actions have one row more, as observations, which is padding.
            if len(values[name]) != length + 1:
                raise _other_rows(path, length, len(values[name]))
        yield {name: values[name][:length] for name in names}


def _other_rows(path: Path, length: int, found: int) -> ValueError:
    return ValueError(
        f"{path}: expected {length + 1} rows, one more than steps, got {found}; copy the data set "
        "anew"
    )


def _member(table: Any, name: str) -> Any:
    """A column of a table, or a field of a struct, `struct/field`, as one array."""
    first, *rest = name.split("/")
    values = table.column(first).combine_chunks()
    if hasattr(values, "chunks"):  # a table of several chunks may stay one
        values = values.chunk(0)
    for part in rest:
        values = values.field(part)
    return values
