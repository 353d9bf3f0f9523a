"""HDF5 files in which each episode is a group: robomimic's, and those of Minari.

A column is a dataset of such a group, named by its path there (`obs/eef_pos`). Only hard links
inside the file are followed, and nothing that needs a pickle is read. Read by h5py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._core.messages import brief, first_names
from .parts import check_part, check_unpacked, foreign, kept_dtype, kept_numbers, needed
from .pictures import MOST_BYTES, PICTURES_AT_ONCE, unpacked
from .source import Column, Source, kind_of_rows

__all__ = ["open_hdf5", "open_minari_hdf5"]

_ERRORS = (ValueError, LookupError, OSError, TypeError, RuntimeError, MemoryError, AttributeError)
_MOST_DEPTH = 8
# Numbers that are read at once.
_PIECE = 1 << 20
_MOST_COLUMNS = 4096
_NUMBER = re.compile(r"\D+(\d{1,9})")


@dataclass(frozen=True)
class _Kind:
    """How a format lays out its episodes.

    Attributes:
        name: of the format.
        groups: of a file, name -> the group of each episode.
        rows: attribute of an episode with the number of its rows.
        spare: rows that a column may have more, such as the observation after the last action.
    """

    name: str
    groups: Callable[[Any], dict[str, Any]]
    rows: str
    spare: int


def open_hdf5(path: Path) -> Source:
    """An HDF5 file of robomimic's (`data/demo_0/actions`) or of Minari's (`episode_0/actions`).

    Raises:
        ValueError: neither of the two, a damaged file, episodes that differ in their columns, or
            there is no h5py.
    """
    with _opened(path) as file:
        if "data" in file:
            kind = _Kind("robomimic HDF5", _demos, "num_samples", 0)
        elif any(name.startswith("episode_") for name in file):
            kind = _Kind("Minari HDF5", _numbered_episodes, "total_steps", 1)
        else:
            raise ValueError(
                f"{path}: expected data/demo_0 (robomimic) or episode_0 (Minari), got "
                f"{first_names(file) or 'nothing'}"
            )
    return _open(path, kind)


def open_minari_hdf5(path: Path) -> Source:
    """The `main_data.hdf5` of a Minari data set; errors as `open_hdf5`."""
    return _open(path, _Kind("Minari HDF5", _numbered_episodes, "total_steps", 1))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    h5py = needed("h5py", "hdf5", "HDF5 files")
    check_part(path)
    with foreign(path, "an HDF5 file", _ERRORS), h5py.File(path, "r") as file:
        yield file


def _demos(file: Any) -> dict[str, Any]:
    return _sorted(_group(file, "data"), "demo")


def _numbered_episodes(file: Any) -> dict[str, Any]:
    return _sorted(file, "episode")


def _group(parent: Any, name: str) -> Any:
    """A group or dataset that lies in this file."""
    h5py = needed("h5py", "hdf5", "HDF5 files")

    link = parent.get(name, getlink=True) if name in parent else None
    if link is None:
        raise ValueError(
            f"{parent.file.filename}: expected {name[:80]} in {parent.name[:80]}, got "
            f"{first_names(parent) or 'nothing'}"
        )
    if not isinstance(link, h5py.HardLink):
        raise ValueError(
            f"{parent.file.filename}: expected {name[:80]} in this file, got a link elsewhere"
        )
    return parent[name]


def _sorted(parent: Any, stem: str) -> dict[str, Any]:
    """The groups `<stem>_0`, `<stem>_1`, ... by their number."""
    h5py = needed("h5py", "hdf5", "HDF5 files")

    if not isinstance(parent, h5py.Group):
        raise ValueError(
            f"{parent.file.filename}: expected {parent.name[:80]} to be the group of {stem}_0, "
            f"{stem}_1, ..., got an array of shape {parent.shape}"
        )
    numbered = []
    for name in parent:
        found = _NUMBER.fullmatch(name)
        if found and name.startswith(f"{stem}_"):
            numbered.append((int(found[1]), name))
    if not numbered:
        raise ValueError(
            f"{parent.file.filename}: expected groups {stem}_0, {stem}_1, ..., got "
            f"{first_names(parent) or 'nothing'}"
        )
    groups = {name: _group(parent, name) for _, name in sorted(numbered)}
    for name, group in groups.items():
        if not isinstance(group, h5py.Group):
            raise ValueError(f"{parent.file.filename}: expected a group {name}, got an array")
    return groups


def _open(path: Path, kind: _Kind) -> Source:
    notes = []
    with _opened(path) as file:
        groups = kind.groups(file)
        lengths = [_length(path, name, group, kind) for name, group in groups.items()]
        columns = _columns(next(iter(groups.values())), lengths[0], kind)
        passed = _passed_over(next(iter(groups.values())).parent, groups)
        if passed:
            notes.append(
                f"warning: {first_names(passed)} are not named as episodes, and left out; name "
                "them as the others to use them"
            )
        if "mask" in file and hasattr(file["mask"], "keys"):
            notes.append(
                f"note: all episodes are used; the file's own splits ({first_names(file['mask'])}) "
                "are not"
            )
    ends = torch.tensor(lengths).cumsum(0).tolist()

    def read(names: Sequence[str]) -> dict[str, Tensor]:
        return _read(path, kind, columns, ends, names)

    def pieces(name: str) -> Iterator[Tensor]:
        read_pieces = _pictures if columns[name].packed else _pieces
        return read_pieces(path, kind, columns[name], ends, name)

    return Source(kind.name, path, columns, ends, read, pieces, notes=tuple(notes))


def _passed_over(parent: Any, groups: dict[str, Any]) -> list[str]:
    """The groups beside the episodes that hold actions, too."""
    others = [name for name in parent if name not in groups]
    return [name for name in others if f"{name}/actions" in parent]


def _length(path: Path, name: str, group: Any, kind: _Kind) -> int:
    """The rows of an episode: as its attribute says, or as many as there are actions."""
    said = group.attrs.get(kind.rows)
    length = int(said) if said is not None else _group(group, "actions").shape[0]
    if not 0 < length < 1 << 40:
        raise ValueError(f"{path}: expected rows in {name}, got {length}")
    return length


def _columns(group: Any, length: int, kind: _Kind) -> dict[str, Column]:
    """The columns of an episode: datasets with a row for each of its steps."""
    columns: dict[str, Column] = {}
    for name, dataset in _datasets(group, "", 0):
        if dataset.shape and length <= dataset.shape[0] <= length + kind.spare:
            columns[name] = _column(dataset)
        if len(columns) > _MOST_COLUMNS:
            raise ValueError(f"{group.file.filename}: expected at most {_MOST_COLUMNS:,} columns")
    return columns


def _datasets(group: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    h5py = needed("h5py", "hdf5", "HDF5 files")

    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink) or depth > _MOST_DEPTH:
            continue
        found = group[name]
        if isinstance(found, h5py.Group):
            yield from _datasets(found, f"{prefix}{name}/", depth + 1)
        elif isinstance(found, h5py.Dataset):
            yield f"{prefix}{name}", found


def _column(dataset: Any) -> Column:
    h5py = needed("h5py", "hdf5", "HDF5 files")

    dtype = dataset.dtype
    shape = tuple(dataset.shape[1:])
    if h5py.check_string_dtype(dtype) is not None or dtype.kind in "SU":
        return Column("text", shape, "text")
    if dtype.kind not in "fiub":
        # What Minari keeps pictures in are lists of bytes of different length.
        is_bytes = h5py.check_vlen_dtype(dtype) == "uint8" and not shape
        return Column("other", shape, "binary" if is_bytes else str(dtype)[:40], packed=is_bytes)
    return Column(kind_of_rows(shape), shape, str(dtype))


def _read(
    path: Path, kind: _Kind, columns: dict[str, Column], ends: Sequence[int], names: Sequence[str]
) -> dict[str, Tensor]:
    """Some columns of all episodes, (M, *shape) each, in place: nothing else is held."""
    import numpy as np

    with _opened(path) as file:
        groups = kind.groups(file)
        values = {}
        for name in names:
            column = columns[name]
            parts = [_dataset(path, e, group, name, column) for e, group in groups.items()]
            dtype = _common_dtype(parts)
            wanted = ends[-1] * column.width * dtype.itemsize
            check_unpacked(f"{path}, {name}", wanted, _stored(parts))
            rows = np.empty((ends[-1], *column.shape), dtype)
            for part, start, stop in zip(parts, [0, *ends[:-1]], ends, strict=True):
                _check_part(path, part, stop - start, column, kind)
                rows[start:stop] = kept_numbers(part[: stop - start], f"{path}, {part.name}")
            values[name] = torch.from_numpy(rows)
        return values


def _pieces(
    path: Path, kind: _Kind, column: Column, ends: Sequence[int], name: str
) -> Iterator[Tensor]:
    """A column of all episodes, some rows at a time."""
    most = max(1, _PIECE // max(1, column.width))
    with _opened(path) as file:
        groups = kind.groups(file)
        parts = [_dataset(path, e, group, name, column) for e, group in groups.items()]
        dtype = _common_dtype(parts)
        wanted = ends[-1] * column.width * dtype.itemsize
        check_unpacked(f"{path}, {name}", wanted, _stored(parts), whole=False)
        for part, start, stop in zip(parts, [0, *ends[:-1]], ends, strict=True):
            _check_part(path, part, stop - start, column, kind)
            for at in range(0, stop - start, most):
                numbers = part[at : min(at + most, stop - start)]
                kept = kept_numbers(numbers, f"{path}, {part.name}")
                yield torch.from_numpy(kept.astype(dtype, copy=False))


def _pictures(
    path: Path, kind: _Kind, column: Column, ends: Sequence[int], name: str
) -> Iterator[Tensor]:
    """The pictures of all episodes, some rows at a time."""
    with _opened(path) as file:
        starts = [0, *ends[:-1]]
        for (episode, group), start, stop in zip(
            kind.groups(file).items(), starts, ends, strict=True
        ):
            part = _dataset(path, episode, group, name, column)
            _check_part(path, part, stop - start, column, kind)
            if len(part.shape) == 2:
                _check_files(f"{path}, {part.name}", part)
            for at in range(0, stop - start, PICTURES_AT_ONCE):
                files = list(part[at : min(at + PICTURES_AT_ONCE, stop - start)])
                yield from unpacked(files, f"{path}, {part.name}")


def _check_files(where: str, part: Any) -> None:
    """ValueError for files of one length, (rows, bytes), of which some at once are too much."""
    check_unpacked(where, part.size, part.id.get_storage_size(), whole=False)
    if part.shape[1] > MOST_BYTES:
        raise ValueError(
            f"{where}: expected files of pictures of at most {MOST_BYTES:,} bytes, got "
            f"{part.shape[1]:,}; save them smaller"
        )


def _common_dtype(parts: Sequence[Any]) -> Any:
    """That of a column: an episode of whole numbers alone may be saved as such, beside others that
    are not."""
    import numpy as np

    return np.result_type(*{kept_dtype(part.dtype) for part in parts})


def _stored(parts: Sequence[Any]) -> int:
    return sum(part.id.get_storage_size() for part in parts)


def _check_part(path: Path, part: Any, length: int, column: Column, kind: _Kind) -> None:
    """ValueError unless a column of an episode has rows of its shape, and as many as steps."""
    extra = part.shape[0] - length if part.shape else -1
    # Files of pictures that happen to be of one length are an array of two axes.
    is_files = column.packed and part.dtype == "uint8" and len(part.shape) == 2
    fits = is_files or tuple(part.shape[1:]) == column.shape
    if not fits or not 0 <= extra <= kind.spare:
        raise ValueError(
            f"{path}: expected {part.name} of shape {(length, *column.shape)}, got {part.shape}"
        )


def _dataset(path: Path, episode: str, group: Any, name: str, column: Column) -> Any:
    """A column of one episode, whose numbers lie in this file."""
    h5py = needed("h5py", "hdf5", "HDF5 files")

    found = group
    for part in name.split("/"):
        if not isinstance(found, h5py.Group) or part not in found:
            raise ValueError(
                f"{path}: expected {name} in every episode, got none in {episode}; leave that "
                "episode out or fill it"
            )
        found = _group(found, part)
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{path}: expected {name} of {episode} to be numbers, got a group")
    if found.external or found.is_virtual:
        raise ValueError(f"{path}: expected {name} of {episode} in this file, got one elsewhere")
    is_bytes = column.packed and h5py.check_vlen_dtype(found.dtype) == "uint8"
    if found.dtype.kind not in "fiub" and not is_bytes:
        raise ValueError(
            f"{path}: expected numbers in {name} of {episode}, got {brief(found.dtype)}"
        )
    return found
