"""Distribution matching distillation (DMD2) of rectified-flow networks: the method's losses.

A student G maps noise to samples in a few calls. A fake score learns to denoise what the student
makes now; the teacher denoises what the data look like. Where the two disagree about a noised
student sample x_t, the student moves:

    x = G(noise),  x_t = (1 - t) x + t eps:    d loss / d x  =  w (x0_fake(x_t) - x0_teacher(x_t))

Three losses take turns: the student's (VSD, and where asked for a GAN term and a kernel distance to
real data), the fake score's (denoising score matching on student samples) and the discriminator's.
Each reaches only the network it is named after, with nothing frozen by the caller.

No network generates or judges with dropout. The student is in eval mode while it generates, and
so are teacher, fake score and discriminator while they judge. Modes are restored; a network in its
own loss has the caller's.

Each loss draws from its `generator` in this order: the rung (if the student has several), the sde
noise of the rollout, then t and eps of the loss.

Samples of different lengths are padded and given a `mask`: padding counts in no mean. The mask says
nothing to student, teacher and fake score, whose condition must tell them (or whose attention is
causal); a discriminator is called with `mask=` too. Padding must be finite: a network's gradient is
NaN where its input is.

References:
    Yin et al., One-step Diffusion with Distribution Matching Distillation, 2023, arXiv:2311.18828.
    Yin et al., Improved Distribution Matching Distillation, 2024, arXiv:2405.14867.
    Lin et al., Diffusion Adversarial Post-Training, 2025, arXiv:2501.08316 (approximate R1 and R2).
    Sauer et al., Latent Adversarial Diffusion Distillation, 2024, arXiv:2403.12015 (GAN alone:
    vsd_weight 0). Xu, Nie & Vahdat, f-distill, 2025, arXiv:2502.15681 (other divergences than the
    reverse KL).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._core.checks import check_shape
from ..discriminators import Features
from ..guidance import check_guidance
from ..networks import Cond
from ..teachers.conversion import check_prediction
from .judges import Judges, check_judges, fake_score_space, knows_rung, named_features
from .rollouts import Generated, Rollouts, SharedDraws, student_rungs
from .terms import discriminator_terms, fake_score_term, real_data_term, sample_terms

if TYPE_CHECKING:
    from ..config.dmd import DMDConfig

__all__ = ["DMDPipeline"]


class DMDPipeline:
    """The losses of DMD2. Holds references to the networks; owns no optimiser, no device and no
    weights.

    All networks are called `net(x_t, t, cond)` and predict `config.pred_type`; a teacher that
    offers `predict_x0(x_t, t, cond)` is asked for x0 directly. A fake score made by
    `create_fake_score(teacher, num_rungs=K)` is told the rung of each sample, any other is not.

    Args:
        student, teacher, fake_score: networks, wrapped for training or not. The fake score may be
            None if `config.vsd_weight` is 0.
        config: `fastgen.config.dmd.DMDConfig`.
        discriminator: called `discriminator(features, t, cond)`, returns logits (B, heads). Used by
            the losses that have a weight.
        features: `features(x_t, t, cond) -> list of Tensors`, differentiable in x_t: what the
            discriminator sees; None: what `config.gan_features` and `config.gan_blocks` name.
        rank, world_size, same_draws: this process's part of the global batch, see
            :class:`fastgen.methods.rollouts.SharedDraws`.

    Raises:
        ValueError: if the config names unknown types, if t_list contradicts student_steps, if the
            config needs a discriminator or a fake score and there is none, or if it asks for blocks
            that the network does not have.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        fake_score: nn.Module | None,
        config: DMDConfig,
        *,
        discriminator: nn.Module | None = None,
        features: Features | None = None,
        rank: int = 0,
        world_size: int = 1,
        same_draws: bool = False,
    ) -> None:
        self.t_list = student_rungs(config)
        self.num_rungs = len(self.t_list) - 1
        check_prediction(student, config.pred_type)
        check_judges(teacher, fake_score, discriminator, config)
        self.fake_score_pred_type = fake_score_space(fake_score, config)
        self._features_by_rung = False
        if discriminator is not None and features is None:
            features = named_features(teacher, fake_score, config)
            self._features_by_rung = config.gan_features == "fake_score" and knows_rung(fake_score)
        self.student = student
        self.teacher = teacher
        self.fake_score = fake_score
        self.config = config
        self.discriminator = discriminator
        self.features = features
        self.draws = SharedDraws(rank, world_size, same_draws)

    # Built at each access, so that they follow a pipeline whose networks or draws are replaced.

    @property
    def judges(self) -> Judges:
        """Teacher, fake score and discriminator, as they judge a sample."""
        return Judges(
            self.teacher,
            self.fake_score,
            self.discriminator,
            self.features,
            self._features_by_rung,
            self.config,
        )

    @property
    def rollouts(self) -> Rollouts:
        """The student, as it generates."""
        return Rollouts(self.student, self.config, self.t_list, self.draws)

    def alone(self) -> DMDPipeline:
        """The same pipeline for a batch that no other process has a part of."""
        return self._drawing(self.draws.alone())

    def micro_batch(self, index: int, of: int) -> DMDPipeline:
        """The same pipeline for part `index` of the `of` equal parts of this process's share: with
        a generator in the same state for each, their losses average to the loss of the share."""
        return self._drawing(self.draws.part(index, of))

    def _drawing(self, draws: SharedDraws) -> DMDPipeline:
        pipeline = copy.copy(self)
        pipeline.draws = draws
        return pipeline

    # ---- Losses ----------------------------------------------------------------------------------

    def compute_student_loss(
        self,
        x0: Tensor | None,
        noise: Tensor,
        cond: Cond = None,
        *,
        negative_cond: Cond = None,
        mask: Tensor | None = None,
        generated: Generated | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """VSD, the student's GAN loss and a kernel distance to real data, each if it has a weight;
        gradients reach the student only.

        Args:
            x0: data (B, ...); used by `backward_simulation=False`, a relativistic GAN loss and the
                kernel distance, else only its shape matters and it may be None.
            noise: standard normal, shape (B, ...): where the student starts.
            cond: condition of student, fake score and teacher.
            negative_cond: condition guided away from, needed with `guidance_scale`.
            mask: (B, T), True at real tokens; None: all are.
            generated: what `generate` returned, to be used in place of new samples.
            generator: source of rung, sde noise, t, eps, then t and eps of the GAN loss (of the
                data too, if that is relativistic), then the noise of the kernel distance.

        Returns:
            {["vsd"], ["gan_gen"], ["real_data"], "total"}: scalars; total is their sum, each times
            its weight. A loss of weight 0 is absent: not computed, and nothing is drawn for it.

        Raises:
            ValueError: for `guidance_scale` without `negative_cond`, missing data, and shapes that
                don't fit.
        """
        check_guidance(self.config.guidance_scale, negative_cond)
        made = generated
        if made is None:
            made = self.generate(x0, noise, cond, generator=generator)
        options: dict[str, Any] = {"mask": mask, "generator": generator}
        losses = sample_terms(
            self.judges, self.draws, made, x0, cond, negative_cond=negative_cond, **options
        )
        if self.config.real_data_weight > 0:
            losses["real_data"] = real_data_term(self.rollouts, made, x0, noise, cond, **options)
        weights = {
            "vsd": self.config.vsd_weight,
            "gan_gen": self.config.gan_loss_weight_gen,
            "real_data": self.config.real_data_weight,
        }
        total = noise.new_zeros(())
        for name, loss in losses.items():
            total = total + weights[name] * loss
        return {**losses, "total": total}

    def compute_fake_score_loss(
        self,
        x0: Tensor | None,
        noise: Tensor,
        cond: Cond = None,
        *,
        negative_cond: Cond = None,
        mask: Tensor | None = None,
        generated: Generated | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Denoising score matching on student samples; gradients reach the fake score only.

        The fake score predicts `pred_type`; the loss compares in the space of
        `fake_score_pred_type` (of a converted network by default the one it was trained in).
        Arguments as in `compute_student_loss`; `negative_cond` is accepted for symmetry, the fake
        score is never guided.

        Returns:
            {"fake_score", "total"}: scalars.
        """
        made = _detached(self, generated, x0, noise, cond, generator)
        space = self.fake_score_pred_type
        loss = fake_score_term(
            self.judges, self.draws, made, cond, space, mask=mask, generator=generator
        )
        return {"fake_score": loss, "total": loss}

    def compute_discriminator_loss(
        self,
        x0: Tensor,
        noise: Tensor,
        cond: Cond = None,
        *,
        negative_cond: Cond = None,
        mask: Tensor | None = None,
        generated: Generated | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Tell data from student samples by features at noised inputs; gradients reach the
        discriminator only.

        With `gan_r1_reg_weight` = gamma > 0 the total adds gamma / (2 a^2) r1, a =
        `gan_r1_reg_alpha`: gamma / 2 times the squared gradient of the logit in the data, but for
        terms of higher order in a. `gan_r2_reg_weight` adds the same at the generated samples.
        Arguments as in `compute_student_loss`; draws, after the student's, as
        :func:`fastgen.methods.terms.discriminator_terms`.

        Returns:
            {"gan_disc", ["r1"], ["r2"], "total"}: scalars; r1 and r2 unweighted.

        Raises:
            ValueError: without a discriminator, or if x0 is None or not shaped like the noise.
        """
        if self.discriminator is None:
            raise ValueError("expected a pipeline with discriminator=, got none")
        check_shape("x0", x0, noise.shape)
        made = _detached(self, generated, x0, noise, cond, generator)
        losses = discriminator_terms(
            self.judges, self.draws, made, x0, cond, mask=mask, generator=generator
        )
        total = losses["gan_disc"]
        a = self.config.gan_r1_reg_alpha
        if "r1" in losses:
            total = total + self.config.gan_r1_reg_weight / (2.0 * a**2) * losses["r1"]
        if "r2" in losses:
            total = total + self.config.gan_r2_reg_weight / (2.0 * a**2) * losses["r2"]
        return {**losses, "total": total}

    # ---- Samples ---------------------------------------------------------------------------------

    def student_input(
        self,
        x0: Tensor | None,
        noise: Tensor,
        cond: Cond = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, float | Tensor, int | Tensor]:
        """What the student is trained on, see `Rollouts.student_input`."""
        return self.rollouts.student_input(x0, noise, cond, generator=generator)

    def generate(
        self,
        x0: Tensor | None,
        noise: Tensor,
        cond: Cond = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Generated:
        """The student's samples at one rung, see `Rollouts.generate`."""
        return self.rollouts.generate(x0, noise, cond, generator=generator)

    def fake_x0(self, x_t: Tensor, t: Tensor, cond: Cond, rung: int | Tensor) -> Tensor:
        """The fake score's x0 of `x_t`, see `Judges.fake_x0`."""
        return self.judges.fake_x0(x_t, t, cond, rung)

    def discriminator_logits(
        self, x_t: Tensor, t: Tensor, cond: Cond, rung: int | Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The discriminator's logits of `x_t`, see `Judges.discriminator_logits`."""
        return self.judges.discriminator_logits(x_t, t, cond, rung, mask)


def _detached(
    pipeline: DMDPipeline,
    generated: Generated | None,
    x0: Tensor | None,
    noise: Tensor,
    cond: Cond,
    generator: torch.Generator | None,
) -> Generated:
    """Samples without gradient: those `generated` before, or new ones if that is None."""
    if generated is not None:
        return generated.detach()
    with torch.no_grad():
        return pipeline.generate(x0, noise, cond, generator=generator)
