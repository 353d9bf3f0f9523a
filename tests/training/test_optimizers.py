"""AdamW's groups: the network's own where they serve, else all parameters, with a word."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from fastgen.config import OptimizerConfig
from fastgen.training.optimizers import adam
from support.foreign import Forgetful, Integer, Unfit
from support.launched import Bodied
from support.networks import dense

CFG = OptimizerConfig(weight_decay=0.1)


def trained(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


class Foreign(Bodied):
    def get_optim_groups(self, weight_decay: float = 1e-3) -> list[dict]:
        other = nn.Parameter(torch.zeros(1))
        return [{"params": [*self.parameters(), other], "weight_decay": weight_decay}]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Unfit, "Unfit raises ValueError: unrecognised parameter body.0.weight; all"),
        (Forgetful, r"Forgetful leaves out 2 parameter\(s\) that are trained: head.weight; all"),
        (Foreign, "Foreign names a parameter twice, or one that the network doesn't have; all"),
    ],
)
def test_groups_that_do_not_serve_are_replaced_by_one_with_all_parameters(kind, said):
    network = kind()
    with pytest.warns(UserWarning, match=f"get_optim_groups of {said}"):
        optimizer = adam(network, CFG)
    assert trained(optimizer) == {id(p) for p in network.parameters()}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1]


def test_groups_that_serve_and_networks_without_them_need_no_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [g["weight_decay"] for g in adam(dense(), CFG).param_groups] == [0.1, 0.0]
        frozen = Forgetful()
        frozen.head.requires_grad_(False)
        assert len(trained(adam(frozen, CFG))) == 2
        network = Integer()
        assert trained(adam(network, CFG)) == {id(p) for p in Bodied.parameters(network)} - {
            id(network.order)
        }
