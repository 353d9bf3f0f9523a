"""Rotations as numbers: unit quaternions, matrices, and the first two columns of a matrix.

Zhou, Barnes, Lu, Yang, Li (2019), "On the Continuity of Rotation Representations in Neural
Networks": six numbers are the fewest that are continuous in the rotation and that a network may
answer freely, since Gram-Schmidt makes a rotation of almost any six.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["columns_of_quaternion", "orthonormal_columns", "quaternion_of_columns", "where_finite"]

# Shorter vectors have no direction.
_SHORT = 1e-12


def columns_of_quaternion(q: Tensor) -> Tensor:
    """The first two columns (..., 6) of the rotation by q (..., 4) = (x, y, z, w), which is made to
    have the length 1 first.

    One that is too short to have a direction is no rotation, and counts as the identity. NaN where
    q isn't finite.
    """
    x, y, z, w = _direction(q, _axis(q, 3)).unbind(-1)
    first = (1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w))
    second = (2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w))
    return where_finite(q, torch.stack([*first, *second], -1))


def orthonormal_columns(columns: Tensor) -> Tensor:
    """Two columns (..., 6), made orthonormal by Gram-Schmidt, the first one first.

    Where they have no directions that differ, axes stand in, so that the answer is a rotation
    whatever the finite numbers are. It is NaN where one of the six isn't finite.
    """
    a, b = columns.unflatten(-1, (2, 3)).unbind(-2)
    a = _direction(a, _axis(a, 0))
    # The axis that is farthest from a.
    axis = torch.nn.functional.one_hot(a.abs().argmin(-1), 3).to(a)
    b = _direction(b, axis)
    b = b - (a * b).sum(-1, keepdim=True) * a
    b = _direction(b, axis - (a * axis).sum(-1, keepdim=True) * a)
    # Once more: of nearly parallel columns rounding is left of a in b.
    b = b - (a * b).sum(-1, keepdim=True) * a
    return where_finite(columns, torch.cat([a, b / b.norm(dim=-1, keepdim=True)], -1))


def where_finite(numbers: Tensor, answer: Tensor) -> Tensor:
    """What was made of some numbers (..., n), (..., m), and NaN where one of them isn't finite."""
    return torch.where(torch.isfinite(numbers).all(-1, keepdim=True), answer, torch.nan)


def quaternion_of_columns(columns: Tensor) -> Tensor:
    """The unit quaternion (..., 4) = (x, y, z, w), w >= 0, of a rotation's first two columns
    (..., 6), orthonormal.

    Each column of 4 q q^T is a multiple of q, and its entries are sums of the matrix's; the one
    with the largest diagonal entry is taken, which is at least 1.
    """
    a, b = columns.unflatten(-1, (2, 3)).unbind(-2)
    xx, yx, zx = a.unbind(-1)
    xy, yy, zy = b.unbind(-1)
    xz, yz, zz = torch.linalg.cross(a, b).unbind(-1)
    products = torch.stack(
        [
            torch.stack([1 + xx - yy - zz, xy + yx, xz + zx, zy - yz], -1),
            torch.stack([xy + yx, 1 - xx + yy - zz, yz + zy, xz - zx], -1),
            torch.stack([xz + zx, yz + zy, 1 - xx - yy + zz, yx - xy], -1),
            torch.stack([zy - yz, xz - zx, yx - xy, 1 + xx + yy + zz], -1),
        ],
        -2,
    )
    largest = products.diagonal(dim1=-2, dim2=-1).argmax(-1)
    q = products.take_along_dim(largest[..., None, None], -2)[..., 0, :]
    q = q / q.norm(dim=-1, keepdim=True)
    return torch.where(q[..., 3:] < 0, -q, q)


def _direction(v: Tensor, otherwise: Tensor) -> Tensor:
    """v (..., n) of length 1, or `otherwise` where it has no direction.

    It is divided by its largest number first, since the square of a large one is infinite.
    """
    largest = v.abs().amax(-1, keepdim=True)
    v = torch.where(largest > _SHORT, v / largest.clamp(min=_SHORT), otherwise)
    return v / v.norm(dim=-1, keepdim=True)


def _axis(like: Tensor, index: int) -> Tensor:
    axis = torch.zeros_like(like)
    axis[..., index] = 1.0
    return axis
