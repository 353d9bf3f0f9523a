"""What a stage is made of in tests: a process that does not exist, and its draws."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from fastgen.training.draws import Draws

__all__ = ["BATCH", "draws", "process"]

BATCH = 12


def process(rank: int = 0, world: int = 1) -> SimpleNamespace:
    """What a stage asks of accelerate, for one of `world` processes that do not exist."""
    return SimpleNamespace(num_processes=world, process_index=rank, device=torch.device("cpu"))


def draws(rank: int = 0, world: int = 1, *, seed: int = 0, stage: str = "kd") -> Draws:
    return Draws(seed, stage, process(rank, world), BATCH)
