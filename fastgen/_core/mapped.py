"""Tensors in files that are mapped: pages are read when they are used, and given back when memory
is wanted. They can be read, and not written."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["map_array", "map_npy", "read_only"]


def read_only(array: Any) -> Tensor:
    """The numbers of a NumPy array as a tensor, in the same memory, which may be read-only."""
    with warnings.catch_warnings():
        # That it can't be written is meant.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def map_npy(path: Path) -> Tensor:
    """The array of an .npy file, mapped.

    Raises:
        OSError, ValueError, EOFError, TypeError: no such file, or one that is damaged or cut.
    """
    import numpy as np

    return read_only(np.lib.format.open_memmap(path, mode="r"))


def map_array(path: Path, dtype: Any, shape: tuple[int, ...], start: int, order: Any = "C") -> Any:
    """The array of NumPy whose numbers begin at byte `start` of a file, mapped.

    Raises:
        OSError, ValueError: no such file, or one that is shorter.
    """
    import numpy as np

    return np.memmap(path, dtype, "r", start, shape, order)
