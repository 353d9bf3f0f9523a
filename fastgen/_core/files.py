"""Files that are complete or not there, and JSON and safetensors that are checked before they are
trusted.

A folder is written beside its destination, flushed to disk and exchanged with what stands there, so
that a kill at any moment leaves the old folder or the new one. Every refusal is a ValueError of one
line: which file, what was expected, what was found, what to do.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = [
    "brief",
    "check_file",
    "check_names",
    "first_names",
    "new_folder",
    "plain_json",
    "read_json",
    "read_text",
    "remove_unfinished",
    "write_file",
    "write_json",
]

# A config is a page; anything larger is something else and isn't worth parsing.
_MOST_JSON_BYTES = 1 << 24


_AGAIN = "export it again or copy it anew"
_ABANDONED_SECONDS = 3600.0


# ---- Writing -------------------------------------------------------------------------------------


def write_file(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`: a reader sees the old content or the new, never a part. OSError names
    the path."""
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
        with suppress(OSError):
            temporary.unlink()


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """`write_file` of readable JSON; floats read back exactly, NaN and infinity are a
    ValueError."""
    write_file(
        path, (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()
    )


@contextmanager
def new_folder(path: str | Path, owned: Collection[str]) -> Iterator[Path]:
    """Write a folder whole: `with new_folder("student", names) as folder:` fills `folder`, which
    then becomes `path`.

    If the body raises, `path` stays as it was. A folder that stands there is replaced only if it is
    empty or holds nothing but files named in `owned`, so that exporting into a home folder by
    mistake deletes nothing.

    Raises:
        ValueError: `path` is a file, or a folder with entries that aren't in `owned`.
        OSError: it can't be written (permissions, disk full); the message names it.
    """
    target = Path(os.path.realpath(path))
    _check_replaceable(target, path, owned)
    # Beside the target, not in the system's temporary folder: a rename is atomic only within one
    # file system.
    partial = target.with_name(f".{target.name}.new-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        _remove_abandoned(target)
        yield partial
        for file in partial.iterdir():
            _sync(file)
        _sync(partial)
        # Again: the body may have taken hours.
        _check_replaceable(target, path, owned)
        _take_place(partial, target)
        _sync(target.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"cannot write {path}: {reason}; choose a folder that is writable and has room"
        ) from error
    finally:
        # After an exchange this name holds the earlier export, after a failure what was written so
        # far.
        shutil.rmtree(partial, ignore_errors=True)


def remove_unfinished(*folders: Path) -> None:
    """Remove what writers that were killed left in these folders; for who knows that nobody writes
    there now."""
    for left in (path for folder in folders for path in folder.glob(".*.new-*")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _check_replaceable(target: Path, path: str | Path, owned: Collection[str]) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"{path}: expected a folder or nothing, got a file; choose another folder")
    if foreign := [entry.name for entry in target.iterdir() if entry.name not in owned]:
        what = f"expected an empty folder or an earlier export, got a folder with {first_names(foreign)}"
        raise ValueError(f"{path}: {what}; choose another folder")


def _remove_abandoned(target: Path) -> None:
    """Remove what a writer of the same folder left that was killed; a recent one may still be
    writing."""
    for left in target.parent.glob(f".{target.name}.new-*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _take_place(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`; what stood at `target` then stands at `partial` or is gone."""
    if not target.exists():
        os.rename(partial, target)
    elif not _exchange(partial, target):
        # Where two names can't be exchanged there is a moment without a folder; a failure puts the
        # old one back.
        old = target.with_name(f".{target.name}.old-{secrets.token_hex(4)}")
        os.rename(target, old)
        try:
            os.rename(partial, target)
        except OSError:
            os.rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names in one step (Linux: renameat2 with RENAME_EXCHANGE); False where that
    isn't possible."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2: Callable[..., int] | None = getattr(
        ctypes.CDLL(None, use_errno=True), "renameat2", None
    )
    at_cwd = -100
    rename_exchange = 2
    return (
        renameat2 is not None
        and renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), rename_exchange) == 0
    )


def _sync(path: Path) -> None:
    # A folder must be flushed too, or the rename itself may not survive a power cut; only POSIX can
    # open one.
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- JSON ----------------------------------------------------------------------------------------


def plain_json(value: Any, where: str) -> Any:
    """`value` as JSON can hold it: tuples to lists, tensors and arrays to numbers and lists, NaN
    and infinity to None.

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
    raise TypeError(
        f"expected {where} to hold numbers, text, lists and dicts, got {type(value).__name__}"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: missing, not a file, too large, not JSON, a repeated key, NaN or infinity.
    """
    text = _read_bytes(path, _MOST_JSON_BYTES, _AGAIN)
    try:
        value = json.loads(
            text, object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite
        )
    # RecursionError: a few thousand opening brackets are enough for it.
    except (ValueError, RecursionError) as error:
        what = "expected JSON of finite numbers without repeated keys"
        raise ValueError(
            f"{path}: {what}, got: {brief(error)}; the file is truncated or edited, {_AGAIN}"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}; {_AGAIN}")
    return value


def read_text(path: Path, most: int, hint: str) -> str:
    """The text of a UTF-8 file of at most `most` bytes; `hint` says what to do about another.

    Raises:
        ValueError: missing, not a file, too large, not UTF-8.
    """
    try:
        return _read_bytes(path, most, hint).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read: {brief(error)}") from error


def _read_bytes(path: Path, most: int, hint: str) -> bytes:
    check_file(path, hint)
    try:
        if (size := path.stat().st_size) > most:
            raise ValueError(f"{path}: expected at most {most:,} bytes, got {size:,}; {hint}")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(value := dict(pairs)) < len(pairs):
        raise ValueError("a repeated key")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"the number {name}")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text}")
    return value


def check_names(value: Any, names: Collection[str], where: str) -> None:
    """ValueError unless `value` is a dict with exactly the keys `names`."""
    if not isinstance(value, dict):
        raise ValueError(
            f"{where}: expected an object with the keys {', '.join(names)}, got {brief(value)}; "
            f"{_AGAIN}"
        )
    if said := _differences(set(names), set(value)):
        raise ValueError(
            f"{where}: expected the keys {', '.join(names)}, got them with {said}; {_AGAIN}"
        )


def _differences(expected: set[str], got: set[str]) -> str:
    said = (("missing", expected - got), ("unexpected", got - expected))
    return "; ".join(f"{what} {first_names(names)}" for what, names in said if names)


# ---- Tensors -------------------------------------------------------------------------------------


# ---- Messages ------------------------------------------------------------------------------------


def check_file(path: Path, hint: str = "copy it anew") -> None:
    """ValueError unless `path` is a file; `hint` says what to do."""
    try:
        found = (
            "a file"
            if path.is_file()
            else "something that is not a file"
            if path.exists()
            else "none"
        )
    except (OSError, ValueError) as error:  # a path that no file can have
        raise ValueError(f"{brief(str(path))}: cannot be read: {brief(error)}") from error
    if found != "a file":
        raise ValueError(f"{path}: expected a file, found {found}; {hint}")


def first_names(names: Iterable[str], most: int = 10) -> str:
    """The first few of `names`, for error messages."""
    names = sorted(name if name.isprintable() else repr(name)[1:-1] for name in names)
    shown = ", ".join(name if len(name) <= 80 else name[:77] + "..." for name in names[:most])
    return shown + (f", ... ({len(names)} in all)" if len(names) > most else "")


def brief(value: Any) -> str:
    """`value`, or the text of an exception, on one short line, whatever a foreign file holds."""
    text = " ".join((str(value) if isinstance(value, Exception) else repr(value)).split())
    return text if len(text) <= 120 else text[:117] + "..."
