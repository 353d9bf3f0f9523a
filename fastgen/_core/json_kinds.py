"""Kinds of JSON: what a value must be that is read back from a file.

A kind is a function of a value and of its name. It returns what is wrong, None if nothing is:

    STATE = record({"step": count, "scores": mapping(maybe(number))})
    STATE({"step": -1, "scores": {}}, "state")
    -> "expected state.step as a whole number from 0 on, got -1"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .checks import is_count
from .messages import brief, differences

__all__ = [
    "Kind",
    "check_kind",
    "count",
    "listed",
    "mapping",
    "maybe",
    "number",
    "plain",
    "positive",
    "record",
    "text",
]

Kind = Callable[[Any, str], str | None]

# Counts and numbers that arithmetic of Python, JSON and torch agrees about.
_MOST_COUNT = 2**53
_MOST_NUMBER = 1e300
_MOST_LETTERS = 1 << 16
_MOST_DEPTH = 4


def check_kind(value: Any, kind: Kind, name: str, where: str, remedy: str) -> None:
    """ValueError that begins with `where` and ends with `remedy`, unless `value` is of a kind."""
    wrong = kind(value, name)
    if wrong is not None:
        raise ValueError(f"{where}: {wrong}; {remedy}")


def count(value: Any, name: str) -> str | None:
    """A whole number from 0 on."""
    if is_count(value, 0) and value <= _MOST_COUNT:
        return None
    return _wrong(name, "a whole number from 0 on", value)


def number(value: Any, name: str) -> str | None:
    """A number, whole or not."""
    if type(value) in (int, float) and -_MOST_NUMBER < value < _MOST_NUMBER:
        return None
    return _wrong(name, "a number", value)


def positive(value: Any, name: str) -> str | None:
    """A number above 0 whose inverse is one, too."""
    if number(value, name) is None and value > 1.0 / _MOST_NUMBER:
        return None
    return _wrong(name, "a number above 0", value)


def text(value: Any, name: str) -> str | None:
    """Letters that any file can hold."""
    if isinstance(value, str) and len(value) <= _MOST_LETTERS and not _has_half_letters(value):
        return None
    return _wrong(name, "text", value)


def plain(value: Any, name: str) -> str | None:
    """Null, yes or no, a number, text, or lists and objects of these, a few levels deep."""
    return _plain(value, name, 0)


def _plain(value: Any, name: str, depth: int) -> str | None:
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        return text(value, name)
    if not isinstance(value, list | dict):
        return number(value, name)
    if depth == _MOST_DEPTH:
        return f"expected at most {_MOST_DEPTH} levels in {name}, got more"
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for index, part in parts:
        key = str(index)
        wrong = text(key, f"a key of {name}") or _plain(part, _inside(name, key), depth + 1)
        if wrong is not None:
            return wrong
    return None


def maybe(kind: Kind) -> Kind:
    """Null, or a value of `kind`."""
    return lambda value, name: None if value is None else kind(value, name)


def listed(kind: Kind) -> Kind:
    """A list of values of `kind`."""

    def check(value: Any, name: str) -> str | None:
        if not isinstance(value, list):
            return _wrong(name, "a list", value)
        found = (kind(part, f"{name}[{i}]") for i, part in enumerate(value))
        return next((wrong for wrong in found if wrong is not None), None)

    return check


def mapping(kind: Kind) -> Kind:
    """An object with any keys and values of `kind`."""

    def check(value: Any, name: str) -> str | None:
        if not isinstance(value, dict):
            return _wrong(name, "an object", value)
        for key, part in value.items():
            wrong = text(key, f"a key of {name}") or kind(part, _inside(name, key))
            if wrong is not None:
                return wrong
        return None

    return check


def record(
    kinds: Mapping[str, Kind],
    *,
    optional: Mapping[str, Kind] | None = None,
    others: Kind | None = None,
) -> Kind:
    """An object with these keys and no others.

    Args:
        kinds: what each of the keys must be.
        optional: keys that may be missing.
        others: what is under any other key; None: there is none.
    """
    known = {**kinds, **(optional or {})}

    def check(value: Any, name: str) -> str | None:
        if not isinstance(value, dict):
            return _wrong(name, "an object", value)
        found = set(value)
        if others is not None:
            found &= kinds.keys()
        if said := differences(set(kinds), found - (known.keys() - kinds.keys())):
            return f"expected the keys {', '.join(kinds)} of {name}, got them with {said}"
        for key, part in value.items():
            kind = known.get(key, others)
            wrong = text(key, f"a key of {name}")
            if wrong is None and kind is not None:
                wrong = kind(part, _inside(name, key))
            if wrong is not None:
                return wrong
        return None

    return check


def _wrong(name: str, what: str, value: Any) -> str:
    return f"expected {name} as {what}, got {brief(value)}"


def _inside(name: str, key: str) -> str:
    short = key if key.isprintable() and len(key) <= 40 else brief(key[:40])
    return f"{name}.{short}"[-120:]


def _has_half_letters(value: str) -> bool:
    """Whether there are halves of UTF-16 letters, which no UTF-8 file can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False
