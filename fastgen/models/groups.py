"""Finite groups: tables that all layers of a group share.

Groups are escnn's. Their elements are numbered as in `group.elements`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from escnn.group import Group
from torch import Tensor

__all__ = ["kernel_selector", "multiplication_table", "per_group", "table_tensor"]

T = TypeVar("T")
# (function, id of the group, other arguments) -> (the group, the value).
_PER_GROUP: dict[tuple[Any, ...], tuple[Group, Any]] = {}


def per_group(function: Callable[..., T]) -> Callable[..., T]:
    """Cache `function(group, *rest)` by the identity of the group.

    escnn has one object per group, and these objects are not hashable.
    """

    @wraps(function)
    def cached(group: Group, *rest: Any) -> T:
        key = (function.__name__, id(group), *rest)
        if key not in _PER_GROUP:
            # The group is kept beside the value, so that its id stays taken.
            _PER_GROUP[key] = (group, function(group, *rest))
        return _PER_GROUP[key][1]

    return cached


def table_tensor(table: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A table of a group as a tensor that may take part in training.

    The table outlives its first caller, who may be in inference mode now and train later.
    """
    with torch.inference_mode(False):
        return torch.from_numpy(table).to(device=device, dtype=dtype)


@per_group
def multiplication_table(group: Group) -> np.ndarray:
    """Table (|G|, |G|) of ints: entry [a, b] is the index of the product a b."""
    regular = group.regular_representation
    # Column b of rho_reg(a) is the indicator of a b. For some groups escnn computes it from irreps,
    # up to rounding, hence the argmax.
    return np.stack([np.argmax(regular(a), axis=0) for a in group.elements])


@per_group
def kernel_selector(group: Group, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The 0/1 matrix (|G|, |G|^2) that reads a group convolution off its kernel: entry
    [u, (g, h)] is 1 where u = g^-1 h.

    A product with it is exact and, forward and backward, faster than indexing.
    """
    product = multiplication_table(group)
    order = len(product)
    selector = np.zeros((order, order, order))
    g, u = np.meshgrid(np.arange(order), np.arange(order), indexing="ij")
    selector[u, g, product] = 1.0  # h = g u
    return table_tensor(selector.reshape(order, -1), dtype, device)
