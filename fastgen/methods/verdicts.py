"""Verdicts of VSD's judges: what teacher and fake score say of samples that were noised.

A verdict is all that the VSD loss needs of networks. It has no gradient and the size of the samples
alone, so that those of all micro-batches fit into memory: a weight that is one for the whole batch
needs them before the first of the losses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .._core.prefixes import open_tokens
from .._core.tensors import at_least_float32, expand_like
from ..flow_matching import add_noise
from ..networks import Cond
from ..vsd import f_divergence_weight, vsd_size
from .judges import Judges
from .rollouts import Generated, SharedDraws

if TYPE_CHECKING:
    from ..config.dmd import DMDConfig

__all__ = ["Verdict", "in_parts", "of_one_batch", "vsd_verdict"]


class Verdict(NamedTuple):
    """What VSD's judges say of samples.

    Attributes:
        teacher_x0, fake_x0: of the noised samples, (B, ...); fake_x0 - teacher_x0 is the direction.
        scale: factor (B,) on the weight, from `f_divergence` and `vsd_alpha_factor`; None: 1.
        mean_size: mean distance of the global batch to the teacher's x0, a scalar; None where the
            weight is each sample's own.
    """

    teacher_x0: Tensor
    fake_x0: Tensor
    scale: Tensor | None
    mean_size: Tensor | None


@torch.no_grad()
def vsd_verdict(
    judges: Judges,
    draws: SharedDraws,
    made: Generated,
    cond: Cond,
    *,
    negative_cond: Cond = None,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Verdict:
    """Ask teacher and fake score, and the discriminator where `f_divergence` needs it.

    Draws t, then eps. The arguments are those of :func:`fastgen.methods.terms.vsd_term`. The
    `mean_size` is over all processes, but of this micro-batch alone; :func:`of_one_batch` makes it
    that of all parts.
    """
    config = judges.config
    open_ = open_tokens(cond, mask)
    x0 = made.x0.detach()
    t, eps = draws.times_and_noise(x0, config.vsd_t, generator)
    x_t = add_noise(x0, eps, t)
    fake_x0 = judges.fake_x0(x_t, t, cond, made.rung)
    if config.vsd_in_parts:
        plain_x0, teacher_x0 = judges.plain_and_guided_x0(x_t, t, cond, negative_cond, mask)
        direction = in_parts(config, plain_x0, teacher_x0, fake_x0, t, made.rung)
        fake_x0 = teacher_x0 + direction
    else:
        teacher_x0 = judges.teacher_x0(x_t, t, cond, negative_cond, mask)
    scale: Tensor | None = None
    if config.f_divergence != "reverse_kl":
        log_ratio = judges.discriminator_logits(x_t, t, cond, made.rung, mask)
        scale = f_divergence_weight(config.f_divergence, log_ratio)
    if config.vsd_alpha_factor:
        alpha_t = 1.0 - t
        scale = alpha_t if scale is None else alpha_t * scale
    mean_size: Tensor | None = None
    if config.vsd_norm == "batch":
        mean_size = draws.mean(vsd_size(x0, teacher_x0, mask=open_).mean())
    return Verdict(teacher_x0, fake_x0, scale, mean_size)


def in_parts(
    config: DMDConfig,
    plain_x0: Tensor,
    guided_x0: Tensor,
    fake_x0: Tensor,
    t: Tensor,
    rung: int | Tensor,
) -> Tensor:
    """VSD's direction (B, ...) made of a matching and a guidance part, each with its weight and
    times:

        m(t) (fake_x0 - plain_x0) - g(t) (guided_x0 - plain_x0)

    m is `vsd_matching_weight` where t is in `vsd_matching_interval`, else 0; g is
    `vsd_guidance_weight` where t is in `vsd_guidance_interval` and, with `vsd_guidance_from_rung`,
    at least the student's next rung. With m = g = 1 it is fake_x0 - guided_x0. Without rescaling
    guided_x0 - plain_x0 is (s - 1) (plain_x0 - x0 under the negative condition).

    Source: Liu et al., Decoupled DMD, 2025, arXiv:2511.22677 (parts with times of their own).

    Args:
        plain_x0, guided_x0, fake_x0: of the teacher without and with guidance, and of the fake
            score, (B, ...).
        t: (B,).
        rung: that made the samples, an int or integers (B,).
    """
    matching = config.vsd_matching_weight * _within(t, config.vsd_matching_interval)
    guidance = config.vsd_guidance_weight * _within(t, config.vsd_guidance_interval)
    if config.vsd_guidance_from_rung:
        rungs = torch.tensor(config.t_list, dtype=t.dtype, device=t.device)
        guidance = guidance * (t >= rungs[rung + 1])
    plain = at_least_float32(plain_x0)
    match = expand_like(matching, plain) * (at_least_float32(fake_x0) - plain)
    guide = expand_like(guidance, plain) * (at_least_float32(guided_x0) - plain)
    return match - guide


def _within(t: Tensor, interval: tuple[float, float]) -> Tensor:
    """1 at times in the interval, else 0, (B,)."""
    return ((t >= interval[0]) & (t <= interval[1])).to(t.dtype)


def of_one_batch(verdicts: list[Verdict]) -> list[Verdict]:
    """Verdicts of equal micro-batches of one batch, with the mean size of the whole batch."""
    sizes = [verdict.mean_size for verdict in verdicts if verdict.mean_size is not None]
    if not sizes:
        return verdicts
    mean = torch.stack(sizes).mean()
    return [verdict._replace(mean_size=mean) for verdict in verdicts]
