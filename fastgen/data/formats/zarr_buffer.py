"""The zarr replay buffer of Diffusion Policy: arrays of all rows in the group `data`, and
`meta/episode_ends`; version 2 or 3, a folder or a zip archive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..._core.messages import first_names
from .parts import check_ends, kept_numbers
from .source import Column, Source, kind_of_rows
from .zarr_arrays import ZarrArray, array_pieces, describe, read_array
from .zarr_stores import Store, opened_store

__all__ = ["is_zarr", "open_zarr"]

_MOST_DEPTH = 4


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a zarr group."""
    return any((folder / name).is_file() for name in (".zgroup", "zarr.json", ".zmetadata"))


def open_zarr(path: Path) -> Source:
    """A replay buffer.

    Args:
        path: a folder, or a zip archive of one.

    Raises:
        ValueError: no group `data` or no `meta/episode_ends`, a description or chunk that is
            damaged, or a chunk by a codec that needs the package numcodecs, which isn't there.
    """
    with opened_store(path) as store:
        found = describe(store, "meta/episode_ends")
        if found is None or "data" not in store.members(""):
            raise ValueError(
                f"{path}: expected a replay buffer, the arrays data/... and meta/episode_ends, got "
                f"{first_names(store.members('')) or 'nothing'}; give the folder or archive in "
                "which these two lie"
            )
        if len(found.shape) != 1 or not found.shape[0] or found.dtype is None:
            raise ValueError(f"{path}: expected meta/episode_ends (E,), got {found.shape}")
        ends = _ends(store, found, path)
        arrays = dict(_arrays(store, "data", 0))
    columns = {
        name: _column(array)
        for name, array in arrays.items()
        if array.shape and array.shape[0] == ends[-1]
    }
    left = sorted(set(arrays) - set(columns))
    notes = [f"note: not of {ends[-1]} rows, left out: {first_names(left)}"] if left else []

    def read(names: Sequence[str]) -> dict[str, Tensor]:
        with opened_store(path) as store:
            return {name: _read(store, arrays[name], path) for name in names}

    def pieces(name: str) -> Iterator[Tensor]:
        with opened_store(path) as store:
            for numbers in array_pieces(store, arrays[name], str(path)):
                yield torch.from_numpy(kept_numbers(numbers, f"{path}, {arrays[name].name}"))

    return Source("zarr replay buffer", path, columns, ends, read, pieces, notes=tuple(notes))


def _ends(store: Store, array: ZarrArray, path: Path) -> list[int]:
    values = _read(store, array, path)
    if values.is_floating_point() or values.dtype == torch.bool:
        raise ValueError(f"{path}: expected whole numbers in meta/episode_ends, got {values.dtype}")
    ends = values.tolist()
    check_ends(ends, f"{path}, meta/episode_ends")
    return ends


def _arrays(store: Store, folder: str, depth: int) -> Iterator[tuple[str, ZarrArray]]:
    """The arrays of a group and of its groups, named by their path below `data`."""
    for name in store.members(folder):
        place = f"{folder}/{name}"
        array = describe(store, place)
        if array is not None:
            yield place.removeprefix("data/"), array
        elif depth < _MOST_DEPTH:
            yield from _arrays(store, place, depth + 1)


def _column(array: ZarrArray) -> Column:
    shape = array.shape[1:]
    if array.dtype is None:
        return Column("other", shape, "objects")
    return Column(kind_of_rows(shape), shape, array.dtype)


def _read(store: Store, array: ZarrArray, path: Path) -> Tensor:
    numbers = read_array(store, array, str(path))
    return torch.from_numpy(kept_numbers(numbers, f"{path}, {array.name}"))
