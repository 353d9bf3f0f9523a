"""A problem small enough for tests of the machinery: a linear-Gaussian teacher on 2-D trajectories
of four waypoints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen.config import DistillConfig
from fastgen.data.trajectories import TrajectoryData
from fastgen.jobs.setup import Setup
from fastgen.metrics import energy_distance
from fastgen.normalizer import Normalizer


class ToyTeacher(nn.Module):
    """v(x_t, t, cond) = W [x_t, t, cond], trainable; `cond` is (B, 1, 2), `x_t` (B, T, d)."""

    def __init__(self, horizon: int = 2, dim: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(horizon * dim + 3, horizon * dim)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        times = torch.as_tensor(t, dtype=x_t.dtype).expand(len(x_t))[:, None]
        return self.linear(torch.cat([x_t.flatten(1), times, cond.flatten(1)], 1)).view_as(x_t)


class ToyTask:
    """X | Z ~ N(Z, 0.1 I) at each of four waypoints."""

    name, primary = "toy", "energy"

    def __init__(self, n: int = 48) -> None:
        generator = torch.Generator().manual_seed(1)
        z = torch.randn(n, 1, 2, generator=generator)
        x = z + 0.1 * torch.randn(n, 4, 2, generator=generator)
        self.train = TrajectoryData(x, z, Normalizer.identity(2), Normalizer.identity(2), pack=2)

    def evaluate(self, sample, *, quick: bool = False) -> dict[str, float]:
        noise = torch.randn(len(self.train.X), 4, 2, generator=torch.Generator().manual_seed(2))
        x = sample(self.train.Z, noise)
        return {"energy": float(energy_distance(x.flatten(1), self.train.X.flatten(1)))}

    def floor(self) -> dict[str, float]:
        return {"energy": 0.0}

    def scene(self) -> dict:
        return {"obstacles": [], "limits": None, "equal": True}

    def examples(self, n: int = 6) -> tuple[Tensor, Tensor]:
        return self.train.Z[:n], self.train.X[:n]


def toy_config(run_dir, **train) -> DistillConfig:
    """A distillation of seconds, with every stage on."""
    loop = {
        "batch_size": 8,
        "kd_steps": 7,
        "kd_pairs": 40,
        "kd_teacher_calls": 4,
        "steps": 5,
        "checkpoint_every": 3,
    }
    return DistillConfig.model_validate(
        {
            "name": "toy",
            "method": "dmd2",
            "run_dir": str(run_dir),
            "teacher": {"calls": [1, 2], "ab2_calls": [4]},
            "student": {"steps": 2},
            "dmd": {"fake_score_warmup_steps": 4, "vsd_norm": "rms"},
            "train": {**loop, "evaluate_every": 4, "log_every": 2, "threads": 1, **train},
        }
    )


# Each of DMD's branches on, as `dmd` of a config.
EVERYTHING = {
    "fake_score_warmup_steps": 4,
    "vsd_norm": "batch",
    "f_divergence": "forward_kl",
    "gan_loss_weight_gen": 0.1,
    "gan_t": {"time_dist_type": "uniform", "min_t": 0.02, "max_t": 0.98},
    "gan_r1_reg_weight": 0.1,
    "gan_r2_reg_weight": 0.1,
    "gan_disc_warmup_steps": 3,
    "gan_disc_steps_per_student_step": 2,
    "gan_blocks": ["linear"],
    "real_data_weight": 0.5,
    "kd_weight": 0.2,
    "guidance_scale": 1.5,
    "guidance_interval": [0.1, 0.9],
    "guidance_rescale": 0.3,
}


# Rates at which a few updates go as far as from one seed to another; those of a warm-up leave
# everything where it was.
FAR = {
    "student_optimizer": {"lr": 0.01, "warmup_steps": 0},
    "fake_score_optimizer": {"lr": 0.01, "warmup_steps": 0},
    "discriminator_optimizer": {"lr": 0.03},
}


def with_everything(run_dir, **train) -> DistillConfig:
    """`toy_config` with `EVERYTHING`."""
    values = toy_config(run_dir, **train).model_dump() | {"dmd": EVERYTHING}
    values["teacher"]["null_cond"] = "zeros"
    return DistillConfig.model_validate(values)


@contextlib.contextmanager
def without_pictures() -> Iterator[None]:
    """Inside, the picture of a report is an empty file: drawing them takes longer than the rest of
    a toy's run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastgen.report.page._pictures", lambda *_: {"training.png": b""})
        yield


class Pulled(Exception):
    """The plug."""


@contextlib.contextmanager
def plug_pulled(stage: type, step: int) -> Iterator[None]:
    """Inside, a run that comes to update `step` of a stage of this class ends there with `Pulled`,
    and has to."""
    update = stage.update

    def pull(self, at):
        if at == step:
            raise Pulled
        return update(self, at)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Pulled):
        patch.setattr(stage, "update", pull)
        yield


class PointTeacher(nn.Module):
    """v(x_t, t) of a small MLP on vectors (B, d); there is nothing to condition on."""

    def __init__(self, dim: int = 2, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(dim + 1, width), nn.SiLU(), nn.Linear(width, dim))

    def forward(self, x_t: Tensor, t: Tensor, cond: None) -> Tensor:
        assert cond is None
        return self.net(torch.cat([x_t, t.to(x_t.dtype)[:, None]], 1))


class LabelTeacher(nn.Module):
    """v(x_t, t, label) of a small convolutional network on images (B, C, H, W); labels are integers
    (B,)."""

    def __init__(self, channels: int = 4, labels: int = 3, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(channels + 1, width, 3, padding=1)
        self.label = nn.Embedding(labels, width)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        assert cond.dtype == torch.int64
        times = t.to(x_t.dtype)[:, None, None, None].expand_as(x_t[:, :1])
        h = self.first(torch.cat([x_t, times], 1)) + self.label(cond)[:, :, None, None]
        return self.last(torch.nn.functional.silu(h))


def setup_of(cfg: DistillConfig, teacher: nn.Module, x0: Tensor, cond: object) -> Setup:
    """The networks of a run on data that are already as networks see them."""
    data: Any = SimpleNamespace(network_inputs=lambda: (x0, cond), z_normalizer=None)
    return Setup(cfg, teacher, data)
