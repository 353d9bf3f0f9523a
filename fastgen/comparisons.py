"""Comparisons of two students: the difference of their distances to the data, and an interval that
says how much of it is noise.

Students a and b are given the same conditions and the same noise, so row i of their samples is a
pair. A bootstrap draws such rows again, with replacement, both students' at once: what they share
cancels in the difference, and the noise of the rest is seen. The interval is

    difference +- z sd,

with sd the standard deviation of the difference over the bootstrap and z the normal quantile of a
level. Draws are of one generator, so a comparison is a pure function of its arguments.

References:
    Efron & Tibshirani, An Introduction to the Bootstrap, 1993, sections 6.4 and 13.3.
    Arcones & Gine, On the bootstrap of U and V statistics, 1992: where both students have the
    data's own law, the bootstrap of a distance is too wide rather than too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist

import torch
from torch import Generator, Tensor

from ._core.seeds import generator_for
from .frechet import frechet_distance
from .metrics import pairwise_distances

__all__ = [
    "LEVEL",
    "Comparison",
    "TooFewRows",
    "compare_energy",
    "compare_frechet",
    "compare_means",
]

# Of intervals, where no other is asked for.
LEVEL = 0.95
# Of two rows a bootstrap draws but one pair, again and again, so their noise can't be seen.
_FEWEST_ROWS = 3


class TooFewRows(ValueError):
    """There are too few rows to tell a difference from its noise."""


@dataclass(frozen=True)
class Comparison:
    """How much further from the data student b is than student a, by a score of which less is
    better.

    Attributes:
        difference: score of b - score of a.
        low, high: its interval. b is better by more than its noise where high < 0, and worse where
            low > 0.
        chooses: whether b can be better by this score. False where the interval holds less noise
            than there is: b can then be worse by it, which only keeps a, but never better.
    """

    difference: float
    low: float
    high: float
    chooses: bool = True

    @property
    def better(self) -> bool:
        """Whether b is better than a by more than the interval, in a score that chooses."""
        return self.chooses and self.high < 0

    @property
    def worse(self) -> bool:
        """Whether b is worse than a by more than the interval. What is no number is worse."""
        return not self.low <= 0

    def __str__(self) -> str:
        return f"{self.difference:+.3g} ({self.low:+.3g} to {self.high:+.3g})"


def compare_means(
    a: Tensor,
    b: Tensor,
    *,
    groups: Tensor | None = None,
    level: float = LEVEL,
    chooses: bool = True,
) -> Comparison:
    """The comparison by mean losses of rows.

    The bootstrap's standard deviation of a mean is known without draws; of one row a group

        sd^2 = sum_i (d_i - mean d)^2 / (n (n - 1)),    d = b - a.

    Args:
        a, b: losses of the same rows (n,), n >= 2.
        groups: (n,), rows that belong together, such as windows of one episode, are drawn together.
            None: each row is one of its own.
        level: of the interval, in (0, 1).
        chooses: as in `Comparison`; false where a row's loss depends on the other rows' samples,
            too, since then the rows' own noise isn't all of it.

    Raises:
        ValueError: shapes that don't fit, another level; as `TooFewRows`, fewer than 2 rows or
            groups.
    """
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"expected a and b (n,), got {tuple(a.shape)} and {tuple(b.shape)}")
    z = _quantile(level)
    group, count = _groups(groups, len(a))
    difference = b.double() - a.double()
    mean = difference.mean()
    off = torch.zeros(count, dtype=torch.float64).index_add_(0, group, difference - mean)
    variance = off.square().sum() / len(a) ** 2 * count / (count - 1)
    found = _interval(float(mean), math.sqrt(float(variance)), z)
    return replace(found, chooses=chooses)


def compare_energy(
    a: Tensor,
    b: Tensor,
    data: Tensor,
    *,
    distance: Callable[[Tensor, Tensor], Tensor] = pairwise_distances,
    paired: bool = False,
    groups: Tensor | None = None,
    draws: int = 200,
    level: float = LEVEL,
    generator: Generator | None = None,
) -> Comparison:
    """The comparison by unbiased squared energy distances, or by another distance of this form,

        D(x, y) = 2 mean_{i, j} d(x_i, y_j) - mean_{i != j} d(x_i, x_j) - mean_{i != j} d(y_i, y_j).

    The last mean is the data's alone and cancels in the difference. With the negative of a kernel
    as `distance` it is the squared maximum mean discrepancy.

    Args:
        a, b: samples (N, d), or (K, N, d) where each row was drawn K times; D is then the mean over
            the K draws.
        data: (M, d).
        distance: (n, d), (m, d) -> (n, m).
        paired: row i of samples and data share something, as in `metrics.energy_distance`: i = j is
            left out of the first mean, and rows of samples and data are drawn together. Needs
            N = M.
        groups: (N,), as in `compare_means`; of the data, too, where paired.
        draws: of the bootstrap.
        level: of the interval, in (0, 1).
        generator: of the bootstrap; None: one of a fixed seed.

    Raises:
        ValueError: shapes that don't fit, another level; as `TooFewRows`, fewer than 3 rows or 2
            groups.
    """
    z = _quantile(level)
    a, b = _fans(a, b, data)
    rows = a.shape[1]
    if paired and rows != len(data):
        raise ValueError(f"expected as many samples as data when paired, got {rows}, {len(data)}")
    if min(rows, len(data)) < _FEWEST_ROWS:
        raise TooFewRows(
            f"expected at least {_FEWEST_ROWS} rows to draw from, got {rows} of samples and "
            f"{len(data)} of data"
        )
    y = data.double()
    cross = torch.zeros(rows, len(y), dtype=torch.float64)
    within = torch.zeros(rows, rows, dtype=torch.float64)
    for x_a, x_b in zip(a, b, strict=True):
        cross += (distance(x_b, y) - distance(x_a, y)) / len(a)
        within += (distance(x_b, x_b) - distance(x_a, x_a)) / len(a)
    within.fill_diagonal_(0)
    if paired:
        cross.fill_diagonal_(0)

    def difference(w: Tensor, v: Tensor) -> Tensor:
        """By how often rows of samples w (B, N) and of the data v (B, M) were drawn: (B,)."""
        between = _weighted_mean(cross, w, v, off_diagonal=paired)
        return 2 * between - _weighted_mean(within, w, w, off_diagonal=True)

    generator = generator_for(0, "bootstrap") if generator is None else generator
    w = _counts(groups, rows, draws, generator)
    v = w if paired else _counts(None, len(y), draws, generator)
    once = difference(torch.ones_like(w[:1]), torch.ones_like(v[:1]))
    # A draw of one row alone, over and over, has no pairs to take a mean of.
    drawn = w.count_nonzero(1) > 1
    return _interval(float(once), float(difference(w[drawn], v[drawn]).std()), z)


def compare_frechet(a: Tensor, b: Tensor, data: Tensor, *, level: float = LEVEL) -> Comparison:
    """The comparison by Frechet distances of features. What a finite number of rows adds to a
    distance is about the same for both, and cancels.

    The standard deviation is what that of a bootstrap tends to with many rows, without draws: by
    how the difference changes with the weight of each row (the infinitesimal jackknife),

        sd^2 = sum_i (psi_b(i) - psi_a(i))^2 / N^2 + sum_j (phi_b(j) - phi_a(j))^2 / M^2,

    psi(i) of row i of the samples and phi(j) of row j of the data, as `_frechet_slopes` gives them.

    Args:
        a, b: features of samples (N, d).
        data: features (M, d).
        level: of the interval, in (0, 1).

    Raises:
        ValueError: shapes that don't fit, another level; as `TooFewRows`, fewer than 2 rows.
    Source: Efron 1982, "The jackknife, the bootstrap and other resampling plans", chapter 6.
    """
    z = _quantile(level)
    if a.ndim != 2:
        raise ValueError(f"expected a and b (N, d), got {tuple(a.shape)}")
    _fans(a, b, data)
    psi_a, phi_a = _frechet_slopes(a.double(), data.double())
    psi_b, phi_b = _frechet_slopes(b.double(), data.double())
    variance = (psi_b - psi_a).square().sum() / len(a) ** 2
    variance = variance + (phi_b - phi_a).square().sum() / len(data) ** 2
    difference = frechet_distance(b, data) - frechet_distance(a, data)
    return _interval(float(difference), math.sqrt(float(variance)), z)


def _frechet_slopes(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """How the Frechet distance of x (N, d) and y (M, d) changes with the weight of each row.

    With T the matrix of the optimal map from N(m_x, S_x) to N(m_y, S_y), and up to constants that
    make the means zero,

        psi(i) = 2 (m_x - m_y) . u_i + u_i . (1 - T) u_i,           u_i = x_i - m_x,
        phi(j) = 2 (m_y - m_x) . v_j + v_j . (1 - T^(-1)) v_j,      v_j = y_j - m_y.

    Returns: psi (N,), phi (M,).
    """
    shift = x.mean(0) - y.mean(0)
    u = x - x.mean(0)
    v = y - y.mean(0)
    root, inverse = _roots(u.T @ u / (len(x) - 1))
    middle, middle_inverse = _roots(root @ (v.T @ v / (len(y) - 1)) @ root)
    there = inverse @ middle @ inverse
    back = root @ middle_inverse @ root
    psi = 2 * u @ shift + u.square().sum(1) - (u @ there * u).sum(1)
    phi = -2 * v @ shift + v.square().sum(1) - (v @ back * v).sum(1)
    return psi - psi.mean(), phi - phi.mean()


def _roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The root of a symmetric matrix whose eigenvalues are >= 0, and the root's inverse;
    eigenvalues that are 0 but for rounding count as a little more."""
    values, vectors = torch.linalg.eigh(matrix)
    least = 1e-12 * values[-1].clamp_min(torch.finfo(values.dtype).tiny)
    values = values.clamp_min(float(least))
    return vectors * values**0.5 @ vectors.T, vectors * values**-0.5 @ vectors.T


# ---- The bootstrap -------------------------------------------------------------------------------


def _weighted_mean(matrix: Tensor, w: Tensor, v: Tensor, *, off_diagonal: bool) -> Tensor:
    """Mean of the entries (N, M), row i and column j counted w_i v_j times, for each of B pairs of
    weights (B, N) and (B, M): (B,). Off the diagonal, which the matrix has zeros on, i = j doesn't
    count."""
    pairs = w.sum(1) * v.sum(1)
    if off_diagonal:
        pairs = pairs - (w * v).sum(1)
    return ((w @ matrix) * v).sum(1) / pairs


def _counts(groups: Tensor | None, rows: int, draws: int, generator: Generator) -> Tensor:
    """How often each row is drawn in each draw of a bootstrap: (draws, rows) float64."""
    if draws < 2:
        raise ValueError(f"expected draws >= 2, got {draws}")
    group, count = _groups(groups, rows)
    drawn = torch.randint(count, (draws, count), generator=generator)
    counts = torch.zeros(draws, count, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(counts))
    return counts[:, group]


def _groups(groups: Tensor | None, rows: int) -> tuple[Tensor, int]:
    """The number of each row's group (rows,), from 0, and how many there are."""
    if groups is None:
        group = torch.arange(rows)
    elif groups.shape != (rows,):
        raise ValueError(f"expected groups ({rows},), got {tuple(groups.shape)}")
    else:
        group = groups.unique(return_inverse=True)[1]
    count = int(group.max()) + 1 if rows else 0
    if count < 2:
        raise TooFewRows(f"expected at least 2 rows or groups to draw from, got {count}")
    return group, count


def _fans(a: Tensor, b: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """The samples as (K, N, d), float64."""
    fits = a.shape == b.shape and a.ndim in (2, 3) and data.ndim == 2
    shapes = f"{tuple(a.shape)}, {tuple(b.shape)} and {tuple(data.shape)}"
    if not fits or a.shape[-1] != data.shape[1]:
        raise ValueError(f"expected a and b (N, d) or (K, N, d) and data (M, d), got {shapes}")
    if min(a.shape[-2], len(data)) < 2:
        raise TooFewRows(f"expected a, b and data with at least 2 rows, got {shapes}")
    if a.ndim == 2:
        a = a[None]
        b = b[None]
    return a.double(), b.double()


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"expected level in (0, 1), got {level}")
    return NormalDist().inv_cdf((1 + level) / 2)


def _interval(difference: float, sd: float, z: float) -> Comparison:
    return Comparison(difference, difference - z * sd, difference + z * sd)
