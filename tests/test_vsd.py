"""Variational score distillation against its formulas, gradients and invariances."""

import math

import pytest
import torch

from fastgen.vsd import NORM_EPSILON, VSD_NORMS, vsd_loss, vsd_size
from support.exact import normal

GEN = normal(6, 4, 3)
TEACHER = normal(6, 4, 3, seed=1)
FAKE = normal(6, 4, 3, seed=2)


def vsd_gradient(gen, teacher, fake, *args, **kwargs):
    gen = gen.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(vsd_loss(gen, teacher, fake, *args, **kwargs), gen)
    return gradient


@pytest.mark.parametrize("scale", [None, 0.5, torch.linspace(0.5, 2, 6, dtype=torch.float64)])
def test_vsd_gradient_is_the_two_line_formula(scale):
    w = 1 / ((GEN - TEACHER).abs().mean((1, 2), keepdim=True) + NORM_EPSILON)
    expected = w * (FAKE - TEACHER) / GEN.numel()
    if scale is not None:
        expected = expected * torch.as_tensor(scale).reshape(-1, 1, 1)
    torch.testing.assert_close(
        vsd_gradient(GEN, TEACHER, FAKE, scale), expected, rtol=1e-12, atol=1e-16
    )


def test_vsd_gradient_with_the_rms_weight():
    w = 1 / ((GEN - TEACHER).square().mean((1, 2), keepdim=True).sqrt() + NORM_EPSILON)
    expected = w * (FAKE - TEACHER) / GEN.numel()
    torch.testing.assert_close(
        vsd_gradient(GEN, TEACHER, FAKE, norm="rms"), expected, rtol=1e-12, atol=1e-16
    )


def test_vsd_value_is_half_the_mean_square_of_its_direction():
    w = 1 / ((GEN - TEACHER).abs().mean((1, 2), keepdim=True) + NORM_EPSILON)
    torch.testing.assert_close(
        vsd_loss(GEN, TEACHER, FAKE), 0.5 * (w * (FAKE - TEACHER)).square().mean()
    )


def rotation(angle):
    return torch.tensor(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("norm", ["rms", "batch", "none"])
def test_weights_are_rotation_invariant_but_for_mean_abs(norm):
    r = rotation(0.6)
    moved = [x @ r.T for x in (GEN, TEACHER, FAKE)]
    turned = vsd_gradient(GEN, TEACHER, FAKE, norm=norm) @ r.T
    torch.testing.assert_close(vsd_gradient(*moved, norm=norm), turned, rtol=1e-12, atol=1e-14)


def test_the_mean_abs_weight_is_not_rotation_invariant():
    r = rotation(0.6)
    moved = [x @ r.T for x in (GEN, TEACHER, FAKE)]
    at_rest = vsd_gradient(GEN, TEACHER, FAKE).norm(dim=(1, 2))
    assert (vsd_gradient(*moved).norm(dim=(1, 2)) / at_rest - 1).abs().max() > 0.02


def test_the_batch_weight_is_one_over_the_mean_rms_size():
    sizes = (GEN - TEACHER).square().mean((1, 2)).sqrt()
    torch.testing.assert_close(vsd_size(GEN, TEACHER), sizes, rtol=1e-12, atol=0)
    expected = (FAKE - TEACHER) / (sizes.mean() + NORM_EPSILON) / GEN.numel()
    gradient = vsd_gradient(GEN, TEACHER, FAKE, norm="batch")
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-16)


def test_without_a_norm_the_gradient_is_the_plain_difference():
    gradient = vsd_gradient(GEN, TEACHER, FAKE, norm="none")
    torch.testing.assert_close(gradient, (FAKE - TEACHER) / GEN.numel(), rtol=1e-12, atol=1e-16)


def test_a_batch_in_parts_has_the_weight_of_the_whole():
    whole = vsd_gradient(GEN, TEACHER, FAKE, norm="batch")
    halves = [slice(0, 3), slice(3, 6)]
    sizes = torch.stack([vsd_size(GEN[half], TEACHER[half]).mean() for half in halves])

    def in_parts(mean_size):
        parts = [
            vsd_gradient(GEN[half], TEACHER[half], FAKE[half], norm="batch", mean_size=mean_size)
            for half in halves
        ]
        return torch.cat(parts) / 2

    torch.testing.assert_close(in_parts(sizes.mean()), whole, rtol=1e-12, atol=1e-16)
    # Halves that are weighed by themselves are pulled with other weights.
    assert (in_parts(None) / whole - 1).abs().max() > 0.01


@pytest.mark.parametrize("norm", ["mean_abs", "rms", "batch"])
def test_the_floor_bounds_the_size_that_is_divided_by(norm):
    near = TEACHER + 0.01 * (GEN - TEACHER)
    floored = vsd_gradient(near, TEACHER, FAKE, norm=norm, norm_min=0.5)
    expected = (FAKE - TEACHER) / (0.5 + NORM_EPSILON) / GEN.numel()
    torch.testing.assert_close(floored, expected, rtol=1e-12, atol=1e-16)
    # Sizes above the floor are what they are.
    far = vsd_gradient(GEN, TEACHER, FAKE, norm=norm, norm_min=0.5)
    assert torch.equal(far, vsd_gradient(GEN, TEACHER, FAKE, norm=norm))


@pytest.mark.parametrize("norm", ["mean_abs", "rms", "batch"])
def test_vsd_is_finite_on_the_teachers_x0(norm):
    gradient = vsd_gradient(TEACHER, TEACHER, FAKE, norm=norm)
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(gradient, (FAKE - TEACHER) / NORM_EPSILON / GEN.numel())


def test_vsd_reaches_the_generated_sample_only():
    parts = [x.clone().requires_grad_() for x in (GEN, TEACHER, FAKE)]
    vsd_loss(*parts).backward()
    assert parts[0].grad is not None and parts[1].grad is None and parts[2].grad is None


def test_vsd_refuses_unknown_norms_and_shapes():
    with pytest.raises(ValueError, match="unknown norm 'l1', expected one of: mean_abs, rms"):
        vsd_loss(GEN, TEACHER, FAKE, norm="l1")
    with pytest.raises(ValueError, match="expected fake_score_x0 of shape"):
        vsd_loss(GEN, TEACHER, FAKE[:, :2])
    with pytest.raises(ValueError, match="expected norm_min >= 0, got -1"):
        vsd_loss(GEN, TEACHER, FAKE, norm_min=-1.0)


# ---- Padding -------------------------------------------------------------------------------------

LENGTHS = (4, 1, 3, 2, 4, 1)
MASK = torch.arange(4)[None] < torch.tensor(LENGTHS)[:, None]


def cut(i, *tensors):
    """Sample i alone, without its padding."""
    return [x[i : i + 1, : LENGTHS[i]] for x in tensors]


def padded(x):
    """`x` with something that must not be read in its padding."""
    return x.masked_fill(~MASK[..., None], float("nan")).requires_grad_()


@pytest.mark.parametrize("norm", VSD_NORMS)
def test_masked_vsd_is_the_mean_over_the_samples_cut_to_their_lengths(norm):
    scale = torch.linspace(0.5, 2, 6, dtype=torch.float64)
    gen = GEN.clone().requires_grad_()
    cuts = [cut(i, gen, TEACHER, FAKE) for i in range(6)]
    mean_size = torch.cat([vsd_size(x, teacher) for x, teacher, _ in cuts]).mean()
    parts = [vsd_loss(*cuts[i], scale[i : i + 1], norm=norm, mean_size=mean_size) for i in range(6)]
    expected = torch.stack(parts).mean()
    (gradient,) = torch.autograd.grad(expected, gen)
    filled = padded(GEN)
    loss = vsd_loss(
        filled, padded(TEACHER).detach(), padded(FAKE).detach(), scale, norm=norm, mask=MASK
    )
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (found,) = torch.autograd.grad(loss, filled)
    torch.testing.assert_close(found, gradient, rtol=1e-12, atol=0)
    assert (found[~MASK] == 0).all()
