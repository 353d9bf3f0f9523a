"""Diagnostics are what they say: judges that agree, closed forms of Gaussians, gradients, and no
trace in a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.conditions import take_rows
from fastgen._core.seeds import generator_for
from fastgen.config import DMDConfig, SampleTimestepConfig
from fastgen.dmd import DMDPipeline, create_fake_score
from fastgen.flow_matching import add_noise, sample_timesteps
from fastgen.methods.diagnostics import (
    compare_judges,
    diagnose,
    discriminator_accuracy_per_bin,
    sample_gradients,
    time_bins,
)
from fastgen.methods.matching import DistributionMatching
from fastgen.records.log import read_log, timeless
from support.exact import GaussianTeacher, normal
from support.pipeline import COND, NOISE, T_LIST, X0, build
from support.runs import train, weights
from support.toy import toy_config


def narrow(t: float) -> SampleTimestepConfig:
    return SampleTimestepConfig(time_dist_type="uniform", min_t=t, max_t=t + 1e-6)


# ---- Judges --------------------------------------------------------------------------------------


def test_judges_that_agree_have_no_gap_and_no_lag():
    pipeline = build(gan=True, gan_loss_weight_gen=0.1)
    pipeline.fake_score = create_fake_score(pipeline.teacher)
    found = compare_judges(pipeline, X0, COND, generator=generator_for(0))
    assert found["gap"] == [0.0] * 5
    found = compare_judges(pipeline, X0, COND, bins=3, generator=generator_for(0))
    assert found["lag"] == [1.0] * 3
    found = sample_gradients(pipeline, X0, NOISE, COND, generator=generator_for(0))
    assert found["vsd_grad"] == 0.0 and found["grad_cosine"] == 0.0 and found["gan_grad"] > 0


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_gap_and_lag_of_gaussians_are_the_closed_forms(t):
    """Teacher N(m, s^2), student and its exact fake score N(m + d, s^2): fake - teacher = d t^2 / v
    at every x_t."""
    s = 0.4
    d = 0.3
    v = (1 - t) ** 2 * 0.4**2 + t**2
    config = DMDConfig(vsd_t=narrow(t), fake_score_rung_conditioned=False)
    teacher = GaussianTeacher(0.7, s)
    fake = GaussianTeacher(0.7 + d, s)
    pipeline = DMDPipeline(nn.Identity(), teacher, fake, config)
    generated = 0.7 + d + s * normal(200_000, 2)
    fake_dsm = s**2 * t**2 / v
    teacher_dsm = (d * t**2 / v) ** 2 + s**2 * t**2 / v
    draw = {"bins": 1, "generator": generator_for(0)}
    compared = compare_judges(pipeline, generated, **draw)
    found = {name: values[0] for name, values in compared.items()}
    expected = {"fake_dsm": fake_dsm, "teacher_dsm": teacher_dsm, "lag": fake_dsm / teacher_dsm}
    expected["gap"] = d * t**2 / v / math.sqrt(teacher_dsm)
    assert found == pytest.approx(expected, rel=0.01)
    # A fake score that still believes what the student made before it moved by 2 d is the worse
    # denoiser.
    pipeline.fake_score = GaussianTeacher(0.7 - d, s)
    assert compare_judges(pipeline, generated, **draw)["lag"][0] > 1.0


def test_bins_divide_the_range_of_the_vsd_loss_and_hold_their_times():
    pipeline = build()
    assert time_bins(pipeline.config.vsd_t, 3) == pytest.approx([0.02, 0.34, 0.66, 0.98])
    pipeline.teacher.seen.clear()
    compare_judges(pipeline, X0, COND, bins=3, generator=generator_for(0))
    for (_, t), low, high in zip(
        pipeline.teacher.seen, [0.02, 0.34, 0.66], [0.34, 0.66, 0.98], strict=True
    ):
        assert low <= float(t.min()) < float(t.max()) <= high
    with pytest.raises(ValueError, match="bins to be an int >= 1, got 0"):
        compare_judges(pipeline, X0, COND, bins=0)


def test_a_fake_score_that_knows_the_rung_is_told_the_last():
    class Told(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, cond: None) -> Tensor:
            rungs.append(int(t.max() // 1))
            return x_t

    rungs: list[int] = []
    fake = create_fake_score(Told(), num_rungs=4)
    pipeline = DMDPipeline(nn.Identity(), GaussianTeacher(), fake, DMDConfig(t_list=T_LIST))
    compare_judges(pipeline, X0, bins=2)
    compare_judges(pipeline, X0, bins=1, rung=1)
    assert rungs == [3, 3, 1]
    with pytest.raises(ValueError, match="rung"):
        compare_judges(pipeline, X0, rung=4)


# ---- Gradients -----------------------------------------------------------------------------------


class Fixed(nn.Module):
    """A student whose sample is its weight: what reaches the weight is the gradient at the
    sample."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(normal(6, 3, seed=7))

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.x + 0.0 * x_t


@pytest.mark.parametrize("norm", ["mean_abs", "rms"])
def test_gradients_are_those_that_reach_the_sample_in_training(norm):
    student = Fixed()
    net = build(gan=True, pred_type="x0", gan_loss_weight_gen=0.3, vsd_norm=norm)
    parts = {"discriminator": net.discriminator, "features": net.features}
    pipeline = DMDPipeline(student, net.teacher, net.fake_score, net.config, **parts)
    losses = pipeline.compute_student_loss(X0, NOISE, COND, generator=generator_for(3))
    vsd, gan = (
        torch.autograd.grad(losses[name], student.x, retain_graph=True)[0]
        for name in ("vsd", "gan_gen")
    )
    found = sample_gradients(pipeline, X0, NOISE, COND, generator=generator_for(3))
    n = student.x.numel()
    expected = {
        "vsd_grad": n * vsd.square().mean().sqrt(),
        "gan_grad": 0.3 * n * gan.square().mean().sqrt(),
    }
    expected["grad_cosine"] = (vsd * gan).sum() / vsd.norm() / gan.norm()
    assert found == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-10
    )
    assert student.x.grad is None and all(p.grad is None for p in net.discriminator.parameters())


def test_the_vsd_gradient_is_w_g():
    pipeline = build(vsd_norm="rms", pred_type="x0")
    found = sample_gradients(pipeline, X0, NOISE, COND, generator=generator_for(3))
    generator = generator_for(3)
    t_1 = pipeline.t_list[0]
    x = pipeline.student(t_1 * NOISE, torch.full((6,), t_1, dtype=torch.float64), COND).detach()
    t = sample_timesteps(6, pipeline.config.vsd_t, device="cpu", generator=generator)
    x_t = add_noise(x, torch.randn(6, 3, dtype=torch.float64, generator=generator), t)
    teacher, fake = (
        net(x_t, t.double(), COND).detach() for net in (pipeline.teacher, pipeline.fake_score)
    )
    w = 1 / ((x - teacher).square().mean(1, keepdim=True).sqrt() + 1e-6)
    assert found == pytest.approx(
        {"vsd_grad": float((w * (fake - teacher)).square().mean().sqrt())}, rel=1e-9
    )


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_gan_gradient_is_that_of_its_loss_by_finite_differences(weight):
    """Every number of the sample is moved by itself, through features and discriminator of the
    pipeline's own loss."""
    net = build(gan=True, pred_type="x0", gan_loss_weight_gen=weight)
    student = Fixed()
    parts = {"discriminator": net.discriminator, "features": net.features}
    pipeline = DMDPipeline(student, net.teacher, net.fake_score, net.config, **parts)
    found = sample_gradients(pipeline, X0, NOISE, COND, generator=generator_for(3))
    n = student.x.numel()
    step = 1e-5

    def loss(k: int, moved: float) -> float:
        with torch.no_grad():
            student.x.view(-1)[k] += moved
            losses = pipeline.compute_student_loss(X0, NOISE, COND, generator=generator_for(3))
            student.x.view(-1)[k] -= moved
        return float(losses["gan_gen"])

    slopes = torch.tensor(
        [(loss(k, step) - loss(k, -step)) / (2 * step) for k in range(n)], dtype=torch.float64
    )
    assert found["gan_grad"] == pytest.approx(
        weight * n * float(slopes.square().mean().sqrt()), rel=1e-6
    )


# ---- Discriminator -------------------------------------------------------------------------------


class Sign(nn.Module):
    """Two heads that say `scale` times the first feature, and `offset` more."""

    def __init__(self, scale: float, offset: float = 0.0) -> None:
        super().__init__()
        self.scale = scale
        self.offset = offset

    def forward(self, features: list[Tensor], t: Tensor, cond: Tensor | None) -> Tensor:
        return self.scale * features[0][:, :1].expand(-1, 2) + self.offset


def judge(discriminator: nn.Module, **changes) -> DMDPipeline:
    config = DMDConfig(fake_score_rung_conditioned=False, **changes)
    parts = {"discriminator": discriminator, "features": lambda x, t, c: [x]}
    return DMDPipeline(nn.Identity(), GaussianTeacher(), GaussianTeacher(), config, **parts)


def test_accuracy_is_one_for_a_perfect_half_for_a_silent_and_zero_for_a_lying_discriminator():
    real = torch.full((64, 2), 50.0)
    fake = torch.full((64, 2), -50.0)
    shares = {
        scale: discriminator_accuracy_per_bin(judge(Sign(scale)), real, fake, bins=3)
        for scale in (1, 0, -1)
    }
    assert shares == {1: [1.0] * 3, 0: [0.5] * 3, -1: [0.0] * 3}
    # All is data to it: half of it is right; in the right order all the same.
    biased = judge(Sign(1, offset=1e6))
    relativistic = judge(Sign(1, offset=1e6), gan_loss="relativistic")
    assert discriminator_accuracy_per_bin(biased, real, fake, bins=2) == [0.5, 0.5]
    assert discriminator_accuracy_per_bin(relativistic, real, fake, bins=2) == [1.0, 1.0]
    with pytest.raises(ValueError, match="discriminator="):
        discriminator_accuracy_per_bin(build(), X0, X0)
    with pytest.raises(ValueError, match="x0 of shape"):
        discriminator_accuracy_per_bin(biased, real[:3], fake)


def test_noise_hides_the_difference_at_large_t():
    """Signs of N(+-1, 0) noised to t: right with probability Phi((1 - t) / t)."""
    real = torch.ones(40_000, 1)
    fake = -torch.ones(40_000, 1)
    shares = discriminator_accuracy_per_bin(
        judge(Sign(1)), real, fake, bins=58, generator=generator_for(0)
    )
    for share, low in zip(
        shares, time_bins(SampleTimestepConfig(min_t=0.02, max_t=0.6), 58), strict=False
    ):
        t = low + 0.005
        assert share == pytest.approx(0.5 * math.erfc(-(1 - t) / t / math.sqrt(2)), abs=0.01)


# ---- No trace ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gan", [True, False])
@pytest.mark.parametrize("sample_type", ["ode", "sde"])
def test_diagnosing_leaves_no_trace_and_depends_on_its_generator_alone(gan, sample_type):
    changes = {"gan_loss_weight_gen": 0.1} if gan else {}
    pipeline = build(
        gan=gan, dropout=0.5, t_list=T_LIST, student_sample_type=sample_type, **changes
    )
    nets = [pipeline.student.train(), pipeline.teacher.train(), pipeline.fake_score.train()]
    nets += [pipeline.discriminator] if gan else []
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in nets]
    first = diagnose(pipeline, X0, COND, bins=2, generator=generator_for(0, 5))
    assert torch.equal(state, torch.random.get_rng_state())
    for net, weights_before in zip(nets, before, strict=True):
        assert all(torch.equal(v, weights_before[k]) for k, v in net.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in net.parameters())
        assert all(module.training for module in net.modules())
    torch.manual_seed(1)
    assert diagnose(pipeline, X0, COND, bins=2, generator=generator_for(0, 5)) == first
    assert diagnose(pipeline, X0, COND, bins=2, generator=generator_for(0, 6)) != first
    names = {"t", "gap", "lag", "fake_dsm", "teacher_dsm", "vsd_grad"}
    assert set(first) == names | (
        {"gan_grad", "grad_cosine", "gan_t", "gan_accuracy"} if gan else set()
    )
    assert all(
        math.isfinite(v)
        for value in first.values()
        for v in (value if isinstance(value, list) else [value])
    )
    assert [len(first["t"]), len(first["gap"]), len(first["lag"])] == [3, 2, 2]


@pytest.mark.parametrize("rung_conditioned", [True, False])
def test_every_process_diagnoses_what_one_alone_does(rung_conditioned):
    """All of them have all of the rows: draws for a batch of which each has a part would be
    others."""
    changes = {"t_list": T_LIST, "student_sample_type": "sde", "gan_loss_weight_gen": 0.1}
    changes |= {"f_divergence": "js", "gan_t": DMDConfig().vsd_t}

    def found(rank: int, world_size: int) -> dict:
        pipeline = build(gan=True, rank=rank, world_size=world_size, **changes)
        if rung_conditioned:
            parts = {"discriminator": pipeline.discriminator, "features": pipeline.features}
            parts |= {"rank": rank, "world_size": world_size}
            fake = create_fake_score(pipeline.teacher, num_rungs=4)
            pipeline = DMDPipeline(
                pipeline.student, pipeline.teacher, fake, pipeline.config, **parts
            )
        gradients = sample_gradients(pipeline, X0, NOISE, COND, generator=generator_for(6))
        return {
            **diagnose(pipeline, X0, COND, bins=2, generator=generator_for(5)),
            "gradients": gradients,
        }

    alone = found(0, 1)
    assert all(found(rank, 3) == alone for rank in range(3))


def test_accuracy_is_that_of_the_last_rungs_features():
    teacher = build().teacher
    fake = create_fake_score(teacher, num_rungs=4)
    config = DMDConfig(
        t_list=T_LIST, gan_features="fake_score", gan_blocks=("dropout",), gan_loss_weight_gen=1.0
    )
    pipeline = DMDPipeline(
        build().student, teacher, fake, config, discriminator=build(gan=True).discriminator
    )
    discriminator_accuracy_per_bin(pipeline, X0, X0, COND, bins=1, generator=generator_for(0))
    seen = [t for _, t in fake.network.seen]
    assert len(seen) == 2 and all(bool((t.floor() == 3).all()) for t in seen)


def test_a_run_with_diagnostics_is_the_run_without_bit_for_bit(tmp_path, monkeypatch):
    def with_diagnose(self: DistributionMatching, step: int) -> dict:
        generator = self.draws.generator(step, "diagnose")
        rows = torch.randperm(len(self.x0), generator=generator)[:16]
        return diagnose(
            self.pipeline, self.x0[rows], take_rows(self.cond, rows), bins=2, generator=generator
        )

    def run(folder: Path) -> Path:
        train(toy_config(folder, evaluate_every=2))
        return folder

    with monkeypatch.context() as patch:
        patch.setattr(
            DistributionMatching, "diagnose", lambda self, step: {"nothing": 0.0}, raising=False
        )
        without = run(tmp_path / "without")
    monkeypatch.setattr(DistributionMatching, "diagnose", with_diagnose, raising=False)
    diagnosed = run(tmp_path / "with")
    one = weights(without)
    two = weights(diagnosed)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    rest = [
        [
            {k: v for k, v in timeless(row).items() if k != "diagnostics"}
            for row in read_log(run_dir)
        ]
        for run_dir in (without, diagnosed)
    ]
    assert rest[0] == rest[1]
    found = [row["diagnostics"] for row in read_log(diagnosed) if "diagnostics" in row]
    # At the end of the warm-up of 4, and after updates 6, 8 and 9.
    assert len(found) == 4 and all(len(row["gap"]) == 2 and row["vsd_grad"] >= 0 for row in found)
    assert not any(
        "diagnostics" in row
        for row in read_log(diagnosed)
        if row["stage"] == "kd" or row["step"] == 0
    )
