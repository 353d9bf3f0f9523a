"""DMD2 on samples whose first tokens are given: gradients at open tokens alone, rows that are given
nothing are those of a run without prefixes, and losses move with scene, noise and prefix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.masks import with_masks
from fastgen._core.prefixes import with_prefix
from fastgen._core.seeds import generator_for
from fastgen.config import DMDConfig
from fastgen.discriminators import discriminator_for
from fastgen.dmd import DMDPipeline
from fastgen.guidance import Guidance
from fastgen.methods.consistency import consistency_loss
from fastgen.methods.diagnostics import diagnose
from fastgen.methods.fake_scores import create_fake_score
from fastgen.methods.rollouts import SharedDraws
from fastgen.methods.sets import set_term
from fastgen.models.representations import rep_matrices
from fastgen.teachers.guided import GuidedNetwork
from fastgen.teachers.prefixed import PREFIX_WAYS, PrefixedNetwork
from support.exact import normal
from support.padded import masks, network, walks

ROWS = 8
MASK, COND_MASK = masks().rows(torch.arange(ROWS))
LENGTHS = torch.where(torch.arange(ROWS) % 2 == 0, MASK.sum(1) - 1, 0)
X, Z = (value[:ROWS] for value in walks(0.0))
NOISE = normal(ROWS, 4, 2, seed=1)
PADDED = with_prefix(with_masks(Z, MASK, COND_MASK), X, LENGTHS)
WHOLE = with_prefix(Z, X, LENGTHS)
LOSSES = ("student", "fake_score")


def matching(
    way: str = "times",
    *,
    equivariant: bool = False,
    guidance: Guidance | None = None,
    **changes: Any,
) -> DMDPipeline:
    """Three networks that are told of given tokens, or with `way="none"` not; the teacher guides
    itself if asked to."""
    values: dict[str, Any] = {"student_steps": 2, "student_sample_type": "sde", "vsd_norm": "rms"}
    config = DMDConfig(**{**values, **changes})
    student, teacher, fake_score = (
        network(equivariant=equivariant, seed=seed).double() for seed in (1, 2, 3)
    )
    if way != "none":
        student = PrefixedNetwork(student)
        teacher, fake_score = (PrefixedNetwork(one, way) for one in (teacher, fake_score))
    if guidance is not None:
        teacher = GuidedNetwork(teacher, guidance, torch.zeros_like(Z[:1]))
    rungs = len(config.t_list) - 1 if config.fake_score_rung_conditioned else 1
    judge = create_fake_score(fake_score, num_rungs=rungs)
    return DMDPipeline(student, teacher, judge, config)


def loss_of(made: DMDPipeline, name: str, noise: Tensor, cond: Any, x0: Tensor = X) -> Tensor:
    compute = getattr(made, f"compute_{name}_loss")
    return compute(x0, noise, cond, generator=generator_for(0))["total"]


@pytest.mark.parametrize("cond", [PADDED, WHOLE], ids=["padded", "whole"])
@pytest.mark.parametrize("way", PREFIX_WAYS)
def test_samples_hold_the_prefix_and_have_gradients_at_open_tokens_alone(cond, way):
    made = matching(way)
    samples = made.generate(X, NOISE, cond, generator=generator_for(0))
    given = cond["given"]
    assert torch.equal(samples.x0[given], X[given])
    leaf = samples.x0.detach().requires_grad_()
    options: dict[str, Any] = {"generator": generator_for(1)}
    generated = samples._replace(x0=leaf)
    total = made.compute_student_loss(X, NOISE, cond, generated=generated, **options)["total"]
    (gradient,) = torch.autograd.grad(total, leaf)
    is_open = ~given & cond.get("mask", torch.ones_like(given))
    assert not gradient[~is_open].any() and (gradient[is_open] != 0).all()


@pytest.mark.parametrize("way", PREFIX_WAYS)
@pytest.mark.parametrize("name", LOSSES)
def test_what_a_network_says_of_given_tokens_is_no_part_of_its_loss(way, name, monkeypatch):
    """A network that says something else there has the same loss and the same gradients."""
    results = []
    for extra in (0.0, 3.0):
        made = matching(way)
        for coat in (made.student, made.teacher, made.fake_score.network):
            inner = coat.network.forward

            def moved(x_t, t, cond, *, inner=inner, extra=extra):
                given = PADDED["given"][..., None]
                return inner(x_t, t, cond) + extra * given.to(x_t)

            monkeypatch.setattr(coat.network, "forward", moved)
        asked = made.student if name == "student" else made.fake_score
        total = loss_of(made, name, NOISE, PADDED)
        gradients = torch.autograd.grad(total, list(asked.parameters()))
        results.append([total, *gradients])
    for plain, other in zip(*results, strict=True):
        assert plain.isfinite().all() and torch.equal(plain, other)


@pytest.mark.parametrize("equivariant", [False, True])
@pytest.mark.parametrize("way", PREFIX_WAYS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("masked", [False, True])
def test_rows_that_are_given_nothing_have_the_loss_without_prefixes(name, way, equivariant, masked):
    rest = with_masks(Z, MASK, COND_MASK) if masked else Z
    cond = with_prefix(rest, X, torch.zeros(ROWS))
    found = loss_of(matching(way, equivariant=equivariant), name, NOISE, cond)
    expected = loss_of(matching("none", equivariant=equivariant), name, NOISE, rest)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("way", PREFIX_WAYS)
def test_what_stands_in_padding_changes_no_bit(name, way, monkeypatch):
    drawn = SharedDraws.normal_like
    found = []
    for fill in (0.0, 50.0):

        def normal_like(self, x, generator, fill=fill):
            return drawn(self, x, generator).masked_fill(~MASK[..., None], fill)

        monkeypatch.setattr(SharedDraws, "normal_like", normal_like)
        x0, noise = (value.masked_fill(~MASK[..., None], fill) for value in (X, NOISE))
        z = Z.masked_fill(~COND_MASK[..., None], fill)
        prefix = X.masked_fill(~PADDED["given"][..., None], fill)
        cond = {**PADDED, "Z": z, "prefix": prefix}
        found.append(loss_of(matching(way), name, noise, cond, x0))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("way", PREFIX_WAYS)
def test_losses_move_with_scene_noise_and_prefix(name, way, monkeypatch):
    made = matching(way, equivariant=True)
    inner = made.student.network
    still = loss_of(made, name, NOISE, PADDED)
    drawn = SharedDraws.normal_like
    moves = (rep_matrices(rep) for rep in (inner.in_rep, inner.cond_rep))
    for rho, rho_cond in zip(*moves, strict=True):

        def normal_like(self, x, generator, rho=rho):
            return drawn(self, x, generator) @ rho.T

        monkeypatch.setattr(SharedDraws, "normal_like", normal_like)
        cond = {**PADDED, "Z": Z @ rho_cond.T, "prefix": X @ rho.T}
        moved = loss_of(made, name, NOISE @ rho.T, cond, X @ rho.T)
        torch.testing.assert_close(moved, still, rtol=1e-9, atol=0)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("way", PREFIX_WAYS)
def test_a_guided_teacher_keeps_what_is_given_on_both_sides(way, rescale):
    seen: list[Any] = []

    class Asked(PrefixedNetwork):
        def forward(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
            seen.append(cond)
            return super().forward(x_t, t, cond)

    plain: nn.Module = Asked(network(seed=2).double(), way)
    guidance = Guidance(3.0, (0.3, 1.0), rescale)
    teacher = GuidedNetwork(plain, guidance, torch.zeros_like(Z[:1]))
    t = torch.linspace(0.1, 0.9, ROWS, dtype=torch.float64)
    x0 = teacher.predict_x0(NOISE, t, PADDED)
    null = seen[-1]
    inside = t >= 0.3
    assert not null["Z"].any() and torch.equal(null["given"], PADDED["given"][inside])
    assert torch.equal(null["prefix"], X[inside])
    assert torch.equal(x0[PADDED["given"]], X[PADDED["given"]])
    # Rescaling is by open tokens: others don't count, and stay what they are.
    open_ = (MASK & ~PADDED["given"])[..., None]
    moved = teacher(NOISE, t, PADDED) - plain(NOISE, t, PADDED)
    assert not moved.masked_select(PADDED["given"][..., None]).abs().gt(1e-12).any()
    assert moved.masked_select(open_ & inside[:, None, None]).abs().max() > 0.01


@pytest.mark.parametrize("vsd_norm", ["rms", "batch"])
@pytest.mark.parametrize("cond", [PADDED, WHOLE], ids=["padded", "whole"])
@pytest.mark.parametrize("way", PREFIX_WAYS)
def test_a_teacher_that_rescales_by_itself_is_guided_as_by_the_config(way, cond, vsd_norm):
    """Without masks, too: which tokens are given is no padding that it couldn't tell."""
    own = matching(way, guidance=Guidance(3.0, (0.0, 1.0), 0.7), vsd_norm=vsd_norm)
    asked = {"guidance_scale": 3.0, "guidance_rescale": 0.7, "vsd_norm": vsd_norm}
    asked_of = matching(way, **asked)
    options: dict[str, Any] = {"generator": generator_for(0)}
    found = own.compute_student_loss(X, NOISE, cond, **options)["total"]
    options = {"generator": generator_for(0), "negative_cond": torch.zeros_like(Z)}
    expected = asked_of.compute_student_loss(X, NOISE, cond, **options)["total"]
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)


def test_the_gap_of_the_judges_is_that_of_open_tokens():
    made = matching("times", vsd_norm="batch")
    found = diagnose(made, X, PADDED, bins=2, generator=generator_for(0))
    assert all(x > 0 for x in found["gap"]) and all(x > 0 for x in found["lag"])


def test_losses_of_whole_samples_refuse_a_prefix():
    made = matching(student_steps=1, real_data_weight=1.0, vsd_weight=0.0)
    with pytest.raises(ValueError, match="without a prefix for a distance to real data"):
        loss_of(made, "student", NOISE, WHOLE)
    with pytest.raises(ValueError, match="without a prefix for sets of samples"):
        set_term(made.rollouts, X, WHOLE)
    with pytest.raises(ValueError, match="without a prefix for consistency"):
        t = torch.full((ROWS,), 0.5, dtype=torch.float64)
        consistency_loss(made.student, made.teacher, X, NOISE, t, 0.5 * t, WHOLE)
    gan = {"gan_loss_weight_gen": 1.0, "gan_features": "sample", "vsd_weight": 0.0}
    config = DMDConfig(**gan, gan_loss="softplus", gan_t=made.config.vsd_t)
    judge = discriminator_for(made.teacher.network, X, Z, on_samples=True).double()
    whole = DMDPipeline(made.student, made.teacher, None, config, discriminator=judge)
    for name in ("student", "discriminator"):
        with pytest.raises(ValueError, match="without a prefix for a discriminator"):
            loss_of(whole, name, NOISE, WHOLE)
