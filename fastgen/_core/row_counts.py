"""Row counts: how many rows went through a network, by part of a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._compile import _disable_dynamo

__all__ = ["CHECKS", "RowCount"]

# What is asked outside of every part.
CHECKS = "checks"


class RowCount:
    """Counts rows in the part of the job that is going on; outside of all parts, as "checks".

    Attributes:
        rows: part -> its rows since they were last taken.
    """

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self._part = CHECKS

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is asked inside as `name`; a part inside another one has its own rows."""
        outer = self._part
        self._part = name
        try:
            yield
        finally:
            self._part = outer

    def add(self, rows: int) -> None:
        """So many more rows."""
        add = _uncompiled if torch.compiler.is_compiling() else _add
        add(self.rows, self._part, rows)

    def take(self, part: str) -> int:
        """The rows of `part` since the last time; it starts anew."""
        return self.rows.pop(part, 0)


def _add(rows: dict[str, int], part: str, more: int) -> None:
    rows[part] = rows.get(part, 0) + int(more)


# A compiler would compile anew for each number. `torch.compiler.disable` says the same, but loads
# the compiler at once, for seconds of every start.
_uncompiled: Any = _disable_dynamo(_add)
