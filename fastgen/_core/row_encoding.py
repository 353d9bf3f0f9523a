"""Encoders of rows: how a module that makes features of raw rows is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .messages import brief

__all__ = ["RowKind", "encode_rows", "rows_of_kind"]


class RowKind(NamedTuple):
    """What rows an encoder is called with: the shape of one, and their dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def rows_of_kind(name: str, rows: Tensor, kind: RowKind) -> Tensor:
    """Rows (B, T, ...) of a column in the dtype that its encoder is called with.

    Raises:
        ValueError: rows of another shape.
        TypeError: other numbers, such as pixels from 0 to 1 in place of uint8.
    """
    if rows.ndim < 2 or tuple(rows.shape[2:]) != kind.shape:
        sizes = "".join(f", {size}" for size in kind.shape)
        raise ValueError(
            f"expected raw observations {name} of shape (B, T_z{sizes}), got {tuple(rows.shape)}"
        )
    if _family(rows.dtype) != _family(kind.dtype):
        raise TypeError(
            f"expected raw observations {name} in {_said(kind.dtype)}, as the encoder was given "
            f"them in training, got {_said(rows.dtype)}"
        )
    return rows.to(kind.dtype)


def _family(dtype: torch.dtype) -> str:
    """Dtypes of one family hold the same numbers, but for their digits."""
    if dtype.is_floating_point:
        return "real"
    return _said(dtype) if dtype in (torch.uint8, torch.bool) else "whole"


def _said(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.no_grad()
def encode_rows(encoder: nn.Module, columns: Sequence[str], rows: Mapping[str, Tensor]) -> Tensor:
    """The features (B, d) of some rows, on the CPU.

    Args:
        encoder: called with the rows of one column, (B, ...), or with a dict of those of several.
        columns: their names.
        rows: by name, (B, ...) each, as the data hold them; moved to where the encoder is.

    Raises:
        ValueError: it can't be called so, or answers something else than B rows of finite numbers.
    """
    place = next((value.device for value in encoder.parameters()), torch.device("cpu"))
    given: Any = {name: rows[name].to(place) for name in columns}
    count = len(rows[columns[0]])
    if len(columns) == 1:
        given = given[columns[0]]
    try:
        answer: Any = encoder(given)
    # Whatever a network of somebody's own meets in rows that it wasn't made for.
    except Exception as error:
        shapes = {name: tuple(rows[name].shape) for name in columns}
        raise ValueError(
            f"expected an encoder of the rows {shapes}, got: {brief(error)}; let it take them as "
            "the data hold them"
        ) from error
    if not isinstance(answer, Tensor) or not answer.is_floating_point():
        got = answer.dtype if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(f"expected an encoder that answers real numbers (B, d), got {got}")
    if answer.ndim != 2 or len(answer) != count or answer.shape[1] == 0:
        raise ValueError(
            f"expected an encoder that answers ({count}, d) to {count} rows, got "
            f"{tuple(answer.shape)}"
        )
    if not bool(torch.isfinite(answer).all()):
        raise ValueError("expected an encoder that answers finite numbers, got NaN or infinity")
    return answer.cpu()
