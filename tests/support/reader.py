"""The folder of a reader of the pages: data, configs, a network of one's own, and runs."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from fastgen.config import DataConfig
from fastgen.data import build_data
from fastgen.export import export_student, load_network, save_network
from fastgen.models import CondTransformerRegressor

__all__ = ["bring", "export_runs"]

ROOT = Path(__file__).parents[2]
# What a reader has of others -> what the tests have.
BROUGHT = {
    "my-dataset": "sets/lerobot3",
    "pusht.zarr.zip": "sets/buffer.zarr.zip",
    "low_dim.hdf5": "sets/low_dim.hdf5",
    "point-maze-v0": "sets/maze-v0",
    "my-policy": "policies/drive",
    "estimator.safetensors": "posterior/weights.safetensors",
    "simulations.safetensors": "posterior/simulations.safetensors",
}


class Own(nn.Module):
    """A network of a reader's own: any shape that ends in two channels, any condition or none."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        rows = (len(x), *[1] * (x.ndim - 1))
        z = torch.zeros(len(x)) if cond is None else cond.flatten(1).mean(1)
        about = [value.to(x).view(rows).expand(*x.shape[:-1], 1) for value in (t, z)]
        return self.last(torch.cat([x, *about], -1))


MODULE = f"""
import torch
from torch import Tensor, nn

{inspect.getsource(Own)}

def build():
    return Own()
"""


def walks(rows: int = 64, points: int = 4) -> dict[str, np.ndarray]:
    """Random walks that start at the last of two observed points."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(rows, 2, 2))
    return {"X": z[:, -1:] + 0.3 * rng.normal(size=(rows, points, 2)).cumsum(1), "Z": z}


def bring(folder: Path) -> None:
    """Data, configs and code."""
    np.savez(folder / "trajectories.npz", **walks())
    np.savez(folder / "conditions.npz", Z=walks(3)["Z"])
    np.savez(folder / "walks.npz", **walks(), lengths=1 + np.arange(64) % 4)
    steps = np.random.default_rng(1).normal(size=(120, 2))
    episodes = {"actions": steps, "observations": steps, "episode_ends": np.arange(20, 121, 20)}
    np.savez(folder / "episodes.npz", **episodes)
    for name, written in BROUGHT.items():
        (folder / name).symlink_to(ROOT / "tests" / "data" / written)
    save_file(Own().state_dict(), folder / "weights.safetensors")
    (folder / "my_package").mkdir()
    (folder / "my_package" / "estimator.py").symlink_to(ROOT / "tests/support/posterior.py")
    (folder / "my_package" / "my_module.py").write_text(MODULE)
    data = {"name": "file", "path": "trajectories.npz"}
    teacher = {"folder": "runs/mine-teacher/teacher"}
    mine = {"name": "mine", "data": data, "teacher": teacher}
    (folder / "my.yaml").write_text(yaml.safe_dump(mine))


def export_runs(runs: Path) -> None:
    """Students and teachers of runs that the pages speak of."""
    ring = build_data(DataConfig(name="ring", size=64)).train
    shown: dict[str, Any] = {"t_list": [0.999, 0.0], "pack": ring.pack, "horizon": ring.X.shape[1:]}
    shown |= {"x_normalizer": ring.x_normalizer, "z_normalizer": ring.z_normalizer}
    network, description = load_network(ROOT / "recipes" / "teachers" / "ring")
    weave = build_data(DataConfig(name="weave", size=64)).train
    weaver, _ = load_network(ROOT / "recipes" / "teachers" / "weave")
    normalizers = {"x_normalizer": weave.x_normalizer, "z_normalizer": weave.z_normalizer}
    export_student(runs / "weave" / "student", weaver, **{**shown, **normalizers})
    any_number = {"t_list": [0.999, 0.66, 0.33, 0.0], "steps": [1, 3], "sample_type": "sde"}
    export_student(runs / "ring-any" / "student", network, **{**shown, **any_number})
    export_student(runs / "ring-prefix" / "student", network, **shown, prefix_max=8)
    network.prefix_tokens = 2
    save_network(runs / "ring-prefix-teacher" / "teacher", network, description=description)
    sizes = {"in_dim": 2, "out_dim": 2, "cond_dim": 2, "in_horizon": 4, "cond_horizon": 2}
    width = {"num_layers": 1, "num_attention_heads": 1, "embedding_dim": 8}
    unequal = CondTransformerRegressor(**sizes, **width)
    export_student(runs / "walks" / "student", unequal, t_list=[0.9, 0.0], masks=["mask"])
    none = {"condition": "none"}
    points = runs / "points" / "student"
    export_student(points, Own(), t_list=[0.5, 0.0], horizon=(2,), description=none)
