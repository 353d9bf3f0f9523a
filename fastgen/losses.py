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
from ._core.tensors import EPSILON, at_least_float32, expand_like, expand_mask, masked_mean
from .guidance import check_guidance, classifier_free_guidance

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
    "time_weight",
    "vsd_loss",
]

# Added to the size that a VSD weight divides by, which is 0 for a sample on the teacher's x0.
NORM_EPSILON = 1e-6
VSD_NORMS = ("mean_abs", "rms")
TIME_WEIGHTS = ("none", "sigma", "alpha", "min_snr")
MIN_SNR_GAMMA = 5.0
GAN_KINDS = ("softplus", "relativistic")
F_DIVERGENCES = ("reverse_kl", "forward_kl", "js", "jeffreys", "hellinger")
# A discriminator is trained on batches of about e^5 = 148 samples; a larger ratio is its guess.
# With this bound no sample outweighs a batch, and even infinite logits give finite weights.
MAX_LOG_RATIO = 5.0


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
    per_sample = _mean_square(net_pred - target, mask)
    if weight is None:
        return per_sample.mean()
    if not isinstance(weight, Tensor):
        if t is None:
            raise ValueError("expected t for a weight that is a function of t, got None")
        weight = weight(t)
    check_shape("weight", weight, per_sample.shape)
    return (weight * per_sample).mean()


def vsd_loss(
    gen_data: Tensor,
    teacher_x0: Tensor,
    fake_score_x0: Tensor,
    additional_scale: float | Tensor | None = None,
    *,
    norm: str = "mean_abs",
    clamp: float | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Variational score distillation: a scalar whose gradient in `gen_data` is the distribution
    matching direction.

    With g = fake_score_x0 - teacher_x0 and one weight per sample

        w = 1 / (mean_d |gen - teacher_x0| + 1e-6)            norm="mean_abs"
        w = 1 / (sqrt(mean_d (gen - teacher_x0)^2) + 1e-6)    norm="rms"

    the loss is 0.5 * mse(gen, stopgrad(gen - w g)), so that d loss / d gen = w g / (number of
    elements). Rotations of the data don't change the rms weight; they do change mean_abs, which is
    the original.

    Args:
        gen_data: generated sample, shape (B, ...), with gradient.
        teacher_x0: the teacher's (guided) x0 at the noised sample, the same shape.
        fake_score_x0: the fake score's, the same shape.
        additional_scale: factor on w, float or (B,).
        norm: "mean_abs" or "rms".
        clamp: largest root mean square of a sample's direction w g, which is shortened to it; None:
            no bound. Rotations don't change it.
        mask: bool, (B, T) or broadcastable to `gen_data` (B, T, ...), True = real token. The means
            in w and in the loss are then over what is real, sample by sample: d loss / d gen =
            w g / (B * number of real entries of the sample), and 0 at padding.

    Returns:
        scalar, at least float32. Gradients reach `gen_data` only.

    Raises:
        ValueError: for shapes that differ, an unknown norm, or a mask without a real token in some
            row.
    """
    check_choice("norm", norm, VSD_NORMS)
    check_shape("teacher_x0", teacher_x0, gen_data.shape)
    check_shape("fake_score_x0", fake_score_x0, gen_data.shape)
    gen = at_least_float32(gen_data)
    mask = None if mask is None else expand_mask(mask, gen)
    with torch.no_grad():
        teacher = at_least_float32(teacher_x0)
        fake = at_least_float32(fake_score_x0)
        if norm == "mean_abs":
            size = _mean((gen - teacher).abs(), mask)
        else:
            size = _mean_square(gen - teacher, mask).sqrt()
        w = 1.0 / (size + NORM_EPSILON)
        if isinstance(additional_scale, Tensor):
            w = w * at_least_float32(additional_scale)
        elif additional_scale is not None:
            w = w * additional_scale
        direction = expand_like(w, gen) * (fake - teacher)
        if clamp is not None:
            length = _mean_square(direction, mask).sqrt()
            shortened = (clamp / length.clamp(min=NORM_EPSILON)).clamp(max=1.0)
            direction = direction * expand_like(shortened, gen)
        target = gen - direction
    if mask is None:
        return 0.5 * (gen - target).square().mean()
    return 0.5 * _mean_square(gen - target, mask).mean()


def f_divergence_weight(kind: str, log_ratio: Tensor) -> Tensor:
    """Weight of the distribution matching gradient that minimises another f-divergence than the
    reverse KL.

    With r = p_data / p_student at (x_t, t), D_f = E_student f(r) has the gradient

        grad D_f = - E_student h(r) (score_data - score_student) dx_t,    h(r) = f''(r) r^2

    (the variation of D_f in p_student is f(r) - r f'(r), whose gradient is -r f''(r) grad r = -h(r)
    grad log r).

        kind         f(r)                            h(r)           D_f
        reverse_kl   -log r                          1              KL(student | data): plain VSD
        forward_kl   r log r                         r              KL(data | student)
        js           r log r - (r + 1) log((r+1)/2)  r / (1 + r)    twice Jensen-Shannon
        jeffreys     (r - 1) log r                   1 + r          sum of both KLs
        hellinger    2 (1 - sqrt r)^2                sqrt r         squared Hellinger, scaled

    The forward KL is the one that covers all modes of the data.

    The weight is h(r) / h(1), which is 1 where the laws agree, as in plain VSD. It is not divided
    by its mean over the batch, which would depend on how many processes share the batch. Its mean
    over the student's law is still 1 for forward_kl and jeffreys, and at most 1 for js and
    hellinger, whose h is concave: this holds where E_student r = 1, that is where the student has
    samples wherever data are, and no ratio meets its bound. If a discriminator tells nearly all
    samples apart, the weights of forward_kl are nearly 0.

    Args:
        kind: one of `F_DIVERGENCES`.
        log_ratio: log r, shape (B,), or logits (B, heads), whose mean over the heads is taken. At
            its optimum the logit of a softplus discriminator is log r. That of a relativistic one
            is log r up to an unknown constant, which won't do: it would scale the loss. Bounded to
            +-`MAX_LOG_RATIO`.

    Returns:
        h(r) / h(1) of each sample by itself: shape (B,), at least float32, without gradient; made
        for `additional_scale` of `vsd_loss`.

    Raises:
        ValueError: an unknown kind, or another shape.

    Source: Xu, Nie & Vahdat 2025, arXiv:2502.15681.
    """
    check_choice("kind", kind, F_DIVERGENCES)
    if log_ratio.ndim not in (1, 2) or log_ratio.numel() == 0:
        raise ValueError(
            f"expected log_ratio of shape (B,) or (B, heads), got {tuple(log_ratio.shape)}"
        )
    u = _rows(at_least_float32(log_ratio.detach())).mean(1).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    match kind:
        case "forward_kl":
            return u.exp()
        case "js":
            return 2.0 * u.sigmoid()
        case "jeffreys":
            return 0.5 * (1.0 + u.exp())
        case "hellinger":
            return (0.5 * u).exp()
        case _:
            return torch.ones_like(u)


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


def pseudo_huber(residual: Tensor, huber_c: float) -> Tensor:
    """Pseudo-Huber size of residuals: mean_B ( sqrt(mean_d r^2 + c^2) - c ).

    Residuals well above c count linearly, so that single ones decide little; those well below it
    count quadratically, as r^2 / (2 c).

    Args:
        residual: r, shape (B, ...).
        huber_c: c > 0, in units of the residual's root mean square.

    Returns:
        scalar, at least float32.

    Raises:
        ValueError: unless huber_c > 0.

    References: Song & Dhariwal, Improved Techniques for Training Consistency Models, 2023,
    arXiv:2310.14189.
    """
    if not huber_c > 0:
        raise ValueError(f"expected huber_c > 0, got {huber_c}")
    square = at_least_float32(residual).square().flatten(1).mean(1)
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


def _rows(x: Tensor) -> Tensor:
    """(B, ...) -> (B, n), also for samples that are one number each, (B,)."""
    return x.reshape(x.shape[0], -1)


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Per-sample mean (B,) of x (B, ...), of the entries where `mask`, shaped like x, is True."""
    return masked_mean(_rows(x), None if mask is None else _rows(mask), 1)


def _mean_square(x: Tensor, mask: Tensor | None) -> Tensor:
    """As `_mean`, of the squares. Padding is set to 0 before it is squared, so that its gradient is
    0 whatever it holds."""
    if mask is not None:
        x = x.masked_fill(~mask, 0.0)
    return _mean(x.square(), mask)
