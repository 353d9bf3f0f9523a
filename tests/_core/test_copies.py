"""Copies of networks: bare, of the same answers, with weights, hooks and patches of their own."""

from __future__ import annotations

import functools
from types import MethodType

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.copies import copied
from fastgen._core.modules import load_state, state_of
from support.launched import AROUND, PLACES, Bodied, launched

X = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0))
T = torch.linspace(0.1, 0.9, 5)
COND = torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(1))


def answer(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network(X, T, COND)


# ---- Launchers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("around", AROUND)
def test_a_copy_and_the_names_of_a_launched_network_are_those_of_the_bare_one(around, place):
    expected = answer(Bodied())
    network = launched(Bodied(), around, place)
    clone = copied(network)
    assert clone.state_dict().keys() == Bodied().state_dict().keys()
    assert {type(part) for part in clone.modules()} == {type(part) for part in Bodied().modules()}
    assert torch.equal(answer(clone), expected)

    state = state_of(network)
    Bodied(seed=1).load_state_dict(state, strict=True)
    other = launched(Bodied(seed=1), around, place)
    load_state(other, state)
    for name, value in state_of(other).items():
        assert torch.equal(value, Bodied().state_dict()[name])
    assert torch.equal(answer(network), expected)


def test_a_module_of_ones_own_that_is_called_module_keeps_its_name():
    network = nn.ModuleDict({"module": nn.Linear(2, 2), "other": nn.DataParallel(nn.Linear(2, 2))})
    assert list(state_of(network)) == [
        "module.weight",
        "module.bias",
        "other.weight",
        "other.bias",
    ]


# ---- Patches -------------------------------------------------------------------------------------


def doubled_by_method(network: Bodied) -> None:
    def forward(self: Bodied, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return 2.0 * type(self).forward(self, x_t, t, cond)

    network.forward = MethodType(forward, network)


def doubled_by_closure(network: Bodied) -> None:
    before = network.forward

    def forward(x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return 2.0 * before(x_t, t, cond)

    network.forward = forward


def doubled_by_two_closures(network: Bodied) -> None:
    doubled_by_closure(network)
    before = network.forward

    @functools.wraps(before)
    def forward(*args: Tensor, inner=before) -> Tensor:
        return inner(*args)

    network.forward = forward


def doubled_by_partial(network: Bodied) -> None:
    def forward(net: nn.Module, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return 2.0 * Bodied.forward(net, x_t, t, cond)

    network.forward = functools.partial(forward, network)


def doubled_by_hook(network: Bodied) -> None:
    network.register_forward_hook(lambda module, args, output: 2.0 * output)


def doubled_by_hook_on_a_weight(network: Bodied) -> None:
    weight = network.head.weight
    bias = network.head.bias
    network.head.register_forward_hook(lambda module, args, out: 2.0 * (args[0] @ weight.T + bias))


def doubled_before_the_head(network: Bodied) -> None:
    def twice(module: nn.Module, args: tuple[Tensor]) -> Tensor:
        return 2.0 * args[0]

    network.head.register_forward_pre_hook(twice)
    with torch.no_grad():
        network.head.bias.mul_(2.0)


def doubled_and_compiled(network: Bodied) -> None:
    doubled_by_closure(network)
    network.forward = torch.compile(network.forward, backend="eager")


def doubled_in_a_part(network: Bodied) -> None:
    before = network.head.forward
    network.head.forward = lambda x: 2.0 * before(x)


PATCHES = [
    doubled_by_method,
    doubled_by_closure,
    doubled_by_two_closures,
    doubled_by_partial,
    doubled_by_hook,
    doubled_by_hook_on_a_weight,
    doubled_before_the_head,
    doubled_and_compiled,
    doubled_in_a_part,
]


@pytest.mark.parametrize("patch", PATCHES)
def test_a_copy_keeps_patches_and_they_speak_of_its_own_weights(patch):
    network = Bodied()
    patch(network)
    clone = copied(network)
    assert torch.equal(answer(clone), answer(network))
    torch.testing.assert_close(answer(clone), 2.0 * answer(Bodied()))

    before = answer(network)
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.zero_()
    assert torch.equal(answer(network), before)
    assert not answer(clone).any()

    clone(X, T, COND).sum().backward()
    assert all(parameter.grad is None for parameter in network.parameters())
    assert clone.head.bias.grad is not None


# ---- Computed tensors ----------------------------------------------------------------------------


class Keeping(Bodied):
    """Keeps what it computed, as networks do whose attention maps are looked at."""

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        output = super().forward(x_t, t, cond)
        self.last = output
        self.maps = {"all": [output, (output.mean(),)]}
        return output


def test_tensors_that_a_forward_keeps_are_copied_as_numbers():
    network = Keeping()
    network(X, T, COND)
    clone = copied(network)
    assert torch.equal(clone.last, network.last)
    assert not clone.last.requires_grad
    assert clone.maps["all"][0] is clone.last


@pytest.mark.parametrize("normed", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_old_norms_of_weights_are_copied_and_trained_apart(normed):
    network = Bodied()
    normed(network.head)
    network.eval()
    network(X, T, COND)
    clone = copied(network)
    assert torch.equal(answer(clone), answer(network))
    for _ in range(2):
        clone(X, T, COND).sum().backward()
    assert {name for name, p in clone.named_parameters() if p.grad is not None} == {
        name for name, _ in clone.named_parameters()
    }
    assert all(parameter.grad is None for parameter in network.parameters())
