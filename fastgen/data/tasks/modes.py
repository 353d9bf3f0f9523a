"""The embedded task `modes`: points of the plane from eight Gaussians on a circle, without a
condition.

The law is an equal mixture of N(m_k, .1^2 I), m_k = 1.4 (cos, sin)(k pi / 4), k = 0 .. 7. The means
are one orbit of D8 (the eighth turns and reflections of the plane; each mean is kept by one
reflection), so the law is exactly invariant under its 16 elements. Samples are trajectories of one
waypoint, X (N, 1, 2), and the condition is a constant that no group element moves, Z = 1 of shape
(N, 1, 1): the transformers that serve trajectories serve points as well.

Since the law is known, so is its distance to the law of a sampler, up to the sampler's own draws.
For y ~ N(m, s^2 I), |x - y| has the law of Rice, whose mean is, with a = |x - m|^2 / (4 s^2) and
scaled Bessel functions,

    s sqrt(pi / 2) [(1 + 2 a) I0(a) + 2 a I1(a)] exp(-a).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, cached_property

import torch
from torch import Generator, Tensor

from ..._core.seeds import generator_for
from ...metrics import coverage, neighbour_radius, pairwise_distances
from ...normalizer import Normalizer
from ..held_out import checked
from ..mixtures import GaussianMixture
from ..trajectories import EVALUATION_SEED, TrajectoryData, check_pack, check_size, fit_normalizers

__all__ = ["ModesTask", "exact_energy_distance", "modes_mixture", "score", "share_error_floor"]

COUNT = 8
RADIUS = 1.4
STD = 0.1
IN_MODE = 3.0  # standard deviations
NEIGHBOURS = 5
ROWS = 1024  # of a distance matrix that are in memory at once


# --- the law --------------------------------------------------------------------------------------


def mode_means() -> Tensor:
    """m_k, counter-clockwise from (1.4, 0): (8, 2) float64."""
    angle = torch.arange(COUNT, dtype=torch.float64) * (2 * math.pi / COUNT)
    return RADIUS * torch.stack([angle.cos(), angle.sin()], -1)


def modes_mixture() -> GaussianMixture:
    """The law of X (1, 2), with its density and its exact flow."""
    return GaussianMixture(mode_means()[:, None], stds=STD)


def draw(n: int, generator: Generator | None = None) -> Tensor:
    """n points of the law: (n, 1, 2) float64."""
    return modes_mixture().sample(n, generator=generator, dtype=torch.float64)


def _mean_distance(distance: Tensor, std: float) -> Tensor:
    """E|y - x| for y ~ N(m, std^2 I) in the plane and |x - m| = distance (...): (...), the mean of
    Rice's law."""
    a = (distance / (2 * std)).square()
    bracket = (1 + 2 * a) * torch.special.i0e(a) + 2 * a * torch.special.i1e(a)
    return std * math.sqrt(math.pi / 2) * bracket


def _mode_distances() -> Tensor:
    """E|y - y'| of independent y, y' of each pair of modes: (8, 8)."""
    return _mean_distance(pairwise_distances(mode_means(), mode_means()), math.sqrt(2) * STD)


def exact_energy_distance(x: Tensor) -> float:
    """Squared energy distance 2 E|x - y| - E|x - x'| - E|y - y'| of samples x (N, 2) to the law of
    y itself.

    Unbiased: expectations over y are exact, those over x the means of the samples and of their
    pairs i != j. About 0 for the law's own samples, also below. Not a root: its noise is symmetric
    about the truth.

    Raises ValueError for another shape or fewer than 2 rows.
    """
    if x.ndim != 2 or x.shape[1] != 2 or len(x) < 2:
        raise ValueError(f"expected samples of shape (N >= 2, 2), got {tuple(x.shape)}")
    x, n = x.double(), len(x)
    cross = _mean_distance(pairwise_distances(x, mode_means()), STD).mean()
    within = sum(pairwise_distances(rows, x).sum() for rows in x.split(ROWS)) / (n * (n - 1))
    return float(2 * cross - within - _mode_distances().mean())


def lost_mode_energy() -> float:
    """Energy distance of the law without one of its modes to the law: -d^T D d, d the differences
    of mode weights."""
    lost = torch.full((COUNT,), 1 / (COUNT - 1) - 1 / COUNT, dtype=torch.float64)
    lost[0] = -1 / COUNT
    return float(-lost @ _mode_distances() @ lost)


# --- scores ---------------------------------------------------------------------------------------


def score(x: Tensor, held_out: Tensor, radius: Tensor | None = None) -> dict[str, float]:
    """Scores of samples x (N, 2) beside points of the law held_out (M, 2), M > 5; radius (M,) as in
    `coverage`.

    Returns:
        mismatch: 1 - coverage + energy_distance / (8 e) with e the energy distance of a law that
            lost one mode, so that a lost mode adds 1/8 by either term. Coverage sees blurred and
            narrowed modes, which hardly move the energy distance; that one sees wrong shares of
            modes and points far out. For the law's own samples about 1/32.
        energy_distance: `exact_energy_distance`.
        success: share of samples within 3 standard deviations of a mode's mean; 1 - exp(-4.5) =
            .989 for the law.
        coverage: `metrics.coverage` of the held-out points with k = 5; 1 - 2^-5 = .969 for the law
            where N = M.
        spread: median |x - m| to the nearest mean over that of the law, .1 sqrt(2 log 2): the ratio
            of standard deviations within a mode, on which a few points between the modes have no
            hold.
        mode_error: max_k |share of samples nearest to mean k - 1/8|.
    """
    x = x.double()
    distance, mode = pairwise_distances(x, mode_means()).min(1)
    shares = torch.bincount(mode, minlength=COUNT).double() / len(x)
    energy = exact_energy_distance(x)
    covered = float(coverage(x, held_out, k=NEIGHBOURS, radius=radius))
    return {
        "mismatch": 1 - covered + energy / (COUNT * lost_mode_energy()),
        "energy_distance": energy,
        "success": float((distance <= IN_MODE * STD).double().mean()),
        "coverage": covered,
        "spread": float(distance.median()) / (STD * math.sqrt(2 * math.log(2))),
        "mode_error": float((shares - 1 / COUNT).abs().max()),
    }


def share_error_floor(
    samples: int, generator: Generator | None = None, *, draws: int = 400
) -> float:
    """Mode error of a perfect sampler, E max_k |share - 1/8| for that many samples, by `draws`
    draws (to 2 %)."""
    modes = torch.randint(COUNT, (draws, samples), generator=generator)
    shares = torch.nn.functional.one_hot(modes, COUNT).double().mean(1)
    return float((shares - 1 / COUNT).abs().amax(1).mean())


# --- the task -------------------------------------------------------------------------------------


class ModesTask:
    """Eight Gaussians on a circle: `size` points to train on, a held-out set and one fixed noise
    draw to score on.

    Args:
        size: training points, >= 2.
        pack: 1; a sample is one waypoint.
        seed: of the training points. Evaluation has its own fixed seeds.
        symmetry: None for the task's own D8.

    Raises ValueError for other values.
    """

    name = "modes"
    primary = "mismatch"
    own_symmetry = {
        "group": "D8",
        "in_rep": ["standard"],
        "cond_rep": ["trivial"],
        "out_rep": ["standard"],
    }
    SAMPLES = 8192
    QUICK_SAMPLES = 2048
    FLOOR_DRAWS = 8

    def __init__(
        self, *, size: int = 20000, pack: int = 1, seed: int = 0, symmetry: dict | None = None
    ) -> None:
        check_size(size, "points")
        check_pack(pack, 1)
        self.size = size
        self.pack = pack
        self.seed = seed
        self.symmetry = dict(self.own_symmetry) if symmetry is None else symmetry

    @property
    def train(self) -> TrajectoryData:
        """The training set, made on first use: X (size, 1, 2), Z = 1 (size, 1, 1)."""
        return self._train

    @cached_property
    def _train(self) -> TrajectoryData:
        X = draw(self.size, generator_for(self.seed, "modes", "train")).float()
        # The condition is constant, so there is nothing to normalise: X stands in for it.
        stand_in = (
            None
            if self.symmetry is None
            else {**self.symmetry, "cond_rep": self.symmetry.get("out_rep")}
        )
        x_normalizer, _ = fit_normalizers(X, X, stand_in)
        Z = _no_condition(self.size)
        return TrajectoryData(
            X, Z, x_normalizer, Normalizer.identity(1), pack=self.pack, symmetry=self.symmetry
        )

    def evaluate(
        self, sample: Callable[[Tensor, Tensor], Tensor], *, quick: bool = False
    ) -> dict[str, float]:
        """`score` of `sample(Z = 1 (B, 1, 1), noise (B, 1, 2)) -> X (B, 1, 2)`, float32, beside B
        held-out points.

        B = 8192, `quick` 2048 of other seeds; the noise is standard normal and the same for every
        sampler.
        """
        split = "validation" if quick else "all"
        held_out, radius, noise = _references(split, self.QUICK_SAMPLES if quick else self.SAMPLES)
        return score(
            checked(sample(_no_condition(len(noise)), noise), noise)[:, 0], held_out, radius
        )

    def floor(self) -> dict[str, float]:
        """Full scores of the law itself: the mean over 8 fresh draws, and as `<score>_sd` the
        deviation of one.

        Also `success_floor` (exact) and `mode_error_floor`, what a perfect sampler has in
        expectation. A sampler is told from the law by what exceeds a few `_sd`.
        """
        generator = generator_for(EVALUATION_SEED, "modes", "floor")
        rows = [
            self.evaluate(lambda Z, noise: draw(len(noise), generator))
            for _ in range(self.FLOOR_DRAWS)
        ]
        table = torch.tensor([list(row.values()) for row in rows], dtype=torch.float64)
        names = list(rows[0])
        mean = table.mean(0).tolist()
        sd = table.std(0).tolist()
        floor = dict(zip(names, mean, strict=True)) | dict(
            zip((f"{name}_sd" for name in names), sd, strict=True)
        )
        floor["success_floor"] = 1 - math.exp(-(IN_MODE**2) / 2)
        return floor | {"mode_error_floor": share_error_floor(self.SAMPLES, generator)}

    def scene(self) -> dict:
        """Points of the plane; one sample beside each true one."""
        box = (-2.0, 2.0, -2.0, 2.0)
        return {"obstacles": [], "limits": box, "equal": True, "kind": "points", "samples": 1}

    def examples(self, n: int | None = None) -> tuple[Tensor, Tensor]:
        """Z = 1 (n, 1, 1) and n fresh points X (n, 1, 2), float32; None: 1000."""
        n = 1000 if n is None else n
        return _no_condition(n), draw(
            n, generator_for(EVALUATION_SEED, "modes", "examples")
        ).float()


def _no_condition(n: int) -> Tensor:
    return torch.ones(n, 1, 1)


@cache
def _references(split: str, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Held-out points (N, 2) float64, their `neighbour_radius` (N,), noise (N, 1, 2): drawn once in
    a process."""
    generator = generator_for(EVALUATION_SEED, "modes", split)
    held_out = draw(samples, generator)[:, 0]
    noise = torch.randn(samples, 1, 2, generator=generator)
    return held_out, neighbour_radius(held_out, NEIGHBOURS), noise
