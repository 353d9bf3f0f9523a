"""A data set of more rows than memory, opened in a process whose memory is limited.

    python large_rows.py write FOLDER ROWS WIDTH     a LeRobotDataset of WIDTH numbers a row
    python large_rows.py open FOLDER MEGABYTES [HORIZON]     what training begins with, within a
                                                     limit; with a horizon, padded and masked

The limit is on what a process holds beyond its imports (RLIMIT_DATA): files that are mapped don't
count, since the system takes their pages back when it wants memory.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen._core.conditions import take_rows
from fastgen.config import DataConfig
from fastgen.data import build_data
from fastgen.data.checks import data_notes
from fastgen.jobs.origin import data_origin

__all__ = ["EPISODE", "HORIZON", "rows_of", "write"]

EPISODE = 1000
HORIZON = 8
OBS_HORIZON = 2
BATCH = 64
# Rows of a file, which are made at once.
_FILE = 100_000


def rows_of(start: int, stop: int, width: int) -> np.ndarray:
    """Rows `start` to `stop` of both columns, (n, width) float32: the first half is the action."""
    rows = np.arange(start, stop, dtype=np.uint64)[:, None] * np.uint64(width)
    mixed = rows + np.arange(width, dtype=np.uint64)
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    mixed >>= np.uint64(40)
    scale = np.linspace(0.5, 2.0, width, dtype=np.float32)
    return (mixed.astype(np.float32) / np.float32(1 << 24) - np.float32(0.3)) * scale


def write(folder: Path, rows: int, width: int) -> None:
    """A LeRobotDataset v3.0 as lerobot writes it, in files of many episodes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    half = width // 2
    shapes = {"action": half, "observation.state": width - half}
    features: dict[str, Any] = {
        name: {"dtype": "float32", "shape": [size], "names": None} for name, size in shapes.items()
    }
    for name in ("episode_index", "frame_index"):
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    episodes = rows // EPISODE
    info = {"codebase_version": "v3.0", "fps": 10, "features": features}
    info |= {"total_episodes": episodes, "total_frames": rows}
    (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (folder / "data" / "chunk-000").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    index = np.arange(episodes)
    table = {
        "episode_index": index,
        "length": np.full(episodes, EPISODE),
        "data/chunk_index": np.zeros(episodes, np.int64),
        "data/file_index": index // (_FILE // EPISODE),
    }
    pq.write_table(pa.table(table), folder / "meta/episodes/chunk-000/file-000.parquet")
    for number, start in enumerate(range(0, rows, _FILE)):
        stop = min(start + _FILE, rows)
        values = rows_of(start, stop, width)
        row = np.arange(start, stop)
        columns = {
            "action": _lists(values[:, :half]),
            "observation.state": _lists(values[:, half:]),
            "episode_index": row // EPISODE,
            "frame_index": row % EPISODE,
        }
        path = folder / "data" / "chunk-000" / f"file-{number:03d}.parquet"
        pq.write_table(pa.table(columns), path, compression="none", use_dictionary=False)


def _lists(values: np.ndarray) -> Any:
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def held() -> int:
    """Bytes of memory of this process that are its own."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmData")


def begin(folder: Path, megabytes: int, padded: int | None = None) -> dict[str, Any]:
    """What training begins with: windows, normalisers, notes, origin and a batch; of windows of
    `padded` actions, those that lie after an episode are masked."""
    import pyarrow.parquet  # noqa: F401  (its own memory is no part of what is measured)

    how: dict[str, Any] = {"obs_horizon": OBS_HORIZON, "horizon": padded or HORIZON, "stride": 1}
    if padded is not None:
        how |= {"pad_before": OBS_HORIZON - 1, "pad_after": padded - 1, "mask_padding": True}
    cfg = DataConfig(name="file", path=str(folder), **how)
    base = held()
    limit = base + megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    start = time.process_time()
    task = build_data(cfg)
    opened = time.process_time()
    data = task.train
    x0, cond = data.network_inputs()
    notes = data_notes(task, BATCH)
    origin = data_origin(task, cfg, built=True)
    ready = time.process_time()
    rows = torch.randperm(len(x0), generator=torch.Generator().manual_seed(0))[:BATCH]
    batch = {"x0": x0[rows], "X": data.X[rows], "Z": data.Z[rows]}
    given = take_rows(cond, rows)
    batch |= {"cond": given} if padded is None else {"cond": given["Z"], "mask": given["mask"]}
    windows = task.rows["train"][rows]
    moments = [data.x_normalizer.mean, data.x_normalizer.scale.diagonal()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    said = {"windows": windows.tolist(), "notes": notes, "train": len(x0), "peak": peak}
    said |= {"seconds": [opened - start, ready - opened], "base": base}
    said |= {"moments": [one.tolist() for one in moments], "origin": sorted(origin)}
    return said | {name: _bytes(value) for name, value in batch.items()}


def _bytes(value: Tensor) -> str:
    return value.contiguous().numpy().tobytes().hex()


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[2])
    if sys.argv[1] == "write":
        write(place, int(sys.argv[3]), int(sys.argv[4]))
    else:
        print(json.dumps(begin(place, *map(int, sys.argv[3:]))))
