"""Losses against their formulas, gradients and invariances."""

import math

import pytest
import torch
from exact import normal

from fastgen.losses import (
    NORM_EPSILON,
    classifier_free_guidance,
    dsm_loss,
    gan_disc_loss,
    gan_gen_loss,
    r1_loss,
    vsd_loss,
)

GEN, TEACHER, FAKE = normal(6, 4, 3), normal(6, 4, 3, seed=1), normal(6, 4, 3, seed=2)


def vsd_gradient(gen, teacher, fake, *args, **kwargs):
    gen = gen.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(vsd_loss(gen, teacher, fake, *args, **kwargs), gen)
    return gradient


# ---- Denoising score matching -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pred_type", ["x0", "eps", "flow"])
def test_dsm_compares_with_its_target(pred_type):
    x0, eps, pred = GEN, TEACHER, FAKE
    target = {"x0": x0, "eps": eps, "flow": eps - x0}[pred_type]
    loss = dsm_loss(pred_type, pred, x0=x0, eps=eps)
    torch.testing.assert_close(loss, (pred - target).square().mean())
    assert dsm_loss(pred_type, target, x0=x0, eps=eps) == 0


def test_dsm_weights_are_averaged_not_normalised():
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    per_sample = (FAKE - GEN).square().mean((1, 2))
    loss = dsm_loss("x0", FAKE, x0=GEN, weight=1 / t**2)
    torch.testing.assert_close(loss, (per_sample / t**2).mean())
    assert dsm_loss("x0", FAKE, x0=GEN, t=t, weight=lambda t: 1 / t**2) == loss
    torch.testing.assert_close(dsm_loss("x0", FAKE, x0=GEN, weight=2 * torch.ones(6)), 2 * per_sample.mean())


def test_x0_dsm_is_flow_dsm_weighted_by_t_squared():
    x0, eps, pred_flow = GEN, TEACHER, FAKE
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    x_t = (1 - t)[:, None, None] * x0 + t[:, None, None] * eps
    pred_x0 = x_t - t[:, None, None] * pred_flow
    flow = dsm_loss("flow", pred_flow, x0=x0, eps=eps, t=t, weight=lambda t: t**2)
    torch.testing.assert_close(dsm_loss("x0", pred_x0, x0=x0), flow)


@pytest.mark.parametrize(
    ("pred_type", "given", "message"),
    [
        ("x0", {"eps": TEACHER}, "expected x0 for pred_type 'x0'"),
        ("eps", {"x0": GEN}, "expected eps for pred_type 'eps'"),
        ("flow", {}, "expected x0 and eps for pred_type 'flow'"),
        ("v", {"x0": GEN}, "'flow' for eps - x0"),
        ("x0", {"x0": GEN[:, :1]}, r"expected x0 of shape \(6, 4, 3\)"),
        ("x0", {"x0": GEN, "weight": lambda t: t}, "expected t for a weight that is a function"),
        ("x0", {"x0": GEN, "weight": torch.ones(6, 1)}, r"expected weight of shape \(6,\)"),
    ],
)
def test_dsm_names_what_is_missing(pred_type, given, message):
    with pytest.raises(ValueError, match=message):
        dsm_loss(pred_type, FAKE, **given)


# ---- Distribution matching ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, 0.5, torch.linspace(0.5, 2, 6, dtype=torch.float64)])
def test_vsd_gradient_is_the_two_line_formula(scale):
    w = 1 / ((GEN - TEACHER).abs().mean((1, 2), keepdim=True) + NORM_EPSILON)
    expected = w * (FAKE - TEACHER) / GEN.numel()
    if scale is not None:
        expected = expected * torch.as_tensor(scale).reshape(-1, 1, 1)
    torch.testing.assert_close(vsd_gradient(GEN, TEACHER, FAKE, scale), expected, rtol=1e-12, atol=1e-16)


def test_vsd_gradient_with_the_rms_weight():
    w = 1 / ((GEN - TEACHER).square().mean((1, 2), keepdim=True).sqrt() + NORM_EPSILON)
    expected = w * (FAKE - TEACHER) / GEN.numel()
    torch.testing.assert_close(vsd_gradient(GEN, TEACHER, FAKE, norm="rms"), expected, rtol=1e-12, atol=1e-16)


def test_vsd_value_is_half_the_mean_square_of_its_direction():
    w = 1 / ((GEN - TEACHER).abs().mean((1, 2), keepdim=True) + NORM_EPSILON)
    torch.testing.assert_close(vsd_loss(GEN, TEACHER, FAKE), 0.5 * (w * (FAKE - TEACHER)).square().mean())


def rotation(angle):
    return torch.tensor(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]], dtype=torch.float64
    )


def test_rms_weight_is_rotation_invariant_and_mean_abs_is_not():
    r = rotation(0.6)
    moved = [x @ r.T for x in (GEN, TEACHER, FAKE)]
    turned = vsd_gradient(GEN, TEACHER, FAKE, norm="rms") @ r.T
    torch.testing.assert_close(vsd_gradient(*moved, norm="rms"), turned, rtol=1e-12, atol=1e-14)
    ratio = vsd_gradient(*moved).norm(dim=(1, 2)) / vsd_gradient(GEN, TEACHER, FAKE).norm(dim=(1, 2))
    assert (ratio - 1).abs().max() > 0.02


@pytest.mark.parametrize("norm", ["mean_abs", "rms"])
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


def test_losses_compute_in_at_least_float32():
    low = [x.bfloat16() for x in (GEN, TEACHER, FAKE)]
    assert vsd_loss(*low).dtype == torch.float32
    assert dsm_loss("flow", low[0], x0=low[1], eps=low[2]).dtype == torch.float32
    assert gan_disc_loss(low[0], low[1]).dtype == gan_gen_loss(low[0]).dtype == torch.float32
    assert r1_loss(low[0], low[1]).dtype == torch.float32
    assert vsd_loss(GEN, TEACHER, FAKE).dtype == torch.float64
    # In bfloat16 gen - (gen - w g) would lose small directions; here they survive.
    near = low[1].float() + 1e-3
    gradient = vsd_gradient(low[0], low[1].float(), near)
    w = 1 / ((low[0].float() - low[1].float()).abs().mean((1, 2), keepdim=True) + NORM_EPSILON)
    expected = w * (near - low[1].float()) / GEN.numel()
    torch.testing.assert_close(gradient.float(), expected, rtol=1e-2, atol=0)


# ---- GAN and guidance ---------------------------------------------------------------------------------------------


def test_gan_losses_are_logistic():
    real, fake = normal(5, 2), normal(5, 2, seed=1)
    torch.testing.assert_close(gan_gen_loss(fake), -torch.sigmoid(fake).log().mean())
    expected = -torch.sigmoid(real).log().mean() - (1 - torch.sigmoid(fake)).log().mean()
    torch.testing.assert_close(gan_disc_loss(real, fake), expected)
    zero = torch.zeros(3, 1)
    assert gan_disc_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert torch.isfinite(gan_disc_loss(-1e4 * torch.ones(1, 1), 1e4 * torch.ones(1, 1)))


def test_r1_estimates_the_squared_gradient():
    """For D(x) = w . x the mean of (D(x) - D(x + a n))^2 is a^2 |w|^2."""
    a, w = 0.1, normal(4)
    x, n = normal(40_000, 4), normal(40_000, 4, seed=1)
    estimate = r1_loss((x @ w)[:, None], ((x + a * n) @ w)[:, None]) / a**2
    assert estimate.item() == pytest.approx(w.square().sum().item(), rel=0.03)
    with pytest.raises(ValueError, match="expected perturbed_real_logits of shape"):
        r1_loss(x[:, :1], x[:, :2])


def test_guidance_extrapolates_from_the_unconditional_prediction():
    c, u = GEN, TEACHER
    torch.testing.assert_close(classifier_free_guidance(c, u, 3.0), u + 3.0 * (c - u))
    assert torch.equal(classifier_free_guidance(c, u, 1.0), c)
    torch.testing.assert_close(classifier_free_guidance(c, u, 0.0), u)
    assert classifier_free_guidance(c.bfloat16(), u.bfloat16(), 2.0).dtype == torch.bfloat16
