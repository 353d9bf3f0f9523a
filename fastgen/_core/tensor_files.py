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
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .checks import is_count
from .files import check_file, new_file
from .json_files import MOST_JSON_BYTES, check_names, unique_keys
from .messages import EXPORT_AGAIN, brief, differences

__all__ = [
    "TensorFile",
    "check_tensor_entry",
    "load_tensors",
    "own_memory",
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


_HEADER_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


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
    return _read(Path(path))[0]


def read_metadata(path: str | Path) -> dict[str, str]:
    """The text in the header of a safetensors file; empty for what is none."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        return {}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata)."""
    check_file(path)
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            most = min(path.stat().st_size - 8, MOST_JSON_BYTES)
            if not 2 <= size <= most:
                raise ValueError(f"a header of {size:,} bytes")
            # The library takes the last of two equal names without a word.
            json.loads(file.read(size), object_pairs_hook=unique_keys)
        with safe_open(str(path), framework="pt") as file:
            return _clones(file, list(file.keys())), file.metadata() or {}
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    # Numbers of a kind that torch has no dtype for are the library's AttributeError or KeyError.
    except (
        SafetensorError,
        ValueError,
        RecursionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
    ) as error:
        what = f"expected a safetensors file, got one that can't be read: {brief(error)}"
        raise ValueError(f"{path}: {what}; copy it anew") from error


def _clones(file: Any, names: Iterable[str]) -> dict[str, Tensor]:
    # The tensors handed out map the file, and would change (or crash) with it.
    return {name: file.get_tensor(name).clone() for name in names}


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
        metadata: more text for the header (see `read_metadata`).

    Raises:
        OSError: it can't be written; what stood there is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = own_memory(tensors)
    with new_file(path) as partial:
        write_safetensors(partial, own, sha256=_digest(own), **metadata)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of `save_tensors`.

    Raises:
        ValueError: missing, truncated, damaged, or something else.
    """
    try:
        tensors, metadata = _read(path)
    except ValueError as error:
        raise ValueError(f"cannot read {error}") from error
    if _digest(tensors) != metadata.get("sha256"):
        raise ValueError(
            f"cannot read {path}: it does not match its checksum; restore the file, or begin a "
            "new run"
        )
    return tensors


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
    """A safetensors file whose size and checksum are those recorded; its shapes are known before
    anything is allocated.

    Args:
        folder: where it is.      entry: what `write_tensors` returned.

    Attributes: `path`; `dtype` of its floating tensors; `shapes`, {name: shape}.

    Raises:
        ValueError: missing, truncated, edited, not safetensors.
    """

    def __init__(self, folder: Path, entry: Mapping[str, Any]) -> None:
        self.path = folder / entry["file"]
        self.dtype = _DTYPES[entry["dtype"]]
        check_file(self.path, EXPORT_AGAIN)
        try:
            if (size := self.path.stat().st_size) != entry["bytes"]:
                what = "truncated" if size < entry["bytes"] else "another one"
                expected = f"expected {entry['bytes']:,} bytes, got {size:,}"
                raise ValueError(f"{self.path}: {expected}; the file is {what}, {EXPORT_AGAIN}")
            if (digest := sha256(self.path)) != entry["sha256"]:
                expected = f"expected sha256 {entry['sha256'][:12]}..., got {digest[:12]}..."
                raise ValueError(f"{self.path}: {expected}; the file was edited, {EXPORT_AGAIN}")
            with safe_open(str(self.path), framework="pt") as file:
                header = {name: file.get_slice(name) for name in list(file.keys())}
                self.shapes = {name: tuple(part.get_shape()) for name, part in header.items()}
                self._dtypes = {name: part.get_dtype() for name, part in header.items()}
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        except SafetensorError as error:
            raise ValueError(
                f"{self.path}: expected a safetensors file, got {brief(error)}; {EXPORT_AGAIN}"
            ) from error

    def read(self, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, once their names, shapes and dtypes are those of `expected`, which may be on
        the meta device."""
        if said := differences(set(expected), set(self.shapes)):
            what = f"expected the {len(expected)} tensors of the network in config.json"
            raise ValueError(f"{self.path}: {what}, got them with {said}")
        for name, value in expected.items():
            if self.shapes[name] != tuple(value.shape):
                raise ValueError(
                    f"{self.path}: expected {name} of shape {tuple(value.shape)}, got "
                    f"{self.shapes[name]}"
                )
            dtype = self.dtype if value.is_floating_point() else value.dtype
            if self._dtypes[name] != _HEADER_DTYPES.get(dtype, str(dtype)):
                raise ValueError(
                    f"{self.path}: expected {name} of dtype {dtype}, got {self._dtypes[name]}"
                )
        with safe_open(str(self.path), framework="pt") as file:
            return _clones(file, expected)
