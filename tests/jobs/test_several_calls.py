"""A run whose student serves several numbers of calls, from the config to the exported folder."""

from __future__ import annotations

import json

import pytest
import torch

from fastgen.config import DistillConfig
from fastgen.distillation import distill
from fastgen.export.folders import load_student
from fastgen.jobs.evaluation import served_t_lists, student_sampler
from fastgen.jobs.planning import pair_bytes
from fastgen.methods.kd import KnowledgeDistillation
from fastgen.methods.matching import DistributionMatching
from support.runs import train, weights
from support.toy import ToyTask, ToyTeacher, plug_pulled, setup_of, toy_config, without_pictures

CALLS = (1, 2, 3)


def config(run_dir, **changes) -> DistillConfig:
    values = toy_config(run_dir).model_dump()
    values["student"] = {"steps": CALLS}
    return DistillConfig.model_validate(values | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with without_pictures():
        folder = tmp_path_factory.mktemp("several") / "run"
        return distill(config(folder), teacher=ToyTeacher(), task=ToyTask())


def test_every_number_is_scored_exported_and_sampled(run):
    report = json.loads((run / "report" / "report.json").read_text())
    assert set(report["student"]) == {"1", "2", "3"} == set(report["kd"])
    assert report["latency"].keys() >= {"student 1 call, batch 1, ms"}
    student = load_student(run / "student", network=ToyTeacher())
    cfg = config(run)
    assert student.steps == CALLS and student.t_list == cfg.student.t_list
    task = ToyTask()
    for calls, t_list in cfg.student.t_lists.items():
        assert student.rungs(calls) == t_list

        def sample(z, noise, calls=calls):
            generator = torch.Generator().manual_seed(0)
            return student.sample(z, noise=noise, steps=calls, generator=generator)

        assert sample(task.train.Z, torch.randn(48, 4, 2)).isfinite().all()
    with pytest.raises(ValueError, match=r"among those trained, \[1, 2, 3\], got 4"):
        student.sample(torch.zeros(1, 1, 2), steps=4)


def test_scores_of_a_number_are_those_of_its_sampler(run):
    report = json.loads((run / "report" / "report.json").read_text())
    student = load_student(run / "student", network=ToyTeacher())
    task = ToyTask()
    for calls, t_list in served_t_lists(config(run).student).items():
        sampler = student_sampler(student.network, task.train, t_list, sample_type="sde")
        assert report["student"][str(calls)] == pytest.approx(task.evaluate(sampler))


def test_the_fewest_calls_decide(run):
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["validation"]["kd"] == report["kd"]["1"]


@pytest.mark.parametrize(
    ("stage", "step"),
    [(KnowledgeDistillation, 4), (DistributionMatching, 2), (DistributionMatching, 7)],
)
def test_a_resumed_run_is_an_uninterrupted_one(tmp_path, stage, step):
    train(config(tmp_path / "whole"))
    with plug_pulled(stage, step):
        train(config(tmp_path / "stopped"))
    train(config(tmp_path / "stopped", resume=True))
    whole = weights(tmp_path / "whole")
    resumed = weights(tmp_path / "stopped")
    assert whole.keys() == resumed.keys() and len(whole) > 3
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_the_plan_counts_the_states_of_all_rungs(tmp_path):
    task = ToyTask()
    inputs = task.train.network_inputs()
    one = toy_config(tmp_path).model_copy(update={"student": config(tmp_path).student})
    several = pair_bytes(setup_of(one, ToyTeacher(), *inputs))
    two = pair_bytes(setup_of(toy_config(tmp_path), ToyTeacher(), *inputs))
    # Rungs .999, .666, .4995, .333 and the data, where two calls have three states.
    assert several - two == 40 * 2 * inputs[0][0].numel() * 4


@pytest.mark.parametrize("method", ["kd", "ladd", "consistency", "drift"])
def test_every_method_trains_several_numbers(tmp_path, method):
    values = toy_config(tmp_path / "run").model_dump() | {"method": method}
    values["student"] = {"steps": CALLS}
    values["dmd"] = {"gan_features": "sample"} if method == "ladd" else {}
    if method == "drift":
        values["dmd"] = {"set_conditional": False}
    if method == "kd":
        del values["train"]["steps"]
    cfg = DistillConfig.model_validate(values)
    with without_pictures():
        run = distill(cfg, teacher=ToyTeacher(), task=ToyTask())
    student = load_student(run / "student", network=ToyTeacher())
    assert student.steps == CALLS
    assert student.sample(torch.zeros(2, 1, 2), steps=3).isfinite().all()
