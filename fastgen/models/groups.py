"""Finite groups and their real orthogonal representations: tables and bases that the equivariant
layers are made of.

Groups come from escnn. A representation rho of dimension d splits as rho(g) = Q (+)_i psi_i(g) Q^T
with irreps psi_i; Q is orthogonal here, whatever scaling the user's change of basis had. Elements
are numbered as in ``group.elements``, and the regular representation acts by (rho_reg(a) f)[g] =
f[a^-1 g].

Conventions of the plane: in D_n the ``standard`` irrep has rotations by 2 pi k / n and, as its
first reflection, (x, y)
    -> (x, -y).
"""

from __future__ import annotations

import hashlib
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
    "Stack",
    "check_representation",
    "degrees_of_freedom",
    "invariant_basis",
    "irrep_blocks",
    "multiplication_table",
    "regular_copies",
    "regular_stack",
    "rep_matrices",
    "representation",
]

TOLERANCE = 1e-8  # of representations, whose matrices come from float64 arithmetic
MATRIX_TOLERANCE = 1e-6  # of matrices from a user's file, which may have been float32


T = TypeVar("T")
_PER_GROUP: dict[tuple[Any, ...], tuple[Group, Any]] = {}


def per_group(function: Callable[..., T]) -> Callable[..., T]:
    """Cache ``function(group, *rest)`` by the identity of the group: escnn has one object per
    group, and those are not hashable."""

    @wraps(function)
    def cached(group: Group, *rest: Any) -> T:
        key = (function.__name__, id(group), *rest)
        if key not in _PER_GROUP:
            # the group is kept beside the value, so that its id stays taken
            _PER_GROUP[key] = (group, function(group, *rest))
        return _PER_GROUP[key][1]

    return cached


@per_group
def multiplication_table(group: Group) -> np.ndarray:
    """Table (|G|, |G|) of ints: entry [a, b] is the index of the product a b in
    ``group.elements``."""
    regular = group.regular_representation
    # column b of rho_reg(a) is the indicator of a b; escnn computes it from irreps for some groups,
    # hence the argmax
    return np.stack([np.argmax(regular(a), axis=0) for a in group.elements])


@per_group
def kernel_selector(group: Group, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The 0/1 matrix (|G|, |G|^2) that reads a group convolution off its kernel: [u, (g, h)] = 1
    where u = g^-1 h.

    One tensor per group, dtype and device is shared by all layers. A product with it is exact and,
    both ways, faster than indexing.
    """
    product = multiplication_table(group)
    order = len(product)
    selector = np.zeros((order, order, order))
    g, u = np.meshgrid(np.arange(order), np.arange(order), indexing="ij")
    selector[u, g, product] = 1.0  # h = g u
    with torch.inference_mode(
        False
    ):  # the table outlives the caller, who may be in inference mode now and train later
        return torch.from_numpy(selector.reshape(order, -1)).to(device=device, dtype=dtype)


class Stack(Representation):
    """m copies of the regular representation, without the D x D change of basis escnn would store.

    Matrices and change of basis are made when asked for. Subclasses choose the coordinates.

    Args:
        group: a finite escnn group.
        copies: m >= 1.
        name: of the representation.
    """

    def __init__(self, group: Group, copies: int, name: str) -> None:
        # escnn's constructor is left out on purpose: it stores and inverts the change of basis
        regular = group.regular_representation
        self.group = group
        self.copies = copies
        self.name = name
        self.size = copies * group.order()
        self.irreps = list(regular.irreps) * copies
        self.representation = self._matrix
        self.supported_nonlinearities = set()
        self.attributes = {}
        self.irreducible = self.size == 1
        self._characters = None
        self._cached_restricted_representations = {}
        self._irreps_multiplicities = defaultdict(int)
        for irrep in self.irreps:
            self._irreps_multiplicities[irrep] += 1

    def _matrix(self, element: Any) -> np.ndarray:
        raise NotImplementedError

    def of_copies(self, copies: int) -> Stack:
        """The shared stack of another number of copies in the same coordinates."""
        raise NotImplementedError

    def invariant(self, coefficients: Tensor) -> Tensor:
        """Invariant vectors (..., D) from their values (..., m) on the copies."""
        raise NotImplementedError

    def spread(self, numbers: Tensor) -> Tensor:
        """A number for each channel (..., D) from one for each copy (..., m): scaling by it
        commutes with the group."""
        raise NotImplementedError


class RegularStack(Stack):
    """m copies of the regular representation, laid out (copy, group element); behaves like
    ``directsum([group.regular_representation] * copies)``."""

    def __init__(self, group: Group, copies: int) -> None:
        super().__init__(group, copies, f"{copies}x[regular]")
        self.supported_nonlinearities = set(group.regular_representation.supported_nonlinearities)

    def _matrix(self, element: Any) -> np.ndarray:
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
        return (
            coefficients.unsqueeze(-1).expand(*coefficients.shape, self.group.order()).flatten(-2)
        )

    def spread(self, numbers: Tensor) -> Tensor:
        return self.invariant(numbers)


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
        raise TypeError(
            f"expected {name} to be an escnn.group.Representation, got {type(rep).__name__}"
        )
    if rep.group.elements is None or rep.group.continuous:
        raise ValueError(
            f"expected {name} to be a representation of a finite group, got one of {rep.group.name}"
        )
    if not isinstance(rep, Stack):
        for g in rep.group.generators or [rep.group.identity]:
            matrix = np.asarray(rep(g), dtype=np.float64)
            error = np.abs(matrix @ matrix.T - np.eye(rep.size)).max()
            if not error < TOLERANCE:
                raise ValueError(
                    f"expected {name} to be an orthogonal representation, got {rep} whose matrix "
                    f"of {g} has |rho rho^T - 1| = {error:.1e}; change to an orthonormal basis "
                    "first"
                )
    return rep


def regular_copies(rep: Representation) -> int:
    """Number m of copies if ``rep`` is m regular representations laid out (copy, element), else
    0."""
    if isinstance(rep, Stack):
        return rep.copies if isinstance(rep, RegularStack) else 0
    order = rep.group.order()
    if rep.size % order:
        return 0
    copies = rep.size // order
    if list(rep.irreps) != list(rep.group.regular_representation.irreps) * copies:
        return 0
    stack = regular_stack(rep.group, copies)
    same = all(
        np.abs(rep(g) - stack(g)).max() < TOLERANCE
        for g in rep.group.generators or [rep.group.identity]
    )
    return copies if same else 0


def _orthogonal_basis(rep: Representation) -> np.ndarray:
    """Orthogonal Q with rho = Q (+)psi Q^T: the polar factor of escnn's, which intertwines as well
    since Q^T Q commutes with (+)psi."""
    u, _, vt = np.linalg.svd(np.asarray(rep.change_of_basis, dtype=np.float64))
    return u @ vt


def irrep_columns(rep: Representation) -> dict[tuple, Tensor]:
    """Isotypic split of an orthogonal Q: irrep id -> tensor (d, multiplicity, irrep size) in
    float64; [:, i] spans the i-th copy."""
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
    return torch.from_numpy(
        np.stack([np.asarray(rep(g), dtype=np.float64) for g in rep.group.elements])
    )


def irrep_blocks(rep: Representation) -> tuple[Tensor, list[tuple[int, int, bool]]]:
    """Orthogonal change of basis and its irrep blocks.

    Returns:
        ``(Q, blocks)``: Q (d, d) float64 with rho(g) = Q (+)psi_i(g) Q^T, and per irrep ``(start,
        stop, is_trivial)``, a range of Q's columns.
    """
    blocks = []
    start = 0
    for irrep_id in rep.irreps:
        irrep = rep.group.irrep(*irrep_id)
        blocks.append((start, start + irrep.size, bool(irrep.is_trivial())))
        start += irrep.size
    return torch.from_numpy(_orthogonal_basis(rep)), blocks


def invariant_basis(rep: Representation) -> Tensor:
    """Orthonormal basis of the invariant vectors {v : rho(g) v = v}: shape (d, n), float64; n may
    be 0."""
    copies = regular_copies(rep)
    if copies:
        order = rep.group.order()
        return torch.from_numpy(np.repeat(np.eye(copies), order, axis=0) / order**0.5)
    basis, blocks = irrep_blocks(rep)
    return basis[:, [start for start, _, is_trivial in blocks if is_trivial]]


def representation(group: Group, matrices: np.ndarray | Tensor | Sequence[Any]) -> Representation:
    """A representation from the matrices of the group's generators, decomposed into irreps.

    Args:
        group: a finite escnn group.
        matrices: one orthogonal matrix per element of ``group.generators``, in that order: shape
            (n, d, d).

    Returns:
        The representation in the given basis; its matrices are exact to float64, and within 1e-6 of
        those given.

    Raises:
        ValueError: a wrong shape, a matrix that is not orthogonal, or matrices that do not multiply
            as the group does; the message names the generator or the pair.
    """
    generators = group.generators
    wanted = f"expected matrices of shape ({len(generators)}, d, d), one for each generator "
    wanted += f"({', '.join(map(str, generators))}) of {group.name}"
    if isinstance(matrices, Tensor):
        matrices = (
            matrices.detach()
            .cpu()
            .to(torch.complex128 if matrices.is_complex() else torch.float64)
            .numpy()
        )
    try:
        given = np.asarray(matrices)
        if np.iscomplexobj(given):
            raise ValueError("complex numbers")
        given = given.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{wanted}, all of real numbers, got {error}") from error
    if (
        given.ndim != 3
        or given.shape[1] != given.shape[2]
        or len(given) != len(generators)
        or given.shape[1] == 0
    ):
        raise ValueError(f"{wanted}, got {given.shape}")
    for g, matrix in zip(generators, given, strict=True):
        error = np.abs(matrix @ matrix.T - np.eye(len(matrix))).max()
        if not error < MATRIX_TOLERANCE:
            raise ValueError(
                f"expected an orthogonal matrix for {g}, got |M M^T - 1| = {error:.1e}"
            )
    table = _spread(group, [group.elements.index(g) for g in generators], given)
    irreps, columns = _decompose(group, table)
    name = f"matrices_{hashlib.blake2b(given.tobytes(), digest_size=6).hexdigest()}"
    return Representation(group, name, irreps, columns)


def _spread(group: Group, generators: list[int], given: np.ndarray) -> np.ndarray:
    """Matrices of all elements as words in the generators, checked: rho(s) rho(g) = rho(s g) for
    every generator s and element g."""
    product = multiplication_table(group)
    identity = int(np.flatnonzero((product == np.arange(len(product))).all(axis=1))[0])
    table: dict[int, np.ndarray] = {identity: np.eye(given.shape[1])}
    length = {identity: 0}  # of the word that made it: rounding of the generators adds up along it
    frontier = [identity]
    while frontier:
        g = frontier.pop(0)
        for s, matrix in zip(generators, given, strict=True):
            if product[s, g] not in table:
                table[product[s, g]] = matrix @ table[g]
                length[product[s, g]] = length[g] + 1
                frontier.append(product[s, g])
    for s, matrix in zip(generators, given, strict=True):
        for g, rho in table.items():
            error = np.abs(matrix @ rho - table[product[s, g]]).max()
            if not error < MATRIX_TOLERANCE * (1 + length[g]):
                raise ValueError(
                    f"expected matrices that multiply as {group.name} does, got a product for the "
                    f"pair {group.elements[s]}, {group.elements[g]} that is off by {error:.1e}"
                )
    return np.stack([table[i] for i in range(len(product))])


def _decompose(group: Group, table: np.ndarray) -> tuple[list[tuple], np.ndarray]:
    """Irreps of the matrices rho(g) and an orthogonal Q with rho = Q (+)psi Q^T.

    Averaging rho(g) A psi(g)^T over the group projects any A onto the maps psi -> rho; such a map
    is a multiple of an isometry (Schur), so orthonormal copies follow from random A, each
    orthogonal to the copies found before.
    """
    generator = np.random.default_rng(0)
    irreps: list[tuple] = []
    columns = np.zeros((table.shape[1], 0))
    for irrep in group.irreps():
        psi = np.stack([irrep(g) for g in group.elements])
        characters = np.trace(table, axis1=1, axis2=2) * np.trace(psi, axis1=1, axis2=2)
        for _ in range(round(characters.mean() / len(irrep.endomorphism_basis()))):
            start = generator.standard_normal((len(columns), irrep.size))
            for _ in range(2):  # the second pass removes what rounding left of the first
                start = start - columns @ (columns.T @ start)
                start = np.einsum("gij,jk,glk->il", table, start, psi) / len(psi)
                start = start / np.sqrt(np.trace(start.T @ start) / irrep.size)
            columns = np.concatenate([columns, start], axis=1)
            irreps.append(irrep.id)
    u, _, vt = np.linalg.svd(columns)
    return irreps, u @ vt


def degrees_of_freedom(in_rep: Representation, out_rep: Representation) -> int:
    """Dimension of the space of equivariant linear maps, by characters: 1/|G| sum_g tr rho_in(g) tr
    rho_out(g)."""
    elements = in_rep.group.elements
    return round(sum(in_rep.character(g) * out_rep.character(g) for g in elements) / len(elements))
