"""Parts of a stage: a network in training or one that records, and a DMD of which no branch is
off."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastgen.config import DMDConfig, EMAConfig, OptimizerConfig
from fastgen.training.accelerator import start_accelerator
from fastgen.training.stage import Stage
from fastgen.training.trained_network import TrainedNetwork

__all__ = ["EVERY_BRANCH", "Recorder", "gradients", "in_micro_batches", "trained"]

EVERY_BRANCH = DMDConfig(
    student_steps=3,
    fake_score_warmup_steps=4,
    vsd_norm="rms",
    gan_loss_weight_gen=0.5,
    gan_loss="relativistic",
    gan_r1_reg_weight=0.1,
    gan_r2_reg_weight=0.1,
    gan_disc_warmup_steps=2,
    gan_disc_steps_per_student_step=2,
    gan_blocks=("linear",),
    real_data_weight=1.0,
    real_data_samples=2,
    kd_weight=0.5,
    vsd_alpha_factor=True,
    fake_score_weight="sigma",
    rung_weights=(1.0, 2.0, 1.0),
)


def trained(
    seed: int = 0, *, total: int = 20, ema: bool = True, network: nn.Module | None = None, **options
) -> TrainedNetwork:
    """`network`, or a small one of three inputs, in training for `total` updates under
    `OptimizerConfig(**options)`."""
    torch.manual_seed(seed)
    if network is None:
        network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    cfg = OptimizerConfig(**{"lr": 0.05, "warmup_steps": 3, "weight_decay": 0.1, **options})
    average = EMAConfig(decay=0.8) if ema else None
    return TrainedNetwork(network, cfg, total, start_accelerator(1), ema=average)


class Recorder:
    """Stands for a TrainedNetwork: keeps each update's step and gradient, and changes nothing."""

    ema = None

    def __init__(self, network: nn.Module) -> None:
        self.network, self.steps, self.gradients = network, [], []

    def update(self, losses: Sequence[Callable[[], Tensor]], step: int) -> dict[str, float]:
        self.steps.append(step)
        parameters = list(self.network.parameters())
        parts = [torch.autograd.grad(loss() / len(losses), parameters) for loss in losses]
        self.gradients.append(tuple(torch.stack(part).sum(0) for part in zip(*parts, strict=True)))
        return {"grad_norm": 0.0, "lr": 0.0}


def gradients(recorders: list[Recorder]) -> list[Tensor]:
    return [g for recorder in recorders for update in recorder.gradients for g in update]


def in_micro_batches(stage: Stage, accumulation: int) -> Stage:
    for part in (stage, getattr(stage, "pairs", None)):
        if part is not None:
            part.draws.accumulation = accumulation
    return stage
