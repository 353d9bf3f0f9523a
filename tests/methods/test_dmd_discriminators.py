"""Distribution matching with a discriminator or with real data: each option against its formula."""

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.seeds import generator_for
from fastgen.config import DMDConfig
from fastgen.dmd import DMDPipeline, create_fake_score
from fastgen.flow_matching import add_noise, pred_x0_from_flow
from fastgen.two_sample import two_sample_loss
from support.pipeline import COND, NOISE, X0, Heads, Net, build, draws, networks, student_x0


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
