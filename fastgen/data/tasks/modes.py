"""The embedded task `modes`: points of the plane from eight Gaussians on a circle.

The law is an equal mixture of N(m_k, .1^2 I), m_k = 1.4 (cos, sin)(k pi / 4), k = 0 .. 7. The means
are one orbit of D8, the eighth turns and reflections of the plane. So the law is exactly invariant
under its 16 elements.

Samples are trajectories of one waypoint, X (N, 1, 2). There is no condition: Z = 1 of shape
(N, 1, 1), which no group element moves. So the transformers that serve trajectories serve points as
well.

Since the law is known, so is its distance to the law of a sampler, up to the sampler's own draws.
For y ~ N(m, s^2 I), |x - y| has Rice's law. Its mean is, with a = |x - m|^2 / (4 s^2),

    s sqrt(pi / 2) [(1 + 2 a) I0(a) + 2 a I1(a)] exp(-a).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, cached_property

import torch
from torch import Generator, Tensor

from ..._core.seeds import generator_for
from ...comparisons import LEVEL, Comparison, compare_energy, compare_means
from ...metrics import coverage, neighbour_radius, pairwise_distances
from ...normalizer import Normalizer
from ..mixtures import GaussianMixture
from ..scoring import answered, evaluation_generator
from ..trajectories import TrajectoryData, check_pack, check_size, fit_normalizers

__all__ = ["ModesTask", "exact_energy_distance", "modes_mixture", "score", "share_error_floor"]

# Number of modes, distance of their means to the origin, their standard deviation.
COUNT = 8
RADIUS = 1.4
STD = 0.1
# A sample is in a mode up to so many standard deviations from its mean.
IN_MODE = 3.0
# Neighbours of a held-out point, in the score `coverage`.
NEIGHBOURS = 5
# Rows of a matrix of distances that are in memory at once.
ROWS = 1024


# ---- The law ------------------------------------------------------------------------------------


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
    """E|y - x| for y ~ N(m, std^2 I) in the plane and |x - m| = distance (...): the mean of Rice's
    law, (...)."""
    a = (distance / (2 * std)).square()
    bracket = (1 + 2 * a) * torch.special.i0e(a) + 2 * a * torch.special.i1e(a)
    return std * math.sqrt(math.pi / 2) * bracket


def _mode_distances() -> Tensor:
    """E|y - y'| of independent y, y' from each pair of modes: (8, 8)."""
    return _mean_distance(pairwise_distances(mode_means(), mode_means()), math.sqrt(2) * STD)


def exact_energy_distance(x: Tensor) -> float:
    """Squared energy distance 2 E|x - y| - E|x - x'| - E|y - y'| of samples x (N, 2) to the law of
    y itself.

    It is unbiased: expectations over y are exact, those over x are means over the samples and their
    pairs i != j. For the law's own samples it is about 0, and may be below. It is no root, so that
    its noise is symmetric about the truth.

    Raises:
        ValueError: another shape, or fewer than 2 rows.
    """
    if x.ndim != 2 or x.shape[1] != 2 or len(x) < 2:
        raise ValueError(f"expected samples of shape (N >= 2, 2), got {tuple(x.shape)}")
    x = x.double()
    n = len(x)
    cross = _mean_distance(pairwise_distances(x, mode_means()), STD).mean()
    within = sum(pairwise_distances(rows, x).sum() for rows in x.split(ROWS)) / (n * (n - 1))
    return float(2 * cross - within - _mode_distances().mean())


def lost_mode_energy() -> float:
    """Energy distance of the law without one of its modes to the law.

    It is -d^T D d, with d the differences of the modes' weights and D the mean distances of modes.
    """
    lost = torch.full((COUNT,), 1 / (COUNT - 1) - 1 / COUNT, dtype=torch.float64)
    lost[0] = -1 / COUNT
    return float(-lost @ _mode_distances() @ lost)


# ---- Scores -------------------------------------------------------------------------------------


def score(x: Tensor, held_out: Tensor, radius: Tensor | None = None) -> dict[str, float]:
    """Scores of samples beside points of the law.

    Args:
        x: samples (N, 2).
        held_out: points of the law (M, 2), M > 5.
        radius: (M,), as in `coverage`; None computes it.

    Returns:
        mismatch: 1 - coverage + energy_distance / (8 e), with e the energy distance of a law that
            lost one mode; so a lost mode adds 1/8 by either term. Coverage sees blurred and
            narrowed modes, which hardly move the energy distance. The energy distance sees wrong
            shares of modes, and points far out. For the law's own samples it is about 1/32.
        energy_distance: `exact_energy_distance`.
        success: share of samples within 3 standard deviations of a mode's mean; for the law
            1 - exp(-4.5) = .989.
        coverage: `metrics.coverage` of the held-out points with k = 5; for the law 1 - 2^-5 = .969
            where N = M.
        spread: median |x - m| to the nearest mean, over that of the law, .1 sqrt(2 log 2). It is
            the ratio of standard deviations within a mode; a few points between the modes hardly
            change it.
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


def _astray(x: Tensor) -> Tensor:
    """Which samples (N, 2) are in no mode: (N,), 0 or 1."""
    return (pairwise_distances(x, mode_means()).amin(1) > IN_MODE * STD).double()


def _uncovered(x: Tensor, held_out: Tensor, radius: Tensor) -> Tensor:
    """Which held-out points (M, 2) have no sample within their radius: (M,), 0 or 1."""
    nearest = [pairwise_distances(rows, x).amin(1) for rows in held_out.split(ROWS)]
    return (torch.cat(nearest) > radius).double()


def share_error_floor(
    samples: int, generator: Generator | None = None, *, draws: int = 400
) -> float:
    """Mode error of a perfect sampler, E max_k |share - 1/8| for so many samples; by `draws` draws,
    right to 2 %."""
    modes = torch.randint(COUNT, (draws, samples), generator=generator)
    shares = torch.nn.functional.one_hot(modes, COUNT).double().mean(1)
    return float((shares - 1 / COUNT).abs().amax(1).mean())


# ---- The task -----------------------------------------------------------------------------------


class ModesTask:
    """Eight Gaussians on a circle: points to train on, a held-out set and one fixed noise draw to
    score on.

    Args:
        size: training points, >= 2.
        pack: 1; a sample is one waypoint.
        seed: of the training points. Evaluation has fixed seeds of its own.
        symmetry: None for the task's own D8.

    Raises:
        ValueError: other values.
    """

    name = "modes"
    primary = "mismatch"
    own_symmetry = {
        "group": "D8",
        "in_rep": ["standard"],
        "cond_rep": ["trivial"],
        "out_rep": ["standard"],
    }
    # Samples of full scores, and of quick ones; draws of the law that the floor is the mean over.
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
        stand_in = None
        if self.symmetry is not None:
            stand_in = {**self.symmetry, "cond_rep": self.symmetry.get("out_rep")}
        x_normalizer, _ = fit_normalizers(X, X, stand_in)
        Z = _no_condition(self.size)
        return TrajectoryData(
            X,
            Z,
            x_normalizer,
            Normalizer.identity(1),
            pack=self.pack,
            symmetry=self.symmetry,
            in_order=False,
        )

    def evaluate(
        self, sample: Callable[[Tensor, Tensor], Tensor], *, quick: bool = False
    ) -> dict[str, float]:
        """Scores of a sampler, as `score` gives them, beside as many held-out points.

        Args:
            sample: called with Z = 1 (8192, 1, 1) and noise (8192, 1, 2), answers with X of the
                noise's shape; all float32. The noise is standard normal, and the same for every
                sampler.
            quick: 2048 samples and held-out points, of other seeds.
        """
        split = "validation" if quick else "all"
        samples = self.QUICK_SAMPLES if quick else self.SAMPLES
        held_out, radius, noise = _references(split, samples)
        drawn = answered(sample(_no_condition(len(noise)), noise), noise)
        return score(drawn[:, 0], held_out, radius)

    def compare(self, a: Tensor, b: Tensor) -> dict[str, Comparison]:
        """Two samplers by what they answered in `evaluate(quick=True)`, each (2048, 1, 2).

        Returns:
            the difference of their energy distances; of the share of samples `outside`, further
            than 3 standard deviations from all modes; and of the share of held-out points that are
            `not covered`. Whether a point is covered depends on all samples at once, whose noise
            its interval doesn't hold, so samples that cover more are no better by that alone.
        """
        held_out, radius, _ = _references("validation", self.QUICK_SAMPLES)
        a = a.double()[:, 0]
        b = b.double()[:, 0]
        level = 1 - (1 - LEVEL) / 3
        uncovered_a = _uncovered(a, held_out, radius)
        uncovered_b = _uncovered(b, held_out, radius)
        return {
            "energy_distance": compare_energy(a, b, held_out, draws=100, level=level),
            "outside": compare_means(_astray(a), _astray(b), level=level),
            "not covered": compare_means(uncovered_a, uncovered_b, level=level, chooses=False),
        }

    def floor(self) -> dict[str, float]:
        """Full scores of the law itself: the mean over 8 fresh draws, and as `<score>_sd` the
        standard deviation of one.

        There are also `success_floor` (exact) and `mode_error_floor`, what a perfect sampler has in
        expectation. A sampler differs from the law where it is further off than a few `_sd`.
        """
        generator = evaluation_generator("modes", "floor")
        rows = [
            self.evaluate(lambda Z, noise: draw(len(noise), generator))
            for _ in range(self.FLOOR_DRAWS)
        ]
        table = torch.tensor([list(row.values()) for row in rows], dtype=torch.float64)
        names = list(rows[0])
        floor = dict(zip(names, table.mean(0).tolist(), strict=True))
        for name, deviation in zip(names, table.std(0).tolist(), strict=True):
            floor[f"{name}_sd"] = deviation
        floor["success_floor"] = 1 - math.exp(-(IN_MODE**2) / 2)
        floor["mode_error_floor"] = share_error_floor(self.SAMPLES, generator)
        return floor

    def scene(self) -> dict:
        """What to draw: points of the plane, one sample for each true one."""
        box = (-2.0, 2.0, -2.0, 2.0)
        return {"obstacles": [], "limits": box, "equal": True, "kind": "points", "samples": 1}

    def examples(self, n: int | None = None) -> tuple[Tensor, Tensor]:
        """Z = 1 (n, 1, 1) and n fresh points X (n, 1, 2), float32; None for 1000."""
        n = 1000 if n is None else n
        X = draw(n, evaluation_generator("modes", "examples"))
        return _no_condition(n), X.float()


def _no_condition(n: int) -> Tensor:
    return torch.ones(n, 1, 1)


@cache
def _references(split: str, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Held-out points (N, 2) float64, their `neighbour_radius` (N,) and noise (N, 1, 2), drawn once
    in a process."""
    generator = evaluation_generator("modes", split)
    held_out = draw(samples, generator)[:, 0]
    noise = torch.randn(samples, 1, 2, generator=generator)
    return held_out, neighbour_radius(held_out, NEIGHBOURS), noise
