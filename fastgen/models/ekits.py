"""The equivariant kit of layers: a space is a representation, and modules commute with its
group."""

from __future__ import annotations

import numpy as np
from escnn.group import Representation
from torch import nn

from .._core.checks import check_count
from .arguments import check_probability
from .edropout import eDropout
from .emaps import InvariantLift, eLinear, ePositionTable
from .enorms import eLayerNorm, eRMSNorm
from .fourier import FourierStack, stack_of
from .norms import check_norm_module
from .stacks import TOLERANCE, regular_stack

__all__ = ["EQUIVARIANT", "EquivariantKit"]


class EquivariantKit:
    """The equivariant kit: a space is a representation."""

    def dim(self, space: Representation) -> int:
        return space.size

    def times(self, space: Representation, n: int) -> Representation:
        stack = stack_of(space)
        if stack:
            return stack.of_copies(n * stack.copies)
        return sum((space for _ in range(n - 1)), start=space)

    def hidden(self, space: Representation) -> Representation:
        """Regular copies, on which a pointwise nonlinearity is equivariant.

        A stack in the irrep basis keeps that basis; its nonlinearity goes through the regular one.
        """
        copies = -(-4 * space.size // space.group.order())
        if isinstance(space, FourierStack):
            return space.of_copies(copies)
        return regular_stack(space.group, copies)

    def check_heads(self, space: Representation, num_heads: int, name: str) -> None:
        check_count(name, num_heads)
        stack = stack_of(space)
        if stack:
            order = space.group.order()
            if stack.copies % num_heads:
                raise ValueError(
                    f"expected {name} to divide the number of regular copies, {space.size} / |G| = "
                    f"{space.size} / {order} = {stack.copies}, got {num_heads}"
                )
        elif not _splits_into(space, num_heads):
            raise ValueError(
                f"expected {name} to split in_rep into invariant parts of equal size, got "
                f"{num_heads} for {space}"
            )

    def linear(
        self, source: Representation, target: Representation, bias: bool = True
    ) -> nn.Module:
        return eLinear(source, target, bias)

    def lift(self, in_dim: int, space: Representation) -> nn.Module:
        return InvariantLift(in_dim, space)

    def norm(self, space: Representation, norm_module: str, affine: bool = True) -> nn.Module:
        check_norm_module(norm_module)
        if norm_module == "rmsnorm":
            return eRMSNorm(space, affine=affine)
        return eLayerNorm(space, affine=affine)

    def check_modulated(self, space: Representation) -> None:
        """On regular copies, scaling each by a number commutes with the group."""
        if not stack_of(space):
            raise ValueError(
                "expected in_rep to be copies of the regular representation when time_dim > 0, "
                f"got {space}"
            )

    def dropout(self, space: Representation, p: float) -> nn.Module:
        check_probability("dropout", p)
        return eDropout(space, p) if p > 0.0 else nn.Identity()

    def positions(self, horizon: int, space: Representation) -> nn.Module:
        return ePositionTable(horizon, space)


EQUIVARIANT = EquivariantKit()


def _splits_into(space: Representation, parts: int) -> bool:
    """Whether equal slices of the channels are invariant: all matrices are block-diagonal."""
    if space.size % parts:
        return False
    size = space.size // parts
    outside = 1 - np.kron(np.eye(parts), np.ones((size, size)))
    generators = space.group.generators or [space.group.identity]
    return all(np.abs(space(g) * outside).max() <= TOLERANCE for g in generators)
