"""A noise teacher as Diffusion Policy trains one, by the library's own scheduler: its samples, its
pairs and its student against the library's own sampler."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgen.config import DistillConfig
from fastgen.config.files import validate
from fastgen.distillation import distill
from fastgen.export.folders import load_student
from fastgen.methods.kd import teacher_pairs
from fastgen.metrics import energy_distance
from fastgen.samplers import sample_teacher
from fastgen.teachers import RectifiedFlow, as_rectified_flow, read_scheduler
from support.packages import installed

pytestmark = pytest.mark.slow

ROWS = 100
SCHEDULE = {"num_train_timesteps": ROWS, "beta_schedule": "squaredcos_cap_v2"}


@pytest.fixture(scope="module")
def diffusers() -> ModuleType:
    return installed("diffusers", since=(3, 11))


def paths(n: int, seed: int) -> Tensor:
    """Bent paths of four waypoints to all sides, standard deviation .20, within [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(n, 1, generator=generator)
    side = torch.where(torch.rand(n, 1, generator=generator) < 0.5, -1.0, 1.0)
    s = torch.linspace(0, 1, 4)
    bow = 0.3 * side * torch.sin(math.pi * s)
    x = 0.6 * s * angle.cos() - bow * angle.sin()
    y = 0.6 * s * angle.sin() + bow * angle.cos()
    path = torch.stack([x, y], -1)
    path = path + 0.02 * torch.randn(path.shape, generator=generator)
    return path * 0.2 / path.std()


class Policy(nn.Module):
    """Noise of paths (B, 4, 2) at whole rows."""

    def __init__(self) -> None:
        super().__init__()
        self.waves = torch.logspace(0, -3, 16)
        self.net = nn.Sequential(
            nn.Linear(40, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 8)
        )

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        angle = t.to(x.dtype)[:, None] * self.waves
        return self.net(torch.cat([x.flatten(1), angle.sin(), angle.cos()], 1)).view_as(x)


@pytest.fixture(scope="module")
def policy(diffusers) -> Policy:
    torch.manual_seed(0)
    network = Policy()
    scheduler = diffusers.DDPMScheduler(**SCHEDULE, clip_sample=True)
    data = paths(4000, 0)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    steps = 1500
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        x0 = data[torch.randint(len(data), (128,))]
        eps = torch.randn_like(x0)
        row = torch.randint(ROWS, (len(x0),))
        error = network(scheduler.add_noise(x0, eps, row), row) - eps
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


def their_samples(
    scheduler: Any, network: nn.Module, noise: Tensor, calls: int, *, corrected: bool = True
) -> Tensor:
    """DDIM without fresh noise, as the library runs it; `corrected`: eps is found anew where x0 was
    clipped."""
    scheduler.set_timesteps(calls)
    x = noise
    with torch.no_grad():
        for row in scheduler.timesteps:
            eps = network(x, row.expand(len(x)))
            x = scheduler.step(eps, row, x, use_clipped_model_output=corrected).prev_sample
    return x


def energy(x: Tensor) -> float:
    return float(energy_distance(x.flatten(1), paths(1000, 1).flatten(1)))


def noise_of(n: int) -> Tensor:
    return torch.randn(n, 4, 2, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("calls", [10, 50])
def test_our_euler_steps_are_their_ddim(diffusers, policy, tmp_path, clip_sample, spacing, calls):
    scheduler = diffusers.DDIMScheduler(
        **SCHEDULE, clip_sample=clip_sample, timestep_spacing=spacing
    )
    scheduler.save_pretrained(tmp_path / "scheduler")
    teacher = as_rectified_flow(policy, **read_scheduler(tmp_path))
    noise = noise_of(64)
    expected = their_samples(scheduler, policy, noise, calls)
    # They start from noise, we from sigma times noise.
    start = (1 - scheduler.alphas_cumprod[scheduler.timesteps[0]]).sqrt()
    ours = sample_teacher(teacher, noise / start, calls)
    assert isinstance(ours, Tensor)
    # Unclipped, the last row's x0 is noise a thousand times enlarged, and so are its roundings.
    scale = float(expected.abs().max())
    assert float((ours - expected).abs().max()) < (2e-4 if clip_sample else 2e-3) * scale


@pytest.mark.parametrize("clip_sample", [(-1.0, 1.0), None])
@pytest.mark.parametrize("t_list", [[0.5, 0.0], [0.5, 0.375, 0.25, 0.125, 0.0]])
def test_pairs_are_as_good_as_their_fifty_steps(diffusers, policy, clip_sample, t_list):
    scheduler = diffusers.DDIMScheduler(**SCHEDULE, clip_sample=True)
    noise = noise_of(1000)
    theirs = their_samples(scheduler, policy, noise, 50, corrected=False)
    path = {"name": "squaredcos_cap_v2", "num_train_timesteps": ROWS}
    teacher = as_rectified_flow(policy, path=path, prediction="eps", clip_sample=clip_sample)
    pairs = teacher_pairs(teacher, noise, None, t_list)[:, -1]
    assert energy(pairs) < 1.5 * energy(theirs)
    assert float(pairs.square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)


def test_a_student_is_within_three_times_their_fifty_steps(diffusers, policy, tmp_path):
    diffusers.DDPMScheduler(**SCHEDULE, clip_sample=True).save_pretrained(tmp_path / "scheduler")
    np.savez(tmp_path / "paths.npz", X=paths(4000, 0).numpy())
    cfg = validate(
        DistillConfig,
        {
            "run_dir": str(tmp_path / "run"),
            "data": {"name": "file", "path": str(tmp_path / "paths.npz"), "normalize": False},
            "teacher": {"scheduler": str(tmp_path), "calls": [1], "ab2_calls": [4]},
            "student": {"steps": 1},
            "method": "kd",
            "train": {
                "threads": 1,
                "batch_size": 256,
                "kd_steps": 500,
                "kd_pairs": 2048,
                "evaluate_every": 500,
                "checkpoint_every": 500,
            },
        },
    )
    run = distill(cfg, teacher=policy.requires_grad_(True))
    student = load_student(run / "student", network=Policy())
    assert isinstance(student.network, RectifiedFlow)
    assert student.network.clip_sample == (-1.0, 1.0)
    x = student.sample(num_samples=1000, generator=torch.Generator().manual_seed(3))[0]
    scheduler = diffusers.DDIMScheduler(**SCHEDULE, clip_sample=True)
    theirs = their_samples(scheduler, policy.requires_grad_(False), noise_of(1000), 50)
    assert energy(x) < 3 * energy(theirs)
