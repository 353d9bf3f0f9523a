"""The backbone interface: what a regressor must define."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgen.models import CondTransformerRegressor, GenCondRegressor
from fastgen.models.arguments import (
    batch_of_times,
)


class Scaled(GenCondRegressor):
    """V = t X, the least that a backbone can be."""

    def forward(self, X: Tensor, opt_step: Tensor | float | int, Z: Tensor) -> Tensor:
        return batch_of_times(opt_step, len(X), device=X.device, dtype=X.dtype)[:, None, None] * X


def test_only_a_class_with_a_forward_can_be_made():
    with pytest.raises(TypeError, match="abstract.*forward"):
        GenCondRegressor(1, 1, 1)  # pyright: ignore[reportAbstractUsage]
    assert issubclass(CondTransformerRegressor, GenCondRegressor)


def test_a_subclass_knows_its_dimensions_and_is_called_by_position():
    network = Scaled(3, 4, 5)
    assert (network.in_dim, network.out_dim, network.cond_dim) == (3, 4, 5)
    X = torch.ones(2, 6, 3)
    assert torch.equal(
        network(X, torch.tensor([0.0, 0.5]), torch.ones(2, 1, 5)),
        X * torch.tensor([0, 0.5])[:, None, None],
    )


@pytest.mark.parametrize("name", ["in_dim", "out_dim", "cond_dim"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, None, "3"])
def test_a_dimension_that_is_no_positive_int_is_named(name, value):
    with pytest.raises(ValueError, match=f"expected {name} to be an int >= 1, got {value!r}"):
        Scaled(**{"in_dim": 1, "out_dim": 1, "cond_dim": 1, name: value})
