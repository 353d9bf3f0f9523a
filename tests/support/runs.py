"""Runs in this process: a toy's training alone, and a trainer with stages that only count."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastgen.config import DistillConfig, LoopConfig
from fastgen.jobs.distillation import Distillation
from fastgen.records.folder import claim_run, open_run
from fastgen.training.accelerator import start_accelerator
from fastgen.training.choice import Compare, Validation
from fastgen.training.evaluations import Asked
from fastgen.training.processes import Processes
from fastgen.training.stage import Stage
from fastgen.training.trained_network import Skip
from fastgen.training.trainer import Trainer
from support.toy import Pulled, ToyTask, ToyTeacher

__all__ = ["SCORES", "Counter", "follow", "kept", "train", "weights"]

# What a stage scores after so many updates:
#          start  1    2    3    4    5    6    7    8
SCORES = [0.5, 0.9, 0.8, 0.6, 0.7, 0.9, 0.8, 0.9, 0.7]


def train(cfg: DistillConfig) -> Distillation:
    """The training of a toy's distillation, without scores and export."""
    with open_run(cfg) as run_dir:
        job = Distillation(cfg, run_dir, start_accelerator(1), teacher=ToyTeacher(), task=ToyTask())
        claim_run(run_dir, cfg)
        job.train()
    return job


def weights(run_dir: Path) -> dict[str, Tensor]:
    """The result of each stage of a run, by stage and name."""
    return {
        f"{f.stem}.{k}": v
        for f in sorted((run_dir / "stages").iterdir())
        for k, v in load_file(f).items()
    }


class Counter(Stage):
    """A stage whose only weight is the number of its updates, so that a network says when it
    was."""

    def __init__(self, name: str = "dmd", steps: int = 8, warmup: int = 0) -> None:
        self.name = name
        self.updates = steps
        self.warmup = warmup
        self.at = 0
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.network.weight)

    def update(self, step: int) -> dict[str, Tensor | float]:
        assert self.done == step
        nn.init.constant_(self.network.weight, step + 1)
        return {"loss": 1.0}

    @property
    def done(self) -> int:
        return int(self.network.weight)

    def trained(self) -> dict:
        return {"student": self}

    def take_skipped(self) -> list[Skip]:
        return []

    def tensors(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.network.load_state_dict(tensors)

    def averaged(self) -> nn.Module:
        return self.network


def follow(
    run_dir: Path,
    scores: Sequence[float | dict[str, float]],
    *,
    stages: list[Counter] | None = None,
    processes: Processes | None = None,
    resume: bool = False,
    pull_at: int | None = None,
    compare: Compare | None = None,
    teacher: Asked | None = None,
    **loop,
) -> Trainer:
    """A run of stages that score `scores[n]` after n updates, with n as their only sample.

    Args:
        pull_at: the plug is pulled in the validation after so many updates.
        compare: of the samples.
        teacher: its budget.
    """

    def evaluate(network: nn.Module) -> Validation:
        n = int(network.weight)
        if n == pull_at:
            raise Pulled
        score = scores[n]
        named = score if isinstance(score, dict) else {"energy": score}
        return Validation(named, torch.tensor([float(n)]))

    made = stages or [Counter()]
    run_dir.mkdir(exist_ok=True)
    cfg = LoopConfig(**{"evaluate_every": 1, "checkpoint_every": 2, "log_every": 100, **loop})
    factories = {stage.name: (lambda stage=stage: stage) for stage in made}
    options = {"evaluate": evaluate, "compare": compare, "primary": "energy", "seed": 0}
    options |= {"evaluate_start": True, "teacher": teacher}
    if processes is None:
        processes = start_accelerator(1)
    trainer = Trainer(factories, run_dir, cfg, processes, resume=resume, **options)
    trainer.run()
    return trainer


def kept(trainer: Trainer, name: str = "dmd") -> int:
    """The number of updates after which the result of a stage was taken."""
    return int(trainer.result(name)["weight"])
