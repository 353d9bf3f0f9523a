"""Full precision: nothing less than float32 is left of a network, and nothing else is changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.precision import (
    in_full_precision,
    is_uniform,
    parameters_in,
    trainable,
)
from fastgen.networks import cast

NARROW = [torch.bfloat16, torch.float16, torch.float8_e4m3fn]


class Net(nn.Module):
    """A network with a tensor of every kind."""

    norm: nn.LayerNorm
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.rows = nn.Parameter(torch.arange(3), requires_grad=False)
        table = torch.rand(4)
        self.register_buffer("table", table)
        self.norm.register_buffer("table", table)
        self.register_buffer("turns", torch.full((4,), 0.5 + 1j), persistent=False)
        self.register_buffer("mask", torch.ones(4, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.body(x + self.table))


def dtypes(network: nn.Module) -> dict[str, torch.dtype]:
    named = [*network.named_parameters(), *network.named_buffers(remove_duplicate=False)]
    return {name: x.dtype for name, x in named}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_in_full_precision_stays_the_very_same(dtype):
    network = cast(Net(), dtype)
    before = {name: x.data_ptr() for name, x in network.state_dict().items()}
    assert is_uniform(network)
    in_full_precision(network)
    assert {name: x.data_ptr() for name, x in network.state_dict().items()} == before
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("dtype", NARROW)
def test_each_tensor_in_less_becomes_the_same_number_in_float32(dtype):
    wide = dtypes(Net())
    network = Net()
    cast(network, dtype)
    network.norm.register_buffer("table", network.table)  # one buffer of two modules
    assert not is_uniform(network)
    before = copy.deepcopy(network.state_dict())
    in_full_precision(network)
    assert dtypes(network) == wide
    assert network.norm.get_buffer("table") is network.table
    for name, x in network.state_dict().items():
        assert torch.equal(x, before[name].to(x.dtype))


def test_of_several_dtypes_each_tensor_is_looked_at_alone_and_any_input_is_taken():
    network = cast(Net(), torch.bfloat16)
    network.norm.double()
    in_full_precision(network)
    found = dtypes(network)
    assert found["body.weight"] == torch.float32 and found["norm.weight"] == torch.float64
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        x = torch.ones(2, 4, dtype=dtype)
        assert network(x).dtype == torch.float64
        assert copy.deepcopy(network)(x).equal(network(x))


def test_casting_leaves_complex_numbers_complex():
    network = cast(Net(), torch.float64)
    found = dtypes(network)
    assert found["turns"] == torch.complex64 and found["rows"] == torch.int64
    assert found["table"] == found["body.weight"] == torch.float64


def flags(network: nn.Module) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in network.named_parameters()}


def test_a_copy_is_trained_whole_or_as_its_original_is_frozen():
    network = Net()
    whole = flags(network)
    assert flags(trainable(copy.deepcopy(network), network)) == whole
    frozen = Net().requires_grad_(False)
    assert flags(trainable(copy.deepcopy(frozen), frozen)) == whole
    network.norm.requires_grad_(False)
    network.body.weight.requires_grad_(False)
    # Also a copy that lost the flags, as one of a network's own making may.
    assert flags(trainable(Net(), network)) == flags(network)
    assert [name for name, flag in flags(network).items() if flag] == ["body.bias"]


def test_parameters_come_in_the_order_of_torch():
    network = nn.Sequential(Net(), nn.Sequential(nn.Linear(2, 3), nn.ReLU()), Net())
    network[1].register_module("none", None)
    network[1].register_parameter("nothing", None)
    assert list(map(id, parameters_in(network))) == list(map(id, network.parameters()))
    network.append(network[0])
    assert set(map(id, parameters_in(network))) == set(map(id, network.parameters()))
