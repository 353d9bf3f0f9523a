"""A velocity is a score only where data and noise were independent: at t = 1 it tells."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastgen.config import DistillConfig
from fastgen.config.schemas import DataConfig
from fastgen.data import build_data
from fastgen.data.trajectories import TrajectoryData
from fastgen.export.networks import load_network
from fastgen.guidance import Guidance
from fastgen.jobs.checks import coupling_notes, remedies_of
from fastgen.jobs.setup import Setup
from fastgen.methods.registry import METHODS
from fastgen.normalizer import Normalizer
from fastgen.teachers import as_rectified_flow
from fastgen.teachers.couplings import coupling_of
from fastgen.teachers.declarations import declaration_notes
from fastgen.teachers.guided import GuidedNetwork
from support.exact import GaussianTeacher, normal
from support.exact_mixture import ExactTeacher, mixture

TEACHERS = Path(__file__).parents[2] / "recipes" / "teachers"


class CoupledTeacher(GaussianTeacher):
    """The exact flow of N(mean + cond, std^2) where a share of each noise makes its data:
    x0 = mean + cond + std (rho eps + sqrt(1 - rho^2) eps'). Optimal transport has rho = 1."""

    def __init__(self, mean: float = 0.7, std: float = 0.4, rho: float = 1.0) -> None:
        super().__init__(mean, std)
        self.rho = rho
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))  # to be called in float64

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        t, mean_t, _ = self.moments(t, cond, x_t.ndim)
        data = (1 - t) * self.std
        variance = data**2 + t**2 + 2 * t * data * self.rho
        x0 = self.std * (data + t * self.rho) / variance * (x_t - mean_t)
        eps = (t + data * self.rho) / variance * (x_t - mean_t)
        mean = mean_t / (1 - t) if bool((t < 1).all()) else self.moments(0 * t, cond, x_t.ndim)[1]
        return eps - mean - x0


def data(std: float = 0.4, cond: float = 0.0, n: int = 400) -> tuple[Tensor, Tensor]:
    z = cond * normal(n, seed=3)
    return 0.7 + z[:, None] + std * normal(n, 6, seed=4), z


@pytest.mark.parametrize("std", [0.2, 1.0, 8.0])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_optimal_transport_is_found_and_independent_pairs_are_not(std, spread):
    x0, z = data(std, spread * std)
    found = coupling_of(CoupledTeacher(std=std), x0, z)
    assert found is not None and found.found
    assert found.dependence == pytest.approx(1.0, abs=0.1) and found.decided > 0.99
    independent = coupling_of(CoupledTeacher(std=std, rho=0.0), x0, z)
    assert independent is not None and not independent.found
    assert independent.dependence < 1e-6


@pytest.mark.parametrize("rho", [0.6, 0.85])
def test_a_share_of_a_coupling_is_measured_as_much(rho):
    """Networks that were trained on independent pairs for seconds come near the smaller one."""
    x0, z = data(1.0)
    found = coupling_of(CoupledTeacher(std=1.0, rho=rho), x0, z)
    assert found is not None and found.found == (rho > 0.8)
    assert found.dependence == pytest.approx(rho, abs=0.06)
    assert found.decided == pytest.approx(rho, abs=0.06)


def test_what_is_measured_is_within_a_condition():
    """Conditions that spread ten times as far as the data within each hide nothing; the mean of
    each condition, which differs from row to row, is no coupling."""
    x0, z = data(0.4, cond=2.0)
    wide = coupling_of(CoupledTeacher(), x0, z)
    assert wide is not None and wide.found
    narrow = coupling_of(GaussianTeacher(std=1e-3).double(), *data(1e-3, cond=2.0))
    assert narrow is not None and not narrow.found


class Erring(nn.Module):
    """A network with an error of its own that goes up and down with its input."""

    def __init__(self, network: nn.Module, error: float) -> None:
        super().__init__()
        self.network = network
        self.error = error
        self.waves = nn.Parameter(3 * normal(6, 6, seed=9))

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.network(x_t, t, cond) + self.error * torch.sin(
            x_t @ self.waves + 9 * t[:, None]
        )


def test_a_network_that_errs_at_the_last_time_is_not_taken_for_a_coupled_one():
    x0, z = data(0.15, cond=0.3)
    found = coupling_of(Erring(GaussianTeacher(std=0.15), 0.2), x0, z)
    assert found is not None and found.dependence > 0.5 and not found.found


class Still(nn.Module):
    """A network that was never trained: its velocity is next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.zeros(6, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.answer.expand_as(x_t)


@pytest.mark.parametrize("std", [0.5, 0.8, 3.0])
def test_a_network_that_was_never_trained_is_not_taken_for_a_coupled_one(std):
    """It leaves the noise where it is, which thereby decides all of a sample."""
    x0, z = data(std)
    found = coupling_of(Still(), x0, z)
    assert found is not None and not found.found
    lines = declaration_notes(Still(), x0, None, pred_type="flow", search=False, coupled=False)
    assert std > 1 or "worse than their mean" in lines[1]


class Counted(nn.Module):
    """Counts its calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls = 0

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.network(x_t, t, cond)


def test_two_calls_tell_where_x0_does_not_follow_the_noise():
    x0, z = data(1.0)
    for rho, calls in ((0.0, 2), (1.0, 34)):
        counted = Counted(CoupledTeacher(std=1.0, rho=rho))
        coupling_of(counted, x0, z)
        assert counted.calls == calls


def test_guidance_is_no_coupling():
    x0, z = data(0.4, cond=1.0)
    guided = GuidedNetwork(Erring(GaussianTeacher(), 0.0), Guidance(3.0), torch.zeros(1))
    found = coupling_of(guided, x0, z)
    assert found is not None and not found.found


@pytest.mark.parametrize("path", ["linear", "cosine", "vp", "edm"])
@pytest.mark.parametrize("prediction", ["velocity", "v", "x0", "eps"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_no_exact_teacher_is_taken_for_a_coupled_one(path, prediction, scale):
    law = mixture(4)
    x0 = law.sample(300, generator=torch.Generator().manual_seed(0))
    teacher = as_rectified_flow(
        ExactTeacher(law, path=path, prediction=prediction), path=path, prediction=prediction
    )
    found = coupling_of(teacher, scale * x0, None)
    assert found is None or not found.found
    if prediction == "eps":
        assert found is None  # at t = 1 it says nothing about x0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ring", "two_rings", "weave", "modes"])
def test_no_shipped_teacher_is_taken_for_a_coupled_one(name):
    network, _ = load_network(TEACHERS / name)
    x0, cond = build_data(DataConfig(name=name, size=200)).train.network_inputs()
    found = coupling_of(network, x0, cond)
    assert found is not None and not found.found and found.dependence < 0.25


# ---- What a run says -----------------------------------------------------------------------------


class Flat(nn.Module):
    """A Gaussian teacher of trajectories (B, 2, 4), whose condition (B, 1, 2) says the mean."""

    def __init__(self, rho: float) -> None:
        super().__init__()
        self.inside = CoupledTeacher(mean=0.0, std=1.0, rho=rho)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        mean = cond.repeat(1, 2, 2)
        return self.inside(x_t - (1 - t[:, None, None]) * mean, t, None) - mean


def setup(rho: float, **changes) -> Setup:
    z = normal(200, 1, 2, seed=1, dtype=torch.float32)
    x = z + normal(200, 4, 2, seed=2, dtype=torch.float32)
    same = Normalizer.identity(2)
    cfg = DistillConfig.model_validate(changes)
    return Setup(cfg, Flat(rho).float().eval(), TrajectoryData(x, z, same, same, pack=2))


def test_a_method_that_takes_the_velocity_for_a_score_is_warned_of_before_it_is_trained():
    coupled = setup(1.0)
    (line,) = coupling_notes(coupled)
    assert line.startswith("warning: the teacher's velocity is no score")
    assert "DMD takes it for a score" in line
    assert "method=kd" in line and "dmd.vsd_weight=0 and dmd.real_data_weight=1" in line
    # A later warning of the same run doesn't blame the learning rate.
    remedies = remedies_of(coupled)
    assert "no score" in remedies["dmd"] and "lr" not in remedies["dmd"]
    assert remedies["kd"] == METHODS["kd"].remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "kd", "train": {"steps": 0}},
        {"dmd": {"vsd_weight": 0.0, "real_data_weight": 1.0}},
        {"method": "ladd", "dmd": {"vsd_weight": 0.0, "gan_loss_weight_gen": 1.0}},
    ],
)
def test_what_asks_no_score_is_only_told(changes):
    (line,) = coupling_notes(setup(1.0, **changes))
    assert not line.startswith("warning") and line.endswith("needs none")
    remedies = remedies_of(setup(1.0, **changes))
    assert not any("no score" in remedy for remedy in remedies.values())


def test_independent_pairs_are_not_spoken_of():
    independent = setup(0.0)
    assert coupling_notes(independent) == []
    assert remedies_of(independent)["dmd"] == METHODS["dmd2"].remedy


def test_an_error_that_the_coupling_explains_is_not_laid_to_the_declaration():
    x0, _ = data(1.0)
    teacher = CoupledTeacher(std=1.0)
    coupled = declaration_notes(teacher, x0, None, pred_type="flow", search=True, coupled=True)
    assert len(coupled) == 1
    alone = declaration_notes(teacher, x0, None, pred_type="flow", search=False)
    assert len(alone) == 2 and "worse than their mean" in alone[1]
