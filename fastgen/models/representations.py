"""Real orthogonal representations of finite groups: their matrices, irreps and invariant vectors.

A representation rho of dimension d splits as rho(g) = Q (+)_i psi_i(g) Q^T with irreps psi_i. Here
Q is orthogonal, whatever the scaling of the user's change of basis.

In the plane, the `standard` irrep of D_n has rotations by 2 pi k / n; its first reflection maps
(x, y) to (x, -y).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from escnn.group import Group, Representation
from torch import Tensor

from .._core.messages import listed
from .groups import multiplication_table
from .stacks import TOLERANCE, Stack, regular_copies

__all__ = [
    "check_representation",
    "degrees_of_freedom",
    "invariant_basis",
    "irrep_blocks",
    "irrep_columns",
    "joint_kernel",
    "kernel_note",
    "rep_matrices",
    "representation",
]

# Of matrices from a user's file, which may have been float32.
MATRIX_TOLERANCE = 1e-6


def check_representation(name: str, rep: object) -> Representation:
    """Return `rep` if it is a real orthogonal representation of a finite group.

    Raises:
        TypeError: not an escnn representation.
        ValueError: of an infinite group, or not orthogonal; the message carries `name`.
    """
    if not isinstance(rep, Representation):
        raise TypeError(
            f"expected {name} to be an escnn.group.Representation, got {type(rep).__name__}"
        )
    if rep.group.elements is None or rep.group.continuous:
        raise ValueError(
            f"expected {name} to be a representation of a finite group, got one of {rep.group.name}"
        )
    if isinstance(rep, Stack):
        return rep
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


def rep_matrices(rep: Representation) -> Tensor:
    """All matrices rho(g), g in the order of `group.elements`: shape (|G|, d, d), float64."""
    matrices = [np.asarray(rep(g), dtype=np.float64) for g in rep.group.elements]
    return torch.from_numpy(np.stack(matrices))


def degrees_of_freedom(in_rep: Representation, out_rep: Representation) -> int:
    """Dimension of the space of equivariant linear maps, 1/|G| sum_g tr rho_in(g) tr rho_out(g)."""
    elements = in_rep.group.elements
    return round(sum(in_rep.character(g) * out_rep.character(g) for g in elements) / len(elements))


# ---- What acts -----------------------------------------------------------------------------------


def joint_kernel(*reps: Representation) -> list[Any]:
    """The elements but the identity by which every one of `reps`, of one group, acts as the
    identity. Without any, the group acts faithfully.

    An orthogonal matrix is the identity where its trace is its size, so the characters of the
    irreps tell.
    """
    group = reps[0].group
    if any(isinstance(rep, Stack) for rep in reps):
        return []
    irreps = {irrep_id: group.irrep(*irrep_id) for rep in reps for irrep_id in rep.irreps}
    return [
        g
        for g in group.elements
        if g != group.identity
        and all(abs(irrep.character(g) - irrep.size) < TOLERANCE for irrep in irreps.values())
    ]


def kernel_note(reps: Mapping[str, Representation]) -> str | None:
    """One line about the elements of a group that do nothing; None if it acts faithfully.

    One representation may have a kernel, as long as another one sees what it doesn't.

    Args:
        reps: all that the group acts on, by name.
    """
    idle = joint_kernel(*reps.values())
    if not idle:
        return None
    group = next(iter(reps.values())).group
    order = group.order()
    acts = order // (1 + len(idle))
    return (
        f"{len(idle)} of the {order} elements of {group.name} act as the identity on all of "
        f"{', '.join(reps)}: {listed(idle)}; what acts is a group of {acts}, not {group.name}. Are "
        "the representations those of this group (the matrices those of its generators)? If so, "
        f"declare the group of {acts}, which is cheaper"
    )


# ---- Irreps -------------------------------------------------------------------------------------


def _orthogonal_basis(rep: Representation) -> np.ndarray:
    """Orthogonal Q (d, d) with rho = Q (+)psi Q^T.

    It is the polar factor of escnn's change of basis P. P^T P commutes with (+)psi, so the polar
    factor splits rho, too.
    """
    u, _, vt = np.linalg.svd(np.asarray(rep.change_of_basis, dtype=np.float64))
    return u @ vt


def irrep_columns(rep: Representation) -> dict[tuple, Tensor]:
    """The columns of Q, by irreps.

    Returns:
        Irrep id -> tensor (d, multiplicity, irrep size) in float64; [:, i] spans the i-th copy.
    """
    basis = torch.from_numpy(_orthogonal_basis(rep))
    columns: dict[tuple, list[Tensor]] = {}
    start = 0
    for irrep_id in rep.irreps:
        size = rep.group.irrep(*irrep_id).size
        columns.setdefault(irrep_id, []).append(basis[:, start : start + size])
        start += size
    return {irrep_id: torch.stack(parts, dim=1) for irrep_id, parts in columns.items()}


def irrep_blocks(rep: Representation) -> tuple[Tensor, list[tuple[int, int, bool]]]:
    """Orthogonal change of basis and its irrep blocks.

    Returns:
        `(Q, blocks)`: Q (d, d) in float64 with rho(g) = Q (+)psi_i(g) Q^T, and for each irrep
        `(start, stop, is_trivial)`, a range of Q's columns.
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


# ---- Representations from matrices --------------------------------------------------------------


def representation(group: Group, matrices: np.ndarray | Tensor | Sequence[Any]) -> Representation:
    """A representation from the matrices of the group's generators, decomposed into irreps.

    Args:
        group: a finite escnn group.
        matrices: one orthogonal matrix per element of `group.generators`, in that order: shape
            (n, d, d).

    Returns:
        The representation in the given basis. Its matrices are exact to float64, and within 1e-6 of
        those given. It need not be faithful: C8 may turn a plane by 90 degrees. Networks and notes
        on data say so where no other representation beside it is (`kernel_note`).

    Raises:
        ValueError: a wrong shape, a matrix that is not orthogonal, or matrices that do not multiply
            as the group does; the message names the generator or the pair.
    """
    generators = group.generators
    given = _checked_matrices(group, matrices)
    table = _all_matrices(group, [group.elements.index(g) for g in generators], given)
    irreps, columns = _decompose(group, table)
    name = f"matrices_{hashlib.blake2b(given.tobytes(), digest_size=6).hexdigest()}"
    return Representation(group, name, irreps, columns)


def _checked_matrices(group: Group, matrices: np.ndarray | Tensor | Sequence[Any]) -> np.ndarray:
    """The matrices of the generators as (n, d, d) in float64, each orthogonal."""
    generators = group.generators
    wanted = f"expected matrices of shape ({len(generators)}, d, d), one for each generator "
    wanted += f"({', '.join(map(str, generators))}) of {group.name}"
    if isinstance(matrices, Tensor):
        dtype = torch.complex128 if matrices.is_complex() else torch.float64
        matrices = matrices.detach().cpu().to(dtype).numpy()
    try:
        given = np.asarray(matrices)
        if np.iscomplexobj(given):
            raise ValueError("complex numbers")
        given = given.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{wanted}, all of real numbers, got {error}") from error
    square = given.ndim == 3 and given.shape[1] == given.shape[2] > 0
    if not square or len(given) != len(generators):
        raise ValueError(f"{wanted}, got {given.shape}")
    for g, matrix in zip(generators, given, strict=True):
        error = np.abs(matrix @ matrix.T - np.eye(len(matrix))).max()
        if not error < MATRIX_TOLERANCE:
            raise ValueError(
                f"expected an orthogonal matrix for {g}, got |M M^T - 1| = {error:.1e}"
            )
    return given


def _all_matrices(group: Group, generators: list[int], given: np.ndarray) -> np.ndarray:
    """Matrices (|G|, d, d) of all elements, as words in the generators.

    They are checked: rho(s) rho(g) = rho(s g) for every generator s and element g.
    """
    product = multiplication_table(group)
    identity = int(np.flatnonzero((product == np.arange(len(product))).all(axis=1))[0])
    table: dict[int, np.ndarray] = {identity: np.eye(given.shape[1])}
    # Length of each element's word: the rounding of the generators adds up along it.
    length = {identity: 0}
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
    """Irreps of the matrices rho(g), and an orthogonal Q with rho = Q (+)psi Q^T.

    The mean of rho(g) A psi(g)^T over the group projects any A onto the maps psi -> rho. By Schur's
    lemma such a map is a multiple of an isometry. So orthonormal copies of psi follow from random
    A, each made orthogonal to the copies found before.
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
