"""Arrays of zarr, versions 2 and 3: their description, and their chunks as one array.

Chunks are read by the codecs `bytes`, `transpose`, `zlib`, `gzip`, `bz2`, `blosc`, `zstd` and
`lz4`; anything else, such as pickles or shards, is refused by name. Each chunk must be there, and
unpack to exactly its size: one that a writer left out, since it held the fill value alone, can't be
told from one that was lost. Specification: https://zarr-specs.readthedocs.io.
"""

from __future__ import annotations

import bz2
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

from ..._core.json_files import MOST_JSON_BYTES, parse_json
from ..._core.messages import brief
from .parts import check_unpacked, needed
from .zarr_stores import Store

__all__ = ["ZarrArray", "array_pieces", "describe", "read_array"]

_MOST_AXES = 8
_DTYPE = re.compile(r"[<>|](?:f[248]|[iu][1248]|b1)")
_NAMED = re.compile(r"(bool)|(float|int|uint)(8|16|32|64)")
# Bytes that a chunk may take beyond what it unpacks to, for incompressible ones.
_SLACK = 1 << 16


@dataclass(frozen=True)
class ZarrArray:
    """The description of an array.

    Attributes:
        name: of the folder it lies in.
        dtype: as NumPy spells it, such as "<f4"; None for what holds no numbers.
        codecs: (name, settings) by which a chunk was packed, the last one first.
        order: axes of a chunk as it is stored, slowest first.
        key: indices of a chunk -> its name in the folder.
    """

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str | None
    codecs: tuple[tuple[str, dict[str, Any]], ...]
    order: tuple[int, ...]
    key: Callable[[tuple[int, ...]], str]


def describe(store: Store, name: str) -> ZarrArray | None:
    """The description of the array in a folder; None where there is no array.

    Raises:
        ValueError: a description that isn't one.
    """
    for file, build in ((".zarray", _version_2), ("zarr.json", _version_3)):
        data = store.read(f"{name}/{file}", MOST_JSON_BYTES)
        if data is None:
            continue
        where = f"{store.path}, {name}/{file}"
        meta = parse_json(data, where, only_finite=False)
        if not isinstance(meta, dict):
            raise ValueError(f"{where}: expected an object, got {brief(meta)}")
        if file == "zarr.json" and meta.get("node_type") == "group":
            return None
        version = 2 if file == ".zarray" else 3
        if meta.get("zarr_format") != version:
            raise ValueError(
                f"{where}: expected zarr_format {version}, got {brief(meta.get('zarr_format'))}; "
                "write the array with zarr 2 or 3"
            )
        try:
            return build(name, meta)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"{where}: expected the description of a zarr array, got: {brief(error)}"
            ) from error
    return None


def _version_2(name: str, meta: dict[str, Any]) -> ZarrArray:
    shape, chunks = _sizes(meta["shape"], meta["chunks"])
    separator = meta.get("dimension_separator", ".")
    filters = [(str(entry["id"]), dict(entry)) for entry in meta.get("filters") or ()]
    packed = meta.get("compressor")
    codecs = [] if packed is None else [(str(packed["id"]), dict(packed))]
    dtype = meta["dtype"]
    known = isinstance(dtype, str) and _DTYPE.fullmatch(dtype) is not None
    axes = tuple(range(len(shape)))
    if meta["order"] not in ("C", "F") or separator not in (".", "/"):
        raise ValueError(f"order {meta['order']!r}, separator {separator!r}")
    return ZarrArray(
        name,
        shape,
        chunks,
        dtype if known else None,
        (*codecs, *reversed(filters)),
        axes if meta["order"] == "C" else axes[::-1],
        lambda index: separator.join(map(str, index)) or "0",
    )


def _version_3(name: str, meta: dict[str, Any]) -> ZarrArray:
    grid = meta["chunk_grid"]
    if grid["name"] != "regular":
        raise ValueError(f"a chunk grid that is {brief(grid['name'])}")
    shape, chunks = _sizes(meta["shape"], grid["configuration"]["chunk_shape"])
    if meta.get("storage_transformers"):
        raise ValueError(f"storage transformers {brief(meta['storage_transformers'])}")
    encoding = meta["chunk_key_encoding"]
    version_2 = encoding["name"] == "v2"
    usual = "." if version_2 else "/"
    separator = (encoding.get("configuration") or {}).get("separator", usual)
    if encoding["name"] not in ("default", "v2") or separator not in (".", "/"):
        raise ValueError(f"names of chunks {brief(encoding)}")
    codecs = []
    order = tuple(range(len(shape)))
    endian = "<"
    for codec in meta["codecs"]:
        settings = codec.get("configuration") or {}
        if codec["name"] == "transpose":
            moved = settings["order"]
            if sorted(moved) != list(range(len(shape))):
                raise ValueError(f"order {brief(moved)}")
            # Of several, each moves the axes that the one before it left.
            order = tuple(order[axis] for axis in moved)
        elif codec["name"] == "bytes":
            endian = ">" if settings.get("endian") == "big" else "<"
        else:
            codecs.insert(0, (str(codec["name"]), dict(settings)))
    dtype = _named_dtype(meta["data_type"], endian)

    def key(index: tuple[int, ...]) -> str:
        if version_2:
            return separator.join(map(str, index)) or "0"
        return separator.join(["c", *map(str, index)])

    return ZarrArray(name, shape, chunks, dtype, tuple(codecs), order, key)


def _named_dtype(name: Any, endian: str) -> str | None:
    """How NumPy spells a data type of version 3; None for what holds no numbers."""
    found = _NAMED.fullmatch(name) if isinstance(name, str) else None
    if found is None or name == "float8":
        return None
    if found[1]:
        return "|b1"
    letter = {"float": "f", "int": "i", "uint": "u"}[found[2]]
    return f"{endian}{letter}{int(found[3]) // 8}"


def _sizes(shape: Any, chunks: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    for sizes, least in ((shape, 0), (chunks, 1)):
        good = isinstance(sizes, list) and len(sizes) <= _MOST_AXES
        if not good or not all(type(n) is int and least <= n < 1 << 40 for n in sizes):
            raise ValueError(f"shape {brief(shape)} in chunks {brief(chunks)}")
    if len(shape) != len(chunks):
        raise ValueError(f"shape {brief(shape)} in chunks {brief(chunks)}")
    return tuple(shape), tuple(chunks)


# ---- Chunks --------------------------------------------------------------------------------------


def read_array(store: Store, array: ZarrArray, where: str) -> Any:
    """The numbers of an array: of NumPy, in native byte order.

    Raises:
        ValueError: no numbers, a codec that isn't read here, a chunk that is missing, damaged or
            of another size, or more than is stored or there is room for.
    """
    import numpy as np

    dtype = _checked_dtype(store, array, where, whole=True)
    result = np.empty(array.shape, dtype.newbyteorder("="))
    if not result.size:
        return result
    for index, region in _regions(array):
        result[region] = _chunk(store, array, where, index, region)
    return result


def array_pieces(store: Store, array: ZarrArray, where: str) -> Iterator[Any]:
    """The numbers of an array, those of one chunk's rows at a time; errors as `read_array`."""
    import numpy as np

    dtype = _checked_dtype(store, array, where, whole=False)
    if not math.prod(array.shape):
        yield np.empty(array.shape, dtype.newbyteorder("="))
        return
    for start, same_rows in groupby(_regions(array), lambda place: place[1][0].start):
        rows = min(array.chunks[0], array.shape[0] - start)
        piece = np.empty((rows, *array.shape[1:]), dtype.newbyteorder("="))
        for index, region in same_rows:
            piece[(slice(None), *region[1:])] = _chunk(store, array, where, index, region)
        yield piece


def _checked_dtype(store: Store, array: ZarrArray, where: str, *, whole: bool) -> Any:
    """The dtype of an array of numbers that its chunks can hold and, as a whole, memory."""
    import numpy as np

    if array.dtype is None:
        raise ValueError(f"{where}: expected numbers in {array.name}, got another kind")
    dtype = np.dtype(array.dtype)
    one = math.prod(array.chunks) * dtype.itemsize
    wanted = math.prod(array.shape) * dtype.itemsize
    stored = sum(store.sizes(array.name).values())
    # All of it, and one chunk, which may be larger.
    check_unpacked(f"{where}, {array.name}", wanted, stored, whole=whole)
    check_unpacked(f"{where}, {array.name}", one, stored)
    return dtype


def _chunk(
    store: Store,
    array: ZarrArray,
    where: str,
    index: tuple[int, ...],
    region: tuple[slice, ...],
) -> Any:
    """The numbers of a chunk that lie in the array."""
    import numpy as np

    dtype = np.dtype(array.dtype)
    one = math.prod(array.chunks) * dtype.itemsize
    said = f"{where}, chunk {array.key(index)} of {array.name}"
    data = store.read(f"{array.name}/{array.key(index)}", one + _SLACK + one // 8)
    if data is None:
        raise ValueError(
            f"{said}: expected it, got none; copy the data set anew, or, if these rows are "
            "empty, write them with write_empty_chunks=True"
        )
    raw = _unpacked(data, array.codecs, one, said)
    stored_shape = [array.chunks[axis] for axis in array.order]
    chunk = np.frombuffer(raw, dtype).reshape(stored_shape)
    chunk = chunk.transpose(np.argsort(array.order))
    return chunk[tuple(slice(0, part.stop - part.start) for part in region)]


def _regions(array: ZarrArray) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Of each chunk its indices and its place in the array."""
    counts = [-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)]
    for index in product(*map(range, counts)):
        yield (
            index,
            tuple(
                slice(i * chunk, min((i + 1) * chunk, size))
                for i, chunk, size in zip(index, array.chunks, array.shape, strict=True)
            ),
        )


def _unpacked(
    data: bytes, codecs: tuple[tuple[str, dict[str, Any]], ...], size: int, where: str
) -> bytes:
    """A chunk without its codecs, which must have `size` bytes."""
    for name, settings in codecs:
        try:
            data = _undo(name, settings, data, size)
        except (ValueError, TypeError, RuntimeError, EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{where}: expected {size:,} bytes packed by {brief(name)}, got: {brief(error)}"
            ) from error
    if len(data) != size:
        raise ValueError(f"{where}: expected {size:,} bytes, got {len(data):,}")
    return data


def _undo(name: str, settings: dict[str, Any], data: bytes, size: int) -> bytes:
    if name in ("zlib", "gzip"):
        return _inflated(data, size)
    if name == "bz2":
        return bz2.BZ2Decompressor().decompress(data, size + 1)
    if name not in ("blosc", "zstd", "lz4"):
        raise ValueError("a codec that isn't read here; write the array with blosc, zstd or gzip")
    numcodecs = needed("numcodecs", "zarr", f"zarr arrays packed by {name}")
    # What a header promises is compared before anything is unpacked.
    if name == "blosc":
        promised = struct.unpack("<I", data[4:8])[0] if len(data) >= 16 else -1
        packed = struct.unpack("<I", data[12:16])[0] if len(data) >= 16 else -1
        if packed != len(data):
            raise ValueError(f"{len(data):,} bytes that say they are {packed:,}")
    elif name == "lz4":
        promised = struct.unpack("<i", data[:4])[0] if len(data) >= 4 else -1
    else:
        promised = size
    if promised != size:
        raise ValueError(f"a header of {promised:,} bytes")
    codec = {"blosc": numcodecs.Blosc, "zstd": numcodecs.Zstd, "lz4": numcodecs.LZ4}[name]()
    out = bytearray(size)
    found = codec.decode(data, out=out) if name != "zstd" else codec.decode(data)
    return bytes(out) if name != "zstd" else bytes(found)


def _inflated(data: bytes, size: int) -> bytes:
    """zlib or gzip, whichever the first bytes say; at most one byte more than `size`."""
    unpack = zlib.decompressobj(wbits=47)
    found = unpack.decompress(data, size + 1)
    if not unpack.eof and len(found) <= size:
        raise ValueError("a stream that is cut")
    return found
