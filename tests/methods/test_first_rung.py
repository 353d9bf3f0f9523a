"""A first rung that is regressed on teacher pairs while later ones are matched: two losses that
meet at no weight of a student with weights for each rung."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.seeds import generator_for
from fastgen.config import DMDConfig
from fastgen.dmd import DMDPipeline
from fastgen.methods.kd import KnowledgeDistillation
from fastgen.methods.matching import DistributionMatching
from support.exact import normal
from support.pipeline import T_LIST, Net, build
from support.stages import trained
from support.updates import BATCH, draws

REGRESS = {"first_rung": "regress", "kd_weight": 1.0}


class ByRung(nn.Module):
    """A flow of weights of its own for each rung, told by its time."""

    def __init__(self) -> None:
        super().__init__()
        self.rungs = nn.ModuleList(Net(seed) for seed in range(4))

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.rungs[T_LIST.index(float(t[0]))](x_t, t, cond)


def drawn(pipeline: DMDPipeline, n: int = 400) -> Counter[int]:
    noise = normal(1, 3)
    found = Counter()
    for seed in range(n):
        made = pipeline.generate(None, noise, noise, generator=generator_for(seed))
        found[int(made.rung)] += 1
    return found


def test_later_rungs_are_matched_as_often_as_their_weights_say():
    rungs = drawn(build(t_list=T_LIST, **REGRESS))
    assert set(rungs) == {1, 2, 3} and min(rungs.values()) > 100
    rungs = drawn(build(t_list=T_LIST, rung_weights=(5.0, 1.0, 0.0, 3.0), **REGRESS))
    assert set(rungs) == {1, 3} and 2 < rungs[3] / rungs[1] < 4.5


def test_without_backward_simulation_no_sample_is_of_the_first_rung():
    pipeline = build(t_list=T_LIST, backward_simulation=False, **REGRESS)
    noise = normal(200, 3)
    _, t, rung = pipeline.student_input(noise, noise, noise, generator=generator_for(0))
    assert isinstance(rung, Tensor) and set(rung.tolist()) == {1, 2, 3}
    assert isinstance(t, Tensor) and float(t.max()) == T_LIST[1]


@pytest.mark.parametrize("sample_type", ["ode", "sde"])
def test_no_loss_of_matching_reaches_the_first_rung_and_no_regression_a_later_one(sample_type):
    config = DMDConfig(t_list=T_LIST, student_sample_type=sample_type, **REGRESS)
    student = ByRung()
    pipeline = DMDPipeline(student, Net(7), Net(8), config)
    noise = normal(BATCH, 3)

    def reached() -> list[bool]:
        found = [any(p.grad is not None for p in net.parameters()) for net in student.rungs]
        student.zero_grad()
        return found

    for seed in range(6):
        pipeline.compute_student_loss(None, noise, noise, generator=generator_for(seed))[
            "total"
        ].backward()
        now = reached()
        assert not now[0] and sum(now) == 1
    states = torch.stack([noise * t for t in T_LIST], 1)
    network: Any = trained(network=student, ema=False)
    pairs = KnowledgeDistillation(
        network, states, noise, config, 3, 0.02, draws(), first_rung_only=True
    )
    # All of its samples are of the first rung, so that the batch has one time.
    pairs.loss(*pairs.batch(0)).backward()
    assert reached() == [True, False, False, False]
    # Together, the first rung learns of the regression alone, bit for bit.
    pairs.loss(*pairs.batch(0)).backward()
    alone = [p.grad.clone() for p in student.rungs[0].parameters() if p.grad is not None]
    student.zero_grad()
    stage = DistributionMatching(
        network, None, pipeline, noise, noise, config, 1, draws(), pairs=pairs
    )
    seen = []

    def update(losses, step):
        for loss in losses:
            loss().backward()
        seen.extend(p.grad for p in student.rungs[0].parameters() if p.grad is not None)
        return {"grad_norm": 0.0, "lr": 0.0}

    network.update = update
    stage.update(0)
    assert len(seen) == len(alone) > 0
    assert all(torch.equal(a, b) for a, b in zip(seen, alone, strict=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"first_rung": "regress"}, "expected kd_weight > 0 with first_rung=regress"),
        ({**REGRESS, "student_steps": 1}, "expected student.steps >= 2 with first_rung=regress"),
        ({**REGRESS, "student_steps": 2, "rung_weights": (1.0, 0.0)}, "rung_weight > 0 after"),
    ],
)
def test_what_leaves_nothing_to_match_is_refused(changes, words: str):
    with pytest.raises(ValueError, match=words):
        DMDConfig(**changes)
