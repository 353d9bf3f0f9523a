"""What an update uses: a gradient where any process has one, and none where no process has."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen.training.processes import OneProcess
from fastgen.training.used import UsedParameters


class Others(OneProcess):
    """A process whose peer says what share of each parameter's users it is told."""

    shares: list[float]

    def mean(self, x: Tensor) -> Tensor:
        self.told = x.tolist()
        return torch.tensor(self.shares)


def test_a_gradient_of_zeros_stays_only_where_some_process_used_the_parameter():
    network = nn.ModuleList([nn.Linear(1, 1, bias=False) for _ in range(4)])
    network[3].requires_grad_(False)
    processes = Others()
    processes.shares = [1.0, 0.5, 0.0, 0.0]
    used = UsedParameters(network, network, processes)
    for _ in range(2):
        used.begin()
        used.reaching_all(network[0](torch.ones(1, 1)).sum()).backward()
        mine, theirs, nobodys, frozen = network.parameters()
        assert theirs.grad is None and nobodys.grad is None
        # What DDP leaves of parameters that this process didn't use.
        theirs.grad = torch.ones(1, 1)
        nobodys.grad = torch.zeros(1, 1)
        used.agree()
        assert processes.told == [1.0, 0.0, 0.0, 1.0]
        assert mine.grad is not None and theirs.grad is not None
        assert nobodys.grad is None and frozen.grad is None
        network.zero_grad()


def test_a_loss_that_reaches_all_parameters_is_the_same_and_so_are_its_gradients():
    network = nn.Linear(3, 2)
    x = torch.ones(4, 3)
    network(x).square().mean().backward()
    wanted = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    loss = network(x).square().mean()
    reaching = UsedParameters(network, network, OneProcess()).reaching_all(loss)
    reaching.backward()
    assert torch.equal(loss, reaching)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.equal(parameter.grad, wanted[name])
