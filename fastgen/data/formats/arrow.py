"""Columns of Apache Arrow, as Parquet and Arrow files hold them: what they are, and their numbers
as tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .parts import kept_numbers, needed
from .source import Column, kind_of_rows

__all__ = ["columns_of", "files_of", "numbers_of"]

_MOST_DEPTH = 8


def columns_of(schema: Any) -> dict[str, Column]:
    """The columns of an Arrow schema; those of a struct are named `struct/field`.

    Lists have a shape here where their type says their length; else of an unknown length, 0.
    """
    found: dict[str, Column] = {}
    for field in schema:
        _describe(field.name, field.type, found, 0)
    return found


def _describe(name: str, kind: Any, found: dict[str, Column], depth: int) -> None:
    pa = needed("pyarrow", "parquet", "Arrow columns")

    if pa.types.is_struct(kind):
        members = {field.name for field in kind}
        if members == {"bytes", "path"}:  # a picture as the package datasets keeps it
            found[name] = Column("image", (), "image", packed=True)
        elif depth < _MOST_DEPTH:
            for field in kind:
                _describe(f"{name}/{field.name}", field.type, found, depth + 1)
        return
    shape, inner = _shape(kind)
    if pa.types.is_floating(inner) or pa.types.is_integer(inner) or pa.types.is_boolean(inner):
        found[name] = Column(kind_of_rows(shape), shape, str(inner))
    elif pa.types.is_string(inner) or pa.types.is_large_string(inner):
        found[name] = Column("text", shape, str(inner))
    elif not shape and (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        found[name] = Column("other", (), "binary", packed=True)  # as pictures of Minari
    else:
        found[name] = Column("other", shape, str(kind)[:40])


def _shape(kind: Any) -> tuple[tuple[int, ...], Any]:
    """The lengths of nested lists, 0 where they aren't said, and what the innermost holds."""
    pa = needed("pyarrow", "parquet", "Arrow columns")

    shape = []
    while len(shape) < _MOST_DEPTH:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        if pa.types.is_fixed_size_list(kind):
            shape.append(kind.list_size)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            shape.append(0)
        else:
            break
        kind = kind.value_type
    return tuple(shape), kind


def files_of(values: Any) -> list[bytes | None]:
    """The bytes of each row of an Arrow array of binary values, or of structs with a field of them,
    `bytes`; None where there are none."""
    pa = needed("pyarrow", "parquet", "Arrow columns")

    if pa.types.is_struct(values.type):
        missing = values.is_null().to_pylist()
        files = values.field("bytes").to_pylist()
        return [None if gone else file for gone, file in zip(missing, files, strict=True)]
    return values.to_pylist()


def numbers_of(values: Any, where: str) -> Tensor:
    """The numbers (n, *shape) of an Arrow array of numbers, or of lists of one length.

    Raises:
        ValueError: values that are missing, or lists of different length.
    """
    import numpy as np

    pa = needed("pyarrow", "parquet", "Arrow columns")

    shape = [len(values)]
    while True:
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        if values.null_count:
            raise ValueError(
                f"{where}: expected a value in every row, got {values.null_count} missing; fill or "
                "remove them"
            )
        kind = values.type
        if pa.types.is_fixed_size_list(kind):
            shape.append(kind.list_size)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            lengths = np.diff(values.offsets.to_numpy())
            if len(lengths) and lengths.min() != lengths.max():
                raise ValueError(
                    f"{where}: expected rows of one length, got {lengths.min()} to {lengths.max()} "
                    "numbers; it can't be used"
                )
            shape.append(int(lengths[0]) if len(lengths) else 0)
        else:
            break
        values = values.flatten()
    array = values.to_numpy(zero_copy_only=False)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{where}: expected numbers, got {values.type}")
    return torch.from_numpy(np.array(kept_numbers(array, where))).reshape(shape)
