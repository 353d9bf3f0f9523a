"""Losses of distribution matching: tensors in, a scalar out; no network is called here.

Everything is computed in at least float32, whatever dtype comes in.

References:
    Yin et al., DMD, 2023, arXiv:2311.18828, and DMD2, 2024, arXiv:2405.14867.
    Lin et al., Diffusion Adversarial Post-Training, 2025, arXiv:2501.08316 (approximate R1).
    Ho & Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv:2207.12598.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ._tensor import check_choice, check_shape, expand_like
from .flow_matching import check_pred_type

__all__ = [
    "check_guidance",
    "classifier_free_guidance",
    "dsm_loss",
    "gan_disc_loss",
    "gan_gen_loss",
    "r1_loss",
    "vsd_loss",
]

# Added to the VSD normaliser: a generator that already sits on the teacher's x0 gets a bounded weight.
NORM_EPSILON = 1e-6
VSD_NORMS = ("mean_abs", "rms")


def dsm_loss(
    pred_type: str,
    net_pred: Tensor,
    *,
    x0: Tensor | None = None,
    eps: Tensor | None = None,
    t: Tensor | None = None,
    weight: Tensor | Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Denoising score matching: mean over the batch of weight * mean_d (net_pred - target)^2.

    The target is x0, eps or flow = eps - x0, by `pred_type`. At one t the three are the same loss up to a factor (x0 is
    t^2 times flow, eps is (1 - t)^2 times flow), so the choice weights the times.

    Args:
        pred_type: "flow", "x0" or "eps".
        net_pred: prediction, shape (B, ...).
        x0, eps: data and noise, the same shape; those that the target needs.
        t: times (B,), needed if `weight` is a function.
        weight: (B,), or a function of t giving (B,). Not normalised.

    Returns:
        scalar, at least float32.

    Raises:
        ValueError: for an unknown `pred_type` ("v" names two quantities and is refused), a missing x0, eps or t, or
            shapes that differ.
    """
    check_pred_type(pred_type)
    needed = {"x0": ("x0",), "eps": ("eps",), "flow": ("x0", "eps")}[pred_type]
    given = {"x0": x0, "eps": eps}
    missing = [name for name in needed if given[name] is None]
    if missing:
        raise ValueError(f"expected {' and '.join(missing)} for pred_type {pred_type!r}, got None")
    net_pred = _wide(net_pred)
    parts = {name: _wide(value) for name, value in given.items() if value is not None and name in needed}
    for name, value in parts.items():
        check_shape(name, value, net_pred.shape)
    target = parts["eps"] - parts["x0"] if pred_type == "flow" else parts[pred_type]
    per_sample = _rows(net_pred - target).square().mean(1)
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
) -> Tensor:
    """Variational score distillation: a scalar whose gradient in `gen_data` is the distribution matching direction.

    With g = fake_score_x0 - teacher_x0 and one weight per sample

        w = 1 / (mean_d |gen - teacher_x0| + 1e-6)            norm="mean_abs"
        w = 1 / (sqrt(mean_d (gen - teacher_x0)^2) + 1e-6)    norm="rms"

    the loss is 0.5 * mse(gen, stopgrad(gen - w g)), so that d loss / d gen = w g / (number of elements). The rms weight
    is invariant under rotations of the data, the mean-abs weight (the original) is not.

    Args:
        gen_data: generated sample, shape (B, ...), with gradient.
        teacher_x0: the teacher's (guided) x0 at the noised sample, the same shape.
        fake_score_x0: the fake score's, the same shape.
        additional_scale: factor on w, float or (B,).
        norm: "mean_abs" or "rms".

    Returns:
        scalar, at least float32. Gradients reach `gen_data` only.

    Raises:
        ValueError: for shapes that differ or an unknown norm.
    """
    check_choice("norm", norm, VSD_NORMS)
    check_shape("teacher_x0", teacher_x0, gen_data.shape)
    check_shape("fake_score_x0", fake_score_x0, gen_data.shape)
    gen = _wide(gen_data)
    with torch.no_grad():
        teacher, fake = _wide(teacher_x0), _wide(fake_score_x0)
        distance = _rows(gen - teacher)
        size = distance.abs().mean(1) if norm == "mean_abs" else distance.square().mean(1).sqrt()
        w = 1.0 / (size + NORM_EPSILON)
        if additional_scale is not None:
            w = w * (_wide(additional_scale) if isinstance(additional_scale, Tensor) else additional_scale)
        target = gen - expand_like(w, gen) * (fake - teacher)
    return 0.5 * (gen - target).square().mean()


def gan_gen_loss(fake_logits: Tensor) -> Tensor:
    """Generator's non-saturating loss, mean softplus(-fake); logits (B, heads) -> scalar."""
    return F.softplus(-_wide(fake_logits)).mean()


def gan_disc_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Discriminator's loss, mean softplus(fake) + mean softplus(-real); logits (B, heads) -> scalar."""
    return F.softplus(_wide(fake_logits)).mean() + F.softplus(-_wide(real_logits)).mean()


def r1_loss(real_logits: Tensor, perturbed_real_logits: Tensor) -> Tensor:
    """Approximate R1: mean (D(x) - D(x + a n))^2, about a^2 |grad D|^2 for standard normal n.

    Both logits belong to the same t and the same noise; weight it by gamma / (2 a^2) to stand for gamma/2 |grad D|^2.
    """
    check_shape("perturbed_real_logits", perturbed_real_logits, real_logits.shape)
    return (_wide(real_logits) - _wide(perturbed_real_logits)).square().mean()


def classifier_free_guidance(cond_pred: Tensor, uncond_pred: Tensor, guidance_scale: float) -> Tensor:
    """Guided prediction c + (s - 1) (c - u): s = 1 is the conditional one, s = 0 the unconditional one.

    Any linear parameterisation (flow, x0, eps at one x_t and t) gives the same guided model.

    Returns:
        the shape of `cond_pred`, in its dtype.

    Raises:
        ValueError: if the shapes differ.
    """
    check_shape("uncond_pred", uncond_pred, cond_pred.shape)
    cond, uncond = _wide(cond_pred), _wide(uncond_pred)
    return (cond + (guidance_scale - 1.0) * (cond - uncond)).to(cond_pred.dtype)


def check_guidance(guidance_scale: float | None, negative_cond: object) -> None:
    """Refuse guidance without the condition to guide away from.

    Raises:
        ValueError: for `guidance_scale` without `negative_cond`.
    """
    if guidance_scale is not None and negative_cond is None:
        raise ValueError(f"expected negative_cond with guidance_scale={guidance_scale}, got None")


def _rows(x: Tensor) -> Tensor:
    """(B, ...) -> (B, n), also for samples that are one number each, (B,)."""
    return x.reshape(x.shape[0], -1)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
