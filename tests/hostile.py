"""Damage and malice: mutations of a user's files, and a child process with little memory that loads each of them.

    python hostile.py FOLDER        a line of JSON for each mutation: what it was, what came of it

The laws a mutation can be under:

    same       an error, or what the unharmed file holds: files whose checksums say what they held
    sound      an error, or something valid: a text that a user may write as he likes, or a forged checksum
    refused    an error
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import socket
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADROOM = 64 << 20  # that an honest load of these files, all below 1 MB, never comes near
SECONDS = 20
VALUES = [
    *(None, True, False, -1, 0, 2, 10**30, -(10**30), 1e308, -1e308, 5e-324, "", "x", "../../x", "/etc/passwd", "\0"),
    *("\ud800", "x" * 5000, [], [[]], {}, {"a": 1}, [1] * 1000, 2**31, 2**63, 2**64),
]
NAMES = ["../../x", "/etc/passwd", "..", "", ".", "\0", "a" * 70_000, "C:\\x", "~/x", "X\n", "__metadata__", "é"]


@dataclass(frozen=True)
class Mutation:
    """`apply` changes the folder in which an unharmed copy lies."""

    name: str
    law: str
    apply: Callable[[Path], Any]


# ---- Any file -----------------------------------------------------------------------------------------------------


def scrambled(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One way to harm bytes, and the bytes."""
    at, n = rng.randrange(len(data)), rng.randrange(1, 64)
    junk = rng.randbytes(n)
    ways: dict[str, Callable[[], bytes]] = {
        "bit": lambda: data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
        "early bit": lambda: data[: at % 64] + bytes([data[at % 64] ^ 1 << rng.randrange(8)]) + data[at % 64 + 1 :],
        "cut": lambda: data[:at],
        "cut short": lambda: data[: at % 32],
        "last byte gone": lambda: data[:-1],
        "overwritten": lambda: data[:at] + junk + data[at + n :],
        "inserted": lambda: data[:at] + junk + data[at:],
        "appended": lambda: data + junk,
        "in front": lambda: junk + data,
        "taken out": lambda: data[:at] + data[at + n :],
        "zeros": lambda: data[:at] + bytes(n) + data[at + n :],
        "ones": lambda: data[:at] + b"\xff" * n + data[at + n :],
        "twice": lambda: data + data,
        "turned": lambda: data[at:] + data[:at],
    }
    way = rng.choice([*ways, "bit", "bit", "early bit", "cut"])
    return f"{way} at {at} of {len(data)}", ways[way]()


def of_any_file(name: str, data: bytes, law: str, rng: random.Random, number: int) -> Iterator[Mutation]:
    for _ in range(number):
        way, harmed = scrambled(data, rng)
        yield Mutation(f"{name}: {way}", law, lambda folder, harmed=harmed: (folder / name).write_bytes(harmed))


def instead_of(name: str, *, empty: str = "refused") -> Iterator[Mutation]:
    """Things that aren't files where one is expected; `empty`: the law of a file without a byte."""

    def put(make: Callable[[Path], Any]) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            (folder / name).unlink()
            make(folder / name)

        return apply

    def sparse(path: Path) -> None:
        with open(path, "wb") as file:
            file.truncate(1 << 40)

    def bound(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as end, contextlib.chdir(path.parent):
            end.bind(path.name)  # from here: the whole name may be longer than the 108 letters of a socket's

    things: dict[str, Callable[[Path], Any]] = {
        "nothing": lambda path: None,
        "empty": lambda path: path.write_bytes(b""),
        "a folder": lambda path: path.mkdir(),
        "a pipe": lambda path: os.mkfifo(path),
        "a socket": bound,
        "a link to itself": lambda path: path.symlink_to(path),
        "a link to nothing": lambda path: path.symlink_to("nowhere"),
        "a link to the folder": lambda path: path.symlink_to("."),
        "a link to zeros": lambda path: path.symlink_to("/dev/zero"),
        "a link to noise": lambda path: path.symlink_to("/dev/urandom"),
        "a link to another file": lambda path: path.symlink_to("/etc/passwd"),
        "a terabyte of zeros": sparse,
    }
    for thing, make in things.items():
        yield Mutation(f"{name}: {thing}", empty if thing == "empty" else "refused", put(make))


# ---- JSON ---------------------------------------------------------------------------------------------------------


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every place in a document, the document itself left out."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(part, (*path, key))


def altered(document: Any, rng: random.Random) -> tuple[str, Any]:
    """A document with one value, key or entry changed."""
    document = json.loads(json.dumps(document))
    path = rng.choice(list(places(document)))
    owner = document
    for key in path[:-1]:
        owner = owner[key]
    key, way = path[-1], rng.choice(["value", "value", "value", "gone", "more", "renamed"])
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

    document, text = json.loads(data), data.decode()
    yield Mutation(f"{name}: reformatted", "same", write(json.dumps(document, indent=7)))
    first = next(iter(document))
    for what, harmed in {
        "a key twice": "{" + f"{json.dumps(first)}: {json.dumps(document[first])}," + text.lstrip()[1:],
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


# ---- safetensors --------------------------------------------------------------------------------------------------


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and numbers of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header: Any, numbers: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + numbers


def safetensors_of(data: bytes, rng: random.Random, number: int) -> Iterator[tuple[str, bytes]]:
    """Headers that promise what isn't there."""
    header, numbers = split(data)
    name = next(key for key in header if key != "__metadata__")
    text = json.dumps(header)
    entry = header[name]
    for size in (0, 1, 2**24 + 1, 2**32, 2**63 - 1, 2**64 - 1):
        yield f"a header of {size}", struct.pack("<Q", size) + data[8:]
    yield "a name twice", joined(("{" + f'"{name}": {json.dumps(entry)}, ' + text[1:]).encode(), numbers)
    yield "a deep header", joined(b'{"a":' * 20_000 + b"1" + b"}" * 20_000, numbers)
    yield "a list for a header", joined(b"[]", numbers)
    yield "an empty header", joined(b"{}", numbers)
    yield "deep metadata", joined({"__metadata__": {"a": [[[]]]}, **header}, numbers)
    changes: list[dict[str, Any]] = [
        *(
            {"shape": shape}
            for shape in ([2**40], [2**62, 2**62], [-1], [0], [], [1] * 5000, [0, 2**63], [2**64], ["3"])
        ),
        *({"dtype": dtype} for dtype in ("F64", "F16", "I64", "BOOL", "F8_E4M3", "F4", "C64", "U64", "X", "", 5, None)),
        *({"data_offsets": ends} for ends in ([0, 2**40], [2**63, 2**64], [-8, 0], [4, 0], [0], [0, 4, 8], "x", None)),
        {"shape": [2**36], "data_offsets": [0, 2**38]},
    ]
    for change in changes:
        yield f"{name} with {str(change)[:60]}", joined({**header, name: {**entry, **change}}, numbers)
    for other in NAMES:
        yield (
            f"{name} called {other[:20]!r}",
            joined({other if k == name else k: v for k, v in header.items()}, numbers),
        )
        yield f"{other[:20]!r} besides", joined({**header, other: {**entry, "data_offsets": [0, 4]}}, numbers)
    yield f"no {name}", joined({k: v for k, v in header.items() if k != name}, numbers)
    if len(names := [key for key in header if key != "__metadata__"]) > 1:
        one, two = names[:2]
        yield "names exchanged", joined({**header, one: header[two], two: header[one]}, numbers)
    for _ in range(number):
        way, harmed = altered(header, rng)
        yield way, joined(harmed, numbers)


# ---- npz ----------------------------------------------------------------------------------------------------------


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
    first, rest = members[0][0], members[1:]
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
    yield "a pickle", zipped([(first, npy(good.replace("'<f4'", "'O'"), b"cos\nsystem\n(S'true'\ntR.")), *rest])
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
        yield f"{first} called {name[:20]!r}", zipped([(name[:60_000] + ".npy", members[0][1]), *rest])
    # A gigabyte of zeros, written 100 times smaller than it would be held, and one that is only claimed.
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
        yield f"a bomb that claims {claimed}", packed.replace(struct.pack("<I", size), struct.pack("<I", claimed))
    small = zipped(members, zipfile.ZIP_DEFLATED)
    end = small.rindex(b"PK\x01\x02")
    for what, at, value in (
        ("encrypted", 8, 1),
        ("of an unknown method", 10, 99),
        ("of LZMA", 10, 14),
        ("of bzip2", 10, 12),
    ):
        local = small[: 6 if what == "encrypted" else 8] + bytes([value]) + small[7 if what == "encrypted" else 9 :]
        yield f"members {what}", local[: end + at] + bytes([value]) + local[end + at + 1 :]


# ---- YAML ---------------------------------------------------------------------------------------------------------


_LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9)
)
YAMLS = {
    "aliases": _LAUGHS + "name: *a9\n",
    "aliases in arguments": f"teacher:\n  arguments:\n{''.join('    ' + line for line in _LAUGHS.splitlines(True))}",
    "merges": "".join(
        f"k{i}: &k{i}\n  a{i}: 1\n" + (f"  <<: [{', '.join([f'*k{i - 1}'] * 9)}]\n" * bool(i)) for i in range(9)
    ),
    "an alias of itself": "teacher: {arguments: &a {b: *a}}\n",
    "an alias of itself in a list": "train: &a [*a]\n",
    "a key twice": "name: a\nname: b\n",
    "a key twice below": "train: {steps: 1, steps: 2}\n",
    "a key twice, quoted": "name: a\n'name': b\n",
    "deep lists": "name: " + "[" * 50_000,
    "deep dashes": "- " * 50_000 + "1",
    "deep mappings": "".join(" " * i + "a:\n" for i in range(300)),
    "deep braces": "{a: " * 20_000,
    "code": "name: !!python/object/apply:os.system ['touch /tmp/hostile']\n",
    "a name of code": "name: !!python/name:os.system\n",
    "a module of code": "name: !!python/module:os\n",
    "new object": "name: !!python/object/new:os.system [x]\n",
    "an unknown tag": "name: !x y\n",
    "an empty int": "train: {steps: !!int ''}\n",
    "no float": "train: {steps: !!float x}\n",
    "no bool": "train: {steps: !!bool x}\n",
    "no date": "name: !!timestamp x\n",
    "bytes": "teacher: {arguments: {a: !!binary gIGC}}\n",
    "a set": "teacher: {arguments: {a: !!set {b}}}\n",
    "an impossible date": "name: 2024-13-45\n",
    "many digits": "train: {steps: " + "9" * 50_000 + "}\n",
    "many hexadecimal digits": "train: {steps: 0x" + "f" * 50_000 + "}\n",
    "not a number": "train: {steps: .nan}\n",
    "infinity": "dmd: {guidance_scale: .inf}\n",
    "not a number in a list": "dmd: {t_list: [1.0, .nan, 0.0]}\n",
    "two documents": "name: a\n---\nname: b\n",
    "a list": "- a\n",
    "a word": "word\n",
    "a list for a key": "? [a, b]\n: 1\n",
    "a mapping for a key": "? {a: b}\n: 1\n",
    "a number for a key": "1: 2\n",
    "nothing for a key": "~: 2\n",
    "a list for a group": "train: [1, 2]\n",
    "a huge t_list": "dmd: {t_list: [" + "0.5, " * 60_000 + "0.0]}\n",
    "2 MB": "name: " + "x" * (2 << 20) + "\n",
    "a NUL": "name: 'a\0b'\n",
    "UTF-8 that isn't": b"name: \xff\xfe\n",
    "a tab": "train:\n\tsteps: 1\n",
    "a directive": "%YAML 9.9\n---\nname: a\n",
    "an undefined alias": "name: *nobody\n",
}


def of_yaml(name: str, data: bytes, rng: random.Random, number: int) -> Iterator[Mutation]:
    words = [
        "null",
        "true",
        "-1",
        "1e400",
        "9" * 400,
        ".nan",
        "''",
        "'../../x'",
        "[]",
        "{}",
        "[[1]]",
        "{a: b}",
        "&a x",
        "*a",
    ]
    words += ["!!str 5", "2024-02-30", "0o9", "1:60", "0x", "~", "|", ">", "'", '"', "\\", "@", "%", "é" * 300]
    for what, text in YAMLS.items():
        raw = text if isinstance(text, bytes) else text.encode()
        yield Mutation(f"{name}: {what}", "refused", lambda folder, raw=raw: (folder / name).write_bytes(raw))
    lines = data.decode().splitlines(True)
    for _ in range(number):
        new, at = list(lines), rng.randrange(len(lines))
        way = rng.choice(["value", "value", "value", "gone", "twice", "indented", "moved", "key"])
        key, colon, _ = new[at].partition(":")
        if way == "value":
            new[at] = f"{key}{colon} {rng.choice(words)}\n"
        elif way == "key":
            new[at] = new[at].replace(key.strip(), rng.choice(words), 1)
        elif way == "gone":
            del new[at]
        elif way == "twice":
            new.insert(at, new[at])
        elif way == "indented":
            new[at] = " " * rng.randrange(1, 5) + new[at]
        else:
            new.insert(rng.randrange(len(new)), new.pop(at))
        text = "".join(new)
        law = "refused" if way == "twice" and colon else "sound"
        change = f"{name}: line {at + 1} {way}: {new[min(at, len(new) - 1)].strip()[:40]}"
        yield Mutation(change, law, lambda folder, text=text: (folder / name).write_text(text))


# ---- The child ----------------------------------------------------------------------------------------------------


class Hang(BaseException):
    """The time is up."""


def digest(value: Any) -> str:
    """Of tensors, whatever holds them, and everything else by its repr."""
    import torch

    if isinstance(value, torch.Tensor):
        value = (
            str(value.dtype),
            tuple(value.shape),
            hashlib.sha256(value.contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest(),
        )
    elif isinstance(value, dict):
        value = sorted((str(key), digest(part)) for key, part in value.items())
    elif isinstance(value, list | tuple):
        value = [digest(part) for part in value]
    return hashlib.sha256(repr(value).encode("utf-8", "surrogatepass")).hexdigest()


def outcome(load: Callable[[Path], Any], folder: Path, whole: str) -> str:
    """ "same", "other", or the error and its text."""

    def ring(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        return "same" if digest(load(folder)) == whole else "other"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def limit_memory() -> None:
    """No more address space than there is now and `HEADROOM`."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def run(kind: str, good: Path, load: Callable[[Path], Any], mutations: list[Mutation], work: Path) -> None:
    """Apply each mutation to a fresh copy of `good`, load it and print what came of it."""
    whole = digest(load(good))
    assert digest(load(good)) == whole
    limit_memory()
    for mutation in mutations:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(good, work)
        mutation.apply(work)
        print(json.dumps({"kind": kind, "mutation": mutation.name, "begun": True}), flush=True)
        came = outcome(load, work, whole)
        print(json.dumps({"kind": kind, "mutation": mutation.name, "law": mutation.law, "outcome": came}), flush=True)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    import hostile_files

    hostile_files.main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
