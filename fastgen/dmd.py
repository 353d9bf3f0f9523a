"""Distribution matching distillation (DMD2) of rectified-flow networks: the method's losses, and nothing else.

A student G maps noise to samples in a few calls. A fake score learns to denoise what the student makes now; the teacher
denoises what the data look like. Where the two disagree about a noised student sample x_t, the student moves:

    x = G(noise),  x_t = (1 - t) x + t eps:    d loss / d x  =  w (x0_fake(x_t) - x0_teacher(x_t))

Three losses take turns: the student's (VSD, optionally with a GAN term), the fake score's (denoising score matching on
student samples) and the discriminator's. Each reaches only the network it is named after, with nothing frozen outside.

References:
    Yin et al., One-step Diffusion with Distribution Matching Distillation, 2023, arXiv:2311.18828.
    Yin et al., Improved Distribution Matching Distillation, 2024, arXiv:2405.14867.
    Lin et al., Diffusion Adversarial Post-Training, 2025, arXiv:2501.08316 (approximate R1).
"""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ._tensor import (
    check_choice,
    check_count,
    check_shape,
    draw_normal,
    evaluating,
    frozen,
    unwrap,
    wide_dtype,
)
from .discriminators import Features, block_features
from .flow_matching import add_noise, check_pred_type, convert_prediction, sample_timesteps
from .losses import (
    VSD_NORMS,
    check_guidance,
    classifier_free_guidance,
    dsm_loss,
    gan_disc_loss,
    gan_gen_loss,
    r1_loss,
    vsd_loss,
)
from .networks import Cond, NetworkWrapper, call_network, network_dtype, predict_x0
from .samplers import check_student, unroll
from .teachers import check_prediction, loss_space

if TYPE_CHECKING:
    from .config import DMDConfig, SampleTimestepConfig

__all__ = ["DMDPipeline", "RungConditioned", "create_fake_score"]


class RungConditioned(NetworkWrapper):
    """A fake score that knows which rung of the student made the sample it denoises.

    It calls `network(x_t, t + rung, cond)`: rung r uses the times [r, r + 1] of the network's own time embedding, which
    needs no new weights and respects every symmetry the embedding respects. Rung 0 *is* the plain network, so a start
    from the teacher's weights is exact there; the other rungs start from the embedding's continuation beyond 1 and are
    learned in the fake score's warm-up.

    Args:
        network: denoiser called `network(x_t, t, cond)` that doesn't clamp t to [0, 1].
        num_rungs: number of rungs, >= 1.
    """

    def __init__(self, network: nn.Module, num_rungs: int) -> None:
        super().__init__(network)
        if hasattr(network, "t_max"):
            raise ValueError(
                "expected a network that takes times beyond 1, got one that clamps them to its own range "
                f"(t_max={network.t_max}); set fake_score_rung_conditioned=False"
            )
        self.num_rungs = check_count("num_rungs", num_rungs)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond, rung: int | Tensor = 0) -> Tensor:
        """Predict from `x_t` (B, ...) at `t` (B,), made at `rung`: an int or integers (B,)."""
        if isinstance(rung, int) and not 0 <= rung < self.num_rungs:
            raise ValueError(f"expected rung in [0, {self.num_rungs}), got {rung}")
        return self.network(x_t, t + rung, cond)


def create_fake_score(teacher: nn.Module, *, num_rungs: int = 1) -> nn.Module:
    """A trainable copy of the teacher, wrapped in `RungConditioned` if there is more than one rung.

    At the start fake score and teacher agree, and the VSD gradient is zero: warm the fake score up first.
    """
    fake_score = copy.deepcopy(teacher).requires_grad_(True)
    return fake_score if num_rungs == 1 else RungConditioned(fake_score, num_rungs)


class DMDPipeline:
    """The losses of DMD2. Holds references to the networks; owns no optimiser, no device and no weights.

    A fake score made by `create_fake_score(teacher, num_rungs=K)` is told the rung of each sample, any other is not.

    All networks are called `net(x_t, t, cond)` and predict `config.pred_type`; a teacher that offers
    `predict_x0(x_t, t, cond)` is asked for x0 directly. No network generates or judges with dropout: the student is in
    eval mode while it generates, since it must be trained on what sampling will produce, and so are teacher, fake score
    and discriminator while they judge. Modes are restored; a network in its own loss has the caller's.

    Draws. Each loss draws from `generator`, in this order: the rung (if the student has several), the sde noise of the
    rollout, then t and eps of the loss. Across processes give every process a generator in the same state, with `rank`
    and `world_size`: each loss then draws for the global batch and keeps its own part, so results don't depend on the
    number of processes. The rung is drawn once for the global batch; with torch.distributed running, rank 0's draw is
    used everywhere, whatever the generators: processes on different rungs would make different numbers of calls.

    Args:
        student, teacher, fake_score: networks, wrapped for training or not.
        config: `fastgen.config.DMDConfig`, or any object with its attributes.
        discriminator: called `discriminator(features, t, cond)`, returns logits (B, heads). Used if given.
        features: `features(x_t, t, cond) -> list of Tensors`, differentiable in x_t: what the discriminator sees; None:
            `block_features(teacher)` of :mod:`fastgen.discriminators`.
        rank, world_size: this process's part of the global batch.

    Raises:
        ValueError: if the config names unknown types, if t_list contradicts student_steps, or if the config has weights
            for GAN losses and there is no discriminator.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        fake_score: nn.Module,
        config: DMDConfig,
        *,
        discriminator: nn.Module | None = None,
        features: Features | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.t_list = check_student(config.t_list, config.student_sample_type, config.pred_type)
        self.num_rungs = len(self.t_list) - 1
        if config.student_steps not in (None, self.num_rungs):
            raise ValueError(
                f"expected student_steps={self.num_rungs} for t_list={self.t_list}, got {config.student_steps}"
            )
        for network in (student, teacher, fake_score):
            check_prediction(unwrap(network), config.pred_type)
        self.fake_score_pred_type = config.fake_score_pred_type or loss_space(unwrap(fake_score)) or config.pred_type
        check_pred_type(self.fake_score_pred_type, "fake_score_pred_type")
        check_choice("vsd_norm", config.vsd_norm, VSD_NORMS)
        if discriminator is None and config.gan_loss_weight_gen > 0:
            raise ValueError(
                f"expected discriminator= for gan_loss_weight_gen={config.gan_loss_weight_gen}, got none; "
                "give one, or set the weight to 0"
            )
        if discriminator is not None and features is None:
            features = block_features(unwrap(teacher))
        if not 0 <= rank < world_size:
            raise ValueError(f"expected 0 <= rank < world_size, got rank={rank}, world_size={world_size}")
        self._knows_rung = isinstance(unwrap(fake_score), RungConditioned)
        self.student, self.teacher, self.fake_score = student, teacher, fake_score
        self.config = config
        self.discriminator, self.features = discriminator, features
        self.rank, self.world_size = rank, world_size

    # ---- Losses ---------------------------------------------------------------------------------------------------

    def compute_student_loss(
        self,
        x0: Tensor | None,
        noise: Tensor,
        cond: Cond = None,
        *,
        negative_cond: Cond = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """VSD, and the generator's GAN loss if there is a discriminator; gradients reach the student only.

        Args:
            x0: data (B, ...); used by `backward_simulation=False`, else only its shape matters and it may be None.
            noise: standard normal, shape (B, ...): where the student starts.
            cond: condition of student, fake score and teacher.
            negative_cond: condition guided away from, needed with `guidance_scale`.
            generator: source of rung, sde noise, t, eps, then t and eps of the GAN loss.

        Returns:
            {"vsd", ["gan_gen"], "total"}: scalars; total = vsd + gan_loss_weight_gen * gan_gen.

        Raises:
            ValueError: for `guidance_scale` without `negative_cond`, and shapes that don't fit.
        """
        config = self.config
        check_guidance(config.guidance_scale, negative_cond)
        generated, rung = self._generate(x0, noise, cond, generator)
        t, x_t = self._diffuse(generated.detach(), config.vsd_t, generator)
        with torch.no_grad():
            fake_x0 = self._fake_x0(x_t, t, cond, rung)
            with evaluating(self.teacher):
                teacher_x0 = self._teacher_x0(x_t, t, cond, negative_cond)
        losses = {"vsd": vsd_loss(generated, teacher_x0, fake_x0, norm=config.vsd_norm)}
        losses["total"] = losses["vsd"]
        if self.discriminator is not None and self.features is not None:
            t, x_t = self._diffuse(generated, config.gan_t, generator)
            # Frozen rather than no_grad: this gradient goes through both networks into the sample. The discriminator is
            # called without its wrapper: its weights get no gradient here, so there is nothing to synchronise.
            discriminator = unwrap(self.discriminator)
            with frozen(self.teacher, discriminator), evaluating(self.teacher, discriminator):
                logits = discriminator(self.features(x_t, t, cond), t, cond)
            losses["gan_gen"] = gan_gen_loss(logits)
            losses["total"] = losses["vsd"] + config.gan_loss_weight_gen * losses["gan_gen"]
        return losses

    def compute_fake_score_loss(
        self,
        x0: Tensor | None,
        noise: Tensor,
        cond: Cond = None,
        *,
        negative_cond: Cond = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Denoising score matching on student samples; gradients reach the fake score only.

        The fake score predicts `pred_type`; the loss compares in the space of `fake_score_pred_type` (of a converted
        network by default the one it was trained in, see `loss_space` of :mod:`fastgen.teachers`). Arguments as in
        `compute_student_loss`; `negative_cond` is accepted for symmetry, the fake score is never guided.

        Returns:
            {"fake_score", "total"}: scalars.
        """
        config = self.config
        with torch.no_grad():
            generated, rung = self._generate(x0, noise, cond, generator)
            t, eps = self._draw(generated, config.fake_score_t, generator)
            x_t = add_noise(generated, eps, t)
        pred = self._fake_prediction(x_t, t, cond, rung)
        pred = convert_prediction(pred, x_t, t, config.pred_type, self.fake_score_pred_type)
        loss = dsm_loss(self.fake_score_pred_type, pred, x0=generated, eps=eps, t=t)
        return {"fake_score": loss, "total": loss}

    def compute_discriminator_loss(
        self,
        x0: Tensor,
        noise: Tensor,
        cond: Cond = None,
        *,
        negative_cond: Cond = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Tell data from student samples by teacher features at noised inputs; gradients reach the discriminator only.

        With `gan_r1_reg_weight` = gamma > 0 the total adds gamma / (2 a^2) r1, where r1 compares the logits at
        add_noise(x0, eps, t) and add_noise(x0 + a n, eps, t), n standard normal, a = `gan_r1_reg_alpha`: with one t and
        one eps this is gamma / 2 times the squared gradient of the discriminator's logit in the data.

        Draws after the student's: t, eps for its samples, t, eps for the data (unless `gan_use_same_t_noise`), then n.

        Returns:
            {"gan_disc", ["r1"], "total"}: scalars; r1 unweighted.

        Raises:
            ValueError: if the pipeline has no discriminator, or x0 is None or not shaped like the noise.
        """
        config = self.config
        if self.discriminator is None or self.features is None:
            raise ValueError("expected a pipeline with discriminator=, got none")
        check_shape("x0", x0, noise.shape)
        with torch.no_grad():
            generated, _ = self._generate(x0, noise, cond, generator)
            t_fake, eps_fake = self._draw(generated, config.gan_t, generator)
            same = config.gan_use_same_t_noise
            t_real, eps_real = (t_fake, eps_fake) if same else self._draw(x0, config.gan_t, generator)
        fake_logits = self._logits(add_noise(generated, eps_fake, t_fake), t_fake, cond)
        real_logits = self._logits(add_noise(x0, eps_real, t_real), t_real, cond)
        losses = {"gan_disc": gan_disc_loss(real_logits, fake_logits)}
        losses["total"] = losses["gan_disc"]
        if config.gan_r1_reg_weight > 0:
            a = config.gan_r1_reg_alpha
            perturbed = x0 + a * self._normal_like(x0, generator)
            losses["r1"] = r1_loss(real_logits, self._logits(add_noise(perturbed, eps_real, t_real), t_real, cond))
            losses["total"] = losses["gan_disc"] + config.gan_r1_reg_weight / (2.0 * a**2) * losses["r1"]
        return losses

    # ---- Student samples ------------------------------------------------------------------------------------------

    def student_input(
        self, x0: Tensor | None, noise: Tensor, cond: Cond = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, float | Tensor, int | Tensor]:
        """What the student is trained on: its input at one rung, that rung's time and its index.

        With backward simulation, the student's own rollout up to a rung drawn for the whole global batch, by the very
        function that samples it (`fastgen.samplers.unroll`). Without, real data noised at a rung drawn per sample, pure
        noise t_1 * noise at the first.

        Returns:
            `(x_t, t, rung)`: x_t (B, ...) without gradient; t and rung are a float and an int, or tensors (B,).
        """
        if x0 is not None:
            check_shape("x0", x0, noise.shape)
        if self.config.backward_simulation or self.num_rungs == 1:
            rung = self._draw_rung(noise.device, generator)
            states = unroll(
                unwrap(self.student),
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
        rungs = self._draw_rungs(noise, generator)
        t = torch.tensor(self.t_list, dtype=wide_dtype(noise.device)).to(noise.device)[rungs]
        first = (rungs == 0).reshape(-1, *(1,) * (noise.ndim - 1))
        # Sampling starts from noise alone, so the first rung holds no trace of x0.
        return add_noise(x0.masked_fill(first, 0.0), noise, t), t, rungs

    def _generate(
        self, x0: Tensor | None, noise: Tensor, cond: Cond, generator: torch.Generator | None
    ) -> tuple[Tensor, int | Tensor]:
        """The student's x0 at one rung, in the dtype of `noise`, and the rung."""
        x_t, t, rung = self.student_input(x0, noise, cond, generator=generator)
        with evaluating(self.student):
            generated = predict_x0(self.student, x_t, t, cond, pred_type=self.config.pred_type, dtype=noise.dtype)
        return generated.to(noise.dtype), rung

    # ---- Judges ---------------------------------------------------------------------------------------------------

    def _teacher_x0(self, x_t: Tensor, t: Tensor, cond: Cond, negative_cond: Cond) -> Tensor:
        scale = self.config.guidance_scale
        x0 = self._teacher_x0_at(x_t, t, cond)
        if scale is None or scale == 1.0:
            return x0
        return classifier_free_guidance(x0, self._teacher_x0_at(x_t, t, negative_cond), scale)

    def _teacher_x0_at(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        direct = getattr(self.teacher, "predict_x0", None)
        if direct is not None:
            return direct(x_t, t, cond)
        return predict_x0(self.teacher, x_t, t, cond, pred_type=self.config.pred_type, dtype=x_t.dtype)

    def _fake_x0(self, x_t: Tensor, t: Tensor, cond: Cond, rung: int | Tensor) -> Tensor:
        with evaluating(self.fake_score):
            pred = self._fake_prediction(x_t, t, cond, rung)
        return convert_prediction(pred, x_t, t, self.config.pred_type, "x0")

    def _fake_prediction(self, x_t: Tensor, t: Tensor, cond: Cond, rung: int | Tensor) -> Tensor:
        if not self._knows_rung:
            return call_network(self.fake_score, x_t, t, cond, dtype=x_t.dtype)

        def at_rung(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
            return self.fake_score(x_t, t, cond, rung=rung)

        return call_network(at_rung, x_t, t, cond, dtype=network_dtype(self.fake_score, x_t.dtype))

    def _logits(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The discriminator's logits with gradients for its own weights only."""
        if self.discriminator is None or self.features is None:
            raise RuntimeError("logits are asked for only with a discriminator")
        with torch.no_grad(), evaluating(self.teacher):
            features = self.features(x_t, t, cond)
        return self.discriminator(features, t, cond)

    # ---- Draws ----------------------------------------------------------------------------------------------------

    def _diffuse(
        self, x: Tensor, cfg: SampleTimestepConfig, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Times (B,) and `x` noised to them."""
        t, eps = self._draw(x, cfg, generator)
        return t, add_noise(x, eps, t)

    def _draw(self, x: Tensor, cfg: SampleTimestepConfig, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
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
        place = device if generator is None else generator.device
        rung = torch.randint(self.num_rungs, (1,), device=place, generator=generator)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rung = rung.to(device)
            torch.distributed.broadcast(rung, src=0)
        return int(rung)

    def _draw_rungs(self, noise: Tensor, generator: torch.Generator | None) -> Tensor:
        """One rung per sample."""
        place = noise.device if generator is None else generator.device
        rungs = torch.randint(self.num_rungs, (len(noise) * self.world_size,), device=place, generator=generator)
        return self._own(rungs).to(noise.device)

    def _own(self, x: Tensor) -> Tensor:
        """This process's part of a draw for the global batch."""
        size = len(x) // self.world_size
        return x[self.rank * size : (self.rank + 1) * size]
