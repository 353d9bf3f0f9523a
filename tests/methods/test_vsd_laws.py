"""Laws of VSD with exact scores: which times and weights move mass between modes, what a fake score
is for, where the fixed point lies, and what guidance adds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.seeds import generator_for
from fastgen.config import DMDConfig, SampleTimestepConfig
from fastgen.data.mixtures import GaussianMixture
from fastgen.dmd import DMDPipeline
from fastgen.vsd import VSD_NORMS
from support.exact import Affine, GaussianTeacher, TrainableGaussian, normal
from support.exact_mixture import ExactTeacher

# ---- Modes and their weights ---------------------------------------------------------------------

MODES = GaussianMixture(
    torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.01), weights=torch.tensor([0.8, 0.2])
)
KNOTS = 64
POINTS = 129


class Quantiles(nn.Module):
    """A one-step student in one dimension, x0 = G(noise): a line through values at the knots of the
    noise's quantiles. It begins with both modes, half of the mass in each."""

    def __init__(self) -> None:
        super().__init__()
        u = (torch.arange(KNOTS, dtype=torch.float64) + 0.5) / KNOTS
        z = math.sqrt(2) * torch.erfinv(2 * u - 1)
        self.values = nn.Parameter(z.sign() * 1.0 + 0.1 * z)

    def quantile(self, u: Tensor) -> Tensor:
        """The values at the quantiles u in (0, 1)."""
        place = (u * KNOTS - 0.5).clamp(0, KNOTS - 1 - 1e-9)
        low = place.floor().long()
        share = place - low
        return (1 - share) * self.values[low] + share * self.values[low + 1]

    def forward(self, x_t: Tensor, t: Tensor, cond: None) -> Tensor:
        t = t[:, None]
        u = 0.5 * (1 + torch.erf(x_t / t / math.sqrt(2)))
        return (x_t - self.quantile(u)) / t


class OfTheStudent(nn.Module):
    """The exact fake score: the flow of the student's law, by the sum over its quantiles."""

    def __init__(self, student: Quantiles) -> None:
        super().__init__()
        self.student = student

    def forward(self, x_t: Tensor, t: Tensor, cond: None) -> Tensor:
        t = t[:, None]
        u = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
        points = self.student.quantile(u)[None]
        weights = (-0.5 * ((x_t - (1 - t) * points) / t).square()).softmax(1)
        x0 = (weights * points).sum(1, keepdim=True)
        return (x_t - x0) / t


def mass_in_the_left_mode(updates: int = 250, **changes) -> float:
    """Of a student trained by VSD on `MODES` from equal modes; with an exact fake score."""
    student = Quantiles()
    law = {"time_dist_type": "uniform", "min_t": 0.02, "max_t": 0.98, **changes.pop("t", {})}
    config = DMDConfig(
        vsd_t=SampleTimestepConfig(**law), fake_score_rung_conditioned=False, **changes
    )
    pipeline = DMDPipeline(student, ExactTeacher(MODES), OfTheStudent(student), config)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.03, betas=(0.0, 0.99))
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - update / updates)
        optimizer.zero_grad()
        losses = pipeline.at_update(update).compute_student_loss(
            None, normal(96, 1, seed=update), generator=generator_for(update)
        )
        losses["total"].backward()
        optimizer.step()
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    return float((student.quantile(u) < 0).double().mean())


@pytest.mark.slow
def test_mass_moves_between_modes_at_large_times_and_least_under_a_weight_of_each_sample():
    """From half of the mass in each mode towards .8 in the left one, in 250 updates."""
    early = mass_in_the_left_mode(t={"max_t": 0.4}, vsd_norm="none")
    plain = mass_in_the_left_mode(vsd_norm="none")
    each = mass_in_the_left_mode(vsd_norm="rms")
    widening = mass_in_the_left_mode(vsd_norm="batch", vsd_widen_from=0.6, vsd_widen_updates=180)
    assert early == pytest.approx(0.5, abs=0.02)
    assert plain > early + 0.05 and plain > each + 0.03
    assert plain + 0.03 < widening < 0.85


# ---- What a fake score is for --------------------------------------------------------------------


class Remembering(Affine):
    """An affine student that keeps the sample it made."""

    def forward(self, x_t: Tensor, t: Tensor, cond: None) -> Tensor:
        self.made = (self.a * x_t / t[:, None] + self.b).detach()
        return super().forward(x_t, t, cond)


class TheNoise(nn.Module):
    """The noise in place of a fake score: it answers the very sample that was noised."""

    def __init__(self, student: Remembering) -> None:
        super().__init__()
        self.student = student

    def forward(self, x_t: Tensor, t: Tensor, cond: None) -> Tensor:
        return (x_t - self.student.made) / t[:, None]


def trained_std(pipeline: DMDPipeline, follow: bool) -> tuple[float, float]:
    """(mean, std) of an affine student after 300 updates, with a fake score that follows it."""
    student = pipeline.student
    optimizer = torch.optim.Adam(student.parameters(), lr=0.03, betas=(0.0, 0.99))
    for update in range(300):
        if follow:
            with torch.no_grad():
                pipeline.fake_score.mean.copy_(student.b)
                pipeline.fake_score.log_std.copy_(student.a.abs().log())
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - update / 300)
        optimizer.zero_grad()
        losses = pipeline.compute_student_loss(
            None, normal(128, 2, seed=update), generator=generator_for(update)
        )
        losses["total"].backward()
        optimizer.step()
    return student.b.item(), abs(student.a.item())


def test_with_the_noise_in_place_of_the_fake_score_the_variance_goes_to_zero():
    teacher = GaussianTeacher(mean=0.7, std=0.4)
    config = DMDConfig(vsd_norm="none", fake_score_rung_conditioned=False)
    student = Remembering()
    mean, std = trained_std(DMDPipeline(student, teacher, TheNoise(student), config), False)
    assert mean == pytest.approx(0.7, abs=0.05) and std < 0.03
    exact = DMDPipeline(Affine(), teacher, TrainableGaussian(0.0, 1.0), config)
    mean, std = trained_std(exact, True)
    assert mean == pytest.approx(0.7, abs=0.05) and std == pytest.approx(0.4, abs=0.05)


# ---- The fixed point -----------------------------------------------------------------------------


class Gaussian2d(nn.Module):
    """A one-step student x0 = A noise + b of two channels."""

    def __init__(self, A: Tensor, b: Tensor) -> None:
        super().__init__()
        self.A = nn.Parameter(A)
        self.b = nn.Parameter(b)

    def law(self) -> ExactTeacher:
        """The exact score of what it makes, N(b, A A^T)."""
        A = self.A.detach()
        return ExactTeacher(GaussianMixture(self.b.detach()[None], (A @ A.T)[None]))

    def forward(self, x_t: Tensor, t: Tensor, cond: None) -> Tensor:
        t = t[:, None]
        return (x_t - (x_t / t @ self.A.T + self.b)) / t


ROOT = torch.tensor([[0.8, 0.0], [0.3, 0.4]]).double()
MEAN = torch.tensor([0.7, -0.4]).double()
# Turns, which change no covariance, are left out.
STRETCHES = [
    torch.tensor(rows).double()
    for rows in ([[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]])
]


def gradients_of(student: Gaussian2d, vsd_norm: str) -> tuple[Tensor, Tensor]:
    """In A and b, with the exact fake score of the student and the teacher N(MEAN, ROOT ROOT^T)."""
    teacher = Gaussian2d(ROOT, MEAN).law()
    config = DMDConfig(vsd_norm=vsd_norm, fake_score_rung_conditioned=False)
    pipeline = DMDPipeline(student, teacher, student.law(), config)
    loss = pipeline.compute_student_loss(None, normal(4096, 2), generator=generator_for(0))
    return torch.autograd.grad(loss["total"], (student.A, student.b))


@pytest.mark.parametrize("vsd_norm", VSD_NORMS)
def test_a_full_covariance_is_a_fixed_point_that_pushes_back(vsd_norm):
    for gradient in gradients_of(Gaussian2d(ROOT.clone(), MEAN.clone()), vsd_norm):
        assert float(gradient.abs().max()) < 1e-12
    for sign in (-0.2, 0.2):
        for stretch in STRETCHES:
            off = sign * stretch @ ROOT
            in_A, _ = gradients_of(Gaussian2d(ROOT + off, MEAN.clone()), vsd_norm)
            assert float((in_A * off).sum()) > 0
        for axis in torch.eye(2, dtype=torch.float64):
            _, in_b = gradients_of(Gaussian2d(ROOT.clone(), MEAN + sign * axis), vsd_norm)
            assert float((in_b * sign * axis).sum()) > 0


# ---- Guidance against quadrature -----------------------------------------------------------------

SCALE = 2.5
SHIFT = 0.8
TIME = 0.5
A_PAIR = GaussianMixture(
    torch.tensor([[-0.6], [0.9]]),
    torch.tensor([[[0.09]], [[0.25]]]),
    weights=torch.tensor([0.3, 0.7]),
)


def mean_given(x_t: Tensor, density: Tensor, x0: Tensor) -> Tensor:
    """E[x0 | x_t] at TIME by a sum over a grid of x0."""
    kernel = (-0.5 * ((x_t[:, None] - (1 - TIME) * x0) / TIME).square()).exp() * density
    return (kernel * x0).sum(1) / kernel.sum(1)


def bell(x: Tensor, mean: float, variance: float) -> Tensor:
    return (-0.5 * (x - mean).square() / variance).exp() / math.sqrt(2 * math.pi * variance)


@pytest.mark.parametrize(("matching", "guidance"), [(1.0, 1.0), (1.0, 0.0), (0.0, 2.0)])
def test_the_parts_of_a_guided_gradient_are_their_integrals(matching, guidance):
    """Against sums over grids of x0 and x_t, for an affine student and a teacher of two modes."""
    student = Affine()
    a, b = student.a.item(), student.b.item()
    fake = GaussianTeacher(mean=b, std=a)
    config = DMDConfig(
        vsd_norm="none",
        guidance_scale=SCALE,
        vsd_matching_weight=matching,
        vsd_guidance_weight=guidance,
        vsd_t=SampleTimestepConfig(time_dist_type="uniform", min_t=TIME, max_t=TIME + 1e-9),
        fake_score_rung_conditioned=False,
    )
    n = 200_000
    zeros = torch.zeros(n, 1, dtype=torch.float64)
    loss = DMDPipeline(student, ExactTeacher(A_PAIR), fake, config).compute_student_loss(
        None, normal(n, 1), zeros, negative_cond=zeros + SHIFT, generator=generator_for(0)
    )["vsd"]
    found = torch.stack(torch.autograd.grad(loss, (student.a, student.b)))

    x0 = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    x_t = torch.linspace(-7, 7, 701, dtype=torch.float64)
    variance = (1 - TIME) ** 2 * a**2 + TIME**2
    density = bell(x_t, (1 - TIME) * b, variance)
    law = 0.3 * bell(x0, -0.6, 0.09) + 0.7 * bell(x0, 0.9, 0.25)
    plain = mean_given(x_t, law, x0)
    shifted = 0.3 * bell(x0, -0.6 + SHIFT, 0.09) + 0.7 * bell(x0, 0.9 + SHIFT, 0.25)
    away = plain - mean_given(x_t, shifted, x0)
    of_student = mean_given(x_t, bell(x0, b, a**2), x0)
    g = matching * (of_student - plain) - guidance * (SCALE - 1) * away
    noise_given = (1 - TIME) * a / variance * (x_t - (1 - TIME) * b)
    step = x_t[1] - x_t[0]
    expected = torch.stack([(density * g * noise_given).sum(), (density * g).sum()]) * step
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.01)
