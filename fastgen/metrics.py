"""Metrics: how far samples are from data, by energy distance, energy score, coverage and
displacement errors. Tensors in, tensors out, float64 inside."""

from __future__ import annotations

import torch
from torch import Tensor

from ._core.tensors import masked_mean

__all__ = [
    "coverage",
    "energy_distance",
    "energy_score",
    "min_ade",
    "min_fde",
    "neighbour_radius",
    "pairwise_distances",
]

# So many rows of a distance matrix are in memory at once.
_ROWS = 1024


def pairwise_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j| of x (..., N, d) and y (..., M, d): (..., N, M)."""
    # The matrix-product shortcut of cdist loses half of the digits for close points, which are the
    # ones that matter here.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def energy_distance(
    x: Tensor, y: Tensor, *, unbiased: bool = False, paired: bool = False
) -> Tensor:
    """Squared energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| of two samples, zero if and only
    if the laws are equal.

    Args:
        x: (..., N, d).
        y: (..., M, d), the same leading axes.
        unbiased: leave out i = j in the two within-sample means (U-statistic, can be negative);
            else the V-statistic, >= 0.
        paired: row i of x and row i of y share something, such as a condition that is part of the
            row. Then i = j is left out of the cross term too, since such pairs are closer than
            independent ones. Needs N = M.

    Returns: (...), float64.
    Raises:
        ValueError: shapes that don't fit, fewer than 2 rows where i = j is left out.
    Source: Szekely & Rizzo 2013, "Energy statistics: a class of statistics based on distances".
    """
    if x.ndim < 2 or y.ndim != x.ndim or x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"expected x (..., N, d) and y (..., M, d), got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    n = x.shape[-2]
    m = y.shape[-2]
    least = 2 if unbiased or paired else 1
    if min(n, m) < least:
        raise ValueError(f"expected at least {least} rows in x and y, got {n} and {m}")
    if paired and n != m:
        raise ValueError(f"expected as many rows in x as in y when paired, got {n} and {m}")
    x = x.double()
    y = y.double()
    cross = pairwise_distances(x, y)
    if paired:
        total = cross.sum((-2, -1)) - torch.diagonal(cross, dim1=-2, dim2=-1).sum(-1)
        between = total / (n * (n - 1))
    else:
        between = cross.mean((-2, -1))
    # A sum with i = j is the sum without, as |x_i - x_i| = 0; only the number of pairs differs.
    pairs_x = n * (n - 1) if unbiased else n * n
    pairs_y = m * (m - 1) if unbiased else m * m
    within_x = pairwise_distances(x, x).sum((-2, -1)) / pairs_x
    within_y = pairwise_distances(y, y).sum((-2, -1)) / pairs_y
    return 2 * between - within_x - within_y


def coverage(samples: Tensor, data: Tensor, *, k: int = 5, radius: Tensor | None = None) -> Tensor:
    """Share of the data that have a sample at least as near as their own k-th nearest neighbour
    among the data.

    Data without a sample nearby are a mode that was lost; samples far from all data don't count.
    M samples of the data's own law, beside M data, score about 1 - 2^-k, and more samples more.

    Args:
        samples: (N, d).
        data: (M, d).
        k: >= 1, < M.
        radius: `neighbour_radius(data, k)` (M,), if it was computed before; `k` then has no say.

    Returns: scalar in [0, 1], float64.
    Raises:
        ValueError: shapes that don't fit, no samples, too few data for k.
    Source: Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models",
    arXiv:2002.09797.
    """
    if (
        samples.ndim != 2
        or data.ndim != 2
        or samples.shape[1] != data.shape[1]
        or len(samples) == 0
    ):
        raise ValueError(
            f"expected samples (N, d) and data (M, d), got {tuple(samples.shape)} and "
            f"{tuple(data.shape)}"
        )
    radius = neighbour_radius(data, k) if radius is None else radius
    if radius.shape != data.shape[:1]:
        raise ValueError(f"expected radius of shape ({len(data)},), got {tuple(radius.shape)}")
    samples = samples.double()
    data = data.double()
    nearest = torch.cat([pairwise_distances(rows, samples).amin(1) for rows in data.split(_ROWS)])
    return (nearest <= radius).double().mean()


def neighbour_radius(data: Tensor, k: int = 5) -> Tensor:
    """Distance of each of the data (M, d) to its k-th nearest neighbour among them: (M,), float64.

    Raises ValueError for another shape or k outside [1, M).
    """
    if data.ndim != 2 or not 1 <= k < len(data):
        raise ValueError(
            f"expected data (M, d) and k from 1 to below M, got {tuple(data.shape)} and k={k}"
        )
    data = data.double()
    # Each datum is its own nearest, so its k-th neighbour is at the (k + 1)-th distance.
    parts = [
        pairwise_distances(rows, data).kthvalue(k + 1, dim=1).values for rows in data.split(_ROWS)
    ]
    return torch.cat(parts)


def energy_score(samples: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Energy score mean_k |x_k - y| - 1/2 mean_{k != l} |x_k - x_l|, a strictly proper score of K
    samples against one observation.

    Lower is better; its expectation is least when the samples have the conditional law of the
    observation. Unbiased in K.

    Args:
        samples: (B, K, T, d) with K >= 2.
        truth: (B, T, d). Norms are over all T d numbers.
        mask: bool (B, T), the waypoints that count; None: all.

    Returns: (B,), float64.
    Raises:
        ValueError: shapes that don't fit, K < 2.
    Source: Gneiting & Raftery 2007, "Strictly proper scoring rules, prediction, and estimation",
    section 4.2.
    """
    _check_fan(samples, truth)
    k = samples.shape[1]
    if k < 2:
        raise ValueError(f"expected at least 2 samples per observation, got {k}")
    if mask is not None:
        samples, truth = _without_padding(samples, truth, mask)
    x = samples.double().flatten(2)
    y = truth.double().flatten(1)
    to_truth = (x - y[:, None]).norm(dim=-1).mean(1)
    return to_truth - 0.5 * pairwise_distances(x, x).sum((-2, -1)) / (k * (k - 1))


def min_ade(samples: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Least average displacement error min_k mean_t |x_{k,t} - y_t| over the K samples of each
    observation.

    Args:
        samples: (B, K, T, d).
        truth: (B, T, d).
        mask: bool (B, T), the waypoints that count; None: all.

    Returns: (B,), float64, in the unit of the data. Raises ValueError for shapes that don't fit.
    """
    _check_fan(samples, truth)
    errors = (samples.double() - truth.double()[:, None]).norm(dim=-1)
    real = None if mask is None else mask[:, None].expand(errors.shape)
    return masked_mean(errors, real, -1).amin(1)


def min_fde(samples: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Least final displacement error min_k |x_{k,T} - y_T| over the K samples, at the last waypoint
    that counts; arguments as `min_ade`."""
    _check_fan(samples, truth)
    if mask is None:
        return (samples[:, :, -1].double() - truth[:, None, -1].double()).norm(dim=-1).amin(1)
    rows = torch.arange(len(mask))
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
    difference = samples[rows, :, last].double() - truth[rows, None, last].double()
    return difference.norm(dim=-1).amin(1)


def _without_padding(samples: Tensor, truth: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Samples (B, K, T, d) and truth (B, T, d) with 0 at padding of both."""
    padding = ~mask[..., None]
    return samples.masked_fill(padding[:, None], 0.0), truth.masked_fill(padding, 0.0)


def _check_fan(samples: Tensor, truth: Tensor) -> None:
    if (
        samples.ndim != 4
        or truth.ndim != 3
        or samples.numel() == 0
        or samples[:, 0].shape != truth.shape
    ):
        raise ValueError(
            f"expected samples (B, K, T, d) and truth (B, T, d), got {tuple(samples.shape)} and "
            f"{tuple(truth.shape)}"
        )
