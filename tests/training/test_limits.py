"""A stage that ends early lets its learning rates fall first, and says so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgen._core.row_counts import RowCount
from fastgen.config import LoopConfig
from fastgen.config.training import OptimizerConfig
from fastgen.methods.kd import KnowledgeDistillation
from fastgen.methods.matching import DistributionMatching
from fastgen.records.log import read_log, timeless
from fastgen.training.due import due_after
from fastgen.training.endings import Ending
from fastgen.training.evaluations import Asked, TeacherEvaluations
from fastgen.training.limits import Limits
from fastgen.training.processes import OneProcess
from fastgen.training.run_state import RunState
from fastgen.training.trained_network import TrainedNetwork
from support.runs import Counter, follow, kept, train, weights
from support.toy import Pulled, plug_pulled, toy_config

#          start  1    2    3    4    5    6    7    8
FALLS_LATE = [0.5, 0.9, 0.6, 0.7, 0.7, 0.7, 0.4, 0.8, 0.3]


class Rated(Counter):
    """A stage that remembers how far its rates were from their end."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.share_of_rate = 1.0
        self.shares: list[float] = []

    def update(self, step: int):
        self.shares.append(self.share_of_rate)
        return super().update(step)


# ---- Rates ---------------------------------------------------------------------------------------


def test_rates_fall_linearly_from_where_they_stood_to_the_end_of_their_schedule():
    ending = Ending(decided=6, last=9, planned=20, why="")
    assert [ending.share_of_rate(update) for update in (6, 7, 8)] == [0.75, 0.5, 0.25]
    law = OptimizerConfig(lr=1.0, final_lr_ratio=0.1)
    assert law.cooled(0.7, 1.0) == 0.7
    assert law.cooled(0.7, 0.5) == pytest.approx(0.4)
    assert law.cooled(0.7, 0.0) == pytest.approx(0.1)
    # In a warm-up that has not reached it, and for a rate that doesn't fall.
    assert law.cooled(0.05, 0.0) == 0.05
    assert OptimizerConfig(lr=1.0, final_lr_ratio=1.0).cooled(1.0, 0.2) == 1.0


def test_a_network_is_trained_by_the_rate_that_is_left():
    network = TrainedNetwork(
        nn.Linear(1, 1), OptimizerConfig(lr=1.0, warmup_steps=0), 10, OneProcess()
    )
    loss = network.bare(torch.ones(1, 1)).sum()
    full = network.update(loss, 3)["lr"]
    network.share_of_rate = 0.5
    half = network.update(network.bare(torch.ones(1, 1)).sum(), 3)["lr"]
    assert half == network.cfg.cooled(network.cfg.lr_at(3, 10), 0.5) < full


# ---- Patience ------------------------------------------------------------------------------------


def test_a_stage_out_of_patience_cools_down_and_its_best_average_is_kept(tmp_path):
    stage = Rated()
    trainer = follow(tmp_path, FALLS_LATE, stages=[stage], patience=2, cooldown=0.5)
    # Lost after update 4; half as many follow, of which the last is the best.
    assert stage.done == 6 and kept(trainer) == 6
    assert stage.shares == [1.0] * 4 + [2 / 3, 1 / 3]
    (row,) = (row for row in read_log(tmp_path) if "stopped_early" in row)
    assert row["step"] == 4
    assert row["stopped_early"].endswith(
        "its learning rates fall to their end until update 6, its last one of 8"
    )
    (told,) = trainer.limits.early_ends()
    assert "dmd ended early, after 6 of 8 updates, of which the last 2 with falling" in told
    assert told.endswith("Kept of it: its best validated average, that of update 6")


def test_a_cool_down_goes_no_further_than_the_stage(tmp_path):
    stage = Rated(steps=5)
    follow(tmp_path, FALLS_LATE, stages=[stage], patience=2, cooldown=1.0)
    assert stage.done == 5


def test_a_stage_that_ends_at_once_says_that_its_rates_were_high(tmp_path):
    trainer = follow(tmp_path, FALLS_LATE, patience=2, keep_best=False)
    (told,) = trainer.limits.early_ends()
    assert "without a cool-down" in told and told.endswith("Kept of it: its last average")
    assert kept(trainer) == 4


@pytest.mark.parametrize("pull_at", [4, 5, 6])
def test_a_run_that_is_killed_while_it_cools_ends_alike(tmp_path, pull_at):
    options = {"patience": 2, "cooldown": 0.5}
    whole = follow(tmp_path / "whole", FALLS_LATE, stages=[Rated()], **options)
    with pytest.raises(Pulled):
        follow(tmp_path / "killed", FALLS_LATE, stages=[Rated()], pull_at=pull_at, **options)
    stage = Rated()
    again = follow(tmp_path / "killed", FALLS_LATE, stages=[stage], resume=True, **options)
    assert (
        again.state.endings == whole.state.endings
        and again.limits.early_ends() == whole.limits.early_ends()
    )
    assert kept(again) == kept(whole) and stage.shares[-1] == 1 / 3
    rows = [[*map(timeless, read_log(tmp_path / name))] for name in ("whole", "killed")]
    assert rows[0] == rows[1]


def test_a_state_that_goes_on_beyond_an_early_end_is_refused(tmp_path):
    stage = Rated()
    trainer = follow(tmp_path, FALLS_LATE, stages=[stage], patience=2, cooldown=0.5)
    meta = trainer.state.to_json()
    assert RunState.from_json(meta, [stage.name]).to_json() == meta
    meta["updates"][0] = 7
    meta["iteration"] = 7
    with pytest.raises(ValueError, match=f"expected at most 6 updates of {stage.name}, got 7"):
        RunState.from_json(meta, [stage.name])


@pytest.mark.parametrize(("stage", "step"), [(KnowledgeDistillation, 5), (DistributionMatching, 9)])
def test_weights_of_a_resumed_run_that_cools_down_are_those_of_a_whole_one(tmp_path, stage, step):
    def config(name: str, **changes):
        # With noise in place of improvement: the rate is 0.
        still = {"lr": 1e-12}
        cfg = toy_config(
            tmp_path / name,
            kd_steps=9,
            steps=9,
            evaluate_every=2,
            checkpoint_every=1,
            patience=1,
            cooldown=0.5,
            kd_optimizer=still,
            student_optimizer=still,
        )
        return cfg.model_copy(update=changes)

    whole = train(config("whole"))
    assert set(whole.trainer.state.endings) == {"kd", "dmd"}
    assert all(end.last < end.planned for end in whole.trainer.state.endings.values())
    with plug_pulled(stage, step):
        train(config("again"))
    again = train(config("again", resume=True))
    assert again.trainer.limits.early_ends() == whole.trainer.limits.early_ends()
    expected = weights(tmp_path / "whole")
    found = weights(tmp_path / "again")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


# ---- Budget --------------------------------------------------------------------------------------


def ended_by_budget(budget: int, cooldown: float, steps: int = 20) -> tuple[RunState, int]:
    """Where a stage ends whose updates take 10 evaluations, and after how many updates."""
    stage = Counter(steps=steps)
    state = RunState()
    rows = RowCount()
    asked = Asked(rows, budget, {"dmd": 10})
    teacher = TeacherEvaluations(asked, {}, OneProcess(), ["dmd"])
    limits = Limits(state, LoopConfig(cooldown=cooldown), teacher)
    limits.heed_budget(stage)
    while not limits.is_over(stage):
        with teacher.asked_by("dmd"):
            rows.add(10)
        state.count_update()
        limits.heed_budget(stage)
    return state, state.updates


@pytest.mark.parametrize("cooldown", [0.0, 0.25, 1.0])
def test_a_budget_is_used_up_and_no_more_and_the_last_updates_cool_down(cooldown):
    state, updates = ended_by_budget(125, cooldown)
    assert updates == 12
    ending = state.endings["dmd"]
    assert ending.last == 12 and ending.planned == 20
    cooled = ending.last - ending.decided
    assert cooled == {0.0: 0, 0.25: 2, 1.0: 6}[cooldown]


def test_processes_add_up_once_for_an_update(monkeypatch):
    """Each time they wait for each other, and for a GPU."""
    asked = []
    add_up = TeacherEvaluations.add_up
    monkeypatch.setattr(
        TeacherEvaluations, "add_up", lambda self: (asked.append(1), add_up(self))[1]
    )
    _, updates = ended_by_budget(125, 0.25)
    assert len(asked) == updates + 1


def test_a_stage_whose_budget_is_spent_before_it_makes_no_update_and_says_so(tmp_path):
    stage = Counter()
    asked = Asked(RowCount(), 9, {"dmd": 10})
    trainer = follow(tmp_path, FALLS_LATE, stages=[stage], teacher=asked)
    assert stage.done == 0 and kept(trainer) == 0
    (row,) = read_log(tmp_path)
    assert "dmd update 0: stopped early, of train.teacher_calls=9 0 are" in row["stopped_early"]
    (told,) = trainer.limits.early_ends()
    assert told.startswith("dmd ended early, after 0 of 8 updates")


def test_a_stage_too_short_for_a_cool_down_is_not_said_to_have_left_it_out(tmp_path):
    """A tenth of four updates is none."""
    trainer = follow(tmp_path, FALLS_LATE, patience=2, cooldown=0.1)
    (told,) = trainer.limits.early_ends()
    assert "without a cool-down" in told and "train.cooldown=0" not in told


def test_a_budget_that_pays_for_all_ends_nothing():
    state, updates = ended_by_budget(200, 0.5)
    assert updates == 20 and not state.endings


# ---- Validations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("updates", "warmup", "every", "expected"),
    [
        (150, 50, 500, [50, 88, 126, 164, 200]),
        (3500, 0, 500, [0, 500, 1000, 1500, 2000, 2500, 3000, 3500]),
        (60, 0, 500, [0, 25, 50, 60]),
        (60, 0, 10, [0, 10, 20, 30, 40, 50, 60]),
        (1000, 0, 300, [0, 250, 500, 750, 1000]),
    ],
)
def test_a_short_stage_is_validated_four_times(updates, warmup, every, expected):
    stage = Counter(steps=warmup + updates, warmup=warmup)
    loop = LoopConfig(evaluate_every=every)
    due = [
        step
        for step in range(stage.updates + 1)
        if due_after(step, stage, loop, last=step == stage.updates).validation
    ]
    assert due == expected
