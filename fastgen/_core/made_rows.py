"""Tensors whose rows are made when they are taken: data that are too many for memory.

To who takes batches such a tensor is one like any other. It has the shape and dtype of the whole,
and `x[rows]` or `x[start:stop]` makes these rows. So many that they are no batch are not made at
once: that part is a tensor whose rows are made, again. Any other operation makes all rows first
where they are few, and is refused where they are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "MadeRows",
    "RowMaker",
    "blocks_of",
    "channels_of",
    "even_rows",
    "evenly",
    "extremes",
    "made_of",
    "maker_of",
    "mapped_rows",
    "part_of",
    "vectors_of",
    "zipped_rows",
]

# Numbers that are made at once when rows are taken, and when an operation needs all rows.
_MOST_TAKEN = 1 << 24
_MOST_WHOLE = 1 << 28
# Numbers of a block.
_BLOCK = 1 << 18


class RowMaker:
    """What makes the rows of a tensor (N, *shape). A subclass has `shape`, `dtype` and `take`.

    Attributes:
        shape: of the whole, (N, ...).
        dtype: of its numbers.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    def take(self, rows: Tensor) -> Tensor:
        """The rows (n,) of these numbers, (n, *shape[1:])."""
        raise NotImplementedError

    def part(self, rows: Tensor) -> RowMaker:
        """The maker of these rows alone."""
        return _Part(self, rows)

    def vectors(
        self, step: int | None = None, mask: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """All vectors (n, d) of the last axis, a block at a time, and how often each is there (n,).

        Args:
            step: of trajectories (N, T, d) those of one time step; None: of all.
            mask: those that it calls real, (N, T) of bool; None: all.
        """
        for start, stop in _spans(self.shape):
            made = self.take(torch.arange(start, stop))
            real = None if mask is None else mask[start:stop]
            if step is not None:
                made = made[:, step]
                real = None if real is None else real[:, step]
            made = made.reshape(-1, made.shape[-1]) if real is None else made[real]
            if len(made):
                yield made, torch.ones(len(made), dtype=torch.int64)

    def contents(self) -> Iterator[Tensor]:
        """Tensors of which all rows are a pure function, to tell it from another maker."""
        for start, stop in _spans(self.shape):
            yield self.take(torch.arange(start, stop))


class _Part(RowMaker):
    def __init__(self, whole: RowMaker, rows: Tensor) -> None:
        self.whole = whole
        self.rows = rows
        self.shape = (len(rows), *whole.shape[1:])
        self.dtype = whole.dtype

    def take(self, rows: Tensor) -> Tensor:
        return self.whole.take(self.rows[rows])

    def part(self, rows: Tensor) -> RowMaker:
        return _Part(self.whole, self.rows[rows])


class _Mapped(RowMaker):
    def __init__(self, whole: RowMaker, function: Callable[[Tensor], Tensor]) -> None:
        self.whole = whole
        self.function = function
        like = function(whole.take(torch.arange(min(1, whole.shape[0]))))
        self.shape = (whole.shape[0], *like.shape[1:])
        self.dtype = like.dtype

    def take(self, rows: Tensor) -> Tensor:
        return self.function(self.whole.take(rows))

    def part(self, rows: Tensor) -> RowMaker:
        return _Mapped(self.whole.part(rows), self.function)


class _Converted(_Mapped):
    """The same numbers in another dtype, which keeps what is there how often."""

    def __init__(self, whole: RowMaker, dtype: torch.dtype) -> None:
        super().__init__(whole, lambda x: x.to(dtype))

    def part(self, rows: Tensor) -> RowMaker:
        return _Converted(self.whole.part(rows), self.dtype)

    def vectors(
        self, step: int | None = None, mask: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for values, counts in self.whole.vectors(step, mask):
            yield values.to(self.dtype), counts

    def contents(self) -> Iterator[Tensor]:
        return self.whole.contents()


class _Channels(_Mapped):
    """Some channels of the last axis, with what is there how often in the whole."""

    def __init__(self, whole: RowMaker, channels: Sequence[int]) -> None:
        super().__init__(whole, lambda x: x[..., channels])
        self.channels = channels

    def part(self, rows: Tensor) -> RowMaker:
        return _Channels(self.whole.part(rows), self.channels)

    def vectors(
        self, step: int | None = None, mask: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for values, counts in self.whole.vectors(step, mask):
            yield values[:, self.channels], counts


class _Held(RowMaker):
    """The rows of a tensor that is there."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.shape = tuple(rows.shape)
        self.dtype = rows.dtype

    def take(self, rows: Tensor) -> Tensor:
        return self.rows[rows]

    def contents(self) -> Iterator[Tensor]:
        yield self.rows


class _Zipped(RowMaker):
    """A function of the same rows of several tensors."""

    def __init__(self, function: Callable[..., Tensor], parts: Sequence[RowMaker]) -> None:
        self.function = function
        self.parts = parts
        rows = parts[0].shape[0]
        like = self.take(torch.arange(min(1, rows)))
        self.shape = (rows, *like.shape[1:])
        self.dtype = like.dtype

    def take(self, rows: Tensor) -> Tensor:
        return self.function(*(part.take(rows) for part in self.parts))

    def part(self, rows: Tensor) -> RowMaker:
        return _Zipped(self.function, [part.part(rows) for part in self.parts])

    def contents(self) -> Iterator[Tensor]:
        for part in self.parts:
            yield from part.contents()


class MadeRows(Tensor):
    """A tensor whose rows are made by a :class:`RowMaker`, on the CPU and without a gradient."""

    maker: RowMaker

    @staticmethod
    def __new__(cls, maker: RowMaker) -> MadeRows:
        made = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, maker.shape, dtype=maker.dtype, device=torch.device("cpu")
        )
        made.maker = maker
        return made

    def __init__(self, maker: RowMaker) -> None:
        """`maker` makes the rows."""

    def __repr__(self, **_: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"MadeRows(shape={tuple(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> MadeRows:
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        answer = _ANSWERS.get(func)
        if answer is not None:
            found = answer(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        return func(*_whole(args), **_whole(kwargs or {}))


def mapped_rows(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """`function` of rows (n, ...), which answers with as many, of all rows of `x`: now, or of a
    `MadeRows` when they are taken."""
    return MadeRows(_Mapped(x.maker, function)) if isinstance(x, MadeRows) else function(x)


def made_of(function: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    """`function` of the same rows of some tensors (N, ...), which answers with as many, made when
    they are taken."""
    return MadeRows(_Zipped(function, list(map(maker_of, parts))))


def maker_of(x: Tensor) -> RowMaker:
    """What makes the rows of a tensor, which may be there."""
    return x.maker if isinstance(x, MadeRows) else _Held(x)


def channels_of(x: Tensor, channels: Sequence[int]) -> Tensor:
    """x[..., channels]: now, or of a `MadeRows` when rows are taken."""
    return MadeRows(_Channels(x.maker, channels)) if isinstance(x, MadeRows) else x[..., channels]


def zipped_rows(function: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    """The same: now, or when rows are taken, where one of the tensors is a `MadeRows`."""
    if any(isinstance(part, MadeRows) for part in parts):
        return made_of(function, *parts)
    return function(*parts)


def vectors_of(x: Tensor, mask: Tensor | None = None) -> Iterator[Tensor]:
    """Trajectories x (N, T, d) in blocks; of a `MadeRows` the vectors (n, d) that a mask (N, T)
    calls real, some of them once for many."""
    if isinstance(x, MadeRows):
        yield from (vectors for vectors, _ in x.maker.vectors(None, mask))
    else:
        yield from blocks_of(x)


def part_of(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows]; of a `MadeRows` one again, however few rows they are."""
    return MadeRows(x.maker.part(rows)) if isinstance(x, MadeRows) else x[rows]


def blocks_of(x: Tensor, numbers: int = _BLOCK) -> Iterator[Tensor]:
    """The rows of a tensor, in blocks of about so many numbers."""
    for start, stop in _spans(tuple(x.shape), numbers):
        yield x[start:stop]


def evenly(x: Tensor, most: int) -> Tensor:
    """All rows of a tensor; of a `MadeRows` at most so many, evenly spread."""
    return x[even_rows(len(x), most)] if isinstance(x, MadeRows) else x


def even_rows(count: int, most: int) -> Tensor:
    """Some of so many rows, at most `most`, evenly spread."""
    return torch.linspace(0, count - 1, min(most, count), dtype=torch.float64).round().long()


def extremes(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Least and greatest number of each channel of x (..., d): (2, d).

    Args:
        mask: of trajectories (N, T, d) whose padding repeats what is real, (N, T): a `MadeRows` is
            looked at where it is True.
    """
    if not isinstance(x, MadeRows):
        rows = x.reshape(-1, x.shape[-1])
        return torch.stack([rows.amin(0), rows.amax(0)])
    return extremes(torch.cat([extremes(vectors) for vectors in vectors_of(x, mask)]))


def _spans(shape: tuple[int, ...], numbers: int = _BLOCK) -> Iterator[tuple[int, int]]:
    rows = max(1, numbers // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield start, min(start + rows, shape[0])


# ---- Operations ----------------------------------------------------------------------------------


def _index(x: Any, indices: Any) -> Any:
    rows = indices[0]
    if not isinstance(x, MadeRows) or len(indices) > 1 or rows is None:
        return NotImplemented
    rows = rows.cpu()
    if rows.dtype in (torch.bool, torch.uint8):
        if rows.ndim > 1:
            return NotImplemented
        rows = rows.bool().nonzero().flatten()
    if rows.numel() and (int(rows.max()) >= len(x) or int(rows.min()) < -len(x)):
        raise IndexError(f"expected rows below {len(x)}, got {int(rows.max())}")
    rows = torch.where(rows < 0, rows + len(x), rows)
    if rows.numel() * math.prod(x.shape[1:]) > _MOST_TAKEN and rows.ndim == 1:
        return MadeRows(x.maker.part(rows))
    return x.maker.take(rows.flatten()).reshape(*rows.shape, *x.shape[1:])


def _slice(x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    if dim != 0:
        return NotImplemented
    rows = torch.arange(*slice(start, end, step).indices(len(x)))
    return _index(x, [rows])


def _select(x: Any, dim: int, index: int) -> Any:
    if dim != 0:
        return NotImplemented
    return _index(x, [torch.tensor([index])])[0]


def _to(x: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> Any:
    elsewhere = device is not None and torch.device(device).type != "cpu"
    if not isinstance(x, MadeRows) or elsewhere:
        return NotImplemented
    if dtype in (None, x.dtype):
        return x
    return MadeRows(_Converted(x.maker, dtype))


def _same(x: Any) -> Any:
    return MadeRows(x.maker)


_ATEN = torch.ops.aten
_ANSWERS: dict[Any, Callable[..., Any]] = {
    _ATEN.index.Tensor: _index,
    _ATEN.slice.Tensor: _slice,
    _ATEN.select.int: _select,
    _ATEN._to_copy.default: _to,
    _ATEN.detach.default: _same,
    _ATEN.alias.default: _same,
}


def _whole(value: Any) -> Any:
    """A value with all rows of each `MadeRows` in it made."""
    if isinstance(value, MadeRows):
        if value.numel() > _MOST_WHOLE:
            raise RuntimeError(
                f"expected rows to be taken of data {tuple(value.shape)}, which are made as they "
                "are taken, got an operation on all of them at once; take a part, x[rows], first"
            )
        return value.maker.take(torch.arange(len(value)))
    if isinstance(value, tuple | list):
        return type(value)(map(_whole, value))
    if isinstance(value, dict):
        return {key: _whole(one) for key, one in value.items()}
    return value
