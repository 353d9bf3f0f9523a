"""A run of `method: auto` measures, says, acts, and goes on after a kill as it had decided."""

from __future__ import annotations

import json

import pytest
import torch

from fastgen.distillation import distill
from fastgen.jobs import decisions
from fastgen.jobs.decisions import DECISIONS, tells_apart
from support.toy import ToyTask, ToyTeacher, toy_config, without_pictures


class Judged(ToyTask):
    """The toy, whose fresh data have a score to compare with."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self._floor = floor

    def floor(self) -> dict[str, float]:
        return {"energy": self._floor}


def run(folder, task, **train):
    cfg = toy_config(folder, **train)
    # As a user writes it: what is not set is open to decisions.
    cfg = cfg.model_copy(update={"method": "auto"})
    with without_pictures():
        distill(cfg, teacher=ToyTeacher(), task=task)
    return json.loads((folder / "report" / "report.json").read_text())


@pytest.mark.parametrize(("floor", "weak"), [(1e-3, True), (1e3, False)])
def test_the_report_tells_what_was_decided_and_by_which_numbers(tmp_path, capsys, floor, weak):
    report = run(tmp_path / "run", Judged(floor))
    told = report["decisions"][0]
    assert told in capsys.readouterr().err
    assert told in (tmp_path / "run" / "report" / "report.md").read_text()
    assert ("weak" in told) == weak
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    names = {name for row in rows for name in row}
    assert ("real_data" in names) == weak
    assert ("vsd" in names) != weak
    kept = json.loads((tmp_path / "run" / DECISIONS).read_text())
    rows = len(ToyTask().train.X)
    assert kept["evaluations"] == report["teacher_evaluations"]["decision"] == 16 * rows


def test_what_the_decision_asks_is_paid_by_the_budget(tmp_path):
    """768 for it, 160 for the pairs, 8 for an update after KD."""
    asked = 16 * len(ToyTask().train.X)
    folder = tmp_path / "run"
    report = run(folder, Judged(1e3), teacher_calls=asked + 160 + 24)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert rows[0]["teacher_evaluations"] == asked + 160
    assert rows[-1]["teacher_evaluations"] == asked + 160 + 24
    assert any("dmd ended early, after 7 of 9" in told for told in report["decisions"])
    calls = report["teacher_calls"]
    assert calls["decision"] == asked and calls["training"] == 24
    assert sum(calls.values()) == report["teacher_evaluations"]["total"]
    with pytest.raises(ValueError, match="of which the decision took 768"):
        run(tmp_path / "poor", Judged(1e3), teacher_calls=asked + 100)


@pytest.mark.parametrize(("budget", "remedy"), [(100, "to 25"), (3, "raise it, or lower")])
def test_a_budget_below_the_pairs_is_refused_before_the_teacher_is_sampled(
    tmp_path, budget, remedy
):
    """The folder is still free for a run with another budget."""
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match=remedy):
        run(folder, Judged(1e3), teacher_calls=budget)
    assert not (folder / DECISIONS).exists()
    run(folder, Judged(1e3), teacher_calls=1000)


def test_what_was_found_is_not_measured_again(tmp_path, monkeypatch):
    """A resumed run would otherwise decide anew, by the roundings of another machine."""
    folder = tmp_path / "run"
    run(folder, Judged(1e-3))
    weights = (folder / "student" / "student.safetensors").read_bytes()

    def no(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(decisions, "teacher_sampler", no)
    cfg = toy_config(folder).model_copy(update={"method": "auto", "resume": True})
    with without_pictures():
        distill(cfg, teacher=ToyTeacher(), task=Judged(1e-3))
    assert (folder / "student" / "student.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("change", "says"),
    [({"method": 1}, "decision.method"), ({"evaluations": -1}, "decision.evaluations")],
)
def test_a_damaged_decision_is_refused(tmp_path, change, says):
    folder = tmp_path / "run"
    run(folder, Judged(1e3))
    path = folder / DECISIONS
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    cfg = toy_config(folder).model_copy(update={"method": "auto", "resume": True})
    with pytest.raises(ValueError, match=says):
        distill(cfg, teacher=ToyTeacher(), task=Judged(1e3))


def test_a_condition_that_never_differs_is_none():
    same = torch.ones(4, 2, 3)
    other = same.clone()
    other[2, 1, 0] = 2.0
    assert not any(tells_apart(cond) for cond in (None, same, {"goal": same, "scene": same}))
    assert all(tells_apart(cond) for cond in (other, {"goal": same, "scene": other}, (other,)))
