"""What tasks of generated paths share: training demonstrations, references drawn once, the same
conditions and noise for every sampler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache, cached_property

import torch
from torch import Generator, Tensor

from .._tensor import generator_for
from .ring import HORIZON, References
from .trajectories import EVALUATION_SEED, TrajectoryData, check_pack, check_size, fit_normalizers

__all__ = ["PathTask"]


class PathTask(ABC):
    """Paths of 16 waypoints given a few points: `size` demonstrations to train on, fixed conditions
    to score on.

    Args:
        size: training demonstrations, one for each of as many conditions.
        pack: waypoints per token; divides 16.
        seed: of the training demonstrations. Evaluation has its own fixed seeds: scores of
            different runs can be compared.
        symmetry: None for the task's own D4.

    Raises ValueError for other values.
    """

    name: str
    primary = "energy_ratio"
    own_symmetry = {
        "group": "D4",
        "in_rep": ["standard"],
        "cond_rep": ["standard"],
        "out_rep": ["standard"],
    }
    # Students of neighbouring quality differ by .03 in energy ratio, which 128 validation
    # conditions can't tell.
    CONDITIONS = 200
    QUICK_CONDITIONS = 400
    SAMPLES = 16
    POOL = 128

    def __init__(
        self, *, size: int = 4000, pack: int = 4, seed: int = 0, symmetry: dict | None = None
    ) -> None:
        check_size(size)
        check_pack(pack, HORIZON)
        self.size = size
        self.pack = pack
        self.seed = seed
        self.symmetry = dict(self.own_symmetry) if symmetry is None else symmetry

    @staticmethod
    @abstractmethod
    def conditions(n: int, generator: Generator, split: str) -> Tensor:
        """Conditions Z (n, T_z, 2) float64 of a split: "train", "validation", "all" or one of the
        task's own."""

    @staticmethod
    @abstractmethod
    def demonstrate(Z: Tensor, generator: Generator) -> Tensor:
        """One demonstration for each condition: X (N, 16, 2) float64."""

    @staticmethod
    @abstractmethod
    def draw_references(Z: Tensor, size: int, generator: Generator) -> References:
        """A pool of `size` demonstrations for each condition."""

    @staticmethod
    @abstractmethod
    def score(X: Tensor, references: References) -> dict[str, float]:
        """Scores of K samples X (C, K, 16, 2) of each of the references' conditions."""

    @property
    def train(self) -> TrajectoryData:
        """The training set, made on first use."""
        return self._train

    @cached_property
    def _train(self) -> TrajectoryData:
        generator = generator_for(self.seed, self.name, "train")
        Z = self.conditions(self.size, generator, "train")
        X = self.demonstrate(Z, generator).float()
        Z = Z.float()
        return TrajectoryData(
            X, Z, *fit_normalizers(X, Z, self.symmetry), pack=self.pack, symmetry=self.symmetry
        )

    def evaluate(
        self, sample: Callable[[Tensor, Tensor], Tensor], *, quick: bool = False
    ) -> dict[str, float]:
        """Scores of `sample(Z (B, T_z, 2), noise (B, 16, 2)) -> X (B, 16, 2)`, float32, original
        units.

        The noise is standard normal and the same for every sampler. Full: `score` on 200 conditions
        x 16 samples. Quick: validation conditions of another seed, 400 x 16.
        """
        return self._score(sample, "validation" if quick else "all")

    def floor(self) -> dict[str, float]:
        """Full scores of one more set of demonstrations."""

        def again(Z: Tensor, noise: Tensor) -> Tensor:
            return self.demonstrate(Z, generator)

        generator = generator_for(EVALUATION_SEED, self.name, "floor")
        return self.evaluate(again)

    def _score(self, sample: Callable[[Tensor, Tensor], Tensor], split: str) -> dict[str, float]:
        references, noise = self.references(split)
        Z = references.Z.repeat_interleave(self.SAMPLES, 0).float()
        X = sample(Z, noise)
        if X.shape != noise.shape:
            raise ValueError(
                f"expected sample(Z, noise) to return {tuple(noise.shape)}, got {tuple(X.shape)}"
            )
        return self.score(X.detach().double().cpu().view(-1, self.SAMPLES, HORIZON, 2), references)

    def references(self, split: str) -> tuple[References, Tensor]:
        """References and noise (C K, 16, 2) of a split, drawn once in a process."""
        conditions = self.QUICK_CONDITIONS if split == "validation" else self.CONDITIONS
        return _references(type(self), split, conditions, self.SAMPLES, self.POOL)


@cache
def _references(
    task: type[PathTask], split: str, conditions: int, samples: int, pool: int
) -> tuple[References, Tensor]:
    generator = generator_for(EVALUATION_SEED, task.name, split)
    # Samplers are given the conditions in float32, so the references answer exactly those.
    Z = task.conditions(conditions, generator, split).float().double()
    references = task.draw_references(Z, pool, generator)
    return references, torch.randn(conditions * samples, HORIZON, 2, generator=generator)
