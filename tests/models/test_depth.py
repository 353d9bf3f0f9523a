"""A deeper network is the same function at the start and learns from there; a shallower one keeps
evenly chosen layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.seeds import generator_for
from fastgen.models import MLP, build_model, check_equivariance, with_layers
from fastgen.models.depth import change_layers, layers_of, spread_places
from fastgen.models.equivariance import fold
from fastgen.models.patches import PatchTransformer
from support.etransformer import inputs, trained
from support.networks import dense, equivariant, shaken

MAKE = {"dense": dense, "D4": equivariant, "C2": lambda **more: equivariant("C2", **more)}
makes = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())


def images(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return shaken(PatchTransformer(1, 8, 4, 3, layers, 2, 8))


def drawn(network: nn.Module) -> Tensor:
    """What a network of images answers."""
    x = torch.randn(5, 1, 8, 8, generator=seeded()).to(next(network.parameters()).dtype)
    return network(x, torch.linspace(0.1, 0.9, 5), torch.tensor([0, 1, 2, 3, 1]))


def seeded() -> torch.Generator:
    return generator_for(0, "layers")


def answer(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network(*inputs(network))


def configured(network: Any) -> dict[str, Any]:
    return network.config


@pytest.mark.parametrize("few", range(1, 6))
def test_places_are_distinct_increasing_and_reach_both_ends(few):
    for many in range(few, 12):
        places = spread_places(few, many)
        assert places == sorted(set(places)) and len(places) == few
        assert places[0] == 0
        gaps = [b - a for a, b in zip(places, places[1:], strict=False)]
        if few > 1:
            assert places[-1] == many - 1
            assert max(gaps) - min(gaps) <= 1


def test_three_of_six_are_where_the_first_the_middle_and_the_last_lie():
    assert spread_places(3, 6) == [0, 2, 5]
    assert spread_places(1, 4) == [0]


@makes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [False, True])
def test_a_deeper_network_is_the_same_function(make, dtype, training):
    options = {"num_layers": 3, "causal_attn": True, "p_drop_emb": 0.0, "p_drop_attn": 0.0}
    network = make(**options).to(dtype).train(training)
    deeper = with_layers(network, 6, seeded())
    assert all(module.training == training for module in deeper.modules())
    assert all(p.dtype == dtype and p.requires_grad for p in deeper.parameters())
    assert torch.equal(answer(deeper), answer(network))
    assert layers_of(network) == 3 and layers_of(deeper) == 6
    assert configured(network)["num_layers"] == 3 and configured(deeper)["num_layers"] == 6


@makes
def test_a_new_layer_hands_on_what_it_is_given_under_dropout_too(make):
    deeper: Any = with_layers(make(num_layers=1, p_drop_attn=0.5), 2, seeded()).train()
    new = deeper.decoder[1]
    width = deeper.config["embedding_dim"]
    x = torch.randn(3, 4, width, generator=seeded())
    memory = torch.randn(3, 2, width, generator=seeded())
    assert torch.equal(new(x, memory, torch.ones(3, 64)), x)
    assert not torch.equal(deeper.decoder[0](x, memory, torch.ones(3, 64)), x)


def test_a_network_in_the_irrep_basis_is_the_same_function():
    network = equivariant(num_layers=2, basis="irrep")
    assert torch.equal(answer(with_layers(network, 5, seeded())), answer(network))


@makes
def test_new_layers_are_trained_and_the_symmetry_stays(make):
    network = make(num_layers=2)
    deeper = with_layers(network, 4, seeded())
    before = {name: p.detach().clone() for name, p in deeper.named_parameters()}
    trained(deeper)
    assert not [name for name, p in deeper.named_parameters() if torch.equal(p, before[name])]
    assert not torch.equal(answer(deeper), answer(network))
    if hasattr(network, "in_rep"):
        assert max(check_equivariance(deeper.double()).values()) < 1e-12
        torch.testing.assert_close(answer(fold(deeper)), answer(deeper))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_of_images_grows_by_its_gates_and_every_weight_is_trained(dtype):
    network = images().to(dtype)
    deeper: Any = with_layers(network, 4, seeded())
    assert torch.equal(drawn(deeper), drawn(network))
    assert layers_of(deeper) == 4
    before = {name: p.detach().clone() for name, p in deeper.named_parameters()}
    optimizer = torch.optim.AdamW(deeper.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        drawn(deeper).square().mean().backward()
        optimizer.step()
    assert not [name for name, p in deeper.named_parameters() if torch.equal(p, before[name])]
    shallower = with_layers(images(3), 2)
    rebuilt = build_model(configured(shallower)).to(next(shallower.parameters()).dtype)
    rebuilt.load_state_dict(shallower.state_dict())
    assert torch.equal(drawn(rebuilt), drawn(shallower))


def test_without_zeroed_maps_a_layer_changes_the_function():
    network = dense(num_layers=2)
    deeper: Any = with_layers(network, 3, seeded())
    new = deeper.decoder[1]
    for last in new.last_maps():
        kept = last.weight.detach().clone()
        with torch.no_grad():
            last.weight.add_(0.1)
            assert not torch.allclose(answer(deeper), answer(network))
            last.weight.copy_(kept)
    assert torch.equal(answer(deeper), answer(network))


@makes
def test_new_layers_are_drawn_as_those_of_a_new_network(make):
    network = make(num_layers=2)
    deeper: Any = with_layers(network, 3, seeded())
    built: Any = build_model({**network.config, "num_layers": 1})
    fresh = built.decoder[0].state_dict()
    found = deeper.decoder[1].state_dict()
    ends = {"self_attention.out", "cross_attention.out", "mlp.down"}
    assert found.keys() == fresh.keys()
    for name, value in found.items():
        expected = fresh[name]
        if name.rpartition(".")[0] in ends:
            assert not value.any()
        elif expected.numel() > 100 and expected.any():
            torch.testing.assert_close(value.std(), expected.std(), rtol=0.3, atol=0.0)
        elif not name.endswith(".weight") or "norm" in name:
            torch.testing.assert_close(value, expected)


def test_a_generator_decides_the_new_layers_and_nothing_else_is_drawn():
    network = dense(num_layers=1)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = with_layers(network, 3, seeded()).state_dict()
    two = with_layers(network, 3, seeded()).state_dict()
    other = with_layers(network, 3, generator_for(1, "layers")).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    name = "decoder.1.mlp.up.weight"
    assert not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], one[name.replace("1", "2")])


@makes
@pytest.mark.parametrize(("layers", "kept"), [(4, [0, 1, 2, 3]), (3, [0, 1, 3]), (1, [0])])
def test_a_shallower_network_has_evenly_chosen_layers(make, layers, kept):
    network = make(num_layers=4)
    shallower: Any = with_layers(network, layers)
    for layer, place in zip(shallower.decoder, kept, strict=True):
        own = network.decoder[place].state_dict()
        assert all(torch.equal(own[name], value) for name, value in layer.state_dict().items())
    # A network built so is the same.
    rebuilt = build_model(shallower.config).eval()
    rebuilt.load_state_dict(shallower.state_dict())
    assert torch.equal(answer(rebuilt), answer(shallower))
    ours = {parameter.data_ptr() for parameter in network.parameters()}
    assert not ours & {parameter.data_ptr() for parameter in shallower.parameters()}


def test_what_was_grown_is_found_again_when_it_shrinks():
    network = dense(num_layers=3)
    again = with_layers(with_layers(network, 5, seeded()), 3)
    assert torch.equal(answer(again), answer(network))


REFUSED: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "a user's": (lambda: nn.Linear(2, 2), 3, "with layers, got Linear"),
    "no stack": (lambda: MLP(4), 3, "with layers, got MLP"),
    "no layers": (dense, 0, "layers"),
}


@pytest.mark.parametrize(("make", "layers", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_layers_is_refused_by_name(make, layers, words):
    with pytest.raises(ValueError, match=words):
        with_layers(make(), layers)
    with pytest.raises(ValueError, match=words):
        change_layers(make(), layers)
