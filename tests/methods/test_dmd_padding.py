"""Distribution matching of samples of different lengths: padding changes nothing."""

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.seeds import generator_for
from fastgen.config import DMDConfig
from fastgen.dmd import DMDPipeline, Generated
from fastgen.guidance import Guidance
from fastgen.models.discriminators import FourierDiscriminator, TokenHeads
from fastgen.teachers.guided import GuidedNetwork
from support.exact import normal
from support.pipeline import COND


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


def test_neither_can_it_where_it_is_asked_with_and_without_guidance():
    teacher = GuidedNetwork(Tokenwise(2), Guidance(2.0, rescale=0.5), normal(1, 3, 2))
    judges = DMDPipeline(Tokenwise(1), teacher, Tokenwise(3), DMDConfig()).judges
    asked = (normal(4, 3, 2), torch.full((4,), 0.5), normal(4, 3, 2, seed=1))
    with pytest.raises(ValueError, match="rescales by itself and cannot tell padding"):
        judges.plain_and_guided_x0(*asked, mask=torch.ones(4, 3, dtype=torch.bool))
    plain, guided = judges.plain_and_guided_x0(*asked)
    assert not torch.equal(plain, guided)
