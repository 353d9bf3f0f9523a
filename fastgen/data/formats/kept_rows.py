"""Rows that memory doesn't hold: each column copied once, in pieces, to an array on the disk, which
is mapped.

The arrays lie beside the data set, `<its name>.rows/<state>/<column>.npy`. The state is a checksum
of the sizes and times of its files, so that data which change are copied anew; what was kept of an
earlier state is removed, and nothing else that lies there. An array is written aside and renamed,
under a lock: a copy that is killed leaves nothing that is taken for whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import torch
from torch import Tensor

from ..._core.files import expand_home, named_path, new_file, remove_unfinished
from ..._core.locks import locked_folder
from ..._core.mapped import map_npy
from ..._core.messages import brief
from .source import Source

__all__ = ["kept_columns"]

_VERSION = 1
_MOST_NAME = 120
# Of a checksum, in the name of a state's folder.
_DIGITS = 16
_ELSEWHERE = "data.cache names another folder for them"


def kept_columns(
    source: Source, names: Sequence[str], cache: str | Path | None = None
) -> dict[str, Tensor]:
    """Some columns of a data set, (M, *shape) each, mapped: they can be read, not written.

    Args:
        source: with `pieces`.
        names: of columns of numbers.
        cache: a folder for the copies; None: beside the data set.

    Raises:
        ValueError: a folder that can't be written, no room on the disk, or pieces that don't fit
            one another.
    """
    home = _home(source.path, cache)
    folder = home / _state(source, home)[:_DIGITS]
    with _writing(home):
        folder.mkdir(parents=True, exist_ok=True)
        with locked_folder(home):
            remove_unfinished(folder)
            for other in home.iterdir():
                if other.name != folder.name and _is_state(other):
                    shutil.rmtree(other, ignore_errors=True)
            for name in names:
                path = folder / _file_of(name)
                if not _is_kept(path, source.rows):
                    _keep(source, name, path)
            # Under the lock, since who finds other data here removes these files.
            return {name: map_npy(folder / _file_of(name)) for name in names}


def _home(path: Path, cache: str | Path | None) -> Path:
    path = named_path(path)  # `.` has no name of its own
    if cache is None:
        return path.with_name(f"{path.name}.rows")
    where = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    return expand_home(cache) / f"{path.name}-{where}.rows"


def _state(source: Source, home: Path) -> str:
    """A checksum of the sizes and times of a data set's files, without the copies, which may lie
    among them."""
    files = []
    for file in _files(source.path, home.resolve()):
        found = file.stat()
        files.append([str(file.relative_to(source.path)), found.st_size, found.st_mtime_ns])
    said = [_VERSION, source.format, source.rows, sorted(files)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _is_state(folder: Path) -> bool:
    """Whether it is a folder of copies by its name and all that it holds: others aren't ours."""
    named = re.fullmatch(f"[0-9a-f]{{{_DIGITS}}}", folder.name) is not None
    return named and folder.is_dir() and all(".npy" in path.name for path in folder.iterdir())


def _files(path: Path, copies: Path) -> Iterator[Path]:
    """The file, or those of the folder but for what lies in `copies`."""
    if not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if (Path(folder) / name).resolve() != copies]
        yield from (Path(folder) / name for name in names)


def _file_of(name: str) -> str:
    """A file's name for a column's."""
    plain = quote(name, safe=" ")
    if len(plain) > _MOST_NAME or plain.startswith("."):
        plain = hashlib.sha256(name.encode()).hexdigest()
    return f"{plain}.npy"


@contextmanager
def _writing(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{home}: expected a folder that can be written, to keep rows that memory has no room "
            f"for, got: {brief(error)}; {_ELSEWHERE}"
        ) from error


class _Wider(Exception):
    """A piece needs another dtype than the one before it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(str(dtype))
        self.dtype = dtype


def _keep(source: Source, name: str, path: Path) -> None:
    """Copy a column to `path`; again where a later piece needs a wider dtype."""
    dtype = None
    while True:
        try:
            with new_file(path) as partial, open(partial, "wb") as file:
                _copy(source, name, file, dtype)
            return
        except _Wider as wider:
            dtype = wider.dtype


def _copy(source: Source, name: str, file: BinaryIO, dtype: torch.dtype | None) -> None:
    assert source.pieces is not None
    shape = None
    rows = 0
    for piece in source.pieces(name):
        dtype = dtype or piece.dtype
        if torch.promote_types(dtype, piece.dtype) != dtype:
            raise _Wider(torch.promote_types(dtype, piece.dtype))
        if shape is None:
            shape = tuple(piece.shape[1:])
            _begin(file, source, name, (source.rows, *shape), dtype)
        rows += len(piece)
        if tuple(piece.shape[1:]) != shape or rows > source.rows:
            raise ValueError(
                f"{source.path}: expected {source.rows} rows of {name} of shape {shape}, got rows "
                f"of {tuple(piece.shape[1:])} up to {rows}"
            )
        file.write(piece.to(dtype).contiguous().numpy().data)
    if rows != source.rows:
        raise ValueError(f"{source.path}: expected {source.rows} rows of {name}, got {rows}")


def _begin(
    file: BinaryIO, source: Source, name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Write what stands before the numbers of an array, where there is room for them."""
    import numpy as np

    plain = torch.empty(0, dtype=dtype).numpy().dtype
    wanted = math.prod(shape) * plain.itemsize
    free = shutil.disk_usage(Path(file.name).parent).free
    if wanted > free:
        raise ValueError(
            f"expected {wanted / 1e9:,.1f} GB free on the disk, to keep the rows of {name} of "
            f"{source.path}, which memory has no room for, got {free / 1e9:,.1f} GB; {_ELSEWHERE}"
        )
    described = np.lib.format.dtype_to_descr(plain)
    header = {"descr": described, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _is_kept(path: Path, rows: int) -> bool:
    """Whether a whole array of so many rows lies there."""
    try:
        return len(map_npy(path)) == rows
    except (OSError, ValueError, EOFError, TypeError):
        return False
