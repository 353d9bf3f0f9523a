"""Variational score distillation (VSD): what moves a student's samples, and how far.

Teacher and fake score say of a noised sample x_t which x0 it came from. VSD moves the sample along
g = fake_x0 - teacher_x0 with a weight w. It is tensors in and a scalar out; no network is called
here, and everything is computed in at least float32.

The weight sets how far samples go, and so what is learned:

    norm       w                                           of
    mean_abs   1 / (mean_d |gen - teacher_x0| + 1e-6)      each sample (DMD's own)
    rms        1 / (sqrt(mean_d (gen - teacher_x0)^2) + 1e-6)  each sample
    batch      1 / (mean_B of the sizes under rms + 1e-6)  the whole global batch
    none       1                                           every sample

A weight of each sample damps those that are furthest from the teacher's x0, which are the ones that
would have to change their mode. One weight for the batch leaves the direction of the mean gradient
as it is. Rotations of the data change mean_abs alone.

References:
    Yin et al., DMD, 2023, arXiv:2311.18828, and DMD2, 2024, arXiv:2405.14867.
    Xu, Nie & Vahdat, One-step Diffusion Models with f-Divergence Distribution Matching, 2025,
    arXiv:2502.15681.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._core.checks import check_choice, check_shape
from ._core.tensors import (
    at_least_float32,
    expand_like,
    expand_mask,
    mean_of_samples,
    mean_square_of_samples,
    rows_of_samples,
)

__all__ = [
    "F_DIVERGENCES",
    "MAX_LOG_RATIO",
    "NORM_EPSILON",
    "VSD_NORMS",
    "f_divergence_weight",
    "vsd_loss",
    "vsd_size",
]

# Added to the size that a VSD weight divides by, which is 0 for a sample on the teacher's x0.
NORM_EPSILON = 1e-6
VSD_NORMS = ("mean_abs", "rms", "batch", "none")
F_DIVERGENCES = ("reverse_kl", "forward_kl", "js", "jeffreys", "hellinger")
# A discriminator is trained on batches of about e^5 = 148 samples; a larger ratio is its guess.
# With this bound no sample outweighs a batch, and even infinite logits give finite weights.
MAX_LOG_RATIO = 5.0


def vsd_loss(
    gen_data: Tensor,
    teacher_x0: Tensor,
    fake_score_x0: Tensor,
    additional_scale: float | Tensor | None = None,
    *,
    norm: str = "mean_abs",
    norm_min: float = 0.0,
    mean_size: Tensor | None = None,
    clamp: float | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """A scalar whose gradient in `gen_data` is the distribution matching direction.

    With g = fake_score_x0 - teacher_x0, the size s of the table at the head of this module and

        w = 1 / (max(s, norm_min) + 1e-6)        norm="none": w = 1

    the loss is 0.5 * mse(gen, stopgrad(gen - w g)), so that d loss / d gen = w g / (number of
    elements).

    Args:
        gen_data: generated sample, shape (B, ...), with gradient.
        teacher_x0: the teacher's (guided) x0 at the noised sample, the same shape.
        fake_score_x0: the fake score's, the same shape.
        additional_scale: factor on w, float or (B,).
        norm: one of `VSD_NORMS`.
        norm_min: the least size that is divided by, >= 0. It bounds the weight of samples, or of a
            batch, that the teacher hardly changes.
        mean_size: of the whole global batch, a scalar, where `gen_data` is a part of it; for
            norm="batch" only. None: `gen_data` is the batch.
        clamp: largest root mean square of a sample's direction w g, which is shortened to it; None:
            no bound. Rotations don't change it.
        mask: bool, (B, T) or broadcastable to `gen_data` (B, T, ...), True = real token. The means
            in w and in the loss are then over what is real, sample by sample: d loss / d gen =
            w g / (B * number of real entries of the sample), and 0 at padding.

    Returns:
        scalar, at least float32. Gradients reach `gen_data` only.

    Raises:
        ValueError: for shapes that differ, an unknown norm, a negative floor, or a mask without a
            real token in some row.
    """
    check_choice("norm", norm, VSD_NORMS)
    if not norm_min >= 0:
        raise ValueError(f"expected norm_min >= 0, got {norm_min}")
    check_shape("teacher_x0", teacher_x0, gen_data.shape)
    check_shape("fake_score_x0", fake_score_x0, gen_data.shape)
    gen = at_least_float32(gen_data)
    mask = None if mask is None else expand_mask(mask, gen)
    with torch.no_grad():
        teacher = at_least_float32(teacher_x0)
        fake = at_least_float32(fake_score_x0)
        size = _size(gen, teacher, norm, mask)
        if norm == "batch":
            size = (size.mean() if mean_size is None else mean_size).expand(len(gen))
        if norm_min > 0:
            size = size.clamp(min=norm_min)
        w = torch.ones_like(size) if norm == "none" else 1.0 / (size + NORM_EPSILON)
        if isinstance(additional_scale, Tensor):
            w = w * at_least_float32(additional_scale)
        elif additional_scale is not None:
            w = w * additional_scale
        direction = expand_like(w, gen) * (fake - teacher)
        if clamp is not None:
            length = mean_square_of_samples(direction, mask).sqrt()
            shortened = (clamp / length.clamp(min=NORM_EPSILON)).clamp(max=1.0)
            direction = direction * expand_like(shortened, gen)
        target = gen - direction
    if mask is None:
        return 0.5 * (gen - target).square().mean()
    return 0.5 * mean_square_of_samples(gen - target, mask).mean()


def vsd_size(gen_data: Tensor, teacher_x0: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """How far each sample is from the teacher's x0, sqrt(mean_d (gen - teacher_x0)^2).

    The mean over a global batch is `mean_size` of `vsd_loss`; a batch in parts needs it.

    Args:
        gen_data, teacher_x0, mask: as in `vsd_loss`.

    Returns:
        (B,), at least float32, without gradient.
    """
    check_shape("teacher_x0", teacher_x0, gen_data.shape)
    gen = at_least_float32(gen_data.detach())
    mask = None if mask is None else expand_mask(mask, gen)
    return _size(gen, at_least_float32(teacher_x0.detach()), "rms", mask)


def _size(gen: Tensor, teacher: Tensor, norm: str, mask: Tensor | None) -> Tensor:
    if norm == "mean_abs":
        return mean_of_samples((gen - teacher).abs(), mask)
    return mean_square_of_samples(gen - teacher, mask).sqrt()


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
    u = (
        rows_of_samples(at_least_float32(log_ratio.detach()))
        .mean(1)
        .clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    )
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
