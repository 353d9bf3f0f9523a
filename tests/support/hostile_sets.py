"""Data sets of every format with damaged files, each read by a child process.

    python hostile_sets.py FOLDER NUMBER [NAME]      NUMBER mutations of each data set, in FOLDER

A line for each mutation: what it was, and what came of it. None of the formats holds checksums of
all that it says, so what is read may be other numbers, of the right kind and within bounds; but it
is never a crash, a hang, or memory beyond what the file can hold.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastgen.data.formats.batches import row_batches
from fastgen.data.formats.detection import open_source
from fastgen.data.formats.selection import read_episodes, select
from support.hostile import outcome, scrambled

SETS = Path(__file__).parents[1] / "data" / "sets"
# What the readers' own libraries take when they are first used is within it.
ROOM = 1 << 30

GONE = object()
# What stands in the place of a value.
ODD: list[Any] = [None, True, False, -1, 0, 1, 3, 7, 0.5, -0.0, 1e308, float("nan"), float("inf")]
ODD += [1 << 20, 1 << 40, 10**400, "", "x", "../x", "MEAN_STD", [], {}, [1 << 40], [[]], {"a": 1}]
ODD += [GONE, GONE, [[[[1.0]]]], "1", [1, 2, 3], [0.0] * 99]

# A data set -> the module that reads it, and its columns of observations.
KINDS: dict[str, tuple[str, list[str] | None]] = {
    "episodes.csv": ("csv", ["state"]),
    "episodes.parquet": ("pyarrow", ["state", "goal_x"]),
    "lerobot3": ("pyarrow", None),
    "lerobot21": ("pyarrow", None),
    "buffer.zarr": ("numcodecs", ["state", "place"]),
    "buffer.zarr.zip": ("numcodecs", ["state", "place"]),
    "buffer3.zarr": ("numcodecs", ["state", "place"]),
    "low_dim.hdf5": ("h5py", ["obs/robot0_eef_pos"]),
    "drive/hdf5-v0": ("h5py", ["observations/state"]),
    "drive/arrow-v0": ("pyarrow", ["observations/state"]),
    "drive/parquet-v0": ("pyarrow", ["observations/state"]),
}
# A data set -> its column of packed pictures.
PICTURES = {
    "lerobot3": "observation.image",
    "lerobot21": "observation.image",
    "pictures/hdf5-v0": "observations/picture",
    "pictures/arrow-v0": "observations/picture",
    "pictures/parquet-v0": "observations/picture",
}


def loader(observations: list[str] | None) -> Callable[[Path], object]:
    def load(path: Path) -> object:
        source = open_source(path)
        return read_episodes(source, select(source, None, observations))

    return load


def picture_loader(column: str) -> Callable[[Path], object]:
    def load(path: Path) -> object:
        source = open_source(path)
        if column not in source.columns or not source.columns[column].is_array:
            raise ValueError(f"no pictures {column}")
        return sum(len(batch[column]) for batch in row_batches(source, [column], 8))

    return load


def other_value(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """JSON with another value in one place, or without it."""
    document = json.loads(data)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            places.append((value, key))
            if isinstance(inner, dict | list):
                walk(inner)

    walk(document)
    holder, key = rng.choice(places)
    value = rng.choice(ODD)
    if value is GONE:
        del holder[key]
    else:
        holder[key] = value
    return f"{key} = {value!r}"[:80], json.dumps(document).encode()


def copy(good: Path, work: Path) -> Path:
    """A fresh copy of a file or folder."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    place = work / good.name
    if good.is_dir():
        shutil.copytree(good, place)
    else:
        shutil.copy(good, place)
    return place


def run(
    name: str,
    good: Path,
    load: Callable[[Path], object],
    number: int,
    work: Path,
    pattern: str = "*",
    *,
    values: bool = False,
) -> None:
    """Mutate the files of `good` whose names fit a pattern, and print what comes of each load;
    `values`: most mutations of JSON leave it JSON."""
    load(good)
    rng = random.Random(f"{name}")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    for _ in range(number):
        place = copy(good, work)
        inside = place.rglob(pattern)
        files = [place] if place.is_file() else sorted(p for p in inside if p.is_file())
        file = rng.choice(files)
        data = file.read_bytes()
        if values and file.suffix == ".json" and rng.random() < 0.7:
            way, harmed = other_value(data, rng)
        else:
            way, harmed = scrambled(data, rng)
        if rng.random() < 0.03:
            file.unlink()
            way = "gone"
        else:
            file.write_bytes(harmed)
        said = {"kind": name, "mutation": f"{file.relative_to(work)}: {way}"}
        print(json.dumps({**said, "begun": True}), flush=True)
        print(json.dumps({**said, "outcome": outcome(load, place, "")}), flush=True)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":
    asked = sys.argv[3:]
    for kind in [kind for kind in KINDS if not asked or kind in asked]:
        columns = KINDS[kind][1]
        run(kind, SETS / kind, loader(columns), int(sys.argv[2]), Path(sys.argv[1]))
    for kind in [kind for kind in PICTURES if not asked or f"{kind}:pictures" in asked]:
        load = picture_loader(PICTURES[kind])
        run(f"{kind}:pictures", SETS / kind, load, int(sys.argv[2]), Path(sys.argv[1]))
