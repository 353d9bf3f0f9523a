"""Encoders of students: the frozen network that made Z of raw observations, kept beside a student
so that it can be given these.

    student.safetensors    encoder.safetensors    config.json    README.md

Of the encoder the folder holds the tensors, and the columns that it is called with: their names, in
this order, and what their rows are. Its class is somebody's own: whoever loads the student builds
it and gives it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._core.checks import is_count
from .._core.json_files import check_names
from .._core.messages import brief
from .._core.modules import load_state, state_of
from .._core.row_encoding import RowKind, encode_rows, rows_of_kind
from .._core.tensor_files import TensorFile, check_tensor_entry, write_tensors
from ..networks import cast
from .networks import stored_dtype

if TYPE_CHECKING:
    from .student import Student

__all__ = [
    "ENCODER_FILE",
    "StudentEncoder",
    "check_encoder",
    "encoder_head",
    "load_encoder",
    "without_encoder",
    "write_encoder",
]

ENCODER_FILE = "encoder.safetensors"
# Of rows, by the name that config.json has.
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.bool,
    )
}


@dataclass(frozen=True)
class StudentEncoder:
    """What makes the condition Z of raw observations.

    Attributes:
        module: frozen; called with the rows of one column, or with a dict of those of several.
        columns: their names.
        rows: what it was called with, by column; {}: it isn't known, and not checked.
    """

    module: nn.Module
    columns: tuple[str, ...]
    rows: Mapping[str, RowKind] = field(default_factory=dict)

    def is_one(self, observed: Any) -> bool:
        """Whether raw observations are those of one scene, (T_z, ...) without the axis of rows.
        False where it isn't known what rows look like."""
        given = observed
        if isinstance(observed, Tensor) and len(self.columns) == 1:
            given = {self.columns[0]: observed}
        if not self.rows or not isinstance(given, Mapping) or set(given) != set(self.rows):
            return False
        return all(
            isinstance(given[name], Tensor) and given[name].ndim == 1 + len(kind.shape)
            for name, kind in self.rows.items()
        )

    def encode(self, observed: Any) -> Tensor:
        """Z (B, T_z, d_z) of observations (B, T_z, ...), a Tensor of the only column or a mapping
        of all of them by name.

        Raises:
            TypeError: neither of them, or other numbers than in training.
            ValueError: other names, or shapes that don't fit.
        """
        columns = self.columns
        given = observed
        if isinstance(observed, Tensor) and len(columns) == 1:
            given = {columns[0]: observed}
        if not isinstance(given, Mapping):
            raise TypeError(
                f"expected raw observations by name, {', '.join(columns)}, got "
                f"{type(observed).__name__}"
            )
        if set(given) != set(columns):
            raise ValueError(
                f"expected raw observations {', '.join(columns)}, got {', '.join(map(str, given))}"
            )
        given = {
            name: rows_of_kind(name, value, self.rows[name]) if name in self.rows else value
            for name, value in given.items()
        }
        sizes = {tuple(value.shape[:2]) for value in given.values() if isinstance(value, Tensor)}
        if len(sizes) != 1 or len(next(iter(sizes))) != 2:
            raise ValueError(
                f"expected raw observations (B, T_z, ...) of the same B and T_z, got "
                f"{ {name: tuple(value.shape) for name, value in given.items()} }"
            )
        rows = {name: value.flatten(0, 1) for name, value in given.items()}
        return encode_rows(self.module, columns, rows).unflatten(0, next(iter(sizes)))


def encoder_head(encoder: StudentEncoder) -> dict[str, Any]:
    """What config.json says of an encoder, but for its tensors."""
    rows = {
        name: {"shape": list(kind.shape), "dtype": str(kind.dtype).removeprefix("torch.")}
        for name, kind in encoder.rows.items()
    }
    return {
        "name": type(encoder.module).__name__,
        "columns": list(encoder.columns),
        **({"rows": rows} if rows else {}),
    }


def write_encoder(folder: Path, encoder: StudentEncoder) -> dict[str, Any]:
    """Write the tensors; returns the whole entry of config.json.

    Raises:
        ValueError: weights that aren't finite.
        OSError: the file can't be written.
    """
    module = encoder.module
    written = write_tensors(folder / ENCODER_FILE, state_of(module), stored_dtype(module))
    return {**encoder_head(encoder), "tensors": written}


def check_encoder(config: Mapping[str, Any], where: str) -> None:
    """ValueError unless the entry `encoder` of a student's config, if there is one, is one."""
    entry = config.get("encoder")
    if entry is None:
        return
    known = isinstance(entry, dict) and "rows" in entry
    names = ("name", "columns", *(["rows"] if known else []), "tensors")
    check_names(entry, names, f"{where}: encoder")
    columns = entry["columns"]
    named = isinstance(columns, list) and all(isinstance(name, str) for name in columns)
    if not named or not columns or len(set(columns)) < len(columns):
        raise ValueError(
            f"{where}: expected encoder.columns as names of columns, got {brief(columns)}"
        )
    if not isinstance(entry["name"], str):
        raise ValueError(f"{where}: expected encoder.name as text, got {brief(entry['name'])}")
    if known:
        _rows_of(entry, where)
    check_tensor_entry(entry["tensors"], ENCODER_FILE, f"{where}: encoder")


def _rows_of(entry: Mapping[str, Any], where: str) -> dict[str, RowKind]:
    """What an entry says of the rows of its columns; {} where it says nothing.

    Raises:
        ValueError: other columns than its own, or what is no shape and dtype.
    """
    if "rows" not in entry:
        return {}
    rows = entry["rows"]
    check_names(rows, entry["columns"], f"{where}: encoder.rows")
    found = {}
    for name, kind in rows.items():
        check_names(kind, ("shape", "dtype"), f"{where}: encoder.rows.{name[:80]}")
        shape, dtype = kind["shape"], kind["dtype"]
        sizes = isinstance(shape, list) and all(is_count(size, 0) for size in shape)
        if not sizes or not isinstance(dtype, str) or dtype not in _DTYPES:
            raise ValueError(
                f"{where}: expected a shape and a dtype of {', '.join(_DTYPES)} in encoder.rows."
                f"{name[:80]}, got {brief(kind)}"
            )
        found[name] = RowKind(tuple(shape), _DTYPES[dtype])
    return found


def load_encoder(
    folder: Path,
    config: Mapping[str, Any],
    module: nn.Module | None,
    device: str | torch.device,
) -> StudentEncoder | None:
    """The encoder of a student's folder in `module`, with the tensors of the folder; None without a
    module.

    Raises:
        ValueError: a folder without an encoder, or tensors that don't fit the module.
    """
    if module is None:
        return None
    entry = config.get("encoder")
    if entry is None:
        raise ValueError(
            f"{folder}: expected a student with an encoder for encoder=, got one that takes Z as "
            "it is; leave encoder= out"
        )
    tensors = TensorFile(folder, entry["tensors"])
    cast(module.eval().requires_grad_(False), tensors.dtype)
    load_state(module, tensors.read(state_of(module)))
    rows = _rows_of(entry, str(folder))
    return StudentEncoder(module.to(device), tuple(entry["columns"]), rows)


def without_encoder(student: Student) -> Student:
    """The same student, which is given Z in place of the raw observations that Z is made of. Both
    share the network."""
    found = copy.copy(student)
    found.encoder = None
    return found
