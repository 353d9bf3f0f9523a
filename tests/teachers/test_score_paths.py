"""Score networks on the paths of score-SDE, VE and sub-VP: exact ones answer with the flow of their
data, and none is asked where its score has no bound."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastgen.data.mixtures import GaussianMixture
from fastgen.interpolants import VariancePreservingInterpolant
from fastgen.samplers import sample_teacher
from fastgen.teachers import RectifiedFlow, as_rectified_flow, describe_network
from fastgen.teachers.paths import parse_clock
from support.exact import normal
from support.exact_mixture import ExactTeacher

LAW = GaussianMixture(torch.tensor([[1.0, 0.5], [-1.0, -0.5]], dtype=torch.float64), stds=0.3)
VE = {"name": "ve", "sigma_min": 0.02, "sigma_max": 30.0}
SUBVP = {"name": "subvp", "sigma_min": 0.1, "sigma_max": 12.0}


class SubVp(VariancePreservingInterpolant):
    """sigma = 1 - alpha^2; what is said of VP in closed form isn't asked for here."""

    def _sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, slope = self._alpha(t)
        return 1 - alpha**2, -2 * alpha * slope


def ve(prediction: str) -> RectifiedFlow:
    """An exact network of EDM's, told s in place of sigma."""
    edm = ExactTeacher(LAW, path="edm", prediction="score" if prediction == "score" else "eps")
    clock = parse_clock(VE)

    def network(x: Tensor, s: Tensor, cond: Any = None) -> Tensor:
        answer = edm(x, clock.coefficients(s)[1], cond)
        if prediction == "velocity":
            return clock.derivatives(s)[1][:, None] * answer
        return answer

    return as_rectified_flow(network, path=VE, prediction=prediction)


def subvp(prediction: str, data_at: int = 0) -> RectifiedFlow:
    network = ExactTeacher(LAW, path=SubVp(0.1, 12.0), prediction=prediction, data_at=data_at)
    return as_rectified_flow(network, path=SUBVP, prediction=prediction, data_at=data_at)


TEACHERS = {
    "ve score": ve("score"),
    "ve velocity": ve("velocity"),
    "subvp score": subvp("score"),
    "subvp score to 1": subvp("score", 1),
    "subvp velocity": subvp("velocity"),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_the_flow_is_that_of_the_data(name):
    teacher = TEACHERS[name]
    t = torch.linspace(0.02, 0.98, 40, dtype=torch.float64).clamp(teacher.t_min, teacher.t_max)
    x0 = LAW.sample(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_t = (1 - t)[:, None] * x0 + t[:, None] * normal(40, 2)
    torch.testing.assert_close(teacher(x_t, t), LAW.flow(x_t, t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", TEACHERS)
def test_where_the_paths_end_and_what_is_said_of_them(name):
    teacher = TEACHERS[name]
    path, high = (VE, 30.0) if "ve " in name else (SUBVP, None)
    description = describe_network(teacher)[1]
    assert description is not None and description["rectified_flow"]["path"] == path
    if high is not None:
        assert teacher.predicts_noise
        assert teacher.t_max == pytest.approx(high / (1 + high))
    assert teacher.predicts_noise == (name != "subvp velocity")


@pytest.mark.parametrize("method", ["heun", "rk4"])
@pytest.mark.parametrize("path", ["linear", "vp", "subvp"])
def test_a_score_is_not_asked_at_the_data_where_it_has_no_bound(path, method):
    clock = parse_clock(path)

    def score(x: Tensor, s: Tensor, cond: Any = None) -> Tensor:
        alpha, sigma = (c[:, None] for c in clock.coefficients(s.double()))
        # Of data that are N(0, I).
        return -(x / sigma) / (sigma + alpha**2 / sigma)

    teacher = as_rectified_flow(score, path=path, prediction="score")
    noise = normal(3, 2)
    assert bool(torch.isfinite(teacher(noise, 0.0)).all())
    assert bool(torch.isfinite(sample_teacher(teacher, noise, 4, method=method)).all())
