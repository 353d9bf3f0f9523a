"""LeRobotDataset, versions 2.0, 2.1 and 3.0: a folder with `meta/info.json`, whose rows lie in
Parquet files.

Up to 2.1 each episode is a file, `data/chunk-000/episode_000000.parquet`, and
`meta/episodes.jsonl` lists them. In 3.0 a file holds many episodes,
`data/chunk-000/file-000.parquet`, and so do the tables in `meta/episodes`. Images lie there, too,
packed as PNG; videos lie in files of their own and are not read. Written by
https://github.com/huggingface/lerobot (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._core.files import read_text
from ..._core.json_files import parse_json, read_json
from ..._core.messages import brief, first_names
from .parquet import column_pieces, parquet_columns, picture_pieces, read_columns
from .parts import check_part
from .source import VIDEO, Column, Source, kind_of_rows

__all__ = ["open_lerobot"]

_VERSIONS = ("v2.0", "v2.1", "v3.0")
_MOST_LIST_BYTES = 1 << 28
_MOST_NUMBER = 1 << 40
_FETCH = "download the data set whole"
_NUMBERS = ("float", "int", "uint", "bool")


@dataclass(frozen=True)
class _Layout:
    """The Parquet files of the rows, and the length of each episode, in order."""

    files: list[Path]
    lengths: list[int]


def open_lerobot(path: Path) -> Source:
    """A LeRobotDataset.

    Args:
        path: its folder, with `meta/info.json`.

    Raises:
        ValueError: another version, a file that is missing or a pointer of git-lfs, or tables that
            contradict one another; the message names the file.
    """
    info = read_json(path / "meta" / "info.json", only_finite=False)
    version = info.get("codebase_version")
    if version not in _VERSIONS:
        raise ValueError(
            f"{path / 'meta' / 'info.json'}: expected codebase_version {', '.join(_VERSIONS)}, got "
            f"{brief(version)}; convert it with lerobot's own script"
        )
    features = info.get("features")
    if not isinstance(features, dict) or not features:
        raise ValueError(f"{path / 'meta' / 'info.json'}: expected features, got {brief(features)}")
    layout = _many_a_file(path) if version == "v3.0" else _one_a_file(path, info)
    for file in layout.files:
        check_part(file, _FETCH)
    columns = _columns(path, features, layout.files[0])
    ends = torch.tensor(layout.lengths).cumsum(0).tolist()
    _check_total(path, info, "total_episodes", len(ends))
    _check_total(path, info, "total_frames", ends[-1])

    order = ["episode_index", *(["frame_index"] if "frame_index" in columns else [])]

    def read(names: Sequence[str]) -> dict[str, Tensor]:
        values = read_columns(layout.files, list(dict.fromkeys([*names, *order])))
        _check_order(path, values, layout.lengths)
        return {name: _shaped(path, name, values[name], columns[name]) for name in names}

    def pieces(name: str) -> Iterator[Tensor]:
        _check_order(path, read_columns(layout.files, order), layout.lengths)
        if columns[name].packed:
            yield from picture_pieces(layout.files, name, columns[name].shape)
            return
        for values in column_pieces(layout.files, [name]):
            yield _shaped(path, name, values[name], columns[name])

    rate = _rate(info.get("fps"))
    notes = []
    if rate is None:
        notes.append(f"warning: fps of meta/info.json is no rate, got {brief(info.get('fps'))}")
    return Source(
        f"LeRobotDataset {version}", path, columns, ends, read, pieces, rate, tuple(notes)
    )


def _columns(path: Path, features: dict[str, Any], file: Path) -> dict[str, Column]:
    """The columns that `meta/info.json` declares; those of numbers must be in the files."""
    found, _ = parquet_columns(file)
    columns = {}
    for name, feature in features.items():
        column = _column(name, feature, path)
        if column.packed and name not in found:
            column = Column("other", column.shape, "pictures in other files")
        if column.kind == "numbers" and name not in found:
            raise ValueError(
                f"{file}: expected the column {name} of meta/info.json, got {first_names(found)}"
            )
        columns[name] = column
    return columns


def _column(name: str, feature: Any, path: Path) -> Column:
    where = f"{path / 'meta' / 'info.json'}, features.{name[:80]}"
    if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str):
        raise ValueError(f"{where}: expected dtype and shape, got {brief(feature)}")
    dtype = feature["dtype"]
    shape = feature.get("shape")
    if not isinstance(shape, list) or not all(_is_count(size) for size in shape):
        raise ValueError(f"{where}: expected a shape of whole numbers, got {brief(shape)}")
    shape = tuple(shape)
    if dtype in ("image", VIDEO):
        return Column("image", shape, dtype, packed=dtype == "image")
    if not dtype.startswith(_NUMBERS):
        return Column("text" if dtype == "string" else "other", shape, dtype)
    found = Column(kind_of_rows(shape), shape, dtype)
    channels = _channels(feature.get("names"))
    return replace(found, channels=channels) if len(channels) == found.width else found


def _channels(names: Any) -> tuple[str, ...]:
    """Names of channels: a list, or a list in a mapping (`{"motors": [...]}`)."""
    if isinstance(names, dict) and len(names) == 1:
        names = next(iter(names.values()))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def _shaped(path: Path, name: str, values: Tensor, column: Column) -> Tensor:
    """Rows in the shape of `meta/info.json`: one number may be a list of one in it."""
    if values[0].numel() != column.width:
        raise ValueError(
            f"{path}: expected rows of {name} of shape {column.shape}, as meta/info.json says, got "
            f"{tuple(values.shape[1:])}; {_FETCH}"
        )
    return values.reshape(len(values), *column.shape)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MOST_NUMBER


def _rate(fps: Any) -> float | None:
    good = isinstance(fps, int | float) and not isinstance(fps, bool) and 0 < fps < 1e9
    return float(fps) if good else None


# ---- Version 3.0 ---------------------------------------------------------------------------------


def _many_a_file(path: Path) -> _Layout:
    """Files of several episodes, listed by the tables of `meta/episodes`."""
    folder = path / "meta" / "episodes"
    tables = sorted(folder.glob("chunk-*/file-*.parquet"))
    if not tables:
        raise ValueError(
            f"{folder}: expected chunk-000/file-000.parquet, the table of episodes, got none; "
            f"{_FETCH}"
        )
    names = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    values = _scalars(tables, names)
    index, lengths, chunk, file = (values[name].tolist() for name in names)
    if index != list(range(len(index))):
        raise ValueError(
            f"{folder}: expected episodes 0 to {len(index) - 1} in order, got "
            f"{brief(index[:5])}...; {_FETCH}"
        )
    if not all(map(_is_count, lengths)):
        raise ValueError(f"{folder}: expected lengths > 0, got {brief(lengths[:5])}")
    places = sorted(set(zip(chunk, file, strict=True)))
    files = [path / "data" / f"chunk-{c:03d}" / f"file-{f:03d}.parquet" for c, f in places]
    return _Layout(files, lengths)


def _scalars(tables: Sequence[Path], names: Sequence[str]) -> dict[str, Tensor]:
    """Columns of whole numbers of some tables, (E,) each."""
    values = read_columns(tables, names)
    for name in names:
        if values[name].ndim != 1 or values[name].is_floating_point() or not len(values[name]):
            raise ValueError(f"{tables[0]}: expected whole numbers as {name}")
    return values


# ---- Versions 2.0 and 2.1 ------------------------------------------------------------------------


def _one_a_file(path: Path, info: dict[str, Any]) -> _Layout:
    """A file for each episode, listed by `meta/episodes.jsonl`."""
    table = path / "meta" / "episodes.jsonl"
    chunk = info.get("chunks_size", 1000)
    if not _is_count(chunk):
        raise ValueError(f"{path / 'meta' / 'info.json'}: expected chunks_size > 0, got {chunk!r}")
    files = []
    lengths = []
    lines = read_text(table, _MOST_LIST_BYTES, _FETCH).splitlines()
    for number, line in enumerate(lines):
        episode = parse_json(line.encode(), f"{table}, line {number + 1}", only_finite=False)
        found = isinstance(episode, dict) and _is_count(episode.get("length"))
        if not found or episode.get("episode_index") != number:
            raise ValueError(
                f"{table}: expected episode_index {number} and its length in line {number + 1}, "
                f"got {brief(line)}; {_FETCH}"
            )
        lengths.append(episode["length"])
        name = f"episode_{number:06d}.parquet"
        files.append(path / "data" / f"chunk-{number // chunk:03d}" / name)
    if not files:
        raise ValueError(f"{table}: expected a line for each episode, got none; {_FETCH}")
    return _Layout(files, lengths)


# ---- Agreement -----------------------------------------------------------------------------------


def _check_total(path: Path, info: dict[str, Any], key: str, found: int) -> None:
    if info.get(key) != found:
        raise ValueError(
            f"{path / 'meta' / 'info.json'}: expected {key} {found}, as its episodes say, got "
            f"{brief(info.get(key))}; {_FETCH}"
        )


def _check_order(path: Path, values: dict[str, Tensor], lengths: Sequence[int]) -> None:
    """ValueError unless the rows are those of the episodes, in order, and each in order of time."""
    episode = values["episode_index"].reshape(-1)
    # Lengths are compared first: what they promise may be more than memory.
    same = sum(lengths) == len(episode)
    if same:
        expected = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        same = torch.equal(episode, expected)
    if not same:
        raise ValueError(
            f"{path / 'data'}: expected {sum(lengths)} rows of episodes 0 to {len(lengths) - 1} "
            f"in order, as meta says, got {len(episode)} others; {_FETCH}"
        )
    if "frame_index" not in values:
        return
    frame = values["frame_index"].reshape(len(episode), -1)[:, 0]
    back = (frame[1:] <= frame[:-1]) & (episode[1:] == episode[:-1])
    if back.any():
        row = int(back.nonzero()[0]) + 1
        raise ValueError(
            f"{path / 'data'}: expected the rows of episode {int(episode[row])} in order of "
            f"frame_index, got {int(frame[row])} after {int(frame[row - 1])}; {_FETCH}"
        )
