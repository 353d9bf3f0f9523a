"""Paths: what tasks of generated paths share.

A condition Z (T_z, 2) is a few points of the plane, the first a start and the second a goal. A path
X is 16 waypoints from the start (excluded) to the end, equally spaced in arc length where the task
doesn't say otherwise. This file holds the geometry of paths, references to score samples by, and
the base of such tasks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Generator, Tensor

from ..._core.seeds import generator_for
from ...comparisons import LEVEL, Comparison, compare_means
from ...metrics import pairwise_distances
from ..scoring import evaluation_generator
from ..trajectories import TrajectoryData, check_pack, check_size, fit_normalizers

__all__ = [
    "ARRIVAL",
    "HORIZON",
    "RADIUS",
    "PathTask",
    "References",
    "check_samples",
    "clears_and_arrives",
    "mode_error_floor",
    "polyline",
    "resample",
    "within_mode_spread",
]

# Waypoints of a path.
HORIZON = 16
# Of the point that moves.
RADIUS = 0.1
# Most distance between a path's end and its goal.
ARRIVAL = 0.15


# ---- Geometry -----------------------------------------------------------------------------------


def polyline(X: Tensor, Z: Tensor) -> Tensor:
    """Start and waypoints (N, T + 1, 2), float64, of paths X (N, T, 2) under conditions Z."""
    return torch.cat([Z[:, :1].double(), X.double()], 1)


def resample(path: Tensor, n: int) -> Tensor:
    """Points (N, n, 2) equally spaced in arc length on polylines (N, M, 2), the start excluded, the
    end included."""
    step = path.diff(dim=1)
    length = step.norm(dim=-1)
    along = torch.cat([torch.zeros_like(length[:, :1]), length.cumsum(1)], 1)
    wanted = along[:, -1:] * torch.arange(1, n + 1, dtype=path.dtype) / n
    index = (torch.searchsorted(along, wanted) - 1).clamp(0, length.shape[1] - 1)
    piece = length.gather(1, index).clamp_min(torch.finfo(path.dtype).tiny)
    share = (wanted - along.gather(1, index)) / piece
    pick = index[..., None].expand(-1, -1, 2)
    return path.gather(1, pick) + share.clamp(0, 1)[..., None] * step.gather(1, pick)


def clears_and_arrives(X: Tensor, Z: Tensor, least: Tensor) -> Tensor:
    """Whether paths keep clear by the radius and end within 0.15 of the goal: (N,) bool.

    Args:
        X: paths (N, T, 2).
        Z: conditions; Z[:, 1] is the goal.
        least: (N,), the least distance of each path to what stands in the way.
    """
    arrived = (X[:, -1].double() - Z[:, 1].double()).norm(dim=-1) <= ARRIVAL
    return (least >= RADIUS) & arrived


# ---- References and scores ----------------------------------------------------------------------


def check_samples(X: Tensor, conditions: int) -> None:
    """ValueError unless X is (conditions, K, 16, 2) with K >= 1, and finite."""
    fits = X.ndim == 4 and X.shape[0] == conditions and tuple(X.shape[2:]) == (HORIZON, 2)
    if not fits or X.shape[1] == 0:
        raise ValueError(
            f"expected samples of shape ({conditions}, K, {HORIZON}, 2), got {tuple(X.shape)}"
        )
    if not bool(torch.isfinite(X).all()):
        raise ValueError(
            "expected finite samples, got NaN or infinity; the network or its training has diverged"
        )


def mode_error_floor(p: Tensor, samples: int) -> float:
    """Mode error of a perfect sampler, exact: mean over conditions of E|Bin(K, p) / K - p|.

    Args:
        p: (C,), probability of the mode under each condition.
        samples: K.
    """
    k = torch.arange(samples + 1, dtype=torch.float64)
    log_choose = math.lgamma(samples + 1) - torch.lgamma(k + 1) - torch.lgamma(samples - k + 1)
    p = p.double()[:, None]
    weight = (log_choose + torch.special.xlogy(k, p) + torch.special.xlog1py(samples - k, -p)).exp()
    return float((weight * (k / samples - p).abs()).sum(1).mean())


def within_mode_spread(X: Tensor, modes: Tensor) -> float:
    """Root mean squared deviation of a path from the mean of its mode.

        sqrt(sum |X - mean|^2 / sum (n - 1))

    Sums run over the modes of each condition that have n >= 2 samples; norms are over all 2 T
    numbers of a path. NaN if there is no such mode.

    Args:
        X: (C, K, T, 2), K samples of each of C conditions.
        modes: (C, K), the mode of each sample, as bool or number.
    """
    x = X.double().flatten(2)
    squares = torch.zeros((), dtype=torch.float64)
    freedom = torch.zeros((), dtype=torch.float64)
    for mode in modes.unique():
        weight = (modes == mode).double()[..., None]
        n = weight.sum(1, keepdim=True)
        mean = (weight * x).sum(1, keepdim=True) / n.clamp_min(1)
        squares = squares + (weight * (x - mean).square()).sum()
        freedom = freedom + (n - 1).clamp_min(0).sum()
    return float((squares / freedom).sqrt())


@dataclass(frozen=True)
class References:
    """A pool of demonstrations of fixed conditions, with what scores need to know of them.

    Attributes:
        Z: conditions (C, T_z, 2).
        X: M demonstrations of each, (C, M, 16, 2).
        p: probabilities of the modes, (C,) of two or (C, modes).
        distance: (C,), mean distance |y - y'| of two different demonstrations of a condition.
        clearance: mean least distance of the demonstrations to what stands in the way; NaN where
            nothing does.
        spread: `within_mode_spread` of the demonstrations.
    """

    Z: Tensor
    X: Tensor
    p: Tensor
    distance: Tensor
    clearance: float
    spread: float

    @classmethod
    def of(cls, Z: Tensor, X: Tensor, p: Tensor, modes: Tensor, clearance: Tensor) -> References:
        """The pool of X (C, M, 16, 2), M >= 2 demonstrations of each condition of Z.

        Args:
            Z, X, p: as the attributes.
            modes: (C, M), bool or integers: which way each demonstration goes.
            clearance: (C M,), least distance of each demonstration to what stands in the way.
        """
        size = X.shape[1]
        flat = X.flatten(2)
        distance = pairwise_distances(flat, flat).sum((1, 2)) / (size * (size - 1))
        return cls(Z, X, p, distance, float(clearance.mean()), within_mode_spread(X, modes))

    @classmethod
    def of_one_mode(cls, Z: Tensor, X: Tensor) -> References:
        """The pool of X (C, M, 16, 2), M >= 2, of a task with one mode and nothing in the way."""
        rows = X.shape[:2]
        nowhere = torch.full((rows.numel(),), math.nan, dtype=torch.float64)
        one = torch.ones(rows[0], dtype=torch.float64)
        return cls.of(Z, X, one, torch.zeros(rows, dtype=torch.bool), nowhere)

    def checked(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """K samples X (C, K, 16, 2) of each condition in float64, the same one after the other
        (C K, 16, 2), and the condition of each of these, (C K, T_z, 2).

        Raises:
            ValueError: samples of another shape or with NaN.
        """
        check_samples(X, self.Z.shape[0])
        X = X.double()
        return X, X.flatten(0, 1), self.Z.repeat_interleave(X.shape[1], 0)

    def energy(self, X: Tensor) -> Tensor:
        """Energy distance (V-statistic) between K samples and K demonstrations of each condition.

        It is averaged over all choices of the K demonstrations from the pool, which is exactly

            2 mean |x - y| - mean |x - x'| - (K - 1) / K mean_{y != y'} |y - y'|.

        Args:
            X: samples (C, K, 16, 2).

        Returns:
            (C,).
        """
        k = X.shape[1]
        x = X.flatten(2)
        cross = pairwise_distances(x, self.X.flatten(2)).mean((1, 2))
        within = pairwise_distances(x, x).mean((1, 2))
        return 2 * cross - within - (k - 1) / k * self.distance

    def unbiased_energy(self, X: Tensor) -> Tensor:
        """Unbiased energy distance between the law of samples X (C, K, 16, 2), K >= 2, and that of
        the demonstrations, by all of the pool: (C,)."""
        x = X.flatten(2)
        k = X.shape[1]
        cross = pairwise_distances(x, self.X.flatten(2)).mean((1, 2))
        within = pairwise_distances(x, x).sum((1, 2)) / (k * (k - 1))
        return 2 * cross - within - self.distance

    def own_energy(self, k: int) -> Tensor:
        """The same between two disjoint sets of k demonstrations: 2 / k mean_{y != y'} |y - y'|,
        (C,)."""
        return 2 / k * self.distance


# ---- The task -----------------------------------------------------------------------------------


class PathTask(ABC):
    """A task of generated paths: demonstrations to train on, fixed conditions to score on.

    Subclasses give the law: conditions, demonstrations, references and scores.

    Args:
        size: training demonstrations, one for each of as many conditions.
        pack: waypoints per token; divides 16.
        seed: of the training demonstrations. Evaluation has fixed seeds of its own, so that scores
            of different runs can be compared.
        symmetry: None for the task's own D4.

    Raises:
        ValueError: other values.
    """

    name: str
    primary = "energy_ratio"
    own_symmetry = {
        "group": "D4",
        "in_rep": ["standard"],
        "cond_rep": ["standard"],
        "out_rep": ["standard"],
    }
    # Conditions of full scores, and of quick ones. Students of neighbouring quality differ by .03
    # in energy ratio, which 128 validation conditions can't tell.
    CONDITIONS = 200
    QUICK_CONDITIONS = 400
    # Samples of each condition, and demonstrations of each that they are compared with.
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
        """Conditions Z (n, T_z, 2) float64.

        Args:
            n: how many.
            generator: draws them.
            split: "train", "validation", "all" or one of the task's own.
        """

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

    @staticmethod
    @abstractmethod
    def succeeds(X: Tensor, Z: Tensor) -> Tensor:
        """Whether paths X (N, 16, 2) do what their conditions ask for: (N,) bool."""

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
        normalizers = fit_normalizers(X, Z, self.symmetry)
        return TrajectoryData(
            X, Z, *normalizers, pack=self.pack, symmetry=self.symmetry, in_order=False
        )

    def evaluate(
        self, sample: Callable[[Tensor, Tensor], Tensor], *, quick: bool = False
    ) -> dict[str, float]:
        """Scores of a sampler, as `score` gives them: on 200 conditions with 16 samples of each.

        Args:
            sample: called with Z (B, T_z, 2) and noise (B, 16, 2), answers with X (B, 16, 2) in
                original units; all float32. The noise is standard normal, and the same for every
                sampler.
            quick: score on 400 validation conditions, of another seed.
        """
        return self.score_on(sample, "validation" if quick else "all")

    def compare(self, a: Tensor, b: Tensor) -> dict[str, Comparison]:
        """Two samplers by what they answered in `evaluate(quick=True)`, each (B, 16, 2).

        Returns:
            the difference of the energy ratio, and that of the share of paths that fail, both over
            the validation conditions. The ratio is of unbiased distances here: where a task scores
            by others, these are less for samples that are narrower than the data.
        """
        references, _ = self.references("validation")
        own = references.own_energy(self.SAMPLES).mean()
        losses = {}
        for name, samples in (("a", a), ("b", b)):
            X = samples.double().view(-1, self.SAMPLES, HORIZON, 2)
            Z = references.Z.repeat_interleave(self.SAMPLES, 0)
            fails = ~self.succeeds(X.flatten(0, 1), Z)
            losses[name] = {
                "energy_ratio": references.unbiased_energy(X) / own,
                "failures": fails.double().view(-1, self.SAMPLES).mean(1),
            }
        level = 1 - (1 - LEVEL) / 2
        return {
            name: compare_means(of_a, losses["b"][name], level=level)
            for name, of_a in losses["a"].items()
        }

    def examples(self, n: int = 6) -> tuple[Tensor, Tensor]:
        """Z (n, T_z, 2) and a demonstration X (n, 16, 2) of each, float32."""
        generator = evaluation_generator(self.name, "examples")
        Z = self.conditions(n, generator, "all")
        return Z.float(), self.demonstrate(Z, generator).float()

    def floor(self) -> dict[str, float]:
        """Full scores of one more set of demonstrations."""
        generator = evaluation_generator(self.name, "floor")

        def again(Z: Tensor, noise: Tensor) -> Tensor:
            return self.demonstrate(Z, generator)

        return self.evaluate(again)

    def score_on(self, sample: Callable[[Tensor, Tensor], Tensor], split: str) -> dict[str, float]:
        """Scores of a sampler on the conditions of a split."""
        references, noise = self.references(split)
        Z = references.Z.repeat_interleave(self.SAMPLES, 0).float()
        X = sample(Z, noise)
        if X.shape != noise.shape:
            raise ValueError(
                f"expected sample(Z, noise) to return {tuple(noise.shape)}, got {tuple(X.shape)}"
            )
        fans = X.detach().double().cpu().view(-1, self.SAMPLES, HORIZON, 2)
        return self.score(fans, references)

    def references(self, split: str) -> tuple[References, Tensor]:
        """References of a split and noise (C K, 16, 2) for their samples, drawn once in a
        process."""
        conditions = self.QUICK_CONDITIONS if split == "validation" else self.CONDITIONS
        return _references(type(self), split, conditions, self.SAMPLES, self.POOL)


@cache
def _references(
    task: type[PathTask], split: str, conditions: int, samples: int, pool: int
) -> tuple[References, Tensor]:
    generator = evaluation_generator(task.name, split)
    # Samplers are given the conditions in float32, so the references answer exactly those.
    Z = task.conditions(conditions, generator, split).float().double()
    references = task.draw_references(Z, pool, generator)
    return references, torch.randn(conditions * samples, HORIZON, 2, generator=generator)
