"""Distribution matching distillation (DMD2) of rectified-flow networks: the method's losses, and
nothing else.

A student G maps noise to samples in a few calls. A fake score learns to denoise what the student
makes now; the teacher denoises what the data look like. Where the two disagree about a noised
student sample x_t, the student moves:

    x = G(noise),  x_t = (1 - t) x + t eps:    d loss / d x  =  w (x0_fake(x_t) - x0_teacher(x_t))

Three losses take turns: the student's (VSD, and where asked for a GAN term and a kernel distance to
real data), the fake score's (denoising score matching on student samples) and the discriminator's.
Each reaches only the network it is named after, with nothing frozen outside.

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
import itertools
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from .._core.checks import check_choice, check_pred_type, check_shape
from .._core.conditions import map_tensors
from .._core.modules import as_built, evaluating, frozen
from .._core.seeds import draw_normal
from .._core.tensors import wide_dtype
from ..discriminators import Features, block_features, sample_features
from ..flow_matching import add_noise, convert_prediction, sample_timesteps
from ..guidance import Guidance, check_guidance, guide_x0
from ..losses import (
    VSD_NORMS,
    dsm_loss,
    f_divergence_weight,
    gan_disc_loss,
    gan_gen_loss,
    r1_loss,
    time_weight,
    vsd_loss,
)
from ..networks import Cond, call_network, coats, network_dtype, predict_x0, teacher_x0
from ..samplers import check_student, unroll
from ..teachers.conversion import check_prediction, loss_space, translated
from ..teachers.guided import GuidedNetwork
from ..teachers.half import Bfloat16Network
from ..two_sample import two_sample_loss
from .fake_scores import RungConditioned, create_fake_score

if TYPE_CHECKING:
    from ..config.dmd import DMDConfig
    from ..config.groups import SampleTimestepConfig

__all__ = ["DMDPipeline", "Generated", "RungConditioned", "create_fake_score"]


class Generated(NamedTuple):
    """Samples of the student at one rung.

    Attributes:
        x0: (B, ...), with the student's gradient where it was asked for.
        rung: index of the rung that made them, an int or integers (B,).
    """

    x0: Tensor
    rung: int | Tensor

    def detach(self) -> Generated:
        """The same samples without their gradient."""
        return Generated(self.x0.detach(), self.rung)


class DMDPipeline:
    """The losses of DMD2. Holds references to the networks; owns no optimiser, no device and no
    weights.

    A fake score made by `create_fake_score(teacher, num_rungs=K)` is told the rung of each sample,
    any other is not.

    All networks are called `net(x_t, t, cond)` and predict `config.pred_type`; a teacher that
    offers `predict_x0(x_t, t, cond)` is asked for x0 directly. No network generates or judges with
    dropout: the student is in eval mode while it generates, since it must be trained on what
    sampling will produce, and so are teacher, fake score and discriminator while they judge. Modes
    are restored; a network in its own loss has the caller's.

    Draws. Each loss draws from `generator`, in this order: the rung (if the student has several),
    the sde noise of the rollout, then t and eps of the loss. Across processes give every process a
    generator in the same state, with `rank` and `world_size`: each loss then draws for the global
    batch and keeps its own part, so results don't depend on the number of processes. The rung is
    drawn once for the global batch; with torch.distributed running, rank 0's draw is used
    everywhere, whatever the generators, unless `same_draws`: processes on different rungs would
    make different numbers of calls.

    Samples of different lengths are padded and given a `mask` (B, T), True at real tokens, over the
    first axis of a sample: padding counts in no mean. It says nothing to the networks, whose
    condition must tell them (or whose attention is causal); a discriminator is called with `mask=`
    too. Padding must be finite: a network's gradient is NaN where its input is.

    Args:
        student, teacher, fake_score: networks, wrapped for training or not. The fake score may be
            None if `config.vsd_weight` is 0.
        config: `fastgen.config.dmd.DMDConfig`.
        discriminator: called `discriminator(features, t, cond)`, returns logits (B, heads). Used if
            given.
        features: `features(x_t, t, cond) -> list of Tensors`, differentiable in x_t: what the
            discriminator sees; None: what `config.gan_features` and `config.gan_blocks` name.
        rank, world_size: this process's part of the global batch.
        same_draws: whether all processes are sure to give generators in the same state: nothing is
            broadcast then, for which a GPU would have to be waited for.

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
        self.t_list = check_student(config.t_list, config.student_sample_type, config.pred_type)
        self.num_rungs = len(self.t_list) - 1
        if config.student_steps not in (None, self.num_rungs):
            raise ValueError(
                f"expected student_steps={self.num_rungs} for t_list={self.t_list}, got "
                f"{config.student_steps}"
            )
        for network in (student, teacher, *([] if fake_score is None else [fake_score])):
            check_prediction(network, config.pred_type)
        check_choice("vsd_norm", config.vsd_norm, VSD_NORMS)
        if fake_score is None and config.vsd_weight > 0:
            raise ValueError(f"expected a fake_score for vsd_weight={config.vsd_weight}, got None")
        self.fake_score_pred_type = config.fake_score_pred_type or config.pred_type
        if fake_score is not None and config.fake_score_pred_type is None:
            self.fake_score_pred_type = loss_space(fake_score) or config.pred_type
        check_pred_type(self.fake_score_pred_type, "fake_score_pred_type")
        if discriminator is None and config.trains_discriminator:
            raise ValueError(
                f"expected discriminator= for gan_loss_weight_gen={config.gan_loss_weight_gen} "
                f"and f_divergence={config.f_divergence!r}, got none; give one, or set the weight "
                "to 0 and reverse_kl"
            )
        named = discriminator is not None and features is None
        if named:
            features = self._named_features(teacher, fake_score, config)
        if not 0 <= rank < world_size:
            raise ValueError(
                f"expected 0 <= rank < world_size, got rank={rank}, world_size={world_size}"
            )
        self._knows_rung = fake_score is not None and isinstance(
            as_built(fake_score), RungConditioned
        )
        self._rung_features = self._knows_rung and named and config.gan_features == "fake_score"
        self._guidance = None
        if config.guidance_scale is not None:
            self._guidance = Guidance(
                config.guidance_scale, config.guidance_interval, config.guidance_rescale
            )
        self.student = student
        self.teacher = teacher
        self.fake_score = fake_score
        self.config = config
        self.discriminator = discriminator
        self.features = features
        self.rank = rank
        self.world_size = world_size
        self.same_draws = same_draws

    def alone(self) -> DMDPipeline:
        """The same pipeline for a batch that no other process has a part of."""
        return self._sharing(0, 1)

    def micro_batch(self, index: int, of: int) -> DMDPipeline:
        """The same pipeline for part `index` of the `of` equal parts of this process's share.

        Parts are to a global batch what processes are: with a generator in the same state for each,
        their losses average to the loss of the share.
        """
        return self._sharing(self.rank * of + index, self.world_size * of)

    def _sharing(self, rank: int, world_size: int) -> DMDPipeline:
        pipeline = copy.copy(self)
        pipeline.rank = rank
        pipeline.world_size = world_size
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
        """VSD, the generator's GAN loss if there is a discriminator, and a kernel distance to real
        data if it has a weight; gradients reach the student only.

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
            its weight.

        Raises:
            ValueError: for `guidance_scale` without `negative_cond`, missing data, and shapes that
                don't fit.
        """
        config = self.config
        check_guidance(config.guidance_scale, negative_cond)
        made = (
            self.generate(x0, noise, cond, generator=generator) if generated is None else generated
        )
        losses = self.sample_losses(
            made, x0, cond, negative_cond=negative_cond, mask=mask, generator=generator
        )
        weights = {"vsd": config.vsd_weight, "gan_gen": config.gan_loss_weight_gen}
        total = sum(
            (weights[name] * loss for name, loss in losses.items()), start=noise.new_zeros(())
        )
        if config.real_data_weight > 0:
            losses["real_data"] = self._real_data(made.x0, x0, noise, cond, mask, generator)
            total = total + config.real_data_weight * losses["real_data"]
        return {**losses, "total": total}

    def sample_losses(
        self,
        made: Generated,
        x0: Tensor | None,
        cond: Cond = None,
        *,
        negative_cond: Cond = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The losses that judge samples one by one, {["vsd"], ["gan_gen"]}: scalars, differentiable
        in `made.x0`. Arguments as in `compute_student_loss`."""
        losses = {}
        if self.config.vsd_weight > 0:
            losses["vsd"] = self._vsd(made, cond, negative_cond, mask, generator)
        if self.discriminator is not None:
            losses["gan_gen"] = self._gan_gen(made, x0, cond, mask, generator)
        return losses

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
        `fake_score_pred_type` (of a converted network by default the one it was trained in, see
        `loss_space` of :mod:`fastgen.teachers.conversion`), weighted over t by `fake_score_weight`. Arguments
        as in `compute_student_loss`; `negative_cond` is accepted for symmetry, the fake score is
        never guided.

        Returns:
            {"fake_score", "total"}: scalars.
        """
        config = self.config
        with torch.no_grad():
            made = (
                self.generate(x0, noise, cond, generator=generator)
                if generated is None
                else generated.detach()
            )
            t, eps = self._draw(made.x0, config.fake_score_t, generator)
            x_t = add_noise(made.x0, eps, t)
        pred = self._fake_prediction(x_t, t, cond, made.rung)
        pred = convert_prediction(pred, x_t, t, config.pred_type, self.fake_score_pred_type)
        weight = (
            None if config.fake_score_weight == "none" else time_weight(config.fake_score_weight, t)
        )
        loss = dsm_loss(
            self.fake_score_pred_type, pred, x0=made.x0, eps=eps, t=t, weight=weight, mask=mask
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

        With `gan_r1_reg_weight` = gamma > 0 the total adds gamma / (2 a^2) r1, where r1 compares
        the logits at add_noise(x0, eps, t) and add_noise(x0 + a n, eps, t), n standard normal, a =
        `gan_r1_reg_alpha`: with one t and one eps this is gamma / 2 times the squared gradient of
        the discriminator's logit in the data. `gan_r2_reg_weight` adds the same at the generated
        samples.

        Draws after the student's: t, eps for its samples, t, eps for the data (unless
        `gan_use_same_t_noise`), then n of r1, n of r2.

        Returns:
            {"gan_disc", ["r1"], ["r2"], "total"}: scalars; r1 and r2 unweighted.

        Raises:
            ValueError: if the pipeline has no discriminator, or x0 is None or not shaped like the
                noise.
        """
        config = self.config
        if self.discriminator is None:
            raise ValueError("expected a pipeline with discriminator=, got none")
        check_shape("x0", x0, noise.shape)
        a = config.gan_r1_reg_alpha
        with torch.no_grad():
            made = (
                self.generate(x0, noise, cond, generator=generator)
                if generated is None
                else generated.detach()
            )
            t_fake, eps_fake = self._draw(made.x0, config.gan_t, generator)
            t_real = t_fake
            eps_real = eps_fake
            if not config.gan_use_same_t_noise:
                t_real, eps_real = self._draw(x0, config.gan_t, generator)
            clean = {"fake": (made.x0, eps_fake, t_fake), "real": (x0, eps_real, t_real)}
            if config.gan_r1_reg_weight > 0:
                clean["r1"] = (x0 + a * self._normal_like(x0, generator), eps_real, t_real)
            if config.gan_r2_reg_weight > 0:
                clean["r2"] = (made.x0 + a * self._normal_like(x0, generator), eps_fake, t_fake)
            features = {
                name: self._features(add_noise(x, eps, t), t, cond, made.rung)
                for name, (x, eps, t) in clean.items()
            }
        logits = {
            name: self._logits(self.discriminator, features[name], t, cond, mask)
            for name, (_, _, t) in clean.items()
        }
        real = logits["real"]
        fake = logits["fake"]
        losses = {"gan_disc": gan_disc_loss(real, fake, kind=config.gan_loss)}
        total = losses["gan_disc"]
        for name, weight, at in (
            ("r1", config.gan_r1_reg_weight, real),
            ("r2", config.gan_r2_reg_weight, fake),
        ):
            if name in logits:
                losses[name] = r1_loss(at, logits[name])
                total = total + weight / (2.0 * a**2) * losses[name]
        return {**losses, "total": total}

    def _vsd(
        self,
        made: Generated,
        cond: Cond,
        negative_cond: Cond,
        mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The VSD loss at times of its own, with the optional factors on its weight."""
        config = self.config
        t, eps = self._draw(made.x0, config.vsd_t, generator)
        x_t = add_noise(made.x0.detach(), eps, t)
        scale: float | Tensor | None = None
        with torch.no_grad():
            fake_x0 = self.fake_x0(x_t, t, cond, made.rung)
            with evaluating(self.teacher):
                teacher_x0 = self._teacher_x0(x_t, t, cond, negative_cond, mask)
            if config.f_divergence != "reverse_kl" and self.discriminator is not None:
                scale = f_divergence_weight(
                    config.f_divergence, self.judged(x_t, t, cond, made.rung, mask)
                )
        if config.vsd_alpha_factor:
            scale = (1.0 - t) * (1.0 if scale is None else scale)
        return vsd_loss(
            made.x0,
            teacher_x0,
            fake_x0,
            scale,
            norm=config.vsd_norm,
            clamp=config.vsd_clamp,
            mask=mask,
        )

    def _gan_gen(
        self,
        made: Generated,
        x0: Tensor | None,
        cond: Cond,
        mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The student's GAN loss; the gradient goes through discriminator and features into the
        sample."""
        config = self.config
        t, eps = self._draw(made.x0, config.gan_t, generator)
        fake = self.judged(add_noise(made.x0, eps, t), t, cond, made.rung, mask)
        if config.gan_loss != "relativistic":
            return gan_gen_loss(fake)
        if x0 is None:
            raise ValueError("expected x0 for gan_loss='relativistic', got None")
        if not config.gan_use_same_t_noise:
            t, eps = self._draw(x0, config.gan_t, generator)
        real = self.judged(add_noise(x0, eps, t), t, cond, made.rung, mask)
        return gan_gen_loss(fake, real, kind=config.gan_loss)

    def _real_data(
        self,
        x: Tensor,
        x0: Tensor | None,
        noise: Tensor,
        cond: Cond,
        mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Kernel distance of student samples to data: m = `real_data_samples` new samples for every
        m-th condition of the batch, as many samples in all as it has rows; without a condition,
        groups of m of the samples x."""
        config = self.config
        m = self.config.real_data_samples
        if x0 is None:
            raise ValueError(
                f"expected x0 for real_data_weight={config.real_data_weight}, got None"
            )
        check_shape("x0", x0, noise.shape)
        if len(x) % m:
            raise ValueError(
                f"expected a batch (per process and micro-batch) that real_data_samples={m} "
                f"divides, got {len(x)}"
            )
        groups = len(x) // m
        real = x0
        if config.real_data_conditional and cond is not None:
            # Every m-th and not the first ones: a process that has a part of the batch takes its
            # part of these.
            def repeated(value: Tensor) -> Tensor:
                return value[::m].repeat_interleave(m, 0)

            fresh = self._normal_like(noise, generator)
            start = None if config.backward_simulation else repeated(x0)
            x = self.generate(start, fresh, map_tensors(repeated, cond), generator=generator).x0
            real = x0[::m]
            mask = None if mask is None else mask[::m]
        elif mask is not None:
            raise ValueError(
                "expected no mask where real data are compared in groups "
                "(real_data_conditional=false, or no condition): samples of different lengths "
                "cannot be compared, got one"
            )
        return two_sample_loss(
            x.unflatten(0, (groups, -1)),
            real.unflatten(0, (groups, -1)),
            config.real_data_kernel,
            bandwidths=config.real_data_bandwidths,
            mask=mask,
        )

    # ---- Student samples -------------------------------------------------------------------------

    def student_input(
        self,
        x0: Tensor | None,
        noise: Tensor,
        cond: Cond = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, float | Tensor, int | Tensor]:
        """What the student is trained on: its input at one rung, that rung's time and its index.

        With backward simulation, the student's own rollout up to a rung drawn for the whole global
        batch, by the very function that samples it (`fastgen.samplers.unroll`). Without, real data
        noised at a rung drawn per sample, pure noise t_1 * noise at the first.

        Returns:
            `(x_t, t, rung)`: x_t (B, ...) without gradient; t and rung are a float and an int, or
            tensors (B,).
        """
        if x0 is not None:
            check_shape("x0", x0, noise.shape)
        if self.config.backward_simulation or self.num_rungs == 1:
            rung = self._draw_rung(noise.device, generator)
            states = unroll(
                as_built(self.student),
                noise,
                self.t_list,
                cond,
                sample_type=self.config.student_sample_type,
                pred_type=self.config.pred_type,
                draw_noise=lambda: self._normal_like(noise, generator),
            )
            with torch.no_grad(), evaluating(self.student):
                return next(itertools.islice(states, rung, None)), self.t_list[rung], rung
        if x0 is None:
            raise ValueError("expected x0 for backward_simulation=False, got None")
        rungs = self._own(self._rungs(len(noise) * self.world_size, noise.device, generator)).to(
            noise.device
        )
        t = torch.tensor(self.t_list, dtype=wide_dtype(noise.device)).to(noise.device)[rungs]
        first = (rungs == 0).reshape(-1, *(1,) * (noise.ndim - 1))
        # Sampling starts from noise alone, so the first rung holds no trace of x0.
        return add_noise(x0.masked_fill(first, 0.0), noise, t), t, rungs

    def generate(
        self,
        x0: Tensor | None,
        noise: Tensor,
        cond: Cond = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Generated:
        """The student's x0 at one rung, in the dtype of `noise`, with its gradient. Arguments as
        `student_input`."""
        x_t, t, rung = self.student_input(x0, noise, cond, generator=generator)
        with evaluating(self.student):
            made = predict_x0(
                self.student, x_t, t, cond, pred_type=self.config.pred_type, dtype=noise.dtype
            )
        return Generated(made.to(noise.dtype), rung)

    # ---- Judges ----------------------------------------------------------------------------------

    def _teacher_x0(
        self, x_t: Tensor, t: Tensor, cond: Cond, negative_cond: Cond, mask: Tensor | None
    ) -> Tensor:
        teacher = as_built(self.teacher)
        if mask is not None and isinstance(teacher, GuidedNetwork) and teacher.guidance.rescale:
            raise ValueError(
                "expected guidance_rescale and negative_cond of the pipeline with a mask, got a "
                "teacher that rescales by itself and cannot tell padding"
            )
        x0 = self._teacher_x0_at(x_t, t, cond)
        if self._guidance is None or self._guidance.scale == 1.0:
            return x0
        return guide_x0(
            x0, self._teacher_x0_at(x_t, t, negative_cond), t, self._guidance, mask=mask
        )

    def _teacher_x0_at(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return teacher_x0(self.teacher, x_t, t, cond, pred_type=self.config.pred_type)

    def fake_x0(self, x_t: Tensor, t: Tensor, cond: Cond, rung: int | Tensor) -> Tensor:
        """The fake score's x0 (B, ...) of `x_t` at `t` (B,), made at `rung`; in eval mode."""
        with evaluating(self.fake_score):
            pred = self._fake_prediction(x_t, t, cond, rung)
        return convert_prediction(pred, x_t, t, self.config.pred_type, "x0")

    def _fake_prediction(self, x_t: Tensor, t: Tensor, cond: Cond, rung: int | Tensor) -> Tensor:
        fake_score = self.fake_score
        if fake_score is None:
            raise ValueError("expected a pipeline with a fake_score, got None")
        if not self._knows_rung:
            return call_network(fake_score, x_t, t, cond, dtype=x_t.dtype)

        def at_rung(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
            return fake_score(x_t, t, cond, rung=rung)

        return call_network(at_rung, x_t, t, cond, dtype=network_dtype(fake_score, x_t.dtype))

    def judged(
        self, x_t: Tensor, t: Tensor, cond: Cond, rung: int | Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The discriminator's logits (B, heads) of `x_t` (B, ...) at `t` (B,), made at `rung`
        (data: the rung of the samples they are compared with): differentiable in the input, but not
        in any judge's weights."""
        # Frozen rather than no_grad: this gradient goes through both networks into the sample. The
        # discriminator is called without its wrapper: its weights get no gradient here, so there is
        # nothing to synchronise.
        if self.discriminator is None:
            raise ValueError("expected a pipeline with discriminator=, got none")
        discriminator = as_built(self.discriminator)
        judges = (self.teacher, self.fake_score, discriminator)
        with frozen(*judges), evaluating(*judges):
            return self._logits(discriminator, self._features(x_t, t, cond, rung), t, cond, mask)

    def _features(self, x_t: Tensor, t: Tensor, cond: Cond, rung: int | Tensor) -> list[Tensor]:
        assert self.features is not None  # whoever has a discriminator has its features
        with evaluating(self.teacher, self.fake_score):
            # The blocks of a fake score that is told the rung are those of its network, which reads
            # it off the time.
            return self.features(x_t, t + rung if self._rung_features else t, cond)

    @staticmethod
    def _logits(
        discriminator: nn.Module, features: list[Tensor], t: Tensor, cond: Cond, mask: Tensor | None
    ) -> Tensor:
        return (
            discriminator(features, t, cond)
            if mask is None
            else discriminator(features, t, cond, mask=mask)
        )

    @staticmethod
    def _named_features(
        teacher: nn.Module, fake_score: nn.Module | None, config: DMDConfig
    ) -> Features:
        """What `gan_features` and `gan_blocks` name."""
        if config.gan_features == "sample":
            return sample_features
        network = teacher if config.gan_features == "teacher" else fake_score
        if network is None:
            raise ValueError("expected a fake_score for gan_features='fake_score', got None")
        # The blocks' names are the plain network's own, and a guided teacher calls it twice.
        plain = translated(network)
        in_bfloat16 = any(isinstance(coat, Bfloat16Network) for coat in coats(network))
        features = block_features(plain, config.gan_blocks or None)

        def as_given(x_t: Tensor, t: Tensor, cond: Cond) -> list[Tensor]:
            with torch.autocast(x_t.device.type, torch.bfloat16):
                return [feature.to(x_t.dtype) for feature in features(x_t, t, cond)]

        return as_given if in_bfloat16 else features

    # ---- Draws -----------------------------------------------------------------------------------

    def _draw(
        self, x: Tensor, cfg: SampleTimestepConfig, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Times (B,) from `cfg`, then noise shaped like `x`."""
        t = sample_timesteps(len(x) * self.world_size, cfg, device=x.device, generator=generator)
        return self._own(t), self._normal_like(x, generator)

    def _normal_like(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        shape = (len(x) * self.world_size, *x.shape[1:])
        return self._own(draw_normal(shape, device=x.device, dtype=x.dtype, generator=generator))

    def _draw_rung(self, device: torch.device, generator: torch.Generator | None) -> int:
        """One rung for the global batch."""
        if self.num_rungs == 1:
            return 0
        rung = self._rungs(1, device, generator)
        if (
            not self.same_draws
            and torch.distributed.is_available()
            and torch.distributed.is_initialized()
        ):
            rung = rung.to(device)
            torch.distributed.broadcast(rung, src=0)
        return int(rung)

    def _rungs(self, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """n rungs, drawn as often as `rung_weights` say."""
        place = device if generator is None else generator.device
        if not self.config.rung_weights:
            return torch.randint(self.num_rungs, (n,), device=place, generator=generator)
        weights = torch.tensor(self.config.rung_weights, device=place)
        return torch.multinomial(weights, n, replacement=True, generator=generator)

    def _own(self, x: Tensor) -> Tensor:
        """This process's part of a draw for the global batch."""
        size = len(x) // self.world_size
        return x[self.rank * size : (self.rank + 1) * size]
