"""Files and folders that are complete or not there.

A folder is written beside its destination, flushed to disk and exchanged with what stands there, so
that a kill at any moment leaves the old folder or the new one; a file likewise. A reader gets one
of the two as well (`read_steadily`): a file is opened once, and the bytes that are checked are
those that are used. What is read is refused with a ValueError of one line: which file, what was
expected, what was found, what to do.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

from .messages import brief, first_names

__all__ = [
    "check_file",
    "expand_home",
    "named_path",
    "new_file",
    "new_folder",
    "open_file",
    "read_bytes",
    "read_steadily",
    "read_text",
    "remove_unfinished",
    "write_file",
]

_ABANDONED_SECONDS = 3600.0
# How often a folder is read that is replaced while it is read.
_READS = 8

_BINARY = getattr(os, "O_BINARY", 0)

Value = TypeVar("Value")


# ---- Names ---------------------------------------------------------------------------------------


def expand_home(path: str | Path) -> Path:
    """`path` with a leading ~ or ~user written out.

    Raises:
        ValueError: there is no such user, or no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{brief(str(path))}: expected a path that can be found, got one that begins with a "
            "home folder which isn't known; write the folder out"
        ) from error


def named_path(path: str | Path, base: Path | None = None) -> Path:
    """The absolute path of `path`, which keeps the name that was given.

    Folders before the last name are resolved. The last name is not: it may be a link to a file
    that is called otherwise, as in the cache of a hub, and the name says what format it has.

    Args:
        base: what a relative path is relative to; None: the working directory.

    Raises:
        ValueError: as `expand_home`; or a path that no file can have.
    """
    given = expand_home(path)
    whole = (Path.cwd() if base is None else base) / given
    try:
        if whole.name in ("", ".", ".."):
            return whole.resolve()
        return whole.parent.resolve() / whole.name
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a zero byte
        raise ValueError(f"{brief(str(path))}: cannot be read: {brief(error)}") from error


# ---- Writing -------------------------------------------------------------------------------------


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Write a file whole: `with new_file(path) as partial:` writes `partial`, which then becomes
    `path`.

    A reader sees the old content or the new, never a part. If the body raises, `path` stays as it
    was.

    Raises:
        OSError: it can't be written; the message names `path`.
    """
    path = Path(path)
    # A folder of its own: the library that writes the file may lay others beside it first.
    folder = path.with_name(f".{path.name}.new-{secrets.token_hex(4)}")
    partial = folder / path.name
    try:
        folder.mkdir()
        yield partial
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_file(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` whole (see `new_file`).

    Raises:
        OSError: it can't be written; the message names `path`.
    """
    with new_file(path) as partial:
        partial.write_bytes(data)


@contextmanager
def new_folder(
    path: str | Path, owned: Collection[str], is_ours: Callable[[Path], bool] | None = None
) -> Iterator[Path]:
    """Write a folder whole: `with new_folder(path, names) as partial:` fills `partial`, which then
    becomes `path`.

    If the body raises, `path` stays as it was. A folder that stands there is replaced only if it is
    empty or an earlier one of the same kind, so that exporting into a home folder by mistake
    deletes nothing.

    Args:
        owned: names that an earlier one may hold.
        is_ours: whether the folder given to it is an earlier one, where names don't tell: others
            call files README.md, too. None: names tell.

    Raises:
        ValueError: `path` is a file, or a folder with entries that aren't in `owned`, or not ours.
        OSError: it can't be written (permissions, disk full); the message names it.
    """
    target = Path(os.path.realpath(path))
    _check_replaceable(target, path, owned, is_ours)
    # Beside the target, not in the system's temporary folder: a rename is atomic only within one
    # file system.
    partial = target.with_name(f".{target.name}.new-{secrets.token_hex(4)}")
    held = ExitStack()
    try:
        partial.mkdir(parents=True)
        held.enter_context(_held(partial))
        _remove_abandoned(partial, target)
        yield partial
        for file in partial.iterdir():
            _sync(file)
        _sync(partial)
        # Again: the body may have taken hours.
        _check_replaceable(target, path, owned, is_ours)
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
        held.close()


def remove_unfinished(*folders: Path) -> None:
    """Remove what writers that were killed left in these folders. The caller knows that nobody
    writes there now."""
    for folder in folders:
        for left in folder.glob(".*.new-*"):
            if left.is_dir() and not _is_held(left):
                shutil.rmtree(left, ignore_errors=True)
            elif not left.is_dir():
                left.unlink(missing_ok=True)


def _check_replaceable(
    target: Path,
    path: str | Path,
    owned: Collection[str],
    is_ours: Callable[[Path], bool] | None,
) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"{path}: expected a folder or nothing, got a file; choose another folder")
    there = [entry.name for entry in target.iterdir()]
    foreign = [name for name in there if name not in owned]
    if there and not foreign and is_ours is not None and not is_ours(target):
        foreign = there
    if foreign:
        raise ValueError(
            f"{path}: expected an empty folder or an earlier export, got a folder with "
            f"{first_names(foreign)}; choose another folder"
        )


def _remove_abandoned(partial: Path, target: Path) -> None:
    """Remove what killed writers of the same folder left: what nobody holds, and what is older than
    `partial` by an hour or more, in case another machine's locks can't be seen from here.

    All ages are the disk's own, whose clock need not agree with this machine's.
    """
    now = partial.stat().st_mtime
    for left in partial.parent.iterdir():
        if not left.name.startswith(f".{target.name}.new-") or left.name == partial.name:
            continue
        with suppress(OSError):
            if now - left.stat().st_mtime > _ABANDONED_SECONDS and not _is_held(left):
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Inside, the folder is held for as long as this process lives, if it could be: True, or False
    where another one holds it. A disk without locks says True."""
    try:
        import fcntl
    except ImportError:  # a system without advisory locks
        yield True
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        except OSError:  # a disk without locks
            free = True
        yield free
    finally:
        os.close(handle)


def _is_held(folder: Path) -> bool:
    """Whether a writer that lives holds the folder."""
    try:
        with _held(folder) as free:
            return not free
    except OSError:  # it is gone, or nobody's
        return False


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


# ---- Reading -------------------------------------------------------------------------------------


def check_file(path: Path, hint: str = "copy it anew") -> None:
    """ValueError unless `path` is a file; `hint` says what to do."""
    try:
        if path.is_file():
            return
        found = "something that is not a file" if path.exists() else "none"
    except (OSError, ValueError) as error:  # a path that no file can have
        raise ValueError(f"{brief(str(path))}: cannot be read: {brief(error)}") from error
    raise ValueError(f"{path}: expected a file, found {found}; {hint}")


def open_file(path: Path, hint: str = "copy it anew") -> BufferedReader:
    """A file, open for reading. Whatever is renamed to `path` later, this stays the file that was
    found; `hint` says what to do about one that can't be had.

    Raises:
        ValueError: missing, not a file, not readable.
    """
    check_file(path, hint)
    try:
        # A pipe that has just taken the file's place would wait for a writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    file = os.fdopen(handle, "rb")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise ValueError(f"{path}: expected a file, found something that is not a file; {hint}")
    return file


def read_steadily(folder: Path, read: Callable[[], Value]) -> Value:
    """What `read()` makes of the files of `folder`, all of them of one folder.

    Where a folder is replaced while it is read, `read` finds files of two, and refuses them by
    their checksums. Then it is called again.

    Raises:
        ValueError: what `read` raised of a folder that stayed; or the folder was replaced each
            time it was read.
    """
    for _ in range(_READS):
        before = _identity(folder)
        try:
            return read()
        except ValueError:
            if _identity(folder) == before:
                raise
    raise ValueError(
        f"{folder}: expected a folder that stays while it is read, got one that was replaced "
        f"{_READS} times; wait for what writes it"
    )


def _identity(folder: Path) -> tuple[int, ...] | None:
    """Another one for another folder of the same name; None where there is none."""
    try:
        found = folder.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def read_text(path: Path, most: int, hint: str) -> str:
    """The text of a UTF-8 file of at most `most` bytes; `hint` says what to do about another.

    Raises:
        ValueError: missing, not a file, too large, not UTF-8.
    """
    try:
        return read_bytes(path, most, hint).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read: {brief(error)}") from error


def read_bytes(path: Path, most: int, hint: str) -> bytes:
    """The content of a file of at most `most` bytes; `hint` says what to do about another.

    Raises:
        ValueError: missing, not a file, too large, not readable.
    """
    try:
        with open_file(path, hint) as file:
            if (size := os.fstat(file.fileno()).st_size) > most:
                raise ValueError(f"{path}: expected at most {most:,} bytes, got {size:,}; {hint}")
            return file.read(size)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
