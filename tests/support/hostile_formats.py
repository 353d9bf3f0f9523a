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


# What an entry of a header may claim: more than the file holds, or what makes no sense.
CLAIMS: list[dict[str, Any]] = [
    {"shape": [2**40]},
    {"shape": [2**62, 2**62]},
    {"shape": [-1]},
    {"shape": [0]},
    {"shape": []},
    {"shape": [1] * 5000},
    {"shape": [0, 2**63]},
    {"shape": [2**64]},
    {"shape": ["3"]},
    {"dtype": "F64"},
    {"dtype": "F16"},
    {"dtype": "I64"},
    {"dtype": "BOOL"},
    {"dtype": "F8_E4M3"},
    {"dtype": "F4"},
    {"dtype": "C64"},
    {"dtype": "U64"},
    {"dtype": "X"},
    {"dtype": ""},
    {"dtype": 5},
    {"dtype": None},
    {"data_offsets": [0, 2**40]},
    {"data_offsets": [2**63, 2**64]},
    {"data_offsets": [-8, 0]},
    {"data_offsets": [4, 0]},
    {"data_offsets": [0]},
    {"data_offsets": [0, 4, 8]},
    {"data_offsets": "x"},
    {"data_offsets": None},
    {"shape": [2**36], "data_offsets": [0, 2**38]},
]


def safetensors_of(data: bytes, rng: random.Random, number: int) -> Iterator[tuple[str, bytes]]:
    """Headers that promise what isn't there."""
    header, numbers = split(data)
    yield from other_headers(data)
    yield from other_entries(header, numbers)
    yield from other_names(header, numbers)
    for _ in range(number):
        way, harmed = altered(header, rng)
        yield way, joined(harmed, numbers)


def first_name(header: dict[str, Any]) -> str:
    return next(key for key in header if key != "__metadata__")


def other_headers(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Headers of another size or another kind."""
    header, numbers = split(data)
    name = first_name(header)
    text = json.dumps(header)
    for size in (0, 1, 2**24 + 1, 2**32, 2**63 - 1, 2**64 - 1):
        yield f"a header of {size}", struct.pack("<Q", size) + data[8:]
    yield (
        "a name twice",
        joined(("{" + f'"{name}": {json.dumps(header[name])}, ' + text[1:]).encode(), numbers),
    )
    yield "a deep header", joined(b'{"a":' * 20_000 + b"1" + b"}" * 20_000, numbers)
    yield "a list for a header", joined(b"[]", numbers)
    yield "an empty header", joined(b"{}", numbers)
    yield "deep metadata", joined({"__metadata__": {"a": [[[]]]}, **header}, numbers)


def other_entries(header: dict[str, Any], numbers: bytes) -> Iterator[tuple[str, bytes]]:
    """The first tensor with every claim."""
    name = first_name(header)
    for claim in CLAIMS:
        yield (
            f"{name} with {str(claim)[:60]}",
            joined({**header, name: {**header[name], **claim}}, numbers),
        )


def other_names(header: dict[str, Any], numbers: bytes) -> Iterator[tuple[str, bytes]]:
    """Tensors of other names, one more, one less, and two exchanged."""
    name = first_name(header)
    for other in NAMES:
        yield (
            f"{name} called {other[:20]!r}",
            joined({other if k == name else k: v for k, v in header.items()}, numbers),
        )
        yield (
            f"{other[:20]!r} besides",
            joined({**header, other: {**header[name], "data_offsets": [0, 4]}}, numbers),
        )
    yield f"no {name}", joined({k: v for k, v in header.items() if k != name}, numbers)
    names = [key for key in header if key != "__metadata__"]
    if len(names) > 1:
        one = names[0]
        two = names[1]
        yield "names exchanged", joined({**header, one: header[two], two: header[one]}, numbers)


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


GOOD_HEAD = "{'descr': '<f4', 'fortran_order': False, 'shape': (40,), }\n"
GOOD_NUMBERS = bytes(160)
DTYPES = (
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
)
SHAPES = (
    "(2**40,)",
    "(1099511627776,)",
    "(10**9, 10**9, 10**9)",
    "(0, 10**18)",
    "(-1,)",
    "(True,)",
    "('a',)",
    "7",
)
HEADS = (
    "",
    "{",
    "[" * 5000,
    "__import__('os').system('x')",
    "(" * 200 + ")" * 200,
    "{}",
    "x" * 60_000,
    "\xff",
)
# Where the entry of a member in the archive's directory says so, and what.
METHODS = (
    ("encrypted", 8, 1),
    ("of an unknown method", 10, 99),
    ("of LZMA", 10, 14),
    ("of bzip2", 10, 12),
)
Members = list[tuple[str, bytes]]


def npz_of(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Archives that promise what isn't there, bring code, or unpack to more than they are."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    yield from other_arrays(members)
    yield from other_archives(members)
    yield from bombs(members)
    yield from other_methods(members)


def other_arrays(members: Members) -> Iterator[tuple[str, bytes]]:
    """The first array with another head or other numbers."""
    first = members[0][0]
    rest = members[1:]

    def archive(content: bytes) -> bytes:
        return zipped([(first, content), *rest])

    for descr in DTYPES:
        head = GOOD_HEAD.replace("'<f4'", descr)
        yield f"dtype {descr}", archive(npy(head, GOOD_NUMBERS))
    pickled = GOOD_HEAD.replace("'<f4'", "'O'")
    yield "a pickle", archive(npy(pickled, b"cos\nsystem\n(S'true'\ntR."))
    for shape in SHAPES:
        head = GOOD_HEAD.replace("(40,)", shape)
        yield f"shape {shape}", archive(npy(head, GOOD_NUMBERS))
    for head in HEADS:
        yield f"head {head[:20]!r}", archive(npy(head, GOOD_NUMBERS))
    for version in (b"\x02\x00", b"\x03\x00", b"\x09\x00", b"\xff\xff"):
        yield f"version {version!r}", archive(npy(GOOD_HEAD, GOOD_NUMBERS[:8], version))
    yield "numbers missing", archive(npy(GOOD_HEAD, GOOD_NUMBERS[:-4]))
    yield "numbers over", archive(npy(GOOD_HEAD, GOOD_NUMBERS + bytes(4)))
    yield "no .npy", archive(b"text")
    yield "an empty member", archive(b"")


def other_archives(members: Members) -> Iterator[tuple[str, bytes]]:
    """Archives with other members."""
    first, content = members[0]
    rest = members[1:]
    yield "an empty archive", zipped([])
    yield "a name twice", zipped([*members, members[0]])
    for name in NAMES:
        yield (
            f"{first} called {name[:20]!r}",
            zipped([(name[:60_000] + ".npy", content), *rest]),
        )


def bombs(members: Members) -> Iterator[tuple[str, bytes]]:
    """A gigabyte of zeros, written 100 times smaller than it would be held, and one that is only
    claimed."""
    first = members[0][0]
    rest = members[1:]
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


def other_methods(members: Members) -> Iterator[tuple[str, bytes]]:
    """Members that say they are encrypted, or packed by other methods."""
    small = zipped(members, zipfile.ZIP_DEFLATED)
    end = small.rindex(b"PK\x01\x02")
    for what, at, value in METHODS:
        # The same flag or method stands in the member's own head, two bytes earlier.
        local_at = at - 2
        local = small[:local_at] + bytes([value]) + small[local_at + 1 :]
        yield f"members {what}", local[: end + at] + bytes([value]) + local[end + at + 1 :]
