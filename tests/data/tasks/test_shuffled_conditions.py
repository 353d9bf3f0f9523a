"""Scores that see the condition: samples of the law beside the wrong conditions fail them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgen._core.seeds import generator_for
from fastgen.data.tasks import ring, two_rings
from fastgen.data.tasks.ring import RingTask
from fastgen.data.tasks.two_rings import TwoRingsTask

GOOD_IF_HIGH = ("success", "clearance")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "demonstrate"),
    [(RingTask(size=64), ring.demonstrate), (TwoRingsTask(size=64), two_rings.demonstrate)],
    ids=["ring", "two_rings"],
)
def test_a_shuffled_condition_fails_every_score(task, demonstrate):
    def right(Z: Tensor, noise: Tensor) -> Tensor:
        return demonstrate(Z, generator_for(0)).float()

    def shuffled(Z: Tensor, noise: Tensor) -> Tensor:
        return right(Z[torch.randperm(len(Z), generator=generator_for(1))], noise)

    good = task.evaluate(right, quick=True)
    bad = task.evaluate(shuffled, quick=True)
    assert good.keys() == bad.keys() and task.primary in good
    for name, value in good.items():
        if name in GOOD_IF_HIGH:
            assert bad[name] < 0.6 * value, name
        else:
            assert bad[name] > 2.0 * value, name
