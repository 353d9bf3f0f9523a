"""Files of named arrays, `.npz` and `.safetensors`: all arrays, or the columns of episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..._core.files import expand_home
from ..._core.mapped import read_only
from ..._core.messages import brief
from ..._core.tensor_files import map_safetensors, read_safetensors
from .parts import check_ends, ends_of, kept_numbers
from .source import EPISODE_COLUMNS, Column, Source, kind_of_rows

__all__ = ["READERS", "open_arrays", "read_tensors"]


def _read_npz(path: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """Every array of an `.npz` file; pickles are refused."""
    # NumPy arrives with the file that needs it.
    import numpy as np

    from ..._core.archives import read_npz

    return {
        name: read_only(np.ascontiguousarray(kept_numbers(array, f"{path}, {name}")))
        for name, array in read_npz(path, mapped=mapped).items()
    }


# How a file's name ends -> the function that reads its arrays, by name.
READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    ".npz": _read_npz,
    ".safetensors": read_safetensors,
}
# The same for files of more bytes than this, whose arrays may be mapped.
_MOST_BYTES = 1 << 28
_MAPPED: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    ".npz": partial(_read_npz, mapped=True),
    ".safetensors": map_safetensors,
}


def read_tensors(path: str | Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """Every array of a data file, by name.

    Args:
        mapped: arrays of a large file may be mapped, so that they can be read but not written.

    Raises:
        FileNotFoundError: no such file.
        TypeError, ValueError: another format, a file that can't be read, or arrays that hold no
            numbers.
    """
    path = expand_home(path)
    known = " or ".join(READERS)
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a data file at {path}, got nothing there; give the path of an {known} file"
        )
    # By the name given: in the cache of a hub it is a link to one that says no format.
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise ValueError(f"expected a file that ends in {known}, got {path.name}")
    large = mapped and path.stat().st_size > _MOST_BYTES
    return (_MAPPED if large else READERS)[suffix](path)


def open_arrays(path: Path) -> Source:
    """The episodes in a file of arrays (M, ...): one for each column, and `episode_ends` (E,) or
    the number of each row's episode.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `read_tensors`; or no rows of episodes.
    """
    tensors = read_tensors(path, mapped=True)
    ends = _ends(tensors, path)
    columns = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 0 or tensor.shape[0] != ends[-1] or name == "episode_ends":
            continue
        shape = tuple(tensor.shape[1:])
        columns[name] = Column(kind_of_rows(shape), shape, str(tensor.dtype).removeprefix("torch."))

    def read(names: Sequence[str]) -> dict[str, Tensor]:
        return {name: tensors[name] for name in names}

    left = sorted(set(tensors) - set(columns) - {"episode_ends"})
    notes = [f"note: no array of {ends[-1]} rows, left out: {', '.join(left)}"] if left else []
    return Source(f"arrays ({path.suffix})", path, columns, ends, read, notes=tuple(notes))


def _ends(tensors: dict[str, Tensor], path: Path) -> list[int]:
    """The ends of the episodes of a file of arrays."""
    if "episode_ends" in tensors:
        ends = tensors["episode_ends"]
        whole = not ends.is_floating_point() and ends.dtype != torch.bool
        if not whole or ends.ndim != 1 or ends.numel() == 0:
            raise ValueError(
                f"expected episode_ends of {path} to be whole numbers (E,), got {ends.dtype} "
                f"{tuple(ends.shape)}"
            )
        check_ends(ends.tolist(), f"{path}, episode_ends")
        return ends.tolist()
    for name in EPISODE_COLUMNS:
        if name in tensors and tensors[name].ndim == 1:
            return ends_of(tensors[name], f"{path}, {name}")
    raise ValueError(
        f"expected episode_ends, or {', '.join(EPISODE_COLUMNS)} with the number of each row's "
        f"episode, in {path}, got {brief(sorted(tensors))}"
    )
