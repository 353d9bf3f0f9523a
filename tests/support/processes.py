"""Runs of a toy with each of DMD's branches on, as a script for several processes and for one
alone.

    python processes.py folder [torch.float32] [torch.float64]
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.processes import leave_together
from fastgen.config import DistillConfig
from fastgen.data.trajectories import TrajectoryData
from fastgen.distillation import distill
from support.rounding import nudged
from support.toy import ToyTask, ToyTeacher, with_everything, without_pictures

# (dtype, micro-batches of a process)
RUNS = [(torch.float32, 1), (torch.float32, 2), (torch.float64, 1), (torch.float64, 2)]
# High enough to go somewhere in 20 updates, low enough that roundings don't grow; every gradient is
# clipped.
OPTIMIZER = {"lr": 1e-3, "warmup_steps": 0, "clip_grad_norm": 0.1}


class WideData(TrajectoryData):
    """Data that networks see in float64."""

    def network_inputs(self) -> tuple[Tensor, Tensor]:
        x0, cond = super().network_inputs()
        return x0.double(), cond.double()


class NudgedData(TrajectoryData):
    """Data that networks see one unit in the last place off."""

    seed = 0

    def network_inputs(self) -> tuple[Tensor, Tensor]:
        x0, cond = super().network_inputs()
        return nudged(x0, seed=2 * self.seed), nudged(cond, seed=2 * self.seed + 1)


def name(dtype: torch.dtype, accumulation: int) -> str:
    return f"{str(dtype).removeprefix('torch.')}-{accumulation}"


def dtypes_of(items: Iterable[pytest.Item], fixture: str) -> list[str]:
    """The `dtype`s of those of the tests that ask for `fixture`."""
    asking = [item for item in items if fixture in getattr(item, "fixturenames", ())]
    calls = [getattr(item, "callspec", None) for item in asking]
    parameters = [call.params for call in calls if call is not None]
    return sorted({str(values["dtype"]) for values in parameters if "dtype" in values})


def config(run_dir: Path, accumulation: int, **changes) -> DistillConfig:
    """20 updates of KD, 20 of DMD with its warm-up."""
    train = {
        "kd_steps": 20,
        "steps": 16,
        "batch_size": 16,
        "keep_best": False,
        "log_every": 1,
        "checkpoint_every": 10,
    }
    optimizers = {
        f"{who}_optimizer": OPTIMIZER for who in ("kd", "student", "fake_score", "discriminator")
    }
    cfg = with_everything(run_dir, gradient_accumulation_steps=accumulation, **train, **optimizers)
    return cfg.model_copy(update=changes)


class Branching(ToyTeacher):
    """Which of its parts are used depends on the rows: experts by time, a branch for conditions so
    rare that a batch may have none, and an auxiliary head that is never called. One is frozen.

    A process' part of a micro-batch has four rows, so that processes differ in what they use.
    """

    def __init__(self, horizon: int = 2, dim: int = 4, seed: int = 0) -> None:
        super().__init__(horizon, dim, seed)
        self.early = nn.Linear(dim, dim)
        self.late = nn.Linear(dim, dim)
        self.rare = nn.Linear(dim, dim)
        self.idle = nn.Linear(3, 3)
        self.still = nn.Linear(dim, dim).requires_grad_(False)
        for part in (self.early, self.late, self.rare, self.idle, self.still):
            nn.init.constant_(part.weight, 0.05)
            nn.init.constant_(part.bias, 0.05)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        answer = super().forward(x_t, t, cond) + self.still(x_t)
        early = t < 0.7
        parts = ((self.early, early), (self.late, ~early), (self.rare, cond[:, 0, 0] > 1.2))
        for part, rows in parts:
            if rows.any():
                answer = answer.index_add(0, rows.nonzero()[:, 0], part(x_t[rows]))
        return answer


def run(
    folder: Path, dtype: torch.dtype, accumulation: int, *, nudge: int | None = None, **changes
) -> Path:
    """One run in `dtype`, on data nudged by the seed `nudge` if there is one.

    Noise is drawn in torch's default dtype, which is `dtype` for the time being.
    """
    task = ToyTask()
    data = task.train
    if dtype == torch.float64:
        task.train = WideData(data.X, data.Z, data.x_normalizer, data.z_normalizer, pack=data.pack)
    elif nudge is not None:
        task.train = NudgedData(
            data.X, data.Z, data.x_normalizer, data.z_normalizer, pack=data.pack
        )
        task.train.seed = nudge
    cfg = config(folder / name(dtype, accumulation), accumulation, **changes)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with without_pictures():
            return distill(cfg, teacher=Branching().to(dtype), task=task)
    finally:
        torch.set_default_dtype(before)


if __name__ == "__main__":
    gc.freeze()  # as in conftest.py
    for each in RUNS:
        if str(each[0]) in sys.argv:
            run(Path(sys.argv[1]), *each)
    leave_together()
