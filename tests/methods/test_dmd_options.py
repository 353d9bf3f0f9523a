"""Options of distribution matching: each against its formula, in float64."""

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.seeds import generator_for
from fastgen.config import DMDConfig
from fastgen.dmd import DMDPipeline, Generated
from fastgen.flow_matching import add_noise, pred_x0_from_flow
from fastgen.guidance import Guidance, guide_x0
from fastgen.methods.verdicts import in_parts
from fastgen.teachers.guided import GuidedNetwork
from fastgen.vsd import f_divergence_weight, vsd_loss
from support.exact import normal
from support.pipeline import (
    COND,
    NOISE,
    T_LIST,
    X0,
    Heads,
    Net,
    build,
    draws,
    judged_by,
    student_x0,
)

# ---- VSD -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("f_divergence", ["reverse_kl", "forward_kl", "js"])
def test_the_vsd_weight_has_the_factors_asked_for(alpha, f_divergence):
    pipeline = build(
        gan=True, vsd_alpha_factor=alpha, f_divergence=f_divergence, gan_t=DMDConfig().vsd_t
    )
    loss = pipeline.compute_student_loss(X0, NOISE, COND, generator=generator_for(0))["vsd"]
    t, eps = draws(pipeline.config.vsd_t, generator_for(0))
    x = student_x0(pipeline, 0.999 * NOISE, 0.999)
    x_t = add_noise(x.detach(), eps, t)
    scale = (1 - t) if alpha else torch.ones_like(t)
    logits = pipeline.discriminator(pipeline.features(x_t, t.double(), COND), t.double(), COND)
    scale = scale * f_divergence_weight(f_divergence, logits.mean(1).detach())
    expected = vsd_loss(
        x, judged_by(pipeline.teacher, x_t, t), judged_by(pipeline.fake_score, x_t, t), scale
    )
    torch.testing.assert_close(loss, expected)


def test_a_clamped_direction_is_shortened_and_not_turned():
    generated, teacher, fake = (normal(4, 5, seed=s).requires_grad_(s == 0) for s in range(3))
    fake = teacher + (fake - teacher) * torch.tensor([0.01, 0.1, 1.0, 10.0]).double()[:, None]

    def directions(clamp):
        (g,) = torch.autograd.grad(vsd_loss(generated, teacher, fake, clamp=clamp), generated)
        return g * generated.numel()

    free = directions(None)
    clamped = directions(0.5)
    length, bounded = (d.square().mean(1).sqrt() for d in (free, clamped))
    torch.testing.assert_close(bounded, length.clamp(max=0.5))
    torch.testing.assert_close(
        nn.functional.cosine_similarity(free, clamped), torch.ones(4).double()
    )
    assert (length > 0.5).any() and (length < 0.5).any()


def test_a_teacher_is_guided_in_its_interval_and_rescaled():
    pipeline = build(guidance_scale=3.0, guidance_interval=(0.2, 0.7), guidance_rescale=0.6)
    negative = torch.zeros_like(COND)
    loss = pipeline.compute_student_loss(
        X0, NOISE, COND, negative_cond=negative, generator=generator_for(0)
    )["vsd"]
    t, eps = draws(pipeline.config.vsd_t, generator_for(0))
    x = student_x0(pipeline, 0.999 * NOISE, 0.999)
    x_t = add_noise(x.detach(), eps, t)
    plain, null = (
        pred_x0_from_flow(pipeline.teacher(x_t, t.double(), c), x_t, t) for c in (COND, negative)
    )
    teacher = guide_x0(plain, null, t, Guidance(3.0, (0.2, 0.7), 0.6))
    assert ((t < 0.2) | (t > 0.7)).any() and ((t > 0.2) & (t < 0.7)).any()
    torch.testing.assert_close(loss, vsd_loss(x, teacher, judged_by(pipeline.fake_score, x_t, t)))


def test_without_vsd_no_fake_score_is_needed_or_called():
    config = DMDConfig(vsd_weight=0.0, gan_loss_weight_gen=2.0, fake_score_rung_conditioned=False)
    teacher = Net(2)
    pipeline = DMDPipeline(
        Net(1),
        teacher,
        None,
        config,
        discriminator=Heads(),
        features=lambda x, t, c: [teacher.hidden(x, t, c)],
    )
    losses = pipeline.compute_student_loss(X0, NOISE, COND, generator=generator_for(0))
    assert set(losses) == {"gan_gen", "total"}
    torch.testing.assert_close(losses["total"], 2.0 * losses["gan_gen"])
    with pytest.raises(ValueError, match="fake_score"):
        pipeline.compute_fake_score_loss(X0, NOISE, COND, generator=generator_for(0))
    with pytest.raises(ValueError, match="expected a fake_score for vsd_weight"):
        DMDPipeline(Net(1), teacher, None, DMDConfig())


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("sigma", lambda t: t),
        ("alpha", lambda t: 1 - t),
        ("min_snr", lambda t: (((1 - t) / t) ** 2).clamp(max=5.0)),
    ],
)
def test_the_fake_scores_loss_is_weighted_over_time(kind, weight):
    pipeline = build(fake_score_weight=kind)
    loss = pipeline.compute_fake_score_loss(X0, NOISE, COND, generator=generator_for(0))[
        "fake_score"
    ]
    t, eps = draws(pipeline.config.fake_score_t, generator_for(0))
    x = student_x0(pipeline, 0.999 * NOISE, 0.999)
    t = t.double()
    per_sample = (pipeline.fake_score(add_noise(x, eps, t), t, COND) - (eps - x)).square().mean(1)
    torch.testing.assert_close(loss, (weight(t) * per_sample).mean())


# ---- Weights -------------------------------------------------------------------------------------

WEIGHTS = {
    "vsd": "vsd_weight",
    "gan_gen": "gan_loss_weight_gen",
    "real_data": "real_data_weight",
    "r1": "gan_r1_reg_weight",
    "r2": "gan_r2_reg_weight",
}


@pytest.mark.parametrize("term", WEIGHTS)
def test_a_term_of_weight_zero_is_absent_and_those_before_it_are_what_they_were(term):
    """The terms of a loss draw one after another, so those before the absent one draw the same."""

    def losses(**changes: float) -> dict[str, Tensor]:
        weights = {weight: 0.5 for weight in WEIGHTS.values()} | changes
        pipeline = build(gan=True, real_data_samples=3, **weights)
        computed = {}
        for name in ("student", "discriminator"):
            compute = getattr(pipeline, f"compute_{name}_loss")
            computed |= compute(X0, NOISE, COND, generator=generator_for(0))
            computed[f"total of the {name}"] = computed.pop("total")
        return computed

    whole = losses()
    without = losses(**{WEIGHTS[term]: 0.0})
    assert set(whole) - set(without) == {term}
    order = ["vsd", "gan_gen", "real_data", "gan_disc", "r1", "r2"]
    before = order[: order.index(term)]
    assert all(torch.equal(whole[name], without[name]) for name in before)


def test_a_discriminator_without_a_weight_is_never_asked_by_the_student():
    """The loss, its gradient and what it draws are those of a pipeline without a discriminator."""
    results = []
    for gan in (True, False):
        pipeline = build(gan=gan, real_data_weight=1.0, real_data_samples=3)
        generator = generator_for(0)
        losses = pipeline.compute_student_loss(X0, NOISE, COND, generator=generator)
        losses["total"].backward()
        gradients = [p.grad for p in pipeline.student.parameters()]
        calls = len(pipeline.teacher.seen)
        results.append([*losses.values(), *gradients, generator.get_state(), torch.tensor(calls)])
    for with_one, without in zip(*results, strict=True):
        assert torch.equal(with_one, without)


# ---- Samples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["fake_score", "discriminator"])
def test_samples_that_were_made_before_are_taken_as_they_are(loss):
    pipeline = build(gan=True, gan_loss_weight_gen=0.1)
    made = pipeline.generate(X0, NOISE, COND, generator=generator_for(0))
    assert made.x0.requires_grad and made.rung == 0
    compute = getattr(pipeline, f"compute_{loss}_loss")
    pipeline.student.seen.clear()
    # With one rung nothing is drawn before t, so the same generator gives the same loss with or
    # without them.
    reused = compute(X0, NOISE, COND, generated=made, generator=generator_for(1))["total"]
    assert not pipeline.student.seen
    torch.testing.assert_close(
        reused, compute(X0, NOISE, COND, generator=generator_for(1))["total"]
    )
    reused.backward()
    assert all(p.grad is None for p in pipeline.student.parameters())


def test_the_students_loss_goes_through_samples_that_were_made_before():
    pipeline = build()
    made = pipeline.generate(None, NOISE, COND, generator=generator_for(0))
    one = pipeline.compute_student_loss(
        None, NOISE, COND, generated=made, generator=generator_for(1)
    )["total"]
    other = pipeline.compute_student_loss(None, NOISE, COND, generator=generator_for(1))["total"]
    weights = list(pipeline.student.parameters())
    for a, b in zip(
        torch.autograd.grad(one, weights), torch.autograd.grad(other, weights), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backward_simulation", [True, False])
def test_rungs_come_as_often_as_their_weights_say(backward_simulation):
    pipeline = build(
        t_list=(0.9, 0.6, 0.3, 0.0),
        rung_weights=(3.0, 0.0, 1.0),
        backward_simulation=backward_simulation,
    )
    seen = torch.zeros(3)
    for seed in range(200 if backward_simulation else 35):
        rung = pipeline.student_input(X0, NOISE, COND, generator=generator_for(seed))[2]
        seen += torch.bincount(torch.as_tensor(rung).reshape(-1), minlength=3)
    share = seen / seen.sum()
    # 200 draws or more: five standard deviations of a share of 3/4 are .15
    assert share[1] == 0 and abs(float(share[0]) - 0.75) < 0.15


@pytest.mark.parametrize(
    "changes",
    [
        {"rung_weights": (1.0, 2.0)},
        {"guidance_interval": (0.7, 0.2)},
        {"real_data_bandwidths": (0.0,)},
        {"vsd_weight": 0.0},
    ],
)
def test_configs_that_mean_nothing_are_refused(changes):
    with pytest.raises(ValueError, match="expected"):
        DMDConfig(**changes)


def test_generated_samples_lose_their_gradient_when_detached():
    made = Generated(torch.ones(2, requires_grad=True) * 2, 1)
    assert not made.detach().x0.requires_grad and made.detach().rung == 1


# ---- Matching and guidance part ------------------------------------------------------------------

GUIDED = {"guidance_scale": 2.5, "guidance_interval": (0.2, 0.9), "vsd_norm": "rms"}


def vsd_of(pipeline, **draw):
    generator = generator_for(0)
    loss = pipeline.compute_student_loss(X0, NOISE, COND, generator=generator, **draw)["vsd"]
    return torch.stack([g.sum() for g in torch.autograd.grad(loss, pipeline.student.parameters())])


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_parts_of_weight_one_add_up_to_the_guided_gradient(rescale):
    negative = {"negative_cond": torch.zeros_like(COND)}
    whole = vsd_of(build(**GUIDED, guidance_rescale=rescale), **negative)
    # All times are above the last rung, 0: the parts are computed, and nothing is left out.
    parts = build(**GUIDED, guidance_rescale=rescale, vsd_guidance_from_rung=True)
    assert parts.config.vsd_in_parts
    torch.testing.assert_close(vsd_of(parts, **negative), whole, rtol=1e-10, atol=1e-12)


def test_without_its_guidance_part_a_guided_teacher_only_weighs():
    negative = {"negative_cond": torch.zeros_like(COND)}
    no_norm = {**GUIDED, "vsd_norm": "none"}
    plain = vsd_of(build(vsd_norm="none"))
    assert not torch.allclose(vsd_of(build(**no_norm), **negative), plain)
    found = vsd_of(build(**no_norm, vsd_guidance_weight=0.0), **negative)
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)


def test_each_part_counts_at_its_own_times():
    t = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    config = DMDConfig(
        student_steps=4,
        t_list=T_LIST,
        guidance_scale=2.0,
        vsd_matching_weight=3.0,
        vsd_matching_interval=(0.0, 0.5),
        vsd_guidance_weight=2.0,
        vsd_guidance_interval=(0.3, 1.0),
        vsd_guidance_from_rung=True,
    )
    plain = torch.zeros(4, 1, dtype=torch.float64)
    fake = torch.full_like(plain, 1.0)
    guided = torch.full_like(plain, 10.0)
    rung = 1  # goes on to the rung at .5
    found = in_parts(config, plain, guided, fake, t, rung)
    assert found[:, 0].tolist() == [3.0, 3.0, -20.0, -20.0]
    rungs = torch.tensor([3, 3, 0, 0])  # which go on to 0 and to .75
    found = in_parts(config, plain, guided, fake, t, rungs)
    assert found[:, 0].tolist() == [3.0, 3.0 - 20.0, 0.0, -20.0]


def test_a_teacher_that_guides_itself_has_the_parts_of_one_guided_by_the_config():
    keys = {"vsd_guidance_weight": 0.5, "vsd_matching_interval": (0.0, 0.7)}
    by_config = build(**GUIDED, **keys)
    negative = torch.zeros_like(COND)
    expected = vsd_of(by_config, negative_cond=negative)
    by_itself = build()
    by_itself.config = by_config.config.model_copy(update={"guidance_scale": None})
    by_itself.teacher = GuidedNetwork(
        by_itself.teacher, Guidance(2.5, interval=(0.2, 0.9)), negative[:1]
    )
    torch.testing.assert_close(vsd_of(by_itself), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"vsd_guidance_interval": (0.5, 0.5)}, "vsd_guidance_interval as 0 <= lo < hi <= 1"),
        ({"vsd_matching_interval": (-0.1, 0.5)}, "vsd_matching_interval as 0 <= lo < hi <= 1"),
        (
            {"vsd_matching_weight": 0.0, "vsd_guidance_weight": 0.0},
            "expected vsd_matching_weight or vsd_guidance_weight > 0",
        ),
    ],
)
def test_parts_that_make_no_sense_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        DMDConfig(**keys)
