"""Terms that the losses of DMD add up, each for samples that the student made.

The student's terms (VSD, GAN, distance to real data) are differentiable in its samples and leave no
gradient on any judge. The fake score's and the discriminator's are differentiable in the weights of
these two, for samples without gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._core.carried import bare
from .._core.checks import check_shape
from .._core.conditions import map_tensors
from .._core.masks import token_mask
from .._core.prefixes import check_no_prefix, open_tokens
from ..flow_matching import add_noise, convert_prediction
from ..losses import (
    dsm_loss,
    gan_disc_loss,
    gan_gen_loss,
    r1_loss,
    time_weight,
)
from ..networks import Cond
from ..two_sample import two_sample_loss
from ..vsd import vsd_loss
from .judges import Judges
from .rollouts import Generated, Rollouts, SharedDraws
from .verdicts import Verdict, vsd_verdict

__all__ = [
    "discriminator_terms",
    "fake_score_term",
    "gan_term",
    "real_data_term",
    "sample_terms",
    "vsd_term",
]


# ---- The student's -------------------------------------------------------------------------------


def sample_terms(
    judges: Judges,
    draws: SharedDraws,
    made: Generated,
    x0: Tensor | None,
    cond: Cond,
    *,
    negative_cond: Cond = None,
    mask: Tensor | None = None,
    verdict: Verdict | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """The terms that judge samples one by one, {["vsd"], ["gan_gen"]}: those that have a weight.

    Args:
        judges, draws: of a pipeline.
        made: samples of the student.
        x0: data (B, ...), for a relativistic GAN loss; else it may be None.
        cond: condition of the samples.
        negative_cond: condition guided away from.
        mask: (B, T), True at real tokens; None: that of the condition, or all are.
        verdict: as in :func:`vsd_term`.
        generator: source of the draws of VSD, then of the GAN loss.
    """
    terms = {}
    if judges.config.vsd_weight > 0:
        terms["vsd"] = vsd_term(
            judges,
            draws,
            made,
            cond,
            negative_cond=negative_cond,
            mask=mask,
            verdict=verdict,
            generator=generator,
        )
    if judges.config.gan_loss_weight_gen > 0:
        terms["gan_gen"] = gan_term(judges, draws, made, x0, cond, mask=mask, generator=generator)
    return terms


def vsd_term(
    judges: Judges,
    draws: SharedDraws,
    made: Generated,
    cond: Cond,
    *,
    negative_cond: Cond = None,
    mask: Tensor | None = None,
    verdict: Verdict | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The VSD loss of samples, see :func:`fastgen.vsd.vsd_loss`; its weight has the factors that
    `f_divergence` and `vsd_alpha_factor` ask for. Means are over what is real and not given.

    Draws t, then eps.

    Args:
        verdict: what the judges said of these very samples, with draws of the same generator; None:
            they are asked.
    """
    config = judges.config
    if verdict is None:
        verdict = vsd_verdict(
            judges, draws, made, cond, negative_cond=negative_cond, mask=mask, generator=generator
        )
    else:
        # Drawn all the same, so that what is drawn later doesn't depend on who asked the judges.
        draws.times_and_noise(made.x0, config.vsd_t, generator)
    return vsd_loss(
        made.x0,
        verdict.teacher_x0,
        verdict.fake_x0,
        verdict.scale,
        norm=config.vsd_norm,
        norm_min=config.vsd_norm_min,
        mean_size=verdict.mean_size,
        clamp=config.vsd_clamp,
        mask=open_tokens(cond, mask),
    )


def gan_term(
    judges: Judges,
    draws: SharedDraws,
    made: Generated,
    x0: Tensor | None,
    cond: Cond,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The student's GAN loss, see :func:`fastgen.losses.gan_gen_loss`. Its gradient reaches the
    samples through discriminator and features.

    Draws t and eps; for a relativistic loss, then those of the data, unless they share them.

    Raises:
        ValueError: for a relativistic loss without data.
    """
    config = judges.config
    t, eps = draws.times_and_noise(made.x0, config.gan_t, generator)
    fake = judges.discriminator_logits(add_noise(made.x0, eps, t), t, cond, made.rung, mask)
    if config.gan_loss != "relativistic":
        return gan_gen_loss(fake)
    if x0 is None:
        raise ValueError("expected x0 for gan_loss='relativistic', got None")
    if not config.gan_use_same_t_noise:
        t, eps = draws.times_and_noise(x0, config.gan_t, generator)
    real = judges.discriminator_logits(add_noise(x0, eps, t), t, cond, made.rung, mask)
    return gan_gen_loss(fake, real, kind=config.gan_loss)


def real_data_term(
    rollouts: Rollouts,
    made: Generated,
    x0: Tensor | None,
    noise: Tensor,
    cond: Cond,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Kernel distance of student samples to real data, see
    :func:`fastgen.two_sample.two_sample_loss`.

    Given a condition, the student makes m = `real_data_samples` new samples for every m-th
    condition of the batch, as many samples in all as the batch has rows. Without a condition, or
    if `real_data_conditional` is false, groups of m of the samples `made` are compared with groups
    of m data.

    Draws the new samples' noise, then what `Rollouts.generate` draws.

    Raises:
        ValueError: for missing data, a batch that m doesn't divide, a mask where groups are
            compared, or a prefix.
    """
    config = rollouts.config
    check_no_prefix(cond, "a distance to real data")
    mask = token_mask(cond) if mask is None else mask
    m = config.real_data_samples
    if x0 is None:
        raise ValueError(f"expected x0 for real_data_weight={config.real_data_weight}, got None")
    check_shape("x0", x0, noise.shape)
    if len(x0) % m:
        raise ValueError(
            f"expected a batch (per process and micro-batch) that real_data_samples={m} divides, "
            f"got {len(x0)}"
        )
    groups = len(x0) // m
    x = made.x0
    real = x0
    if config.real_data_conditional and bare(cond) is not None:
        x = _samples_by_condition(rollouts, x0, noise, cond, m, generator)
        real = x0[::m]
        mask = None if mask is None else mask[::m]
    elif mask is not None:
        raise ValueError(
            "expected no mask where real data are compared in groups (real_data_conditional=false, "
            "or no condition): samples of different lengths cannot be compared, got one"
        )
    return two_sample_loss(
        x.unflatten(0, (groups, -1)),
        real.unflatten(0, (groups, -1)),
        config.real_data_kernel,
        bandwidths=config.real_data_bandwidths,
        mask=mask,
    )


def _samples_by_condition(
    rollouts: Rollouts,
    x0: Tensor,
    noise: Tensor,
    cond: Cond,
    m: int,
    generator: torch.Generator | None,
) -> Tensor:
    """New samples, m for every m-th condition."""

    # Every m-th and not the first ones: a process that has a part of the batch takes its part of
    # these.
    def repeated(value: Tensor) -> Tensor:
        return value[::m].repeat_interleave(m, 0)

    fresh = rollouts.draws.normal_like(noise, generator)
    start = None if rollouts.config.backward_simulation else repeated(x0)
    return rollouts.generate(start, fresh, map_tensors(repeated, cond), generator=generator).x0


# ---- The fake score's ----------------------------------------------------------------------------


def fake_score_term(
    judges: Judges,
    draws: SharedDraws,
    made: Generated,
    cond: Cond,
    space: str,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Denoising score matching on samples, in `space` ("flow", "x0" or "eps"), weighted over t by
    `fake_score_weight`; see :func:`fastgen.losses.dsm_loss`. The mean is over what is real and not
    given.

    Draws t, then eps.
    """
    config = judges.config
    mask = open_tokens(cond, mask)
    with torch.no_grad():
        t, eps = draws.times_and_noise(made.x0, config.fake_score_t, generator)
        x_t = add_noise(made.x0, eps, t)
    pred = judges.fake_prediction(x_t, t, cond, made.rung)
    pred = convert_prediction(pred, x_t, t, config.pred_type, space)
    weight = None
    if config.fake_score_weight != "none":
        weight = time_weight(config.fake_score_weight, t)
    return dsm_loss(space, pred, x0=made.x0, eps=eps, t=t, weight=weight, mask=mask)


# ---- The discriminator's -------------------------------------------------------------------------


def discriminator_terms(
    judges: Judges,
    draws: SharedDraws,
    made: Generated,
    x0: Tensor,
    cond: Cond,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """The discriminator's loss and its gradient penalties, {"gan_disc", ["r1"], ["r2"]}; see
    :func:`fastgen.losses.gan_disc_loss` and :func:`fastgen.losses.r1_loss`.

    The features are computed without gradient.

    Draws t and eps of the samples; those of the data, unless they share them; the n of r1; the n of
    r2.

    Raises:
        ValueError: without a discriminator.
    """
    if judges.discriminator is None:
        raise ValueError("expected a pipeline with discriminator=, got none")
    with torch.no_grad():
        noised = _noised_pairs(judges, draws, made.x0, x0, generator)
        seen = {name: judges.seen(x_t, t, cond, made.rung) for name, (x_t, t) in noised.items()}
    logits = {
        name: judges.logits(judges.discriminator, seen[name], t, cond, mask)
        for name, (_, t) in noised.items()
    }
    kind = judges.config.gan_loss
    terms = {"gan_disc": gan_disc_loss(logits["real"], logits["fake"], kind=kind)}
    if "r1" in logits:
        terms["r1"] = r1_loss(logits["real"], logits["r1"])
    if "r2" in logits:
        terms["r2"] = r1_loss(logits["fake"], logits["r2"])
    return terms


def _noised_pairs(
    judges: Judges,
    draws: SharedDraws,
    x: Tensor,
    x0: Tensor,
    generator: torch.Generator | None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """(x_t, t) of samples `x` and data `x0`: {"fake", "real", ["r1"], ["r2"]}.

    r1 is "real" and r2 is "fake" once more, at the same t and eps, after a step a n away from x0 or
    x; n is standard normal, a = `gan_r1_reg_alpha`.
    """
    config = judges.config
    a = config.gan_r1_reg_alpha
    t, eps = draws.times_and_noise(x, config.gan_t, generator)
    t_real = t
    eps_real = eps
    if not config.gan_use_same_t_noise:
        t_real, eps_real = draws.times_and_noise(x0, config.gan_t, generator)
    noised = {
        "fake": (add_noise(x, eps, t), t),
        "real": (add_noise(x0, eps_real, t_real), t_real),
    }
    if config.gan_r1_reg_weight > 0:
        moved = x0 + a * draws.normal_like(x0, generator)
        noised["r1"] = (add_noise(moved, eps_real, t_real), t_real)
    if config.gan_r2_reg_weight > 0:
        moved = x + a * draws.normal_like(x0, generator)
        noised["r2"] = (add_noise(moved, eps, t), t)
    return noised
