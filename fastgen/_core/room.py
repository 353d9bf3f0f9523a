"""Room in memory: what is free, what would not fit, and words for an allocation that failed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ContextDecorator
from pathlib import Path

from .messages import brief

__all__ = ["check_room", "free_memory", "naming_what_to_lower"]

_OWN_GROUPS = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")
# What torch says where memory is refused, or a size passes what it can count.
_SAID = (
    "can't allocate memory",
    "out of memory",
    "Storage size calculation overflowed",
    "invalid size, possible overflow",
    "too many elements",
    "numel: integer multiplication overflow",
    "Overflow when unpacking long",
    "too large to convert to C",
    "too big to convert",
    "index-sized integer",
)


def free_memory() -> int | None:
    """Bytes that this process can still take: free on the machine, or less where its group of
    processes is limited (a container); None where the system doesn't tell."""
    found = [_free_on_the_machine(), *_left_in_groups()]
    return min((size for size in found if size is not None), default=None)


def check_room(key: str, count: int, each: float) -> None:
    """Refuse a count whose tensors can't be held in CPU memory.

    Args:
        key: its name.
        count: as the user gave it.
        each: bytes that one of them takes at least.

    Raises:
        ValueError: such as `expected train.kd_pairs <= 21,000,000, for which there is memory here,
            got 100,000,000,000, which take 52,000 GB`.
    """
    free = free_memory()
    if free is None or count * each <= free:
        return
    raise ValueError(
        f"expected {key} <= {int(free // each):,}, for which there is memory here, got {count:,}, "
        f"which take {count * each / 1e9:,.0f} GB"
    )


class naming_what_to_lower(ContextDecorator):  # noqa: N801  (read as a verb)
    """Inside, an allocation that fails is a MemoryError that names the keys to lower. No generator:
    each call of a sampler goes through it.

    Raises:
        MemoryError: such as `out of memory (... you tried to allocate 800 bytes): lower
            train.batch_size`.
    """

    def __init__(self, *keys: str) -> None:
        self.keys = keys

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        if not isinstance(error, MemoryError | RuntimeError | OverflowError | TypeError):
            return
        failed = isinstance(error, MemoryError) or any(words in str(error) for words in _SAID)
        if not failed or getattr(error, "keys_are_named", False):
            return
        named = MemoryError(f"out of memory ({brief(error)}): lower {' or '.join(self.keys)}")
        named.keys_are_named = True  # pyright: ignore[reportAttributeAccessIssue]
        raise named from error


def _free_on_the_machine() -> int | None:
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _left_in_groups() -> Iterator[int]:
    """What is left of the limit of each control group that this process may be in."""
    own = [line.rpartition(":")[2].lstrip("/") for line in _text(_OWN_GROUPS).splitlines()]
    for group in {_ROOT, _ROOT / "memory", *(_ROOT / name for name in own)}:
        for most, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit = _text(group / most).strip()
            taken = _text(group / used).strip()
            if limit.isdigit() and taken.isdigit():
                # Files that were read long ago are given back when memory is wanted.
                yield max(0, int(limit) - int(taken) + _cached(group / "memory.stat"))


def _cached(stat: Path) -> int:
    for line in _text(stat).splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
