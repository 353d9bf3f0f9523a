"""Equivariant layers against slow twins: loops over the group, characters, and the dense layers
they stand for."""

from __future__ import annotations

import copy
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from escnn import group as escnn_group
from escnn.group import IrreducibleRepresentation, Representation, directsum
from torch import nn
from torch.func import functional_call

from fastgen.models import (
    MLP,
    MultiheadAttention,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
    eLayerNorm,
    eLinear,
    eMLP,
    eMultiheadAttention,
    eRMSNorm,
    eTransformerDecoderLayer,
    eTransformerEncoderLayer,
)
from fastgen.models.edropout import eDropout
from fastgen.models.emaps import InvariantLift, ePositionTable
from fastgen.models.fourier import fourier_stack
from fastgen.models.maps import LinearMap
from fastgen.models.norms import NORM_EPS
from fastgen.models.parameters import INIT_SCHEMES, reset_parameters_
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


# ---- Linear maps: exactly the equivariant ones ---------------------------------------------------


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


# ---- Linear maps: gradients, initialisation, types -----------------------------------------------


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
    with torch.device("meta"):
        layer = eLinear(represent("D4", "mixed", turned=True), represent("D4", 2))
    assert all(p.is_meta for p in layer.parameters())
    layer = layer.to_empty(device="cpu").double()
    layer.reset_parameters()
    W, _ = layer.dense()
    assert (average(W, matrices(layer.in_rep), matrices(layer.out_rep)) - W).abs().max() < 1e-13


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


# ---- Norms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [eRMSNorm, eLayerNorm])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("group", GROUPS)
def test_norms_commute_with_the_group(group, affine, norm, represent, shaken, worst_error):
    for kind, turned in ((3, False), ("mixed", False), ("mixed", True)):
        rep = represent(group, kind, turned=turned)
        layer = shaken(norm(rep, affine=affine).double(), 0.5)
        assert worst_error(layer, rep, (normal(2, 3, rep.size), rep)) < 1e-13


@pytest.mark.parametrize("group", GROUPS)
def test_norms_have_a_scale_a_copy_or_irrep_and_a_shift_an_invariant(group, represent, count):
    stack, rep = represent(group, 3), represent(group, "mixed", turned=True)
    assert eRMSNorm(stack).weight.numel() == eLayerNorm(stack).weight.numel() == count(stack) == 3
    assert eLayerNorm(stack).bias.numel() == 3 and eLayerNorm(rep).bias.numel() == count(rep)
    irreps = sum(count(rep, irrep) / count(irrep, irrep) for irrep in rep.group.irreps())
    assert eRMSNorm(rep).weight.numel() == eLayerNorm(rep).weight.numel() == irreps
    assert eRMSNorm(rep).bias is None
    assert not list(eRMSNorm(rep, affine=False).parameters()) and not list(
        eLayerNorm(rep, affine=False).parameters()
    )


@pytest.mark.parametrize(("norm", "plain"), [(eRMSNorm, nn.RMSNorm), (eLayerNorm, nn.LayerNorm)])
def test_on_regular_copies_a_norm_is_the_plain_one_with_a_number_a_copy(
    norm, plain, represent, shaken
):
    layer = shaken(norm(represent("D3", 4)).double(), 0.5)
    twin = plain(24, eps=NORM_EPS).double()
    twin.load_state_dict({name: p.repeat_interleave(6) for name, p in layer.named_parameters()})
    x = normal(5, 24)
    torch.testing.assert_close(layer(x), twin(x), rtol=0, atol=1e-13)


def test_a_norm_scales_every_irrep_by_its_number(represent, shaken):
    rep = represent("D4", "mixed", turned=True)
    layer, x = shaken(eRMSNorm(rep).double(), 0.5), normal(5, rep.size)
    scale, _ = layer.affine()
    expected = x / (x.square().mean(-1, keepdim=True) + NORM_EPS).sqrt() @ scale
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-13)
    # S is symmetric with the eigenvalues w_i, each as often as its irrep is wide; equal irreps
    # stand side by side.
    assert (scale - scale.T).abs().max() < 1e-14
    irreps = [i for kind in dict.fromkeys(rep.irreps) for i in rep.irreps if i == kind]
    sizes = torch.tensor([rep.group.irrep(*i).size for i in irreps])
    expected = layer.weight.detach().repeat_interleave(sizes).sort().values
    torch.testing.assert_close(torch.linalg.eigvalsh(scale.detach()), expected, rtol=0, atol=1e-12)


def test_layer_norm_centres_the_invariant_coordinates_and_no_others(represent, matrices):
    rep = represent("D4", "mixed", turned=True)
    layer, x = eLayerNorm(rep, affine=False).double(), 5 + 2 * normal(4, rep.size)
    y, projector = layer(x), matrices(rep).mean(0)
    assert (y @ layer.invariants).mean(-1).abs().max() < 1e-12
    torch.testing.assert_close(y.square().mean(-1), torch.ones(4, dtype=F64), rtol=1e-5, atol=0)
    # What is not invariant is scaled only, by a number a token.
    moving_y, moving_x = y - y @ projector, x - x @ projector
    ratio = (moving_y * moving_x).sum(-1, keepdim=True) / moving_x.square().sum(-1, keepdim=True)
    torch.testing.assert_close(moving_y, ratio * moving_x, rtol=0, atol=1e-12)


# ---- Dropout -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "parts"), [(4, 4), ("mixed", 1)])
def test_dropout_removes_whole_copies_and_keeps_the_mean(kind, parts, represent):
    rep = represent("D3", kind, turned=kind == "mixed")
    layer, x = eDropout(rep, 0.25).double(), torch.ones(2000, rep.size, dtype=F64)
    torch.manual_seed(0)
    kept = layer(x).view(-1, parts, rep.size // parts)
    assert (kept == kept[..., :1]).all()  # a copy goes or stays as a whole
    assert ((kept == 0) | ((kept - 1 / 0.75).abs() < 1e-12)).all()
    share = (kept[..., 0] > 0).double().mean().item()
    assert abs(share - 0.75) < 6 * math.sqrt(0.75 * 0.25 / (2000 * parts))
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("kind", [4, "mixed"])
def test_a_mask_commutes_with_the_group(kind, represent, matrices):
    rep = represent("D4", kind, turned=kind == "mixed")
    layer, x = eDropout(rep, 0.5).double(), normal(3, 5, rep.size)
    for rho in matrices(rep):
        torch.manual_seed(1)
        y = layer(x)
        torch.manual_seed(1)
        torch.testing.assert_close(layer(x @ rho.T), y @ rho.T, rtol=0, atol=1e-13)


# ---- Attention, MLP, transformer layers ----------------------------------------------------------


def dense_twin(layer: nn.Module, twin: nn.Module) -> nn.Module:
    """The plain layer with the expanded numbers of an equivariant one; submodules are named
    alike."""
    state = {}
    for name, module in layer.named_modules():
        if isinstance(module, LinearMap):
            weight, bias = module.dense()
        elif isinstance(module, eRMSNorm):
            weight, bias = module.affine()
        else:
            continue
        state |= {
            f"{name}.{key}": v for key, v in (("weight", weight), ("bias", bias)) if v is not None
        }
    twin.double().load_state_dict(state)
    return twin


LAYERS = {
    "mlp": (lambda rep: eMLP(rep), lambda d: MLP(d), 1),
    "attention": (lambda rep: eMultiheadAttention(rep, 2), lambda d: MultiheadAttention(d, 2), 1),
    "cross-attention": (
        lambda rep: eMultiheadAttention(rep, 2),
        lambda d: MultiheadAttention(d, 2),
        2,
    ),
    "encoder": (
        lambda rep: eTransformerEncoderLayer(rep, 2),
        lambda d: TransformerEncoderLayer(d, 2),
        1,
    ),
    "decoder": (
        lambda rep: eTransformerDecoderLayer(rep, 2),
        lambda d: TransformerDecoderLayer(d, 2),
        2,
    ),
    "layernorm decoder": (
        lambda rep: eTransformerDecoderLayer(rep, 2, norm_module="layernorm"),
        lambda d: TransformerDecoderLayer(d, 2, norm_module="layernorm"),
        2,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("group", ["C2", "C3", "D4"])
def test_layers_commute_with_the_group_and_equal_their_dense_twins(
    group, name, represent, shaken, worst_error
):
    build, plain, inputs = LAYERS[name]
    rep = represent(group, 4)
    layer = shaken(build(rep).double())
    tokens = [normal(2, 3 + i, rep.size, seed=i) for i in range(inputs)]
    assert worst_error(layer, rep, *((x, rep) for x in tokens)) < 1e-13
    assert layer.in_rep.size == layer.out_rep.size == rep.size
    twin = dense_twin(layer, plain(rep.size))
    torch.testing.assert_close(layer(*tokens), twin(*tokens), rtol=0, atol=1e-12)


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_layer_with_time_commutes_and_equals_its_dense_twin(
    is_causal, represent, shaken, worst_error
):
    rep, time = represent("D4", 4), normal(1, 6, seed=9)
    layer = shaken(eTransformerDecoderLayer(rep, 2, time_dim=6).double(), 0.2)
    x, memory = normal(2, 3, rep.size), normal(2, 4, rep.size, seed=1)
    options = {"is_causal": is_causal}
    assert (
        worst_error(
            lambda x, m: layer(x, m, time.expand(len(x), -1), **options),
            rep,
            (x, rep),
            (memory, rep),
        )
        < 1e-13
    )
    twin, time = (
        dense_twin(layer, TransformerDecoderLayer(rep.size, 2, time_dim=6)),
        normal(2, 6, seed=9),
    )
    torch.testing.assert_close(
        layer(x, memory, time, **options), twin(x, memory, time, **options), rtol=0, atol=1e-12
    )
    # The modulation is invariant: one number a copy.
    parts = layer.modulation(time).view(2, 9, 4, 8)
    assert (parts == parts[..., :1]).all()


@pytest.mark.parametrize("heads", [1, 2])
def test_layers_work_on_any_representation_whose_heads_are_invariant(
    heads, represent, shaken, worst_error
):
    small = represent("D4", "small", turned=True)
    rep = directsum([small] * 2)  # one copy a head
    x, memory = normal(2, 3, rep.size), normal(2, 4, rep.size, seed=1)
    for layer, tokens in (
        (eMultiheadAttention(rep, heads), (x,)),
        (eTransformerEncoderLayer(rep, heads), (x,)),
        (eTransformerDecoderLayer(rep, heads, norm_module="layernorm"), (x, memory)),
        (eMLP(rep, represent("D4", "mixed")), (x,)),
    ):
        shaken(layer.double())
        assert worst_error(layer, layer.out_rep, *((token, rep) for token in tokens)) < 1e-13


def test_the_hidden_space_of_an_mlp_is_regular_and_four_times_as_wide(represent):
    rep = represent(
        "D4", "small"
    )  # 5 dimensions: 24 hidden ones are the first multiple of 8 from 20 on
    mlp = eMLP(rep)
    assert mlp.up.out_rep.size == 24 and mlp.in_rep is rep and mlp.out_rep is rep
    assert eMLP(rep, hidden_rep=represent("D4", 2)).up.out_rep.size == 16
    assert eMLP(represent("D4", 2)).up.out_rep.size == 64


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (lambda rep, p: eMLP(rep, dropout=p), 1),
        (lambda rep, p: eMultiheadAttention(rep, 2, dropout=p), 1),
        (lambda rep, p: eTransformerEncoderLayer(rep, 2, dropout=p), 1),
        (lambda rep, p: eTransformerDecoderLayer(rep, 2, dropout=p, norm_module="layernorm"), 2),
    ],
    ids=["mlp", "attention", "encoder", "decoder"],
)
def test_dropout_of_a_layer_commutes_in_training_and_is_off_in_eval(
    build, inputs, represent, matrices
):
    rep = represent("D3", 4)
    layer, dry = build(rep, 0.4).double(), build(rep, 0.0).double()
    dry.load_state_dict(layer.state_dict())
    tokens = [normal(2, 3 + i, rep.size, seed=i) for i in range(inputs)]
    torch.manual_seed(7)
    reference = layer(*tokens)
    assert not torch.equal(reference, dry(*tokens))
    for rho in matrices(rep):
        torch.manual_seed(7)
        torch.testing.assert_close(
            layer(*(x @ rho.T for x in tokens)), reference @ rho.T, rtol=0, atol=1e-12
        )
    assert torch.equal(layer.eval()(*tokens), dry(*tokens))


def test_reset_of_a_layer_gives_every_third_of_the_fused_map_its_own_variance(represent):
    layer = eMultiheadAttention(represent("D4", 16), 2)
    torch.manual_seed(0)
    reset_parameters_(layer, "xavier_normal")
    variance = 2 / (2 * 128)
    assert layer.qkv.dense()[0].square().mean().item() == pytest.approx(
        variance, rel=6 * math.sqrt(2 / 6144)
    )
    assert layer.out.dense()[0].square().mean().item() == pytest.approx(
        variance, rel=6 * math.sqrt(2 / 2048)
    )


# ---- Copies and files ----------------------------------------------------------------------------


def every_kind(represent) -> nn.ModuleDict:
    mixed, stack = represent("D4", "mixed", turned=True), represent("D4", 2)
    return nn.ModuleDict(
        {
            "blocks": eLinear(mixed, mixed),
            "lift": eLinear(mixed, stack),
            "lower": eLinear(stack, mixed),
            "kernel": eLinear(stack, stack),
            "rms": eRMSNorm(mixed),
            "layer": eLayerNorm(mixed),
            "dropout": eDropout(mixed, 0.1),
            "positions": ePositionTable(4, mixed),
            "mlp": eMLP(mixed, stack),
            "decoder": eTransformerDecoderLayer(stack, 2, time_dim=4),
        }
    )


def test_a_copy_has_its_own_numbers_and_the_same_representations(represent, shaken):
    modules = shaken(every_kind(represent).double())
    clones = copy.deepcopy(modules)
    for (name, a), b in zip(modules.named_modules(), clones.modules(), strict=True):
        for attribute in ("in_rep", "out_rep"):
            assert getattr(a, attribute, None) is getattr(b, attribute, None), name
    for (name, p), q in zip(modules.named_parameters(), clones.parameters(), strict=True):
        assert torch.equal(p, q) and p.data_ptr() != q.data_ptr(), name
    before = clones["kernel"].dense()[0]
    with torch.no_grad():
        modules["kernel"].weight.zero_()
    assert torch.equal(clones["kernel"].dense()[0], before)


def test_a_pickled_layer_is_the_same_function(represent, shaken):
    modules = shaken(every_kind(represent)).eval()
    again = pickle.loads(pickle.dumps(modules))
    for name in ("blocks", "lift", "rms", "layer", "dropout", "mlp"):
        x = torch.randn(3, modules[name].in_rep.size, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(again[name](x), modules[name](x), rtol=0, atol=0)
        before, after = modules[name].in_rep, again[name].in_rep
        assert all(np.abs(after(g) - before(g)).max() < 1e-14 for g in before.group.elements)
    torch.testing.assert_close(
        again.double()["blocks"].dense()[0], modules.double()["blocks"].dense()[0], rtol=0, atol=0
    )


def test_the_state_of_a_layer_is_its_parameters(represent):
    modules = every_kind(represent)
    assert set(modules.state_dict()) == {name for name, _ in modules.named_parameters()}


def test_a_layer_prints_the_map_that_it_is(represent):
    layer = eLinear(represent("D4", "small"), represent("D4", 2))
    assert f"{layer.in_rep} -> {layer.out_rep}" in repr(layer)


# ---- Errors --------------------------------------------------------------------------------------


def sheared():
    return escnn_group.change_basis(
        escnn_group.dihedral_group(4).irrep(1, 1), np.array([[1.0, 1], [0, 1]]), "sheared"
    )


D4, C4 = escnn_group.dihedral_group(4), escnn_group.cyclic_group(4)
REGULAR = directsum([D4.regular_representation] * 4)
MIXED_HEADS = directsum([D4.irrep(1, 1), D4.irrep(0, 0)])


@pytest.mark.parametrize(
    ("act", "kind", "words"),
    [
        (
            lambda: eLinear(REGULAR, C4.regular_representation),
            ValueError,
            "in_rep and out_rep of one group, got D4 and C4",
        ),
        (
            lambda: eLinear(sheared(), REGULAR),
            ValueError,
            "expected in_rep to be an orthogonal representation",
        ),
        (
            lambda: eLinear(REGULAR, sheared()),
            ValueError,
            "expected out_rep to be an orthogonal representation",
        ),
        (
            lambda: eLinear(REGULAR, escnn_group.so2_group().irrep(1)),
            ValueError,
            "expected out_rep .* finite group",
        ),
        (
            lambda: eLinear(8, REGULAR),
            TypeError,
            "expected in_rep to be an escnn.group.Representation, got int",
        ),
        (lambda: eRMSNorm(3), TypeError, "expected in_rep to be an escnn.group.Representation"),
        (lambda: eMLP(8), TypeError, "expected in_rep to be an escnn.group.Representation"),
        (
            lambda: eMLP(REGULAR, hidden_rep=MIXED_HEADS),
            ValueError,
            "hidden_rep to be copies of the regular",
        ),
        (lambda: eMLP(REGULAR, dropout=1.5), ValueError, "dropout to be a probability"),
        (
            lambda: eMultiheadAttention(REGULAR, 3),
            ValueError,
            r"num_heads to divide the number of regular copies, 32 / \|G\| = 32 / 8 = 4, got 3",
        ),
        (lambda: eMultiheadAttention(REGULAR, 0), ValueError, "num_heads to be an int >= 1, got 0"),
        (
            lambda: eMultiheadAttention(MIXED_HEADS, 2),
            ValueError,
            "num_heads to split in_rep into invariant parts",
        ),
        (
            lambda: eMultiheadAttention(MIXED_HEADS, 3),
            ValueError,
            "num_heads to split in_rep into invariant parts",
        ),
        (
            lambda: eTransformerEncoderLayer(REGULAR, 2, dropout=-1),
            ValueError,
            "dropout to be a probability",
        ),
        (
            lambda: eTransformerEncoderLayer(REGULAR, 2, norm_module="x"),
            ValueError,
            "unknown norm_module 'x'",
        ),
        (
            lambda: eTransformerDecoderLayer(MIXED_HEADS, 1, time_dim=4),
            ValueError,
            "in_rep to be copies of the regular representation when time_dim > 0",
        ),
    ],
)
def test_user_errors(act, kind, words):
    with pytest.raises(kind, match=words):
        act()


def test_a_table_made_in_inference_mode_can_be_trained_with_later():
    group = escnn_group.dihedral_group(5)
    stack = group.regular_representation
    with torch.inference_mode():
        eLinear(stack, stack)
    layer = eLinear(stack, stack)
    layer(torch.ones(1, 10)).sum().backward()
    assert layer.weight.grad is not None


def test_each_third_of_a_fused_map_of_irreps_has_its_own_variance():
    rep = directsum([escnn_group.dihedral_group(4).irrep(1, 1)] * 32)
    layer = eMultiheadAttention(rep, 2)
    torch.manual_seed(0)
    reset_parameters_(layer, "xavier_normal")
    deviations = 6 * math.sqrt(2 / layer.qkv.weight.numel())
    assert layer.qkv.dense()[0].square().mean().item() == pytest.approx(
        2 / (64 + 64), rel=deviations
    )


@pytest.mark.parametrize(
    "build",
    [
        lambda: TransformerDecoderLayer(8, 2, time_dim=6),
        lambda: eTransformerDecoderLayer(
            directsum([escnn_group.dihedral_group(4).regular_representation] * 2), 2, time_dim=6
        ),
    ],
)
def test_modulation_starts_at_one_zero_and_one(build):
    layer = build()
    scale, shift, gate = layer.modulation(torch.randn(4, 6)).unflatten(-1, (3, 3, -1)).unbind(2)
    assert (scale == 1).all() and (shift == 0).all() and (gate == 1).all()


@pytest.mark.parametrize("norm", [eRMSNorm, eLayerNorm])
def test_a_norm_of_irreps_can_be_built_on_no_device(norm):
    rep = directsum(
        [escnn_group.dihedral_group(4).irrep(1, 1), escnn_group.dihedral_group(4).irrep(0, 0)]
    )
    with torch.device("meta"):
        layer = norm(rep)
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert torch.equal(layer(torch.ones(2, 3)), norm(rep)(torch.ones(2, 3)))
