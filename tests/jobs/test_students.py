"""A student of another depth than its teacher's, or of the user's own make, goes through all that a
run does: stages, resumption, export, report, plan."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastgen._core.modules import load_state
from fastgen.config import DistillConfig, StudentConfig
from fastgen.distillation import distill
from fastgen.export import load_student
from fastgen.jobs.checks import check_plan, with_method
from fastgen.jobs.distillation import Distillation
from fastgen.jobs.planning import distillation_footprints
from fastgen.jobs.setup import Setup
from fastgen.jobs.sources import load_run_student
from fastgen.jobs.students import network_facts, network_note
from fastgen.jobs.trial import try_network
from fastgen.methods.dmd2 import new_discriminator, new_fake_score
from fastgen.methods.kd import KnowledgeDistillation
from fastgen.models import CondTransformerRegressor
from fastgen.models.depth import layers_of
from fastgen.networks import clip_limits, unwrap
from fastgen.records.folder import claim_run, open_run
from fastgen.teachers import as_rectified_flow
from fastgen.training.accelerator import start_accelerator
from support.networks import equivariant, shaken
from support.toy import ToyTask, ToyTeacher, plug_pulled, setup_of, toy_config, without_pictures

X0, COND = ToyTask().train.network_inputs()
LAYERS = 2
NET = {"embedding_dim": 8, "num_attention_heads": 2, "p_drop_emb": 0.0, "p_drop_attn": 0.0}


def transformer(layers: int = LAYERS, **changes: Any) -> CondTransformerRegressor:
    torch.manual_seed(0)
    network = CondTransformerRegressor(4, 4, 2, 2, 1, layers, **{**NET, **changes})
    shaken(network)
    return network


class Small(nn.Module):
    """A network of a user's, the last map of which has the name and the shape of `ToyTeacher`'s."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.first = nn.Linear(11, width)
        self.back = nn.Linear(width, 11)
        self.linear = nn.Linear(11, 8)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        h = torch.cat([x_t.flatten(1), t.to(x_t.dtype)[:, None], cond.flatten(1)], 1)
        return self.linear(h + self.back(torch.tanh(self.first(h)))).view_as(x_t)


@pytest.fixture(autouse=True)
def nets(monkeypatch) -> ModuleType:
    """The user's module, `small_nets`."""
    module: Any = ModuleType("small_nets")
    module.Small = Small
    module.text = lambda: "a network"
    module.flat = lambda: nn.Linear(3, 3)
    monkeypatch.setitem(sys.modules, "small_nets", module)
    return module


FACTORY = {"factory": "small_nets:Small", "arguments": {"width": 4}}


def config(run_dir: Any = "unused", student: dict | None = None, **changes: Any) -> DistillConfig:
    values = toy_config(run_dir).model_dump(exclude_unset=True)
    values["student"] |= student or {}
    values["train"] |= {"kd_steps": 4, "steps": 2, "checkpoint_every": 2, "kd_pairs": 16}
    return DistillConfig.model_validate({**values, **changes})


def setup(student: dict, teacher: nn.Module | None = None, **changes: Any) -> Setup:
    teacher = transformer() if teacher is None else teacher
    return setup_of(config(student=student, **changes), teacher, X0, COND)


def answer(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network(X0, torch.full((len(X0),), 0.5), COND)


def numbers(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# ---- Runs ----------------------------------------------------------------------------------------


GAN = {"fake_score_warmup_steps": 2, "gan_disc_warmup_steps": 2, "gan_loss_weight_gen": 0.1}
RUNS: dict[str, dict[str, Any]] = {
    "grow": {"student": {"layers": 4}, "dmd": {"fake_score_warmup_steps": 1}},
    "shrink": {"student": {"layers": 1}, "method": "consistency"},
    "factory": {"student": FACTORY, "method": "ladd", "dmd": {**GAN, "gan_features": "sample"}},
}


def distilled(run_dir: Path, kind: str, *, resume: bool = False) -> Path:
    """A run of this kind up to its student's folder, without scores and report."""
    cfg = with_method(config(run_dir, resume=resume, **RUNS[kind]))
    with open_run(cfg) as folder:
        teacher = ToyTeacher() if kind == "factory" else transformer()
        # Draws of the network are the run's, wherever torch's generator stands.
        torch.manual_seed(len(folder.name) + resume)
        job = Distillation(cfg, folder, start_accelerator(1), teacher=teacher, task=ToyTask())
        claim_run(folder, cfg, job.origin())
        job.train()
        network = job.networks.student()
        load_state(network, job.trainer.result(kind_stage(kind)))
        job.closing.export(network.eval(), {"selected": kind_stage(kind), "student": {}})
    return run_dir


def kind_stage(kind: str) -> str:
    return "dmd" if kind == "grow" else RUNS[kind]["method"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_such_a_student_is_trained_resumed_and_exported(tmp_path, kind):
    own = kind == "factory"
    whole = distilled(tmp_path / "whole", kind)
    with plug_pulled(KnowledgeDistillation, 3):
        distilled(tmp_path / "stopped", kind)
    again = distilled(tmp_path / "stopped", kind, resume=True)
    result = f"stages/{kind_stage(kind)}.safetensors"
    for file in ("stages/kd.safetensors", result, "student/student.safetensors"):
        one = load_file(whole / file)
        two = load_file(again / file)
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)

    # All but a network of the user's own is built from the folder alone.
    student = load_student(whole / "student", network=Small(4) if own else None)
    trained = Small(4) if own else transformer(RUNS[kind]["student"]["layers"])
    load_state(trained, load_file(whole / "student" / "student.safetensors"))
    assert torch.equal(answer(student.network), answer(trained))
    if own:
        loaded = load_run_student(whole / "student", "small_nets:Small")
        assert torch.equal(answer(loaded.network), answer(trained))
    with pytest.raises(ValueError, match=r"run of another config \(.*student.layers: "):
        changes = {**RUNS[kind], "student": {"layers": 3}, "resume": True}
        with open_run(with_method(config(whole, **changes))):
            pass


def test_the_report_says_how_large_the_student_is(tmp_path):
    train = {**toy_config("unused").train.model_dump(), "kd_steps": 1}
    cfg = config(tmp_path / "run", FACTORY, method="kd", train={**train, "steps": 0})
    with without_pictures():
        run = distill(cfg, teacher=ToyTeacher(), task=ToyTask())
    report = json.loads((run / "report" / "report.json").read_text())
    sizes = {who: facts["numbers"] for who, facts in report["networks"].items()}
    assert sizes == {"teacher": numbers(ToyTeacher()), "student": numbers(Small(4))}
    said = f"networks: teacher {sizes['teacher']} numbers; student {sizes['student']} numbers"
    assert said in (run / "report" / "report.md").read_text()
    assert network_facts(transformer(3))["layers"] == 3


def test_a_factory_that_builds_another_network_is_noticed_on_resume(tmp_path, nets):
    train = {**toy_config("unused").train.model_dump(), "steps": 0}
    cfg = config(tmp_path / "run", FACTORY, method="kd", train=train)
    with plug_pulled(KnowledgeDistillation, 2):
        distill(cfg, teacher=ToyTeacher(), task=ToyTask())
    nets.Small = lambda width: Small(width + 1)
    with pytest.raises(ValueError, match="begun with another student"):
        again = cfg.model_copy(update={"resume": True})
        distill(again, teacher=ToyTeacher(), task=ToyTask())


# ---- Its network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("converted", [False, True])
def test_a_grown_student_begins_as_its_teacher_in_whatever_coats(dtype, converted):
    teacher: nn.Module = transformer().to(dtype)
    if converted:
        teacher = as_rectified_flow(teacher, path="cosine", prediction="v")
    made = setup({"layers": 5}, teacher)
    student = made.student()
    assert type(student) is type(teacher) and layers_of(unwrap(student)) == 5
    x = X0.to(dtype)
    times = torch.full((len(x),), 0.5)
    with torch.no_grad():
        assert torch.equal(student(x, times, made.cond), teacher(x, times, made.cond))
    assert layers_of(unwrap(teacher)) == LAYERS
    # It loads from its folder with no extras, conversion included.
    try_network(made, export=True)


def test_every_student_of_a_seed_is_the_same_one():
    for student, teacher in (({"layers": 4}, transformer()), (FACTORY, ToyTeacher())):
        made = setup(student, teacher)
        torch.manual_seed(1)
        one = made.student().state_dict()
        again = made.student().state_dict()
        elsewhere = setup(student, teacher).student().state_dict()
        other = setup(student, teacher, seed=1).student().state_dict()
        assert all(torch.equal(one[name], again[name]) for name in one)
        assert all(torch.equal(one[name], elsewhere[name]) for name in one)
        assert not all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_frozen_of_the_teacher_stays_so_and_new_layers_are_trained():
    teacher = transformer()
    teacher.decoder[1].requires_grad_(False)
    student: Any = setup({"layers": 3}, teacher).student()
    frozen = {name for name, p in student.named_parameters() if not p.requires_grad}
    assert frozen == {f"decoder.2.{name}" for name, _ in teacher.decoder[1].named_parameters()}


def test_a_teacher_in_bfloat16_and_recomputed_blocks_grow_too():
    train = {**toy_config("unused").train.model_dump(), "gradient_checkpointing": True}
    cfg = config(student={"layers": 4}, train=train, teacher={"dtype": "bfloat16"})
    student: Any = setup_of(cfg, transformer(), X0, COND).student()
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert len({type(layer) for layer in student.decoder}) == 1
    plain = setup({"layers": 4}, teacher=transformer().bfloat16().float()).student()
    assert torch.equal(answer(student), answer(plain))


def test_a_factory_takes_the_weights_that_agree_and_says_how_many():
    teacher = ToyTeacher()
    made = setup(FACTORY, teacher)
    student: Any = made.student()
    assert torch.equal(student.linear.weight, teacher.linear.weight)
    taken = numbers(teacher.linear)
    (note,) = made.notes()
    assert f"Small of {numbers(student):,} numbers, {taken} of them the teacher's" in note


def test_a_factorys_student_goes_through_the_trial_and_is_clipped_as_its_teacher_is():
    low, high = -0.1, 0.2
    declared = {"path": "cosine", "prediction": "v", "clip_sample": (low, high)}
    made = setup(FACTORY, as_rectified_flow(ToyTeacher(), **declared))
    try_network(made, export=True)
    student = made.student()
    assert clip_limits(student) == (low, high)
    t = torch.full((len(X0),), 0.5)
    bare = X0 - 0.5 * unwrap(student)(X0, t, COND)
    x0 = X0 - 0.5 * student(X0, t, COND)
    assert bool((bare < low).any()) and bool((bare > high).any())
    torch.testing.assert_close(x0, bare.clamp(low, high), rtol=0.0, atol=1e-6)


def test_a_student_that_need_not_be_equivariant_is_named():
    teacher = equivariant()
    note = network_note(StudentConfig(**FACTORY), Small(4), teacher, 0)
    assert note.endswith("the teacher is equivariant under D4, the student need not be")


def test_notes_say_where_the_teachers_layers_are():
    (note,) = setup({"layers": 6}, transformer(3)).notes()
    assert "student: 6 layers, the teacher's 3 at 0, 2, 5;" in note
    (note,) = setup({"layers": 2}, transformer(3)).notes()
    assert "student: 2 layers, those at 0, 2 of the teacher's 3;" in note
    assert setup({}).notes() == []


# ---- The networks beside it ----------------------------------------------------------------------


@pytest.mark.parametrize("features", ["teacher", "fake_score"])
def test_fake_score_and_discriminator_keep_the_teachers_shape(features):
    dmd = {**GAN, "gan_features": features}
    grown = setup({"layers": 4}, dmd=dmd)
    plain = setup({}, dmd=dmd)
    for make in (new_fake_score, new_discriminator):
        one: Any = make(grown)
        two: Any = make(plain)
        shapes = {name: value.shape for name, value in one.state_dict().items()}
        assert shapes == {name: value.shape for name, value in two.state_dict().items()}
    check_plan(grown)


def test_the_plan_counts_the_students_own_weights():
    plain = distillation_footprints(setup({}))
    grown = distillation_footprints(setup({"layers": 4}))
    for stage, rows in grown.items():
        before = {row.name: row for row in plain[stage]}
        found = {row.name: row for row in rows}
        assert found["teacher"] == before["teacher"]
        assert found["student"].parameters > before["student"].parameters
    of = {row.name: row.parameters for row in grown["dmd"]}
    assert of["student"] == numbers(transformer(4))
    assert of["fake score"] == of["teacher"] == numbers(transformer())


# ---- What is refused -----------------------------------------------------------------------------


REFUSED: dict[str, tuple[dict[str, Any], nn.Module, type[Exception], str]] = {
    "a user's teacher": (
        {"layers": 3},
        ToyTeacher(),
        ValueError,
        "with layers for student.layers=3, got ToyTeacher; give student.factory",
    ),
    "no such module": (
        {"factory": "nowhere_nets:Small"},
        ToyTeacher(),
        ValueError,
        "student.factory 'nowhere_nets:Small': No module",
    ),
    "no module": ({"factory": "small_nets:text"}, ToyTeacher(), TypeError, "student.factory"),
    "another shape": (
        {"factory": "small_nets:flat"},
        ToyTeacher(),
        ValueError,
        "expected student.factory=small_nets:flat to build a network that can be called",
    ),
}


@pytest.mark.parametrize(
    ("student", "teacher", "error", "words"), REFUSED.values(), ids=REFUSED.keys()
)
def test_what_can_be_no_student_is_refused_before_work_starts(student, teacher, error, words):
    with pytest.raises(error, match=words):
        check_plan(setup(student, teacher))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"layers": 0}, "greater than or equal to 1"),
        ({"layers": 10**9}, "less than or equal to 1000"),
        ({"layers": 2, "factory": "a:b"}, "expected layers or factory"),
        ({"arguments": {"a": 1}}, "expected arguments of a factory"),
    ],
)
def test_keys_that_name_no_network_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        StudentConfig(**values)
