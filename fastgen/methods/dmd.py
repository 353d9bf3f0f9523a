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

Samples of different lengths are padded: padding counts in no mean. A condition that carries masks
(`_core/masks.py`) tells all networks and losses, and whatever stands in the padding changes
nothing. A `mask` by itself says nothing to student, teacher and fake score, whose condition must
tell them (or whose attention is causal), and padding must be finite. A discriminator is called with
`mask=` either way.

Tokens that a condition gives (`_core/prefixes.py`) are in all samples what they are given as. All
networks are told of them (:class:`fastgen.teachers.prefixed.PrefixedNetwork`); VSD and the fake
score's loss are means over real tokens that are not given, and have no gradient elsewhere.
Discriminators and distances to real data compare whole samples, and are refused.

References:
    Yin et al., One-step Diffusion with Distribution Matching Distillation, 2023, arXiv:2311.18828.
    Yin et al., Improved Distribution Matching Distillation, 2024, arXiv:2405.14867.
    Lin et al., Diffusion Adversarial Post-Training, 2025, arXiv:2501.08316 (approximate R1 and R2).
    Sauer et al., Latent Adversarial Diffusion Distillation, 2024, arXiv:2403.12015 (GAN alone:
    vsd_weight 0). Xu, Nie & Vahdat, f-distill, 2025, arXiv:2502.15681 (other divergences than the
    reverse KL).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._core.checks import check_shape
from ..guidance import check_guidance
from ..networks import Cond
from .pipeline import Pipeline
from .rollouts import Generated
from .terms import discriminator_terms, fake_score_term, real_data_term, sample_terms
from .verdicts import Verdict

__all__ = ["DMDPipeline"]


class DMDPipeline(Pipeline):
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
        mean: of a tensor over the processes, as `Processes.mean`; needed where several share a
            batch that `vsd_norm="batch"` gives one weight.

    Raises:
        ValueError: if the config names unknown types, if t_list contradicts student_steps, if the
            config needs a discriminator, a fake score or a mean over processes and there is none,
            or if it asks for blocks that the network does not have.
    """

    def compute_student_loss(
        self,
        x0: Tensor | None,
        noise: Tensor,
        cond: Cond = None,
        *,
        negative_cond: Cond = None,
        mask: Tensor | None = None,
        generated: Generated | None = None,
        verdict: Verdict | None = None,
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
            mask: (B, T), True at real tokens; None: that of the condition, or all are.
            generated: what `generate` returned, to be used in place of new samples.
            verdict: what `vsd_verdict` said of these samples; None: the judges are asked.
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
            self.judges,
            self.draws,
            made,
            x0,
            cond,
            negative_cond=negative_cond,
            verdict=verdict,
            **options,
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
