"""Tensor files: safetensors that are checked before they are trusted. Nothing is unpickled.

There are three pairs, by what is known of the file when it is read:

    write_safetensors / read_safetensors    nothing: a file from elsewhere, or one that is listed
                                            with its checksum somewhere
    save_tensors / load_tensors             a checksum that the file itself holds; it is written
                                            whole
    write_tensors / TensorFile              size, checksum, dtype and the shapes of a network, in
                                            the config.json beside it
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .checks import is_count
from .files import check_file, new_file
from .json_files import check_names
from .messages import EXPORT_AGAIN, brief, differences
from .tensor_bytes import DTYPES, TensorBytes, map_once, read_once

__all__ = [
    "TensorFile",
    "check_tensor_entry",
    "load_tensors",
    "map_safetensors",
    "own_memory",
    "read_hashed",
    "read_metadata",
    "read_safetensors",
    "save_tensors",
    "sha256",
    "write_safetensors",
    "write_tensors",
]

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_RESTORE = "restore the run's own, or begin a new run in another folder"
_KINDS = {dtype: kind for kind, dtype in DTYPES.items()}


# ---- Nothing is known ----------------------------------------------------------------------------


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Write tensors that share no memory (see `own_memory`) as safetensors; every one keeps its
    dtype.

    It is for a `path` that nobody reads yet: inside `new_folder` or `new_file`.

    Args:
        metadata: text for the header.

    Raises:
        OSError: the file can't be written.
    """
    # safetensors makes files that only their owner can read; a file made by Python follows the
    # user's umask.
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), str(path), metadata={"format": "pt", **metadata})
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {brief(error)}") from error
    path.chmod(mode)


def own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in CPU memory. safetensors refuses to write tensors that share memory."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, each with memory of its own.

    Raises:
        ValueError: missing, not a file, truncated, not safetensors, a name given twice.
    """
    return read_hashed(path)[0]


def map_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The same tensors, mapped: they can be read, not written."""
    found = map_once(Path(path))
    if found.error is not None:
        raise _no_safetensors(path, found.error)
    return found.tensors


def read_metadata(path: str | Path) -> dict[str, str]:
    """The text in the header of a safetensors file; empty for what is none."""
    try:
        check_file(Path(path))
        with safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        return {}


def read_hashed(path: str | Path) -> tuple[dict[str, Tensor], str]:
    """`read_safetensors`, and the sha256 of the very bytes that were read."""
    found = _read(Path(path))
    return found.tensors, found.sha256


def _read(path: Path) -> TensorBytes:
    found = read_once(path)
    if found.error is not None:
        raise _no_safetensors(path, found.error)
    return found


def _no_safetensors(path: str | Path, error: str) -> ValueError:
    what = f"expected a safetensors file, got one that can't be read: {error}"
    return ValueError(f"{path}: {what}; copy it anew")


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ---- The file holds its checksum -----------------------------------------------------------------


def save_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Write a file with a checksum of its tensors in the header, whole; every tensor keeps its
    dtype.

    Args:
        metadata: more text for the header (see `read_metadata`), such as `run`, what tells the run
            that writes the file from others.

    Raises:
        OSError: it can't be written; what stood there is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = own_memory(tensors)
    with new_file(path) as partial:
        write_safetensors(partial, own, sha256=_digest(own), **metadata)


def load_tensors(
    path: Path, *, run: str | None = None, remedy: str = _RESTORE
) -> dict[str, Tensor]:
    """The tensors of a file of `save_tensors`.

    Args:
        run: what it was written with as `run`; None: anything.
        remedy: what to do about the file of another run.

    Raises:
        ValueError: missing, truncated, damaged, or something else; or of another run.
    """
    try:
        found = _read(path)
    except ValueError as error:
        raise ValueError(f"cannot read {error}") from error
    if _digest(found.tensors) != found.metadata.get("sha256"):
        raise ValueError(
            f"cannot read {path}: it does not match its checksum; restore the file, or begin a "
            "new run"
        )
    if run is not None and found.metadata.get("run") != run:
        raise ValueError(f"{path} was made by another run: {remedy}")
    return found.tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---- A config.json knows the file ----------------------------------------------------------------


def write_tensors(path: Path, state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """Write a state dict as safetensors, floating tensors in `dtype`.

    Returns:
        {"file", "bytes", "sha256", "dtype"}: what `TensorFile` needs to know the file again.

    Raises:
        ValueError: a tensor with NaN or infinity, or without data (meta device); its name is said.
        OSError: the file can't be written.
    """
    if dtype not in _DTYPES.values():
        raise ValueError(f"expected weights of dtype {', '.join(_DTYPES)}, got {dtype}")
    tensors = {}
    for name, value in state.items():
        if value.is_meta:
            raise ValueError(
                f"expected tensors with data, got {name} on the meta device; load the weights first"
            )
        tensors[name] = value.to(dtype) if value.is_floating_point() else value
        if value.is_floating_point() and not bool(torch.isfinite(tensors[name]).all()):
            raise ValueError(
                f"expected finite weights, got NaN or infinity in {name}; the training has diverged"
            )
    write_safetensors(path, own_memory(tensors))
    name = str(dtype).removeprefix("torch.")
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path), "dtype": name}


def check_tensor_entry(entry: Any, name: str, where: str) -> None:
    """ValueError unless `entry` is what `write_tensors` returns for the file `name`."""
    check_names(entry, ("file", "bytes", "sha256", "dtype"), f"{where}: tensors")
    if entry["file"] != name:
        raise ValueError(
            f"{where}: expected the tensor file {name!r}, got {brief(entry['file'])}; "
            f"{EXPORT_AGAIN}"
        )
    if (
        not is_count(entry["bytes"], 0)
        or not isinstance(entry["sha256"], str)
        or entry["dtype"] not in tuple(_DTYPES)
    ):
        raise ValueError(
            f"{where}: expected bytes, sha256, dtype ({', '.join(_DTYPES)}), got {brief(entry)}; "
            f"{EXPORT_AGAIN}"
        )


class TensorFile:
    """A safetensors file whose size and checksum are those recorded. It is read once: what was
    hashed is what `read` hands out, whatever becomes of the file.

    Args:
        folder: where it is.      entry: what `write_tensors` returned.

    Attributes: `path`; `dtype` of its floating tensors; `shapes`, {name: shape}.

    Raises:
        ValueError: missing, truncated, edited, not safetensors.
    """

    def __init__(self, folder: Path, entry: Mapping[str, Any]) -> None:
        self.path = folder / entry["file"]
        self.dtype = _DTYPES[entry["dtype"]]
        found = read_once(self.path, EXPORT_AGAIN, size=entry["bytes"])
        if found.sha256 != entry["sha256"]:
            expected = f"expected sha256 {entry['sha256'][:12]}..., got {found.sha256[:12]}..."
            raise ValueError(f"{self.path}: {expected}; the file was edited, {EXPORT_AGAIN}")
        if found.error is not None:
            raise ValueError(
                f"{self.path}: expected a safetensors file, got {found.error}; {EXPORT_AGAIN}"
            )
        self._tensors = found.tensors
        self.shapes = {name: tuple(value.shape) for name, value in found.tensors.items()}

    def read(self, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, once their names, shapes and dtypes are those of `expected`, which may be on
        the meta device."""
        if said := differences(set(expected), set(self.shapes)):
            what = f"expected the {len(expected)} tensors of the network in config.json"
            raise ValueError(f"{self.path}: {what}, got them with {said}")
        for name, value in expected.items():
            found = self._tensors[name]
            if found.shape != value.shape:
                raise ValueError(
                    f"{self.path}: expected {name} of shape {tuple(value.shape)}, got "
                    f"{tuple(found.shape)}"
                )
            dtype = self.dtype if value.is_floating_point() else value.dtype
            if found.dtype != dtype:
                raise ValueError(
                    f"{self.path}: expected {name} of dtype {dtype}, got {_KINDS[found.dtype]}"
                )
        return {name: self._tensors[name] for name in expected}
