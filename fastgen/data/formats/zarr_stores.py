"""Where the parts of a zarr hierarchy lie: a folder of files, or a zip archive."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from ..._core.files import open_file
from .parts import check_part, foreign, refuse_pointer

__all__ = ["Store", "opened_store"]

_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    RuntimeError,
    OSError,
    EOFError,
    LookupError,
    ValueError,
)


class Store(Protocol):
    """Named parts of a folder or archive `path`; a name is `data/action/0.0`."""

    path: Path

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes on the disk of each part under a folder, by name below it."""
        ...

    def members(self, folder: str) -> list[str]:
        """Names of the folders in a folder."""
        ...

    def read(self, name: str, most: int) -> bytes | None:
        """A part, or None where there is none; a ValueError for more than `most` bytes."""
        ...


@contextmanager
def opened_store(path: Path) -> Iterator[Store]:
    """The parts of a folder or of a zip archive.

    Raises:
        ValueError: an archive that is damaged (also while it is read inside).
    """
    if path.is_dir():
        with foreign(path, "a zarr folder", (OSError,)):
            yield _Folder(path)
        return
    check_part(path)
    with foreign(path, "a zip archive", _ZIP_ERRORS), zipfile.ZipFile(path) as archive:
        yield _Archive(path, archive)


class _Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def sizes(self, folder: str) -> dict[str, int]:
        place = self.path / folder
        found = {}
        for file in place.rglob("*"):
            if file.is_file():
                found[file.relative_to(place).as_posix()] = file.stat().st_size
        return found

    def members(self, folder: str) -> list[str]:
        place = self.path / folder
        return sorted(entry.name for entry in place.iterdir() if entry.is_dir())

    def read(self, name: str, most: int) -> bytes | None:
        place = self.path / name
        if not place.exists():
            return None
        with open_file(place) as file:
            data = file.read(most + 1)
        return _checked(f"{place}", data, most)


class _Archive:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._archive = archive
        self._names = [info.filename for info in archive.infolist() if not info.is_dir()]

    def sizes(self, folder: str) -> dict[str, int]:
        start = f"{folder}/"
        return {
            name[len(start) :]: self._archive.getinfo(name).compress_size
            for name in self._names
            if name.startswith(start)
        }

    def members(self, folder: str) -> list[str]:
        start = f"{folder}/" if folder else ""
        inner = {name[len(start) :] for name in self._names if name.startswith(start)}
        return sorted({name.partition("/")[0] for name in inner if "/" in name})

    def read(self, name: str, most: int) -> bytes | None:
        if name not in self._archive.NameToInfo:
            return None
        with self._archive.open(name) as file:
            data = file.read(most + 1)
            # The checksum is compared at the end.
            if len(data) <= most:
                data += file.read(1)
        return _checked(f"{self.path}, {name[:80]}", data, most)


def _checked(where: str, data: bytes, most: int) -> bytes:
    if len(data) > most:
        raise ValueError(f"{where}: expected at most {most:,} bytes, got more")
    refuse_pointer(data, where)
    return data
