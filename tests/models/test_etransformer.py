"""The whole network commutes with every element of its group, always; it holds the degrees of
freedom and no more."""

from __future__ import annotations

import copy
import io
import itertools
import json
import pickle
from collections.abc import Callable

import pytest
import torch
from escnn import group as escnn_group
from escnn.group import change_basis
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastgen.models import (
    CondTransformerRegressor,
    build_model,
    eCondTransformerRegressor,
    eLinear,
    eRMSNorm,
    fold,
)
from fastgen.models.emaps import InvariantLift, ePositionTable
from fastgen.models.maps import POSITION_STD
from fastgen.models.parameters import INIT_SCHEMES
from support.exact import normal
from support.rounding import MULTIPLE, sway

SMALL_GROUPS = ["C2", "C3", "C4", "C8", "D3", "D4", "D6"]
GROUPS = [*SMALL_GROUPS, "Icosahedral"]
# Whole-model relative error where digits are plenty; in fewer digits see `rounding`.
EXACT = 1e-12
VARIANTS = list(itertools.product([False, True], [0, 2], ["rmsnorm", "layernorm"]))


@pytest.fixture
def network(represent, shaken):
    """A small network on mixed representations whose every parameter is off its initial value.

    Some copies of the regular representation, since the time token has one number a copy: the norm
    of one number alone divides by something near zero now and then, which magnifies the rounding of
    float32. Wide networks and violent training round more as well: a sum of hundreds of numbers
    keeps fewer digits.
    """

    def build(
        group: str = "D4", *, turned: bool = True, seed: int = 0, shake: float = 0.03, **changes
    ):
        options = {
            "num_layers": 1,
            "num_attention_heads": 2,
            "p_drop_emb": 0.2,
            "p_drop_attn": 0.2,
            **changes,
        }
        in_rep, cond_rep = (represent(group, kind, turned=turned) for kind in ("mixed", "small"))
        out_rep = represent(group, "small", turned=not turned)
        width = options.pop("copies", 2 if group == "Icosahedral" else 4) * in_rep.group.order()
        torch.manual_seed(seed)
        model = eCondTransformerRegressor(
            in_rep, cond_rep, out_rep, 4, 3, embedding_dim=width, **options
        )
        return shaken(model, shake).eval()

    return build


@pytest.fixture
def model_error(worst_error):
    """The worst relative error over the group, on random inputs in the dtype of the network."""

    def measure(model: nn.Module, lengths: tuple[int, int] = (4, 3), batch: int = 3) -> float:
        X, Z = tokens(model, lengths, batch)
        return worst_error(
            at_times(model, batch), model.out_rep, (X, model.in_rep), (Z, model.cond_rep)
        )

    return measure


def rounding(model: nn.Module, lengths: tuple[int, int] = (4, 3), batch: int = 3) -> float:
    """The error that rounding may make of `model_error` in the dtype of the network."""
    return MULTIPLE * sway(at_times(model, batch), model, *tokens(model, lengths, batch))


def tokens(model: nn.Module, lengths: tuple[int, int], batch: int) -> tuple[Tensor, Tensor]:
    dtype = next(model.parameters()).dtype
    X = normal(batch, lengths[0], model.in_rep.size, seed=1).to(dtype)
    Z = normal(batch, lengths[1], model.cond_rep.size, seed=2).to(dtype)
    return X, Z


def at_times(model: nn.Module, batch: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The network at a time for each of `batch` rows, as a function of its tokens; a batch of more
    rows repeats the times."""
    t = torch.linspace(0.05, 0.95, batch, dtype=torch.float64)
    return lambda x, z: model(x, t.repeat(len(x) // batch), z)


def inputs(model: nn.Module, batch: int = 3, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    dtype = next(model.parameters()).dtype
    X = normal(batch, model.in_horizon, model.in_dim, seed=seed).to(dtype)
    Z = normal(batch, model.cond_horizon, model.cond_dim, seed=seed + 1).to(dtype)
    return X, torch.linspace(0.1, 0.9, batch), Z


def trained(model: nn.Module, steps: int = 6) -> nn.Module:
    """A few steps towards random targets, dropout on."""
    model.train()
    optimizer = torch.optim.AdamW(model.get_optim_groups(0.1), lr=1e-3)
    torch.manual_seed(5)
    for step in range(steps):
        X, t, Z = inputs(model, seed=10 * step)
        target = normal(3, model.in_horizon, model.out_dim, seed=10 * step + 5).to(X.dtype)
        optimizer.zero_grad()
        (model(X, t, Z) - target).square().mean().backward()
        optimizer.step()
    return model.eval()


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


# ---- Degrees of freedom --------------------------------------------------------------------------


def degrees_of_freedom(model: nn.Module, count) -> int:
    """Numbers that the representations allow, layer by layer, from characters alone."""
    total = 0
    for name, module in model.named_modules():
        if isinstance(module, eLinear):
            expected = {
                "weight": count(module.in_rep, module.out_rep),
                "bias": count(module.out_rep),
            }
        elif isinstance(module, InvariantLift):
            expected = {
                "weight": module.in_features * count(module.out_rep),
                "bias": count(module.out_rep),
            }
        elif isinstance(module, ePositionTable):
            expected = {"weight": len(module.weight) * count(module.out_rep)}
        elif isinstance(module, eRMSNorm):
            expected = {key: count(module.in_rep) for key, _ in module.named_parameters()}
        elif isinstance(module, nn.Linear):  # on time features, which are invariants
            assert name.startswith("time_emb.")
            expected = {
                "weight": module.in_features * module.out_features,
                "bias": module.out_features,
            }
        else:
            assert not list(module.parameters(recurse=False)), name
            continue
        assert {key: p.numel() for key, p in module.named_parameters()} == expected, name
        total += sum(expected.values())
    return total


@pytest.mark.parametrize("norm_module", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("group", GROUPS)
def test_parameters_are_the_degrees_of_freedom_and_the_state_is_the_parameters(
    group, norm_module, network, count
):
    model = network(group, norm_module=norm_module, num_cond_layers=1, num_layers=2)
    expected = degrees_of_freedom(model, count)
    assert sum(p.numel() for p in model.parameters()) == expected
    state = model.state_dict()
    assert set(state) == {name for name, _ in model.named_parameters()}
    assert sum(v.numel() * v.element_size() for v in state.values()) <= 1.1 * 4 * expected
    # No square matrix of the width, as a change of basis would be.
    width = model.embedding_rep.size
    assert not any(v.shape[-2:] == (width, width) for v in state.values() if v.ndim >= 2)


def test_the_network_is_smaller_than_its_dense_twin_by_about_the_order_of_the_group(network):
    model = network("D6", copies=16)
    ours, theirs = (dict(net.named_parameters()) for net in (model, fold(model)))
    hidden = [name for name in ours if name.startswith("decoder") and name.endswith("weight")]
    sizes = [theirs[name].numel() / ours[name].numel() for name in hidden]
    assert len(sizes) == 7 and all(size == 12 for size in sizes)  # one number an orbit of the group


def test_safetensors_take_the_state_as_it_is(network, tmp_path):
    model, other = network(seed=0), network(seed=1)
    save_file(model.state_dict(), tmp_path / "state.safetensors")
    other.load_state_dict(load_file(tmp_path / "state.safetensors"), strict=True)
    assert torch.equal(other(*inputs(model)), model(*inputs(model)))
    assert (tmp_path / "state.safetensors").stat().st_size < 1.1 * 4 * sum(
        p.numel() for p in model.parameters()
    ) + 8192


# ---- Training ------------------------------------------------------------------------------------


def test_every_parameter_gets_a_gradient(network):
    model = network(num_cond_layers=1, norm_module="layernorm")
    model(*inputs(model)).square().sum().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_gradients_are_finite_differences(network):
    model = network("C3", num_cond_layers=0, norm_module="layernorm").double()
    X, t, Z = inputs(model)
    weights = normal(3, 4, model.out_dim, seed=8)

    def loss() -> Tensor:
        return (model(X, t, Z) * weights).sum()

    loss().backward()
    for name, p in model.named_parameters():
        direction = normal(*p.shape, seed=9)
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                p.add_(step * direction)
                values.append(loss().item())
                p.sub_(step * direction)
        slope = (values[0] - values[1]) / 2e-5
        assert slope == pytest.approx(float((p.grad * direction).sum()), rel=1e-5, abs=1e-7), name


def test_optim_groups_hold_every_parameter_once_by_its_role(network):
    model = network(num_cond_layers=1, norm_module="layernorm")
    decay, rest = model.get_optim_groups(0.05)
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert sorted(map(id, decay["params"] + rest["params"])) == sorted(names)
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in (decay, rest))
    assert {"input_emb.weight", "cond_emb.weight", "time_token.weight", "head.weight"} <= decayed
    expected = {
        name
        for name in kept | decayed
        if name.endswith("weight") and "norm" not in name and "pos" not in name
    }
    assert decayed == expected
    assert all(name.endswith("bias") or "norm" in name or "pos_emb" in name for name in kept)
    for value in (-1.0, float("nan"), None):
        with pytest.raises(ValueError, match="expected weight_decay to be a number >= 0"):
            model.get_optim_groups(value)


@pytest.mark.parametrize("scheme", INIT_SCHEMES)
def test_reset_forgets_what_was_there(scheme, network):
    model, other = network(seed=0), trained(network(seed=1, shake=0.5))
    for each in (model, other):
        torch.manual_seed(3)
        each.reset_parameters(scheme)
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("scheme", INIT_SCHEMES)
def test_expanded_matrices_have_the_variance_of_a_dense_network(scheme, network):
    """Reset after training, the folded tensors follow the law of a plain network's."""
    model = trained(network("D4", copies=8))
    torch.manual_seed(0)
    model.reset_parameters(scheme)
    twin = fold(model)
    width, kaiming = 64, scheme.startswith("kaiming")
    for weight, fan_in, fan_out, own in (
        (twin.decoder[0].self_attention.qkv.weight, width, width, 3 * 8 * 64),
        (twin.decoder[0].self_attention.out.weight, width, width, 8 * 64),
        (twin.decoder[0].mlp.up.weight, width, 4 * width, 4 * 8 * 64),
        (twin.decoder[0].mlp.down.weight, 4 * width, width, 4 * 8 * 64),
        (twin.time_token.weight, 64, width, 64 * 8),
    ):
        variance = 2 / fan_in if kaiming else 2 / (fan_in + fan_out)
        assert weight.square().mean().item() == pytest.approx(variance, rel=6 * (2 / own) ** 0.5)
    assert twin.pos_emb.weight.std().item() == pytest.approx(POSITION_STD, rel=6 * (2 / 32) ** 0.5)
    for name, p in model.named_parameters():
        if "modulation" in name:
            continue
        if name.endswith("bias"):
            assert not p.any(), name
        elif "norm" in name:
            assert (p == 1).all(), name
    scale, shift, gate = model.decoder[0].modulation(torch.randn(2, 64)).view(2, 3, 3, 64).unbind(2)
    assert (scale == 1).all() and (shift == 0).all() and (gate == 1).all()


@pytest.mark.parametrize("scheme", INIT_SCHEMES)
def test_the_constructor_draws_by_its_scheme(scheme, represent):
    rep = represent("C2", "small")
    torch.manual_seed(0)
    model = eCondTransformerRegressor(rep, rep, rep, 4, 3, 1, 2, 64, init_scheme=scheme)
    weight = model.decoder[0].mlp.up.weight
    variance = 2 / 64 if scheme.startswith("kaiming") else 2 / (64 + 256)
    assert weight.square().mean().item() == pytest.approx(
        variance, rel=6 * (2 / weight.numel()) ** 0.5
    )
    largest = weight.abs().max().item() / variance**0.5
    assert largest <= 3**0.5 * (1 + 1e-6) if scheme.endswith("uniform") else largest > 3


def test_an_unknown_scheme_is_refused_and_changes_nothing(network):
    model, before = network(), network()
    with pytest.raises(ValueError, match="unknown scheme 'zeros', expected one of: xavier_uniform"):
        model.reset_parameters("zeros")
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True)
    )


# ---- Copies and files ----------------------------------------------------------------------------


def test_a_copy_shares_representations_and_nothing_that_is_trained(network):
    model = network()
    clone = copy.deepcopy(model)
    for name in ("in_rep", "cond_rep", "out_rep", "embedding_rep"):
        assert getattr(clone, name) is getattr(model, name)
    assert not {p.data_ptr() for p in model.parameters()} & {
        p.data_ptr() for p in clone.parameters()
    }
    reference = model(*inputs(model))
    assert torch.equal(clone(*inputs(model)), reference)
    trained(clone)
    assert torch.equal(model(*inputs(model)), reference)
    assert copy.deepcopy([model, clone])[1].in_rep is model.in_rep


@pytest.mark.parametrize("group", ["C3", "D4", "Icosahedral"])
def test_a_pickled_network_is_the_same_function(group, network, model_error):
    model = network(group, num_cond_layers=1)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(*inputs(model)), model(*inputs(model)))
    assert model_error(again) < rounding(again)
    assert model_error(again.double()) < EXACT
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(*inputs(model)), model(*inputs(model)))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("group", ["C3", "D4", "Icosahedral"])
def test_build_model_rebuilds_from_the_config_as_json(group, turned, network):
    model = network(
        group,
        turned=turned,
        num_cond_layers=1,
        causal_attn=True,
        norm_module="layernorm",
        time_scale=500.0,
    )
    again = build_model(json.loads(json.dumps(model.config))).eval()
    assert type(again) is eCondTransformerRegressor and again.config == model.config
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(*inputs(model)), model(*inputs(model)))


def test_build_model_reads_names_as_a_yaml_file_has_them(model_error):
    config = {
        "class": "eCondTransformerRegressor",
        "group": "D4",
        "in_rep": ["standard"],
        "cond_rep": ["standard", "sign"],
    }
    config |= {
        "out_rep": None,
        "in_horizon": 4,
        "cond_horizon": 3,
        "num_layers": 1,
        "num_attention_heads": 2,
    }
    model = build_model({**config, "embedding_dim": 32})
    assert (model.in_dim, model.cond_dim, model.out_dim) == (2, 3, 2)
    assert model_error(model.eval()) < rounding(model)
    with pytest.raises(ValueError, match="unknown group None"):
        build_model({**config, "embedding_dim": 32, "group": None})
    with pytest.raises(ValueError, match="unknown representation 'spin'"):
        build_model({**config, "embedding_dim": 32, "in_rep": ["spin"]})
    with pytest.raises(ValueError, match="cannot build eCondTransformerRegressor.*'embedding_dim'"):
        build_model(config)


def test_another_dtype_of_the_input_is_cast_to_that_of_the_weights(network):
    model = network()
    X, t, Z = inputs(model)
    assert torch.equal(model(X.double(), t, Z.double()), model(X, t, Z))
    half = network().bfloat16()
    assert half(X, t, Z).dtype == torch.bfloat16
    assert not torch.equal(half(X, 0.999, Z), half(X, 1.0, Z))


# ---- Errors --------------------------------------------------------------------------------------

D4, C4 = escnn_group.dihedral_group(4), escnn_group.cyclic_group(4)
ARGUMENTS = {
    "in_rep": D4.irrep(1, 1),
    "cond_rep": D4.irrep(1, 1),
    "out_rep": D4.irrep(1, 1),
    "in_horizon": 4,
}
ARGUMENTS |= {"cond_horizon": 2, "num_layers": 1, "num_attention_heads": 2, "embedding_dim": 32}
SHEARED = change_basis(D4.irrep(1, 1), torch.tensor([[1.0, 1.0], [0.0, 1.0]]).numpy(), "sheared")


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        (
            {"embedding_dim": 36},
            ValueError,
            "embedding_dim to be a multiple of the order 8 of D4, got 36; .* 32 and 40",
        ),
        ({"embedding_dim": 0}, ValueError, "embedding_dim to be an int >= 1, got 0"),
        ({"embedding_dim": 32.0}, ValueError, "embedding_dim to be an int >= 1, got 32.0"),
        (
            {"num_attention_heads": 3},
            ValueError,
            r"num_attention_heads to divide .* 32 / \|G\| = 32 / 8 = 4, got 3",
        ),
        ({"num_attention_heads": 8}, ValueError, "num_attention_heads to divide"),
        ({"num_attention_heads": 0}, ValueError, "num_attention_heads to be an int >= 1, got 0"),
        (
            {"in_rep": C4.irrep(1)},
            ValueError,
            "cond_rep to be a representation of in_rep's group C4, got D4",
        ),
        (
            {"cond_rep": C4.irrep(1)},
            ValueError,
            "cond_rep to be a representation of in_rep's group D4, got C4",
        ),
        (
            {"out_rep": C4.irrep(1)},
            ValueError,
            "out_rep to be a representation of in_rep's group D4, got C4",
        ),
        (
            {"in_rep": SHEARED},
            ValueError,
            "in_rep to be an orthogonal representation, got .*sheared",
        ),
        ({"cond_rep": SHEARED}, ValueError, "cond_rep to be an orthogonal representation"),
        ({"out_rep": SHEARED}, ValueError, "out_rep to be an orthogonal representation"),
        (
            {"in_rep": escnn_group.so2_group().irrep(1)},
            ValueError,
            r"in_rep .* finite group, got one of SO\(2\)",
        ),
        (
            {"cond_rep": escnn_group.o2_group().irrep(1, 1)},
            ValueError,
            r"cond_rep .* finite group, got one of O\(2\)",
        ),
        ({"in_rep": 2}, TypeError, "in_rep to be an escnn.group.Representation, got int"),
        (
            {"cond_rep": "standard"},
            TypeError,
            "cond_rep to be an escnn.group.Representation, got str",
        ),
        ({"in_horizon": 0}, ValueError, "in_horizon to be an int >= 1, got 0"),
        ({"cond_horizon": -1}, ValueError, "cond_horizon to be an int >= 1, got -1"),
        ({"num_layers": 0}, ValueError, "num_layers to be an int >= 1, got 0"),
        ({"num_cond_layers": -1}, ValueError, "num_cond_layers to be an int >= 0, got -1"),
        ({"p_drop_emb": 1.0}, ValueError, r"p_drop_emb to be a probability in \[0, 1\), got 1.0"),
        (
            {"p_drop_attn": -0.1},
            ValueError,
            r"p_drop_attn to be a probability in \[0, 1\), got -0.1",
        ),
        ({"causal_attn": None}, ValueError, "causal_attn to be a bool, got None"),
        ({"norm_module": "batchnorm"}, ValueError, "unknown norm_module 'batchnorm'"),
        ({"init_scheme": "zeros"}, ValueError, "unknown init_scheme 'zeros'"),
        ({"time_scale": 0}, ValueError, "time_scale to be a finite number > 0, got 0"),
        (
            {"basis": "fourier"},
            ValueError,
            "unknown basis 'fourier', expected .* auto, regular, irrep",
        ),
    ],
)
def test_a_wrong_argument_is_named(changes, kind, words):
    with pytest.raises(kind, match=words):
        eCondTransformerRegressor(**{**ARGUMENTS, **changes})


@pytest.mark.parametrize(
    ("x", "t", "z", "words"),
    [
        ((3, 5, 2), (3,), (3, 2, 2), r"expected X of shape \(B, T_x <= 4, 2\), got \(3, 5, 2\)"),
        ((3, 4, 3), (3,), (3, 2, 2), r"expected X of shape \(B, T_x <= 4, 2\), got \(3, 4, 3\)"),
        ((3, 4, 2), (3,), (3, 3, 2), r"expected Z of shape \(.*, T_z <= 2, 2\), got \(3, 3, 2\)"),
        ((3, 4, 2), (3,), (4, 2, 2), r"expected Z of shape \(.*3, T_z <= 2, 2\), got \(4, 2, 2\)"),
        (
            (3, 4, 2),
            (4,),
            (3, 2, 2),
            r"expected opt_step to be a scalar or of shape \(3,\), got \(4,\)",
        ),
        (
            (3, 4, 2),
            (3, 1),
            (3, 2, 2),
            r"expected opt_step to be a scalar or of shape \(3,\), got \(3, 1\)",
        ),
    ],
)
def test_a_wrong_shape_is_shown_beside_the_expected_one(x, t, z, words):
    with pytest.raises(ValueError, match=words):
        eCondTransformerRegressor(**ARGUMENTS)(torch.zeros(x), torch.zeros(t), torch.zeros(z))


@pytest.mark.parametrize("scheme", INIT_SCHEMES)
@pytest.mark.parametrize("kind", ["dense", "equivariant"])
def test_reset_gives_the_numbers_of_a_new_network_of_the_same_seed(kind, scheme):
    def build():
        torch.manual_seed(3)
        if kind == "dense":
            return CondTransformerRegressor(3, 5, 2, 4, 3, 1, 2, 8, init_scheme=scheme)
        rep = escnn_group.dihedral_group(4).irrep(1, 1)
        return eCondTransformerRegressor(rep, rep, rep, 4, 3, 1, 2, 16, init_scheme=scheme)

    fresh, again = build(), build()
    torch.manual_seed(3)
    again.reset_parameters(scheme)
    for (name, p), q in zip(fresh.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_a_width_below_the_order_names_two_widths():
    rep = escnn_group.dihedral_group(4).irrep(1, 1)
    with pytest.raises(ValueError, match="the next ones are 8 and 16"):
        eCondTransformerRegressor(rep, rep, rep, 4, 2, 1, 1, 4)


def test_z_message_has_the_letter():
    rep = escnn_group.dihedral_group(4).irrep(1, 1)
    model = eCondTransformerRegressor(rep, rep, rep, 4, 2, 1, 2, 16)
    with pytest.raises(
        ValueError, match=r"expected Z of shape \(B, T_z <= 2, 2\), got \(3, 5, 2\)"
    ):
        model(torch.zeros(3, 4, 2), 0.5, torch.zeros(3, 5, 2))
