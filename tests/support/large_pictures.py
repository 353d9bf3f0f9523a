"""Pictures of more room than memory, encoded by a process whose memory is limited.

    python large_pictures.py KIND FOLDER MEGABYTES       KIND: hdf5 or lerobot

Writes the pictures, encodes them within a limit on what the process holds beyond its imports
(RLIMIT_DATA), and prints how many bytes the pictures take and what was made of them.
"""

from __future__ import annotations

import io
import json
import resource
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn

from fastgen.data.encoded import RowEncoder, encoded_episodes
from fastgen.data.formats.detection import open_source
from support.large_rows import held

SETS = Path(__file__).parents[1] / "data" / "sets"
EPISODES = 8
ROWS = 105
SIDE = 640


class Mean(nn.Module):
    """Pictures (B, H, W, 3) -> the mean of each of their colours, (B, 3)."""

    def forward(self, rows: Tensor) -> Tensor:
        assert rows.dtype == torch.uint8
        return torch.stack([row.float().mean((0, 1)) for row in rows])


def picture(row: int) -> np.ndarray:
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[:, :, 0] = row
    pixels[: SIDE // 2, :, 1] = 2 * row
    return pixels


def expected() -> Tensor:
    rows = torch.arange(ROWS)[:, None].float()
    return rows * torch.tensor([1.0, 1.0, 0.0])


def write(kind: str, folder: Path) -> tuple[Path, str]:
    """The file or folder, and the column of pictures."""
    if kind == "hdf5":
        shutil.copy(SETS / "low_dim.hdf5", folder / "large.hdf5")
        with h5py.File(folder / "large.hdf5", "a") as file:
            row = 0
            for index in range(EPISODES):
                demo = file[f"data/demo_{index}"]
                length = len(demo["actions"])
                shape = (length, SIDE, SIDE, 3)
                made = demo.create_dataset("obs/large", shape, np.uint8, chunks=(4, SIDE, SIDE, 3))
                for t in range(length):
                    made[t] = picture(row)
                    row += 1
        return folder / "large.hdf5", "obs/large"
    place = Path(shutil.copytree(SETS / "lerobot3", folder / "large"))
    info = json.loads((place / "meta" / "info.json").read_text())
    info["features"]["observation.image"]["shape"] = [SIDE, SIDE, 3]
    (place / "meta" / "info.json").write_text(json.dumps(info))
    row = 0
    for path in sorted((place / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        at = table.schema.get_field_index("observation.image")
        files = []
        for _ in range(len(table)):
            buffer = io.BytesIO()
            Image.fromarray(picture(row)).save(buffer, format="PNG", compress_level=1)
            files.append({"bytes": buffer.getvalue(), "path": None})
            row += 1
        column = pa.array(files, table.schema.field(at).type)
        pq.write_table(table.set_column(at, table.schema.field(at).name, column), path)
    return place, "observation.image"


def main(kind: str, folder: Path, megabytes: int) -> None:
    path, column = write(kind, folder)
    # What the readers' libraries take is no part of what is measured.
    source = open_source(path)
    by = RowEncoder(Mean(), (column,), 4)
    limit = held() + megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    found = encoded_episodes(source, by, None)[0]["observations"]
    error = float((found - expected()).abs().max())
    print(json.dumps({"bytes": ROWS * SIDE * SIDE * 3, "error": error}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
