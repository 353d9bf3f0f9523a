"""The equivariant network commutes with every element of its group, always."""

from __future__ import annotations

import copy

import pytest
import torch
from escnn import group as escnn_group
from escnn.group import change_basis

from fastgen.models import CondTransformerRegressor, eCondTransformerRegressor, fold
from support.etransformer import EXACT, SMALL_GROUPS, VARIANTS, inputs, rounding, trained
from support.exact import normal
from support.rounding import MULTIPLE, sway

# ---- Equivariance --------------------------------------------------------------------------------


@pytest.mark.parametrize(("causal_attn", "num_cond_layers", "norm_module"), VARIANTS)
@pytest.mark.parametrize("group", SMALL_GROUPS)
def test_the_network_commutes_with_every_element(
    group, causal_attn, num_cond_layers, norm_module, network, model_error
):
    options = {
        "causal_attn": causal_attn,
        "num_cond_layers": num_cond_layers,
        "norm_module": norm_module,
    }
    for turned in (False, True):
        model = network(group, turned=turned, **options)
        assert model_error(model) < rounding(model)
        assert model_error(model.double()) < EXACT


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("turned", "causal_attn", "num_cond_layers", "norm_module"),
    [(False, False, 0, "rmsnorm"), (True, True, 2, "rmsnorm"), (True, False, 1, "layernorm")],
)
def test_the_network_commutes_with_all_rotations_of_an_icosahedron(
    turned, causal_attn, num_cond_layers, norm_module, network, model_error
):
    options = {
        "causal_attn": causal_attn,
        "num_cond_layers": num_cond_layers,
        "norm_module": norm_module,
    }
    model = network("Icosahedral", turned=turned, **options)
    assert model_error(model, batch=2) < rounding(model, batch=2)
    assert model_error(model.double(), batch=2) < EXACT


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize("group", ["C3", "D4", "D6", "Icosahedral"])
def test_training_and_casts_keep_it_exact(group, network, model_error):
    model = trained(network(group, norm_module="layernorm", num_cond_layers=1))
    before = network(group, norm_module="layernorm", num_cond_layers=1)
    moved = [
        not torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True)
    ]
    assert all(moved)
    assert model_error(model) < rounding(model)
    clone = copy.deepcopy(model)
    assert model_error(clone.double()) < EXACT
    assert model_error(clone.float()) < rounding(clone)
    assert model_error(clone.to(torch.bfloat16)) < rounding(clone)
    # Constants come from float64 whatever the module went through, so digits return with the dtype.
    assert model_error(clone.double()) < EXACT
    assert model_error(trained(model.double())) < EXACT


@pytest.mark.kernels
@pytest.mark.parametrize("causal_attn", [False, True])
@pytest.mark.parametrize("lengths", [(1, 1), (2, 3), (4, 1), (3, 2)])
def test_shorter_sequences_commute_as_well(lengths, causal_attn, network, model_error):
    model = network("D3", causal_attn=causal_attn, num_cond_layers=1)
    assert model_error(model, lengths) < rounding(model, lengths)
    assert model_error(model.double(), lengths) < EXACT


@pytest.mark.kernels
@pytest.mark.parametrize("basis", ["auto", "regular", "irrep"])
def test_every_basis_commutes_and_is_the_same_function(basis, network, model_error, distance):
    model, other = network("C8"), network("C8", basis=basis, seed=1)
    other.load_state_dict(model.state_dict())
    assert model_error(other) < rounding(other)
    X, t, Z = inputs(model)
    allowed = MULTIPLE * sway(lambda x, z: model(x, t, z), model, X, Z)
    assert distance(other(X, t, Z), model(X, t, Z)) < allowed


def test_a_product_of_groups_and_a_default_output(represent, model_error, shaken):
    group = escnn_group.direct_product(escnn_group.cyclic_group(2), escnn_group.dihedral_group(3))
    rep = change_basis(
        sum(group.irreps()[1:], group.irreps()[0]),
        torch.linalg.qr(normal(8, 8)).Q.numpy(),
        "turned",
    )
    model = shaken(eCondTransformerRegressor(rep, group.irreps()[-1], None, 4, 3, 1, 2, 24)).eval()
    assert model.out_rep is rep
    assert model_error(model) < rounding(model)
    assert model_error(model.double()) < EXACT


@pytest.mark.kernels
def test_the_trivial_group_leaves_a_plain_network(shaken, distance):
    rep = sum(
        [escnn_group.cyclic_group(1).trivial_representation] * 2,
        escnn_group.cyclic_group(1).irrep(0),
    )
    model = shaken(
        eCondTransformerRegressor(rep, rep, rep, 4, 3, 1, 2, 8, norm_module="layernorm")
    ).eval()
    plain = CondTransformerRegressor(3, 3, 3, 4, 3, 1, 2, 8, norm_module="layernorm").eval()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())
    plain.load_state_dict(fold(model).state_dict())
    X, t, Z = inputs(model)
    allowed = MULTIPLE * sway(lambda x, z: model(x, t, z), model, X, Z)
    assert distance(plain(X, t, Z), model(X, t, Z)) < allowed


# ---- Dropout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["C3", "D4"])
def test_in_training_the_same_seed_commutes(group, network, matrices, distance):
    model = network(group, num_cond_layers=1, copies=4).double().train()
    X, t, Z = inputs(model)
    torch.manual_seed(3)
    reference = model(X, t, Z)
    assert distance(model(X, t, Z), reference) > 1e-2  # another seed, another mask
    for rho_in, rho_cond, rho_out in zip(
        *map(matrices, (model.in_rep, model.cond_rep, model.out_rep)), strict=True
    ):
        torch.manual_seed(3)
        y = model(X @ rho_in.T, t, Z @ rho_cond.T)
        assert distance(y, reference @ rho_out.T) < EXACT


def test_dropout_is_off_in_eval(network):
    model, dry = network(), network(p_drop_emb=0.0, p_drop_attn=0.0)
    assert torch.equal(model(*inputs(model)), dry(*inputs(model)))


# ---- What it looks at ----------------------------------------------------------------------------


@pytest.mark.parametrize("num_cond_layers", [0, 2])
def test_causal_token_i_sees_x_up_to_i_and_all_of_z(num_cond_layers, network):
    model = network(causal_attn=True, num_cond_layers=num_cond_layers).double()
    X, t, Z = inputs(model)
    for i in range(4):
        x, z = X.clone().requires_grad_(), Z.clone().requires_grad_()
        y = model(x, t, z)[:, i]
        of_x, of_z = (
            g.norm(dim=(0, 2))
            for g in torch.autograd.grad((y * normal(*y.shape, seed=4)).sum(), (x, z))
        )
        assert (of_x[: i + 1] > 1e-6).all() and (of_x[i + 1 :] == 0).all() and (of_z > 1e-6).all()


def test_every_form_of_a_time_is_the_same_time(network):
    model = network().double()
    X, _, Z = inputs(model)
    t = torch.full((3,), 0.3, dtype=torch.float64)
    for form in (0.3, t[0]):
        assert torch.equal(model(X, form, Z), model(X, t, Z))
    for form in (1, 1.0, torch.tensor(1), torch.ones(3), torch.ones(3).long()):
        assert torch.equal(model(X, form, Z), model(X, torch.ones(3, dtype=torch.float64), Z))


@pytest.mark.parametrize("group", ["C2", "D4"])
def test_near_times_differ_from_the_first_step_on(group, network, distance):
    for seed in range(3):
        model = network(group, seed=seed, shake=0.0)
        X, _, Z = inputs(model)
        assert distance(model(X, 0.90, Z), model(X, 0.95, Z)) > 1e-2


@pytest.mark.parametrize("group", ["C3", "D4", "Icosahedral"])
def test_positions_and_time_are_fixed_by_the_group(group, network, matrices):
    model = network(group).double()
    rho = matrices(model.embedding_rep)
    features = model.time_emb(torch.linspace(0, 1, 5, dtype=torch.float64))
    modulation = model.decoder[0].modulation(features).unflatten(-1, (9, -1))
    for y in (model.pos_emb(4), model.cond_pos_emb(4), model.time_token(features), modulation):
        assert y.abs().max() > 1e-3
        assert (torch.einsum("gde,...e->g...d", rho, y) - y).abs().max() < 1e-12 * y.abs().max()
