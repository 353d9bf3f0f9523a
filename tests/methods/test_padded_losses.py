"""Losses whose condition carries masks: what stands in the padding of data, conditions and noise
changes no loss and no gradient, bit for bit, and a padded batch has the mean of the losses that its
samples have by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.conditions import take_rows
from fastgen._core.masks import with_masks
from fastgen._core.seeds import generator_for
from fastgen.config import DMDConfig
from fastgen.discriminators import discriminator_for
from fastgen.dmd import DMDPipeline
from fastgen.guidance import Guidance
from fastgen.methods.consistency import consistency_loss
from fastgen.methods.kd import kd_loss, teacher_pairs
from fastgen.methods.pretraining import flow_matching_loss
from fastgen.methods.rollouts import SharedDraws
from fastgen.methods.sets import set_term
from fastgen.samplers import sample_student, sample_teacher
from fastgen.teachers.guided import GuidedNetwork
from support.padded import masks, network, walks

ROWS = 8
# Two rows each have the same masks, so that those of sets of two are the same.
MASK, COND_MASK = masks().rows(torch.arange(ROWS) // 2)
T_LIST = [0.999, 0.5, 0.0]
T = torch.linspace(0.1, 0.9, ROWS, dtype=torch.float64)
Batch = tuple[Tensor, Tensor, Any]
Loss = Callable[[nn.Module, nn.Module, Batch], Tensor]


def normal(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, *MASK.shape[1:], 2, generator=generator, dtype=torch.float64)


def batch(fill: float, dtype: torch.dtype) -> Batch:
    """x0, noise and the condition with its masks; all padding holds `fill`."""
    x0, z = (value[:ROWS].to(dtype) for value in walks(0.0))
    x0 = x0.masked_fill(~MASK[..., None], fill)
    z = z.masked_fill(~COND_MASK[..., None], fill)
    noise = normal(1).masked_fill(~MASK[..., None], fill).to(dtype)
    return x0, noise, with_masks(z, MASK, COND_MASK)


# ---- Losses that draw nothing -------------------------------------------------------------------


def kd(student: nn.Module, teacher: nn.Module, given: Batch) -> Tensor:
    x0, noise, cond = given
    states = teacher_pairs(teacher, noise, cond, T_LIST, calls=4)
    # As if a file had kept something in the padding.
    fill = noise.masked_fill(cond["mask"][..., None], 0.0)
    return kd_loss(
        student,
        states + fill[:, None],
        T_LIST,
        cond,
        torch.arange(len(x0)) % 2,
        sample_type="ode",
    )


def flow_matching(student: nn.Module, teacher: nn.Module, given: Batch) -> Tensor:
    x0, noise, cond = given
    return flow_matching_loss(student, x0, noise, T[: len(x0)].to(x0.dtype), cond)


def consistency(student: nn.Module, teacher: nn.Module, given: Batch) -> Tensor:
    x0, noise, cond = given
    t = T[: len(x0)]
    return consistency_loss(student, teacher, x0, noise, t, 0.5 * t, cond)


PLAIN: dict[str, Loss] = {"kd": kd, "flow matching": flow_matching, "consistency": consistency}


# ---- Losses of distribution matching ------------------------------------------------------------

EVERYTHING = {
    "vsd_norm": "batch",
    "f_divergence": "js",
    "gan_loss_weight_gen": 1.0,
    "gan_loss": "softplus",
    "gan_t": DMDConfig().vsd_t,
    "gan_r1_reg_weight": 1.0,
    "gan_r2_reg_weight": 1.0,
    "real_data_weight": 1.0,
    "real_data_samples": 2,
    "student_steps": 2,
    "student_sample_type": "sde",
    "fake_score_rung_conditioned": False,
    "vsd_clamp": 1.0,
}


def pipeline(student: nn.Module, teacher: nn.Module, **changes: Any) -> DMDPipeline:
    config = DMDConfig(**{**EVERYTHING, **changes})
    fake_score = network(equivariant=hasattr(student, "in_rep"), seed=3)
    dtype = next(student.parameters()).dtype
    x0, _, cond = batch(0.0, dtype)
    discriminator = discriminator_for(
        teacher, x0, cond, on_samples=config.gan_features == "sample"
    ).to(dtype)
    return DMDPipeline(student, teacher, fake_score.to(dtype), config, discriminator=discriminator)


def by(name: str, **changes: Any) -> Loss:
    def loss(student: nn.Module, teacher: nn.Module, given: Batch) -> Tensor:
        made = pipeline(student, teacher, **changes)
        compute = getattr(made, f"compute_{name}_loss")
        negative = torch.zeros_like(given[2]["Z"]) if "guidance_scale" in changes else None
        options = {"negative_cond": negative, "generator": generator_for(0)}
        total = compute(*given, **options)["total"]
        if name == "student":
            return total
        # What a student has no part in has a gradient in the network that it is named after.
        judge = made.fake_score if name == "fake_score" else made.discriminator
        return torch.cat([g.flatten() for g in torch.autograd.grad(total, judge.parameters())])

    return loss


def sets(kind: str, **changes: Any) -> Loss:
    def loss(student: nn.Module, teacher: nn.Module, given: Batch) -> Tensor:
        x0, _, cond = given
        if changes.get("set_conditional", True):
            # Groups of two rows of one condition, and so of one mask.
            pairs = torch.arange(ROWS) // 2 * 2
            x0, cond = x0[pairs], take_rows(cond, pairs)
        options = {"set_weight": 1.0, "set_samples": 2, "set_loss": kind, **changes}
        made = pipeline(student, teacher, **options)
        return set_term(made.rollouts, x0, cond, generator=generator_for(0))

    return loss


MATCHING: dict[str, Loss] = {
    "student": by("student"),
    "student on data": by(
        "student", backward_simulation=False, gan_features="sample", real_data_weight=0.0
    ),
    "guided": by("student", guidance_scale=2.0, guidance_rescale=0.5, vsd_norm="rms"),
    "fake score": by("fake_score"),
    "discriminator": by("discriminator"),
    "discriminator of samples": by("discriminator", gan_features="sample"),
    **{f"{kind} sets": sets(kind) for kind in ("energy", "mmd", "chamfer", "drift")},
    "sets of any conditions": sets("energy", set_conditional=False),
}


def outcome(loss: Loss, fill: float, dtype: torch.dtype, equivariant: bool) -> list[Tensor]:
    """The loss, or what it gives, and its gradient in the student, if it has one."""
    student = network(equivariant=equivariant, seed=1).to(dtype)
    teacher = network(equivariant=equivariant, seed=2).to(dtype)
    value = loss(student, teacher, batch(fill, dtype))
    if value.ndim:
        return [value]
    gradients = torch.autograd.grad(value, list(student.parameters()), allow_unused=True)
    found = [g for g in gradients if g is not None]
    assert found and any(bool(g.any()) for g in found)
    return [value.detach(), *found]


def assert_same_bits(loss: Loss, dtype: torch.dtype, equivariant: bool, monkeypatch) -> None:
    drawn = SharedDraws.normal_like
    results = []
    for fill in (0.0, 50.0):

        def normal_like(self, x, generator, fill=fill):
            return drawn(self, x, generator).masked_fill(~MASK[..., None], fill)

        monkeypatch.setattr(SharedDraws, "normal_like", normal_like)
        results.append(outcome(loss, fill, dtype, equivariant))
    for plain, filled in zip(*results, strict=True):
        assert plain.isfinite().all() and torch.equal(plain, filled)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("equivariant", [False, True])
@pytest.mark.parametrize("name", {**PLAIN, **MATCHING})
def test_what_stands_in_the_padding_changes_no_bit(name, equivariant, dtype, monkeypatch):
    assert_same_bits({**PLAIN, **MATCHING}[name], dtype, equivariant, monkeypatch)


# ---- Slow twin -----------------------------------------------------------------------------------


def alone(given: Batch, row: int) -> Batch:
    """One sample without its padding."""
    x0, noise, cond = given
    length = int(MASK[row].sum())
    z = cond["Z"][row : row + 1, : int(COND_MASK[row].sum())]
    return x0[row : row + 1, :length], noise[row : row + 1, :length], z


@pytest.mark.parametrize("name", ["kd", "flow matching", "consistency", "vsd", "fake score"])
@pytest.mark.parametrize("equivariant", [False, True])
def test_a_padded_batch_has_the_mean_of_what_its_samples_have_alone(name, equivariant, monkeypatch):
    eps = normal(5)
    now: list[int] = []  # the row that is asked for; none for all of them

    def of_rows(value: Tensor, x: Tensor) -> Tensor:
        return value[now[0] : now[0] + 1, : x.shape[1]] if now else value

    def times_and_noise(self, x, cfg, generator):
        return (T[now[0] : now[0] + 1] if now else T), of_rows(eps, x)

    monkeypatch.setattr(SharedDraws, "times_and_noise", times_and_noise)
    changes = {"real_data_weight": 0.0, "gan_loss_weight_gen": 0.0, "f_divergence": "reverse_kl"}
    changes |= {"gan_r1_reg_weight": 0.0, "gan_r2_reg_weight": 0.0}
    changes |= {"vsd_norm": "rms", "student_steps": 1}

    def matching(student: nn.Module, teacher: nn.Module, given: Batch) -> Tensor:
        config = DMDConfig(**{**EVERYTHING, **changes})
        fake_score = network(equivariant=equivariant, seed=3).double()
        made = DMDPipeline(student, teacher, fake_score, config)
        compute = made.compute_student_loss if name == "vsd" else made.compute_fake_score_loss
        return compute(*given)["total"]

    def timed(student: nn.Module, teacher: nn.Module, given: Batch) -> Tensor:
        x0, noise, cond = given
        t = T[now[0] : now[0] + 1] if now else T
        if name == "flow matching":
            return flow_matching_loss(student, x0, noise, t, cond)
        if name == "consistency":
            return consistency_loss(student, teacher, x0, noise, t, 0.5 * t, cond)
        states = teacher_pairs(teacher, noise, cond, T_LIST, calls=4)
        rungs = torch.arange(ROWS) % 2
        rungs = rungs[now[0] : now[0] + 1] if now else rungs
        return kd_loss(student, states, T_LIST, cond, rungs)

    loss = matching if name in ("vsd", "fake score") else timed
    student = network(equivariant=equivariant, seed=1).double()
    teacher = network(equivariant=equivariant, seed=2).double()
    given = batch(50.0, torch.float64)
    whole = loss(student, teacher, given)
    parts = []
    for row in range(ROWS):
        now[:] = [row]
        parts.append(loss(student, teacher, alone(given, row)))
    torch.testing.assert_close(whole, torch.stack(parts).mean(), rtol=1e-10, atol=1e-12)


def test_one_weight_for_a_batch_is_made_of_real_tokens(monkeypatch):
    eps = normal(5)
    now = [slice(0, ROWS)]

    def times_and_noise(self, x, cfg, generator):
        return T[now[0]], eps[now[0], : x.shape[1]]

    monkeypatch.setattr(SharedDraws, "times_and_noise", times_and_noise)
    config = DMDConfig(vsd_norm="batch", fake_score_rung_conditioned=False)
    student, teacher, fake_score = (network(seed=seed).double() for seed in (1, 2, 3))
    made = DMDPipeline(student, teacher, fake_score, config)

    def size(given: Batch) -> Tensor:
        return made.vsd_verdict(made.generate(*given), given[2]).mean_size

    given = batch(50.0, torch.float64)
    whole = size(given)
    parts = []
    for row in range(ROWS):
        now[0] = slice(row, row + 1)
        parts.append(size(alone(given, row)))
    torch.testing.assert_close(whole, torch.stack(parts).mean(), rtol=1e-10, atol=1e-12)


# ---- Samplers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("equivariant", [False, True])
@pytest.mark.parametrize(
    "who", ["student", "ode student", "teacher", "guided teacher", "guided teacher, masked null"]
)
def test_samples_do_not_see_padding_and_are_zero_there(who, equivariant):
    net: nn.Module = network(equivariant=equivariant).double()
    if "guided" in who:
        guidance = Guidance(2.0, (0.2, 0.8), 0.5)
        null = torch.zeros(1, COND_MASK.shape[1], 2).double()
        seen = torch.arange(COND_MASK.shape[1])[None] < 1
        null = {"Z": null, "cond_mask": seen} if "masked" in who else null
        net = GuidedNetwork(net, guidance, null)

    def sample(noise: Tensor, cond: Any) -> Tensor:
        if "teacher" in who:
            found = sample_teacher(net, noise, 4, cond, method="ab2")
        else:
            kind = "ode" if who == "ode student" else "sde"
            found = sample_student(
                net, noise, T_LIST if kind == "ode" else [0.9, 0.0], cond, sample_type=kind
            )
        assert isinstance(found, Tensor)
        return found

    _, noise, cond = batch(0.0, torch.float64)
    whole = sample(noise, cond)
    assert (whole[~MASK] == 0).all() and whole.isfinite().all()
    assert torch.equal(whole, sample(*batch(50.0, torch.float64)[1:]))
    if who == "guided teacher":
        # Its null condition has one length, and so have the conditions here.
        cond = with_masks(cond["Z"], MASK)
        whole = sample(noise, cond)
    for row in range(ROWS):
        _, own_noise, z = alone((noise, noise, cond), row)
        z = cond["Z"][row : row + 1] if who == "guided teacher" else z
        torch.testing.assert_close(
            whole[row : row + 1, : own_noise.shape[1]], sample(own_noise, z), rtol=1e-9, atol=1e-9
        )
