"""Raw rows go through an encoder piece by piece: the same features from every format, and no more
memory than a piece."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastgen.data.encoded import RowEncoder, encoded_episodes
from fastgen.data.files import file_task
from fastgen.data.formats.batches import row_batches
from fastgen.data.formats.detection import open_source

TESTS = Path(__file__).parents[1]
SETS = TESTS / "data" / "sets"
# A data set -> its columns of actions, of pictures and of numbers beside them.
PLACES = {
    "buffer.zarr": ("action", "img", "state"),
    "buffer3.zarr.zip": ("action", "img", "state"),
    "low_dim.hdf5": ("actions", "obs/image", "obs/robot0_eef_pos"),
    "lerobot3": ("action", "observation.image", "observation.state"),
    "lerobot21": ("action", "observation.image", "observation.state"),
    "a.npz": ("action", "image", "state"),
    "a.safetensors": ("action", "image", "state"),
}
WINDOWS = {"obs_horizon": 2, "horizon": 4}


class Seen(nn.Module):
    """Pictures (B, 8, 8, 3) and numbers (B, 3), by name -> (B, 6)."""

    def __init__(self, picture: str, state: str) -> None:
        super().__init__()
        self.names = (picture, state)

    def forward(self, rows: dict[str, Tensor]) -> Tensor:
        picture, state = (rows[name] for name in self.names)
        assert picture.dtype == torch.uint8 and picture.shape[1:] == (8, 8, 3)
        # The sums of whole numbers are exact.
        return torch.cat([picture.sum((1, 2)).float(), state.float()], 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The episodes as files of arrays, too."""
    folder = tmp_path_factory.mktemp("sets")
    source = open_source(SETS / "buffer.zarr")
    names = {"action": "action", "img": "image", "state": "state"}
    (rows,) = row_batches(source, list(names), source.rows)
    arrays = {new: rows[old].contiguous() for old, new in names.items()}
    arrays["episode_ends"] = torch.tensor(source.ends)
    np.savez(folder / "a.npz", **{name: value.numpy() for name, value in arrays.items()})
    save_file(arrays, str(folder / "a.safetensors"))
    return folder


@pytest.mark.parametrize("name", list(PLACES)[1:])
def test_an_encoder_makes_the_same_of_every_format(name, files, tmp_path):
    made = []
    for place in ("buffer.zarr", name):
        action, picture, state = PLACES[place]
        path = files / place if place.startswith("a.") else SETS / place
        by = RowEncoder(Seen(picture, state), (picture, state), 16, str(tmp_path / place))
        made.append(file_task(path, actions=[action], encoder=by, **WINDOWS).train)
    assert made[1].Z.shape[1:] == (2, 6)
    assert torch.equal(made[0].X, made[1].X) and torch.equal(made[0].Z, made[1].Z)
    assert made[0].z_normalizer.state() == made[1].z_normalizer.state()


def test_videos_and_text_are_refused_with_what_to_do(tmp_path):
    folder = Path(shutil.copytree(SETS / "lerobot3", tmp_path / "videos"))
    info = json.loads((folder / "meta" / "info.json").read_text())
    info["features"]["observation.image"]["dtype"] = "video"
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    by = RowEncoder(nn.Identity(), ("observation.image",))
    with pytest.raises(ValueError, match="frames of videos in .*use_videos=False.*array"):
        encoded_episodes(open_source(folder), by, None)
    by = RowEncoder(nn.Identity(), ("remark",))
    with pytest.raises(ValueError, match="'remark', which is string in .*save its rows as an"):
        encoded_episodes(open_source(SETS / "episodes.parquet"), by, None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hdf5", "lerobot"])
def test_pictures_of_129_mb_are_encoded_in_60(tmp_path, kind):
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    script = str(TESTS / "support" / "large_pictures.py")
    child = subprocess.run(
        [sys.executable, script, kind, str(tmp_path), "60"],
        # Memory that is given up goes back to the system, so that what is held can be told.
        env={**os.environ, "PYTHONPATH": paths, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    said = json.loads(child.stdout)
    assert said == {"bytes": 129_024_000, "error": 0.0}
