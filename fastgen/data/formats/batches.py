"""The rows of columns of any shape, a batch at a time, of data sets that memory doesn't hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .source import Source

__all__ = ["row_batches"]


def row_batches(source: Source, names: Sequence[str], size: int) -> Iterator[dict[str, Tensor]]:
    """All rows of some columns in order, `size` of them at a time, the last time fewer: {name:
    (m, *shape)}. No more than that, and a piece of each column, is held.

    Args:
        source: the data set.
        names: of columns that are arrays (`Column.is_array`).
        size: rows of a batch.

    Raises:
        ValueError: a column of another number of rows, with rows of several shapes, or with
            pictures of several depths.
    """
    streams = [_Stream(source, name) for name in names]
    for start in range(0, source.rows, size):
        count = min(size, source.rows - start)
        yield {stream.name: stream.take(count) for stream in streams}
    for stream in streams:
        stream.end()


class _Stream:
    """The rows of one column, in order."""

    def __init__(self, source: Source, name: str) -> None:
        self.name = name
        self._source = source
        if source.pieces is None:
            self._pieces: Iterator[Tensor] = iter([source.read([name])[name]])
        else:
            self._pieces = source.pieces(name)
        self._rest: Tensor | None = None
        self._taken = 0

    def take(self, count: int) -> Tensor:
        """The next rows, so many."""
        parts: list[Tensor] = []
        missing = count
        while missing:
            if self._rest is None or not len(self._rest):
                self._rest = self._next(self._taken + count - missing)
            parts.append(self._rest[:missing])
            self._rest = self._rest[missing:]
            missing -= len(parts[-1])
        self._taken += count
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def end(self) -> None:
        """ValueError unless all rows were taken."""
        more = len(self._rest) if self._rest is not None else 0
        more += sum(map(len, self._pieces))
        if more:
            raise self._other_number(self._taken + more)

    def _next(self, taken: int) -> Tensor:
        """The next piece, after so many rows."""
        piece = next(self._pieces, None)
        if piece is None:
            raise self._other_number(taken)
        if self._rest is not None and piece.shape[1:] != self._rest.shape[1:]:
            shapes = sorted({tuple(piece.shape[1:]), tuple(self._rest.shape[1:])})
            raise ValueError(
                f"{self._source.path}: expected {self.name} with rows of one shape, got {shapes}"
            )
        # Numbers that are wider in some files are the same numbers; a picture's levels are not.
        packed = self._source.columns[self.name].packed
        if packed and self._rest is not None and piece.dtype != self._rest.dtype:
            raise ValueError(
                f"{self._source.path}: expected pictures of one depth in {self.name}, got some of "
                "8 bits and some of 16; save all of them with as many"
            )
        return piece

    def _other_number(self, found: int) -> ValueError:
        return ValueError(
            f"{self._source.path}: expected {self._source.rows} rows of {self.name}, got {found}"
        )
