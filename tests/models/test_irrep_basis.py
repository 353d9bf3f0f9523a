"""A network in the irrep basis: the same function as in the regular basis, which can be compiled,
copied, averaged, cast and differentiated like any other."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from fastgen.models import (
    check_equivariance,
    eCondTransformerRegressor,
    fold,
    parse_group,
    parse_representation,
)
from fastgen.models.etransformer import irreps_win
from support.exact import normal

# Of sums in another order, over the layers of a network.
ROUNDING = 32 * torch.finfo(torch.float32).eps


def network(
    basis: str = "irrep", name: str = "D4", copies: int = 4, **changes
) -> eCondTransformerRegressor:
    group = parse_group(name)
    rep, cond = (
        parse_representation(group, ["standard"]),
        parse_representation(group, ["standard", "trivial"]),
    )
    options = {
        "num_layers": 1,
        "num_attention_heads": 2,
        "p_drop_emb": 0.0,
        "p_drop_attn": 0.0,
        **changes,
    }
    torch.manual_seed(0)
    return eCondTransformerRegressor(
        rep, cond, rep, 4, 3, embedding_dim=copies * group.order(), basis=basis, **options
    )


def inputs(model, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    dtype = model.head.weight.dtype
    X, Z = (
        normal(batch, 4, model.in_dim).to(dtype),
        normal(batch, 3, model.cond_dim, seed=1).to(dtype),
    )
    return X, torch.linspace(0.1, 0.9, batch), Z


@pytest.mark.slow
@pytest.mark.parametrize("norm_module", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("causal_attn", [False, True])
@pytest.mark.parametrize("name", ["C3", "C8", "D4", "Icosahedral"])
def test_the_network_is_the_same_function_of_the_same_state(
    name, causal_attn, norm_module, shaken, distance
):
    options = {
        "name": name,
        "causal_attn": causal_attn,
        "norm_module": norm_module,
        "num_cond_layers": 1,
    }
    model, other = (shaken(network(basis, **options)).double() for basis in ("irrep", "regular"))
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in other.state_dict().items()
    }
    assert distance(model(*inputs(model)), other(*inputs(other))) < 1e-13
    assert max(check_equivariance(model).values()) < 1e-12
    assert max(check_equivariance(model.float()).values()) < ROUNDING
    twin = fold(model)
    assert distance(twin(*inputs(model)), model(*inputs(model))) < ROUNDING
    assert all(
        torch.equal(v, fold(other.float()).state_dict()[k]) for k, v in twin.state_dict().items()
    )
    X, t, Z = inputs(model)
    assert distance(model(X[:, :2], t, Z[:, :1]), other(X[:, :2], t, Z[:, :1])) < ROUNDING


def test_a_seed_gives_the_same_network_and_the_same_training_in_every_basis(distance):
    models = [
        network(basis, p_drop_emb=0.2, p_drop_attn=0.2).double().train()
        for basis in ("irrep", "regular")
    ]
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        torch.manual_seed(1)
        for _ in range(3):
            optimizer.zero_grad()
            model(*inputs(model)).square().mean().backward()
            optimizer.step()
    # the masks on attention weights and copies are drawn in one order
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-10)


def test_auto_takes_the_irreps_where_they_win():
    assert type(network("auto", copies=4).embedding_rep) is type(network("regular").embedding_rep)
    wide = network("auto", copies=30)
    assert (
        type(wide.embedding_rep) is type(network("irrep").embedding_rep)
        and wide.config["basis"] == "auto"
    )
    cases = {
        (8, 240): True,
        (8, 232): False,
        (60, 240): True,
        (60, 180): False,
        (4, 512): False,
        (128, 256): False,
    }
    assert {case: irreps_win(*case) for case in cases} == cases


# ---- Whatever is done to a network ---------------------------------------------------------------


BASES = pytest.mark.parametrize("basis", ["regular", "irrep"])


@pytest.mark.slow
@BASES
def test_the_training_forward_compiles_without_a_break(basis, shaken, distance):
    model = shaken(network(basis)).double()
    model(*inputs(model)).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y = compiled(*inputs(model))
    y.square().sum().backward()
    assert distance(y, model(*inputs(model))) < 1e-12
    for p, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@BASES
def test_the_twin_compiles_and_is_exported_for_any_batch(basis, shaken):
    model = shaken(network(basis))
    twin = fold(model)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs(model)), twin(*inputs(model)))
    batch = torch.export.Dim("batch", min=2, max=64)
    for net in (twin, model.eval()):
        program = torch.export.export(
            net, inputs(model), dynamic_shapes=({0: batch}, {0: batch}, {0: batch})
        )
        torch.testing.assert_close(
            program.module()(*inputs(model, 7)), model(*inputs(model, 7)), rtol=1e-4, atol=1e-5
        )


@BASES
def test_copies_and_pickles_share_the_group(basis, shaken):
    model = shaken(network(basis))
    model(*inputs(model)).sum().backward()  # whatever a forward and a backward leave behind
    clone, again = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for other in (clone, again):
        assert torch.equal(other(*inputs(model)), model(*inputs(model)))
        groups = {
            id(m.in_rep.group)
            for net in (model, other)
            for m in net.modules()
            if hasattr(m, "in_rep")
        }
        assert groups == {id(model.in_rep.group)}
    assert clone.embedding_rep is model.embedding_rep is again.embedding_rep


@BASES
def test_an_average_in_eval_mode_is_never_stale(basis, shaken):
    model = shaken(network(basis)).eval()
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    average.eval()
    with torch.no_grad():
        average(*inputs(model))
        average.update_parameters(model)
        for p in model.parameters():
            p.mul_(1.5)
        average.update_parameters(model)
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for p in expected.parameters():
            p.mul_(1.25 / 1.5)
    torch.testing.assert_close(
        average(*inputs(model)), expected(*inputs(model)), rtol=1e-4, atol=1e-5
    )


@BASES
def test_half_precision_by_autocast_and_by_cast(basis, shaken, distance):
    model = shaken(network(basis))
    reference = model(*inputs(model))
    with torch.autocast("cpu", torch.bfloat16):
        y = model(*inputs(model))
    assert y.dtype == torch.bfloat16 and distance(y, reference) < 0.05
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    half = copy.deepcopy(model).bfloat16()
    y = half(*inputs(half))
    assert y.dtype == torch.bfloat16 and distance(y, reference) < 0.1
    y.float().square().mean().backward()


@BASES
def test_built_on_no_device_it_takes_a_state(basis, shaken):
    model = shaken(network(basis))
    with torch.device("meta"):
        empty = network(basis)
    empty = empty.to_empty(device="cpu")
    empty.load_state_dict(model.state_dict())
    assert torch.equal(empty(*inputs(model)), model(*inputs(model)))


@BASES
def test_checkpointing_gives_the_same_gradients(basis, shaken):
    model = shaken(network(basis, p_drop_attn=0.2, p_drop_emb=0.2)).double().train()
    grads = []
    for run in (
        model,
        lambda *a: torch.utils.checkpoint.checkpoint(model, *a, use_reentrant=False),
    ):
        model.zero_grad()
        torch.manual_seed(0)
        run(*inputs(model)).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for p, q in zip(*grads, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


@BASES
def test_function_transforms_see_through(basis, shaken, distance):
    model = shaken(network(basis)).double()
    X, t, Z = inputs(model)
    t = t.double()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        _, slope = torch.func.jvp(lambda t: model(X, t, Z), (t,), (torch.ones_like(t),))
        difference = (model(X, t + 1e-6, Z) - model(X, t - 1e-6, Z)) / 2e-6
    assert distance(slope, difference) < 1e-5
