"""Parts of a data set on the disk: that they are there, whole, and not larger than they may be."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..._core.files import open_file
from ..._core.messages import brief
from ..._core.room import free_memory

__all__ = [
    "check_ends",
    "check_part",
    "check_unpacked",
    "ends_of",
    "foreign",
    "kept_dtype",
    "kept_numbers",
    "needed",
    "refuse_pointer",
]

_POINTER = b"version https://git-lfs.github.com/spec/"
# What unpacks to this size is harmless at any ratio; above it the ratio counts (_core/archives.py).
_HARMLESS_BYTES = 1 << 24
_MOST_RATIO = 200
# Up to here float64 holds every whole number.
_MOST_WHOLE = 2.0**53


def needed(module: str, extra: str, what: str) -> ModuleType:
    """An optional package, imported.

    Args:
        module: such as "h5py".
        extra: of this package, which brings it.
        what: is read with it, for the message.

    Raises:
        ValueError: it isn't installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"expected the package {module.partition('.')[0]} to read {what}, got: {brief(error)}; "
            f'install it: pip install -e ".[{extra}]"'
        ) from error


def check_part(path: Path, hint: str = "copy the data set anew") -> None:
    """Refuse a file that can't be opened or is a pointer to one.

    Raises:
        ValueError: missing, not a file, empty, or what git-lfs leaves in a file's place.
    """
    with open_file(path, hint) as file:
        start = file.read(len(_POINTER))
    if not start:
        raise ValueError(f"{path}: expected a file with content, got an empty one; {hint}")
    refuse_pointer(start, str(path))


def refuse_pointer(data: bytes, where: str) -> None:
    """ValueError for what git-lfs leaves in a file's place, told by its first bytes."""
    if data.startswith(_POINTER):
        raise ValueError(
            f"{where}: expected data, got a pointer of git-lfs to them; fetch them: git lfs pull"
        )


def check_unpacked(where: str, wanted: int, stored: int, *, whole: bool = True) -> None:
    """Refuse to unpack what is not worth it, or what memory has no room for.

    Args:
        where: file and column, for the message.
        wanted: bytes that they take in memory.
        stored: bytes that they take on the disk.
        whole: they are in memory at once.

    Raises:
        ValueError: more than 200 times what is stored (and 16 MB), or than the free memory.
    """
    if wanted > max(stored * _MOST_RATIO, _HARMLESS_BYTES):
        raise ValueError(
            f"{where}: expected at most {_MOST_RATIO} times the {stored:,} bytes that are stored, "
            f"got {wanted:,} bytes unpacked; the file is damaged"
        )
    free = free_memory()
    if whole and free is not None and wanted > free:
        raise ValueError(
            f"{where}: expected data for which there is memory, got {wanted / 1e9:,.1f} GB, with "
            f"{free / 1e9:,.1f} GB free; choose fewer columns, or a part of the episodes"
        )


def ends_of(episode: Tensor, where: str) -> list[int]:
    """The ends of episodes, given the number of each row's episode.

    Args:
        episode: whole numbers (M,) or (M, 1); gaps in them are fine.
        where: file and column, for the message.

    Raises:
        ValueError: no rows, other numbers than whole ones, or an episode that goes on after
            another one began.
    """
    if episode.numel() == 0:
        raise ValueError(f"{where}: expected rows, got none")
    if episode.numel() != len(episode):
        raise ValueError(
            f"{where}: expected one number in each row, that of its episode, got rows of shape "
            f"{tuple(episode.shape[1:])}"
        )
    episode = episode.reshape(-1)
    _check_whole(episode, where)
    changes = (episode[1:] != episode[:-1]).nonzero().flatten() + 1
    ends = [*changes.tolist(), len(episode)]
    numbers = episode[torch.tensor(ends) - 1]
    if len(numbers.unique()) < len(numbers):
        values, counts = numbers.unique(return_counts=True)
        again = int(values[counts > 1][0])
        raise ValueError(
            f"{where}: expected the rows of each episode together, got episode {again} in several "
            "places; sort the rows by episode and time"
        )
    return ends


def _check_whole(episode: Tensor, where: str) -> None:
    """ValueError for a number that is missing, has a fraction, or was rounded when it was read."""
    if not episode.is_floating_point():
        return
    bad = (episode != episode.round()) | (episode.abs() >= _MOST_WHOLE)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"{where}: expected the number of its episode in each row, whole and below 2^53, got "
            f"{float(episode[row]):g} in row {row}; number the episodes 0, 1, ..."
        )


def check_ends(ends: Sequence[int], where: str) -> None:
    """Refuse ends of episodes that don't increase from above 0.

    Raises:
        ValueError: an episode without rows, or ends out of order.
    """
    starts = [0, *ends[:-1]]
    for index, (start, stop) in enumerate(zip(starts, ends, strict=True)):
        if stop <= start:
            raise ValueError(
                f"{where}: expected ends of episodes that increase from above 0, got {stop} after "
                f"{start} (episode {index}); leave out episodes without rows"
            )


def kept_dtype(dtype: Any) -> Any:
    """The NumPy dtype in which numbers of this dtype are held, which torch knows."""
    import numpy as np

    if dtype.kind == "f":
        return np.dtype(np.float64 if dtype.itemsize >= 8 else np.float32)
    if dtype == np.uint8:  # pixels, which are too many to be held in more
        return dtype
    return np.dtype(np.bool_ if dtype.kind == "b" else np.int64)


def kept_numbers(numbers: Any, where: str) -> Any:
    """Numbers of NumPy in a dtype that torch knows, in native byte order.

    Raises:
        ValueError: a whole number of 2^63 or more, which none of torch's dtypes holds.
    """
    unsigned = numbers.dtype.kind == "u" and numbers.dtype.itemsize == 8
    if unsigned and numbers.size and int(numbers.max()) >= 1 << 63:
        raise ValueError(
            f"{where}: expected whole numbers below 2^63, got {int(numbers.max())}; save them as "
            "float64 or int64"
        )
    return numbers.astype(kept_dtype(numbers.dtype), copy=False)


@contextmanager
def foreign(where: str | Path, what: str, errors: Sequence[type[BaseException]]) -> Iterator[None]:
    """Turns what a library says of a damaged file into one line.

    Raises:
        ValueError: for any of `errors`; a ValueError that is ours already passes through.
    """
    try:
        yield
    except tuple(errors) as error:
        if isinstance(error, ValueError) and str(error).startswith(str(where)):
            raise
        raise ValueError(
            f"{where}: expected {what}, got one that can't be read: {brief(error)}; copy it anew"
        ) from error
