"""What a distillation will ask of its teacher, counted in small before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .._core.conditions import cond_to
from .._core.seeds import draws_apart
from ..methods.method import Batch, PlannedNetwork
from ..methods.registry import stages_of
from ..networks import network_device
from ..teachers.guided import asking_all_rows
from .pairs import evaluations_of_a_pair
from .setup import Setup

__all__ = [
    "PlannedEvaluations",
    "check_budget",
    "check_pairs",
    "evaluation_notes",
    "planned_evaluations",
    "planned_pairs",
]

# What a loss asks of the teacher, until it is taken.
_LOSS = "a loss"


class PlannedEvaluations(NamedTuple):
    """Teacher evaluations that pairs and training will take.

    Attributes:
        pairs: of all pairs.
        stages: stage -> of all its updates.
        of_an_update: stage -> of one update of the student with those of its judges.
    """

    pairs: int
    stages: dict[str, int]
    of_an_update: dict[str, int]


def planned_evaluations(setup: Setup, *, processes: int = 1) -> PlannedEvaluations:
    """The evaluations of a run: pairs and the losses of a micro-batch are made in small, and
    counted.

    Each row of an update counts as guided. With an interval of guidance those outside of it take
    half of that.

    Args:
        setup: the networks of the run and its data.
        processes: that share the batch.
    """
    cfg = setup.cfg
    stages = {}
    of_an_update = {}
    size = cfg.train.micro_batch(processes)
    device = network_device(setup.source, setup.x0.device)
    batch = Batch(*(cond_to(part, device) for part in setup.batch(size)))
    for method in stages_of(cfg):
        planned = method.plan(setup, batch)
        rows = [cfg.train.batch_size * count // size for count in _rows_of_losses(setup, planned)]
        turns = sum(count * network.turns for count, network in zip(rows, planned, strict=True))
        warmup = sum(count * network.warmup for count, network in zip(rows, planned, strict=True))
        of_an_update[method.stage] = turns
        stages[method.stage] = warmup + turns * method.updates(cfg)
    return PlannedEvaluations(planned_pairs(setup), stages, of_an_update)


def planned_pairs(setup: Setup) -> int:
    """The evaluations of the pairs of a run, 0 where no stage uses them."""
    cfg = setup.cfg
    if not any(method.uses_pairs(cfg) for method in stages_of(cfg)):
        return 0
    return cfg.train.kd_pairs * evaluations_of_a_pair(setup)


def _rows_of_losses(setup: Setup, planned: Sequence[PlannedNetwork]) -> list[int]:
    """What the loss of each network asks of the teacher for its micro-batch."""
    device = network_device(setup.source, setup.x0.device)
    rows = []
    for network in planned:
        if network.loss is not None:
            counted = setup.rows.part(_LOSS)
            with counted, asking_all_rows(setup.teacher), draws_apart(device), torch.no_grad():
                network.loss()
        rows.append(setup.rows.take(_LOSS))
    return rows


def check_budget(setup: Setup, planned: PlannedEvaluations, *, decision: int = 0) -> None:
    """Refuse a budget of teacher evaluations that pays for too little.

    Args:
        setup: the networks of the run.
        planned: evaluations of its pairs and stages.
        decision: evaluations that `method: auto` has already taken.

    Raises:
        ValueError: these, pairs, the warm-ups and one update of each stage already take more than
            `train.teacher_calls`; which keys to lower.
    """
    train = setup.cfg.train
    budget = train.teacher_calls
    if budget is None:
        return
    check_pairs(setup, planned.pairs, decision=decision)
    least = decision + planned.pairs
    for method in stages_of(setup.cfg):
        updates = method.updates(setup.cfg)
        of_an_update = planned.of_an_update[method.stage]
        least += planned.stages[method.stage] - (updates - 1) * of_an_update
    if least > budget:
        raise ValueError(
            f"expected train.teacher_calls >= {least:,}, what the pairs ({planned.pairs:,}) and "
            f"the first update of each stage take, got {budget:,}{_beside(decision)}; lower "
            "train.kd_pairs, train.kd_teacher_calls or train.batch_size"
        )


def check_pairs(setup: Setup, pairs: int, *, decision: int = 0) -> None:
    """Refuse a budget of teacher evaluations that doesn't pay for the pairs alone.

    Args:
        setup: the networks of the run.
        pairs: evaluations of its pairs.
        decision: evaluations that `method: auto` has already taken.

    Raises:
        ValueError: both take more than `train.teacher_calls`; which keys to change.
    """
    train = setup.cfg.train
    budget = train.teacher_calls
    if budget is None or decision + pairs <= budget:
        return
    of_a_pair = pairs // train.kd_pairs
    paid = max(0, budget - decision) // of_a_pair
    remedy = f"lower train.kd_pairs to {paid:,}" if paid else "raise it"
    raise ValueError(
        f"expected pairs within train.teacher_calls={budget:,}{_beside(decision)}, got {pairs:,} "
        f"teacher evaluations for train.kd_pairs={train.kd_pairs:,} of {of_a_pair} each; "
        f"{remedy}, or lower train.kd_teacher_calls"
    )


def _beside(decision: int) -> str:
    """What a message says of a decision's evaluations."""
    return f", of which the decision took {decision:,}" if decision else ""


def evaluation_notes(setup: Setup, planned: PlannedEvaluations) -> list[str]:
    """What a dry run says of the teacher's evaluations."""
    parts = {"pairs": planned.pairs, **planned.stages}
    total = sum(parts.values())
    said = "; ".join(f"{part} {count:,}" for part, count in parts.items())
    notes = [f"teacher evaluations (rows through its network): {said}; total {total:,}"]
    budget = setup.cfg.train.teacher_calls
    if budget is not None and total > budget:
        left = budget - (total - list(planned.stages.values())[-1])
        last = list(planned.stages)[-1]
        notes.append(
            f"train.teacher_calls={budget:,} ends the training early, with {max(left, 0):,} "
            f"evaluations for {last}, of which an update takes {planned.of_an_update[last]:,}; "
            "set train.steps to what it pays for, so that the learning rate falls to its end"
        )
    return notes
