"""A posterior estimator of sbi (FMPE) is a teacher as sbi saved it: its field is ours, the answers
of its sampler are those of our ODE, and a student of it is trained, exported and loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import fastgen
from fastgen.networks import unwrap
from fastgen.samplers import sample_teacher
from fastgen.teachers import KeywordNetwork, as_rectified_flow
from fastgen.teachers.conversion import RectifiedFlow
from support.posterior import PosteriorEstimator, build
from support.posterior_runs import KEYWORDS, SAVED, distilled

DECLARED: dict[str, Any] = {"path": "linear", "prediction": "flow", "data_at": 0}


@pytest.fixture(scope="module")
def answers() -> dict[str, Tensor]:
    """What sbi answered."""
    return load_file(SAVED / "answers.safetensors")


def estimator() -> PosteriorEstimator:
    network = build()
    network.load_state_dict(load_file(SAVED / "weights.safetensors"))
    return network.eval()


def teacher_of(network: PosteriorEstimator) -> RectifiedFlow:
    return as_rectified_flow(KeywordNetwork(network, **KEYWORDS), **DECLARED)


def test_the_field_is_the_one_of_sbi(answers):
    theta_t, x, times = answers["theta_t"], answers["x"], answers["times"]
    with torch.no_grad():
        field = estimator()(input=theta_t, condition=x, time=times)
        flow = teacher_of(estimator())(theta_t, times, x)
    close = 16 * torch.finfo(torch.float32).eps * float(answers["field"].abs().max())
    torch.testing.assert_close(field, answers["field"], rtol=0.0, atol=close)
    torch.testing.assert_close(flow, answers["field"], rtol=0.0, atol=close)


def test_samples_of_our_ode_are_those_of_sbi(answers):
    """sbi's solver adapts its steps to 1e-5 of theta and 1e-6; ours makes a hundred, in float64."""
    teacher = teacher_of(estimator().double())
    noise, x = answers["noise"].double(), answers["x"].double()
    samples = sample_teacher(teacher, noise, 100, x, method="rk4")
    torch.testing.assert_close(samples, answers["samples"].double(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_estimator_is_distilled_and_its_student_is_sampled_given_x(tmp_path, answers):
    run = distilled(
        tmp_path / "run",
        SAVED / "simulations.safetensors",
        factory="support.posterior:build",
        weights=str(SAVED / "weights.safetensors"),
        **DECLARED,
    )
    student = fastgen.load_student(run / "student", network=build())
    x = answers["x"][::32]
    theta = student.sample(x, num_samples=5, generator=torch.Generator().manual_seed(0))
    assert theta.shape == (8, 5, 2) and bool(torch.isfinite(theta).all())
    # What standardises is no weight: it is the estimator's to the bit.
    own = estimator()
    trained = unwrap(student.network).state_dict()
    for name, fixed in own.named_buffers():
        assert torch.equal(trained[name], fixed)
    assert any(not torch.equal(trained[name], weight) for name, weight in own.named_parameters())
