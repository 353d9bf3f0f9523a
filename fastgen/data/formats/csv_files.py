"""CSV: a line of names, then a line for each row.

Columns `x_0`, `x_1`, ... (or `x.0`, `x[0]`) are one column `x` of as many channels. Columns of
anything but numbers are text. An empty field is a number that is missing, NaN.
"""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..._core.files import open_file
from ..._core.messages import first_names
from .csv_columns import quick_columns
from .parts import check_part, check_unpacked, ends_of, foreign
from .source import EPISODE_COLUMNS, Column, Source

__all__ = ["open_csv", "together"]

_MOST_COLUMNS = 4096
_NUMBERED = re.compile(r"(?P<name>.+?)(?:_(?P<a>\d{1,4})|\.(?P<b>\d{1,4})|\[(?P<c>\d{1,4})\])")
_ERRORS = (UnicodeDecodeError, csv.Error, OSError, OverflowError)


def open_csv(path: Path) -> Source:
    """The rows of a CSV file, held in memory as float64; `,`, `;` or a tab between the fields.

    Raises:
        ValueError: not UTF-8, no names, a name given twice, lines of different length, no column
            with the number of each row's episode, or episodes in several places.
    """
    check_part(path)
    with foreign(path, "a CSV file in UTF-8", _ERRORS):
        names, values = _read(path)
    groups = together(names)
    columns = {}
    for name, members in groups.items():
        numbers = all(member in values for member in members)
        shape = () if members == [name] else (len(members),)
        columns[name] = Column("numbers" if numbers else "text", shape, "number")
    key = next((name for name in EPISODE_COLUMNS if name in values), None)
    if key is None:
        raise ValueError(
            f"{path}: expected a column {' or '.join(EPISODE_COLUMNS)} with the number of each "
            f"row's episode, got {first_names(names)}; add one"
        )
    ends = ends_of(values[key], f"{path}, {key}")

    def read(chosen: Sequence[str]) -> dict[str, Tensor]:
        return {
            name: values[name]
            if groups[name] == [name]
            else torch.stack([values[member] for member in groups[name]], 1)
            for name in chosen
        }

    return Source("CSV", path, columns, ends, read)


def together(names: Sequence[str]) -> dict[str, list[str]]:
    """Column -> the columns of a table that are its channels.

    `x_0`, `x_1`, ..., from 0 on without a gap, are the column `x`, unless one has that name; any
    other is a column alone.
    """
    numbered: dict[str, dict[int, str]] = {}
    for name in names:
        if found := _NUMBERED.fullmatch(name):
            number = next(text for text in found.group("a", "b", "c") if text is not None)
            numbered.setdefault(found["name"], {})[int(number)] = name
    whole = {
        base: [members[i] for i in range(len(members))]
        for base, members in numbered.items()
        if base not in names and set(members) == set(range(len(members)))
    }
    base_of = {member: base for base, members in whole.items() for member in members}
    groups: dict[str, list[str]] = {}
    for name in names:
        base = base_of.get(name, name)
        groups[base] = whole.get(base, [name])
    return groups


def _read(path: Path) -> tuple[list[str], dict[str, Tensor]]:
    """The names of the columns, and the numbers (M,) of those that hold numbers."""
    size = path.stat().st_size
    lines = _lines(path)
    names = next(lines, [])
    if not names or len(names) > _MOST_COLUMNS:
        raise ValueError(
            f"{path}: expected a line of 1 to {_MOST_COLUMNS:,} names, got {len(names):,}"
        )
    if len(set(names)) < len(names):
        repeated = {name for name in names if names.count(name) > 1}
        raise ValueError(f"{path}: expected one column of each name, got {first_names(repeated)}")
    # A field of two letters becomes eight bytes.
    check_unpacked(str(path), 4 * size, size)
    quick = quick_columns(path, _delimiter(path), len(names))
    if quick is None:
        return names, _slowly(path, names, lines)
    found = {name: _all_numbers(column) for name, column in zip(names, quick, strict=True)}
    return names, {name: column for name, column in found.items() if column is not None}


def _all_numbers(column: Tensor | list[str]) -> Tensor | None:
    """The numbers of a column; None for one that holds anything else."""
    if isinstance(column, Tensor):
        return column
    numbers = array("d")
    for text in column:
        value = _number(text.strip())
        if value is None:
            return None
        numbers.append(value)
    return torch.tensor(numbers, dtype=torch.float64)


def _slowly(path: Path, names: list[str], lines: Iterator[list[str]]) -> dict[str, Tensor]:
    """The columns of numbers, line by line."""
    values = {index: array("d") for index in range(len(names))}
    for number, line in enumerate(lines, start=2):
        if len(line) != len(names):
            raise ValueError(
                f"{path}: expected {len(names)} fields in line {number}, got {len(line)}"
            )
        for index in list(values):
            value = _number(line[index])
            if value is None:
                del values[index]
            else:
                values[index].append(value)
    return {
        names[index]: torch.tensor(column, dtype=torch.float64) for index, column in values.items()
    }


def _number(text: str) -> float | None:
    """The number in a field, NaN for an empty one; None for text."""
    if not text.strip():
        return float("nan")
    if "_" in text:  # Python reads 1_0 as ten; in a table it is a name
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _lines(path: Path) -> Iterator[list[str]]:
    """The fields of each line that isn't empty."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        for line in csv.reader(file, delimiter=_delimiter(path)):
            if line:
                yield [field.strip() for field in line]


def _delimiter(path: Path) -> str:
    """What stands between the names."""
    with open_file(path) as file:
        first = file.readline(1 << 20).decode("utf-8-sig")
    return max(",;\t", key=first.count)
