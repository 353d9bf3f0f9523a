"""The bytes of a safetensors file, read once: tensors, and the checksum of what they were made of.

A file is eight bytes that say how long its header is, the header, a JSON object

    {"<name>": {"dtype": "F32", "shape": [3, 2], "data_offsets": [start, stop]}, ...,
     "__metadata__": {text: text}},

and the numbers, without a gap. The header is compared with the size of the file before memory is
allocated. Each tensor has memory of its own, and what is read is hashed on the way: a file that
changes meanwhile cannot pass for what its checksum says.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import is_count
from .files import open_file
from .json_files import MOST_JSON_BYTES, unique_keys
from .mapped import map_array, read_only
from .messages import brief

__all__ = ["DTYPES", "TensorBytes", "map_once", "read_once"]

# What a header calls a dtype. torch has none for F4 and F6, several of which share a byte.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_BLOCK = 1 << 20
_MOST_AXES = 64


class TensorBytes(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: by name, each with memory of its own.
        metadata: text of the header by name.
        sha256: of all bytes of the file, in hexadecimal. Where there is an error, and nobody knows
            how large the file should be, of those up to there.
        error: why the bytes are no safetensors file; None if they are one.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    sha256: str
    error: str | None = None


def read_once(path: Path, hint: str = "copy it anew", *, size: int | None = None) -> TensorBytes:
    """Read a file from its first byte to its last, no byte twice.

    What is wrong with the format is an `error` in the answer: who knows the checksum has something
    better to say of a damaged file.

    Args:
        hint: what to do about a file that can't be had.
        size: the bytes that it must have, None for any number.

    Raises:
        ValueError: missing, not a file, not readable, of another size.
    """
    try:
        with open_file(path, hint) as file:
            found = os.fstat(file.fileno()).st_size
            if size is not None and found != size:
                what = "truncated" if found < size else "another one"
                raise ValueError(
                    f"{path}: expected {size:,} bytes, got {found:,}; the file is {what}, {hint}"
                )
            return _read(_Hashed(file), found, whole=size is not None)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error


def map_once(path: Path) -> TensorBytes:
    """The same of a large file, whose tensors are mapped where they lie; nothing is hashed.

    Raises:
        ValueError: missing, not a file, not readable.
    """
    try:
        with open_file(path, "copy it anew") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, MOST_JSON_BYTES):
                raise ValueError(f"a header of {length:,} bytes")
            places, metadata = _header(file.read(length), size - 8 - length)
        numbers = read_only(map_array(path, "u1", (size - 8 - length,), 8 + length))
        tensors = {place.name: _view(numbers, place) for place in places}
        return TensorBytes(tensors, metadata, "")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as raised:
        return TensorBytes({}, {}, "", brief(raised))


def _view(numbers: Tensor, place: _Place) -> Tensor:
    """A tensor among the bytes of a file, which are copied where they aren't aligned."""
    found = numbers[place.start : place.stop]
    if place.start % place.dtype.itemsize:
        found = found.clone()
    return found.view(place.dtype).reshape(place.shape)


class _Hashed:
    """A file that is hashed as it is read."""

    def __init__(self, file: BufferedReader) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytearray:
        """The next `size` bytes."""
        data = bytearray(size)
        view = memoryview(data)
        at = 0
        while at < size:
            got = self.file.readinto(view[at : at + _BLOCK])
            if not got:
                raise ValueError(f"{at:,} bytes of {size:,}")
            self.digest.update(view[at : at + got])
            at += got
        return data

    def skip(self) -> None:
        """Hash what is left."""
        while block := self.file.read(_BLOCK):
            self.digest.update(block)


class _Place(NamedTuple):
    """Where the numbers of a tensor are, and what they are."""

    start: int
    stop: int
    name: str
    dtype: torch.dtype
    shape: list[int]


def _read(file: _Hashed, size: int, *, whole: bool) -> TensorBytes:
    """What a file of `size` bytes holds; `whole`: hash one that isn't safetensors to its end."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    error = None
    try:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, MOST_JSON_BYTES):
            raise ValueError(f"a header of {length:,} bytes")
        places, metadata = _header(bytes(file.read(length)), size - 8 - length)
        for place in sorted(places):
            tensors[place.name] = _tensor(file.read(place.stop - place.start), place)
    except (ValueError, RecursionError) as raised:
        tensors = {}
        error = brief(raised)
        if whole:
            file.skip()
    return TensorBytes(tensors, metadata, file.digest.hexdigest(), error)


def _tensor(data: bytearray, place: _Place) -> Tensor:
    if not data:
        return torch.empty(place.shape, dtype=place.dtype)
    # A copy into memory of torch's own: kernels round by how it is aligned.
    return torch.frombuffer(data, dtype=place.dtype).reshape(place.shape).clone()


def _header(text: bytes, room: int) -> tuple[list[_Place], dict[str, str]]:
    """(where each tensor is, metadata) of a header before `room` bytes of numbers.

    Raises:
        ValueError: what is not as it should be, for the end of a sentence.
    """
    # A library would take the last of two equal names without a word.
    document = json.loads(text.decode(), object_pairs_hook=unique_keys)
    if not isinstance(document, dict):
        raise ValueError("a header that is no object")
    metadata = document.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"metadata {brief(metadata)}")
    places = [_place(name, entry) for name, entry in document.items()]
    end = 0
    for place in sorted(places):
        if place.start != end:
            raise ValueError(f"{brief(place.name)} from byte {place.start:,} on, not from {end:,}")
        end = place.stop
    if end != room:
        raise ValueError(f"{room:,} bytes of numbers for tensors of {end:,}")
    return places, metadata


def _place(name: str, entry: Any) -> _Place:
    """An entry of a header, whose shape is as large as its place."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{brief(name)} as {brief(entry)}")
    kind = entry["dtype"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise ValueError(f"{brief(name)} of the dtype {brief(kind)}, none of {', '.join(DTYPES)}")
    shape = entry["shape"]
    if not _are_counts(shape) or len(shape) > _MOST_AXES or math.prod(map(_one, shape)) >= 2**62:
        raise ValueError(f"{brief(name)} of shape {brief(shape)}")
    offsets = entry["data_offsets"]
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{brief(name)} at the bytes {brief(offsets)}")
    dtype = DTYPES[kind]
    expected = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != expected:
        raise ValueError(f"{brief(name)} of {expected:,} bytes at the bytes {brief(offsets)}")
    return _Place(offsets[0], offsets[1], name, dtype, shape)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(is_count(size, 0) for size in value)


def _one(size: int) -> int:
    # torch counts the strides of an empty tensor, too.
    return max(size, 1)
