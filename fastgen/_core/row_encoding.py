"""Encoders of rows: how a module that makes features of raw rows is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .messages import brief

__all__ = ["encode_rows"]


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
