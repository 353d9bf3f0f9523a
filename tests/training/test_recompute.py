"""Blocks that are computed twice: the same results and names, fewer activations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastgen._core.modules import evaluating, frozen
from fastgen.methods.fake_scores import create_fake_score
from fastgen.models.transformer import CondTransformerRegressor
from fastgen.training.memory import activation_bytes
from fastgen.training.recompute import keep_blocks, recompute_blocks, recomputed
from support.toy import PointTeacher

X = torch.ones(6, 3, 4).double()
T = torch.linspace(0.1, 0.9, 6).double()
Z = torch.ones(6, 2, 2).double()


def network(p_drop: float = 0.2) -> nn.Module:
    torch.manual_seed(0)
    return CondTransformerRegressor(4, 4, 2, 3, 2, 3, 2, 16, p_drop, p_drop).double()


def gradients(net: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Output and gradients with fixed dropout."""
    torch.manual_seed(1)
    out = net(X, T, Z)
    out.square().mean().backward()
    return out.detach(), {
        name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None
    }


def test_results_are_those_of_kept_blocks_bit_for_bit_dropout_included():
    plain = network()
    twice = recompute_blocks(copy.deepcopy(plain))
    assert len(recomputed(twice)) == 3 and not recomputed(plain)
    out, grads = gradients(plain)
    out2, grads2 = gradients(twice)
    assert torch.equal(out, out2) and grads.keys() == grads2.keys()
    assert all(torch.equal(grads[name], grads2[name]) for name in grads)
    # Dropout is on, or the above would say little about it.
    assert not torch.equal(out, plain.eval()(X, T, Z))


def test_names_copies_and_types_stay():
    plain = network()
    twice = recompute_blocks(network())
    assert list(plain.state_dict()) == list(twice.state_dict())
    assert [type(m).__name__ for m in plain.modules()] == [
        type(m).__name__ for m in twice.modules()
    ]
    other = copy.deepcopy(twice)
    with torch.no_grad():
        for parameter in other.decoder.parameters():
            parameter.zero_()
    assert not torch.equal(
        other.eval()(X, T, Z), twice.eval()(X, T, Z)
    )  # a copy computes with its own weights
    kept = keep_blocks(twice)
    assert not recomputed(kept) and [type(m) for m in kept.modules()] == [
        type(m) for m in plain.modules()
    ]


def test_the_second_forward_has_the_modes_and_frozen_weights_of_the_first():
    """A loss may be computed in eval mode through frozen weights, and differentiated when both are
    as before."""
    plain = network()
    twice = recompute_blocks(copy.deepcopy(plain))
    found = []
    for net in (plain, twice):
        x = X.clone().requires_grad_(True)
        with frozen(net), evaluating(net):
            loss = net(x, T, Z).square().mean()
        assert all(p.requires_grad for p in net.parameters()) and net.training
        loss.backward()
        assert all(p.grad is None for p in net.parameters())
        assert all(m.training for m in net.modules()) and all(
            p.requires_grad for p in net.parameters()
        )
        found.append(x.grad)
    assert torch.equal(*found)


def test_fewer_activations_are_kept():
    plain = network(0.0)
    twice = recompute_blocks(network(0.0))
    kept, again = (
        activation_bytes(lambda net=net: net(X, T, Z).sum(), [net]) for net in (plain, twice)
    )
    assert again < 0.75 * kept
    assert len(recomputed(twice)) == 3  # as before the measurement


def test_blocks_of_a_network_that_is_called_but_not_registered_are_seen():
    """A fake score of low rank takes what its teacher's modules take, whoever is asked for them."""
    teacher = recompute_blocks(network(0.0)).eval()
    fake = create_fake_score(teacher, num_rungs=2, rank=2)
    inner = fake.network.network
    assert recomputed(fake) == recomputed(inner) and len(recomputed(fake)) == 3

    def loss() -> torch.Tensor:
        return fake(X, T, Z).sum()

    seen = activation_bytes(loss, [teacher, fake])
    assert seen == activation_bytes(loss, [teacher, fake, inner])
    assert len(recomputed(fake)) == 3  # as before the measurement
    # What a block keeps beyond its inputs is counted once, for the largest of the three.
    kept = activation_bytes(loss, [teacher, keep_blocks(fake)])
    assert not recomputed(inner) and seen < 0.75 * kept
    assert len(recomputed(recompute_blocks(fake))) == 3


def test_a_network_without_blocks_is_refused():
    with pytest.raises(
        ValueError, match="expected a network with blocks in an nn.ModuleList .* got PointTeacher"
    ):
        recompute_blocks(PointTeacher())
