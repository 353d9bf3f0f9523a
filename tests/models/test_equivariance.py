"""The folded twin is the same function in plain tensors; the check sees every element and does see
a broken network."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from fastgen.models import (
    CondTransformerRegressor,
    build_model,
    check_equivariance,
    eCondTransformerRegressor,
    fold,
)
from support.exact import normal
from support.rounding import MULTIPLE, sway

GROUPS = ["C2", "C3", "C4", "C8", "D3", "D4", "D6", "Icosahedral"]
EXACT = 1e-12


@pytest.fixture
def network(represent, shaken):
    def build(group: str = "D4", **changes) -> eCondTransformerRegressor:
        options = {
            "num_layers": 1,
            "num_attention_heads": 2,
            "p_drop_emb": 0.2,
            "p_drop_attn": 0.2,
            **changes,
        }
        in_rep, cond_rep = (
            represent(group, "mixed", turned=True),
            represent(group, "small", turned=True),
        )
        torch.manual_seed(0)
        width = 4 * in_rep.group.order()
        model = eCondTransformerRegressor(
            in_rep, cond_rep, cond_rep, 4, 3, embedding_dim=width, **options
        )
        return shaken(model, 0.03)

    return build


def inputs(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dtype = next(model.parameters()).dtype
    X, Z = normal(5, 4, model.in_dim).to(dtype), normal(5, 3, model.cond_dim, seed=1).to(dtype)
    return X, torch.linspace(0.1, 0.9, 5), Z


def rounding(model: nn.Module, X: torch.Tensor, t: torch.Tensor, Z: torch.Tensor) -> float:
    """How far two ways of computing `model` may lie apart in its dtype."""
    return MULTIPLE * sway(lambda x, z: model(x, t, z), model, X, Z)


# ---- Folding -------------------------------------------------------------------------------------


@pytest.mark.kernels
@pytest.mark.parametrize(
    "changes",
    [{}, {"causal_attn": True, "num_cond_layers": 2, "norm_module": "layernorm"}],
    ids=["plain", "full"],
)
@pytest.mark.parametrize("group", GROUPS)
def test_the_twin_is_the_same_function(group, changes, network, distance):
    model = network(group, time_scale=500.0, **changes)
    for dtype in (torch.float64, torch.float32):
        model.to(dtype)
        twin = fold(model)
        assert type(twin) is CondTransformerRegressor and not twin.training
        model.eval()
        X, t, Z = inputs(model)
        assert twin(X, t, Z).dtype == dtype
        for x, z in ((X, Z), (X[:, :2], Z[:, :1])):
            allowed = EXACT if dtype == torch.float64 else rounding(model, x, t, z)
            assert distance(twin(x, t, z), model(x, t, z)) < allowed
        model.train()


@pytest.mark.kernels
def test_half_precision_folds_to_the_same_rounded_matrices(network, distance):
    model = network().bfloat16().eval()
    twin = fold(model)
    assert all(p.dtype == torch.bfloat16 for p in twin.parameters())
    assert distance(twin(*inputs(model)), model(*inputs(model))) < rounding(model, *inputs(model))


def test_nothing_of_escnn_and_nothing_of_the_network_is_left(network):
    model = network(num_cond_layers=1, norm_module="layernorm")
    twin = fold(model)
    content = pickle.dumps(twin)
    assert (
        b"escnn" not in content
        and b"fastgen.models.e" not in content
        and b"fastgen.models.groups" not in content
    )
    assert not list(twin.buffers())
    ours = {v.untyped_storage().data_ptr() for v in [*model.parameters(), *model.buffers()]}
    theirs = [p.untyped_storage().data_ptr() for p in twin.parameters()]
    assert not ours & set(theirs) and len(set(theirs)) == len(theirs)
    assert all(p.is_contiguous() for p in twin.parameters())
    assert not any(p.requires_grad or p.is_meta for p in twin.parameters())
    assert set(twin.state_dict()) == set(build_model(twin.config).state_dict())


def test_folding_changes_neither_the_network_nor_the_random_state(network):
    model = network().train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    torch.manual_seed(4)
    state = torch.get_rng_state()
    twin = fold(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and all(m.training for m in model.modules())
    assert all(
        p.requires_grad and torch.equal(p, before[name]) for name, p in model.named_parameters()
    )
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_twin_can_be_rebuilt_from_its_config_and_state(network):
    model = network(causal_attn=True, num_cond_layers=1)
    twin = fold(model)
    again = build_model(twin.config).eval()
    again.load_state_dict(twin.state_dict())
    assert torch.equal(again(*inputs(model)), twin(*inputs(model)))
    assert twin.config["p_drop_emb"] == twin.config["p_drop_attn"] == 0.0  # it is for inference


def test_a_dense_network_folds_into_its_copy(shaken):
    torch.manual_seed(0)
    model = shaken(
        CondTransformerRegressor(3, 5, 2, 4, 3, 1, 2, 8, num_cond_layers=1, norm_module="layernorm")
    )
    twin = fold(model)
    X, Z = torch.ones(5, 4, 3), torch.ones(5, 3, 2)
    assert torch.equal(twin(X, 0.3, Z), model.eval()(X, 0.3, Z))
    assert not {p.data_ptr() for p in model.parameters()} & {
        p.data_ptr() for p in twin.parameters()
    }


def test_other_modules_do_not_fold():
    with pytest.raises(
        TypeError,
        match="expected an eCondTransformerRegressor or a CondTransformerRegressor, got Linear",
    ):
        fold(nn.Linear(2, 2))


# ---- The check -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_the_check_gives_one_small_error_an_element(group, network):
    model = network(group)
    errors = check_equivariance(model, 4)
    assert len(errors) == model.in_rep.group.order()
    assert set(errors) == {str(g) for g in model.in_rep.group.elements}
    assert all(isinstance(e, float) for e in errors.values())
    model.eval()
    allowed = rounding(model, *inputs(model))
    assert max(errors.values()) < allowed
    assert errors[str(model.in_rep.group.identity)] < EXACT
    assert max(check_equivariance(model.double(), 4).values()) < EXACT


def test_the_check_sees_one_poked_weight_in_the_elements_that_move_it(network):
    model = network("D4").double()
    twin = fold(model)
    twin.in_rep, twin.cond_rep, twin.out_rep = model.in_rep, model.cond_rep, model.out_rep
    assert max(check_equivariance(twin).values()) < EXACT
    with torch.no_grad():
        twin.decoder[0].mlp.up.weight[3, 5] += 1.0
    errors = check_equivariance(twin)
    identity = str(model.in_rep.group.identity)
    assert errors.pop(identity) < 1e-12
    assert min(errors.values()) > 1e-3


class Shift(nn.Module):
    """f(X, t, Z) = X + Z + offset on one representation: the error is |(rho(g) - 1) offset| / |f|,
    a closed form."""

    def __init__(self, rep, offset: torch.Tensor) -> None:
        super().__init__()
        self.in_rep = self.cond_rep = self.out_rep = rep
        self.in_horizon = self.cond_horizon = 1
        self.offset = nn.Parameter(offset)
        self.times: list[torch.Tensor] = []

    def forward(self, X, t, Z):
        self.times.append(t)
        return X + Z + self.offset


def test_the_error_is_that_of_the_formula(represent, matrices):
    rep = represent("D3", "mixed", turned=True)
    model = Shift(rep, normal(rep.size, seed=3))
    drawn = torch.Generator().manual_seed(11)
    errors = check_equivariance(model, 7, generator=torch.Generator().manual_seed(11))
    X, Z = (torch.randn(7, 1, rep.size, generator=drawn, dtype=torch.float64) for _ in range(2))
    size = (X + Z + model.offset).norm()
    for g, rho in zip(rep.group.elements, matrices(rep), strict=True):
        expected = 7**0.5 * (model.offset - rho @ model.offset).norm() / size
        assert errors[str(g)] == pytest.approx(expected.item(), abs=1e-12)
    assert all(((t >= 0) & (t <= 1)).all() and t.shape == (7,) for t in model.times)


def test_without_a_generator_the_check_repeats_itself_and_leaves_the_global_state(network):
    model = network()
    state = torch.get_rng_state()
    first = check_equivariance(model)
    assert check_equivariance(model) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert check_equivariance(model, generator=torch.Generator().manual_seed(1)) != first


def test_the_check_runs_in_eval_and_gives_every_module_its_mode_back(network):
    model = network().eval()
    allowed = rounding(model, *inputs(model))
    model.train()
    model.decoder[0].eval()
    modes = [m.training for m in model.modules()]
    assert True in modes and False in modes
    assert max(check_equivariance(model).values()) < allowed  # dropout would break it
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_the_modes_come_back_from_a_network_that_fails(network):
    model = network().train()
    model.head.register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        check_equivariance(model)
    assert all(m.training for m in model.modules())


def test_a_network_without_representations_is_refused_with_what_it_lacks():
    with pytest.raises(
        TypeError,
        match="equivariant regressor, got Linear without in_rep, cond_rep, out_rep, in_horizon",
    ):
        check_equivariance(nn.Linear(2, 2))
    with pytest.raises(
        TypeError, match="got CondTransformerRegressor without in_rep, cond_rep, out_rep$"
    ):
        check_equivariance(CondTransformerRegressor(3, 5, 2, 4, 3, 1, 2, 8))
