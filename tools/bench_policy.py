"""A DiffusionPolicy of LeRobot in one call, beside its own sampler.

    python tools/bench.py policy [--seeds 0] [--out runs/bench-policy]

The policy of tests/data/policies/push was trained by lerobot on the episodes of tools/push.py, and
lerobot itself sampled it from given noise, in ten calls and in a hundred. The student, by KD with
the defaults of `train`, answers the same conditions and noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

import fastgen
import push
from fastgen.config import DistillConfig
from fastgen.config.files import validate
from fastgen.distillation import distill
from fastgen.export import Student
from fastgen.metrics import energy_distance, energy_score

__all__ = ["POLICY", "compared", "run_policy"]

POLICY = Path(__file__).parents[1] / "tests" / "data" / "policies" / "push"
_COLUMNS = ("action error", "energy distance", "energy score")


def run_policy(seeds: Sequence[int], out: Path) -> dict[str, Any]:
    """Distil the policy once a seed, compare, print the table."""
    out.mkdir(parents=True, exist_ok=True)
    data = out / "push.npz"
    np.savez(data, **push.arrays(push.episodes(push.EPISODES)))
    result = {}
    for seed in seeds:
        run = distill(_config(data, out / f"seed-{seed}", seed))
        result[f"seed {seed}"] = compared(fastgen.load_student(run / "student"))
    for name, table in result.items():
        print(f"\n{name}: post-processing within {table['post-processing']:.1e}")
        print(f"{'':16}{''.join(f'{column:>17}' for column in _COLUMNS)}")
        for row, scores in table["rows"].items():
            print(f"{row:16}{''.join(f'{scores[column]:17.4f}' for column in _COLUMNS)}")
    return result


def _config(data: Path, run_dir: Path, seed: int) -> DistillConfig:
    saved = str(POLICY / "pretrained_model")
    values = {
        "name": "push",
        "run_dir": str(run_dir),
        "seed": seed,
        "data": {
            "name": "file",
            "path": str(data),
            "obs_horizon": 2,
            "horizon": 16,
            "actions_from": "first_observation",
            "pad_before": 1,
            "pad_after": 14,
            "normalize": {"limits": saved},
        },
        "teacher": {"folder": saved},
        "method": "kd",
    }
    return validate(DistillConfig, values)


def compared(student: Student) -> dict[str, Any]:
    """Scores of a student and of the policy's sampler, and how far the student's way back to
    actions is from the policy's own.

    Returns:
        `rows`, by sampler: "action error" is the mean distance of a waypoint to that of the hundred
        calls from the same noise, "energy distance" that to their samples of the same condition
        (squared, without pairs that share their noise), "energy score" that of the demonstrator's
        actions. `post-processing`: the largest difference.
    """
    answers = load_file(POLICY / "answers.safetensors")
    z = torch.cat([answers[f"raw.observation.{n}"] for n in ("state", "environment_state")], -1)
    truth = answers["raw.action"]
    many = answers["actions_100"].unflatten(0, (len(z), -1))
    noise = answers["noise"].view_as(many)
    sampled = {
        "student, 1 call": student.sample(z, num_samples=many.shape[1], noise=noise),
        "lerobot, 10": answers["actions_10"].view_as(many),
        "lerobot, 100": many,
    }
    assert student.x_normalizer is not None
    back = student.x_normalizer.denormalize(answers["samples_100"])
    return {
        "rows": {name: _scores(x, many, truth) for name, x in sampled.items()},
        "post-processing": float((back - answers["actions_100"]).abs().max()),
    }


def _scores(x: Tensor, many: Tensor, truth: Tensor) -> dict[str, float]:
    distance = energy_distance(x.flatten(2), many.flatten(2), unbiased=True, paired=True)
    return {
        "action error": float((x - many).norm(dim=-1).mean()),
        "energy distance": float(distance.mean()),
        "energy score": float(energy_score(x, truth).mean()),
    }
