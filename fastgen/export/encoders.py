"""Encoders of students: the frozen network that made Z of raw observations, kept beside a student
so that it can be given these.

    student.safetensors    encoder.safetensors    config.json    README.md

Of the encoder the folder holds the tensors and the names of the columns that it is called with, in
this order. Its class is somebody's own: whoever loads the student builds it and gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._core.json_files import check_names
from .._core.messages import brief
from .._core.modules import load_state, state_of
from .._core.row_encoding import encode_rows
from .._core.tensor_files import TensorFile, check_tensor_entry, write_tensors
from ..networks import cast
from .networks import stored_dtype

__all__ = [
    "ENCODER_FILE",
    "StudentEncoder",
    "check_encoder",
    "encoder_head",
    "load_encoder",
    "write_encoder",
]

ENCODER_FILE = "encoder.safetensors"


@dataclass(frozen=True)
class StudentEncoder:
    """What makes the condition Z of raw observations.

    Attributes:
        module: frozen; called with the rows of one column, or with a dict of those of several.
        columns: their names.
    """

    module: nn.Module
    columns: tuple[str, ...]

    def encode(self, observed: Any) -> Tensor:
        """Z (B, T_z, d_z) of observations (B, T_z, ...), a Tensor of the only column or a mapping
        of all of them by name.

        Raises:
            TypeError: neither of them.
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
    return {"name": type(encoder.module).__name__, "columns": list(encoder.columns)}


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
    check_names(entry, ("name", "columns", "tensors"), f"{where}: encoder")
    columns = entry["columns"]
    named = isinstance(columns, list) and all(isinstance(name, str) for name in columns)
    if not named or not columns or len(set(columns)) < len(columns):
        raise ValueError(
            f"{where}: expected encoder.columns as names of columns, got {brief(columns)}"
        )
    if not isinstance(entry["name"], str):
        raise ValueError(f"{where}: expected encoder.name as text, got {brief(entry['name'])}")
    check_tensor_entry(entry["tensors"], ENCODER_FILE, f"{where}: encoder")


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
    return StudentEncoder(module.to(device), tuple(entry["columns"]))
