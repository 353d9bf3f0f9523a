"""Equivariant linear maps are all and only the equivariant ones: seen by loops over the group, by
characters, and by formulas written out slowly."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from escnn import group as escnn_group
from escnn.group import IrreducibleRepresentation, Representation, directsum
from torch.func import functional_call

from fastgen.models import (
    eLinear,
)
from fastgen.models.emaps import InvariantLift, ePositionTable
from fastgen.models.fourier import fourier_stack
from fastgen.models.parameters import INIT_SCHEMES
from fastgen.models.stacks import regular_stack
from support.exact import normal

GROUPS = ["C2", "C3", "C4", "C8", "D3", "D4", "D6", "Icosahedral"]
F64 = torch.float64
# every way in which a map is parametrised: kernels, lifted and lowered vectors, irrep blocks in two
# bases
PAIRS = [(2, 3), ("mixed", 2), (2, "mixed"), ("small", "mixed"), ("mixed", "small")]


def pair(represent, group, kinds, *, turned=True):
    """Representations of a map; copies of the regular one stay in their layout."""
    return [represent(group, kind, turned=turned and isinstance(kind, str)) for kind in kinds]


def span(layer: eLinear) -> torch.Tensor:
    """The dense matrices of all unit parameter vectors, one a row."""
    rows = []
    with torch.no_grad():
        for i in range(layer.weight.numel()):
            layer.weight.zero_().view(-1)[i] = 1
            rows.append(layer.dense()[0].flatten())
    return (
        torch.stack(rows)
        if rows
        else torch.zeros(0, layer.out_rep.size * layer.in_rep.size, dtype=F64)
    )


def average(W: torch.Tensor, rho_in: torch.Tensor, rho_out: torch.Tensor) -> torch.Tensor:
    """The mean over the group of rho_out(g)^T W rho_in(g), one element after the other."""
    total = torch.zeros_like(W)
    for a, b in zip(rho_in, rho_out, strict=True):
        total += b.T @ W @ a
    return total / len(rho_in)


# ---- Exactly the equivariant maps ----------------------------------------------------------------


@pytest.mark.parametrize("kinds", PAIRS, ids=str)
@pytest.mark.parametrize("group", GROUPS)
def test_parameters_of_a_linear_map_are_its_degrees_of_freedom(group, kinds, represent, count):
    source, target = pair(represent, group, kinds)
    layer = eLinear(source, target)
    assert layer.weight.numel() == count(source, target)
    assert layer.bias.numel() == count(target)
    assert eLinear(source, target, bias=False).bias is None


@pytest.mark.parametrize("kinds", PAIRS, ids=str)
@pytest.mark.parametrize("group", GROUPS)
def test_linear_maps_are_all_and_only_the_equivariant_ones(
    group, kinds, represent, matrices, shaken
):
    source, target = pair(represent, group, kinds)
    layer = shaken(eLinear(source, target).double())
    rho_in, rho_out = matrices(source), matrices(target)
    W, b = layer.dense()
    assert (average(W, rho_in, rho_out) - W).abs().max() < 1e-13  # only: averaging changes nothing
    assert (rho_out @ b - b).abs().max() < 1e-13
    matrices_of_units = span(layer)
    assert torch.linalg.matrix_rank(matrices_of_units) == len(
        matrices_of_units
    )  # no parameter is idle
    # all: whatever matrix is averaged over the group, there are parameters for the result
    averaged = average(normal(*W.shape, seed=5), rho_in, rho_out)
    numbers = torch.linalg.lstsq(matrices_of_units.T, averaged.flatten()[:, None]).solution
    assert (matrices_of_units.T @ numbers - averaged.flatten()[:, None]).abs().max() < 1e-12


@pytest.mark.parametrize("kinds", PAIRS, ids=str)
@pytest.mark.parametrize("group", ["C3", "D4"])
def test_forward_applies_the_dense_matrix(group, kinds, represent, shaken, worst_error):
    source, target = pair(represent, group, kinds)
    layer = shaken(eLinear(source, target).double())
    x = normal(2, 3, source.size)
    torch.testing.assert_close(layer(x), F.linear(x, *layer.dense()), rtol=0, atol=0)
    assert worst_error(layer, target, (x, source)) < 1e-14


@pytest.mark.parametrize("group", ["C4", "D3"])
def test_a_map_between_regular_copies_is_a_group_convolution(group, represent, shaken):
    source, target = represent(group, 2), represent(group, 3)
    layer = shaken(eLinear(source, target).double())
    elements, x = source.group.elements, normal(2 * len(source.group.elements))
    signal, y = x.view(2, -1), torch.zeros(3, len(elements), dtype=F64)
    for g, a in enumerate(elements):  # y[o, g] = b[o] + sum_i sum_h k[o, i, g^-1 h] x[i, h]
        y[:, g] = layer.bias.detach()
        for h, b in enumerate(elements):
            y[:, g] += layer.weight.detach()[:, :, elements.index(~a @ b)] @ signal[:, h]
    torch.testing.assert_close(layer(x), y.flatten(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("group", ["C3", "D4", "Icosahedral"])
def test_vectors_lifted_to_regular_copies_are_read_along_their_orbit(
    group, represent, matrices, shaken
):
    rep, stack = represent(group, "small", turned=True), represent(group, 2)
    layer, x = shaken(eLinear(rep, stack).double()), normal(rep.size)
    orbit = matrices(rep).mT @ x  # rho(g)^-1 x for every g
    expected = (layer.weight @ orbit.T + layer.bias[:, None]).flatten()
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-13)


def test_representations_without_a_common_irrep_leave_the_bias_alone(represent):
    group = represent("D4", 1).group
    layer = eLinear(group.irrep(1, 1), directsum([group.irrep(0, 0), group.irrep(1, 0)])).double()
    assert layer.weight.numel() == 0 and layer.bias.numel() == 1
    with torch.no_grad():
        layer.bias.fill_(2.0)
    torch.testing.assert_close(
        layer(normal(3, 2)), torch.tensor([2.0, 0.0], dtype=F64).expand(3, 2)
    )
    assert eLinear(group.irrep(1, 0), group.irrep(1, 1)).bias is None  # nothing is invariant there


def test_the_type_of_an_irrep_is_the_number_of_its_parameters(represent):
    """Endomorphisms of a real irrep are its multiples, of a complex one rotations and scales, of a
    quaternionic one the quaternions: 1, 2 and 4 numbers."""
    for name, irrep_id, expected in (("D3", (1, 1), 1), ("C3", (1,), 2), ("Icosahedral", (2,), 1)):
        irrep = represent(name, 1).group.irrep(*irrep_id)
        assert eLinear(irrep, irrep, bias=False).weight.numel() == expected


class Quaternions:
    """The group {1, i, j, k} and their opposites, the smallest with an irrep of quaternionic type;
    escnn has none."""

    name, continuous = "Q8", False

    def __init__(self) -> None:
        self.representations = {}
        units = [sign * np.eye(4)[axis] for sign in (1.0, -1.0) for axis in range(4)]
        self.elements = [SimpleNamespace(group=self, q=q) for q in units]
        self.identity, self.generators = self.elements[0], self.elements[1:3]
        signs = [(f"sign_{axis}", lambda e, axis=axis: self._sign(e, axis)) for axis in range(4)]
        self._irreps = [
            IrreducibleRepresentation(
                self, (n,), name, f, 1, "R", [], character=lambda e, f=f: f(e).item()
            )
            for n, (name, f) in enumerate(signs)
        ]
        self._irreps.append(IrreducibleRepresentation(self, (4,), "left", self.left, 4, "H", []))
        # the functions g -> psi(g)[i, 0] of an irrep move among each other under f -> f(a^-1 .), by
        # psi(a)
        columns = [[irrep(e)[:, 0] for e in self.elements] for irrep in self._irreps]
        basis = np.concatenate(
            [np.stack(c) / np.linalg.norm(np.stack(c)[:, 0]) for c in columns], axis=1
        )
        self.trivial_representation = self._irreps[0]
        self.regular_representation = Representation(
            self, "regular", [irrep.id for irrep in self._irreps], basis
        )

    @staticmethod
    def _sign(element, axis: int) -> np.ndarray:
        """1 everywhere for axis 0, else 1 on the real numbers and on that axis, -1 on the two
        others."""
        return np.array([[1.0 if axis == 0 or np.abs(element.q[[0, axis]]).any() else -1.0]])

    @staticmethod
    def left(element) -> np.ndarray:
        """Multiplication by a quaternion from the left; the right multiplications commute with
        it."""
        a, b, c, d = element.q
        return np.array([[a, -b, -c, -d], [b, a, -d, c], [c, d, a, -b], [d, -c, b, a]])

    def order(self) -> int:
        return len(self.elements)

    def irreps(self):
        return self._irreps

    def irrep(self, n: int):
        return self._irreps[n]


@pytest.mark.parametrize("kinds", [(2, 2), ("small", 2), (2, "small"), ("small", "small")], ids=str)
def test_quaternionic_irreps_have_their_four_endomorphisms(kinds, matrices, count, shaken):
    group = Quaternions()
    small = Representation(
        group, "small", [(4,), (0,), (4,), (2,)], torch.linalg.qr(normal(10, 10)).Q.numpy()
    )
    regular = directsum([group.regular_representation] * 2)
    source, target = (small if kind == "small" else regular for kind in kinds)
    layer = shaken(eLinear(source, target).double())
    assert layer.weight.numel() == count(source, target)
    assert eLinear(group.irrep(4), group.irrep(4)).weight.numel() == 4
    W, _ = layer.dense()
    assert (average(W, matrices(source), matrices(target)) - W).abs().max() < 1e-13
    units = span(layer)
    assert torch.linalg.matrix_rank(units) == len(units)


def test_quaternionic_irreps_have_one_row_of_four_components(count, shaken):
    group = Quaternions()
    source, target = fourier_stack(group, 2), fourier_stack(group, 3)
    assert source.blocks == ((0, 4, 1, 1), (4, 1, 1, 4))
    layer, regular = (
        shaken(eLinear(source, target).double()),
        eLinear(regular_stack(group, 2), regular_stack(group, 3)),
    )
    regular.double().load_state_dict(layer.state_dict())
    assert layer.weight.numel() == count(source, target)
    turn_in, turn_out = (
        torch.from_numpy(rep.change_of_basis @ regular_stack(group, rep.copies).change_of_basis_inv)
        for rep in (source, target)
    )
    x = normal(5, 16)
    torch.testing.assert_close(layer(x @ turn_in.T), regular(x) @ turn_out.T, rtol=0, atol=1e-12)


# ---- Gradients, initialisation, dtypes and devices -----------------------------------------------


@pytest.mark.parametrize("kinds", PAIRS, ids=str)
@pytest.mark.parametrize("group", ["C3", "D3"])
def test_gradients_are_finite_differences(group, kinds, represent, shaken):
    source, target = pair(represent, group, kinds)
    layer = shaken(eLinear(source, target).double())
    names, values = zip(
        *((name, p.detach().clone().requires_grad_()) for name, p in layer.named_parameters()),
        strict=True,
    )
    x = normal(2, source.size).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, *p: functional_call(layer, dict(zip(names, p, strict=True)), (x,)),
        (x, *values),
        fast_mode=True,
    )


def test_the_dense_matrix_follows_every_update(represent):
    layer = eLinear(represent("D4", "mixed"), represent("D4", 2))
    x = torch.ones(1, layer.in_rep.size)
    before = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    torch.testing.assert_close(layer(x), 2 * before)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", INIT_SCHEMES)
@pytest.mark.parametrize(
    ("group", "source", "target"),
    [
        ("D4", ["regular"] * 16, ["regular"] * 24),
        ("D4", [(1, 1)] * 8, ["regular"] * 128),
        ("D4", ["regular"] * 128, [(1, 1)] * 8),
        ("D4", [(1, 1)] * 48, [(1, 1)] * 64),
        ("C3", [(1,)] * 32, [(1,)] * 48),
    ],
    ids=["kernel", "lift", "lower", "real blocks", "complex blocks"],
)
def test_expanded_matrices_have_the_variance_of_a_dense_map(
    scheme, group, source, target, represent
):
    group = represent(group, 1).group

    def rep(parts):
        return directsum(
            [group.regular_representation if p == "regular" else group.irrep(*p) for p in parts]
        )

    layer = eLinear(rep(source), rep(target))
    torch.manual_seed(0)
    layer.reset_parameters(scheme)
    fan_in, fan_out = layer.in_rep.size, layer.out_rep.size
    variance = 2 / fan_in if scheme.startswith("kaiming") else 2 / (fan_in + fan_out)
    deviations = 6 * math.sqrt(2 / layer.weight.numel())
    assert layer.dense()[0].square().mean().item() == pytest.approx(variance, rel=deviations)
    assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize("kinds", PAIRS, ids=str)
def test_kaiming_rows_have_squared_norm_two_whatever_the_blocks(kinds, represent):
    """A dense map draws fan_in numbers of variance 2 / fan_in for every output."""
    source, target = pair(represent, "D4", kinds)
    torch.manual_seed(0)
    layer, rows = eLinear(source, target), []
    for _ in range(400):
        layer.reset_parameters("kaiming_normal")
        rows.append(layer.dense()[0].detach().square().sum(1))
    # A row has at least 2 numbers of its own, so 400 draws know its norm to within 6 sqrt(2 / 800).
    assert torch.stack(rows).mean(0).sub(2).abs().max() < 2 * 6 * math.sqrt(2 / 800)


def test_reset_of_an_unknown_scheme_is_refused(represent):
    with pytest.raises(
        ValueError, match="unknown scheme 'orthogonal', expected one of: xavier_uniform"
    ):
        eLinear(represent("D4", 1), represent("D4", 1)).reset_parameters("orthogonal")


@pytest.mark.parametrize("kinds", PAIRS, ids=str)
def test_a_change_of_dtype_costs_the_constants_no_digit(kinds, represent):
    source, target = pair(represent, "C3", kinds)
    layer = eLinear(source, target)  # parameters of float32, exact in float64
    straight, around = copy.deepcopy(layer).double(), copy.deepcopy(layer).double().float().double()
    assert torch.equal(around.dense()[0], straight.dense()[0])
    rho_in, rho_out = (
        torch.stack([torch.as_tensor(rep(g)) for g in rep.group.elements])
        for rep in (source, target)
    )
    assert (average(straight.dense()[0], rho_in, rho_out) - straight.dense()[0]).abs().max() < 1e-13
    half = copy.deepcopy(layer).bfloat16()
    assert (
        half.dense()[0].dtype == torch.bfloat16 == half(torch.ones(1, source.size).bfloat16()).dtype
    )
    assert all(b.dtype == torch.float32 for b in half.buffers())


def test_a_map_built_on_no_device_is_a_map_once_it_has_one(represent, matrices):
    in_rep = represent("D4", "mixed", turned=True)
    out_rep = represent("D4", 2)
    with torch.device("meta"):
        layer = eLinear(in_rep, out_rep)
    assert all(p.is_meta for p in layer.parameters())
    layer = layer.to_empty(device="cpu").double()
    layer.reset_parameters()
    W, _ = layer.dense()
    assert (average(W, matrices(layer.in_rep), matrices(layer.out_rep)) - W).abs().max() < 1e-13


def test_a_table_made_in_inference_mode_can_be_trained_with_later():
    group = escnn_group.dihedral_group(5)
    stack = group.regular_representation
    with torch.inference_mode():
        eLinear(stack, stack)
    layer = eLinear(stack, stack)
    layer(torch.ones(1, 10)).sum().backward()
    assert layer.weight.grad is not None


# ---- Invariant subspace --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [2, "mixed", "small"])
@pytest.mark.parametrize("group", GROUPS)
def test_positions_and_lifts_stay_in_the_invariant_subspace(
    group, kind, represent, matrices, count, shaken
):
    rep = represent(group, kind, turned=isinstance(kind, str))
    table, lift = ePositionTable(5, rep).double(), shaken(InvariantLift(3, rep).double())
    assert table.weight.numel() == 5 * count(rep)
    assert lift.weight.numel() + lift.bias.numel() == 4 * count(rep)
    for y in (table(4), lift(normal(4, 3))):
        assert y.shape == (4, rep.size)
        assert (torch.einsum("gde,te->gtd", matrices(rep), y) - y).abs().max() < 1e-13
    x = normal(4, 3)
    torch.testing.assert_close(lift(x), F.linear(x, *lift.dense()), rtol=0, atol=1e-13)
    assert torch.linalg.matrix_rank(lift.dense()[0]) == min(3, count(rep))
    torch.testing.assert_close(table(2), table(5)[:2], rtol=0, atol=1e-15)
