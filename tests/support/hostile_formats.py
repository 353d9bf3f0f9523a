"""Mutations that know a format: JSON, safetensors and .npz that promise more than they hold."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from support.hostile import Mutation

VALUES = [
    None,
    True,
    False,
    -1,
    0,
    2,
    10**30,
    -(10**30),
    1e308,
    -1e308,
    5e-324,
    "",
    "x",
    "../../x",
    "/etc/passwd",
    "\0",
    "\ud800",
    "x" * 5000,
    [],
    [[]],
    {},
    {"a": 1},
    [1] * 1000,
    2**31,
    2**63,
    2**64,
]
NAMES = [
    "../../x",
    "/etc/passwd",
    "..",
    "",
    ".",
    "\0",
    "a" * 70_000,
    "C:\\x",
    "~/x",
    "X\n",
    "__metadata__",
    "é",
]


# ---- JSON ----------------------------------------------------------------------------------------


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every place in a document, the document itself left out."""
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    for key, part in parts:
        yield (*path, key)
        yield from places(part, (*path, key))


def altered(document: Any, rng: random.Random) -> tuple[str, Any]:
    """A document with one value, key or entry changed."""
    document = json.loads(json.dumps(document))
    path = rng.choice(list(places(document)))
    owner = document
    for key in path[:-1]:
        owner = owner[key]
    key = path[-1]
    way = rng.choice(["value", "value", "value", "gone", "more", "renamed"])
    if way == "value":
        owner[key] = rng.choice(VALUES)
        return f"{path} is {repr(owner[key])[:40]}", document
    if way == "gone":
        del owner[key]
    elif isinstance(owner, list):
        owner.append(rng.choice(VALUES))
    elif way == "more":
        owner[rng.choice(NAMES)] = rng.choice(VALUES)
    else:
        owner[rng.choice(NAMES)] = owner.pop(key)
    return f"{path} {way}", document


def of_json(name: str, data: bytes, rng: random.Random, number: int) -> Iterator[Mutation]:
    """Values changed under the old checksum, and what is no JSON object of ours."""

    def write(text: str | bytes) -> Callable[[Path], Any]:
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        return lambda folder: (folder / name).write_bytes(raw)

    document = json.loads(data)
    text = data.decode()
    yield Mutation(f"{name}: reformatted", "same", write(json.dumps(document, indent=7)))
    first = next(iter(document))
    for what, harmed in {
        "a key twice": "{"
        + f"{json.dumps(first)}: {json.dumps(document[first])},"
        + text.lstrip()[1:],
        "deep": text.rstrip()[:-1] + ', "deep": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "deep objects": '{"a":' * 50_000 + "1" + "}" * 50_000,
        "a number of many digits": text.rstrip()[:-1] + ', "n": ' + "9" * 100_000 + "}",
        "NaN": text.rstrip()[:-1] + ', "n": NaN}',
        "infinity": text.rstrip()[:-1] + ', "n": -Infinity}',
        "beyond infinity": text.rstrip()[:-1] + ', "n": 1e999}',
        "a list": "[" + text + "]",
        "null": "null",
        "UTF-16": text.encode("utf-16"),
        "20 MB": text + " " * (20 << 20),
    }.items():
        yield Mutation(f"{name}: {what}", "same" if what == "UTF-16" else "refused", write(harmed))
    for _ in range(number):
        way, harmed = altered(document, rng)
        yield Mutation(f"{name}: {way}", "same", write(json.dumps(harmed)))


# ---- safetensors ---------------------------------------------------------------------------------


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and numbers of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header: Any, numbers: bytes) -> bytes:
    text = (
        header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    )
    return struct.pack("<Q", len(text)) + text + numbers


def safetensors_of(data: bytes, rng: random.Random, number: int) -> Iterator[tuple[str, bytes]]:
    """Headers that promise what isn't there."""
    header, numbers = split(data)
    name = next(key for key in header if key != "__metadata__")
    text = json.dumps(header)
    entry = header[name]
    for size in (0, 1, 2**24 + 1, 2**32, 2**63 - 1, 2**64 - 1):
        yield f"a header of {size}", struct.pack("<Q", size) + data[8:]
    yield (
        "a name twice",
        joined(("{" + f'"{name}": {json.dumps(entry)}, ' + text[1:]).encode(), numbers),
    )
    yield "a deep header", joined(b'{"a":' * 20_000 + b"1" + b"}" * 20_000, numbers)
    yield "a list for a header", joined(b"[]", numbers)
    yield "an empty header", joined(b"{}", numbers)
    yield "deep metadata", joined({"__metadata__": {"a": [[[]]]}, **header}, numbers)
    changes: list[dict[str, Any]] = [
        *(
            {"shape": shape}
            for shape in (
                [2**40],
                [2**62, 2**62],
                [-1],
                [0],
                [],
                [1] * 5000,
                [0, 2**63],
                [2**64],
                ["3"],
            )
        ),
        *(
            {"dtype": dtype}
            for dtype in (
                "F64",
                "F16",
                "I64",
                "BOOL",
                "F8_E4M3",
                "F4",
                "C64",
                "U64",
                "X",
                "",
                5,
                None,
            )
        ),
        *(
            {"data_offsets": ends}
            for ends in ([0, 2**40], [2**63, 2**64], [-8, 0], [4, 0], [0], [0, 4, 8], "x", None)
        ),
        {"shape": [2**36], "data_offsets": [0, 2**38]},
    ]
    for change in changes:
        yield (
            f"{name} with {str(change)[:60]}",
            joined({**header, name: {**entry, **change}}, numbers),
        )
    for other in NAMES:
        yield (
            f"{name} called {other[:20]!r}",
            joined({other if k == name else k: v for k, v in header.items()}, numbers),
        )
        yield (
            f"{other[:20]!r} besides",
            joined({**header, other: {**entry, "data_offsets": [0, 4]}}, numbers),
        )
    yield f"no {name}", joined({k: v for k, v in header.items() if k != name}, numbers)
    if len(names := [key for key in header if key != "__metadata__"]) > 1:
        one, two = names[:2]
        yield "names exchanged", joined({**header, one: header[two], two: header[one]}, numbers)
    for _ in range(number):
        way, harmed = altered(header, rng)
        yield way, joined(harmed, numbers)


# ---- npz -----------------------------------------------------------------------------------------


def npy(head: str | bytes, numbers: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    head = head if isinstance(head, bytes) else head.encode()
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(head))
    return b"\x93NUMPY" + version + size + head + numbers


def zipped(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def npz_of(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Archives that promise what isn't there, bring code, or unpack to more than they are."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    first = members[0][0]
    rest = members[1:]
    good = "{'descr': '<f4', 'fortran_order': False, 'shape': (40,), }\n"
    numbers = bytes(160)
    for descr in (
        "'O'",
        "'|O'",
        "'<U5'",
        "'S0'",
        "'V8'",
        "'<M8[s]'",
        "'<c8'",
        "[('a', '<f4')]",
        "('<f4', (2**40,))",
        "5",
    ):
        yield f"dtype {descr}", zipped([(first, npy(good.replace("'<f4'", descr), numbers)), *rest])
    yield (
        "a pickle",
        zipped([(first, npy(good.replace("'<f4'", "'O'"), b"cos\nsystem\n(S'true'\ntR.")), *rest]),
    )
    for shape in (
        "(2**40,)",
        "(1099511627776,)",
        "(10**9, 10**9, 10**9)",
        "(0, 10**18)",
        "(-1,)",
        "(True,)",
        "('a',)",
        "7",
    ):
        yield f"shape {shape}", zipped([(first, npy(good.replace("(40,)", shape), numbers)), *rest])
    for head in (
        "",
        "{",
        "[" * 5000,
        "__import__('os').system('x')",
        "(" * 200 + ")" * 200,
        "{}",
        "x" * 60_000,
        "\xff",
    ):
        yield f"head {head[:20]!r}", zipped([(first, npy(head, numbers)), *rest])
    for version in (b"\x02\x00", b"\x03\x00", b"\x09\x00", b"\xff\xff"):
        yield f"version {version!r}", zipped([(first, npy(good, numbers[:8], version)), *rest])
    yield "numbers missing", zipped([(first, npy(good, numbers[:-4])), *rest])
    yield "numbers over", zipped([(first, npy(good, numbers + bytes(4))), *rest])
    yield "no .npy", zipped([(first, b"text"), *rest])
    yield "an empty member", zipped([(first, b""), *rest])
    yield "an empty archive", zipped([])
    yield "a name twice", zipped([*members, members[0]])
    for name in NAMES:
        yield (
            f"{first} called {name[:20]!r}",
            zipped([(name[:60_000] + ".npy", members[0][1]), *rest]),
        )
    # A gigabyte of zeros, written 100 times smaller than it would be held, and one that is only
    # claimed.
    head = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (268435456,), }\n")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(zipfile.ZipInfo(first), "w", force_zip64=True) as member:
            member._compress_size = 0
            member.write(head)
        for name, part in rest:
            archive.writestr(name, part)
    yield "a claim without numbers", buffer.getvalue()
    packed = zipped([(first, head + bytes(32 << 20)), *rest], zipfile.ZIP_DEFLATED)
    yield "a bomb", packed
    size = len(head) + (32 << 20)
    for claimed in (len(head), len(head) + 2**30, 2**32 - 2):
        yield (
            f"a bomb that claims {claimed}",
            packed.replace(struct.pack("<I", size), struct.pack("<I", claimed)),
        )
    small = zipped(members, zipfile.ZIP_DEFLATED)
    end = small.rindex(b"PK\x01\x02")
    for what, at, value in (
        ("encrypted", 8, 1),
        ("of an unknown method", 10, 99),
        ("of LZMA", 10, 14),
        ("of bzip2", 10, 12),
    ):
        local = (
            small[: 6 if what == "encrypted" else 8]
            + bytes([value])
            + small[7 if what == "encrypted" else 9 :]
        )
        yield f"members {what}", local[: end + at] + bytes([value]) + local[end + at + 1 :]
