"""Stacks: copies of the regular representation, in which hidden features live.

The regular representation acts on functions f on the group: (rho_reg(a) f)[g] = f[a^-1 g].
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from escnn.group import Group, Representation
from torch import Tensor

from .groups import per_group

__all__ = ["TOLERANCE", "RegularStack", "Stack", "regular_copies", "regular_stack"]

# Of the matrices of representations, which come from float64 arithmetic.
TOLERANCE = 1e-8


class Stack(Representation):
    """m copies of the regular representation, without the D x D matrices that escnn would store.

    Matrices and change of basis are made when they are asked for. Subclasses choose the
    coordinates.

    Args:
        group: a finite escnn group.
        copies: m >= 1.
        name: of the representation.
    """

    def __init__(self, group: Group, copies: int, name: str) -> None:
        # escnn's constructor is not called: it stores and inverts the change of basis.
        regular = group.regular_representation
        self.group = group
        self.copies = copies
        self.name = name
        self.size = copies * group.order()
        self.irreps = list(regular.irreps) * copies
        self.representation = self.matrix_of
        self.supported_nonlinearities = set()
        self.attributes = {}
        self.irreducible = self.size == 1
        self._characters = None
        self._cached_restricted_representations = {}
        self._irreps_multiplicities = defaultdict(int)
        for irrep in self.irreps:
            self._irreps_multiplicities[irrep] += 1

    def matrix_of(self, element: Any) -> np.ndarray:
        """The matrix (D, D) of a group element."""
        raise NotImplementedError

    def of_copies(self, copies: int) -> Stack:
        """The shared stack of another number of copies in the same coordinates."""
        raise NotImplementedError

    def invariant(self, coefficients: Tensor) -> Tensor:
        """Invariant vectors (..., D) from their values (..., m) on the copies."""
        raise NotImplementedError

    def spread(self, numbers: Tensor) -> Tensor:
        """A number for each channel (..., D) from one for each copy (..., m).

        Scaling channels by the result commutes with the group.
        """
        raise NotImplementedError


class RegularStack(Stack):
    """m copies of the regular representation, laid out (copy, group element).

    It behaves like `directsum([group.regular_representation] * m)`.
    """

    def __init__(self, group: Group, copies: int) -> None:
        super().__init__(group, copies, f"{copies}x[regular]")
        self.supported_nonlinearities = set(group.regular_representation.supported_nonlinearities)

    def matrix_of(self, element: Any) -> np.ndarray:
        return np.kron(np.eye(self.copies), np.round(self.group.regular_representation(element)))

    @property
    def change_of_basis(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
        return np.kron(np.eye(self.copies), self.group.regular_representation.change_of_basis)

    @property
    def change_of_basis_inv(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
        return np.kron(np.eye(self.copies), self.group.regular_representation.change_of_basis_inv)

    def of_copies(self, copies: int) -> RegularStack:
        return regular_stack(self.group, copies)

    def invariant(self, coefficients: Tensor) -> Tensor:
        shape = (*coefficients.shape, self.group.order())
        return coefficients.unsqueeze(-1).expand(shape).flatten(-2)

    def spread(self, numbers: Tensor) -> Tensor:
        return self.invariant(numbers)


@per_group
def regular_stack(group: Group, copies: int) -> RegularStack:
    """The one shared `RegularStack` of a group and a number of copies."""
    return RegularStack(group, copies)


def regular_copies(rep: Representation) -> int:
    """The number m if `rep` is m regular representations laid out (copy, element), else 0."""
    if isinstance(rep, Stack):
        return rep.copies if isinstance(rep, RegularStack) else 0
    order = rep.group.order()
    if rep.size % order:
        return 0
    copies = rep.size // order
    if list(rep.irreps) != list(rep.group.regular_representation.irreps) * copies:
        return 0
    stack = regular_stack(rep.group, copies)
    generators = rep.group.generators or [rep.group.identity]
    same = all(np.abs(rep(g) - stack(g)).max() < TOLERANCE for g in generators)
    return copies if same else 0
