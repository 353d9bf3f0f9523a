"""Distances between two sets of samples of one condition, each a loss that moves the first set.

A regression sees one pair at a time and answers with the mean of what fits; a set sees how the
samples of a condition lie among one another, so modes are kept. There are G groups: m samples x of
a student and n samples y of a target (data, or a teacher), both given the group's condition.
With r(a, b) = |a - b| / sqrt(number of entries), whatever the size of a sample:

    energy, mmd  the kernel distances of :mod:`fastgen.two_sample`
    chamfer      mean_i min_j r(x_i, y_j)^2 + mean_j min_i r(x_i, y_j)^2: no sample far from the
                 target, no sample of the target left out (the second half is IMLE's)
    drift        mean_i |V_i|^2 / entries, V_i = mean over h of A_h(x_i; y) - A_h(x_i; x without
                 x_i), as |x - stopgrad(x + V)|^2: each sample drifts towards the target's and away
                 from its own kind

A_h(x; z) = sum_j softmax_j(- r(x, z_j) / h) z_j is the mean of z near x at the temperature h. V is
antisymmetric in target and own samples, and so 0 in the mean where their laws agree (exactly for
n = m - 1). Chamfer isn't: of few samples it is least a little inside the target's law.

References:
    Fan, Su & Guibas, A Point Set Generation Network, 2016, arXiv:1612.00603 (Chamfer distance).
    Li & Malik, Implicit Maximum Likelihood Estimation, 2018, arXiv:1809.09087.
    Deng et al., Generative Modeling via Drifting, 2026 (drift; they weigh by a product of two
    softmaxes and normalise V, which this doesn't).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._core.checks import check_choice, check_shape
from ._core.tensors import at_least_float32, expand_like, expand_mask
from .metrics import pairwise_distances
from .two_sample import KERNELS, two_sample_loss

__all__ = ["SET_LOSSES", "drift_field", "set_loss"]

SET_LOSSES = (*KERNELS, "chamfer", "drift")
TEMPERATURES = (0.05, 0.2, 0.5)
BANDWIDTHS = (0.05, 0.1, 0.2, 0.5, 1.0)


def set_loss(
    x: Tensor,
    y: Tensor,
    kind: str = "energy",
    *,
    bandwidths: Sequence[float] = BANDWIDTHS,
    temperatures: Sequence[float] = TEMPERATURES,
    mask: Tensor | None = None,
) -> Tensor:
    """The distance at the head of this module, of the sets of each group, mean over groups.

    Args:
        x: (G, m, ...), m >= 2, with gradient.
        y: (G, n, ...), n >= 1, the same trailing axes; without a gradient.
        kind: one of `SET_LOSSES`.
        bandwidths: of "mmd", in units of the samples.
        temperatures: h > 0 of "drift", likewise.
        mask: bool (G, T), True = real token, over the first axis of a sample. The samples of a
            group have one length; padding counts neither in r nor among the entries.

    Returns:
        scalar, at least float32. "energy" and "mmd" may be negative.

    Raises:
        ValueError: an unknown kind, shapes that don't fit, m < 2, temperatures or bandwidths that
            aren't positive, a group without a real token.
    """
    check_choice("kind", kind, SET_LOSSES)
    y = y.detach()
    if kind in KERNELS:
        return two_sample_loss(x, y, kind, bandwidths=bandwidths, mask=mask)
    fits = x.ndim >= 3 and x.ndim == y.ndim and len(x) == len(y) and x.shape[2:] == y.shape[2:]
    if not fits or x.shape[1] < 2 or y.shape[1] < 1:
        raise ValueError(
            f"expected x (G, m, ...) with m >= 2 and y (G, n, ...) with n >= 1, got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    x = at_least_float32(x)
    y = at_least_float32(y)
    if mask is not None:
        x, y = (_real_entries(value, mask) for value in (x, y))
    x = x.flatten(2)
    y = y.flatten(2)
    if kind == "chamfer":
        square = _distances(x, y).square()
        return square.amin(2).mean() + square.amin(1).mean()
    with torch.no_grad():
        target = x + drift_field(x, y, temperatures)
    return (x - target).square().mean()


def _real_entries(x: Tensor, mask: Tensor) -> Tensor:
    """Samples x (G, m, T, ...) with 0 at padding, and as much larger as makes the mean over all
    entries one over the real ones; `mask` (G, T)."""
    check_shape("mask", mask, (x.shape[0], x.shape[2]))
    real = expand_mask(mask, x[:, 0])[:, None]
    share = real.flatten(1).to(x.dtype).mean(1)
    return x.masked_fill(~real, 0.0) / expand_like(share.sqrt(), x)


def drift_field(x: Tensor, y: Tensor, temperatures: Sequence[float] = TEMPERATURES) -> Tensor:
    """V of "drift", where each sample of x is drawn to.

    Args:
        x: (G, m, d), m >= 2.
        y: (G, n, d).
        temperatures: h > 0.

    Returns:
        (G, m, d). It turns and moves with x and y together.

    Raises:
        ValueError: temperatures that aren't positive.
    """
    if not temperatures or not all(h > 0 for h in temperatures):
        raise ValueError(f"expected temperatures > 0, got {list(temperatures)}")
    to_target = _distances(x, y)
    among = _distances(x, x)
    own = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    # Nothing is drawn to itself: left in, it would outweigh all others at a low temperature.
    among = among.masked_fill(own, torch.inf)
    field = torch.zeros_like(x)
    for h in temperatures:
        attraction = torch.softmax(-to_target / h, 2) @ y
        repulsion = torch.softmax(-among / h, 2) @ x
        field = field + (attraction - repulsion) / len(temperatures)
    return field


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """r between rows of x (G, m, d) and y (G, n, d): (G, m, n)."""
    return pairwise_distances(x, y) / x.shape[2] ** 0.5
