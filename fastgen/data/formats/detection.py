"""Which format a data set has: by the end of a file's name, or by what lies in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..._core.files import expand_home
from ..._core.messages import first_names
from .source import Source

__all__ = ["FILES", "FOLDERS", "is_data_set", "open_source"]


def _open_arrays(path: Path) -> Source:
    from .array_files import open_arrays

    return open_arrays(path)


def _open_csv(path: Path) -> Source:
    from .csv_files import open_csv

    return open_csv(path)


def _open_parquet(path: Path) -> Source:
    from .parquet import open_parquet

    return open_parquet(path)


def _open_hdf5(path: Path) -> Source:
    from .hdf5 import open_hdf5

    return open_hdf5(path)


def _open_zarr(path: Path) -> Source:
    from .zarr_buffer import open_zarr

    return open_zarr(path)


def _open_lerobot(path: Path) -> Source:
    from .lerobot import open_lerobot

    return open_lerobot(path)


def _open_minari(path: Path) -> Source:
    from .minari import open_minari

    return open_minari(path)


# How a file's name ends -> the function that opens it; each imports its format when it is called.
FILES: dict[str, Callable[[Path], Source]] = {
    ".npz": _open_arrays,
    ".safetensors": _open_arrays,
    ".csv": _open_csv,
    ".parquet": _open_parquet,
    ".hdf5": _open_hdf5,
    ".h5": _open_hdf5,
    ".zip": _open_zarr,
}
# What lies in a folder -> the function that opens the folder.
FOLDERS: dict[str, Callable[[Path], Source]] = {
    "meta/info.json": _open_lerobot,
    "data/metadata.json": _open_minari,
    "metadata.json": _open_minari,
    ".zgroup": _open_zarr,
    "zarr.json": _open_zarr,
}

# What lies in a folder of another kind -> what it is.
_OTHERS = {
    "dataset_info.json": "a folder of the package datasets; save it as Parquet",
    "features.json": "a folder of TensorFlow Datasets (RLDS)",
    "model.safetensors": "a network, no data set",
    "metrics.jsonl": "a run of this package, no data set",
}


def is_data_set(path: str | Path) -> bool:
    """Whether a path is one that only :func:`open_source` reads: a folder, or a file of another
    ending than `.npz` and `.safetensors`."""
    path = expand_home(path)
    return path.is_dir() or path.suffix.lower() in set(FILES) - {".npz", ".safetensors"}


def open_source(path: str | Path) -> Source:
    """A data set, opened.

    Args:
        path: of a file whose name ends in one of `FILES`, or of a folder.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file or folder of another kind, or one that can't be read; the message says
            what was found and what to do.
    """
    path = expand_home(path)
    if not path.exists():
        raise FileNotFoundError(f"expected a data set at {path}, got nothing there")
    if path.is_dir():
        return _open_folder(path)
    suffix = path.suffix.lower()
    if suffix not in FILES:
        raise ValueError(
            f"expected a file that ends in {', '.join(FILES)} or a folder, got {path.name}"
        )
    return FILES[suffix](path)


def _open_folder(path: Path) -> Source:
    """A folder, by what lies in it."""
    for name, open_it in FOLDERS.items():
        if (path / name).exists():
            return open_it(path)
    names = {entry.name for entry in path.iterdir()}
    known = next((what for name, what in _OTHERS.items() if name in names), None)
    found = known or (f"one with {first_names(names, 6)}" if names else "an empty one")
    raise ValueError(
        f"{path}: expected the folder of a data set, with one of {', '.join(FOLDERS)}, got {found}"
    )
