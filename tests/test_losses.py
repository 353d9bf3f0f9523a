"""Losses against their formulas, gradients and invariances."""

import pytest
import torch

from fastgen.losses import (
    NORM_EPSILON,
    classifier_free_guidance,
    dsm_loss,
    gan_disc_loss,
    gan_gen_loss,
    pseudo_huber,
    r1_loss,
    vsd_loss,
)
from support.exact import normal

GEN = normal(6, 4, 3)
TEACHER = normal(6, 4, 3, seed=1)
FAKE = normal(6, 4, 3, seed=2)


def vsd_gradient(gen, teacher, fake, *args, **kwargs):
    gen = gen.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(vsd_loss(gen, teacher, fake, *args, **kwargs), gen)
    return gradient


# ---- Denoising score matching --------------------------------------------------------------------


@pytest.mark.parametrize("pred_type", ["x0", "eps", "flow"])
def test_dsm_compares_with_its_target(pred_type):
    x0 = GEN
    eps = TEACHER
    pred = FAKE
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
    torch.testing.assert_close(
        dsm_loss("x0", FAKE, x0=GEN, weight=2 * torch.ones(6)), 2 * per_sample.mean()
    )


def test_x0_dsm_is_flow_dsm_weighted_by_t_squared():
    x0 = GEN
    eps = TEACHER
    pred_flow = FAKE
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


# ---- Padding -------------------------------------------------------------------------------------

LENGTHS = (4, 1, 3, 2, 4, 1)
MASK = torch.arange(4)[None] < torch.tensor(LENGTHS)[:, None]


def cut(i, *tensors):
    """Sample i alone, without its padding."""
    return [x[i : i + 1, : LENGTHS[i]] for x in tensors]


def padded(x, value=float("nan")):
    """`x` with something that must not be read in its padding."""
    return x.masked_fill(~MASK[..., None], value).requires_grad_()


@pytest.mark.parametrize("pred_type", ["x0", "eps", "flow"])
def test_masked_dsm_is_the_mean_over_the_samples_cut_to_their_lengths(pred_type):
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    pred = FAKE.clone().requires_grad_()
    one_by_one = []
    for i in range(6):
        x0, eps, p = cut(i, GEN, TEACHER, pred)
        one_by_one.append(
            dsm_loss(pred_type, p, x0=x0, eps=eps, t=t[i : i + 1], weight=lambda t: 1 / t)
        )
    expected = torch.stack(one_by_one).mean()
    (gradient,) = torch.autograd.grad(expected, pred)
    filled = padded(FAKE)
    x0 = padded(GEN).detach()
    eps = padded(TEACHER).detach()
    loss = dsm_loss(pred_type, filled, x0=x0, eps=eps, t=t, weight=lambda t: 1 / t, mask=MASK)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (found,) = torch.autograd.grad(loss, filled)
    torch.testing.assert_close(found, gradient, rtol=1e-12, atol=0)
    assert (found[~MASK] == 0).all()


def test_a_mask_of_real_tokens_changes_nothing():
    mask = torch.ones(6, 4, dtype=torch.bool)
    torch.testing.assert_close(
        dsm_loss("x0", FAKE, x0=GEN, mask=mask), dsm_loss("x0", FAKE, x0=GEN)
    )
    torch.testing.assert_close(
        vsd_loss(GEN, TEACHER, FAKE, mask=mask), vsd_loss(GEN, TEACHER, FAKE)
    )


def test_masks_broadcast_from_their_leading_axes():
    loss = dsm_loss("x0", FAKE, x0=GEN, mask=MASK)
    assert dsm_loss("x0", FAKE, x0=GEN, mask=MASK[..., None]) == loss
    assert dsm_loss("x0", FAKE, x0=GEN, mask=MASK[..., None].expand(6, 4, 3)) == loss
    channels = torch.tensor([True, False, True]).expand(1, 1, 3)
    torch.testing.assert_close(
        dsm_loss("x0", FAKE, x0=GEN, mask=channels),
        dsm_loss("x0", FAKE[..., ::2], x0=GEN[..., ::2]),
    )


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MASK[:, :3], r"expected mask of shape \(6, 4\), .* got \(6, 3\)"),
        (MASK[0], r"expected mask of shape \(6, 4\), .* got \(4,\)"),
        (MASK.float(), "expected mask to be a bool Tensor, got torch.float32"),
        (
            MASK & (torch.arange(6) != 2)[:, None],
            "expected mask to have a real token in each row, got none in row 2",
        ),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        dsm_loss("x0", FAKE, x0=GEN, mask=mask)
    with pytest.raises(ValueError, match=message):
        vsd_loss(GEN, TEACHER, FAKE, mask=mask)


def test_pseudo_huber_is_its_formula_between_a_square_and_a_size():
    c = 0.05
    rms = GEN.square().mean((1, 2)).sqrt()
    torch.testing.assert_close(pseudo_huber(GEN, c), ((rms**2 + c**2).sqrt() - c).mean())
    # Quadratic well below c, linear well above it, each residual by itself.
    residual = torch.tensor([[1e-4, -1e-4], [50.0, 50.0]], dtype=torch.float64)
    expected = (1e-8 / (2 * c) + 50 - c) / 2
    assert pseudo_huber(residual, c).item() == pytest.approx(expected, rel=1e-4)
    assert pseudo_huber(GEN.bfloat16(), c).dtype == torch.float32
    with pytest.raises(ValueError, match="expected huber_c > 0, got 0.0"):
        pseudo_huber(GEN, 0.0)


def test_guidance_extrapolates_from_the_unconditional_prediction():
    c = GEN
    u = TEACHER
    torch.testing.assert_close(classifier_free_guidance(c, u, 3.0), u + 3.0 * (c - u))
    assert torch.equal(classifier_free_guidance(c, u, 1.0), c)
    torch.testing.assert_close(classifier_free_guidance(c, u, 0.0), u)
    assert classifier_free_guidance(c.bfloat16(), u.bfloat16(), 2.0).dtype == torch.bfloat16
