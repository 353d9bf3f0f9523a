"""Frechet distance: how far two sets of features are apart, by their means and covariances."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["frechet_distance"]


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    """Squared Frechet distance of the Gaussians that are fitted to two sets of features,

        |m_x - m_y|^2 + tr(S_x + S_y - 2 (R S_y R)^(1/2)),    R = S_x^(1/2),

    which is the squared 2-Wasserstein distance of N(m_x, S_x) and N(m_y, S_y). Covariances are
    those with N - 1 below. Of finite sets it is too large by about the same for sets of one size,
    so compare sets of equal sizes.

    Both roots are of symmetric matrices, by their eigenvalues; what rounding makes of a zero one
    counts as zero. So features may be fewer rows than numbers, or constant.

    Args:
        x: (N, d), N >= 2.
        y: (M, d), M >= 2.

    Returns: scalar >= 0 up to rounding, float64, in squared units of the features.
    Raises:
        ValueError: shapes that don't fit.
    Source: Dowson & Landau 1982, "The Frechet distance between multivariate normal distributions";
    Heusel et al. 2017, "GANs trained by a two time-scale update rule", arXiv:1706.08500.
    """
    fits = x.ndim == 2 and y.ndim == 2 and x.shape[1] == y.shape[1]
    if not fits or min(len(x), len(y)) < 2:
        raise ValueError(
            f"expected x (N >= 2, d) and y (M >= 2, d), got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    x = x.double()
    y = y.double()
    between_means = (x.mean(0) - y.mean(0)).square().sum()
    cov_x = _covariance(x)
    cov_y = _covariance(y)
    values, vectors = torch.linalg.eigh(cov_x)
    root = vectors * _roots(values) @ vectors.T
    overlap = _roots(torch.linalg.eigvalsh(root @ cov_y @ root)).sum()
    return between_means + cov_x.trace() + cov_y.trace() - 2 * overlap


def _roots(values: Tensor) -> Tensor:
    """Square roots of the eigenvalues (d,) of a covariance; 0 of those that may be rounding alone,
    up to d times the precision of the largest: of 1e-16 a root would make 1e-8."""
    rounding = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    return torch.where(values > rounding, values, 0.0).sqrt()


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)
