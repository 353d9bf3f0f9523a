"""Half precision is the networks' alone: times, formulas and losses stay in float32 and float64
under autocast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastgen import losses
from fastgen.config import DMDConfig, SampleTimestepConfig
from fastgen.discriminators import discriminator_for
from fastgen.dmd import DMDPipeline, create_fake_score
from fastgen.flow_matching import (
    add_noise,
    convert_prediction,
    pred_noise_to_pred_x0,
    pred_x0_from_flow,
    rf_alpha,
    rf_sigma,
    sample_from_t_list,
    sample_timesteps,
    x0_to_eps,
    x0_to_flow,
)
from fastgen.methods.consistency import consistency_loss
from fastgen.methods.kd import kd_loss
from fastgen.records.log import read_log
from fastgen.samplers import FlowMatching, sample_student, sample_teacher
from fastgen.two_sample import two_sample_loss
from support.launching import TESTS, forked
from support.processes import name
from support.toy import EVERYTHING, ToyTask, ToyTeacher


def autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


A, B, C = (drawn(seed, 16, 3, 2) for seed in range(3))
T = torch.linspace(0.0, 0.999, 16)
PRIMITIVES = {
    "add_noise": add_noise,
    "pred_noise_to_pred_x0": pred_noise_to_pred_x0,
    "pred_x0_from_flow": pred_x0_from_flow,
    "x0_to_eps": x0_to_eps,
    "x0_to_flow": x0_to_flow,
    "convert_prediction": lambda pred, x_t, t: convert_prediction(pred, x_t, t, "flow", "x0"),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("primitive", PRIMITIVES.values(), ids=PRIMITIVES.keys())
def test_primitives_under_autocast_are_those_of_float64(primitive, dtype):
    a, b = A.to(dtype), B.to(dtype)
    with autocast():
        found = primitive(a, b, T)
    assert found.dtype == dtype and torch.equal(
        found, primitive(a.double(), b.double(), T.double()).to(dtype)
    )


def flow(x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
    """A flow without a product for autocast to halve."""
    t = torch.as_tensor(t).reshape(-1, *(1,) * (x.ndim - 1))
    return torch.sin(x) + t.to(x.dtype) * x


RUNGS = torch.arange(16) % 2
FORMULAS = {
    "alpha": lambda: rf_alpha(T),
    "sigma": lambda: rf_sigma(T),
    "times": lambda: sample_timesteps(
        64, SampleTimestepConfig(), device="cpu", generator=generator()
    ),
    "times of a list": lambda: sample_from_t_list(
        64, [0.999, 0.5, 0.0], device="cpu", generator=generator()
    ),
    "dsm": lambda: losses.dsm_loss(
        "flow", A, x0=B, eps=C, t=T, weight=lambda t: losses.time_weight("min_snr", t)
    ),
    "vsd": lambda: losses.vsd_loss(A, B, C, norm="rms", clamp=0.5),
    "vsd, mean abs": lambda: losses.vsd_loss(A, B, C),
    "ratio": lambda: losses.f_divergence_weight("jeffreys", A[:, :, 0]),
    "gan_gen": lambda: losses.gan_gen_loss(A[:, :, 0]),
    "gan_disc": lambda: losses.gan_disc_loss(A[:, :, 0], B[:, :, 0], kind="relativistic"),
    "r1": lambda: losses.r1_loss(A[:, :, 0], B[:, :, 0]),
    "guidance": lambda: losses.classifier_free_guidance(A, B, 2.5),
    "energy": lambda: two_sample_loss(
        A.unflatten(0, (4, 4)), B.unflatten(0, (4, 4)), "energy", bandwidths=(1.0,)
    ),
    "kd": lambda: kd_loss(flow, torch.stack([A, B, C], 1), [0.999, 0.5, 0.0], None, RUNGS),
    "consistency": lambda: consistency_loss(
        flow, flow, A, B, T.clamp(min=0.5), T.clamp(min=0.5) - 0.25, None
    ),
    "student": lambda: sample_student(flow, A, [0.999, 0.5, 0.0]),
    "student, sde": lambda: sample_student(
        flow, A, [0.999, 0.5, 0.0], sample_type="sde", generator=generator()
    ),
    "teacher": lambda: sample_teacher(flow, A, 7, method="heun"),
    "flow matching": lambda: FlowMatching((3, 2)).sample(
        5, lambda x, t: flow(x, t.flatten(), None), generator=generator(), int_method="rk4"
    ),
}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS.keys())
def test_times_losses_and_samplers_know_nothing_of_autocast(formula):
    plain = formula()
    with autocast():
        found = formula()
    assert found.dtype == plain.dtype and found.dtype in (torch.float32, torch.float64)
    assert torch.equal(found, plain) and bool(torch.isfinite(found).all())


class Noting(nn.Module):
    """A network of any dtype that notes the dtypes and the largest of its times."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.dtypes, self.latest = network, set(), 0.0

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self.dtypes.add(t.dtype)
        self.latest = max(self.latest, float(t.max()))
        return self.network(x_t, t, cond)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_network_of_a_pipeline_sees_a_time_in_half_precision(dtype):
    x0, cond = ToyTask().train.network_inputs()
    x0, cond, noise = x0[:8].to(dtype), cond[:8].to(dtype), drawn(3, 8, 2, 4).to(dtype)
    dmd = DMDConfig(
        student_steps=2,
        **{key: value for key, value in EVERYTHING.items() if not key.startswith("guidance")},
    )
    discriminator = discriminator_for(ToyTeacher().to(dtype), x0, cond, blocks=["linear"]).to(dtype)
    student, teacher = (Noting(ToyTeacher(seed=seed).to(dtype)) for seed in range(2))
    fake_score = create_fake_score(Noting(ToyTeacher().to(dtype)), num_rungs=2)
    dmd = dmd.model_copy(update={"gan_blocks": ("network.linear",)})
    pipeline = DMDPipeline(student, teacher, fake_score, dmd, discriminator=discriminator)
    for seed in range(4):
        draws = torch.Generator().manual_seed(seed)
        for compute in (
            pipeline.compute_student_loss,
            pipeline.compute_fake_score_loss,
            pipeline.compute_discriminator_loss,
        ):
            with autocast():
                total = compute(x0, noise, cond, generator=draws)["total"]
            assert total.dtype == torch.float32
            total.backward()
    for network in (student, teacher, fake_score.network):
        assert network.dtypes == {torch.float32}
    # In bf16 the first rung would be pure noise, 1.
    assert student.latest == pytest.approx(0.999, abs=1e-6)


@pytest.fixture(scope="module", params=["one process", "shards"])
def half(tmp_path_factory, request) -> Path:
    """The folder of a bf16 run."""
    folder, script = tmp_path_factory.mktemp("half"), TESTS / "support" / "half.py"
    variables = {"ACCELERATE_MIXED_PRECISION": "bf16"}
    if request.param == "shards":
        ends = forked(script, folder, "shards", processes=2, **variables)
    else:
        ends = forked(script, folder, processes=1, **variables)
    for done in ends:
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_a_bf16_distillation_multiplies_in_bf16_and_does_all_else_in_float32(half):
    found = json.loads((half / "found.json").read_text())
    assert found["times"] == ["torch.float32"] and found["products"] == ["torch.bfloat16"]
    assert found["losses"] == found["answers"] == found["state"] == ["torch.float32"]
    # What is scored and exported is the average itself, not what autocast makes of it.
    assert found["average is exact"] == ["True"]


@pytest.mark.slow
def test_a_bf16_distillation_ends_near_that_of_float32(one, half):
    logs = [read_log(run) for run in (one(torch.float32, 2), half / name(torch.float32, 2))]
    for row, other in zip(*logs, strict=True):
        for key in ("loss", "vsd", "fake_score", "gan_disc", "kd"):
            # bf16 has 8 bits: 0.4 % a product.
            assert key not in row or other[key] == pytest.approx(row[key], rel=0.05, abs=0.01), (
                row["step"],
                key,
            )
