"""Kernel distances to data: the two-line formula, unbiasedness, what moves and what does not."""

import math

import pytest
import torch

from fastgen._core.seeds import generator_for
from fastgen.metrics import energy_distance
from fastgen.two_sample import KERNELS, two_sample_loss

kernels = pytest.mark.parametrize("kernel", KERNELS)


def slow_twin(x, y, kernel, bandwidths):
    """Every pair by itself."""

    def d(a, b):
        r = math.sqrt(((a - b) ** 2).mean())
        return r if kernel == "energy" else -sum(math.exp(-(r**2) / (2 * h**2)) for h in bandwidths)

    losses = []
    for xs, ys in zip(x, y, strict=True):
        m = len(xs)
        n = len(ys)
        cross = sum(d(a, b) for a in xs for b in ys) / (m * n)
        within = sum(d(xs[k], xs[j]) for k in range(m) for j in range(m) if j != k) / (m * (m - 1))
        losses.append(2 * cross - within)
    return sum(losses) / len(losses)


@kernels
@pytest.mark.parametrize("n", [1, 3])
def test_the_loss_is_its_formula(kernel, n):
    generator = generator_for(0, "two sample", n)
    x = torch.randn(4, 3, 5, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(4, n, 5, 2, generator=generator, dtype=torch.float64)
    loss = two_sample_loss(x, y, kernel, bandwidths=(0.3, 1.0))
    assert loss.item() == pytest.approx(slow_twin(x, y, kernel, (0.3, 1.0)), rel=1e-12)


def test_up_to_the_datas_own_part_it_is_the_unbiased_energy_distance():
    generator = generator_for(0, "energy")
    x, y = (torch.randn(1, 40, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    own = torch.cdist(y[0], y[0]).sum() / (40 * 39)
    expected = (energy_distance(x[0], y[0], unbiased=True) + own) / math.sqrt(3)
    assert torch.allclose(two_sample_loss(x, y), expected, rtol=1e-12)


@kernels
def test_equal_laws_have_no_gradient_in_the_mean_and_a_shift_is_pulled_back(kernel):
    generator = generator_for(0, "shift")

    def slope(shift: float) -> float:
        a = torch.tensor(shift, dtype=torch.float64, requires_grad=True)
        x = torch.randn(3000, 4, 2, generator=generator, dtype=torch.float64) + a
        y = torch.randn(3000, 1, 2, generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad(two_sample_loss(x, y, kernel, bandwidths=(0.5, 1.0)), a)
        return gradient.item()

    at_rest = slope(0.0)
    pulled = slope(1.0)
    assert abs(at_rest) < 0.1 * pulled and pulled > 0.1


@kernels
def test_coinciding_samples_have_a_finite_gradient(kernel):
    x = torch.zeros(2, 3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(two_sample_loss(x, torch.zeros(2, 1, 4), kernel), x)
    assert torch.isfinite(gradient).all()


@kernels
def test_groups_of_padded_samples_have_the_loss_of_samples_cut_to_their_length(kernel):
    generator = generator_for(0, "padded")
    x = torch.randn(3, 4, 5, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 2, 5, 2, generator=generator, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([5, 2, 1])[:, None]
    x, y = (v.masked_fill(~mask[:, None, :, None], math.nan) for v in (x, y))
    x.requires_grad_()
    loss = two_sample_loss(x, y, kernel, mask=mask)
    cut = [
        two_sample_loss(x[i : i + 1, :, :n], y[i : i + 1, :, :n], kernel)
        for i, n in enumerate((5, 2, 1))
    ]
    torch.testing.assert_close(loss, torch.stack(cut).mean(), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.isfinite(gradient).all() and (gradient.abs().sum((1, 3)) > 0).equal(mask)


@kernels
def test_it_does_not_see_a_rotation_of_samples_and_data(kernel):
    generator = generator_for(0, "rotation")
    x, y = (torch.randn(4, 5, 6, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    assert torch.allclose(
        two_sample_loss(x @ turn, y @ turn, kernel), two_sample_loss(x, y, kernel), rtol=1e-12
    )


def test_a_mask_says_which_tokens_of_a_group_are_real():
    with pytest.raises(ValueError, match=r"expected mask of shape \(2, 4\), got \(2, 3\)"):
        two_sample_loss(
            torch.zeros(2, 3, 4), torch.zeros(2, 1, 4), mask=torch.ones(2, 3, dtype=torch.bool)
        )


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        ((2, 3), (2, 1), {}, r"expected generated \(C, m, ...\)"),
        ((2, 3, 4), (3, 3, 4), {}, r"got \(2, 3, 4\) and \(3, 3, 4\)"),
        ((2, 1, 4), (2, 1, 4), {}, "at least 2 generated"),
        ((2, 3, 4), (2, 1, 4), {"kernel": "cosine"}, "expected one of: energy, mmd"),
        ((2, 3, 4), (2, 1, 4), {"kernel": "mmd", "bandwidths": (0.0,)}, "bandwidths > 0"),
    ],
)
def test_bad_calls_are_refused(x, y, options, message):
    with pytest.raises(ValueError, match=message):
        two_sample_loss(torch.zeros(x), torch.zeros(y), **options)
