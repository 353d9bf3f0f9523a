"""Losses against their formulas, gradients and invariances."""

import math

import pytest
import torch

from fastgen.losses import (
    F_DIVERGENCES,
    GAN_KINDS,
    MAX_LOG_RATIO,
    NORM_EPSILON,
    classifier_free_guidance,
    discriminator_accuracy,
    dsm_loss,
    f_divergence_weight,
    gan_disc_loss,
    gan_gen_loss,
    pseudo_huber,
    r1_loss,
    vsd_loss,
)
from support.exact import normal

GEN, TEACHER, FAKE = normal(6, 4, 3), normal(6, 4, 3, seed=1), normal(6, 4, 3, seed=2)


def vsd_gradient(gen, teacher, fake, *args, **kwargs):
    gen = gen.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(vsd_loss(gen, teacher, fake, *args, **kwargs), gen)
    return gradient


# ---- Denoising score matching --------------------------------------------------------------------


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
    torch.testing.assert_close(
        dsm_loss("x0", FAKE, x0=GEN, weight=2 * torch.ones(6)), 2 * per_sample.mean()
    )


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


# ---- Distribution matching -----------------------------------------------------------------------


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


def test_rms_weight_is_rotation_invariant_and_mean_abs_is_not():
    r = rotation(0.6)
    moved = [x @ r.T for x in (GEN, TEACHER, FAKE)]
    turned = vsd_gradient(GEN, TEACHER, FAKE, norm="rms") @ r.T
    torch.testing.assert_close(vsd_gradient(*moved, norm="rms"), turned, rtol=1e-12, atol=1e-14)
    ratio = vsd_gradient(*moved).norm(dim=(1, 2)) / vsd_gradient(GEN, TEACHER, FAKE).norm(
        dim=(1, 2)
    )
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
    x0, eps = padded(GEN).detach(), padded(TEACHER).detach()
    loss = dsm_loss(pred_type, filled, x0=x0, eps=eps, t=t, weight=lambda t: 1 / t, mask=MASK)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (found,) = torch.autograd.grad(loss, filled)
    torch.testing.assert_close(found, gradient, rtol=1e-12, atol=0)
    assert (found[~MASK] == 0).all()


@pytest.mark.parametrize("norm", ["mean_abs", "rms"])
def test_masked_vsd_is_the_mean_over_the_samples_cut_to_their_lengths(norm):
    scale = torch.linspace(0.5, 2, 6, dtype=torch.float64)
    gen = GEN.clone().requires_grad_()
    parts = [vsd_loss(*cut(i, gen, TEACHER, FAKE), scale[i : i + 1], norm=norm) for i in range(6)]
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


# ---- Other divergences ---------------------------------------------------------------------------

# f of D_f = E_student f(p_data / p_student), as in the docstring's table.
DIVERGENCES = {
    "reverse_kl": lambda r: -math.log(r),
    "forward_kl": lambda r: r * math.log(r),
    "js": lambda r: r * math.log(r) - (r + 1) * math.log((r + 1) / 2),
    "jeffreys": lambda r: (r - 1) * math.log(r),
    "hellinger": lambda r: 2 * (1 - math.sqrt(r)) ** 2,
}


@pytest.mark.parametrize("kind", F_DIVERGENCES)
def test_weights_are_the_second_derivative_of_f(kind):
    """h(r) = f''(r) r^2 by central differences, over h(1)."""
    f, ratios = DIVERGENCES[kind], [1.0, 0.05, 0.4, 1.7, 9.0]
    h = []
    for r in ratios:
        step = 1e-4 * r
        h.append((f(r + step) - 2 * f(r) + f(r - step)) / step**2 * r**2)
    h = torch.tensor(h, dtype=torch.float64)
    log_ratio = torch.tensor(ratios, dtype=torch.float64).log().requires_grad_()
    weight = f_divergence_weight(kind, log_ratio)
    torch.testing.assert_close(weight, h / h[0], rtol=1e-5, atol=0)
    assert weight[0] == 1 and not weight.requires_grad
    logits = torch.stack(
        [log_ratio + 1, log_ratio - 1], dim=1
    )  # two heads, whose mean is the ratio
    torch.testing.assert_close(f_divergence_weight(kind, logits), weight, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", F_DIVERGENCES)
def test_a_sample_has_its_weight_whatever_else_is_in_the_batch(kind):
    logits = normal(6, 2)
    weight = f_divergence_weight(kind, logits)
    halves = torch.cat([f_divergence_weight(kind, half) for half in logits.split(2)])
    assert torch.equal(halves, weight)


@pytest.mark.parametrize("kind", F_DIVERGENCES)
def test_the_mean_weight_over_the_students_law_is_one_or_less(kind):
    """Student N(0, 1), data N(m, s^2), E_student by quadrature; ratios are within the bound where
    there is mass."""
    x = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    student = torch.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
    log_ratio = 0.5 * x**2 - 0.5 * ((x - 0.5) / 0.8) ** 2 - math.log(0.8)
    mean = float(torch.trapezoid(student * f_divergence_weight(kind, log_ratio), x))
    if kind in ("js", "hellinger"):
        assert 0.8 < mean < 1 - 1e-3
    else:
        assert mean == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", F_DIVERGENCES)
def test_the_weighted_gradient_is_that_of_the_divergence(kind):
    """Student N(m, 1), data N(0, 1): dD_f/dm by differences of the integral against -E h(r) (s_data
    - s_student)."""
    x = torch.linspace(-12, 12, 20_001, dtype=torch.float64)

    def density(m):
        return torch.exp(-0.5 * (x - m) ** 2) / math.sqrt(2 * math.pi)

    def divergence(m):
        r = density(0.0) / density(m)
        return torch.trapezoid(
            density(m) * torch.tensor([DIVERGENCES[kind](v) for v in r.tolist()]).double(), x
        )

    m, step = 0.7, 1e-4
    expected = (divergence(m + step) - divergence(m - step)) / (2 * step)
    log_r = 0.5 * (x - m) ** 2 - 0.5 * x**2
    h = {
        "reverse_kl": 1 + 0 * x,
        "forward_kl": log_r.exp(),
        "js": log_r.sigmoid(),
        "jeffreys": 1 + log_r.exp(),
    }
    weight = h.get(kind, (0.5 * log_r).exp())
    found = -torch.trapezoid(density(m) * weight * (-x + (x - m)), x)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    inside = log_r.abs() < MAX_LOG_RATIO
    ratio = f_divergence_weight(kind, log_r[inside]) / weight[inside]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))  # h(1), whatever r


@pytest.mark.parametrize("kind", F_DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_weights_are_finite_for_any_logit(kind, dtype):
    inf = float("inf")
    weight = f_divergence_weight(
        kind, torch.tensor([-inf, -1e30, -200.0, 0.0, 200.0, 1e30, inf], dtype=dtype)
    )
    assert weight.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.isfinite(weight).all() and (weight > 0).all()
    assert (weight.diff() >= 0).all() and weight[3] == 1
    bounded = f_divergence_weight(
        kind, torch.tensor([MAX_LOG_RATIO, 2 * MAX_LOG_RATIO], dtype=dtype)
    )
    assert bounded[0] == bounded[1] <= math.exp(MAX_LOG_RATIO) * (1 + 1e-6)


def test_unknown_divergences_and_shapes_are_refused():
    with pytest.raises(
        ValueError, match="unknown kind 'tv', expected one of: reverse_kl, forward_kl, js"
    ):
        f_divergence_weight("tv", torch.zeros(3))
    for shape in [(3, 2, 1), (0,), ()]:
        with pytest.raises(ValueError, match=r"expected log_ratio of shape \(B,\) or \(B, heads\)"):
            f_divergence_weight("js", torch.zeros(shape))


# ---- GAN and guidance ----------------------------------------------------------------------------


def test_gan_losses_are_logistic():
    real, fake = normal(5, 2), normal(5, 2, seed=1)
    torch.testing.assert_close(gan_gen_loss(fake), -torch.sigmoid(fake).log().mean())
    expected = -torch.sigmoid(real).log().mean() - (1 - torch.sigmoid(fake)).log().mean()
    torch.testing.assert_close(gan_disc_loss(real, fake), expected)
    zero = torch.zeros(3, 1)
    assert gan_disc_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert torch.isfinite(gan_disc_loss(-1e4 * torch.ones(1, 1), 1e4 * torch.ones(1, 1)))


def test_relativistic_losses_are_logistic_in_the_difference():
    real, fake = normal(5, 2), normal(5, 2, seed=1)
    disc = gan_disc_loss(real, fake, kind="relativistic")
    torch.testing.assert_close(disc, -torch.sigmoid(real - fake).log().mean())
    torch.testing.assert_close(
        gan_gen_loss(fake, real, kind="relativistic"), -torch.sigmoid(fake - real).log().mean()
    )
    # The two players swap roles with the classes, a common offset of the logits is nothing, and the
    # losses differ by the mean difference since softplus(a) - softplus(-a) = a.
    torch.testing.assert_close(
        gan_gen_loss(fake, real, kind="relativistic"),
        gan_disc_loss(fake, real, kind="relativistic"),
    )
    torch.testing.assert_close(gan_disc_loss(real + 3, fake + 3, kind="relativistic"), disc)
    torch.testing.assert_close(
        gan_gen_loss(fake, real, kind="relativistic") - disc, (real - fake).mean()
    )


def test_relativistic_gradients_of_the_two_classes_are_opposite():
    real, fake = normal(5, 2).requires_grad_(), normal(5, 2, seed=1).requires_grad_()
    gradients = torch.autograd.grad(gan_disc_loss(real, fake, kind="relativistic"), [real, fake])
    torch.testing.assert_close(gradients[0], -gradients[1], rtol=0, atol=0)


def test_gan_losses_refuse_what_they_cannot_pair():
    real, fake = normal(5, 2), normal(4, 2)
    with pytest.raises(ValueError, match="expected real_logits for kind 'relativistic', got None"):
        gan_gen_loss(fake, kind="relativistic")
    with pytest.raises(ValueError, match=r"expected real_logits of shape \(4, 2\), got \(5, 2\)"):
        gan_gen_loss(fake, real, kind="relativistic")
    with pytest.raises(ValueError, match=r"expected fake_logits of shape \(5, 2\), got \(4, 2\)"):
        gan_disc_loss(real, fake, kind="relativistic")
    assert torch.isfinite(gan_disc_loss(real, fake))  # means of their own, nothing to pair
    for loss in (gan_disc_loss, discriminator_accuracy, gan_gen_loss):
        with pytest.raises(
            ValueError, match="unknown kind 'hinge', expected one of: softplus, relativistic"
        ):
            loss(real, real, kind="hinge")


@pytest.mark.parametrize("kind", GAN_KINDS)
def test_the_best_discriminator_gives_the_log_ratio(kind):
    """Two points with data shares (.7, .3) and student shares (.2, .8): every pair in its share."""
    data, student = (
        torch.tensor([0.7, 0.3], dtype=torch.float64),
        torch.tensor([0.2, 0.8], dtype=torch.float64),
    )
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], line_search_fn="strong_wolfe", tolerance_change=1e-16, max_iter=100
    )
    i, j = torch.arange(10).repeat_interleave(10), torch.arange(10).repeat(10)
    real, fake = (i >= 7).long(), (j >= 2).long()  # 100 pairs in the shares of the product

    def closure():
        optimizer.zero_grad()
        loss = gan_disc_loss(logits[real, None], logits[fake, None], kind=kind)
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = (data / student).log()
    found = logits.detach()
    if kind == "relativistic":
        found, expected = found.diff(), expected.diff()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_accuracy_is_the_share_told_correctly():
    real = torch.tensor([[1.0, -2.0], [3.0, 0.0]])  # right, wrong, right, tie
    fake = torch.tensor([[-1.0, -1.0], [-2.0, 4.0]])  # right, right, right, wrong
    assert discriminator_accuracy(real, fake).item() == pytest.approx((2.5 / 4 + 3 / 4) / 2)
    assert discriminator_accuracy(real, fake, kind="relativistic").item() == pytest.approx(2 / 4)
    assert discriminator_accuracy(real + 9, fake + 9, kind="relativistic").item() == pytest.approx(
        2 / 4
    )
    blind = torch.zeros(3, 1)
    for kind in GAN_KINDS:
        assert discriminator_accuracy(blind, blind, kind=kind) == 0.5
        assert discriminator_accuracy(blind + 1, blind - 1, kind=kind) == 1
        assert discriminator_accuracy(blind - 1, blind + 1, kind=kind) == 0
    assert not discriminator_accuracy(real.requires_grad_(), fake).requires_grad


def test_r1_estimates_the_squared_gradient():
    """For D(x) = w . x the mean of (D(x) - D(x + a n))^2 is a^2 |w|^2."""
    a, w = 0.1, normal(4)
    x, n = normal(40_000, 4), normal(40_000, 4, seed=1)
    estimate = r1_loss((x @ w)[:, None], ((x + a * n) @ w)[:, None]) / a**2
    assert estimate.item() == pytest.approx(w.square().sum().item(), rel=0.03)
    with pytest.raises(ValueError, match="expected perturbed_real_logits of shape"):
        r1_loss(x[:, :1], x[:, :2])


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
    c, u = GEN, TEACHER
    torch.testing.assert_close(classifier_free_guidance(c, u, 3.0), u + 3.0 * (c - u))
    assert torch.equal(classifier_free_guidance(c, u, 1.0), c)
    torch.testing.assert_close(classifier_free_guidance(c, u, 0.0), u)
    assert classifier_free_guidance(c.bfloat16(), u.bfloat16(), 2.0).dtype == torch.bfloat16
