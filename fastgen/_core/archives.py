"""NumPy archives (.npz), measured before they are unpacked.

A zip says of each member how large it unpacks, and each .npy header says how large its array is.
Both are compared with the file before memory is allocated, so that neither a header that lies nor a
decompression bomb costs more than reading it. The bytes of each array carry a CRC-32, which
`zipfile` checks. Nothing is unpickled.
"""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

from .files import check_file
from .mapped import map_array
from .messages import brief, first_names

__all__ = ["read_npz"]

# What unpacks to this size is harmless at any ratio. Above it the ratio counts: measured numbers
# compress 10-fold, labels and zeros beside them 100-fold, a bomb 1000-fold.
_HARMLESS_BYTES = 1 << 24
_MOST_RATIO = 200
_BLOCK = 1 << 20
# A file of data has three arrays, one of a representation as many as its group has elements.
_MOST_ARRAYS = 4096
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_FOREIGN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    NotImplementedError,
    RuntimeError,
)
_ERRORS = (
    *_FOREIGN,
    ValueError,
    OSError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    SyntaxError,
)


def read_npz(path: str | Path, *, mapped: bool = False) -> dict[str, np.ndarray]:
    """The arrays of an .npz archive, {name: array}.

    Args:
        mapped: those that are stored as they are, not packed, are mapped where they lie.

    Raises:
        ValueError: missing, not an archive of plain arrays, damaged, a name given twice, an array
            that isn't as large as its place in the archive, or one that unpacks to more than 200
            times the file (and 16 MB), or more than 4096 arrays.
        TypeError: an array of something else than numbers or yes-or-no values.
    """
    path = Path(path)
    check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename.removesuffix(".npy") for member in members]
            if len(names) > _MOST_ARRAYS:
                raise ValueError(f"{len(names):,} arrays, more than {_MOST_ARRAYS:,}")
            counts = Counter(names)
            if repeated := {name for name in names if counts[name] > 1}:
                raise ValueError(f"the name {first_names(repeated)} twice")
            unpacked = sum(m.file_size for m in members)
            most = path.stat().st_size * _MOST_RATIO
            if unpacked > max(most, _HARMLESS_BYTES):
                raise ValueError(f"{unpacked:,} bytes packed into {path.stat().st_size:,}")
            found = {}
            for name, member in zip(names, members, strict=True):
                there = mapped and member.compress_type == zipfile.ZIP_STORED
                found[name] = _read(archive, member, path if there else None)
            return found
    except _NotNumbers as error:
        raise TypeError(
            f"expected numbers in {error.args[0]} of {path}, got {error.args[1]}"
        ) from error
    except _ERRORS as error:
        raise ValueError(
            f"expected an .npz archive of plain arrays at {path}, got one that can't be read: "
            f"{brief(error)}"
        ) from error


class _NotNumbers(Exception):
    """An array whose dtype isn't that of a number."""


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, mapped: Path | None) -> np.ndarray:
    """An array, measured; of the file `mapped` it stays there."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{brief(member.filename)} in version {version} of the .npy format")
        shape, by_columns, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise ValueError(f"pickled objects in {brief(member.filename)}")
        if dtype.kind not in "fiub":
            raise _NotNumbers(member.filename.removesuffix(".npy")[:80], brief(dtype))
        expected = math.prod(shape) * dtype.itemsize
        found = member.file_size - file.tell()
        if min(shape, default=1) < 0 or expected != found:
            raise ValueError(
                f"{found:,} bytes for {brief(shape)} of {dtype} in {brief(member.filename)}"
            )
        start = file.tell()
        if mapped is not None and expected:
            # To the end, where zipfile compares the checksum.
            while file.read(_BLOCK):
                pass
            start += _data_offset(mapped, member)
            return map_array(mapped, dtype, shape, start, "F" if by_columns else "C")
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        # zipfile compares the checksum at the end of the member; the read above may stop before it.
        if file.read(1):
            raise ValueError(f"more than its array in {brief(member.filename)}")
        return array


def _data_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a member that isn't packed begin in the archive."""
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
    name, extra = struct.unpack("<HH", header[26:30])
    return member.header_offset + 30 + name + extra
