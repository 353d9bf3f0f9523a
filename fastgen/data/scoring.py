"""Scores of tasks: what all evaluations share.

Every sampler gets the same conditions and the same noise, and what it answers is checked before it
is scored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._core.seeds import generator_for

__all__ = ["EVALUATION_SEED", "answered", "evaluation_generator"]

# Of every draw that an evaluation makes, whatever the seed of the run: scores stay comparable.
EVALUATION_SEED = 20260


def evaluation_generator(task: str, part: str) -> torch.Generator:
    """The generator of a part of a task's evaluation, the same in every run."""
    return generator_for(EVALUATION_SEED, task, part)


def answered(
    drawn: Tensor,
    noise: Tensor,
    dtype: torch.dtype = torch.float32,
    *,
    shape: Sequence[int] | None = None,
) -> Tensor:
    """What a sampler answered to `noise`, on the CPU and in the `dtype` of the data.

    Raises:
        ValueError: another shape of a sample than `shape`, or where that is None than that of the
            noise; NaN or infinity.
    """
    expected = tuple(noise.shape) if shape is None else (len(noise), *shape)
    if tuple(drawn.shape) != expected:
        raise ValueError(
            f"expected sample(Z, noise) to return {expected}, got {tuple(drawn.shape)}"
        )
    if not bool(torch.isfinite(drawn).all()):
        raise ValueError(
            "expected finite samples, got NaN or infinity; the network or its training has diverged"
        )
    return drawn.detach().cpu().to(dtype)
