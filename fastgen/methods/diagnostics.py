"""Diagnostics of distribution matching: numbers that show a collapse where the losses don't.

A falling loss says little here, since every loss is measured against networks that move. These
numbers compare networks with each other on fresh samples x of the student, noised to
x_t = (1 - t) x + t eps, one entry per bin of t:

    gap = rms(fake_x0 - teacher_x0) / rms(x - teacher_x0)
        What the student still has to learn. 0: fake score and teacher agree.
    lag = mean |x - fake_x0|^2 / mean |x - teacher_x0|^2
        Above 1 the fake score denoises the student's samples worse than the teacher, which has
        never seen them.

A gap that doesn't shrink while the lag is above 1 is the fake score's error, not the student's.
Others say how hard each loss pulls at a sample, and how often the discriminator is right.

The bins divide the range of the VSD loss evenly. Nothing here trains: no gradient is left on any
weight, modes are restored, and every draw comes from the generator given.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .._core.checks import check_count, check_shape
from .._core.masks import real_only
from .._core.modules import as_built, evaluating
from .._core.prefixes import open_tokens
from .._core.seeds import draw_normal, draw_uniform
from .._core.tensors import mean_square_of_real, time_dtype
from ..flow_matching import add_noise
from ..losses import discriminator_accuracy
from ..networks import Cond, teacher_x0
from ..samplers.student import sample_student
from .dmd import DMDPipeline
from .rollouts import Generated
from .terms import sample_terms

if TYPE_CHECKING:
    from ..config.groups import SampleTimestepConfig

__all__ = [
    "compare_judges",
    "diagnose",
    "discriminator_accuracy_per_bin",
    "sample_gradients",
    "time_bins",
]

BINS = 5


def diagnose(
    pipeline: DMDPipeline,
    x0: Tensor,
    cond: Cond = None,
    *,
    bins: int = BINS,
    generator: torch.Generator | None = None,
) -> dict[str, float | list[float]]:
    """All numbers of this module for one row of a log, on as many fresh student samples as there
    are rows of data.

    The samples are those of whole rollouts, as sampling makes them. Only `sample_gradients` takes
    samples as training makes them.

    Args:
        pipeline: networks and config; its student, fake score and discriminator as they are now.
        x0: data (B, ...); a few hundred rows are enough.
        cond: their conditions.
        bins: number of bins of t, >= 1.
        generator: source of all draws; a pure function of (seed, step) makes the numbers one, too.

    Returns:
        With a fake score {"t": bounds of the bins (bins + 1), "gap", "lag", "fake_dsm",
        "teacher_dsm": (bins,), "vsd_grad": float}; with a discriminator {"gan_grad", "grad_cosine":
        float, "gan_t": bounds, "gan_accuracy": (bins,)}.
    """
    # Every process has all of these rows, so that one process or many see the same.
    pipeline = pipeline.alone()
    config = pipeline.config
    noise = draw_normal(x0.shape, device=x0.device, dtype=x0.dtype, generator=generator)
    with evaluating(pipeline.student):
        generated = sample_student(
            as_built(pipeline.student),
            noise,
            config.judged,
            cond,
            sample_type=config.student_sample_type,
            pred_type=config.pred_type,
            generator=generator,
        )
    assert isinstance(generated, Tensor)  # a pair only with return_all_steps
    found: dict[str, float | list[float]] = {}
    if pipeline.fake_score is not None:
        found["t"] = time_bins(config.vsd_t, bins)
        found |= compare_judges(pipeline, generated, cond, bins=bins, generator=generator)
    found |= sample_gradients(pipeline, x0, noise, cond, generator=generator)
    if pipeline.discriminator is not None:
        accuracy = discriminator_accuracy_per_bin(
            pipeline, x0, generated, cond, bins=bins, generator=generator
        )
        found |= {"gan_t": time_bins(config.gan_t, bins), "gan_accuracy": accuracy}
    return found


def time_bins(cfg: SampleTimestepConfig, bins: int = BINS) -> list[float]:
    """Bounds (bins + 1) of even bins of [min_t, max_t], increasing."""
    low = float(cfg.min_t)
    width = (float(cfg.max_t) - float(cfg.min_t)) / check_count("bins", bins)
    return [*(low + width * k for k in range(bins)), float(cfg.max_t)]


# ---- Fake score against teacher ------------------------------------------------------------------


def compare_judges(
    pipeline: DMDPipeline,
    generated: Tensor,
    cond: Cond = None,
    *,
    rung: int | None = None,
    bins: int = BINS,
    generator: torch.Generator | None = None,
) -> dict[str, list[float]]:
    """Teacher and fake score on the same noised samples of the student, per bin of t.

    The gap, rms(fake_x0 - teacher_x0) / rms(generated - teacher_x0), is the size of the VSD
    gradient before its weight (arXiv:2311.18828, eq. 7) in units of that weight's normaliser: 0
    where both judges agree, about 1 where they have nothing in common. The teacher is the plain,
    unguided one.

    The lag is the ratio of their denoising losses, mean squared errors of x0; at one t that is the
    loss in every space up to a factor, so the ratio is the same in all. A fake score that has
    learned the student's law has the least loss there is. Its lag is at most 1 up to sampling
    noise, and 1 as long as student and teacher have the same law; above 1 it lags behind the
    student.

    Args:
        pipeline: its teacher, fake score, `pred_type` and the range of `vsd_t` are used.
        generated: samples of the student (B, ...).
        cond: their conditions.
        rung: rung that made them, for a fake score that is told; None: the last, whose answers are
            the samples.
        bins: number of bins.
        generator: source of the draws: per bin t (B,), then eps.

    Returns:
        {"gap", "lag" = fake_dsm / teacher_dsm, "fake_dsm", "teacher_dsm"}: (bins,) numbers >= 0
        each, from small t to large.

    Raises:
        ValueError: for bins < 1, or a rung that the fake score doesn't have.
    """
    errors = _squared_errors(pipeline, generated, cond, rung, bins, generator)
    between, teacher, fake = errors.unbind(1)
    # Without an error of either there is no gap, and two perfect denoisers are equally good.
    tiny = torch.finfo(errors.dtype).tiny
    return {
        "gap": (between / (teacher + tiny)).sqrt().tolist(),
        "lag": ((fake + tiny) / (teacher + tiny)).tolist(),
        "fake_dsm": fake.tolist(),
        "teacher_dsm": teacher.tolist(),
    }


@torch.no_grad()
def _squared_errors(
    pipeline: DMDPipeline,
    generated: Tensor,
    cond: Cond,
    rung: int | None,
    bins: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Mean squares (bins, 3) of fake_x0 - teacher_x0, generated - teacher_x0 and generated -
    fake_x0."""
    rung = pipeline.num_rungs - 1 if rung is None else rung
    rows = []
    with evaluating(pipeline.teacher, pipeline.fake_score):
        for t, eps in _binned(generated, pipeline.config.vsd_t, bins, generator):
            x_t = add_noise(generated, eps, t)
            x = real_only(generated.double(), cond)
            teacher = teacher_x0(
                pipeline.teacher, x_t, t, cond, pred_type=pipeline.config.pred_type
            ).double()
            fake = pipeline.fake_x0(x_t, t, cond, rung).double()
            differences = (fake - teacher, x - teacher, x - fake)
            squares = [
                mean_square_of_real(difference, open_tokens(cond)) for difference in differences
            ]
            rows.append(torch.stack(squares))
    return torch.stack(rows).cpu()


def _binned(
    x: Tensor, cfg: SampleTimestepConfig, bins: int, generator: torch.Generator | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Per bin, times (B,) uniform in it and noise shaped like `x`."""
    for low, high in itertools.pairwise(time_bins(cfg, bins)):
        u = draw_uniform((len(x),), device=x.device, generator=generator)
        t = (low + (high - low) * u).to(time_dtype(x.dtype)).clamp(low, high)
        yield t, draw_normal(x.shape, device=x.device, dtype=x.dtype, generator=generator)


# ---- Gradients at the sample ---------------------------------------------------------------------


def sample_gradients(
    pipeline: DMDPipeline,
    x0: Tensor | None,
    noise: Tensor,
    cond: Cond = None,
    *,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """How hard each of the student's losses pulls at the generated sample x.

    With n the number of elements of the batch, these are root mean squares of

        vsd_grad   n vsd_weight d vsd / d x
        gan_grad   n gan_loss_weight_gen d gan_gen / d x

    as both add up in the student's total, so that their ratio says which one decides. At weight 1
    the first is w (fake_x0 - teacher_x0) of `vsd_loss`; the second comes through features and
    discriminator. The factor n makes them independent of the size of the batch. `grad_cosine` is
    the cosine between the two over the batch: -1 where they undo each other, 1 where they agree.

    x0, noise, cond and draws are those of `DMDPipeline.compute_student_loss`.

    Returns:
        {["vsd_grad"], ["gan_grad"], ["grad_cosine"]} of the losses that have a weight: numbers
        >= 0, and a cosine in [-1, 1] that is 0 where a gradient vanishes.
    """
    pipeline = pipeline.alone()
    with torch.no_grad():
        made = pipeline.generate(x0, noise, cond, generator=generator)
    leaf = made.x0.requires_grad_()
    with torch.enable_grad():
        losses = sample_terms(
            pipeline.judges,
            pipeline.draws,
            Generated(leaf, made.rung),
            x0,
            cond,
            generator=generator,
        )
    config = pipeline.config
    n = leaf.numel()
    weights = {"vsd": config.vsd_weight, "gan_gen": config.gan_loss_weight_gen}
    gradients = {
        name: torch.autograd.grad(losses[name], leaf)[0] for name in weights if name in losses
    }
    names = {"vsd": "vsd_grad", "gan_gen": "gan_grad"}
    found = {names[name]: n * weights[name] * _rms(g) for name, g in gradients.items()}
    if len(gradients) == 2:
        vsd = gradients["vsd"].double().flatten()
        gan = gradients["gan_gen"].double().flatten()
        found["grad_cosine"] = float(F.cosine_similarity(vsd, gan, dim=0, eps=1e-30))
    return found


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


# ---- Discriminator -------------------------------------------------------------------------------


@torch.no_grad()
def discriminator_accuracy_per_bin(
    pipeline: DMDPipeline,
    x0: Tensor,
    generated: Tensor,
    cond: Cond = None,
    *,
    bins: int = BINS,
    generator: torch.Generator | None = None,
) -> list[float]:
    """Share of data and student samples that the discriminator tells apart, per even bin of the
    range of `gan_t`.

    What is correct depends on `gan_loss`, see :func:`fastgen.losses.discriminator_accuracy`. Data
    and samples have the same t and noise. At .5, which is chance, the discriminator has nothing to
    teach. At 1 it is so certain that its softplus loss is flat, and the student gets no gradient
    either.

    Args:
        pipeline: its discriminator, features and the range of `gan_t` are used.
        x0, generated: data and student samples (B, ...) of the same conditions; samples of the last
            rung.
        bins, generator: as in :func:`compare_judges`.

    Returns:
        (bins,) shares in [0, 1]; a logit of exactly 0, or a tie, counts as half.

    Raises:
        ValueError: for a pipeline without a discriminator, or shapes that differ.
    """
    if pipeline.discriminator is None or pipeline.features is None:
        raise ValueError("expected a pipeline with discriminator=, got none")
    check_shape("x0", x0, generated.shape)
    rung = pipeline.num_rungs - 1
    shares = []
    for t, eps in _binned(generated, pipeline.config.gan_t, bins, generator):
        real = pipeline.discriminator_logits(
            add_noise(x0.to(generated.dtype), eps, t), t, cond, rung
        )
        fake = pipeline.discriminator_logits(add_noise(generated, eps, t), t, cond, rung)
        shares.append(float(discriminator_accuracy(real, fake, kind=pipeline.config.gan_loss)))
    return shares
