"""Exact teachers agree with each other's predictions on every path, and with a Gaussian written
out."""

from __future__ import annotations

import math

import pytest
import torch

from fastgen.data.mixtures import GaussianMixture
from fastgen.interpolants import VariancePreservingInterpolant
from fastgen.samplers import sample_teacher
from support.exact import GaussianTeacher, normal
from support.exact_mixture import D4, ExactTeacher, mixture

F64 = torch.float64
BETAS = torch.linspace(1e-4, 0.02, 1000)


def test_a_single_component_is_the_gaussian_teacher():
    gaussian, law = (
        GaussianTeacher(0.7, 0.4),
        GaussianMixture(torch.full((1, 4, 2), 0.7, dtype=F64), stds=0.4),
    )
    x, t, cond = normal(9, 4, 2), torch.linspace(0, 1, 9, dtype=F64), normal(9, seed=1)
    wide = cond[:, None, None].expand(9, 4, 2)
    assert torch.allclose(law.flow(x, t, wide), gaussian(x, t, cond), rtol=1e-12, atol=1e-12)
    assert torch.allclose(
        law.predict_x0(x, t, wide), gaussian.predict(x, t, cond)[0], rtol=1e-12, atol=1e-12
    )
    single = ExactTeacher(law)(x.float(), t.float(), wide.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), gaussian(x, t, cond), atol=1e-5)


def levels(path: object, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha, sigma by time s with the data at 0, written out."""
    if isinstance(path, torch.Tensor):
        abar = torch.cumprod(1 - path.double(), 0)[s.long()]
        return abar.sqrt(), (1 - abar).sqrt()
    if path in ("linear", "edm"):
        return (1 - s if path == "linear" else torch.ones_like(s)), s
    if path == "cosine":
        return torch.cos(math.pi / 2 * s), torch.sin(math.pi / 2 * s)
    low, high = (0.1, 20.0) if path == "vp" else (0.2, 9.0)
    log_alpha = -(s**2) * (high - low) / 4 - s * low / 2
    return log_alpha.exp(), (-(2 * log_alpha).expm1()).sqrt()


CASES = [
    (p, d)
    for p in ("linear", "cosine", "vp", VariancePreservingInterpolant(0.2, 9.0))
    for d in (0, 1)
]


@pytest.mark.parametrize(("path", "data_at"), [*CASES, ("edm", 0), (BETAS, 0)])
def test_predictions_agree_with_each_other_on_every_path(path, data_at: int):
    law, x, cond = mixture(4, 2), normal(6, 4, 2), normal(6, 4, 2, seed=1)
    s = torch.tensor([0.05, 0.2, 0.5, 0.9, 0.98, 0.3], dtype=F64)
    s = (999 * s).round() if path is BETAS else 60 * s if path == "edm" else s
    zero, one = torch.zeros_like(s), torch.ones_like(s)
    alpha, sigma = levels(path, s)
    x0, eps = law.posterior_mean(x, alpha, sigma, cond), law.noise_mean(x, alpha, sigma, cond)
    rows = {"flow": (-one, one), "eps": (zero, one), "x0": (one, zero), "v": (-sigma, alpha)}
    rows["score"] = (zero, -1 / sigma)
    if path is not BETAS:
        ahead, behind = levels(path, s + 1e-6), levels(path, s - 1e-6)
        d_alpha, d_sigma = (
            (a - b) / 2e-6 * (1 - 2 * data_at) for a, b in zip(ahead, behind, strict=True)
        )
        rows["velocity"] = (d_alpha, d_sigma)
    for prediction, row in rows.items():
        teacher = ExactTeacher(
            law, path=path, prediction=prediction, data_at=data_at, time_scale=1000.0
        ).float()
        answer = teacher(x, 1000.0 * (1 - s if data_at == 1 else s), cond)
        # x = alpha x0 + sigma eps and answer = a x0 + b eps, solved for x0 and eps.
        a, b, alpha_s, sigma_s = (v[:, None, None] for v in (*row, alpha, sigma))
        determinant = alpha_s * b - sigma_s * a
        tolerance = (1e-8 if prediction == "velocity" else 1e-11) * (
            1 + float((1 / determinant).abs().max())
        )
        assert torch.allclose((b * x - sigma_s * answer) / determinant, x0, rtol=0, atol=tolerance)
        assert torch.allclose((alpha_s * answer - a * x) / determinant, eps, rtol=0, atol=tolerance)


def test_betas_are_read_between_rows_by_linear_log_snr():
    teacher = ExactTeacher(mixture(2), path=BETAS, prediction="eps")
    (alpha, sigma), rows = (
        teacher.coefficients(412.25),
        teacher.coefficients(torch.tensor([412, 413])),
    )
    log_ratio = (rows[0] / rows[1]).log()
    assert float((alpha / sigma).log()) == pytest.approx(
        float(0.75 * log_ratio[0] + 0.25 * log_ratio[1]), rel=1e-12
    )
    assert float(alpha**2 + sigma**2) == pytest.approx(1, rel=1e-14)


def test_velocity_of_vp_is_right_at_the_data_where_sigma_has_no_slope():
    teacher, x = ExactTeacher(mixture(2), path="vp", prediction="velocity"), normal(5, 2)
    assert torch.allclose(teacher(x, 0.0), teacher(x, 1e-8), rtol=1e-5)
    assert torch.allclose(teacher(x, 0.0), -0.05 * (x + mixture(2).score(x, 1.0, 0.0)), rtol=1e-9)


@pytest.mark.slow
def test_the_flow_carries_noise_to_the_mixture():
    n, law = 4000, GaussianMixture.orbits(torch.tensor([[1.5, 0.6]]), D4, stds=0.15)
    teacher, noise, cond = ExactTeacher(law), normal(n, 2, seed=2), normal(n, 2, seed=3)
    assert not list(teacher.parameters()) and not teacher.state_dict()
    x = sample_teacher(teacher, noise, 60, cond, method="rk4")
    assert isinstance(x, torch.Tensor)
    assert ((law.mode_weights(x, cond) - 1 / 8).abs() < 4 * math.sqrt(7 / 64 / n)).all()
    assert ((x - cond).mean(0).abs() < 4 * (law.covariance().diag() / n).sqrt()).all()
    spread = (x - cond - law.means[law.responsibilities(x, cond).argmax(1)]).square().mean().sqrt()
    assert float(spread) == pytest.approx(0.15, rel=0.05)


def test_wrong_arguments_are_refused_by_name():
    law, x = mixture(2), normal(4, 2)
    for call, message in [
        (
            lambda: ExactTeacher(law)(x, torch.ones(3)),
            r"expected clock of shape \(4,\), got \(3,\)",
        ),
        (lambda: ExactTeacher(law)(x, 500.0), "time_scale=1"),
        (lambda: ExactTeacher(law, path=BETAS)(x, 1000.0), r"in \[0, 999\]"),
        (lambda: ExactTeacher(law, path=BETAS, prediction="velocity"), "velocity"),
        (lambda: ExactTeacher(law, path=BETAS + 1), r"betas in \(0, 1\)"),
        (lambda: ExactTeacher(law, path="edm", data_at=1), "expected data_at=0 for the path edm"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="clock"):
        ExactTeacher(law)(x, torch.ones(4, dtype=torch.bfloat16))
