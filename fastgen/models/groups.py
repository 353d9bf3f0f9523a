"""Finite groups and their real orthogonal representations: tables and bases that the equivariant layers are made of.

Groups come from escnn. A representation rho of dimension d splits as rho(g) = Q (+)_i psi_i(g) Q^T with irreps psi_i; Q is orthogonal here,
whatever scaling the user's change of basis had. Elements are numbered as in ``group.elements``, and the regular representation acts by
(rho_reg(a) f)[g] = f[a^-1 g].

Conventions of the plane: in D_n the ``standard`` irrep has rotations by 2 pi k / n and, as its first reflection, (x, y) -> (x, -y).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from escnn.group import Group, Representation
from torch import Tensor

__all__ = [
    "RegularStack",
    "check_representation",
    "dof_by_characters",
    "invariant_basis",
    "irrep_blocks",
    "multiplication_table",
    "regular_copies",
    "rep_matrices",
]

TOLERANCE = 1e-8  # a user's matrices may come from a file with few digits less than float64


T = TypeVar("T")
_PER_GROUP: dict[tuple[Any, ...], tuple[Group, Any]] = {}


def per_group(function: Callable[..., T]) -> Callable[..., T]:
    """Cache ``function(group, *rest)`` by the identity of the group: escnn has one object per group, and those are not hashable."""

    @wraps(function)
    def cached(group: Group, *rest: Any) -> T:
        key = (function.__name__, id(group), *rest)
        if key not in _PER_GROUP:
            # the group is kept beside the value, so that its id stays taken
            _PER_GROUP[key] = (group, function(group, *rest))
        return _PER_GROUP[key][1]

    return cached


@per_group
def multiplication_table(group: Group) -> Tensor:
    """Table (|G|, |G|) of int64: entry [a, b] is the index of the product a b in ``group.elements``."""
    regular = group.regular_representation
    # column b of rho_reg(a) is the indicator of a b; escnn builds it from irreps for some groups, hence the argmax
    return torch.from_numpy(np.stack([np.argmax(regular(a), axis=0) for a in group.elements]))


@per_group
def kernel_indices(group: Group) -> tuple[Tensor, Tensor]:
    """Index tables of a group convolution, both flat (|G|^2): ``quotient[g, h]`` = g^-1 h and ``product[g, u]`` = g u."""
    product = multiplication_table(group)
    # quotient[g, product[g, u]] = u, since g^-1 (g u) = u
    quotient = torch.empty_like(product).scatter_(1, product, torch.arange(len(product)).expand_as(product).contiguous())
    return quotient.flatten(), product.flatten()


class RegularStack(Representation):
    """m copies of the regular representation, laid out (copy, group element), without the D x D change of basis escnn would store.

    Behaves like ``directsum([group.regular_representation] * copies)``; matrices and change of basis are made when asked for.

    Args:
        group: a finite escnn group.
        copies: m >= 1.
    """

    def __init__(self, group: Group, copies: int) -> None:
        # escnn's constructor is left out on purpose: it stores and inverts the change of basis
        regular = group.regular_representation
        self.group = group
        self.copies = copies
        self.name = f"{copies}x[regular]"
        self.size = copies * group.order()
        self.irreps = list(regular.irreps) * copies
        self.representation = self._matrix
        self.supported_nonlinearities = set(regular.supported_nonlinearities)
        self.attributes = {}
        self.irreducible = self.size == 1
        self._characters = None
        self._cached_restricted_representations = {}
        self._irreps_multiplicities = defaultdict(int)
        for irrep in self.irreps:
            self._irreps_multiplicities[irrep] += 1

    def _matrix(self, element: Any) -> np.ndarray:
        return np.kron(np.eye(self.copies), np.round(self.group.regular_representation(element)))

    @property
    def change_of_basis(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
        return np.kron(np.eye(self.copies), self.group.regular_representation.change_of_basis)

    @property
    def change_of_basis_inv(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
        return np.kron(np.eye(self.copies), self.group.regular_representation.change_of_basis_inv)


@per_group
def regular_stack(group: Group, copies: int) -> RegularStack:
    """The one shared ``RegularStack`` of a group and a number of copies."""
    return RegularStack(group, copies)


def check_representation(name: str, rep: object) -> Representation:
    """Return ``rep`` if it is a real orthogonal representation of a finite group.

    Raises:
        TypeError: not an escnn representation.
        ValueError: of an infinite group, or not orthogonal; the message carries ``name``.
    """
    if not isinstance(rep, Representation):
        raise TypeError(f"expected {name} to be an escnn.group.Representation, got {type(rep).__name__}")
    if rep.group.elements is None or rep.group.continuous:
        raise ValueError(f"expected {name} to be a representation of a finite group, got one of {rep.group.name}")
    if not isinstance(rep, RegularStack):
        for g in rep.group.generators or [rep.group.identity]:
            matrix = np.asarray(rep(g), dtype=np.float64)
            error = np.abs(matrix @ matrix.T - np.eye(rep.size)).max()
            if not error < TOLERANCE:
                raise ValueError(
                    f"expected {name} to be an orthogonal representation, got {rep} whose matrix of {g} has "
                    f"|rho rho^T - 1| = {error:.1e}; change to an orthonormal basis first"
                )
    return rep


def regular_copies(rep: Representation) -> int:
    """Number m of copies if ``rep`` is m regular representations laid out (copy, element), else 0."""
    if isinstance(rep, RegularStack):
        return rep.copies
    order = rep.group.order()
    if rep.size % order:
        return 0
    copies = rep.size // order
    if list(rep.irreps) != list(rep.group.regular_representation.irreps) * copies:
        return 0
    stack = regular_stack(rep.group, copies)
    same = all(np.abs(rep(g) - stack(g)).max() < TOLERANCE for g in rep.group.generators or [rep.group.identity])
    return copies if same else 0


def _orthogonal_basis(rep: Representation) -> np.ndarray:
    """Orthogonal Q with rho = Q (+)psi Q^T: the polar factor of escnn's, which intertwines as well since Q^T Q commutes with (+)psi."""
    u, _, vt = np.linalg.svd(np.asarray(rep.change_of_basis, dtype=np.float64))
    return u @ vt


def irrep_columns(rep: Representation) -> dict[tuple, Tensor]:
    """Isotypic split of an orthogonal Q: irrep id -> tensor (d, multiplicity, irrep size) in float64; [:, i] spans the i-th copy."""
    basis = torch.from_numpy(_orthogonal_basis(rep))
    columns: dict[tuple, list[Tensor]] = {}
    start = 0
    for irrep_id in rep.irreps:
        size = rep.group.irrep(*irrep_id).size
        columns.setdefault(irrep_id, []).append(basis[:, start : start + size])
        start += size
    return {irrep_id: torch.stack(parts, dim=1) for irrep_id, parts in columns.items()}


def rep_matrices(rep: Representation) -> Tensor:
    """All matrices rho(g), g in the order of ``group.elements``: shape (|G|, d, d), float64."""
    return torch.from_numpy(np.stack([np.asarray(rep(g), dtype=np.float64) for g in rep.group.elements]))


def irrep_blocks(rep: Representation) -> tuple[Tensor, list[tuple[int, int, bool]]]:
    """Orthogonal change of basis and its irrep blocks.

    Returns:
        ``(Q, blocks)``: Q (d, d) float64 with rho(g) = Q (+)psi_i(g) Q^T, and per irrep ``(start, stop, is_trivial)``, a range of Q's columns.
    """
    blocks = []
    start = 0
    for irrep_id in rep.irreps:
        irrep = rep.group.irrep(*irrep_id)
        blocks.append((start, start + irrep.size, bool(irrep.is_trivial())))
        start += irrep.size
    return torch.from_numpy(_orthogonal_basis(rep)), blocks


def invariant_basis(rep: Representation) -> Tensor:
    """Orthonormal basis of the invariant vectors {v : rho(g) v = v}: shape (d, n), float64; n may be 0."""
    copies = regular_copies(rep)
    if copies:
        order = rep.group.order()
        return torch.eye(copies, dtype=torch.float64).repeat_interleave(order, dim=0) / order**0.5
    basis, blocks = irrep_blocks(rep)
    return basis[:, [start for start, _, is_trivial in blocks if is_trivial]]


def dof_by_characters(in_rep: Representation, out_rep: Representation) -> int:
    """Dimension of the space of equivariant maps, 1/|G| sum_g tr rho_in(g) tr rho_out(g)."""
    elements: Sequence[Any] = in_rep.group.elements
    total = sum(float(np.trace(in_rep(g))) * float(np.trace(out_rep(g))) for g in elements)
    return round(total / len(elements))
