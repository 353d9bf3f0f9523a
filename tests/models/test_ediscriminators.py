"""No element of the group changes a logit; equivariant Fourier features are the plain ones read
along the orbit."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.discriminators import block_features, heads_for
from fastgen.losses import gan_gen_loss
from fastgen.models import (
    CondTransformerRegressor,
    InvariantHeads,
    eCondTransformerRegressor,
    eFourierDiscriminator,
    fold,
    parse_group,
    parse_representation,
)
from fastgen.models.discriminators import FourierFeatures, TokenHeads
from fastgen.models.ediscriminators import eFourierFeatures
from fastgen.models.fourier import fourier_stack
from fastgen.models.stacks import regular_stack
from support.exact import normal
from support.rounding import MULTIPLE, sway

GROUPS = ["C4", "D4", "D8", "C2xC2", "D3xC2", "Icosahedral"]
EXACT = 1e-12
DTYPES = [pytest.param(torch.float32, marks=pytest.mark.kernels), torch.float64]


def plane_of(name: str):
    """A small faithful representation: of the plane, of space, or of two signs."""
    if name == "C2xC2":
        return parse_representation(
            parse_group(name), ["irrep:((0,),(1,),0)", "irrep:((1,),(0,),0)"]
        )
    if name == "D3xC2":
        return parse_representation(
            parse_group(name), ["irrep:((1,1),(0,),0)", "irrep:((0,0),(1,),0)"]
        )
    return parse_representation(parse_group(name), ["standard"])


@pytest.fixture
def invariance(matrices):
    """The largest |D(g x | g z) - D(x | z)| over all g, as a share of |D(x | z)|."""

    @torch.no_grad()
    def measure(d, *inputs) -> float:
        def moved(g: int) -> list[Tensor]:
            return [(x.double() @ matrices(rep)[g].T).to(x.dtype) for x, rep in inputs]

        logits = d(*(x for x, _ in inputs))
        assert logits.abs().min() > 0
        order = inputs[0][1].group.order()
        errors = [(d(*moved(g)) - logits).norm() for g in range(order)]
        return float(max(errors) / logits.norm())

    return measure


def allowed(dtype: torch.dtype, run, network: nn.Module, *inputs: Tensor) -> float:
    """The error of `invariance` that is rounding in this dtype."""
    return EXACT if dtype == torch.float64 else MULTIPLE * sway(run, network, *inputs)


# ---- Heads ---------------------------------------------------------------------------------------


def stacks(name: str) -> list:
    """Regular copies in both layouts, and a representation that is neither."""
    group = parse_group(name)
    return [regular_stack(group, 2), fourier_stack(group, 3), plane_of(name)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", GROUPS)
def test_heads_are_invariant_under_every_element(name, dtype, shaken, invariance):
    reps = stacks(name)
    torch.manual_seed(0)
    heads = shaken(InvariantHeads(reps, width=4)).to(dtype)
    t = torch.linspace(0.1, 0.9, 3, dtype=torch.float64)
    features = [normal(3, 2, rep.size, seed=i).to(dtype) for i, rep in enumerate(reps)]

    def logits(*tokens: Tensor) -> Tensor:
        return heads(tokens, t)

    error = invariance(logits, *zip(features, reps, strict=True))
    assert error < allowed(dtype, logits, heads, *features)
    assert heads(features, t).shape == (3, 3)
    assert [rep.size for rep in heads.in_reps] == [rep.size for rep in reps]


@pytest.mark.parametrize("name", ["D4", "D3xC2"])
def test_heads_are_their_formula_element_by_element(name, shaken, matrices):
    """The lift read along the orbit: y[c, g] = w_c . rho(g)^-1 n + b_c with n the normed token, one
    g after another."""
    rep = plane_of(name)
    heads = shaken(InvariantHeads([rep], width=5).double())
    (head,), t, x = heads.heads, torch.rand(3, dtype=torch.float64), normal(3, 4, rep.size)
    mask = torch.arange(4)[None] < torch.tensor([4, 1, 2])[:, None]
    logits = heads([x.masked_fill(~mask[..., None], float("nan"))], t, mask=mask)
    time, total = head.time(heads.time_emb(t)), torch.zeros(3, 5, dtype=torch.float64)
    for b, i in mask.nonzero().tolist():
        n = head.norm(x[b, i])
        for rho in matrices(rep):
            y = head.lift.weight @ (rho.T @ n) + head.lift.bias + time[b]
            total[b] += F.silu(y) / len(matrices(rep)) / mask[b].sum()
    torch.testing.assert_close(logits, head.out(F.silu(head.hidden(total))), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["C4", "D4", "Icosahedral"])
def test_both_bases_give_the_same_logit(name, shaken):
    group = parse_group(name)
    regular = shaken(InvariantHeads([regular_stack(group, 2)], width=3)).double()
    irreps = InvariantHeads([fourier_stack(group, 2)], width=3).double()
    irreps.load_state_dict(regular.state_dict())
    basis = torch.from_numpy(fourier_stack(group, 2)._basis)
    x, t = normal(3, 2, 2 * group.order()), torch.rand(3)
    torch.testing.assert_close(irreps([x @ basis.T], t), regular([x], t), rtol=1e-11, atol=1e-12)


def test_heads_see_more_than_the_trivial_irrep(shaken):
    """Two features with the same mean over the group: a mean without a nonlinearity would not tell
    them."""
    group = parse_group("D4")
    heads = shaken(InvariantHeads([regular_stack(group, 1)], width=4)).double()
    a, t = normal(1, 8), torch.tensor([0.5])
    b = a[:, [1, 0, 2, 3, 4, 5, 6, 7]]  # no element of the group moves it so
    assert (heads([a], t) - heads([b], t)).abs().item() > 1e-4


def test_heads_refuse_what_does_not_fit():
    rep = plane_of("D4")
    heads, t = InvariantHeads([rep, rep], width=2), torch.rand(4)
    with pytest.raises(ValueError, match="expected a list of 2 features, one a head, got 1"):
        heads([torch.ones(4, 2)], t)
    with pytest.raises(ValueError, match=r"expected feature 1 of shape \(4, 2\), .* got \(4, 3\)"):
        heads([torch.ones(4, 2), torch.ones(4, 3)], t)
    with pytest.raises(ValueError, match="expected reps to be a non-empty sequence"):
        InvariantHeads([])
    with pytest.raises(ValueError, match="expected width to be an int >= 1"):
        InvariantHeads([rep], width=0)
    with pytest.raises(
        TypeError, match="expected in_rep to be an escnn.group.Representation, got int"
    ):
        InvariantHeads([8])


# ---- Heads for a network -------------------------------------------------------------------------


@pytest.mark.parametrize("basis", ["regular", "irrep"])
def test_heads_for_an_equivariant_network_are_invariant_with_it(basis, shaken, invariance):
    rep = plane_of("D4")
    torch.manual_seed(0)
    network = eCondTransformerRegressor(rep, rep, None, 4, 1, 2, 2, 32, 0.0, 0.0, basis=basis)
    network, t = shaken(network).double(), torch.rand(3, dtype=torch.float64)
    x, z = normal(3, 4, 2), normal(3, 1, 2, seed=1)
    for blocks in (None, ["decoder.0.mlp", "head"]):
        heads = heads_for(network, x, t, z, blocks=blocks, width=4)
        assert type(heads) is InvariantHeads
        features = block_features(network, blocks)
        shaken(heads)
        assert invariance(lambda x, z: heads(features(x, t, z), t, z), (x, rep), (z, rep)) < 1e-12  # noqa: B023
        assert heads(features(x, t, z), t, z).shape == (3, 2)
    assert type(heads_for(fold(network), x, t, z)) is TokenHeads
    with pytest.raises(
        ValueError,
        match=r"blocks with out_rep in an equivariant network, got \['time_emb'\] without",
    ):
        heads_for(network, x, t, z, blocks=["time_emb"])


# ---- Fourier features ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", GROUPS)
def test_features_are_the_plain_ones_read_along_the_orbit(name, matrices, worst_error):
    rep = plane_of(name)
    features = eFourierFeatures(rep, 3, generator=torch.Generator().manual_seed(0)).double()
    plain = FourierFeatures(rep.size, 3, 2.0, generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(plain.frequencies, features.frequencies)
    x, order = normal(4, 2, rep.size), rep.group.order()
    found = features(x).unflatten(-1, (-1, order))
    for g, rho in enumerate(matrices(rep)):
        torch.testing.assert_close(
            found[..., g], plain(x @ rho), rtol=0, atol=1e-13
        )  # x rho = (rho^-1 x)^T
    assert worst_error(features, features.out_rep, (x, rep)) < 1e-13
    # a cosine at the frequency rho(g) w, for every g of the orbit
    w = matrices(rep) @ features.frequencies[:, 0]
    torch.testing.assert_close(found[..., rep.size, :], (x @ w.T).cos(), rtol=0, atol=1e-13)


# ---- Stand-alone ---------------------------------------------------------------------------------


def discriminator(name: str, shaken, *, cond: bool = True, **changes) -> eFourierDiscriminator:
    rep = plane_of(name)
    torch.manual_seed(0)
    options = {"num_frequencies": 16, "num_layers": 1, "num_heads": 2, **changes}
    generator = torch.Generator().manual_seed(0)
    return shaken(
        eFourierDiscriminator(rep, rep if cond else None, 3, 2, generator=generator, **options),
        0.03,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", GROUPS)
def test_the_logit_is_invariant_under_every_element(name, dtype, shaken, invariance):
    for cond in (True, False):
        d = discriminator(name, shaken, cond=cond).to(dtype)
        rep, t = d.in_rep, torch.linspace(0.1, 0.9, 3)
        x, z = normal(3, 3, rep.size).to(dtype), normal(3, 2, rep.size, seed=1).to(dtype)
        parts = [(x, rep), (z, rep)] if cond else [(x, rep)]

        def logit(x: Tensor, z: Tensor | None = None) -> Tensor:
            return d([x], t, z)  # noqa: B023

        assert invariance(logit, *parts) < allowed(dtype, logit, d, *(part for part, _ in parts))
        logits = d([x], t, z if cond else None)
        assert (
            logits.shape == (3, 1)
            and logits.dtype == dtype
            and d.cond_rep is (rep if cond else None)
        )


def test_the_logit_depends_on_all_it_is_given(shaken, matrices):
    d, t = discriminator("D4", shaken).double(), torch.rand(3, dtype=torch.float64)
    x, z = normal(3, 3, 2), normal(3, 2, 2, seed=1)
    logits, rho = d([x], t, z), matrices(d.in_rep)[3]
    for other in (d([x @ rho.T], t, z), d([x], t, z @ rho.T), d([x + 0.1], t, z), d([x], 1 - t, z)):
        assert (other - logits).abs().min() > 1e-6


def test_the_gradient_in_the_sample_is_equivariant(shaken, matrices):
    d, t = discriminator("D4", shaken).double(), torch.rand(3, dtype=torch.float64)
    x, z = normal(3, 3, 2), normal(3, 2, 2, seed=1)

    def gradient(x: Tensor, z: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(gan_gen_loss(d([x], t, z)), x)[0]

    reference = gradient(x, z)
    for rho in matrices(d.in_rep):
        torch.testing.assert_close(
            gradient(x @ rho.T, z @ rho.T), reference @ rho.T, rtol=1e-10, atol=1e-13
        )
    assert reference.abs().min() > 0
    assert torch.autograd.gradcheck(lambda x: d([x], t, z), (x.requires_grad_(),))


@pytest.mark.parametrize("options", [{}, {"width": 256, "num_heads": 4}], ids=["regular", "irreps"])
def test_a_padded_sample_has_the_invariant_logit_of_the_sample_cut_to_its_length(
    options, shaken, matrices
):
    d, t = discriminator("D4", shaken, **options).double(), torch.rand(3, dtype=torch.float64)
    x, z, lengths = normal(3, 3, 2), normal(3, 2, 2, seed=1), torch.tensor([3, 1, 2])
    mask = torch.arange(3) < lengths[:, None]
    padded = x.masked_fill(~mask[..., None], float("nan"))
    logits = d([padded], t, z, mask=mask)
    for i, n in enumerate(lengths):
        torch.testing.assert_close(
            logits[i : i + 1], d([x[i : i + 1, :n]], t[i : i + 1], z[i : i + 1])
        )
    assert (logits - d([x], t, z))[1:].abs().min() > 1e-6
    for rho in matrices(d.in_rep):
        torch.testing.assert_close(
            d([padded @ rho.T], t, z @ rho.T, mask=mask), logits, rtol=1e-12, atol=1e-12
        )


def modules_of(shaken) -> dict[str, tuple[nn.Module, tuple]]:
    group, t = parse_group("D4"), torch.rand(2)
    reps = [regular_stack(group, 2), fourier_stack(group, 2), plane_of("D4")]
    x, z = torch.randn(2, 3, 2), torch.randn(2, 2, 2)
    heads = shaken(InvariantHeads(reps, width=3))
    return {
        "heads": (heads, ([torch.randn(2, 3, rep.size) for rep in reps], t)),
        "regular": (discriminator("D4", shaken), ([x], t, z)),
        "irreps": (discriminator("D4", shaken, width=256, num_heads=4), ([x], t, z)),
    }


@pytest.mark.parametrize("kind", ["heads", "regular", "irreps"])
def test_copies_share_the_group_and_pickles_give_the_same_function(kind, shaken):
    module, inputs = modules_of(shaken)[kind]
    clone, again = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    logits = module(*inputs)
    assert torch.equal(clone(*inputs), logits)
    torch.testing.assert_close(again(*inputs), logits)
    pairs = [
        (a, b)
        for a, b in zip(module.modules(), clone.modules(), strict=True)
        if hasattr(a, "in_rep")
    ]
    assert pairs and all(a.in_rep is b.in_rep for a, b in pairs)
    ours = {p.data_ptr() for p in module.parameters()}
    assert not ours & {p.data_ptr() for p in clone.parameters()}
    assert set(module.state_dict()) == set(clone.state_dict())
    decay, rest = module.get_optim_groups()
    assert len(decay["params"]) + len(rest["params"]) == len(list(module.parameters()))


def test_frequencies_travel_in_the_state(shaken):
    d, t, x, z = (
        discriminator("C4", shaken),
        torch.rand(3),
        torch.randn(3, 3, 2),
        torch.randn(3, 2, 2),
    )
    other = eFourierDiscriminator(
        d.in_rep, d.in_rep, 3, 2, num_frequencies=16, num_layers=1, num_heads=2
    )
    other.load_state_dict(d.state_dict())
    assert torch.equal(other([x], t, z), d([x], t, z))
    assert d.features.frequencies.shape == (2, 4)  # 16 are four orbits of four


def test_single_vectors_are_single_tokens_and_refusals_name_the_argument(shaken):
    d, t, x = discriminator("D4", shaken, cond=False), torch.rand(4), torch.randn(4, 2)
    torch.testing.assert_close(d([x], t), d([x[:, None]], t))
    with pytest.raises(
        ValueError, match=r"expected x_t of shape \(B, T <= 3, 2\), got \(4, 3\)|\(4, 1, 3\)"
    ):
        d([torch.ones(4, 3)], t)
    with pytest.raises(
        ValueError, match="expected cond=None from a discriminator made without one"
    ):
        d([x], t, x)
    with pytest.raises(
        ValueError, match=r"expected width to be a multiple of num_heads \|G\| = 4 x 8, got 48"
    ):
        eFourierDiscriminator(plane_of("D4"), width=48)
    with pytest.raises(ValueError, match="expected scale to be a finite number > 0, got -1"):
        eFourierDiscriminator(plane_of("D4"), scale=-1)
    with pytest.raises(
        ValueError, match="expected cond_rep to be a representation of in_rep's group"
    ):
        eFourierDiscriminator(plane_of("D4"), plane_of("C4"))
    for name, width in {"D4": 64, "D8": 64, "Icosahedral": 240}.items():
        assert (
            eFourierDiscriminator(plane_of(name), num_layers=1).body.config["embedding_dim"]
            == width
        )


def test_the_dense_twin_of_a_network_gets_dense_heads():
    network = CondTransformerRegressor(2, 2, 2, 4, 1, 1, 2, 8)
    assert (
        type(heads_for(network, torch.randn(3, 4, 2), torch.rand(3), torch.randn(3, 1, 2)))
        is TokenHeads
    )
