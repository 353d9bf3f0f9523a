"""What is refused before work starts, and which of the teacher's scores are believed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastgen.config import DistillConfig, TrainTeacherConfig
from fastgen.discriminators import heads_for
from fastgen.jobs import planning
from fastgen.jobs.checks import check_plan, stored_scores
from fastgen.jobs.distillation import Distillation
from fastgen.jobs.planning import pair_bytes, plan_distillation, plan_teacher
from fastgen.jobs.pretraining import build_network
from fastgen.records.folder import open_run
from fastgen.teachers.answer import answer_of
from fastgen.training.accelerator import start_accelerator
from fastgen.training.launching import Launch
from fastgen.training.memory import LABEL
from support.folders import mark_as_export
from support.toy import LabelTeacher, PointTeacher, ToyTask, ToyTeacher, setup_of, toy_config

X0, COND = ToyTask().train.network_inputs()


def config(**changes) -> DistillConfig:
    return DistillConfig.model_validate({**toy_config("unused").model_dump(), **changes})


def train(**changes) -> dict:
    return {**toy_config("unused").train.model_dump(), **changes}


@pytest.mark.parametrize(
    ("changes", "processes", "words"),
    [
        ({"train": train(steps=0, kd_steps=0)}, 1, "there is nothing to train"),
        (
            {"train": train(steps=0), "keep": "dmd"},
            1,
            r"expected keep to be best or a stage that runs \(kd\), got dmd",
        ),
        ({"train": train(kd_steps=0), "keep": "kd"}, 1, r"a stage that runs \(dmd\), got kd"),
        ({"dmd": {"guidance_scale": 2.0}}, 1, "both or neither, got 2.0 and None"),
        ({"dmd": {"gan_r1_reg_weight": 1.0}}, 1, "expected dmd.gan_loss_weight_gen > 0 with"),
        (
            {"dmd": {"real_data_weight": 1.0, "real_data_samples": 3}},
            1,
            "real_data_samples to divide the 8 samples",
        ),
        ({}, 3, "train.batch_size to be a multiple of the 3 processes, got 8"),
    ],
)
def test_runs_that_could_not_end_as_configured_are_refused(changes, processes, words):
    check_plan(setup_of(config(), ToyTeacher(), X0, COND), processes=2)
    with pytest.raises(ValueError, match=words):
        check_plan(setup_of(config(**changes), ToyTeacher(), X0, COND), processes=processes)


def test_weights_in_shards_are_not_pulled():
    dmd = {"fake_score_pull": 0.25, "fake_score_rung_conditioned": False}
    setup = setup_of(config(dmd=dmd), ToyTeacher(), X0, COND)
    check_plan(setup, processes=2)
    with pytest.raises(ValueError, match="expected dmd.fake_score_pull=0 with FSDP.*, got 0.25"):
        check_plan(setup, processes=2, sharded=True)


def tables(plan: str) -> dict[str, dict[str, list[str]]]:
    """Rows of the memory tables by name, by stage."""
    found: dict[str, dict[str, list[str]]] = {}
    rows: dict[str, list[str]] = {}
    for line in plan.splitlines():
        if "memory, MB" in line:
            rows = found[line.partition(":")[0]] = {}
        rows[line[:LABEL].strip()] = line[LABEL:].split()
    return found


@pytest.fixture
def toy(monkeypatch) -> None:
    """The toy problem in place of what a config names."""
    monkeypatch.setattr(planning, "load_teacher", lambda cfg: ToyTeacher())
    monkeypatch.setattr(planning, "task_of", lambda cfg, encoder: ToyTask())


@pytest.mark.slow
def test_a_plan_counts_the_discriminator_and_the_pairs_beside_dmd(toy):
    def rows(dmd: dict, **loop) -> dict[str, list[str]]:
        plan = plan_distillation(config(dmd=dmd, train=train(**loop)))
        return list(tables(plan).values())[-1]

    gan = {"gan_loss_weight_gen": 0.1, "gan_blocks": ["linear"]}
    heads = heads_for(ToyTeacher(), X0, torch.full((len(X0),), 0.5), COND, blocks=["linear"])
    numbers = sum(p.numel() for p in heads.parameters())
    size = 4 * numbers / 1e6
    assert rows(gan)["discriminator"][:5] == [
        f"{numbers:,}",
        *(f"{k * size:.2f}" for k in (1, 1, 2, 0)),
    ]
    assert "discriminator" not in rows({}) and "discriminator" not in rows({}, steps=0)
    with pytest.raises(ValueError, match="got dmd.gan_loss_weight_gen=0.1; set it to 0"):
        rows(gan, steps=0)
    pairs = f"{10_000 * 4 * (3 * X0[0].numel() + COND[0].numel()) / 1e6:.2f}"
    assert rows({"kd_weight": 0.1}, kd_steps=0, kd_pairs=10_000)["teacher pairs"] == [pairs]
    assert rows({}, steps=0, kd_pairs=10_000)["teacher pairs"] == [pairs]
    assert "teacher pairs" not in rows({}, kd_pairs=10_000)


@pytest.mark.parametrize("drawn", [torch.float32, torch.float64])
@pytest.mark.parametrize("called", [torch.float32, torch.float64])
def test_pairs_take_the_bytes_that_a_run_holds(tmp_path, drawn, called):
    """States have the dtype that noise is drawn in, conditions that of the teacher."""
    cfg, task, teacher = config(run_dir=str(tmp_path / "run")), ToyTask(), ToyTeacher().to(called)
    with open_run(cfg) as run_dir:
        job = Distillation(cfg, run_dir, start_accelerator(1), teacher=teacher, task=task)
        torch.set_default_dtype(drawn)
        try:
            job.trainer = SimpleNamespace(seconds={}, evaluations={})
            (states, cond), planned = job.pairs(), pair_bytes(job.networks)
        finally:
            torch.set_default_dtype(torch.float32)
    assert (states.dtype, cond.dtype) == (drawn, called)
    assert planned == states.nbytes + cond.nbytes


@pytest.mark.slow
def test_a_plan_tells_the_memory_of_a_gpu_from_that_of_its_host(toy):
    one, two = (
        tables(plan_distillation(config(), launch=launch)) for launch in (None, Launch(1, "cuda"))
    )
    assert one.keys() == two.keys() == {"kd", "dmd"}
    for stage in one:
        sums = [float(two[stage][name][-1]) for name in ("total on cuda", "total in CPU memory")]
        assert (
            float(one[stage]["total"][-1]) == pytest.approx(sum(sums), abs=0.02)
            and "total" not in two[stage]
        )
    note = "gathered of sharded networks"
    assert note in plan_distillation(config(), launch=Launch(2, "cuda", sharded=True))
    assert note not in plan_distillation(config(), launch=Launch(2, "cuda"))


class Answers(nn.Module):
    def __init__(self, answer) -> None:
        super().__init__()
        self.answer, self.scale = answer, nn.Parameter(torch.ones(()))

    def forward(self, x_t, t, cond):
        return self.answer(x_t)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (ToyTeacher(horizon=3), "expected a teacher that can be called with .* got: mat1 and mat2"),
        (Answers(lambda x: x[:, :1]), r"with the shape of x_t, got \(2, 1, 4\)"),
        (Answers(lambda x: [x]), "with the shape of x_t, got list"),
        (Answers(lambda x: x / 0), "expected finite numbers from the teacher"),
    ],
)
def test_teachers_that_do_not_fit_the_data_are_refused(network, words):
    with pytest.raises(ValueError, match=words):
        answer_of(network, X0, COND)


class Times(ToyTeacher):
    """Its answer for the times that `law` makes of those it is given."""

    def __init__(self, law) -> None:
        super().__init__()
        self.law = law

    def forward(self, x_t, t, cond):
        return super().forward(x_t, self.law(t), cond)


@pytest.mark.parametrize("law", [lambda t: t.clamp(max=1.0), lambda t: (1.0 - t).sqrt()])
def test_a_teacher_for_times_up_to_one_needs_a_fake_score_that_does_not_know_its_rung(law):
    student = {"steps": 3}
    dmd = {**toy_config("unused").dmd.model_dump(), "fake_score_rung_conditioned": False}
    with pytest.raises(ValueError, match="dmd.fake_score_rung_conditioned=false"):
        check_plan(setup_of(config(student=student), Times(law), X0, COND))
    check_plan(setup_of(config(student=student, dmd=dmd), Times(law), X0, COND))
    check_plan(setup_of(config(student=student), Times(lambda t: t), X0, COND))


def test_a_teacher_without_parameters_is_refused():
    with pytest.raises(
        ValueError, match="expected a teacher with parameters to copy and train, got Identity"
    ):
        answer_of(nn.Identity(), X0, COND)


def test_fitting_leaves_the_mode_alone():
    network = ToyTeacher().train()
    answer_of(network, X0, COND)
    assert network.training


def with_teacher(folder, **teacher) -> DistillConfig:
    return config(teacher={"folder": str(folder), "calls": [1, 2], "ab2_calls": [4], **teacher})


def test_scores_beside_the_weights_answer_for_the_same_data_and_rows_only(tmp_path):
    rows = {
        key: {"energy": value}
        for key, value in (("1", 3.0), ("2", 2.0), ("8", 1.0), ("ab2-4", 1.5))
    }
    data = config().data.model_dump(mode="json")
    del data["normalize"]  # a file that was written before there was this key
    file = tmp_path / "scores.json"
    assert stored_scores(with_teacher(tmp_path)) is None
    file.write_text(json.dumps({"data": data, "teacher": rows, "floor": {"energy": 0.0}}))
    # Somebody's folder may hold a file of that name.
    assert stored_scores(with_teacher(tmp_path)) is None
    mark_as_export(tmp_path)
    assert stored_scores(with_teacher(tmp_path)) == (
        {k: rows[k] for k in ("1", "2", "ab2-4")},
        {"energy": 0.0},
    )
    assert stored_scores(with_teacher(tmp_path, calls=[1, 3])) is None
    assert stored_scores(with_teacher(tmp_path, measure=True)) is None
    for another in (
        {"weights": "w.safetensors"},
        {"path": "cosine"},
        {"prediction": "eps"},
        {"keywords": {}},
    ):
        assert stored_scores(with_teacher(tmp_path, **another)) is None
    file.write_text(json.dumps({"data": {**data, "seed": 1}, "teacher": rows, "floor": {}}))
    assert stored_scores(with_teacher(tmp_path)) is None
    for damaged in ('{"teacher": {}, "floor": {}}', '{"data": '):
        file.write_text(damaged)
        with pytest.raises(ValueError, match="scores.json"):
            stored_scores(with_teacher(tmp_path))


@pytest.mark.parametrize("pack", [1, 4])
def test_a_symmetry_given_as_matrices_acts_on_every_waypoint_of_a_token(tmp_path, pack):
    import numpy as np

    mirror = np.array([[[1.0, 0.0], [0.0, -1.0]]])
    np.savez(tmp_path / "mirror.npz", matrices=mirror)
    rep = {"matrices": str(tmp_path / "mirror.npz")}
    cfg = TrainTeacherConfig.model_validate(
        {
            "data": {
                "size": 8,
                "pack": pack,
                "symmetry": {"group": "C2", "in_rep": rep, "cond_rep": rep},
            },
            "model": {"embedding_dim": 16, "num_layers": 1, "num_attention_heads": 2},
        }
    )
    from fastgen.data import build_data

    network = build_network(cfg, build_data(cfg.data))
    (element,) = network.in_rep.group.generators
    expected = torch.block_diag(*[torch.from_numpy(mirror[0])] * pack)
    torch.testing.assert_close(
        torch.from_numpy(network.in_rep(element)), expected, rtol=0, atol=1e-12
    )
    assert "network" in plan_teacher(cfg)


# ---- Samples of any shape ------------------------------------------------------------------------

IMAGES, LABELS = (
    torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(0)),
    torch.arange(6) % 3,
)


def test_teachers_of_any_shape_and_condition_are_called_with_two_of_their_samples():
    assert answer_of(LabelTeacher(), IMAGES, LABELS).shape == (2, 4, 5, 5)
    assert answer_of(LabelTeacher().double(), IMAGES, LABELS).dtype == torch.float64
    assert answer_of(PointTeacher(7), torch.ones(6, 7), None).shape == (2, 7)
    check_plan(setup_of(config(), LabelTeacher(), IMAGES, LABELS))


@pytest.mark.parametrize(
    ("network", "x0", "cond", "words"),
    [
        (
            LabelTeacher(),
            IMAGES[:, :3],
            LABELS,
            r"x_t \(2, 3, 5, 5\), t \(2,\), cond integers \(2,\), got: ",
        ),
        (LabelTeacher(), IMAGES, None, "cond None, got: "),
        (LabelTeacher(labels=2), IMAGES, LABELS + 2, "got: index out of range"),
        (LabelTeacher(), IMAGES, {"label": LABELS}, r"cond {label: integers \(2,\)}, got: "),
    ],
)
def test_conditions_that_a_teacher_does_not_take_are_refused(network, x0, cond, words):
    with pytest.raises(ValueError, match=words):
        answer_of(network, x0, cond)


def test_the_networks_of_this_package_are_trained_on_trajectories_and_square_images(tmp_path):
    import numpy as np

    np.savez(tmp_path / "images.npz", X=np.zeros((40, 3, 4, 5)), Z=np.arange(40))
    cfg = TrainTeacherConfig.model_validate(
        {"data": {"name": "file", "path": str(tmp_path / "images.npz")}}
    )
    with pytest.raises(
        ValueError, match=r"expected trajectories .* got X \(28, 3, 4, 5\) and Z integers \(28,\)"
    ):
        plan_teacher(cfg)


# ---- Data ----------------------------------------------------------------------------------------


@pytest.fixture
def odd_file(tmp_path) -> str:
    """Trajectories with a constant channel and a row that is there twice."""
    import numpy as np

    rng = np.random.default_rng(0)
    X, Z = rng.normal(size=(60, 4, 2)).astype("f4"), rng.normal(size=(60, 1, 2)).astype("f4")
    X[:, :, 1] = 4
    X[1::2], Z[1::2] = X[::2], Z[::2]
    np.savez(tmp_path / "odd.npz", X=X, Z=Z)
    return str(tmp_path / "odd.npz")


def test_a_dry_run_says_what_is_odd_about_the_data(odd_file, monkeypatch):
    data = {"name": "file", "path": odd_file, "pack": 2}
    expected = (
        "warning: X is constant in channel 1",
        "training rows repeat an earlier one",
        "train.batch_size = 64",
    )
    monkeypatch.setattr("fastgen.jobs.planning.load_teacher", lambda cfg: ToyTeacher())
    text = plan_distillation(config(data=data, train=train(batch_size=64)))
    assert all(words in text for words in expected)
    cfg = TrainTeacherConfig.model_validate(
        {"data": data, "model": {"equivariant": False}, "train": {"batch_size": 64}}
    )
    text = plan_teacher(cfg)
    assert all(words in text for words in expected)


def test_a_run_says_it_once_before_its_first_step(odd_file, tmp_path, monkeypatch, capsys):
    from fastgen.jobs import distillation, pretraining

    class Began(Exception):
        """The first step."""

    def begin(self):
        raise Began

    monkeypatch.setattr("fastgen.training.trainer.Trainer.run", begin)
    data = {"name": "file", "path": odd_file, "pack": 2}
    with pytest.raises(Began):
        distillation.distill(config(data=data, run_dir=str(tmp_path / "d")), teacher=ToyTeacher())
    assert capsys.readouterr().err.count("warning: X is constant in channel 1") == 1
    cfg = TrainTeacherConfig.model_validate(
        {"data": data, "model": {"equivariant": False}, "run_dir": str(tmp_path / "t")}
    )
    with pytest.raises(Began):
        pretraining.train_teacher(cfg)
    assert capsys.readouterr().err.count("warning: X is constant in channel 1") == 1
