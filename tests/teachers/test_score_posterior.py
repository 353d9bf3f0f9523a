"""A posterior estimator of sbi that is a score (NPSE) is a teacher as sbi saved it, on each of its
three paths: its score is read right, the answers of sbi's sampler are those of our ODE, and a
student of it is trained, exported and loaded."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import fastgen
from fastgen.samplers import teacher_velocity
from fastgen.solvers import integrate
from fastgen.teachers import KeywordNetwork, as_rectified_flow
from fastgen.teachers.conversion import RectifiedFlow
from support.posterior import ScoreEstimator, build_score
from support.posterior_runs import KEYWORDS, SAVED, distilled

PATHS: dict[str, dict[str, Any]] = {
    "ve": {"name": "ve", "sigma_min": 1e-4, "sigma_max": 10},
    "vp": {"name": "vp", "beta_min": 0.01, "beta_max": 10},
    "subvp": {"name": "subvp", "beta_min": 0.01, "beta_max": 10},
}
# Where sbi's sampler stops.
ENDS = {"ve": 1e-3, "vp": 1e-3, "subvp": 1e-2}


def declared(path: str) -> dict[str, Any]:
    return {"path": PATHS[path], "prediction": "score", "data_at": 0}


def estimator(path: str) -> ScoreEstimator:
    network = build_score(path)
    network.load_state_dict(load_file(SAVED / path / "weights.safetensors"))
    return network.eval()


def teacher_of(path: str, network: ScoreEstimator) -> RectifiedFlow:
    return as_rectified_flow(KeywordNetwork(network, **KEYWORDS), **declared(path))


@pytest.mark.parametrize("path", PATHS)
def test_the_score_is_the_one_of_sbi(path):
    answers = load_file(SAVED / path / "answers.safetensors")
    theta_s, x, times = answers["theta_t"], answers["x"], answers["times"]
    with torch.no_grad():
        field = estimator(path)(input=theta_s, condition=x, time=times)
    torch.testing.assert_close(field, answers["field"], rtol=1e-5, atol=1e-5)
    # Nearer to the data sigma has few digits in float32, as sbi computes it.
    seen = times > 0.1
    theta_s, x, times = theta_s[seen].double(), x[seen].double(), times[seen].double()
    network = estimator(path).double()
    alpha, sigma = (c[:, None] for c in network.coefficients(times))
    t = (sigma / (alpha + sigma)).flatten()
    with torch.no_grad():
        _, eps = teacher_of(path, network).ends(theta_s / (alpha + sigma), t, x)
    theirs = -sigma * answers["field"][seen].double()
    torch.testing.assert_close(eps, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", PATHS)
def test_our_ode_is_that_of_sbi(path):
    """sbi's solver adapts its steps to 1e-5 of theta and 1e-6; ours makes three hundred, in
    float64."""
    answers = load_file(SAVED / path / "answers.safetensors")
    network = estimator(path).double()
    teacher = teacher_of(path, network)
    last = torch.tensor([ENDS[path], 1.0], dtype=torch.float64)
    alpha, sigma = network.coefficients(last)
    end, start = (sigma / alpha).tolist()
    # Evenly in the logarithm of sigma / alpha.
    ratios = np.geomspace(start, end, 301)
    grid = (ratios / (1 + ratios)).tolist()
    assert grid[0] == pytest.approx(teacher.t_max, abs=1e-6)
    velocity = teacher_velocity(teacher, answers["x"].double(), dtype=torch.float64)
    x = answers["noise"].double() / (alpha + sigma)[1]
    with torch.no_grad():
        (found,) = deque(integrate(velocity, x, grid, "rk4"), maxlen=1)
    found = found * (alpha + sigma)[0]
    torch.testing.assert_close(found, answers["samples"].double(), rtol=2e-4, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_a_score_is_distilled_and_its_student_is_sampled_given_x(tmp_path, path):
    simulations: dict[str, Tensor] = load_file(SAVED / "simulations.safetensors")
    theta = estimator(path).standardised(simulations["X"])
    np.savez(tmp_path / "data.npz", X=theta.numpy(), Z=simulations["Z"].numpy())
    run = distilled(
        tmp_path / "run",
        tmp_path / "data.npz",
        factory="support.posterior:build_score",
        arguments={"path": path},
        weights=str(SAVED / path / "weights.safetensors"),
        **declared(path),
    )
    student = fastgen.load_student(run / "student", network=build_score(path))
    x = simulations["Z"][:8]
    found = student.sample(x, num_samples=5, generator=torch.Generator().manual_seed(0))
    assert found.shape == (8, 5, 2) and bool(torch.isfinite(found).all())
