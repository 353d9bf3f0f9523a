"""Two-sample loss: a distance between the student's samples and real data, without a discriminator.

There are C groups of m generated samples x and n data y that share a condition. With d a distance
between two samples,

    loss = mean over groups of  2 mean_{k, l} d(x_k, y_l) - mean_{k != l} d(x_k, x_l).

Up to a constant that the student cannot change, this is an unbiased estimate of the squared energy
distance (or of the squared maximum mean discrepancy) between the two laws under that condition.
Where the laws agree, its gradient is 0 in the mean. One datum per condition (n = 1) is enough.

References:
    Szekely & Rizzo, Energy statistics, 2013. Gretton et al., A Kernel Two-Sample Test, JMLR 2012.
    Gneiting & Raftery, Strictly Proper Scoring Rules, Prediction, and Estimation, 2007 (n = 1:
    kernel scores).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._core.checks import check_choice, check_shape
from ._core.tensors import expand_mask
from .metrics import pairwise_distances

__all__ = ["KERNELS", "two_sample_loss"]

KERNELS = ("energy", "mmd")


def two_sample_loss(
    generated: Tensor,
    data: Tensor,
    kernel: str = "energy",
    *,
    bandwidths: Sequence[float] = (0.05, 0.1, 0.2, 0.5, 1.0),
    mask: Tensor | None = None,
) -> Tensor:
    """The loss at the head of this module.

    Distances are root mean squares over the numbers of a sample, |x - y| / sqrt(number of entries),
    so that neither weights nor bandwidths depend on how large a sample is:

        energy:  d = |x - y|                             sees all scales, coarse ones best
        mmd:     d = - sum_h exp(- |x - y|^2 / (2 h^2))  sees scales near a bandwidth h

    Args:
        generated: (C, m, ...), m >= 2, with gradient.
        data: (C, n, ...), the same trailing axes.
        kernel: "energy" or "mmd".
        bandwidths: h > 0 of "mmd", in units of the data.
        mask: bool (C, T), True = real token, over the first axis of a sample. The samples of a
            group have one length; padding counts neither in |x - y| nor among the entries.

    Returns:
        scalar, at least float32. It may be negative.

    Raises:
        ValueError: shapes that don't fit, m < 2, an unknown kernel, bandwidths that aren't
            positive, a group without a real token.
    """
    check_choice("kernel", kernel, KERNELS)
    if (
        generated.ndim < 3
        or data.ndim != generated.ndim
        or len(data) != len(generated)
        or data.shape[2:] != generated.shape[2:]
    ):
        raise ValueError(
            f"expected generated (C, m, ...) and data (C, n, ...), got {tuple(generated.shape)} "
            f"and {tuple(data.shape)}"
        )
    if generated.shape[1] < 2:
        raise ValueError(
            f"expected at least 2 generated samples in a group, got {generated.shape[1]}"
        )
    if not bandwidths or not all(h > 0 for h in bandwidths):
        raise ValueError(f"expected bandwidths > 0, got {list(bandwidths)}")
    wide = torch.promote_types(generated.dtype, torch.float32)
    x = generated.to(wide)
    y = data.to(wide)
    m = x.shape[1]
    entries = x[0, 0].numel()
    if mask is not None:
        check_shape("mask", mask, (x.shape[0], x.shape[2]))
        real = expand_mask(mask, x[:, 0])[:, None]
        x = x.masked_fill(~real, 0.0)
        y = y.masked_fill(~real, 0.0)
        entries = real.flatten(1).sum(1).to(wide)[:, None, None]
    x = x.flatten(2)
    y = y.flatten(2)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        r = pairwise_distances(a, b) / entries**0.5
        if kernel == "energy":
            return r
        return -torch.stack([(-0.5 * (r / h).square()).exp() for h in bandwidths]).sum(0)

    among = distance(x, x)
    same = torch.diagonal(among, dim1=-2, dim2=-1).sum(-1)
    between = distance(x, y).mean((-2, -1))
    within = (among.sum((-2, -1)) - same) / (m * (m - 1))
    return (2.0 * between - within).mean()
