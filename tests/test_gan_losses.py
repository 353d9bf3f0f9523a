"""Losses of a discriminator, and divergences by its ratio, against their formulas."""

import math

import pytest
import torch

from fastgen.losses import (
    F_DIVERGENCES,
    GAN_KINDS,
    MAX_LOG_RATIO,
    discriminator_accuracy,
    f_divergence_weight,
    gan_disc_loss,
    gan_gen_loss,
    r1_loss,
)
from support.exact import normal

GEN = normal(6, 4, 3)
TEACHER = normal(6, 4, 3, seed=1)
FAKE = normal(6, 4, 3, seed=2)


# ---- Divergences ---------------------------------------------------------------------------------

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
    f = DIVERGENCES[kind]
    ratios = [1.0, 0.05, 0.4, 1.7, 9.0]
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

    m = 0.7
    step = 1e-4
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


# ---- GAN -----------------------------------------------------------------------------------------


def test_gan_losses_are_logistic():
    real = normal(5, 2)
    fake = normal(5, 2, seed=1)
    torch.testing.assert_close(gan_gen_loss(fake), -torch.sigmoid(fake).log().mean())
    expected = -torch.sigmoid(real).log().mean() - (1 - torch.sigmoid(fake)).log().mean()
    torch.testing.assert_close(gan_disc_loss(real, fake), expected)
    zero = torch.zeros(3, 1)
    assert gan_disc_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert torch.isfinite(gan_disc_loss(-1e4 * torch.ones(1, 1), 1e4 * torch.ones(1, 1)))


def test_relativistic_losses_are_logistic_in_the_difference():
    real = normal(5, 2)
    fake = normal(5, 2, seed=1)
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
    real = normal(5, 2).requires_grad_()
    fake = normal(5, 2, seed=1).requires_grad_()
    gradients = torch.autograd.grad(gan_disc_loss(real, fake, kind="relativistic"), [real, fake])
    torch.testing.assert_close(gradients[0], -gradients[1], rtol=0, atol=0)


def test_gan_losses_refuse_what_they_cannot_pair():
    real = normal(5, 2)
    fake = normal(4, 2)
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
    data = torch.tensor([0.7, 0.3], dtype=torch.float64)
    student = torch.tensor([0.2, 0.8], dtype=torch.float64)
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], line_search_fn="strong_wolfe", tolerance_change=1e-16, max_iter=100
    )
    i = torch.arange(10).repeat_interleave(10)
    j = torch.arange(10).repeat(10)
    real = (i >= 7).long()
    fake = (j >= 2).long()  # 100 pairs in the shares of the product

    def closure():
        optimizer.zero_grad()
        loss = gan_disc_loss(logits[real, None], logits[fake, None], kind=kind)
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = (data / student).log()
    found = logits.detach()
    if kind == "relativistic":
        found = found.diff()
        expected = expected.diff()
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
    a = 0.1
    w = normal(4)
    x = normal(40_000, 4)
    n = normal(40_000, 4, seed=1)
    estimate = r1_loss((x @ w)[:, None], ((x + a * n) @ w)[:, None]) / a**2
    assert estimate.item() == pytest.approx(w.square().sum().item(), rel=0.03)
    with pytest.raises(ValueError, match="expected perturbed_real_logits of shape"):
        r1_loss(x[:, :1], x[:, :2])
