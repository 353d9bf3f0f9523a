"""Runs that train with prefixes: a teacher that is told given tokens, and its student."""

from __future__ import annotations

import json

import pytest
import torch

from fastgen.config import DistillConfig, TrainTeacherConfig
from fastgen.config.prefix import prefix_tokens
from fastgen.distillation import distill
from fastgen.export import load_network, load_student
from fastgen.jobs.checks import check_plan
from fastgen.jobs.distillation import Distillation
from fastgen.jobs.setup import Setup
from fastgen.methods.kd import KnowledgeDistillation
from fastgen.methods.matching import DistributionMatching
from fastgen.models.transformer import CondTransformerRegressor
from fastgen.networks import tokens_given
from fastgen.pretraining import train_teacher
from fastgen.records.folder import claim_run, open_run
from fastgen.teachers.conversion import as_rectified_flow
from fastgen.teachers.prefixed import PrefixedNetwork
from fastgen.training.accelerator import start_accelerator
from support.networks import shaken
from support.runs import weights
from support.toy import ToyTask, plug_pulled, toy_config, without_pictures


def teacher(tokens: int = 0) -> CondTransformerRegressor:
    torch.manual_seed(0)
    network = shaken(CondTransformerRegressor(4, 4, 2, 2, 1, 1, 2, 8))
    if tokens:
        network.prefix_tokens = tokens
    return network


# Times of a discriminator whose ratio weighs VSD.
COVERING = {"time_dist_type": "uniform", "min_t": 0.02, "max_t": 0.98}


def config(run_dir, *, resume: bool = False, **train) -> DistillConfig:
    values = toy_config(run_dir, prefix_max=2, **train).model_dump()
    values |= {"method": "kd", "resume": resume}
    values["train"]["steps"] = 0
    values["dmd"] = {}
    return DistillConfig.model_validate(values)


def matching(run_dir, *, resume: bool = False) -> DistillConfig:
    """DMD2 of a guided teacher."""
    values = config(run_dir, resume=resume).model_dump() | {"method": "dmd2"}
    values["dmd"] = {"fake_score_warmup_steps": 2, "guidance_scale": 2.0, "kd_weight": 0.2}
    values["teacher"]["null_cond"] = "zeros"
    values["train"]["steps"] = 3
    return DistillConfig.model_validate(values)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with without_pictures():
        folder = tmp_path_factory.mktemp("prefix") / "run"
        return distill(config(folder), teacher=teacher(), task=ToyTask())


def test_the_student_goes_on_from_given_waypoints(run):
    student = load_student(run / "student")
    data = ToyTask().train
    x = student.sample(data.Z, prefix=data.X[:, :2], steps=2)
    assert student.prefix_max == 2 and torch.equal(x[:, :2], data.X[:, :2])
    assert type(student.network) is CondTransformerRegressor
    report = json.loads((run / "report" / "report.json").read_text())
    assert set(report["student"]) == {"1", "2"}


@pytest.mark.parametrize(
    ("made", "stage", "step"),
    [(config, KnowledgeDistillation, 4), (matching, DistributionMatching, 4)],
)
def test_a_resumed_run_is_an_uninterrupted_one(tmp_path, made, stage, step):
    def train(cfg: DistillConfig) -> None:
        with open_run(cfg) as run_dir:
            job = Distillation(
                cfg, run_dir, start_accelerator(1), teacher=teacher(), task=ToyTask()
            )
            claim_run(run_dir, cfg)
            job.train()

    train(made(tmp_path / "whole"))
    with plug_pulled(stage, step):
        train(made(tmp_path / "stopped"))
    train(made(tmp_path / "stopped", resume=True))
    whole = weights(tmp_path / "whole")
    resumed = weights(tmp_path / "stopped")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize(("tokens", "way"), [(0, "replacement"), (1, "times")])
def test_a_teacher_is_told_as_it_was_trained(tmp_path, tokens, way):
    setup = Setup(config(tmp_path), teacher(tokens), ToyTask().train)
    assert isinstance(setup.uncounted, PrefixedNetwork) and setup.uncounted.way == way
    student = setup.student()
    assert isinstance(student, PrefixedNetwork) and student.way == "times"
    told = "times of their own" if way == "times" else "replacement"
    assert any(
        f"up to 2 waypoints are given; the teacher is told them by {told}" in note
        for note in setup.notes()
    )


def test_every_length_is_drawn_anew_for_pairs_and_never_by_the_clock(tmp_path):
    setup = Setup(config(tmp_path), teacher(), ToyTask().train)
    again = Setup(config(tmp_path), teacher(), ToyTask().train)
    lengths = setup.cond["given"].sum(1)
    assert torch.equal(lengths, again.cond["given"].sum(1)) and set(lengths.tolist()) == {0, 1}
    pairs = setup.with_prefixes(setup.cond, "pairs")["given"].sum(1)
    assert not torch.equal(pairs, lengths) and set(pairs.tolist()) == {0, 1}
    assert torch.equal(setup.cond["prefix"], setup.x0)


def test_without_prefixes_nothing_is_drawn(tmp_path):
    cfg = toy_config(tmp_path)
    setup = Setup(cfg, teacher(), ToyTask().train)
    assert isinstance(setup.cond, torch.Tensor) and setup.with_prefixes(setup.cond) is setup.cond
    assert not isinstance(setup.student(), PrefixedNetwork)


def test_a_student_of_several_numbers_of_calls_goes_on_with_each(tmp_path):
    values = config(tmp_path / "run").model_dump()
    values["student"] |= {"steps": [1, 2, 3], "t_list": None, "sample_type": "sde"}
    with without_pictures():
        run = distill(DistillConfig.model_validate(values), teacher=teacher(), task=ToyTask())
    student = load_student(run / "student")
    data = ToyTask().train
    assert student.steps == (1, 2, 3) and student.prefix_max == 2
    for steps in student.steps:
        x = student.sample(data.Z, prefix=data.X[:, :2], steps=steps)
        assert torch.equal(x[:, :2], data.X[:, :2]) and bool(x.isfinite().all())


@pytest.mark.parametrize(
    ("changes", "network", "message"),
    [
        *(
            (
                {"method": method},
                teacher(),
                f"expected method kd or dmd2 with train.prefix_max, got {method}",
            )
            for method in ("auto", "consistency", "drift", "ladd")
        ),
        *(
            (
                {"method": "dmd2", "dmd": {key: 0.5}},
                teacher(),
                f"expected dmd.{key}=0 with train.prefix_max: .* sees whole samples.*, got 0.5",
            )
            for key in ("gan_loss_weight_gen", "real_data_weight", "set_weight")
        ),
        (
            {"method": "dmd2", "dmd": {"f_divergence": "js", "gan_t": COVERING}},
            teacher(),
            "expected dmd.f_divergence=reverse_kl with train.prefix_max",
        ),
        ({}, as_rectified_flow(teacher(), path="cosine"), "got a converted teacher"),
    ],
)
def test_what_given_tokens_exclude_is_refused(tmp_path, changes, network, message):
    values = config(tmp_path).model_dump() | changes
    if changes.get("method"):
        values["train"]["steps"] = 3
    setup = Setup(DistillConfig.model_validate(values), network, ToyTask().train)
    with pytest.raises(ValueError, match=message):
        check_plan(setup, processes=1)


@pytest.mark.parametrize("most", [1, 3, 4, 6])
def test_tokens_are_given_whole_and_not_all_of_them(most):
    with pytest.raises(
        ValueError, match=f"below the 4 waypoints, a multiple of data.pack=2, got {most}"
    ):
        prefix_tokens(most, ToyTask().train)
    assert prefix_tokens(2, ToyTask().train) == 1 and prefix_tokens(0, object()) == 0


def test_a_teacher_is_trained_with_prefixes_and_says_so(tmp_path):
    values = {
        "run_dir": str(tmp_path / "run"),
        "data": {"size": 40},
        "model": {"embedding_dim": 16, "num_layers": 1, "num_attention_heads": 2},
        "train": {"steps": 3, "batch_size": 8, "prefix_max": 8, "threads": 1},
        "calls": [1],
        "ab2_calls": [],
    }
    with without_pictures():
        folder = train_teacher(TrainTeacherConfig.model_validate(values)) / "teacher"
    network, _ = load_network(folder)
    assert tokens_given(network) == 2
    assert json.loads((folder / "config.json").read_text())["prefix_tokens"] == 2
