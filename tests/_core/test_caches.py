"""Cached weights: a network that keeps them in eval mode is trained as one that doesn't."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.caches import renew_before_calls, renew_caches
from fastgen._core.copies import copied
from support.foreign import ExpandedAtOnce, Expanding, with_head
from support.launched import Bodied

X = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0))
T = torch.linspace(0.1, 0.9, 5)
COND = torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(1))


def plain(network: Bodied) -> Bodied:
    """The same map without a cache."""
    twin = Bodied()
    twin.body.load_state_dict(network.body.state_dict())
    twin.head = nn.Linear(6, 8, bias=False)
    with torch.no_grad():
        twin.head.weight.copy_(2.0 * network.head.numbers.view(8, 6))
    return twin


def answer(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network(X, T, COND)


@pytest.mark.parametrize("kind", [Expanding, ExpandedAtOnce])
def test_each_call_in_eval_mode_has_the_weights_of_now_and_a_graph_of_its_own(kind):
    network = with_head(kind(6, 8)).eval()
    answer(network)
    clone = copied(network)
    renew_before_calls(clone)
    for step in range(3):
        with torch.no_grad():
            clone.head.numbers.add_(0.1 * step)
        assert torch.equal(answer(clone), answer(plain(clone)))
        clone.head.numbers.grad = None
        clone(X, T, COND).square().sum().backward()
        twin = plain(clone)
        twin(X, T, COND).square().sum().backward()
        expected = 2.0 * twin.head.weight.grad.flatten()
        torch.testing.assert_close(clone.head.numbers.grad, expected, rtol=1e-5, atol=1e-5)
    assert not clone.training and not clone.head.training


@pytest.mark.parametrize("kind", [Expanding, ExpandedAtOnce])
def test_what_is_renewed_once_has_no_graph(kind):
    network = with_head(kind(6, 8)).eval()
    answer(network)
    with torch.no_grad():
        network.head.numbers.mul_(2.0)
    renew_caches(network)
    assert torch.equal(answer(network), answer(plain(network)))
    kept = network.head._buffers.get("kept", network.head._buffers.get("filter"))
    assert not kept.requires_grad
    assert network.head.numbers.requires_grad


def test_modes_of_parts_stay_and_a_network_of_the_usual_kind_gets_no_hook():
    network = with_head(Expanding(6, 8)).eval()
    network.body[1].train()
    renew_before_calls(network)
    renew_before_calls(network)
    assert len(network._forward_pre_hooks) == 1
    answer(network)
    assert network.body[1].training and not network.head.training
    usual = Bodied()
    renew_before_calls(usual)
    assert not usual._forward_pre_hooks
