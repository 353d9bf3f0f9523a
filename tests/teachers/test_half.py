"""A frozen teacher in bfloat16: half the memory, times untouched, students in full precision."""

from __future__ import annotations

import copy

import pytest
import torch

from fastgen._core.tensor_files import load_tensors
from fastgen.config import DistillConfig, DMDConfig
from fastgen.discriminators import heads_for
from fastgen.distillation import distill
from fastgen.dmd import DMDPipeline
from fastgen.guidance import Guidance
from fastgen.jobs.distillation import Distillation
from fastgen.models.transformer import CondTransformerRegressor
from fastgen.networks import network_dtype
from fastgen.records.folder import open_run
from fastgen.teachers import as_rectified_flow
from fastgen.teachers.guided import GuidedNetwork
from fastgen.teachers.half import Bfloat16Network
from fastgen.training.accelerator import start_accelerator
from support.toy import PointTeacher, ToyTask, ToyTeacher, toy_config

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(64, 3, 4, generator=GENERATOR)
Z = torch.randn(64, 2, 2, generator=GENERATOR)
T = torch.linspace(0.02, 0.98, 64)


def teacher() -> CondTransformerRegressor:
    torch.manual_seed(0)
    return CondTransformerRegressor(4, 4, 2, 3, 2, 2, 2, 32, 0.0, 0.0).eval()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_predictions_differ_by_the_rounding_of_bfloat16_and_come_in_the_dtype_asked_with():
    net = teacher()
    half = Bfloat16Network(copy.deepcopy(net))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16} and network_dtype(
        half, torch.float64
    ) == torch.float32
    with torch.no_grad():
        assert half(X, T, Z).dtype == torch.float32
        error = relative(half(X, T, Z), net(X, T, Z))
    assert 1e-4 < error < 8 * 2**-8


def test_times_are_not_rounded():
    """To bfloat16 .9990 and .9971 are 1 and .9961; what reaches the network is what was given."""

    class Times(PointTeacher):
        def forward(self, x_t, t, cond):
            self.seen = t
            return super().forward(x_t, t, cond)

    net = Times()
    net.register_buffer("table", torch.tensor([0.999, 0.9971], dtype=torch.float64))
    t = torch.tensor([0.999, 0.9971])
    with torch.no_grad():
        Bfloat16Network(net)(torch.ones(2, 2), t, None)
    assert net.seen.dtype == torch.float32 and torch.equal(net.seen, t)
    assert net.table.dtype == torch.float64 and net.table.tolist() == [0.999, 0.9971]
    # A converted teacher's arithmetic stays as it is, too.
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    plain = as_rectified_flow(PointTeacher(), path=betas, prediction="eps")
    half = Bfloat16Network(copy.deepcopy(plain))
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(1))
    t = T[:32]  # up to 1/2: x0 divides by 1 - t
    with torch.no_grad():
        assert relative(half.predict_x0(x, t, None), plain.predict_x0(x, t, None)) < 8 * 2**-8
    assert half.t_max == plain.t_max


@pytest.mark.parametrize("guided", [False, True])
def test_the_losses_take_it_and_differ_by_its_rounding(guided):
    net = teacher()
    student = teacher().train()
    torch.manual_seed(1)
    for parameter in student.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    config = DMDConfig(student_steps=1, gan_loss_weight_gen=0.1, vsd_norm="rms")
    heads = heads_for(net, X, T, Z)
    fake = copy.deepcopy(student)  # which differs from the teacher
    found = []
    for judge in (net, Bfloat16Network(copy.deepcopy(net))):
        given = GuidedNetwork(judge, Guidance(1.5), torch.zeros(1, 2, 2)) if guided else judge
        pipeline = DMDPipeline(student, given, fake, config, discriminator=heads)
        assert all(feature.dtype == torch.float32 for feature in pipeline.features(X, T, Z))
        generator = torch.Generator().manual_seed(3)
        losses = pipeline.compute_student_loss(
            X, torch.randn(X.shape, generator=generator), Z, generator=generator
        )
        losses["total"].backward()
        assert all(p.grad is None for p in judge.parameters())
        grads = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
        student.zero_grad()
        found.append((losses["vsd"].detach(), losses["gan_gen"].detach(), grads))
    assert all(value.dtype == torch.float32 for value in found[1])
    (vsd, gan, grads), (vsd16, gan16, grads16) = found
    assert relative(gan16, gan) < 0.02
    # VSD's gradient is a difference of two predictions, of which one is rounded now.
    assert relative(vsd16, vsd) < 0.1 and relative(grads16, grads) < 0.2


@pytest.mark.slow
def test_a_run_with_it_trains_float32_students_from_its_weights(tmp_path):
    values = toy_config(tmp_path / "run").model_dump()
    values["teacher"]["dtype"] = "bfloat16"
    cfg = DistillConfig.model_validate(values)
    given = ToyTeacher()
    before = given.linear.weight.detach().clone()
    with open_run(cfg) as run_dir:
        job = Distillation(
            cfg, run_dir, start_accelerator(1), teacher=copy.deepcopy(given), task=ToyTask()
        )
        start = job.networks.student().linear.weight
    assert start.dtype == torch.float32 and torch.equal(start, before.bfloat16().float())
    run = distill(cfg, teacher=given, task=ToyTask())
    assert {v.dtype for v in load_tensors(run / "stages" / "dmd.safetensors").values()} == {
        torch.float32
    }
    assert given.linear.weight.dtype == torch.float32 and (run / "student").exists()


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"teacher": {"dtype": "bfloat16"}}, {"train": {"gradient_checkpointing": True}}]
)
def test_a_teacher_that_was_handed_over_stays_what_it_was(tmp_path, options):
    teacher = CondTransformerRegressor(4, 4, 2, 2, 1, 1, 2, 16, 0.0, 0.0).eval()
    before = copy.deepcopy(teacher.state_dict())
    kinds = [type(module) for module in teacher.modules()]
    values = toy_config(tmp_path / "run").model_dump()
    cfg = DistillConfig.model_validate(
        values | {key: values[key] | changed for key, changed in options.items()}
    )
    distill(cfg, teacher=teacher, task=ToyTask())
    assert [type(module) for module in teacher.modules()] == kinds
    after = teacher.state_dict()
    assert all(
        after[name].dtype == value.dtype and torch.equal(after[name], value)
        for name, value in before.items()
    )


def test_a_teacher_in_float64_is_not_made_one_in_bfloat16(tmp_path):
    values = toy_config(tmp_path / "run").model_dump()
    cfg = DistillConfig.model_validate(
        values | {"teacher": values["teacher"] | {"dtype": "bfloat16"}}
    )
    with pytest.raises(ValueError, match="teacher.dtype=null for a teacher in float64"):
        distill(cfg, teacher=ToyTeacher().double(), task=ToyTask())
