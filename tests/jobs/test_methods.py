"""The methods of one recipe: each ends in a student, guidance and discriminators included, and can
be stopped anywhere."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fastgen.config import DistillConfig
from fastgen.config.base import OldSpelling
from fastgen.config.files import dump_yaml, load_config
from fastgen.distillation import distill
from fastgen.export.folders import load_student
from fastgen.jobs.checks import with_method
from fastgen.jobs.setup import guided_teacher
from fastgen.methods.consistency import ConsistencyDistillation
from fastgen.methods.kd import KnowledgeDistillation
from fastgen.methods.matching import DistributionMatching
from fastgen.records.log import read_log
from support.runs import train, weights
from support.toy import EVERYTHING, ToyTask, ToyTeacher, plug_pulled, toy_config

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"
LADD = {
    "gan_disc_warmup_steps": 2,
    "gan_features": "sample",
    "gan_r1_reg_weight": 0.1,
}


def config(run_dir, method: str = "dmd2", dmd: dict | None = None, **changes) -> DistillConfig:
    values = toy_config(run_dir).model_dump() | {"method": method} | changes
    if method == "kd":
        del values["train"]["steps"]
    if dmd is not None:
        values["dmd"] = dmd
        values["teacher"]["null_cond"] = "zeros" if "guidance_scale" in dmd else None
    return with_method(DistillConfig.model_validate(values))


CASES = {
    "dmd2": (None, ["kd", "dmd"]),
    "dmd2 with everything": (EVERYTHING, ["kd", "dmd"]),
    "kd": (None, ["kd"]),
    "ladd": (LADD, ["kd", "ladd"]),
    "consistency": (None, ["kd", "consistency"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_method_ends_in_a_student_and_a_report_of_its_stages(tmp_path, case):
    dmd, stages = CASES[case]
    run = distill(
        config(tmp_path / "run", case.split()[0], dmd), teacher=ToyTeacher(), task=ToyTask()
    )
    report = json.loads((run / "report" / "report.json").read_text())
    assert list(report["validation"]) == stages and all("1" in report[stage] for stage in stages)
    assert {row["stage"] for row in read_log(run)} == set(stages)
    student = load_student(run / "student", network=ToyTeacher())
    assert student.sample(torch.zeros(1, 1, 2), num_samples=3).isfinite().all()
    guidance = {
        name: value for name, value in student.config["description"].items() if "guidance" in name
    }
    card = (run / "student" / "README.md").read_text()
    if dmd is EVERYTHING:
        trained = {"scale": 1.5, "interval": [0.1, 0.9], "rescale": 0.3, "null_cond": "zeros"}
        assert guidance == {f"guidance_{name}": value for name, value in trained.items()}
        assert (
            "| guidance trained in | scale 1.5, for t from 0.1 to 0.9, rescaled by 0.3, away from "
            "zeros |" in card
        )
    else:
        assert not guidance and "guidance" not in card


STOPS = [
    (DistributionMatching, "dmd2", EVERYTHING, 1),
    (DistributionMatching, "dmd2", EVERYTHING, 7),
]
STOPS += [
    (DistributionMatching, "ladd", LADD, 4),
    (ConsistencyDistillation, "consistency", None, 3),
]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "method", "dmd", "step"), STOPS)
def test_with_every_branch_on_a_resumed_run_is_an_uninterrupted_one(
    tmp_path, stage, method, dmd, step
):
    train(config(tmp_path / "whole", method, dmd))
    with plug_pulled(stage, step):
        train(config(tmp_path / "stopped", method, dmd))
    train(config(tmp_path / "stopped", method, dmd, resume=True))
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert whole.keys() == resumed.keys() and len(whole) > 3
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.slow
def test_diagnostics_follow_the_student_and_change_nothing(tmp_path, monkeypatch):
    train(config(tmp_path / "with", dmd=EVERYTHING))
    rows = [row["diagnostics"] for row in read_log(tmp_path / "with") if "diagnostics" in row]
    assert rows and {"gap", "lag", "vsd_grad", "gan_grad", "gan_accuracy"} <= rows[-1].keys()
    with monkeypatch.context() as patch:
        patch.delattr(DistributionMatching, "diagnose")
        train(config(tmp_path / "without", dmd=EVERYTHING))
    one, other = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_guided_teacher_is_what_is_distilled(tmp_path):
    plain, guided = (
        train(
            config(
                tmp_path / name,
                dmd={"fake_score_warmup_steps": 2} | extra,
                student={"steps": 1},
            )
        )
        for name, extra in (("plain", {}), ("guided", {"guidance_scale": 3.0}))
    )
    z, noise = plain.task.train.Z, torch.randn(48, 4, 2, generator=torch.Generator().manual_seed(0))
    a, b = (job.closing.teacher_sampler(4)(z, noise) for job in (plain, guided))
    assert (a - b).abs().max() > 0.1
    # KD pairs are the guided teacher's, students start from the plain network's weights.
    assert not torch.equal(plain.pairs()[0], guided.pairs()[0])
    state = guided.networks.student().state_dict()
    assert all(torch.equal(value, ToyTeacher().state_dict()[name]) for name, value in state.items())


JS = {"f_divergence": "js", "gan_t": {"min_t": 0.02, "max_t": 0.98}}
NO_VSD = {"vsd_weight": 0, "real_data_weight": 1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dmd": {"guidance_scale": 2.0}}, "both or neither, got 2.0 and None"),
        (
            {"method": "ladd", "dmd": {"gan_features": "fake_score"}},
            "teacher or sample for method=ladd",
        ),
        ({"dmd": {"gan_loss_weight_gen": 1.0, "gan_blocks": ["nowhere"]}}, "expected blocks among"),
        (
            {
                "dmd": {
                    "vsd_weight": 0,
                    "real_data_weight": 1,
                    "gan_loss_weight_gen": 1,
                    "gan_features": "fake_score",
                }
            },
            "no fake",
        ),
        (
            {"method": "kd", "keep": "dmd", "train": {"kd_steps": 4}},
            r"a stage that runs \(kd\), got dmd",
        ),
        *(
            (
                {"method": method, "dmd": {name: 0.5}, "train": {"kd_steps": 4}},
                f"method={method} does not train, got dmd.{name}=0.5; set it to 0",
            )
            for method in ("kd", "consistency")
            for name in ("kd_weight", "gan_loss_weight_gen", "real_data_weight")
        ),
        (
            {"method": "kd", "dmd": JS, "train": {"kd_steps": 4}},
            "f_divergence=reverse_kl with method=kd",
        ),
        ({"method": "ladd", "dmd": JS}, "f_divergence=reverse_kl with method=ladd"),
        (
            {"method": "ladd", "dmd": {"fake_score_weight": "sigma"}},
            "no dmd.fake_score_weight=sigma with method=ladd",
        ),
        *(
            (
                {"method": method, "train": {"kd_steps": 4, "steps": 0}},
                f"train.steps > 0 with method={method}, got 0; say train.steps=300, or method=kd",
            )
            for method in ("ladd", "consistency")
        ),
        (
            {"method": "ladd", "dmd": {"vsd_weight": 0.5}},
            "expected no dmd.vsd_weight with method=ladd",
        ),
        (
            {"dmd": {**NO_VSD, "fake_score_weight": "sigma"}},
            "no dmd.fake_score_weight=sigma with dmd.vsd_weight=0",
        ),
        (
            {"dmd": {**NO_VSD, "fake_score_pred_type": "x0"}},
            "no dmd.fake_score_pred_type=x0 with dmd.vsd_weight=0",
        ),
        ({"method": "consistency", "student": {"t_list": [0.5, 0.0]}}, r"expected .*\.9"),
    ],
)
def test_methods_that_cannot_run_are_refused(tmp_path, changes, words):
    values = toy_config(tmp_path / "run").model_dump() | changes
    with pytest.raises(ValueError, match=words):
        distill(DistillConfig.model_validate(values), teacher=ToyTeacher(), task=ToyTask())
    assert not (tmp_path / "run" / "stages").exists()  # before any training


# ---- KD alone ------------------------------------------------------------------------------------

IDLE = (
    "train.steps=7 has no effect with method=kd, which is KD alone; leave it out, or say "
    "method=auto"
)
LEAVES = (
    "method=kd, since train.steps=0 leaves no updates after KD; say method=kd; the old spelling "
    "goes with the next release"
)


@pytest.mark.parametrize(
    ("method", "train", "trained", "steps", "said"),
    [
        ("kd", {"steps": 7}, "kd", 0, [IDLE]),
        ("dmd2", {"steps": 0}, "kd", 0, [LEAVES]),
        ("auto", {"steps": 0}, "kd", 0, [LEAVES]),
        ("auto", {}, "auto", 300, []),
        ("kd", {}, "kd", 0, []),
        ("kd", {"steps": 0}, "kd", 0, []),
        ("dmd2", {}, "dmd2", 300, []),
        ("dmd2", {"steps": 7}, "dmd2", 7, []),
    ],
)
def test_the_resolved_config_says_the_method_that_runs(method, train, trained, steps, said):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        cfg = with_method(DistillConfig.model_validate({"method": method, "train": train}))
        # It is settled: read back, it means itself.
        again = with_method(DistillConfig.model_validate(yaml.safe_load(dump_yaml(cfg))))
    assert [str(warning.message) for warning in found] == said
    assert (cfg.method, cfg.train.steps) == (trained, steps)
    assert again == cfg


@pytest.mark.parametrize("file", ["ring-kd.yaml", "modes.yaml", "two-rings.yaml"])
def test_the_shipped_configs_are_kd_alone_and_take_every_method(file):
    def resolved(*overrides: str) -> tuple[str, int]:
        cfg = with_method(load_config(DistillConfig, CONFIGS / file, list(overrides)))
        return cfg.method, cfg.train.steps

    assert load_config(DistillConfig, CONFIGS / file).method == "kd"
    assert resolved() == ("kd", 0)
    for method in ("dmd2", "ladd", "consistency"):
        assert resolved(f"method={method}") == (method, 300)
    with pytest.warns(OldSpelling):
        assert resolved("train.steps=5") == ("dmd2", 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolved("train.steps=0") == ("kd", 0)
    with pytest.warns(OldSpelling, match="no effect"):
        assert resolved("method=kd", "train.steps=5") == ("kd", 0)
    with pytest.warns(OldSpelling):
        assert resolved("train={steps: 5}") == ("dmd2", 5)


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::fastgen.config.base.OldSpelling")
@pytest.mark.parametrize(
    ("method", "steps", "stage", "trained"),
    [("dmd2", 5, DistributionMatching, "dmd2"), ("dmd2", 0, KnowledgeDistillation, "kd")],
)
def test_a_run_that_train_steps_decides_is_resumed_as_it_was_begun(
    tmp_path, method, steps, stage, trained
):
    values = toy_config(tmp_path / "run", steps=steps).model_dump() | {"method": method}
    with plug_pulled(stage, 4):
        distill(DistillConfig.model_validate(values), teacher=ToyTeacher(), task=ToyTask())
    begun = (tmp_path / "run" / "config.yaml").read_text()
    assert yaml.safe_load(begun)["method"] == trained
    again = DistillConfig.model_validate(values | {"resume": True})
    run = distill(again, teacher=ToyTeacher(), task=ToyTask())
    assert (run / "config.yaml").read_text() == begun
    assert (run / "student").exists()


# ---- Data and conditions -------------------------------------------------------------------------


def test_groups_of_real_data_need_not_divide_the_rows_that_are_diagnosed(tmp_path):
    dmd = {
        "fake_score_warmup_steps": 2,
        "real_data_weight": 1.0,
        "real_data_samples": 5,
    }
    values = toy_config(tmp_path / "run", batch_size=10).model_dump() | {
        "student": {"steps": 1},
        "dmd": dmd,
    }
    train(DistillConfig.model_validate(values))  # 48 rows
    assert any("diagnostics" in row for row in read_log(tmp_path / "run"))


def test_a_null_condition_is_read_from_a_file_in_the_units_of_the_data(tmp_path):
    task = ToyTask()
    np.savez(tmp_path / "null.npz", Z=np.full((1, 1, 2), 0.3, dtype=np.float32))
    cfg = config(tmp_path / "run", dmd={"guidance_scale": 2.0})
    cfg = cfg.model_copy(
        update={"teacher": cfg.teacher.model_copy(update={"null_cond": str(tmp_path / "null.npz")})}
    )
    assert torch.allclose(
        guided_teacher(cfg, ToyTeacher(), task.train).null_cond, torch.full((1, 1, 2), 0.3)
    )
    np.savez(tmp_path / "null.npz", Z=np.full((1, 2, 2), 0.3, dtype=np.float32))
    with pytest.raises(ValueError, match=r"like one condition, \(1, 1, 2\), got \(1, 2, 2\)"):
        guided_teacher(cfg, ToyTeacher(), task.train)
