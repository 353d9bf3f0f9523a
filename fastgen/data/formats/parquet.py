"""Parquet: plain columns of a table, and the columns of several files one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._core.messages import first_names
from .arrow import columns_of, files_of, numbers_of
from .csv_files import together
from .parts import check_part, check_unpacked, ends_of, foreign, needed
from .pictures import PICTURES_AT_ONCE, unpacked
from .source import EPISODE_COLUMNS, Column, Source

__all__ = [
    "column_pieces",
    "open_parquet",
    "opened",
    "parquet_columns",
    "picture_pieces",
    "read_columns",
]

# Rows that are unpacked at once, and numbers in them.
_BATCH = 1 << 16
_MOST_NUMBERS = 1 << 20


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A Parquet file, as `pyarrow.parquet.ParquetFile`.

    Raises:
        ValueError: missing, a pointer to a file, damaged (also while it is read inside), or there
            is no pyarrow.
    """
    pa = needed("pyarrow", "parquet", "Parquet files")
    parquet = needed("pyarrow.parquet", "parquet", "Parquet files")
    check_part(path)
    # pyarrow's own errors are ValueError, KeyError, OSError or ArrowException.
    errors = (pa.ArrowException, ValueError, LookupError, OSError, TypeError, MemoryError)
    with foreign(path, "a Parquet file", errors):
        with parquet.ParquetFile(path, memory_map=True) as file:
            yield file


def parquet_columns(path: Path) -> tuple[dict[str, Column], int]:
    """The columns of a Parquet file and the number of its rows; errors as `opened`."""
    with opened(path) as file:
        return columns_of(file.schema_arrow), file.metadata.num_rows


def read_columns(paths: Sequence[Path], names: Sequence[str]) -> dict[str, Tensor]:
    """The numbers of some columns of several files, joined, (M, *shape) each.

    A file is read in pieces, so that little more than what is returned is held at once.

    Raises:
        ValueError: as `opened`; or a column that is missing, has values missing, or isn't of one
            length; or more numbers than there is room for.
    """
    pieces: dict[str, list[Tensor]] = {name: [] for name in names}
    for piece in column_pieces(paths, names, whole=True):
        for name in names:
            pieces[name].append(piece[name])
    return {name: _joined(name, parts) for name, parts in pieces.items()}


def column_pieces(
    paths: Sequence[Path], names: Sequence[str], *, whole: bool = False
) -> Iterator[dict[str, Tensor]]:
    """The numbers of some columns of several files, some rows at a time; errors as `read_columns`.

    Args:
        whole: there must be room for all of them.
    """
    for path in paths:
        with opened(path) as file:
            _check_room(path, file, names, whole=whole)
            there = set(file.schema_arrow.names)
            wanted = sorted({n if n in there else n.partition("/")[0] for n in names})
            rows = 0
            numbers = _numbers_in(file.metadata, names) // max(1, file.metadata.num_rows)
            batch_size = max(1, min(_BATCH, _MOST_NUMBERS // max(1, numbers)))
            for batch in file.iter_batches(batch_size, columns=wanted, use_threads=False):
                rows += len(batch)
                if rows > file.metadata.num_rows:
                    raise ValueError(f"{path}: expected {file.metadata.num_rows} rows, got more")
                yield {name: numbers_of(_member(batch, name), f"{path}, {name}") for name in names}
            if rows != file.metadata.num_rows:
                raise ValueError(f"{path}: expected {file.metadata.num_rows} rows, got {rows}")


def picture_pieces(
    paths: Sequence[Path], name: str, shape: Sequence[int] | None = None
) -> Iterator[Tensor]:
    """The pictures of a column of several files, (n, height, width, channels), some at a time.

    Args:
        shape: as in `unpacked`.

    Raises:
        ValueError: as `opened` and `unpacked`; or a column that is missing or of something else.
    """
    for path in paths:
        with opened(path) as file:
            column = columns_of(file.schema_arrow).get(name)
            if column is None or not column.packed:
                raise ValueError(
                    f"{path}: expected the column {name} of bytes of pictures, got "
                    f"{'none' if column is None else column.dtype}"
                )
            wanted, stored = _bytes_in(file.metadata, name)
            check_unpacked(f"{path}, {name}", wanted, min(stored, path.stat().st_size), whole=False)
            first = name if name in file.schema_arrow.names else name.partition("/")[0]
            for batch in file.iter_batches(PICTURES_AT_ONCE, columns=[first], use_threads=False):
                yield from unpacked(files_of(_member(batch, name)), f"{path}, {name}", shape)


def _joined(name: str, parts: list[Tensor]) -> Tensor:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise ValueError(f"expected {name} with rows of one shape, got {sorted(shapes)}")
    return torch.cat(parts) if parts else torch.zeros(0)


def _member(batch: Any, name: str) -> Any:
    """A column of a batch, or a field of a struct, `struct/field`."""
    if name in batch.schema.names:
        return batch.column(name)
    first, *rest = name.split("/")
    values = batch.column(first)
    for part in rest:
        values = values.field(part)
    return values


def _check_room(path: Path, file: Any, names: Sequence[str], *, whole: bool) -> None:
    """ValueError where the file promises more than it can hold or, as a whole, than there is room
    for."""
    columns = columns_of(file.schema_arrow)
    missing = [name for name in names if name not in columns]
    if missing:
        raise ValueError(
            f"{path}: expected the columns {', '.join(missing)}, got {first_names(columns)}"
        )
    wanted = 8 * _numbers_in(file.metadata, names)
    check_unpacked(str(path), wanted, path.stat().st_size, whole=whole)


def _numbers_in(metadata: Any, names: Sequence[str]) -> int:
    """How many numbers of these columns a file says it holds."""
    starts = {*names, *(name.replace("/", ".") for name in names)}
    count = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            column = row_group.column(index)
            path = column.path_in_schema
            if any(path == start or path.startswith(f"{start}.") for start in starts):
                count += column.num_values
    return max(count, metadata.num_rows)


def _bytes_in(metadata: Any, name: str) -> tuple[int, int]:
    """How many bytes of a column a file says it holds, unpacked and as they are stored; of
    pictures these are the bytes of their files."""
    start = name.replace("/", ".")
    unpacked_bytes = stored = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            column = row_group.column(index)
            if column.path_in_schema == start or column.path_in_schema.startswith(f"{start}."):
                unpacked_bytes += column.total_uncompressed_size
                stored += column.total_compressed_size
    return unpacked_bytes, stored


def open_parquet(path: Path) -> Source:
    """The rows of one Parquet file. Columns `x_0`, `x_1`, ... are one column `x`, as in CSV.

    Raises:
        ValueError: as `opened`; or no column with the number of each row's episode, or episodes in
            several places.
    """
    found, _ = parquet_columns(path)
    groups = together(list(found))
    columns = {name: _grouped(name, groups, found) for name in groups}
    key = next((name for name in EPISODE_COLUMNS if name in found), None)
    if key is None:
        raise ValueError(
            f"{path}: expected a column {' or '.join(EPISODE_COLUMNS)} with the number of each "
            f"row's episode, got {first_names(found)}; add one"
        )
    ends = ends_of(read_columns([path], [key])[key], f"{path}, {key}")

    def read(names: Sequence[str]) -> dict[str, Tensor]:
        members = [member for name in names for member in groups[name]]
        values = read_columns([path], members)
        return {name: _assembled(name, groups, values) for name in names}

    def pieces(name: str) -> Iterator[Tensor]:
        if columns[name].packed:
            yield from picture_pieces([path], name)
            return
        for values in column_pieces([path], groups[name]):
            yield _assembled(name, groups, values)

    return Source("Parquet", path, columns, ends, read, pieces)


def _grouped(name: str, groups: Mapping[str, list[str]], found: Mapping[str, Column]) -> Column:
    members = [found[member] for member in groups[name]]
    if groups[name] == [name]:
        return members[0]
    kinds = {member.kind for member in members}
    plain = kinds == {"numbers"} and all(member.shape == () for member in members)
    return Column("numbers" if plain else "other", (len(members),), members[0].dtype)


def _assembled(name: str, groups: Mapping[str, list[str]], values: dict[str, Tensor]) -> Tensor:
    members = [values[member] for member in groups[name]]
    if groups[name] == [name]:
        return members[0]
    if len({member.dtype for member in members}) > 1:
        # float64 holds what float32 and all whole numbers of a recording hold.
        members = [member.double() for member in members]
    return torch.stack(members, 1)
