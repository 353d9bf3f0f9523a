"""A flow that was trained from other noise than the standard normal is told so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastgen.data.mixtures import GaussianMixture
from fastgen.interpolants import LinearInterpolant
from fastgen.teachers import as_rectified_flow
from fastgen.teachers.declarations import declaration_notes, denoising_errors
from support.exact import normal
from support.exact_mixture import ExactTeacher

LAW = GaussianMixture(1.2 * normal(6, 2, seed=3), stds=0.2)
POINTS = LAW.sample(400, generator=torch.Generator().manual_seed(0))


class FromBox(nn.Module):
    """The exact flow of a set of points from noise that is uniform on [low, high]."""

    def __init__(self, points: Tensor, low: float, high: float) -> None:
        super().__init__()
        self.points = nn.Parameter(points)
        self.low = low
        self.high = high

    def forward(self, x_s: Tensor, s: Tensor, cond: None = None) -> Tensor:
        s = s[:, None]
        noise = (x_s[:, None] - (1 - s[:, :, None]) * self.points) / s[:, :, None]
        outside = (self.low - noise).clamp(min=0) + (noise - self.high).clamp(min=0)
        share = (-1e3 * outside.square().sum(-1)).softmax(1)
        return (x_s - share @ self.points) / s


def warnings(teacher: nn.Module, **options) -> list[str]:
    lines = declaration_notes(teacher, POINTS, None, pred_type="flow", search=True, **options)
    return [line for line in lines[1:] if "worse than their mean" not in line]


@pytest.mark.parametrize("std", [0.25, 0.5, 2.0, 3.0, 5.0])
def test_noise_of_another_size_is_named_with_a_path_that_denoises_as_well_as_any(std):
    path = LinearInterpolant(noise_std=std)
    network = ExactTeacher(LAW, path=path, prediction="velocity")
    (line,) = warnings(network)
    assert f"source looks like noise of standard deviation {std:g} or so" in line
    assert f"teacher.path={{name: linear, noise_std: {std:g}}}, teacher.prediction=velocity" in line
    assert "path=vp" not in line
    assert ("or uniform on [-1, 1]" in line) == (std == 0.5)
    declared = {"name": "linear", "noise_std": std}
    teacher = as_rectified_flow(network, path=declared, prediction="velocity")
    assert teacher.describe()["path"] == declared
    errors = denoising_errors(teacher, POINTS, None)
    assert errors == pytest.approx(denoising_errors(ExactTeacher(LAW), POINTS, None), rel=1e-6)
    assert warnings(teacher) == []


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_uniform_noise_is_named(low):
    (line,) = warnings(FromBox(POINTS, low, 1.0))
    assert "path=vp" not in line and "standard normal" in line
    assert f"looks like uniform noise on [{low:g}, 1]" in line


@pytest.mark.parametrize("options", [{}, {"data_at": 1}, {"data_at": 1, "time_scale": 1000.0}])
@pytest.mark.parametrize("prediction", ["flow", "velocity"])
def test_standard_normal_noise_is_not_spoken_of(options, prediction):
    network = ExactTeacher(LAW, prediction=prediction, **options)
    teacher = as_rectified_flow(network, prediction=prediction, **options)
    assert warnings(teacher) == []


def test_a_clock_that_runs_the_other_way_is_looked_through():
    path = LinearInterpolant(noise_std=2.0)
    network = ExactTeacher(LAW, path=path, prediction="velocity", data_at=1, time_scale=1000.0)
    teacher = as_rectified_flow(network, prediction="velocity", data_at=1, time_scale=1000.0)
    (line,) = warnings(teacher)
    assert "source looks like noise of standard deviation 2 or so" in line


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_a_size_that_no_noise_has_is_refused(std):
    with pytest.raises(ValueError, match="expected a finite noise_std > 0"):
        LinearInterpolant(noise_std=std)
