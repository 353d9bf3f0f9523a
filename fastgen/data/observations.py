"""Raw observations to sample for: arrays of data files, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .._core.files import expand_home, open_file
from .._core.messages import brief, first_names
from .formats.array_files import READERS, read_tensors
from .formats.pictures import MOST_BYTES, unpacked

__all__ = ["load_observations"]

_PICTURES = (".png", ".jpg", ".jpeg")


def load_observations(paths: Sequence[str | Path], columns: Sequence[str]) -> dict[str, Tensor]:
    """What an encoder's columns hold, (B, T_z, ...) each, of a few files.

    A file of arrays holds columns under their names. Pictures (PNG, JPEG) are the T_z frames, the
    oldest first, of the one column that no file of arrays holds, of one row (B = 1).

    Args:
        paths: of the files.
        columns: that are wanted; other arrays of a file are passed over.

    Raises:
        FileNotFoundError, TypeError, ValueError: a file that isn't there or can't be read, or is of
            another format; a column that is missing, comes twice, or has no rows; pictures that no
            column, or more than one, is left for.
    """
    found: dict[str, Tensor] = {}
    pictures = []
    there: set[str] = set()
    for path in map(expand_home, paths):
        suffix = path.suffix.lower()
        if suffix in _PICTURES:
            pictures.append(path)
            continue
        if suffix not in READERS:
            known = ", ".join([*READERS, *_PICTURES])
            raise ValueError(f"expected observations in files of {known}, got {path.name}")
        tensors = read_tensors(path)
        there |= set(tensors)
        for name in columns:
            if name in tensors and name in found:
                raise ValueError(
                    f"expected observations {name} in one file, got them in {path} too"
                )
            if name in tensors:
                found[name] = tensors[name]
    missing = [name for name in columns if name not in found]
    if pictures:
        if len(missing) != 1:
            raise ValueError(
                f"expected pictures for one of the observations {', '.join(columns)}, with the "
                f"others in a file of arrays, got {len(missing)} that no file holds"
            )
        found[missing.pop()] = _frames(pictures)
    if missing:
        raise ValueError(
            f"expected raw observations {', '.join(columns)}, arrays (B, T_z, ...) by name, got "
            f"none of {', '.join(missing)} among {first_names(there) or 'nothing'}"
        )
    for name, value in found.items():
        if value.ndim < 2 or not value.numel():
            raise ValueError(
                f"expected raw observations {name} of shape (B, T_z, ...), got {tuple(value.shape)}"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"expected finite numbers in raw observations {brief(name)}")
    return {name: found[name] for name in columns}


def _frames(paths: Sequence[Path]) -> Tensor:
    """Pictures as one row (1, T_z, height, width, channels)."""
    frames: list[Tensor] = []
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"expected a picture at {path}, got nothing there")
        with open_file(path) as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ValueError(
                f"{path}: expected a picture of at most {MOST_BYTES:,} bytes, got more"
            )
        frames += unpacked([data], str(path))
        if frames[-1].shape != frames[0].shape:
            raise ValueError(
                f"{path}: expected pictures of one size, got {tuple(frames[0].shape[1:])} and "
                f"{tuple(frames[-1].shape[1:])}"
            )
        if frames[-1].dtype != frames[0].dtype:
            raise ValueError(
                f"{path}: expected pictures of one depth, got some of 8 bits and some of 16; save "
                "all of them with as many"
            )
    return torch.cat(frames)[None]
