"""Trajectories of unequal length: small padded data, as a file and as a task, and networks for
them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgen._core import made_rows
from fastgen._core.masks import mask_of_lengths
from fastgen.config import DistillConfig
from fastgen.data import masks as padding, windows
from fastgen.data.held_out import HeldOutTask
from fastgen.data.masks import Masks
from fastgen.data.trajectories import TrajectoryData
from fastgen.models import build_model

__all__ = [
    "COND_LENGTHS",
    "LENGTHS",
    "SYMMETRY",
    "distillation",
    "lazily",
    "masks",
    "network",
    "task",
    "walks",
    "write",
]

ROWS, TOKENS, COND_TOKENS = 48, 4, 3
RNG = np.random.default_rng(0)
LENGTHS = torch.from_numpy(RNG.integers(1, TOKENS + 1, ROWS))
COND_LENGTHS = torch.from_numpy(RNG.integers(1, COND_TOKENS + 1, ROWS))
SYMMETRY = {"group": "D4", "in_rep": ["standard"], "cond_rep": ["standard"]}


def masks() -> Masks:
    return Masks(mask_of_lengths(LENGTHS, TOKENS), mask_of_lengths(COND_LENGTHS, COND_TOKENS))


def walks(fill: float) -> tuple[Tensor, Tensor]:
    """X (N, 4, 2) and Z (N, 3, 2) of random walks, float64, with `fill` in all padding."""
    rng = np.random.default_rng(1)
    z = torch.from_numpy(rng.normal(size=(ROWS, COND_TOKENS, 2)))
    steps = torch.from_numpy(rng.normal(size=(ROWS, TOKENS, 2)))
    mask, cond_mask = masks()
    x = z[:, :1] + 0.3 * steps.cumsum(1)
    return x.masked_fill(~mask[..., None], fill), z.masked_fill(~cond_mask[..., None], fill)


def write(path: Path, fill: float) -> Path:
    """The walks as a file."""
    X, Z = walks(fill)
    cond_mask = masks().cond_mask.numpy()
    np.savez(path, X=X.numpy(), Z=Z.numpy(), lengths=LENGTHS.numpy(), cond_mask=cond_mask)
    return path


def task(fill: float, *, equivariant: bool = False, wide: bool = False) -> HeldOutTask:
    """The walks as a task; `wide`: which networks see in float64."""
    kind = WideTask if wide else HeldOutTask
    symmetry = {**SYMMETRY, "out_rep": SYMMETRY["in_rep"]} if equivariant else None
    options: dict[str, Any] = {"primary": "energy_distance", "symmetry": symmetry}
    return kind("file", *walks(fill), torch.arange(ROWS), masks=masks(), **options)


class WideData(TrajectoryData):
    """Data that networks see in float64."""

    def network_inputs(self) -> tuple[Tensor, Any]:
        x0, cond = super().network_inputs()
        return x0.double(), {**cond, "Z": cond["Z"].double()}


class WideTask(HeldOutTask):
    """A task of such data."""

    @property
    def train(self) -> TrajectoryData:
        return WideData(**vars(super().train))


def network(*, equivariant: bool = False, seed: int = 0) -> nn.Module:
    """A regressor of the walks whose numbers are off their initial values."""
    sizes = {"in_horizon": TOKENS, "cond_horizon": COND_TOKENS, "num_layers": 1}
    sizes |= {"num_attention_heads": 2, "embedding_dim": 16, "num_cond_layers": 1}
    dims: dict[str, Any] = {"in_dim": 2, "out_dim": 2, "cond_dim": 2}
    name = "CondTransformerRegressor"
    if equivariant:
        dims = {**SYMMETRY, "out_rep": SYMMETRY["in_rep"]}
        name = "eCondTransformerRegressor"
    torch.manual_seed(seed)
    built = build_model({"class": name, **dims, **sizes, "p_drop_emb": 0.0, "p_drop_attn": 0.0})
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return built.eval()


def distillation(run_dir: Path, method: str, **changes: Any) -> DistillConfig:
    """A distillation of seconds."""
    train = {"batch_size": 8, "kd_steps": 4, "kd_pairs": 24, "kd_teacher_calls": 4, "steps": 3}
    train |= {"checkpoint_every": 2, "evaluate_every": 3, "log_every": 1, "threads": 1}
    values: dict[str, Any] = {
        "name": "padded",
        "method": method,
        "run_dir": str(run_dir),
        "teacher": {"calls": [1], "ab2_calls": [4]},
        "student": {"steps": 2},
        "dmd": {},
        "train": {},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value}
    values["train"] = {**train, **values["train"]}
    if method == "kd":
        del values["train"]["steps"]
    return DistillConfig.model_validate(values)


def lazily(monkeypatch: pytest.MonkeyPatch, most: int = 0) -> None:
    """From here on windows, and padded data of more numbers, are made when they are taken, and no
    operation may need all rows."""
    monkeypatch.setattr(windows, "MOST_NUMBERS", 0)
    monkeypatch.setattr(padding, "MOST_NUMBERS", most)
    monkeypatch.setattr(made_rows, "_MOST_WHOLE", 0)
    monkeypatch.setattr(made_rows, "_BLOCK", 100)
