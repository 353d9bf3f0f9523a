"""Episodes with pictures, an encoder of them, and a teacher of what it answers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastgen.config import DistillConfig
from fastgen.config.files import validate
from support.toy import toy_config

__all__ = [
    "BATCH",
    "COLUMNS",
    "Encoder",
    "Judge",
    "build_encoder",
    "build_judge",
    "config",
    "save_episodes",
]

FEATURES = 3
COLUMNS = ("image", "speed")
BATCH = 16


def save_episodes(folder: Path, episodes: int = 12, rows: int = 9) -> Path:
    """A point that walks, and a picture of 6 x 6 pixels that shows where it is."""
    rng = np.random.default_rng(0)
    path = rng.normal(size=(episodes, rows + 1, 2)).cumsum(1)
    total = episodes * rows
    pixels = np.indices((6, 6)).transpose(1, 2, 0) / 2 - 1
    seen = path[:, :-1].reshape(total, 1, 1, 2)
    image = 255 * np.exp(-((pixels[None] - seen) ** 2).sum(-1))
    np.savez(
        folder / "pictures.npz",
        image=image[..., None].astype(np.uint8),
        speed=rng.normal(size=(total, 1)).astype(np.float32),
        action=np.diff(path, axis=1).reshape(total, 2).astype(np.float32),
        episode_ends=np.arange(rows, total + 1, rows),
    )
    return folder / "pictures.npz"


class Encoder(nn.Module):
    """Pictures (B, 6, 6, 1) and speeds (B, 1) -> (B, 3).

    Args:
        dies_at: the call at which its process is killed; 0: at none.
    """

    def __init__(self, dies_at: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(5, FEATURES)
        self.dies_at = dies_at
        self.calls = 0

    def forward(self, rows: dict[str, Tensor]) -> Tensor:
        assert isinstance(rows, dict)
        self.calls += 1
        if self.calls == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        x = rows["image"].permute(0, 3, 1, 2).to(self.conv.weight) / 255
        features = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.head(torch.cat([features, rows["speed"].to(features)], 1))


def build_encoder() -> nn.Module:
    """With weights that are drawn, as those of a factory that reads none."""
    return Encoder()


class Judge(nn.Module):
    """v(x_t, t, Z), of trajectories (B, 4, 2) and conditions (B, 2, 3)."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.linear = nn.Linear(8 + 1 + 2 * FEATURES, 8)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        times = torch.as_tensor(t, dtype=x_t.dtype).expand(len(x_t))[:, None]
        given = torch.cat([x_t.flatten(1), times, cond.flatten(1)], 1)
        return self.linear(given).view_as(x_t)


def build_judge() -> nn.Module:
    return Judge()


def config(folder: Path, run: str, **changes: Any) -> DistillConfig:
    """A small distillation of the judge, by what the encoder makes; `changes` are of its group."""
    base = toy_config(folder / run, kd_steps=6, kd_pairs=16, batch_size=4)
    values = base.model_dump(exclude_unset=True)
    values["method"] = "kd"
    del values["train"]["steps"]
    path = str(folder / "pictures.npz")
    values["data"] = {"name": "file", "path": path, "obs_horizon": 2, "horizon": 4}
    how = {"factory": "support.pictures:build_encoder", "columns": list(COLUMNS)}
    values["teacher"] = {
        "factory": "support.pictures:build_judge",
        "encoder": {**how, "batch_size": BATCH, **changes},
        "calls": [1],
        "ab2_calls": [2],
    }
    return validate(DistillConfig, values)
