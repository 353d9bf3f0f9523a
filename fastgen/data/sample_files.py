"""Sample files: the formats that samples are written in, and what may be written over.

The suffix says the format. A `.safetensors` or `.npz` file holds the samples as `X` and their
conditions as `Z`; an `.npy` or `.csv` file holds X alone. In a `.csv` file the last axis of X is
columns `x_0`, `x_1`, ...; before them stands a column for each other axis, which counts from 0.

A file that is there already is never written over, unless it holds samples that were written here:
`.safetensors` and `.npz` files carry a mark.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path

from torch import Tensor

from .._core.conditions import array_of
from .._core.files import expand_home, new_file
from .._core.messages import brief
from .._core.tensor_files import read_metadata, save_tensors

__all__ = ["WRITERS", "check_sample_file", "write_samples"]

_MARK = "fastgen samples"


# ---- Formats -------------------------------------------------------------------------------------


def _write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_tensors(path, tensors, content=_MARK)


def _write_npz(path: Path, tensors: Mapping[str, Tensor]) -> None:
    import numpy as np

    with new_file(path) as partial:
        with open(partial, "wb") as file:
            np.savez(file, **{name: array_of(value) for name, value in tensors.items()})
        with zipfile.ZipFile(partial, "a") as archive:
            archive.comment = _MARK.encode()


def _write_npy(path: Path, tensors: Mapping[str, Tensor]) -> None:
    import numpy as np

    with new_file(path) as partial, open(partial, "wb") as file:
        np.save(file, array_of(tensors["X"]))


def _write_csv(path: Path, tensors: Mapping[str, Tensor]) -> None:
    x = array_of(tensors["X"])
    *axes, last = x.shape
    # So many digits tell any two numbers of a dtype apart.
    form = "%.9g" if x.dtype.itemsize <= 4 else "%.17g"
    names = [*_axis_names(axes, has_conditions="Z" in tensors), *(f"x_{i}" for i in range(last))]
    with new_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.write(",".join(names) + "\n")
        for place, row in zip(product(*map(range, axes)), x.reshape(-1, last), strict=True):
            file.write(",".join([*map(str, place), *(form % value for value in row)]) + "\n")


def _axis_names(axes: Sequence[int], *, has_conditions: bool) -> list[str]:
    """Names of the axes of X but the last."""
    names = ["condition", "sample"] if has_conditions else ["sample"]
    rest = len(axes) - len(names)
    return names + (["step"] if rest == 1 else [f"axis_{i}" for i in range(rest)])


# How a file's name ends -> the function that writes X and Z to it.
WRITERS: dict[str, Callable[[Path, Mapping[str, Tensor]], None]] = {
    ".npz": _write_npz,
    ".npy": _write_npy,
    ".safetensors": _write_safetensors,
    ".csv": _write_csv,
}


# ---- Writing -------------------------------------------------------------------------------------


def check_sample_file(
    path: str | Path, *, inputs: Sequence[str | Path] = (), overwrite: bool = False
) -> Path:
    """The path of a file that samples may be written to.

    Args:
        path: as a user gives it.
        inputs: files that the samples are made from.
        overwrite: whether a file that is there may be lost.

    Raises:
        ValueError: no suffix of `WRITERS`; or something is there that was not written here, or
            that is an input, and `overwrite` is false.
    """
    path = expand_home(path)
    known = ", ".join(WRITERS)
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"expected out to end in one of {known}, got {brief(str(path))}")
    for folder in path.parents:
        if os.path.lexists(folder):
            if not folder.is_dir():
                raise ValueError(f"expected out in a folder, got {path}, where {folder} is none")
            break
    if not os.path.lexists(path):
        return path
    if path.exists() and not path.is_file():
        raise ValueError(f"expected out to be a file or nothing, got {path}, which is no file")
    is_input = any(_same(path, expand_home(other)) for other in inputs)
    if not overwrite and (is_input or not _is_ours(path)):
        what = "the file that the conditions are read from" if is_input else "a file"
        raise ValueError(
            f"expected out to be new, got {path}, {what}, which would be lost: choose another "
            "name, or say overwrite=true"
        )
    return path


def write_samples(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write samples `X`, with their conditions `Z` if there are any, whole.

    Args:
        path: from `check_sample_file`.

    Raises:
        OSError: it can't be written; what stood there is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[path.suffix.lower()](path, tensors)


def _same(a: Path, b: Path) -> bool:
    """Whether two names are of one file."""
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False


def _is_ours(path: Path) -> bool:
    """Whether a file holds samples that were written here."""
    if path.suffix.lower() == ".safetensors":
        return read_metadata(path).get("content") == _MARK
    if path.suffix.lower() != ".npz":
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment == _MARK.encode()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
