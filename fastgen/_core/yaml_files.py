"""YAML that is measured before it is built: a page of plain values, whoever wrote it.

`yaml.safe_load` makes no foreign objects, but it lets an alias stand for any amount of text (nine
lines become 10^9 values once they are validated or printed), takes the last of two equal keys
without a word, and leaves some malformed values to whatever Python raises. Here the events are
counted first, as they come, and only then are values made.
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
        _measure(text, where)
        return yaml.safe_load(text)
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


def _measure(text: str, where: str) -> None:
    """Raise `_Refused` for what `parse_yaml` doesn't take; events come as they are read, so nothing
    is built."""
    sizes: dict[str, int | None] = {}  # of what an anchor names; None while it is still open
    levels: list[_Level] = [_Level(None)]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        anchor = getattr(event, "anchor", None)
        if getattr(event, "tag", None) not in _TAGS:
            raise _Refused(f"expected values without a tag, got {brief(event.tag)} in line {line}")
        if isinstance(event, yaml.CollectionStartEvent):
            levels.append(
                _Level(anchor, set() if isinstance(event, yaml.MappingStartEvent) else None)
            )
            if anchor is not None:
                sizes[anchor] = None
            if len(levels) > _MOST_DEPTH:
                raise _Refused(f"expected at most {_MOST_DEPTH} levels, got more in line {line}")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            closed = levels.pop()
            size = closed.size + 1
            anchor = closed.anchor
            key = None
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
            key = event.value
        elif isinstance(event, yaml.AliasEvent):
            if sizes.get(event.anchor, 0) is None:
                raise _Refused(
                    f"expected no alias inside what it stands for, got *{brief(event.anchor)} in "
                    f"line {line}"
                )
            size = sizes.get(event.anchor) or 0
            anchor = None
            key = None
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        if (repeated := levels[-1].add(size, key)) is not None:
            raise _Refused(f"expected each key once, got {brief(repeated)} again in line {line}")
        if sum(level.size for level in levels) > _MOST_VALUES:
            raise _Refused(
                f"expected at most {_MOST_VALUES:,} values, aliases written out, got more in line "
                f"{line}"
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
        if self.keys is None or text is None or self.entries % 2 == 0:
            return None
        if text in self.keys:
            return text
        self.keys.add(text)
        return None
