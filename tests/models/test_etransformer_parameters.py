"""The equivariant network holds the degrees of freedom and no more, and all of them are trained."""

from __future__ import annotations

import pytest
import torch
from escnn import group as escnn_group
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastgen.models import (
    CondTransformerRegressor,
    eCondTransformerRegressor,
    eLinear,
    eRMSNorm,
    fold,
)
from fastgen.models.emaps import InvariantLift, ePositionTable
from fastgen.models.maps import POSITION_STD
from fastgen.models.parameters import INIT_SCHEMES
from support.etransformer import GROUPS, inputs, trained
from support.exact import normal

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
