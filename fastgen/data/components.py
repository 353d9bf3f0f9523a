"""Components of a Gaussian mixture: their checked parameters, and the orbits of a group."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._core.checks import check_shape

__all__ = ["checked_components", "orbit_components", "principal_axes"]

# Relative slack of matrices that should be symmetric, orthogonal or equal: they may come from
# float32.
SLACK = 1e-6


def checked_components(
    means: Tensor, covariances: Tensor | None, stds: Tensor | float | None, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Checked copies of a mixture's parameters, in float64 on the CPU.

    Returns:
        means (K, *shape); stds (K,) or covariances (K, D, D); weights (K,), normalised.

    Raises:
        ValueError: as `GaussianMixture`.
    """
    if not isinstance(means, Tensor) or means.ndim == 0 or means.numel() == 0:
        got = tuple(means.shape) if isinstance(means, Tensor) else type(means).__name__
        raise ValueError(f"expected means of shape (K, *shape), not empty, got {got}")
    count = len(means)
    dim = math.prod(means.shape[1:])
    if (covariances is None) == (stds is None):
        raise ValueError(
            f"expected either covariances or stds, got {'neither' if stds is None else 'both'}"
        )
    if covariances is not None:
        check_shape("covariances", covariances, (count, dim, dim))
        spread = covariances.detach().to("cpu", torch.float64, copy=True)
        if not bool((spread - spread.mT).abs().max() <= SLACK * spread.abs().max()):
            raise ValueError("expected covariances to be symmetric and finite")
    else:
        if isinstance(stds, int | float):
            stds = torch.full((count,), stds, dtype=torch.float64)
        spread = _positive("stds", stds, count)
    weights = torch.ones(count) if weights is None else weights
    weights = _positive("weights", weights, count)
    means = means.detach().to("cpu", torch.float64, copy=True)
    if not bool(means.isfinite().all()):
        raise ValueError("expected means to be finite")
    return means, spread, weights / weights.sum()


def principal_axes(covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Variances s_k^2 (K, D) and orthogonal bases U_k (K, D, D) with C_k = U_k diag(s_k^2) U_k^T.

    Raises:
        ValueError: covariances that are not positive definite.
    """
    variances, basis = torch.linalg.eigh(0.5 * (covariances + covariances.mT))
    least = variances[:, 0] / variances[:, -1].abs()
    if not bool((least > covariances.shape[-1] * torch.finfo(torch.float64).eps).all()):
        raise ValueError(
            "expected covariances to be positive definite, got eigenvalues from "
            f"{variances.min():g} to {variances.max():g}"
        )
    return variances, basis


def _positive(name: str, values: Tensor | None, count: int) -> Tensor:
    """`values` (count,) as float64 on the CPU; refused unless finite and > 0."""
    check_shape(name, values, (count,))  # pyright: ignore[reportArgumentType]
    assert values is not None
    values = values.detach().to("cpu", torch.float64, copy=True)
    if not bool(((values > 0) & values.isfinite()).all()):
        raise ValueError(
            f"expected {name} > 0, got values from {values.min():g} to {values.max():g}"
        )
    return values


def orbit_components(
    means: Tensor,
    group_matrices: Tensor,
    *,
    covariances: Tensor | None,
    stds: Tensor | float | None,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Components g N(m_r, C_r) of all g in a group; those that coincide are merged.

    They coincide where the orbit of a mean with a stabiliser meets itself.

    Args:
        means, group_matrices, covariances, stds, weights: as in `GaussianMixture.orbits`.

    Returns:
        As `checked_components`, but for the weights, which aren't normalised.
    """
    means, spread, weights = checked_components(means, covariances, stds, weights)
    dim = math.prod(means.shape[1:])
    check_shape("group_matrices", group_matrices, ("G", dim, dim))
    group = group_matrices.detach().to("cpu", torch.float64)
    _check_group(group)
    moved = torch.einsum("gij,rj->rgi", group, means.reshape(-1, dim)).reshape(-1, dim)
    if spread.ndim == 1:
        moved_spread = spread.repeat_interleave(len(group))
    else:
        moved_spread = torch.einsum("gij,rjk,glk->rgil", group, spread, group)
        moved_spread = moved_spread.reshape(-1, dim, dim)
    same = _close(moved, moved) & _close(moved_spread, moved_spread)
    # For each component the first that it coincides with.
    first = same.int().argmax(1)
    kept, index = first.unique(return_inverse=True)
    each = weights.repeat_interleave(len(group))
    merged = weights.new_zeros(len(kept)).index_add(0, index, each)
    return moved[kept].reshape(-1, *means.shape[1:]), moved_spread[kept], merged


def _close(a: Tensor, b: Tensor) -> Tensor:
    """Which rows of a (N, ...) and b (M, ...) are equal up to `SLACK` of the largest entry: (N, M)
    bool."""
    rows = (a.reshape(len(a), -1), b.reshape(len(b), -1))
    distance = torch.cdist(*rows, compute_mode="donot_use_mm_for_euclid_dist")
    return distance <= SLACK * b.abs().max()


def _check_group(group: Tensor) -> None:
    """Refuse matrices (G, D, D) that are not orthogonal, or not a group with each element equally
    often."""
    identity = torch.eye(group.shape[-1], dtype=group.dtype)
    off = float((group @ group.mT - identity).abs().max())
    if not off <= SLACK:
        raise ValueError(f"expected group_matrices to be orthogonal, got |g g^T - 1| up to {off:g}")
    # A point in general position tells all elements apart, and each of them must permute its orbit.
    generator = torch.Generator().manual_seed(0)
    point = torch.randn(group.shape[-1], dtype=group.dtype, generator=generator)
    orbit = group @ point
    labels = _close(orbit, orbit).int().argmax(1)
    hits = _close(torch.einsum("hij,gj->hgi", group, orbit).reshape(-1, len(point)), orbit)
    images = hits.int().argmax(1).reshape(len(group), -1)
    permuted = torch.equal(images.sort(1)[0], labels.sort()[0].expand_as(images))
    if not permuted or not bool(hits.any(1).all()):
        raise ValueError(
            f"expected group_matrices to hold a whole group, got {len(group)} matrices that are "
            "not one"
        )
