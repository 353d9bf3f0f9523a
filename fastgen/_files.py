"""Files that are complete or not there, and JSON and safetensors that are checked before they are trusted.

A folder is written beside its destination, flushed to disk and exchanged with what stands there, so a kill at any moment leaves
the old folder or the new one. Every refusal is one ValueError line: which file, what was expected, what was found, what to do.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = [
    "check_names",
    "new_folder",
    "plain_json",
    "read_json",
    "read_tensors",
    "write_file",
    "write_json",
    "write_tensors",
]

# A config is a page; anything larger is something else and isn't worth parsing.
_MOST_JSON_BYTES = 1 << 24
_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HEADER_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_AGAIN = "export it again or copy it anew"


def write_file(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`: a reader sees the old content or the new, never a part. OSError names the path."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.new-{secrets.token_hex(4)}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """`write_file` of readable JSON; floats read back exactly, NaN and infinity are a ValueError."""
    write_file(path, (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())


@contextmanager
def new_folder(path: str | Path, owned: Collection[str]) -> Iterator[Path]:
    """Write a folder whole: `with new_folder("student", names) as folder: ...` fills `folder`, which then takes the place of `path`.

    If the body raises, `path` stays as it was. A folder that stands there is replaced only if it is empty or holds nothing but files
    named in `owned`, so that exporting into a home folder by mistake deletes nothing.

    Raises:
        ValueError: `path` is a file, or a folder with entries that aren't in `owned`.
        OSError: it can't be written (permissions, disk full); the message names it.
    """
    target = Path(os.path.realpath(path))
    if target.exists():
        if not target.is_dir():
            raise ValueError(f"{path}: expected a folder or nothing, got a file; choose another folder")
        if foreign := sorted(entry.name for entry in target.iterdir() if entry.name not in owned):
            raise ValueError(
                f"{path}: expected an empty folder or an earlier export, got a folder with {first_names(foreign)}; choose another folder"
            )
    # Beside the target, not in the system's temporary folder: a rename is atomic only within one file system.
    partial = target.with_name(f".{target.name}.new-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in partial.iterdir():
            _sync(file)
        _sync(partial)
        _take_place(partial, target)
        _sync(target.parent)
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that is writable and has room"
        ) from error
    finally:
        # After an exchange this name holds the earlier export, after a failure what was written so far.
        shutil.rmtree(partial, ignore_errors=True)


def _take_place(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`; what stood at `target` then stands at `partial`."""
    if not target.exists():
        os.rename(partial, target)
    elif not _exchange(partial, target):
        # Where the system can't exchange two names there is a short moment without a folder; a failure puts the old one back.
        old = target.with_name(f".{target.name}.old-{secrets.token_hex(4)}")
        os.rename(target, old)
        try:
            os.rename(partial, target)
        except OSError:
            os.rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names in one step (Linux renameat2 with RENAME_EXCHANGE); False if the system or file system can't."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2: Callable[..., int] | None = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_cwd, rename_exchange = -100, 2
    return renameat2 is not None and renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), rename_exchange) == 0


def _sync(path: Path) -> None:
    # A folder must be flushed too, or the rename itself may not survive a power cut; only POSIX can open one.
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def plain_json(value: Any, where: str) -> Any:
    """`value` as JSON can hold it: tuples to lists, one-element tensors and numpy numbers to Python's, NaN and infinity to None.

    Raises:
        TypeError: something JSON has no word for; `where` names its place.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): plain_json(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if hasattr(value, "tolist"):
        return plain_json(value.tolist(), where)
    raise TypeError(f"expected {where} to hold numbers, text, lists and dicts, got {type(value).__name__}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. ValueError: missing, not a file, too large, not JSON, repeated keys, NaN or infinity."""
    try:
        if not path.is_file():
            raise ValueError(
                f"{path}: expected a file, found {'something else' if path.exists() else 'none'}; {_AGAIN}"
            )
        if (size := path.stat().st_size) > _MOST_JSON_BYTES:
            raise ValueError(f"{path}: expected at most {_MOST_JSON_BYTES:,} bytes, got {size:,}; {_AGAIN}")
        text = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    # RecursionError: a few thousand opening brackets are enough for it.
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected JSON, got {brief(error)}; the file is truncated or edited, {_AGAIN}"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}; {_AGAIN}")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(value := dict(pairs)) < len(pairs):
        raise ValueError("a repeated key")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"the number {name}")


def write_tensors(path: Path, state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """Write a state dict as safetensors, floating tensors in `dtype`; returns what `read_tensors` later wants to know.

    Raises:
        ValueError: a tensor with NaN or infinity, or one that holds no data (meta device); its name is said.
    """
    if dtype not in _DTYPES.values():
        raise ValueError(f"expected weights of dtype {', '.join(_DTYPES)}, got {dtype}")
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if value.is_meta:
            raise ValueError(f"expected tensors with data, got {name} on the meta device; load the weights first")
        # A clone of its own for each name: safetensors refuses tensors that share memory.
        value = value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype, copy=True).contiguous()
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"expected finite weights, got NaN or infinity in {name}; the training diverged before this"
            )
        tensors[name] = value
    # safetensors makes files that only their owner can read; a file made by Python follows the user's umask.
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, str(path), metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {brief(error)}") from error
    path.chmod(mode)
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "dtype": str(dtype).removeprefix("torch."),
    }


def check_tensor_entry(entry: Any, name: str, where: str) -> None:
    """ValueError unless `entry` is what `write_tensors` returns for the file `name`."""
    check_names(entry, ("file", "bytes", "sha256", "dtype"), f"{where}: tensors")
    if entry["file"] != name:
        raise ValueError(f"{where}: expected the tensor file {name!r}, got {entry['file']!r}; {_AGAIN}")
    if type(entry["bytes"]) is not int or not isinstance(entry["sha256"], str) or entry["dtype"] not in tuple(_DTYPES):
        raise ValueError(
            f"{where}: expected tensors.bytes, sha256 and dtype ({', '.join(_DTYPES)}), got {brief(entry)}; {_AGAIN}"
        )


class TensorFile:
    """A safetensors file whose size and checksum are those recorded; shapes can be read before anything is allocated.

    Attributes:
        path: the file.      dtype: of its floating tensors.      shapes: name -> shape, from the header.

    Raises:
        ValueError: missing, truncated, edited, not safetensors.
    """

    def __init__(self, folder: Path, entry: Mapping[str, Any]) -> None:
        self.path = folder / entry["file"]
        self.dtype = _DTYPES[entry["dtype"]]
        try:
            if not self.path.is_file():
                raise ValueError(
                    f"{self.path}: expected a file, found {'something else' if self.path.exists() else 'none'}; {_AGAIN}"
                )
            if (size := self.path.stat().st_size) != entry["bytes"]:
                what = "truncated" if size < entry["bytes"] else "another one"
                raise ValueError(
                    f"{self.path}: expected {entry['bytes']:,} bytes, got {size:,}; the file is {what}, {_AGAIN}"
                )
            if (digest := sha256(self.path)) != entry["sha256"]:
                short = (entry["sha256"][:12], digest[:12])
                raise ValueError(
                    f"{self.path}: expected sha256 {short[0]}..., got {short[1]}...; the file was edited, {_AGAIN}"
                )
            with safe_open(str(self.path), framework="pt") as file:
                header = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                self.shapes = {name: tuple(part.get_shape()) for name, part in header.items()}
                self._dtypes = {name: part.get_dtype() for name, part in header.items()}
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        except SafetensorError as error:
            raise ValueError(f"{self.path}: expected a safetensors file, got {brief(error)}; {_AGAIN}") from error

    def read(self, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, after their names, shapes and dtypes were found to be those of `expected` (meta tensors will do)."""
        missing, extra = expected.keys() - self.shapes.keys(), self.shapes.keys() - expected.keys()
        if missing or extra:
            said = [
                f"{what} {first_names(names)}" for what, names in (("missing", missing), ("unexpected", extra)) if names
            ]
            raise ValueError(
                f"{self.path}: expected the {len(expected)} tensors of the network in config.json, got {'; '.join(said)}"
            )
        for name, value in expected.items():
            if self.shapes[name] != tuple(value.shape):
                raise ValueError(f"{self.path}: expected {name} of shape {tuple(value.shape)}, got {self.shapes[name]}")
            dtype = _HEADER_DTYPES.get(self.dtype if value.is_floating_point() else value.dtype, str(value.dtype))
            if self._dtypes[name] != dtype:
                raise ValueError(f"{self.path}: expected {name} of dtype {dtype}, got {self._dtypes[name]}")
        with safe_open(str(self.path), framework="pt") as file:
            # Clones, because the tensors handed out map the file and would change (or crash) with it.
            return {name: file.get_tensor(name).clone() for name in expected}


def check_names(value: Any, names: Iterable[str], where: str) -> None:
    """ValueError unless `value` is a dict with exactly the keys `names`."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object with the keys {', '.join(names)}, got {brief(value)}; {_AGAIN}")
    wanted = set(names)
    if wanted != value.keys():
        said = [
            f"{what} {first_names(k)}"
            for what, k in (("missing", wanted - value.keys()), ("unexpected", value.keys() - wanted))
            if k
        ]
        raise ValueError(f"{where}: expected the keys {', '.join(names)}, got {'; '.join(said)}; {_AGAIN}")


def first_names(names: Iterable[str], most: int = 10) -> str:
    """The first few of `names`, for error messages."""
    names = sorted(names)
    shown = ", ".join(name if len(name) <= 80 else name[:77] + "..." for name in names[:most])
    return shown + (f", ... ({len(names)} in all)" if len(names) > most else "")


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def brief(value: Any) -> str:
    """`value` or the text of an exception on one short line, whatever a foreign file holds."""
    text = " ".join((str(value) if isinstance(value, Exception) else repr(value)).split())
    return text if len(text) <= 120 else text[:117] + "..."
