"""YAML of plain values, measured before it is built, whoever wrote it.

`yaml.safe_load` makes no foreign objects, but three things pass it. An alias may stand for any
amount of text: nine lines become 10^9 values once they are validated or printed. Of two equal keys
it takes the last without a word. Some malformed values raise whatever Python raises. So the parts
of a text are counted first, as they are read, and values are made only afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .files import read_text
from .messages import brief

__all__ = ["parse_yaml", "read_yaml"]

_MOST_BYTES = 1 << 18
_MOST_VALUES = 50_000
_MOST_DEPTH = 32
_TAGS = (None, "!", "tag:yaml.org,2002:str")


def read_yaml(path: str | Path) -> Any:
    """The values of a YAML file; errors as `parse_yaml`, and for a file that is missing, no file,
    or larger than a page of config (256 kB)."""
    path = Path(path)
    try:
        text = read_text(path, _MOST_BYTES, "name one that is there, and a page of YAML")
    except ValueError as error:
        raise ValueError(f"cannot read config {error}") from error
    return parse_yaml(text, f"config {path}")


def parse_yaml(text: str, where: str) -> Any:
    """The values of a YAML text: null, text, numbers, yes or no, dates, lists and dicts.

    Args:
        where: begins the messages.

    Raises:
        ValueError: not YAML, a key given twice, a tag, an alias inside what it stands for, more
            than 50,000 values once aliases are written out, or more than 32 levels.
    """
    if len(text) > _MOST_BYTES:
        raise ValueError(
            f"{where}: expected at most {_MOST_BYTES:,} letters of YAML, got {len(text):,}"
        )
    try:
        _measure(text)
        value = yaml.safe_load(text)
        _check_keys(value)
        return value
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    except _Refused as error:
        raise ValueError(f"{where}: {error}") from error
    # A date such as 2024-13-45 or a number of ten thousand digits is what Python says it is.
    except (
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise ValueError(f"{where} is not valid YAML: {brief(error)}") from error


class _Refused(Exception):
    """YAML that is well formed and not for us."""


def _check_keys(value: Any) -> None:
    """Raise `_Refused` for a key that is no text: YAML takes 1, on, no and null for something
    else."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise _Refused(f"expected keys of text, got {brief(key)}; put it in quotes")
            _check_keys(entry)
    elif isinstance(value, list):
        for entry in value:
            _check_keys(entry)


def _measure(text: str) -> None:
    """Raise `_Refused` for what `parse_yaml` doesn't take. Nothing is built: events are counted as
    they are read."""
    count = _Count()
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = f"in line {event.start_mark.line + 1}"
        if getattr(event, "tag", None) not in _TAGS:
            raise _Refused(f"expected values without a tag, got {brief(event.tag)} {line}")
        if isinstance(event, yaml.CollectionStartEvent):
            count.open(event.anchor, is_dict=isinstance(event, yaml.MappingStartEvent))
        elif isinstance(event, yaml.CollectionEndEvent):
            count.close()
        elif isinstance(event, yaml.ScalarEvent):
            count.add(1, event.anchor, event.value)
        elif isinstance(event, yaml.AliasEvent):
            count.repeat(event.anchor, line)
        count.check(line)


class _Count:
    """How many values a text stands for so far, with its aliases written out."""

    def __init__(self) -> None:
        self.levels = [_Level(None)]
        # Values of what an anchor names; None while it is still open.
        self.sizes: dict[str, int | None] = {}
        self.repeated: str | None = None

    def open(self, anchor: str | None, *, is_dict: bool) -> None:
        """A list or a dict begins."""
        self.levels.append(_Level(anchor, set() if is_dict else None))
        if anchor is not None:
            self.sizes[anchor] = None

    def close(self) -> None:
        """The innermost one ends."""
        level = self.levels.pop()
        self.add(level.size + 1, level.anchor)

    def repeat(self, anchor: str, line: str) -> None:
        """An alias stands for what `anchor` names."""
        size = self.sizes.get(anchor, 0)
        if size is None:
            raise _Refused(
                f"expected no alias inside what it stands for, got *{brief(anchor)} {line}"
            )
        self.add(size)

    def add(self, size: int, anchor: str | None = None, text: str | None = None) -> None:
        """An entry of that many values; `text` of one that is no list, dict or alias."""
        if anchor is not None:
            self.sizes[anchor] = size
        self.repeated = self.levels[-1].add(size, text)

    def check(self, line: str) -> None:
        """Raise `_Refused` where the last event was one too many."""
        if self.repeated is not None:
            raise _Refused(f"expected each key once, got {brief(self.repeated)} again {line}")
        if len(self.levels) > _MOST_DEPTH:
            raise _Refused(f"expected at most {_MOST_DEPTH} levels, got more {line}")
        if sum(level.size for level in self.levels) > _MOST_VALUES:
            raise _Refused(
                f"expected at most {_MOST_VALUES:,} values, aliases written out, got more {line}"
            )


class _Level:
    """A list, or with `keys` a dict, while its entries arrive."""

    def __init__(self, anchor: str | None, keys: set[str] | None = None) -> None:
        self.anchor = anchor
        self.keys = keys
        self.size = 0
        self.entries = 0

    def add(self, size: int, text: str | None) -> str | None:
        """Count an entry; returns a key that was there before."""
        self.size = self.size + size
        self.entries = self.entries + 1
        # In a dict keys and values take turns.
        if self.keys is None or text is None or self.entries % 2 == 0:
            return None
        if text in self.keys:
            return text
        self.keys.add(text)
        return None
