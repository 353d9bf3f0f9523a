"""Losses of the methods: tensors in, a scalar out; no network is called here.

Everything is computed in at least float32, whatever dtype comes in.

References:
    Yin et al., DMD, 2023, arXiv:2311.18828, and DMD2, 2024, arXiv:2405.14867.
    Lin et al., Diffusion Adversarial Post-Training, 2025, arXiv:2501.08316 (approximate R1).
    Jolicoeur-Martineau, The Relativistic Discriminator, 2018, arXiv:1807.00734.
    Xu, Nie & Vahdat, One-step Diffusion Models with f-Divergence Distribution Matching, 2025,
    arXiv:2502.15681. Ho & Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv:2207.12598.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ._core.checks import check_choice, check_pred_type, check_shape
from ._core.tensors import EPSILON, at_least_float32, expand_mask, mean_square_of_samples
from .guidance import check_guidance, classifier_free_guidance
from .set_losses import set_loss
from .vsd import (
    F_DIVERGENCES as F_DIVERGENCES,
    MAX_LOG_RATIO as MAX_LOG_RATIO,
    NORM_EPSILON as NORM_EPSILON,
    VSD_NORMS,
    f_divergence_weight,
    vsd_loss,
)

__all__ = [
    "VSD_NORMS",
    "check_guidance",
    "classifier_free_guidance",
    "discriminator_accuracy",
    "dsm_loss",
    "f_divergence_weight",
    "gan_disc_loss",
    "gan_gen_loss",
    "pseudo_huber",
    "r1_loss",
    "set_loss",
    "time_weight",
    "vsd_loss",
]

TIME_WEIGHTS = ("none", "sigma", "alpha", "min_snr")
MIN_SNR_GAMMA = 5.0
GAN_KINDS = ("softplus", "relativistic")


def dsm_loss(
    pred_type: str,
    net_pred: Tensor,
    *,
    x0: Tensor | None = None,
    eps: Tensor | None = None,
    t: Tensor | None = None,
    weight: Tensor | Callable[[Tensor], Tensor] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Denoising score matching: mean over the batch of weight * mean_d (net_pred - target)^2.

    The target is x0, eps or flow = eps - x0, by `pred_type`. At one t the three losses are equal up
    to a factor: that of x0 is t^2 times, that of eps (1 - t)^2 times that of flow. So the choice is
    one of a weight over t.

    Args:
        pred_type: "flow", "x0" or "eps".
        net_pred: prediction, shape (B, ...).
        x0, eps: data and noise, the same shape; only what the target needs.
        t: times (B,), needed if `weight` is a function.
        weight: (B,), or a function of t giving (B,). Not normalised.
        mask: bool, (B, T) or broadcastable to `net_pred` (B, T, ...), True = real token; mean_d is
            then over what is real. So a padded batch has the loss that its samples would have
            without padding, each counted once; padding gets no gradient.

    Returns:
        scalar, at least float32.

    Raises:
        ValueError: for an unknown `pred_type` ("v" names two quantities and is refused), a missing
            x0, eps or t, shapes that differ, or a mask without a real token in some row.
    """
    check_pred_type(pred_type)
    needed = {"x0": ("x0",), "eps": ("eps",), "flow": ("x0", "eps")}[pred_type]
    given = {"x0": x0, "eps": eps}
    missing = [name for name in needed if given[name] is None]
    if missing:
        raise ValueError(f"expected {' and '.join(missing)} for pred_type {pred_type!r}, got None")
    net_pred = at_least_float32(net_pred)
    parts = {
        name: at_least_float32(value)
        for name, value in given.items()
        if value is not None and name in needed
    }
    for name, value in parts.items():
        check_shape(name, value, net_pred.shape)
    target = parts["eps"] - parts["x0"] if pred_type == "flow" else parts[pred_type]
    mask = None if mask is None else expand_mask(mask, net_pred)
    per_sample = mean_square_of_samples(net_pred - target, mask)
    if weight is None:
        return per_sample.mean()
    if not isinstance(weight, Tensor):
        if t is None:
            raise ValueError("expected t for a weight that is a function of t, got None")
        weight = weight(t)
    check_shape("weight", weight, per_sample.shape)
    return (weight * per_sample).mean()


def gan_gen_loss(
    fake_logits: Tensor, real_logits: Tensor | None = None, *, kind: str = "softplus"
) -> Tensor:
    """Generator's loss: mean softplus(-fake), or relativistic mean softplus(real - fake).

    Args:
        fake_logits: (B, heads), with gradient.
        real_logits: the same shape, row i beside row i of `fake_logits`; used by "relativistic"
            only.
        kind: one of `GAN_KINDS`.

    Returns:
        scalar, at least float32.

    Raises:
        ValueError: an unknown kind, or "relativistic" without real logits of the same shape.
    """
    check_choice("kind", kind, GAN_KINDS)
    if kind == "softplus":
        return F.softplus(-at_least_float32(fake_logits)).mean()
    if real_logits is None:
        raise ValueError("expected real_logits for kind 'relativistic', got None")
    check_shape("real_logits", real_logits, fake_logits.shape)
    return F.softplus(at_least_float32(real_logits) - at_least_float32(fake_logits)).mean()


def gan_disc_loss(real_logits: Tensor, fake_logits: Tensor, *, kind: str = "softplus") -> Tensor:
    """Discriminator's loss: mean softplus(fake) + mean softplus(-real), or relativistic mean
    softplus(fake - real).

    At its optimum the logit of the first is log(p_data / p_student), that of the second the same up
    to a constant.

    Args:
        real_logits, fake_logits: (B, heads); of one shape and paired row by row if "relativistic".
        kind: one of `GAN_KINDS`.

    Returns:
        scalar, at least float32.

    Raises:
        ValueError: an unknown kind, or shapes that differ if "relativistic".
    """
    check_choice("kind", kind, GAN_KINDS)
    real = at_least_float32(real_logits)
    fake = at_least_float32(fake_logits)
    if kind == "softplus":
        return F.softplus(fake).mean() + F.softplus(-real).mean()
    check_shape("fake_logits", fake_logits, real_logits.shape)
    return F.softplus(fake - real).mean()


def discriminator_accuracy(
    real_logits: Tensor, fake_logits: Tensor, *, kind: str = "softplus"
) -> Tensor:
    """Share of samples that the discriminator tells correctly: 0.5 is blind, 1 is never wrong.

    For "softplus" it is the mean of two shares, of data with a logit > 0 and of samples with a
    logit < 0. For "relativistic" it is the share of pairs with real > fake, since only differences
    of such logits mean something. Ties count half.

    Args:
        real_logits, fake_logits: (B, heads); of one shape if "relativistic".
        kind: one of `GAN_KINDS`.

    Returns:
        scalar in [0, 1], at least float32, without gradient.

    Raises:
        ValueError: an unknown kind, or shapes that differ if "relativistic".
    """
    check_choice("kind", kind, GAN_KINDS)
    real = at_least_float32(real_logits.detach())
    fake = at_least_float32(fake_logits.detach())
    if kind == "softplus":
        return 0.5 + 0.25 * (real.sign().mean() - fake.sign().mean())
    check_shape("fake_logits", fake_logits, real_logits.shape)
    return 0.5 + 0.5 * (real - fake).sign().mean()


def r1_loss(real_logits: Tensor, perturbed_real_logits: Tensor) -> Tensor:
    """Approximate R1: mean (D(x) - D(x + a n))^2, about a^2 |grad D|^2 for standard normal n.

    Both logits (B, heads) belong to the same t and the same noise. Weighted by gamma / (2 a^2) it
    stands for gamma / 2 |grad D|^2.

    Raises:
        ValueError: if the shapes differ.
    """
    check_shape("perturbed_real_logits", perturbed_real_logits, real_logits.shape)
    return (at_least_float32(real_logits) - at_least_float32(perturbed_real_logits)).square().mean()


def pseudo_huber(residual: Tensor, huber_c: float, *, mask: Tensor | None = None) -> Tensor:
    """Pseudo-Huber size of residuals: mean_B ( sqrt(mean_d r^2 + c^2) - c ).

    Residuals well above c count linearly, so that single ones decide little; those well below it
    count quadratically, as r^2 / (2 c).

    Args:
        residual: r, shape (B, ...).
        huber_c: c > 0, in units of the residual's root mean square.
        mask: bool, (B, T) or broadcastable to `residual` (B, T, ...), True = real token; mean_d is
            then over what is real, and padding gets no gradient.

    Returns:
        scalar, at least float32.

    Raises:
        ValueError: unless huber_c > 0; a mask without a real token in some row.

    References: Song & Dhariwal, Improved Techniques for Training Consistency Models, 2023,
    arXiv:2310.14189.
    """
    if not huber_c > 0:
        raise ValueError(f"expected huber_c > 0, got {huber_c}")
    residual = at_least_float32(residual)
    if mask is None:
        square = residual.square().flatten(1).mean(1)
    else:
        square = mean_square_of_samples(residual, expand_mask(mask, residual))
    return ((square + huber_c**2).sqrt() - huber_c).mean()


def time_weight(kind: str, t: Tensor) -> Tensor:
    """A weight (B,) of a denoising loss over the time t (B,): "sigma" t, "alpha" 1 - t, "min_snr"
    min(snr, 5) with snr = ((1 - t) / t)^2, "none" 1.

    Raises:
        ValueError: for an unknown kind.

    References: Hang et al., Efficient Diffusion Training via Min-SNR Weighting, 2023,
    arXiv:2303.09556.
    """
    check_choice("kind", kind, TIME_WEIGHTS)
    match kind:
        case "sigma":
            return t
        case "alpha":
            return 1.0 - t
        case "min_snr":
            return ((1.0 - t) / t.clamp(min=EPSILON)).square().clamp(max=MIN_SNR_GAMMA)
        case _:
            return torch.ones_like(t)
