"""Representations are taken apart into irreps, and put together from matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from escnn import group as escnn_group
from escnn.group import change_basis, directsum

from fastgen.models import irrep_blocks, rep_matrices, representation
from fastgen.models.representations import (
    check_representation,
    degrees_of_freedom,
    invariant_basis,
    irrep_columns,
)
from support.exact import normal

GROUPS = ["C2", "C3", "C4", "C8", "D3", "D4", "D6"]
EVERY = [*GROUPS, "Icosahedral"]
F64 = torch.float64


def orthogonal(size: int, seed: int = 0) -> np.ndarray:
    return torch.linalg.qr(normal(size, size, seed=seed)).Q.numpy()


def block_diagonal(rep, blocks, index: int) -> torch.Tensor:
    """(+) psi_i(g) in the order of `blocks`, built from escnn's irreps."""
    g = rep.group.elements[index]
    sizes = [stop - start for start, stop, _ in blocks]
    irreps = [rep.group.irrep(*irrep_id) for irrep_id in rep.irreps]
    assert sizes == [irrep.size for irrep in irreps]
    return torch.block_diag(*(torch.as_tensor(irrep(g), dtype=F64) for irrep in irreps))


# ---- Bases ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("group", EVERY)
def test_irrep_blocks_take_a_representation_apart(group, turned, represent, matrices):
    rep = represent(group, "mixed", turned=turned)
    Q, blocks = irrep_blocks(rep)
    assert (Q @ Q.T - torch.eye(rep.size, dtype=F64)).abs().max() < 1e-13
    assert [b[0] for b in blocks] == [0, *(b[1] for b in blocks[:-1])] and blocks[-1][1] == rep.size
    for index in range(rep.group.order()):
        assert (
            Q @ block_diagonal(rep, blocks, index) @ Q.T - matrices(rep)[index]
        ).abs().max() < 1e-12
    trivial = {irrep_id for irrep_id in rep.irreps if rep.group.irrep(*irrep_id).is_trivial()}
    assert [is_trivial for *_, is_trivial in blocks] == [i in trivial for i in rep.irreps]


@pytest.mark.parametrize("group", ["C3", "D4"])
def test_a_scaled_change_of_basis_changes_no_orthogonal_one(group, represent, matrices):
    """Q and 3 Q give the same matrices, as does any scale of its own for every irrep."""
    rep = represent(group, "mixed", turned=True)
    scales = np.concatenate(
        [np.full(rep.group.irrep(*i).size, 1.0 + k) for k, i in enumerate(rep.irreps)]
    )
    scaled = escnn_group.Representation(
        rep.group, "scaled", rep.irreps, rep.change_of_basis * scales
    )
    assert np.allclose(scaled(rep.group.elements[1]), rep(rep.group.elements[1]), atol=1e-12)
    assert (irrep_blocks(scaled)[0] - irrep_blocks(rep)[0]).abs().max() < 1e-12


@pytest.mark.parametrize("group", ["C3", "C8", "D4", "Icosahedral"])
def test_isotypic_columns_transform_by_their_irrep(group, represent, matrices):
    rep = represent(group, "mixed", turned=True)
    columns = irrep_columns(rep)
    assert sum(part.shape[1] * part.shape[2] for part in columns.values()) == rep.size
    for irrep_id, part in columns.items():
        assert part.shape[1] == rep.irreps.count(irrep_id)
        psi = matrices(rep.group.irrep(*irrep_id))
        moved = torch.einsum("gde,eib->gdib", matrices(rep), part)
        assert (moved - torch.einsum("dia,gab->gdib", part, psi)).abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["small", "mixed", 2])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("group", EVERY)
def test_invariant_basis_spans_all_vectors_that_no_element_moves(
    group, kind, turned, represent, matrices, count
):
    rep = represent(group, kind, turned=turned)
    basis = invariant_basis(rep)
    projector = matrices(rep).mean(0)  # the group average projects on the invariant vectors
    assert (basis @ basis.T - projector).abs().max() < 1e-12
    assert basis.shape == (rep.size, count(rep))
    assert (basis.T @ basis - torch.eye(basis.shape[1], dtype=F64)).abs().max() < 1e-12


def test_without_a_trivial_irrep_the_invariant_basis_is_empty(represent):
    assert invariant_basis(represent("D4", 1).group.irrep(1, 1)).shape == (2, 0)


@pytest.mark.parametrize("turned", [False, True])
def test_rep_matrices_are_in_the_order_of_the_elements(turned, represent, matrices):
    rep = represent("D6", "mixed", turned=turned)
    assert torch.equal(rep_matrices(rep), matrices(rep))


@pytest.mark.parametrize("group", EVERY)
def test_degrees_of_freedom_are_the_dimension_of_the_solutions(group, represent, matrices, count):
    """The maps with rho_out(g) W = W rho_in(g) are the kernel of a linear system in the numbers of
    W."""
    source, target = represent(group, "small"), represent(group, "small", turned=True)
    generators = [source.group.elements.index(g) for g in source.group.generators]
    rho_in, rho_out = matrices(source).mT.contiguous(), matrices(target)
    eye_in, eye_out = (torch.eye(rep.size, dtype=F64) for rep in (source, target))
    system = torch.cat(
        [torch.kron(rho_out[g], eye_in) - torch.kron(eye_out, rho_in[g]) for g in generators]
    )
    solutions = source.size * target.size - int(torch.linalg.matrix_rank(system))
    assert degrees_of_freedom(source, target) == solutions == count(source, target)
    traces = [torch.einsum("gdd->g", matrices(rep)) for rep in (source, target)]
    assert (traces[0] * traces[1]).mean().item() == pytest.approx(solutions, abs=1e-9)


# ---- Representations from matrices ---------------------------------------------------------------


def of_generators(rep) -> np.ndarray:
    return np.stack([rep(g) for g in rep.group.generators])


@pytest.mark.parametrize("group", EVERY)
def test_matrices_of_the_generators_give_the_representation(group, represent, matrices):
    rep = represent(group, "small" if group == "Icosahedral" else "mixed", turned=True)
    found = representation(rep.group, of_generators(rep))
    assert (matrices(found) - matrices(rep)).abs().max() < 1e-12
    assert sorted(found.irreps) == sorted(rep.irreps)
    assert np.abs(found.change_of_basis @ found.change_of_basis.T - np.eye(rep.size)).max() < 1e-13


def test_matrices_of_a_product_of_groups_give_the_representation(matrices):
    group = escnn_group.direct_product(escnn_group.cyclic_group(3), escnn_group.dihedral_group(3))
    rep = change_basis(directsum(group.irreps()[-2:]), orthogonal(6), "turned")
    assert (matrices(representation(group, of_generators(rep))) - matrices(rep)).abs().max() < 1e-12


def test_matrices_of_float32_become_exact_to_float64(represent, matrices):
    rep = represent("D3", "mixed", turned=True)
    found = representation(rep.group, of_generators(rep).astype(np.float32))
    assert (matrices(found) - matrices(rep)).abs().max() < 1e-6
    for g in found.group.generators:
        assert np.abs(found(g) @ found(g).T - np.eye(rep.size)).max() < 1e-13
    turn, mirror = (found(g) for g in found.group.generators)
    assert np.abs(turn @ turn @ turn - np.eye(rep.size)).max() < 1e-13
    assert np.abs(mirror @ turn @ mirror @ turn - np.eye(rep.size)).max() < 1e-13


def rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


MIRROR = np.diag([1.0, -1.0])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            [rotation(2 * np.pi / 3), rotation(0.3)],
            "multiply as D3 does, got a product for the pair",
        ),
        ([rotation(2 * np.pi / 4), MIRROR], "multiply as D3 does, got a product for the pair"),
        (
            [rotation(2 * np.pi / 3), 2 * MIRROR],
            r"expected an orthogonal matrix for \(-, 0\[2pi/3\]\), got .*3\.0e\+00",
        ),
        (
            [rotation(2 * np.pi / 3), np.full((2, 2), np.nan)],
            r"expected an orthogonal matrix for \(-, 0",
        ),
        (
            [rotation(2 * np.pi / 3)],
            r"expected matrices of shape \(2, d, d\), .* of D3, got \(1, 2, 2\)",
        ),
        ([MIRROR, MIRROR, MIRROR], r"expected matrices of shape \(2, d, d\).* got \(3, 2, 2\)"),
        (np.zeros((2, 2, 3)), r"got \(2, 2, 3\)"),
        (np.zeros((2, 0, 0)), r"got \(2, 0, 0\)"),
        (np.eye(2), r"got \(2, 2\)"),
    ],
)
def test_matrices_that_are_no_representation_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        representation(escnn_group.dihedral_group(3), given)


# ---- Checks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", EVERY)
@pytest.mark.parametrize("kind", ["small", "mixed", 2])
def test_an_orthogonal_representation_is_returned_as_it_is(group, kind, represent):
    for turned in (False, True):
        rep = represent(group, kind, turned=turned)
        assert check_representation("in_rep", rep) is rep


def test_what_is_no_orthogonal_representation_of_a_finite_group_is_refused(represent):
    rep = represent("D3", 1).group.irrep(1, 1)
    sheared = change_basis(rep, np.array([[1.0, 1.0], [0.0, 1.0]]), "sheared")
    with pytest.raises(
        ValueError, match="expected out_rep to be an orthogonal representation, got .*sheared"
    ):
        check_representation("out_rep", sheared)
    for infinite in (escnn_group.so2_group().irrep(1), escnn_group.o2_group().irrep(1, 1)):
        with pytest.raises(
            ValueError,
            match="expected in_rep to be a representation of a finite group, got one of S?O",
        ):
            check_representation("in_rep", infinite)
    for wrong in (None, 3, "regular", rep.group, np.eye(2)):
        with pytest.raises(
            TypeError, match="expected cond_rep to be an escnn.group.Representation, got "
        ):
            check_representation("cond_rep", wrong)
