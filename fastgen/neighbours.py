"""Scores by nearest neighbours: what global distances don't see, such as samples a little outside
narrow modes. Tensors in, tensors out, float64 inside."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .metrics import neighbour_radius, pairwise_distances

__all__ = ["Region", "precision_recall_density_coverage"]

# Rows of a matrix of distances that are in memory at once.
_ROWS = 1024
# Least distance to a k-th neighbour.
_TINY = 1e-12


def precision_recall_density_coverage(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, Tensor]:
    """Four scores of samples beside data, by balls around each point that reach to its k-th nearest
    neighbour among its own kind.

        precision: share of fakes in the ball of some datum.
        recall: share of data in the ball of some fake.
        density: mean number of the data's balls that a fake is in, over k.
        coverage: share of data with a fake in their own ball (`metrics.coverage`).

    Of fakes of the data's own law, as many as data, density is 1 in expectation and coverage about
    1 - 2^-k. Density counts more where an outlier among the data makes one large ball, precision
    does not.

    Args:
        real: data (M, d), M > k.
        fake: samples (N, d), N > k.
        k: >= 1.

    Returns: name -> scalar, float64; all but density in [0, 1].
    Raises:
        ValueError: shapes that don't fit, too few rows for k.
    Source: Kynkaanniemi et al. 2019, "Improved precision and recall metric for assessing generative
    models", arXiv:1904.06991; Naeem et al. 2020, "Reliable fidelity and diversity metrics for
    generative models", arXiv:2002.09797.
    """
    _check_rows("real", real, "fake", fake)
    real = real.double()
    fake = fake.double()
    real_radius = neighbour_radius(real, k)
    fake_radius = neighbour_radius(fake, k)
    balls = torch.zeros(len(fake), dtype=torch.float64, device=fake.device)
    recalled = []
    covered = []
    for rows, radius in zip(real.split(_ROWS), real_radius.split(_ROWS), strict=True):
        distance = pairwise_distances(rows, fake)
        in_ball = distance <= radius[:, None]
        balls += in_ball.sum(0)
        covered.append(in_ball.any(1))
        recalled.append((distance <= fake_radius).any(1))
    return {
        "precision": (balls > 0).double().mean(),
        "recall": torch.cat(recalled).double().mean(),
        "density": balls.mean() / k,
        "coverage": torch.cat(covered).double().mean(),
    }


@dataclass(frozen=True)
class Region:
    """Where the data lie, so narrowly that samples can be told to be outside, or data to be missed.

    A point p is far from a set where it is further from its nearest member s than fresh data are
    from as many data, in units of the distance r(s) of s to its own k-th nearest neighbour in the
    set,

        |p - s| / r(s) > q,

    with q the quantile `share` of this ratio for held-out data and a set of data. A sample is
    *outside* where it is far from the data; a held-out datum is *missed* where it is far from the
    samples. Samples that are too wide within a mode are outside, those that are too narrow miss
    data, and a lost mode is missed; the sum of both shares is least near the data's own law, of
    which both are 1 - `share` in expectation, whatever law that is. Units of r make narrow and wide
    modes count alike.

    Attributes:
        data: (M, d) float64.
        radius: (M,), r of the data.
        held_out: (H, d) float64.
        limit: q of samples beside the data.
        k: of r.
        share: of fresh data that are not far.

    Source: calibrated variants of precision and recall (`precision_recall_density_coverage`); the
    unit is that of Breunig et al. 2000, "LOF: identifying density-based local outliers".
    """

    data: Tensor
    radius: Tensor
    held_out: Tensor
    limit: float
    k: int
    share: float

    @classmethod
    def of(cls, data: Tensor, held_out: Tensor, *, k: int = 5, share: float = 0.99) -> Region:
        """The region of the data (M, d), M > k, by held-out data (H, d).

        Raises:
            ValueError: shapes that don't fit, too few data for k, a share outside (0, 1).
        """
        _check_rows("data", data, "held_out", held_out)
        if not 0 < share < 1:
            raise ValueError(f"expected share in (0, 1), got {share}")
        data = data.double()
        held_out = held_out.double()
        radius = neighbour_radius(data, k)
        limit = float(_nearest_ratio(held_out, data, radius).quantile(share))
        return cls(data, radius, held_out, limit, k, share)

    def outside(self, samples: Tensor) -> Tensor:
        """Which samples (N, d) are outside: (N,) bool."""
        _check_rows("samples", samples, "data", self.data)
        return _nearest_ratio(samples.double(), self.data, self.radius) > self.limit

    def missed(self, samples: Tensor, *, paired: bool = False) -> Tensor:
        """Which held-out data are missed by samples (N, d): (H,) bool.

        Args:
            samples: more than k, and at most as many as data.
            paired: row i of the samples shares something with held-out row i, such as a condition
                that is part of the row; then it does not count as near to it. Needs N = H.

        Raises:
            ValueError: shapes that don't fit, too few or too many samples.
        """
        _check_rows("samples", samples, "held_out", self.held_out)
        count = len(samples)
        if count > len(self.data) or (paired and count != len(self.held_out)):
            raise ValueError(
                f"expected at most {len(self.data)} samples, and {len(self.held_out)} when paired, "
                f"got {count}"
            )
        # Evenly spread, so that sorted data are stood for, too.
        fresh = self.data[torch.arange(count) * len(self.data) // count]
        samples = samples.double()
        usual = _nearest_ratio(self.held_out, fresh, neighbour_radius(fresh, self.k))
        found = _nearest_ratio(
            self.held_out, samples, neighbour_radius(samples, self.k), without_own=paired
        )
        return found > usual.quantile(self.share)


def _nearest_ratio(
    x: Tensor, members: Tensor, radius: Tensor, *, without_own: bool = False
) -> Tensor:
    """|x - s| / r(s) of each x (N, d) to its nearest s of the members (M, d): (N,).

    Args:
        radius: (M,), r of the members; a member that occurs k + 1 times has none.
        without_own: member i is not the nearest of row i.
    """
    ratios = []
    for start in range(0, len(x), _ROWS):
        distance = pairwise_distances(x[start : start + _ROWS], members)
        if without_own:
            row = torch.arange(len(distance))
            distance[row, row + start] = torch.inf
        nearest = distance.min(1)
        ratios.append(nearest.values / radius[nearest.indices].clamp_min(_TINY))
    return torch.cat(ratios)


def _check_rows(name_x: str, x: Tensor, name_y: str, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) == 0:
        raise ValueError(
            f"expected {name_x} (N, d) and {name_y} (M, d), got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
