"""Mixtures obey Bayes' rule and their own group, from pure noise to pure data."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fastgen.data.mixtures import GaussianMixture
from support.exact import normal
from support.exact_mixture import D4, covariances, mixture

F64 = torch.float64
NOISE_LEVELS = [(0.7, 0.3), (0.05, 1.0), (1.0, 0.02), (1.0, 5.0)]


@pytest.mark.parametrize(("alpha", "sigma"), NOISE_LEVELS)
def test_predictions_are_the_integrals_of_bayes_rule(alpha: float, sigma: float):
    means, stds, weights = (
        torch.tensor(v, dtype=F64) for v in ([-1.0, 0.3, 2.0], [0.3, 0.1, 0.5], [0.5, 0.2, 0.3])
    )
    law = GaussianMixture(means[:, None], stds=stds, weights=5 * weights)
    x0 = torch.linspace(-6, 8, 40_001, dtype=F64)[:, None]
    prior = (weights * torch.exp(-0.5 * ((x0 - means) / stds) ** 2) / stds).sum(1) / math.sqrt(
        2 * math.pi
    )
    assert torch.allclose(law.log_prob(x0).exp(), prior, rtol=1e-12, atol=1e-15)

    x = torch.linspace(-3, 3, 7, dtype=F64)[:, None]
    eps = (x - alpha * x0.T) / sigma
    joint = prior * torch.exp(-0.5 * eps**2)
    evidence = joint.sum(1, keepdim=True)
    assert torch.allclose(
        law.posterior_mean(x, alpha, sigma), joint @ x0 / evidence, rtol=1e-9, atol=1e-9
    )
    noise = (joint * eps).sum(1, keepdim=True) / evidence
    assert torch.allclose(law.noise_mean(x, alpha, sigma), noise, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(2,), (4, 2), (3, 4, 4), ()])
@pytest.mark.parametrize("isotropic", [True, False])
def test_predictions_add_up_and_the_score_is_the_gradient_of_the_noisy_density(
    shape, isotropic: bool
):
    dim, means, cond, x = (
        math.prod(shape),
        normal(3, *shape),
        normal(6, *shape, seed=1),
        2 * normal(6, *shape, seed=2),
    )
    stds, eye = torch.tensor([0.3, 0.5, 0.2], dtype=F64), torch.eye(dim, dtype=F64)
    spread = stds[:, None, None] ** 2 * eye if isotropic else covariances(3, dim)
    law = GaussianMixture(means, stds=stds) if isotropic else GaussianMixture(means, spread)
    for alpha, sigma in [*NOISE_LEVELS, (1.0, 0.0), (0.0, 1.0)]:
        x0, eps = law.posterior_mean(x, alpha, sigma, cond), law.noise_mean(x, alpha, sigma, cond)
        assert torch.allclose(alpha * x0 + sigma * eps, x, rtol=1e-12, atol=1e-12)
        noisy = GaussianMixture(alpha * means, alpha**2 * spread + sigma**2 * eye)
        point = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(noisy.log_prob(point, alpha * cond).sum(), point)
        assert torch.allclose(law.score(x, alpha, sigma, cond), gradient, rtol=1e-9, atol=1e-9)
        assert torch.allclose(eps, -sigma * gradient, rtol=1e-9, atol=1e-9)
    t = torch.linspace(0, 1, 6, dtype=F64)
    each = torch.cat([law.flow(x[i : i + 1], float(t[i]), cond[i : i + 1]) for i in range(6)])
    assert torch.allclose(law.flow(x, t, cond), each, rtol=1e-12, atol=1e-12)


def test_the_ends_are_finite_and_right_and_joined_smoothly():
    law, x, cond = mixture(4, 2), normal(5, 4, 2), normal(5, 4, 2, seed=1)
    mean, score = law.mean(cond).reshape(5, 4, 2), law.score(x, 1.0, 0.0, cond)
    for scale in (1.0, 80.0):
        assert torch.allclose(
            law.posterior_mean(scale * x, 0.0, scale, cond), mean, rtol=1e-12, atol=1e-12
        )
        assert torch.allclose(law.noise_mean(scale * x, 0.0, scale, cond), x, rtol=1e-12)
    assert torch.allclose(law.posterior_mean(x, 0.5, 0.0, cond), x / 0.5, rtol=1e-12, atol=1e-12)
    assert law.noise_mean(x, 0.5, 0.0, cond).abs().max() == 0
    # Off the ends by h, predictions differ by O(h), and eps near the data is -h times the score of
    # the data itself.
    h = 1e-8
    assert torch.allclose(law.posterior_mean(x, h, 1.0, cond), mean, atol=1e-6)
    assert torch.allclose(law.posterior_mean(x, 1.0, h, cond), x, rtol=1e-12, atol=1e-12)
    assert torch.allclose(law.noise_mean(x, 1.0, h, cond) / h, -score, rtol=1e-10)


def test_samples_have_the_moments_and_weights_of_the_law():
    n, law, seed = 40_000, mixture(2, 2), torch.Generator().manual_seed
    x, covariance = law.sample(n, generator=seed(0), dtype=F64), law.covariance()
    assert x.shape == (n, 2, 2) and law.sample(3).dtype == torch.float32
    assert ((x.flatten(1).mean(0) - law.mean()).abs() < 4 * (covariance.diag() / n).sqrt()).all()
    assert torch.allclose(
        x.flatten(1).T.cov(), covariance, atol=5 * float(covariance.diag().max()) / math.sqrt(n)
    )
    share = law.responsibilities(x).mean(0)
    assert ((share - law.weights).abs() < 4 * (law.weights * (1 - law.weights) / n).sqrt()).all()
    cond = normal(n, 2, 2, seed=4)
    assert torch.allclose(law.sample(n, cond, generator=seed(0), dtype=F64), x + cond, atol=1e-12)
    assert torch.allclose(law.log_prob(x + cond, cond), law.log_prob(x), rtol=1e-9)


def test_responsibilities_follow_the_densities_and_modes_follow_the_samples():
    law = GaussianMixture(torch.tensor([[-2.0], [2.0]]), stds=0.5, weights=torch.tensor([1.0, 3.0]))
    x, cond = (
        torch.tensor([[0.0], [-2.0], [2.0], [-0.1]], dtype=F64),
        torch.full((4, 1), -5.0, dtype=F64),
    )
    log_odds = math.log(3) + 2 * 2.0 * x[:, 0] / 0.25
    assert torch.allclose(law.responsibilities(x)[:, 1], torch.sigmoid(log_odds), rtol=1e-12)
    assert law.mode_weights(x).tolist() == [0.5, 0.5]
    assert law.mode_weights(x, cond).tolist() == [0.0, 1.0]


def orbits() -> GaussianMixture:
    """A mean in general position (8 components) and one on a mirror, with a covariance of that
    mirror (4)."""
    spread = torch.stack([covariances(1, 2)[0], torch.diag(torch.tensor([0.1, 0.02], dtype=F64))])
    means, weights = torch.tensor([[2.0, 0.7], [1.0, 0.0]], dtype=F64), torch.tensor([1.0, 2.0])
    return GaussianMixture.orbits(means, D4, covariances=spread, weights=weights)


def test_an_orbit_merges_what_coincides_and_keeps_the_weight_of_the_whole():
    expected = torch.tensor([1 / 24] * 8 + [1 / 6] * 4, dtype=F64)
    assert torch.allclose(orbits().weights, expected, rtol=1e-12)
    assert len(GaussianMixture.orbits(torch.zeros(1, 2), D4, stds=0.3).means) == 1
    unfaithful = GaussianMixture.orbits(torch.ones(1, 2), torch.cat([D4, D4]), stds=0.3)
    assert torch.allclose(unfaithful.weights, torch.full((4,), 0.25, dtype=F64))


@pytest.mark.parametrize("g", D4)
def test_the_law_of_orbits_is_invariant_and_its_flow_equivariant(g: torch.Tensor):
    law, x, cond = orbits(), 2 * normal(16, 2), normal(16, 2, seed=1)
    assert torch.allclose(law.log_prob(x @ g.T), law.log_prob(x), rtol=1e-12, atol=1e-12)
    for t, z in itertools.product((0.0, 0.1, 0.6, 1.0), (None, cond)):
        moved = law.flow(x @ g.T, t, None if z is None else z @ g.T)
        assert (moved - law.flow(x, t, z) @ g.T).abs().max() < 1e-12 * (1 + moved.abs().max())


def test_wrong_arguments_are_refused_by_name():
    law, x, full = mixture(2), normal(4, 2), torch.ones(1, 2, 2)
    for call, message in [
        (lambda: GaussianMixture(x), "either covariances or stds, got neither"),
        (
            lambda: GaussianMixture(x, full),
            r"expected covariances of shape \(4, 2, 2\), got \(1, 2, 2\)",
        ),
        (lambda: GaussianMixture(x[:1], full), "positive definite"),
        (lambda: GaussianMixture(x, stds=0.0), "expected stds > 0"),
        (
            lambda: GaussianMixture(x, stds=0.1, weights=torch.ones(3)),
            r"expected weights of shape \(4,\), got \(3,\)",
        ),
        (lambda: GaussianMixture.orbits(x, D4[:3], stds=0.1), "a whole group, got 3"),
        (lambda: GaussianMixture.orbits(x, D4[[0, 0, 4]], stds=0.1), "a whole group, got 3"),
        (lambda: GaussianMixture.orbits(x, 2 * D4, stds=0.1), "orthogonal"),
        (
            lambda: law.posterior_mean(normal(4, 3), 1.0, 1.0),
            r"expected x of shape \(B, 2\), got \(4, 3\)",
        ),
        (lambda: law.flow(x, 0.5, x[:3]), r"expected cond of shape \(4, 2\), got \(3, 2\)"),
        (
            lambda: law.noise_mean(x, torch.ones(3), 1.0),
            r"expected alpha of shape \(4,\), got \(3,\)",
        ),
        (lambda: law.noise_mean(x, 0.0, 0.0), "alpha = sigma = 0"),
        (lambda: law.sample(3, x), r"expected cond of shape \(3, 2\), got \(4, 2\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
