"""The ring as a task: training data, references drawn once, and the same conditions and noise for every sampler."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property

import torch
from torch import Tensor

from .._tensor import generator_for
from .ring import (
    BLOCK,
    HORIZON,
    WALL,
    References,
    demonstrate,
    mode_error_floor,
    sample_conditions,
    score,
)
from .trajectories import EVALUATION_SEED, TrajectoryData, check_pack, fit_normalizers

__all__ = ["RingTask"]


class RingTask:
    """The ring as a task: `size` demonstrations to train on, fixed conditions and one fixed noise draw to score on.

    Args:
        size: training demonstrations, one for each of as many conditions.
        pack: waypoints per token; divides 16.
        seed: of the training demonstrations. Evaluation has its own fixed seeds: scores of different runs can be
            compared.
        symmetry: None for the task's own D4.
    """

    name = "ring"
    primary = "energy_ratio"
    own_symmetry = {"group": "D4", "in_rep": ["standard"], "cond_rep": ["standard"], "out_rep": ["standard"]}
    # Students of neighbouring quality differ by .03 in energy ratio, which 128 validation conditions can't tell.
    CONDITIONS, QUICK_CONDITIONS, SAMPLES, POOL = 200, 400, 16, 128

    def __init__(self, *, size: int = 4000, pack: int = 4, seed: int = 0, symmetry: dict | None = None) -> None:
        if not isinstance(size, int) or isinstance(size, bool) or size < 2:
            raise ValueError(f"expected size to be a whole number >= 2 of demonstrations, got {size!r}")
        check_pack(pack, HORIZON)
        self.size, self.pack, self.seed = size, pack, seed
        self.symmetry = dict(self.own_symmetry) if symmetry is None else symmetry

    @property
    def train(self) -> TrajectoryData:
        """The training set, made on first use."""
        return self._train

    @cached_property
    def _train(self) -> TrajectoryData:
        generator = generator_for(self.seed, "ring", "train")
        Z = sample_conditions(self.size, generator)
        X, Z = demonstrate(Z, generator).float(), Z.float()
        return TrajectoryData(X, Z, *fit_normalizers(X, Z, self.symmetry), pack=self.pack, symmetry=self.symmetry)

    def evaluate(self, sample: Callable[[Tensor, Tensor], Tensor], *, quick: bool = False) -> dict[str, float]:
        """Scores of `sample(Z (B, 2, 2), noise (B, 16, 2)) -> X (B, 16, 2)`, float32, original units.

        The noise is standard normal and the same for every sampler. Full: `score` on 200 conditions x 16 samples, and
        with the suffix `_near` on as many near opposition. Quick: validation conditions of another seed, 400 x 16,
        without the near ones.
        """
        if quick:
            return self._score(sample, "validation")
        near = self._score(sample, "near")
        return self._score(sample, "all") | {f"{name}_near": value for name, value in near.items()}

    def floor(self) -> dict[str, float]:
        """Full scores of one more set of demonstrations, and `mode_error_floor` (`_near`), their exact expectation."""

        def again(Z: Tensor, noise: Tensor) -> Tensor:
            return demonstrate(Z, generator)

        generator = generator_for(EVALUATION_SEED, "ring", "floor")
        scores = self.evaluate(again)
        for split, suffix in (("all", ""), ("near", "_near")):
            scores[f"mode_error_floor{suffix}"] = mode_error_floor(self._references(split)[0].p, self.SAMPLES)
        return scores

    def scene(self) -> dict:
        """What to draw behind trajectories: the block, the limits of the room, equal axes."""
        corners = [(-BLOCK, -BLOCK), (BLOCK, -BLOCK), (BLOCK, BLOCK), (-BLOCK, BLOCK)]
        return {"obstacles": [corners], "limits": (-WALL, WALL, -WALL, WALL), "equal": True}

    def examples(self, n: int = 6) -> tuple[Tensor, Tensor]:
        """Z (n, 2, 2) and a demonstration X (n, 16, 2) of each, float32; the second half of them is near opposition."""
        generator = generator_for(EVALUATION_SEED, "ring", "examples")
        far, near = (sample_conditions(m, generator, near=b) for m, b in ((n - n // 2, False), (n // 2, True)))
        Z = torch.cat([far, near])
        return Z.float(), demonstrate(Z, generator).float()

    def _score(self, sample: Callable[[Tensor, Tensor], Tensor], split: str) -> dict[str, float]:
        references, noise = self._references(split)
        Z = references.Z.repeat_interleave(self.SAMPLES, 0).float()
        X = sample(Z, noise)
        if X.shape != noise.shape:
            raise ValueError(f"expected sample(Z, noise) to return {tuple(noise.shape)}, got {tuple(X.shape)}")
        return score(X.detach().double().cpu().view(-1, self.SAMPLES, HORIZON, 2), references)

    def _references(self, split: str) -> tuple[References, Tensor]:
        """References and noise (C K, 16, 2) of a split, drawn once in a process."""
        conditions = self.QUICK_CONDITIONS if split == "validation" else self.CONDITIONS
        return _references(split, conditions, self.SAMPLES, self.POOL)


@cache
def _references(split: str, conditions: int, samples: int, pool: int) -> tuple[References, Tensor]:
    generator = generator_for(EVALUATION_SEED, "ring", split)
    # Samplers are given the conditions in float32, so the references answer exactly those.
    Z = sample_conditions(conditions, generator, near=split == "near").float().double()
    references = References.draw(Z, pool, generator)
    return references, torch.randn(conditions * samples, HORIZON, 2, generator=generator)
