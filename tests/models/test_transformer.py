"""The dense transformer: what it may look at, how it reads the time, how it is trained, reset,
rebuilt and refused."""

from __future__ import annotations

import inspect
import json
import pickle

import pytest
import torch
from torch import nn

from fastgen import models
from fastgen.models import CondTransformerRegressor, build_model
from fastgen.models.maps import POSITION_STD
from fastgen.models.parameters import INIT_SCHEMES
from support.exact import normal

SIZES = {"in_dim": 3, "out_dim": 5, "cond_dim": 2, "in_horizon": 4, "cond_horizon": 3}
OPTIONS = {"num_layers": 2, "num_attention_heads": 2, "embedding_dim": 8}
X, Z = normal(6, 4, 3), normal(6, 3, 2, seed=1)


def model(seed: int = 0, **changes) -> CondTransformerRegressor:
    torch.manual_seed(seed)
    return CondTransformerRegressor(
        **{**SIZES, **OPTIONS, "p_drop_emb": 0.0, "p_drop_attn": 0.0, **changes}
    ).double()


def dependence(network: nn.Module, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Size of the derivative of output token i in each token of X and of Z."""
    x, z = X.clone().requires_grad_(), Z.clone().requires_grad_()
    y = network(x, 0.4, z)[:, i]
    grads = torch.autograd.grad((y * normal(*y.shape, seed=2)).sum(), (x, z))
    return grads[0].norm(dim=(0, 2)), grads[1].norm(dim=(0, 2))


# ---- What it looks at ----------------------------------------------------------------------------


@pytest.mark.parametrize("num_cond_layers", [0, 2])
def test_causal_token_i_sees_x_up_to_i_and_all_of_z(num_cond_layers, shaken):
    network = shaken(model(causal_attn=True, num_cond_layers=num_cond_layers))
    for i in range(4):
        x, z = dependence(network, i)
        assert (x[: i + 1] > 1e-6).all() and (x[i + 1 :] == 0).all()
        assert (z > 1e-6).all()


def test_not_causal_every_token_sees_everything(shaken):
    network = shaken(model())
    for i in range(4):
        x, z = dependence(network, i)
        assert (x > 1e-6).all() and (z > 1e-6).all()


@pytest.mark.parametrize("causal_attn", [False, True])
@pytest.mark.parametrize("real", [[True, False, True, True], [False, True, True, False]])
def test_masked_tokens_are_seen_by_none_but_themselves(causal_attn, real, shaken):
    network = shaken(model(causal_attn=causal_attn))
    mask = torch.tensor(real).expand(6, 4)
    x = X.clone().requires_grad_()
    for i, y in enumerate(network(x, 0.4, Z, mask=mask).unbind(1)):
        (gradient,) = torch.autograd.grad(
            (y * normal(*y.shape, seed=2)).sum(), x, retain_graph=True
        )
        seen = mask[0] & (torch.arange(4) <= i if causal_attn else torch.ones(4, dtype=torch.bool))
        seen[i] = True  # also by the residual branch
        assert torch.isfinite(gradient).all() and (gradient.norm(dim=(0, 2)) > 0).equal(seen)
    torch.testing.assert_close(network(X, 0.4, Z, mask=torch.ones_like(mask)), network(X, 0.4, Z))


def test_a_causal_prefix_does_not_know_what_follows(shaken):
    network = shaken(model(causal_attn=True))
    whole = network(X, 0.4, Z)
    for length in range(1, 5):
        torch.testing.assert_close(
            network(X[:, :length], 0.4, Z), whole[:, :length], rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("num_cond_layers", [0, 2])
@pytest.mark.parametrize("norm_module", ["rmsnorm", "layernorm"])
def test_samples_do_not_see_each_other(num_cond_layers, norm_module, shaken):
    network = shaken(model(num_cond_layers=num_cond_layers, norm_module=norm_module))
    t = torch.linspace(0, 1, 6, dtype=torch.float64)
    rows = [network(X[i : i + 1], t[i : i + 1], Z[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(network(X, t, Z), torch.cat(rows), rtol=0, atol=1e-12)
    assert network(X[:0], 0.5, Z[:0]).shape == (0, 4, 5)


def test_positions_tell_equal_tokens_apart():
    network = model()
    same = X[:, :1].expand(-1, 4, -1)
    y = network(same, 0.4, Z)
    assert (y[:, 1:] - y[:, :1]).norm(dim=(0, 2)).min() > 1e-3


# ---- Time ----------------------------------------------------------------------------------------


def test_every_form_of_a_time_is_the_same_time(shaken):
    network = shaken(model())
    t = torch.full((6,), 0.3, dtype=torch.float64)
    assert torch.equal(network(X, 0.3, Z), network(X, t, Z))
    assert torch.equal(network(X, t[0], Z), network(X, t, Z))
    ones = torch.ones(6, dtype=torch.float64)
    for form in (1, 1.0, torch.tensor(1), ones.long(), ones.float()):
        assert torch.equal(network(X, form, Z), network(X, ones, Z))


def test_near_times_differ_from_the_first_step_on(distance):
    for seed in range(3):
        network = model(seed)
        assert distance(network(X, 0.90, Z), network(X, 0.95, Z)) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_time_is_not_rounded_to_the_dtype_of_the_network(dtype, shaken):
    network = shaken(model().to(dtype))
    x, z = X.to(dtype), Z.to(dtype)
    assert not torch.equal(network(x, 0.999, z), network(x, 1.0, z))
    assert torch.equal(network(x, 0.999, z), network(x, torch.full((6,), 0.999), z))


def test_time_scale_reaches_the_embedding(shaken):
    network, steps = shaken(model()), shaken(model(time_scale=1.0))
    torch.testing.assert_close(steps(X, 300, Z), network(X, 0.3, Z), rtol=0, atol=1e-12)


# ---- Types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_answers_in_the_dtype_of_its_weights(dtype, shaken, distance):
    network, reference = shaken(model()), shaken(model())
    y = network.to(dtype)(X.float(), 0.3, Z)
    assert y.dtype == dtype and y.shape == (6, 4, 5)
    assert distance(y, reference(X.float(), 0.3, Z)) < 16 * torch.finfo(dtype).eps


def test_dropout_is_off_in_eval_and_on_in_training(shaken):
    network, plain = shaken(model(p_drop_emb=0.3, p_drop_attn=0.3)), shaken(model())
    network.eval()
    assert torch.equal(network(X, 0.3, Z), plain(X, 0.3, Z))
    network.train()
    assert not torch.equal(network(X, 0.3, Z), network(X, 0.3, Z))


@pytest.mark.parametrize("p", [{"p_drop_emb": 0.5}, {"p_drop_attn": 0.5}])
def test_each_probability_acts_by_itself(p, shaken):
    network = shaken(model(**p)).train()
    assert not torch.equal(network(X, 0.3, Z), network(X, 0.3, Z))


# ---- Training ------------------------------------------------------------------------------------


def test_every_parameter_gets_a_gradient(shaken):
    network = shaken(model(num_cond_layers=1))
    network(X, torch.linspace(0.1, 0.9, 6), Z).square().sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_optim_groups_hold_every_parameter_once_by_its_role():
    network = model(num_cond_layers=1, norm_module="layernorm")
    decay, rest = network.get_optim_groups(0.05)
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in network.named_parameters()}
    assert sorted(map(id, decay["params"] + rest["params"])) == sorted(names)
    decayed = {names[id(p)] for p in decay["params"]}
    assert decayed == {
        n for n, p in network.named_parameters() if p.ndim == 2 and "pos_emb" not in n
    }
    assert {"input_emb.weight", "cond_emb.weight", "time_token.weight", "head.weight"} <= decayed
    assert {"pos_emb.weight", "cond_pos_emb.weight", "input_emb.bias", "norm.weight"} <= set(
        names.values()
    ) - decayed
    assert network.get_optim_groups()[0]["weight_decay"] == 1e-3
    torch.optim.AdamW(network.get_optim_groups())


@pytest.mark.parametrize("value", [-1e-3, float("nan"), "0.1", None])
def test_a_weight_decay_below_zero_is_refused(value):
    with pytest.raises(ValueError, match="expected weight_decay to be a number >= 0, got "):
        model().get_optim_groups(value)


@pytest.mark.parametrize("scheme", INIT_SCHEMES)
def test_reset_forgets_what_was_there(scheme, shaken):
    network, other = shaken(model()), shaken(model(seed=1), 0.7)
    for each in (network, other):
        torch.manual_seed(3)
        each.reset_parameters(scheme)
    for (name, p), q in zip(network.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("scheme", INIT_SCHEMES)
def test_reset_and_constructor_give_the_same_laws(scheme, shaken):
    wide = {"embedding_dim": 64, "num_layers": 1, "init_scheme": scheme, "in_horizon": 64}
    fresh, again = model(**wide), shaken(model(**wide), 0.5)
    again.reset_parameters(scheme)
    for (name, p), q in zip(fresh.named_parameters(), again.parameters(), strict=True):
        if name.endswith("bias") or "norm" in name or "modulation" in name:
            assert torch.equal(p, q), name  # constants
        else:
            deviations = 6 * (4 / p.numel()) ** 0.5  # of the difference of two estimates
            assert p.square().mean().item() == pytest.approx(
                q.square().mean().item(), rel=deviations
            ), name
    attention = fresh.decoder[0].self_attention
    fan = 2 / 64 if scheme.startswith("kaiming") else 2 / 128
    for weight in (attention.qkv.weight, attention.out.weight):
        assert weight.square().mean().item() == pytest.approx(fan, rel=0.15)
    assert fresh.pos_emb.weight.std().item() == pytest.approx(POSITION_STD, rel=0.1)


def test_an_unknown_scheme_is_refused_and_changes_nothing():
    network = model()
    before = {name: p.clone() for name, p in network.named_parameters()}
    with pytest.raises(ValueError, match="unknown scheme 'zeros', expected one of: xavier_uniform"):
        network.reset_parameters("zeros")
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())


# ---- Rebuilding ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"num_cond_layers": 2, "causal_attn": True, "norm_module": "layernorm"}]
)
def test_build_model_rebuilds_from_the_config_as_json(changes, shaken):
    network = shaken(model(time_scale=500.0, **changes))
    again = build_model(json.loads(json.dumps(network.config))).double()
    assert again.config == network.config and type(again) is type(network)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(X, 0.3, Z), network(X, 0.3, Z))


def test_a_pickled_network_is_the_same_function(shaken):
    network = shaken(model())
    assert torch.equal(pickle.loads(pickle.dumps(network))(X, 0.3, Z), network(X, 0.3, Z))


def test_build_model_refuses_what_it_cannot_build():
    config = model().config
    with pytest.raises(
        ValueError, match="unknown model class 'MLP', expected one of: CondTransformerRegressor"
    ):
        build_model({**config, "class": "MLP"})
    with pytest.raises(ValueError, match="unknown model class None"):
        build_model({})
    with pytest.raises(ValueError, match="cannot build CondTransformerRegressor.*'width'"):
        build_model({**config, "width": 3})
    with pytest.raises(ValueError, match="cannot build CondTransformerRegressor.*'in_horizon'"):
        build_model({k: v for k, v in config.items() if k != "in_horizon"})
    kept = dict(config)
    build_model(config)
    assert config == kept  # the caller's dict isn't consumed


def test_arguments_stand_in_the_promised_order():
    """Outside code passes them by position."""
    common = [
        "num_layers",
        "num_attention_heads",
        "embedding_dim",
        "p_drop_emb",
        "p_drop_attn",
        "causal_attn",
    ]
    common += ["num_cond_layers"]
    dense = ["in_dim", "out_dim", "cond_dim", "in_horizon", "cond_horizon", *common, "time_scale"]
    equivariant = ["in_rep", "cond_rep", "out_rep", "in_horizon", "cond_horizon", *common]
    equivariant += ["norm_module", "init_scheme", "time_scale"]
    for model_class, names in (
        (CondTransformerRegressor, dense),
        (models.eCondTransformerRegressor, equivariant),
    ):
        parameters = inspect.signature(model_class).parameters.values()
        assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == names


def test_every_public_name_is_there_and_others_are_not():
    for name in models.__all__:
        assert getattr(models, name).__name__ == name
    assert set(models.__all__) <= set(dir(models))
    with pytest.raises(AttributeError, match="no attribute 'eTransformer'"):
        models.eTransformer  # noqa: B018


# ---- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"in_dim": 0}, "in_dim to be an int >= 1, got 0"),
        ({"out_dim": -2}, "out_dim to be an int >= 1"),
        ({"cond_dim": 1.5}, "cond_dim to be an int >= 1, got 1.5"),
        ({"in_horizon": 0}, "in_horizon to be an int >= 1, got 0"),
        ({"cond_horizon": 0}, "cond_horizon to be an int >= 1, got 0"),
        ({"num_layers": 0}, "num_layers to be an int >= 1, got 0"),
        ({"num_cond_layers": -1}, "num_cond_layers to be an int >= 0, got -1"),
        ({"embedding_dim": 0}, "embedding_dim to be an int >= 1, got 0"),
        ({"num_attention_heads": 3}, "num_attention_heads to divide the width 8, got 3"),
        ({"num_attention_heads": 0}, "num_attention_heads to be an int >= 1, got 0"),
        ({"p_drop_emb": 1.0}, r"p_drop_emb to be a probability in \[0, 1\), got 1.0"),
        ({"p_drop_attn": -0.1}, r"p_drop_attn to be a probability in \[0, 1\), got -0.1"),
        ({"causal_attn": 1}, "causal_attn to be a bool, got 1"),
        ({"norm_module": "none"}, "unknown norm_module 'none'"),
        ({"init_scheme": "none"}, "unknown init_scheme 'none'"),
        ({"time_scale": -1.0}, "time_scale to be a finite number > 0, got -1.0"),
    ],
)
def test_a_wrong_argument_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        model(**changes)


@pytest.mark.parametrize(
    ("x", "z", "words"),
    [
        ((6, 5, 3), (6, 3, 2), r"expected X of shape \(B, T_x <= 4, 3\), got \(6, 5, 3\)"),
        ((6, 4, 2), (6, 3, 2), r"expected X of shape \(B, T_x <= 4, 3\), got \(6, 4, 2\)"),
        ((4, 3), (6, 3, 2), r"expected X of shape \(B, T_x <= 4, 3\), got \(4, 3\)"),
        ((6, 0, 3), (6, 3, 2), r"expected X of shape .* got \(6, 0, 3\)"),
        ((6, 4, 3), (6, 4, 2), r"expected Z of shape \(.*, T_z <= 3, 2\), got \(6, 4, 2\)"),
        ((6, 4, 3), (5, 3, 2), r"expected Z of shape \(.*6, T_z <= 3, 2\), got \(5, 3, 2\)"),
        ((6, 4, 3), (6, 2), r"expected Z of shape \(.*, T_z <= 3, 2\), got \(6, 2\)"),
    ],
)
def test_a_wrong_shape_is_shown_beside_the_expected_one(x, z, words):
    with pytest.raises(ValueError, match=words):
        model()(torch.zeros(x), 0.5, torch.zeros(z))


def test_a_wrong_time_or_type_is_refused():
    network = model()
    for shape in ((5,), (6, 1), (1,)):
        with pytest.raises(
            ValueError, match=r"expected opt_step to be a scalar or of shape \(6,\)"
        ):
            network(X, torch.zeros(shape), Z)
    with pytest.raises(TypeError, match="expected opt_step to be a number"):
        network(X, None, Z)
    with pytest.raises(TypeError, match="expected X to be a floating point tensor"):
        network(X.long(), 0.5, Z)
    with pytest.raises(TypeError, match="expected Z of shape .* got NoneType"):
        network(X, 0.5, None)
