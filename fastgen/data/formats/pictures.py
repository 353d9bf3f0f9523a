"""Pictures that are packed as the bytes of a PNG or JPEG file, unpacked by Pillow.

A picture says its size before it is unpacked, and may be no larger than `MOST_BYTES`: a file of
some kilobytes can unpack to gigabytes.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._core.messages import brief
from .parts import foreign, kept_numbers, needed

__all__ = ["MOST_BYTES", "PICTURES_AT_ONCE", "unpacked"]

# Of one picture, such as 4096 x 4096 in RGBA.
MOST_BYTES = 1 << 26
# Files of pictures that are read at once, and bytes of those that are held unpacked.
PICTURES_AT_ONCE = 16
_PIECE_BYTES = 1 << 21
# How Pillow calls the kinds of pixels -> numbers of a pixel, bytes of each.
_MODES = {"L": (1, 1), "LA": (2, 1), "RGB": (3, 1), "RGBA": (4, 1), "I;16": (1, 2), "I": (1, 4)}


def unpacked(
    files: Iterable[Any], where: str, shape: Sequence[int] | None = None
) -> Iterator[Tensor]:
    """Pictures (n, height, width, channels), uint8, or int64 where they have 16 bits; some at a
    time.

    Args:
        files: the bytes of each.
        where: file and column, for messages.
        shape: of one picture, with its channels last or first; None: of any.

    Raises:
        ValueError: bytes that are missing, neither PNG nor JPEG, damaged or cut; pixels of a
            palette or of more than four numbers; a picture of another shape, or of another shape
            or depth than those before it, or one that is too large; or there is no Pillow.
    """
    pictures: list[Any] = []
    before: tuple[tuple[int, ...], Any] | None = None
    for file in files:
        picture = _picture(file, where, shape)
        if before is not None and (picture.shape, picture.dtype) != before:
            raise _other_picture(where, picture, *before)
        before = (picture.shape, picture.dtype)
        pictures.append(picture)
        if len(pictures) * picture.nbytes >= _PIECE_BYTES:
            yield _stacked(pictures, where)
            pictures.clear()
    if pictures:
        yield _stacked(pictures, where)


def _other_picture(where: str, found: Any, shape: tuple[int, ...], dtype: Any) -> ValueError:
    if found.shape != shape:
        return ValueError(f"{where}: expected pictures of one size, got {shape} and {found.shape}")
    bits = sorted(8 * one.itemsize for one in (dtype, found.dtype))
    return ValueError(
        f"{where}: expected pictures of one depth, got {bits[0]} and {bits[1]} bits; save all of "
        "them with as many"
    )


def _stacked(pictures: Sequence[Any], where: str) -> Tensor:
    import numpy as np

    return torch.from_numpy(kept_numbers(np.stack(pictures), where))


def _picture(file: Any, where: str, shape: Sequence[int] | None) -> Any:
    """One picture, as an array of NumPy."""
    import numpy as np

    image_module = needed("PIL.Image", "pictures", "packed pictures")
    if file is None:
        raise ValueError(
            f"{where}: expected the bytes of a picture in each row, got none, or a path alone; "
            "save the data set with its pictures in it"
        )
    errors = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError)
    errors += (struct.error, zlib.error, MemoryError, image_module.DecompressionBombError)
    errors += (image_module.DecompressionBombWarning,)
    with warnings.catch_warnings(), foreign(where, "a picture, PNG or JPEG", errors):
        # Pillow warns of sizes that are refused here.
        warnings.simplefilter("error", image_module.DecompressionBombWarning)
        # Reads the head alone.
        image = image_module.open(io.BytesIO(bytes(file)), formats=("PNG", "JPEG"))
        _check_head(image.size, image.mode, where, shape)
        pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _check_head(size: tuple[int, int], mode: str, where: str, shape: Sequence[int] | None) -> None:
    """ValueError for a picture that shouldn't be unpacked, by what its file says of it."""
    width, height = size
    if mode not in _MODES:
        raise ValueError(
            f"{where}: expected pictures in grey, RGB or RGBA, got {brief(mode)}; save them so"
        )
    channels, each = _MODES[mode]
    if width * height * channels * each > MOST_BYTES:
        raise ValueError(
            f"{where}: expected pictures of at most {MOST_BYTES:,} bytes, got {width} x {height} "
            f"in {mode}; save them smaller"
        )
    found = (height, width, channels)
    if shape is not None and tuple(shape) not in (found, (channels, height, width)):
        raise ValueError(
            f"{where}: expected a picture of shape {tuple(shape)}, got {found}; copy the data set "
            "anew"
        )
