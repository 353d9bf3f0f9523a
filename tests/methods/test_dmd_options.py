"""What the method offers beyond its first form: each option against its formula, in float64."""

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.seeds import generator_for
from fastgen.config import DMDConfig
from fastgen.dmd import DMDPipeline, Generated, create_fake_score
from fastgen.flow_matching import add_noise, pred_x0_from_flow, sample_timesteps
from fastgen.guidance import Guidance, guide_x0
from fastgen.losses import f_divergence_weight, vsd_loss
from fastgen.models.discriminators import FourierDiscriminator, TokenHeads
from fastgen.teachers.guided import GuidedNetwork
from fastgen.two_sample import two_sample_loss
from support.exact import normal
from support.pipeline import COND, NOISE, X0, Heads, Net, build, networks, student_x0


def draws(cfg, generator: torch.Generator, n: int = 6) -> tuple[Tensor, Tensor]:
    t = sample_timesteps(n, cfg, device="cpu", generator=generator)
    return t, torch.randn(n, 3, dtype=torch.float64, generator=generator)


def judged_by(net: nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
    return pred_x0_from_flow(net(x_t, t.double(), COND), x_t, t)


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


# ---- GAN and real data ---------------------------------------------------------------------------


def test_r2_perturbs_the_generated_samples_and_nothing_else():
    pipeline = build(gan=True, gan_r2_reg_weight=3.0, gan_r1_reg_alpha=0.05)
    losses = pipeline.compute_discriminator_loss(X0, NOISE, COND, generator=generator_for(0))
    (fake, t_fake), _, (perturbed, t_perturbed) = pipeline.teacher.seen
    assert torch.equal(t_fake, t_perturbed)
    generator = generator_for(0)
    for _ in range(2):
        draws(pipeline.config.gan_t, generator)
    n = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    torch.testing.assert_close((perturbed - fake) / (1 - t_fake[:, None]), 0.05 * n)
    torch.testing.assert_close(
        losses["total"], losses["gan_disc"] + 3.0 / (2 * 0.05**2) * losses["r2"]
    )


def test_relativistic_losses_compare_a_sample_with_its_datum():
    pipeline = build(
        gan=True, gan_loss="relativistic", gan_loss_weight_gen=1.0, gan_use_same_t_noise=True
    )
    made = pipeline.compute_student_loss(X0, NOISE, COND, generator=generator_for(0))["gan_gen"]
    generator = generator_for(0)
    draws(pipeline.config.vsd_t, generator)
    t, eps = draws(pipeline.config.gan_t, generator)
    x = student_x0(pipeline, 0.999 * NOISE, 0.999)

    def logits(sample):
        x_t = add_noise(sample, eps, t)
        return pipeline.discriminator(
            [pipeline.teacher.hidden(x_t, t.double(), COND)], t.double(), COND
        )

    torch.testing.assert_close(made, nn.functional.softplus(logits(X0) - logits(x)).mean())
    with pytest.raises(ValueError, match="expected x0 for gan_loss"):
        pipeline.compute_student_loss(None, NOISE, COND, generator=generator_for(0))


def test_the_named_features_are_those_of_the_network_named():
    teacher = Net(2)
    fake = Net(3)
    for name, network in (("teacher", teacher), ("fake_score", fake)):
        config = DMDConfig(gan_features=name, gan_blocks=("dropout",), gan_loss_weight_gen=1.0)
        pipeline = DMDPipeline(Net(1), teacher, fake, config, discriminator=Heads())
        t = torch.full((6,), 0.3, dtype=torch.float64)
        (features,) = pipeline.features(X0, t, COND)
        torch.testing.assert_close(features, network.hidden(X0, t, COND))
    config = DMDConfig(gan_features="sample", gan_loss_weight_gen=1.0)
    (features,) = DMDPipeline(Net(1), teacher, fake, config, discriminator=Heads()).features(
        X0, t, COND
    )
    assert features is X0


def test_features_of_the_fake_score_train_only_the_discriminator():
    teacher = Net(2)
    fake = Net(3)
    config = DMDConfig(gan_features="fake_score", gan_blocks=("dropout",), gan_loss_weight_gen=1.0)
    pipeline = DMDPipeline(Net(1), teacher, fake, config, discriminator=Heads())
    for loss in ("student", "discriminator"):
        getattr(pipeline, f"compute_{loss}_loss")(X0, NOISE, COND, generator=generator_for(0))[
            "total"
        ].backward()
        for name, net in networks(pipeline).items():
            assert all((p.grad is not None) == (name == loss) for p in net.parameters()), (
                loss,
                name,
            )
            net.zero_grad(set_to_none=True)


@pytest.mark.parametrize("backward_simulation", [True, False])
def test_features_of_a_fake_score_that_knows_the_rung_are_those_of_the_samples_rung(
    backward_simulation,
):
    """For data too, which are compared with samples of that rung; the discriminator itself is told
    t alone."""
    teacher = Net(2)
    seen = []

    class Told(Heads):
        def forward(self, features: list[Tensor], t: Tensor, cond: Tensor) -> Tensor:
            seen.append(t)
            return super().forward(features, t, cond)

    fake = create_fake_score(teacher, num_rungs=3)
    config = DMDConfig(
        student_steps=3,
        backward_simulation=backward_simulation,
        gan_features="fake_score",
        gan_blocks=("dropout",),
        gan_loss_weight_gen=1.0,
        gan_loss="relativistic",
        vsd_weight=1.0,
    )
    pipeline = DMDPipeline(Net(1), teacher, fake, config, discriminator=Told())
    rungs = set()
    for seed in range(6):
        _, _, rung = pipeline.student_input(X0, NOISE, COND, generator=generator_for(seed))
        rungs |= set(torch.as_tensor(rung).reshape(-1).tolist())
        for loss in ("student", "discriminator"):
            fake.network.seen.clear()
            seen.clear()
            getattr(pipeline, f"compute_{loss}_loss")(
                X0, NOISE, COND, generator=generator_for(seed)
            )
            asked = [t for _, t in fake.network.seen]
            assert (
                len(asked) == (3 if loss == "student" else 2) and len(seen) == 2
            )  # the first is of VSD
            for times, told in zip(asked[-2:], seen, strict=True):
                assert (
                    torch.equal(times.floor().long(), torch.as_tensor(rung).expand(6))
                    and told.max() < 1
                )
                torch.testing.assert_close(times - torch.as_tensor(rung), told.double())
    assert rungs == {0, 1, 2}


def test_real_data_are_compared_given_their_condition():
    pipeline = build(real_data_weight=2.0, real_data_samples=3)
    losses = pipeline.compute_student_loss(X0, NOISE, COND, generator=generator_for(0))
    generator = generator_for(0)
    draws(pipeline.config.vsd_t, generator)
    fresh = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    cond = COND[::3].repeat_interleave(3, 0)
    t = torch.full((6,), 0.999, dtype=torch.float64)
    x = pred_x0_from_flow(pipeline.student(0.999 * fresh, t, cond), 0.999 * fresh, 0.999)
    expected = two_sample_loss(x.view(2, 3, 3), X0[::3, None])
    torch.testing.assert_close(losses["real_data"], expected)
    torch.testing.assert_close(losses["total"], losses["vsd"] + 2.0 * expected)


def test_without_a_condition_groups_of_samples_are_compared_with_groups_of_data():
    pipeline = build(
        real_data_weight=1.0,
        real_data_samples=3,
        real_data_conditional=False,
        real_data_kernel="mmd",
        vsd_weight=0.0,
    )
    pipeline.student.seen.clear()
    losses = pipeline.compute_student_loss(X0, NOISE, COND, generator=generator_for(0))
    assert len(pipeline.student.seen) == 1
    x = student_x0(pipeline, 0.999 * NOISE, 0.999)
    torch.testing.assert_close(
        losses["total"], two_sample_loss(x.view(2, 3, 3), X0.view(2, 3, 3), "mmd")
    )


@pytest.mark.parametrize(
    ("changes", "x0", "message"),
    [
        (
            {"real_data_weight": 1.0, "real_data_samples": 4},
            X0,
            "real_data_samples=4 divides, got 6",
        ),
        (
            {"real_data_weight": 1.0, "real_data_samples": 3},
            None,
            "expected x0 for real_data_weight",
        ),
    ],
)
def test_what_real_data_need_is_asked_for(changes, x0, message):
    with pytest.raises(ValueError, match=message):
        build(**changes).compute_student_loss(x0, NOISE, COND, generator=generator_for(0))


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


WIDE = {"time_dist_type": "uniform", "min_t": 0.02, "max_t": 0.98}


@pytest.mark.parametrize("kind", ["forward_kl", "js", "jeffreys", "hellinger"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"expected gan_t to cover vsd_t with f_divergence=.*, got 0.02..0.6 and 0.02..0.98"),
        ({"gan_t": WIDE | {"min_t": 0.1}}, r"got 0.1..0.98 and 0.02..0.98"),
        ({"gan_t": WIDE, "gan_loss": "relativistic"}, "up to an unknown constant"),
        (
            {"gan_t": WIDE, "vsd_weight": 0, "gan_loss_weight_gen": 1},
            "expected vsd_weight > 0 with f_divergence",
        ),
    ],
)
def test_a_ratio_that_the_discriminator_does_not_know_is_refused(kind, changes, message):
    DMDConfig(f_divergence=kind, gan_t=WIDE)
    DMDConfig(f_divergence=kind, vsd_t=WIDE | {"max_t": 0.6})
    DMDConfig(f_divergence="reverse_kl", **changes)
    with pytest.raises(ValueError, match=message):
        DMDConfig(f_divergence=kind, **changes)


def test_a_student_that_starts_from_data_is_not_compared_with_them():
    with pytest.raises(
        ValueError, match="expected backward_simulation=true with real_data_weight > 0"
    ):
        DMDConfig(student_steps=2, real_data_weight=1.0, backward_simulation=False)
    DMDConfig(student_steps=1, real_data_weight=1.0, backward_simulation=False)  # from pure noise
    DMDConfig(student_steps=2, backward_simulation=False)


# ---- Padding -------------------------------------------------------------------------------------


class Tokenwise(nn.Module):
    """Predicts every token of (B, T, d) by itself, so that padding cannot reach real tokens through
    the network."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(normal(2, seed=seed + k)) for k in (0, 10))

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        x = getattr(self, "block", nn.Identity())(self.a * x_t + self.b * cond[:, :1])
        return torch.tanh(x) + t[:, None, None]


@pytest.mark.parametrize("loss", ["student", "fake_score"])
def test_padding_changes_no_loss_and_no_gradient(loss):
    student, teacher, fake = (Tokenwise(seed) for seed in (1, 2, 3))
    config = DMDConfig(
        vsd_norm="rms", fake_score_rung_conditioned=False, real_data_weight=1.0, real_data_samples=2
    )
    pipeline = DMDPipeline(student, teacher, fake, config)
    mask = torch.tensor(
        [[True, True, True], [True, False, False], [True, True, False], [True, True, True]]
    )
    noise = normal(4, 3, 2)
    x0 = normal(4, 3, 2, seed=1)
    cond = normal(4, 3, 2, seed=2)

    def run(value: float) -> list[Tensor]:
        filled = [v.masked_fill(~mask[:, :, None], value) for v in (x0, noise, cond)]
        compute = getattr(pipeline, f"compute_{loss}_loss")
        total = compute(*filled, mask=mask, generator=generator_for(0))["total"]
        network = student if loss == "student" else fake
        return [total.detach(), *torch.autograd.grad(total, list(network.parameters()))]

    for plain, filled in zip(run(0.0), run(7.0), strict=True):
        torch.testing.assert_close(plain, filled)


@pytest.mark.parametrize("features", ["sample", "teacher"])
@pytest.mark.parametrize("loss", ["student", "discriminator"])
def test_padding_changes_no_loss_of_a_discriminator(loss, features):
    student, teacher, fake = (Tokenwise(seed) for seed in (1, 2, 3))
    teacher.block = nn.Identity()
    config = DMDConfig(
        vsd_norm="rms",
        fake_score_rung_conditioned=False,
        f_divergence="js",
        gan_t=DMDConfig().vsd_t,
        gan_features=features,
        gan_blocks=("block",),
        gan_loss_weight_gen=1.0,
        gan_r1_reg_weight=1.0,
        gan_r2_reg_weight=1.0,
        guidance_scale=2.0,
        guidance_rescale=0.5,
    )
    torch.manual_seed(0)
    heads = (
        TokenHeads([2]) if features == "teacher" else FourierDiscriminator(2, 2, 3, 3, num_layers=1)
    )
    pipeline = DMDPipeline(student, teacher, fake, config, discriminator=heads.double())
    mask = torch.tensor(
        [[True, True, True], [True, False, False], [True, True, False], [True, True, True]]
    )
    noise = normal(4, 3, 2)
    x0 = normal(4, 3, 2, seed=1)
    cond = normal(4, 3, 2, seed=2)

    def run(value: float) -> list[Tensor]:
        filled = [v.masked_fill(~mask[:, :, None], value) for v in (x0, noise)]
        compute = getattr(pipeline, f"compute_{loss}_loss")
        losses = compute(*filled, cond, negative_cond=-cond, mask=mask, generator=generator_for(0))
        network = student if loss == "student" else heads
        return [
            losses["total"].detach(),
            *torch.autograd.grad(losses["total"], list(network.parameters())),
        ]

    for plain, filled in zip(run(0.0), run(7.0), strict=True):
        torch.testing.assert_close(plain, filled)


@pytest.mark.parametrize(
    ("changes", "cond"), [({"real_data_conditional": False}, COND[:, None]), ({}, None)]
)
def test_samples_of_different_lengths_are_not_compared_in_groups(changes, cond):
    student, teacher, fake = (Tokenwise(seed) for seed in (1, 2, 3))
    config = DMDConfig(vsd_weight=0.0, real_data_weight=1.0, real_data_samples=2, **changes)
    pipeline = DMDPipeline(student, teacher, fake, config)
    pipeline.student = nn.Module()  # refused before it is asked for new samples
    made = Generated(normal(6, 3, 2), 0)
    with pytest.raises(ValueError, match="expected no mask where real data are compared in groups"):
        pipeline.compute_student_loss(
            made.x0, made.x0, cond, mask=torch.ones(6, 3, dtype=torch.bool), generated=made
        )


def test_a_teacher_that_rescales_by_itself_cannot_tell_padding():
    teacher = GuidedNetwork(Tokenwise(2), Guidance(2.0, rescale=0.5), normal(1, 3, 2))
    pipeline = DMDPipeline(Tokenwise(1), teacher, Tokenwise(3), DMDConfig())
    batch = [normal(4, 3, 2, seed=seed) for seed in range(3)]
    with pytest.raises(
        ValueError, match="a teacher that rescales by itself and cannot tell padding"
    ):
        pipeline.compute_student_loss(*batch, mask=torch.ones(4, 3, dtype=torch.bool))
    assert torch.isfinite(pipeline.compute_student_loss(*batch)["total"])


def test_generated_samples_lose_their_gradient_when_detached():
    made = Generated(torch.ones(2, requires_grad=True) * 2, 1)
    assert not made.detach().x0.requires_grad and made.detach().rung == 1
