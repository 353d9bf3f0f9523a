"""The registry: a method is one class and one line, and everything else asks for it by name."""

from __future__ import annotations

import json

import pytest
import torch

from fastgen import load_student
from fastgen.config import DistillConfig
from fastgen.distillation import distill
from fastgen.jobs import planning
from fastgen.jobs.planning import distillation_footprints, plan_distillation
from fastgen.jobs.setup import Setup
from fastgen.methods.kd import on_pairs
from fastgen.methods.method import Method
from fastgen.methods.registry import METHODS, method_named, stages_of
from fastgen.records.log import read_log
from support.toy import ToyTask, ToyTeacher, toy_config


class Again(Method):
    """KD once more, from the student of the warm start."""

    stage = "again"
    title = "KD again"
    colour = "#123456"

    def uses_pairs(self, cfg):
        return True

    def build(self, run):
        train = run.cfg.train
        student = run.student(train.student_optimizer, train.steps, run.cfg.student.ema)
        return on_pairs(run, student, self.stage, run.cfg.train.steps)


@pytest.fixture
def again(monkeypatch, tmp_path) -> DistillConfig:
    """A config of a method that the package doesn't know."""
    monkeypatch.setitem(METHODS, "again", Again())
    values = toy_config(tmp_path / "run").model_dump() | {"method": "again", "keep": "again"}
    return DistillConfig.model_validate(values)


def test_a_new_method_is_planned_trained_chosen_exported_and_reported(again, monkeypatch):
    monkeypatch.setattr(planning, "load_teacher", lambda cfg: ToyTeacher())
    monkeypatch.setattr(planning, "task_of", lambda cfg, encoder: ToyTask())
    plan = plan_distillation(again)
    assert "method: again" in plan and "again: memory, MB" in plan
    assert plan.count("teacher pairs") == 2
    setup = Setup(again, ToyTeacher(), ToyTask().train)
    found = {stage: row for stage, (_, row) in distillation_footprints(setup).items()}
    assert found["again"].adam == found["kd"].adam > 0
    assert found["again"].ema == found["kd"].ema > 0
    run = distill(again, teacher=ToyTeacher(), task=ToyTask())
    assert {row["stage"] for row in read_log(run)} == {"kd", "again"}
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["selected"] == "again" and list(report["validation"]) == ["kd", "again"]
    assert "KD again" in (run / "report" / "report.md").read_text()
    student = load_student(run / "student", network=ToyTeacher())
    assert student.config["description"]["method"] == "again"
    assert student.sample(torch.zeros(1, 1, 2)).isfinite().all()


def test_an_unknown_method_is_refused_with_those_there_are(tmp_path):
    values = toy_config(tmp_path / "run").model_dump() | {"method": "magic"}
    with pytest.raises(ValueError, match="unknown method 'magic', expected one of: kd, dmd2"):
        distill(DistillConfig.model_validate(values), teacher=ToyTeacher(), task=ToyTask())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_a_report_and_a_warning_need(name):
    method = method_named(name)
    assert method.stage and method.title and method.remedy


def test_stages_are_unique_and_the_warm_start_comes_first():
    own = {name: method for name, method in METHODS.items() if name != "auto"}  # dmd2, undecided
    assert len({method.stage for method in own.values()}) == len(own)
    for name, method in METHODS.items():
        cfg = DistillConfig(method=name)
        assert [stage.stage for stage in stages_of(cfg)] == list(
            dict.fromkeys(["kd", method.stage])
        )
