"""Damage and malice: mutations of a user's files, and a child process with little memory that loads
each of them.

    python hostile.py FOLDER        a line of JSON for each mutation: what it was, what came of it

What may come of loading a file is one of three laws:

    same       an error, or what the unharmed file holds: for files that hold their checksum
    sound      an error, or something valid: for a text that users write as they like, and for a
               forged checksum
    refused    an error
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADROOM = 64 << 20  # that an honest load of these files, all below 1 MB, never comes near
SECONDS = 20


@dataclass(frozen=True)
class Mutation:
    """`apply` changes the folder in which an unharmed copy lies."""

    name: str
    law: str
    apply: Callable[[Path], Any]


# ---- Any file ------------------------------------------------------------------------------------


def scrambled(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One way to harm bytes, and the bytes."""
    at = rng.randrange(len(data))
    n = rng.randrange(1, 64)
    junk = rng.randbytes(n)
    ways: dict[str, Callable[[], bytes]] = {
        "bit": lambda: data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
        "early bit": lambda: (
            data[: at % 64] + bytes([data[at % 64] ^ 1 << rng.randrange(8)]) + data[at % 64 + 1 :]
        ),
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


def of_any_file(
    name: str, data: bytes, law: str, rng: random.Random, number: int
) -> Iterator[Mutation]:
    """`number` ways to harm the bytes of a file."""
    for _ in range(number):
        way, harmed = scrambled(data, rng)
        yield Mutation(
            f"{name}: {way}", law, lambda folder, harmed=harmed: (folder / name).write_bytes(harmed)
        )


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
        # From the folder: the whole path may be longer than the 108 letters that a socket may have.
        with socket.socket(socket.AF_UNIX) as end, contextlib.chdir(path.parent):
            end.bind(path.name)

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


# ---- The child -----------------------------------------------------------------------------------


class Hang(BaseException):
    """The time is up."""


def digest(value: Any) -> str:
    """A checksum of what was loaded: of tensors, whatever holds them, and of all else by its
    repr."""
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


def run(
    kind: str, good: Path, load: Callable[[Path], Any], mutations: list[Mutation], work: Path
) -> None:
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
        print(
            json.dumps(
                {"kind": kind, "mutation": mutation.name, "law": mutation.law, "outcome": came}
            ),
            flush=True,
        )
    resource.setrlimit(
        resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_AS)[1])
    )


if __name__ == "__main__":
    from support import hostile_files

    hostile_files.main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
