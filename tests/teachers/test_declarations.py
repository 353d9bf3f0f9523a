"""A teacher that denoises its data as well as it can was declared rightly; wrong declarations are
told the right one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.masks import mask_of_lengths
from fastgen.data.mixtures import GaussianMixture
from fastgen.interpolants import BaseInterpolant
from fastgen.teachers import as_rectified_flow
from fastgen.teachers.clocks import beta_table
from fastgen.teachers.declarations import (
    TIMES,
    best_declaration,
    declaration_notes,
    denoising_errors,
)
from fastgen.teachers.paths import parse_clock
from support.exact import normal
from support.exact_mixture import ExactTeacher

RIGHT: dict[str, Any] = {"path": "cosine", "prediction": "eps", "data_at": 1, "time_scale": 1000.0}
NATIVE: dict[str, Any] = {"path": "linear", "prediction": "flow", "data_at": 0, "time_scale": 1.0}


def ring() -> Tensor:
    """Points of a circle that is wide against the noise: where they lie shows at every time, even
    at .8."""
    generator = torch.Generator().manual_seed(0)
    angle = 2 * math.pi * torch.rand(2000, generator=generator)
    return 8 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(
        2000, 2, generator=generator
    )


X0 = ring()


class Denoiser(nn.Module):
    """A small network for points of the ring that counts its calls."""

    def __init__(self, time_scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.time_scale = time_scale
        self.calls = 0
        self.waves = math.pi * torch.arange(1, 9)
        self.net = nn.Sequential(
            nn.Linear(19, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        self.calls += 1
        t = (t.to(x.dtype) / self.time_scale)[:, None]
        return self.net(torch.cat([x / 4, t, (self.waves * t).cos(), (self.waves * t).sin()], 1))


def trained(
    declaration: dict[str, Any], steps: int = 600, batch: int = 256, lr: float = 5e-3
) -> Denoiser:
    network = Denoiser(declaration["time_scale"])
    clock = parse_clock(declaration["path"], declaration["data_at"])
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        x0 = X0[torch.randint(len(X0), (batch,), generator=generator)]
        eps = torch.randn(batch, 2, generator=generator)
        s = torch.rand(batch, generator=generator, dtype=torch.float64)
        alpha, sigma = (value.float()[:, None] for value in clock.coefficients(s))
        target = eps if declaration["prediction"] == "eps" else eps - x0
        answer = network(alpha * x0 + sigma * eps, (s * declaration["time_scale"]).float())
        optimizer.zero_grad()
        (answer - target).square().mean().backward()
        optimizer.step()
    return network


@pytest.fixture(scope="module")
def noise_network() -> Denoiser:
    return trained(RIGHT)


def warnings(
    teacher: nn.Module, x0: Tensor = X0, *, search: bool = True, pred_type: str = "flow"
) -> list[str]:
    lines = declaration_notes(teacher, x0, None, pred_type=pred_type, search=search)
    assert lines[0].startswith("denoising error of the teacher at t = 0.2, 0.5, 0.8: ")
    assert all(line.startswith("warning: ") for line in lines[1:])
    return lines[1:]


# ---- A trained network ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_right_declaration_draws_no_warning_and_costs_some_tens_of_calls(noise_network):
    teacher = as_rectified_flow(noise_network, **RIGHT)
    noise_network.calls = 0
    assert warnings(teacher, search=False) == [] and noise_network.calls == len(TIMES)
    noise_network.calls = 0
    assert warnings(teacher) == []
    # One call for each time of 21 paths and clocks, and of the teacher itself: all predictions are
    # read out of it.
    assert noise_network.calls == len(TIMES) * (1 + 21)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [
        {"path": "vp"},
        {"path": "linear"},
        *({"prediction": prediction} for prediction in ("flow", "velocity", "x0", "v", "score")),
        {"data_at": 0},
        {"time_scale": 1.0},
        NATIVE,
        {
            "path": {"name": "betas", "schedule": "linear", "nearest": True},
            "data_at": 0,
            "time_scale": 1.0,
        },
    ],
    ids=str,
)
def test_a_wrong_declaration_is_told_the_right_one(noise_network, wrong):
    teacher = as_rectified_flow(noise_network, **{**RIGHT, **wrong})
    said = warnings(teacher)[-1]
    right = ", ".join(
        f"{error:.3g}"
        for error in denoising_errors(as_rectified_flow(noise_network, **RIGHT), X0, None)
    )
    assert said.startswith("warning: declared with ") and said.endswith(
        f"the teacher would denoise them better: {right}"
    )
    parts = said.removeprefix("warning: declared with ").split(" the teacher")[0].split(", ")
    named = dict(part.split("=") for part in parts)
    assert named == {
        key: f"{RIGHT[key]:g}" if key == "time_scale" else str(RIGHT[key]) for key in wrong
    }


@pytest.mark.slow
def test_a_network_that_was_not_converted_is_judged_too(noise_network):
    said = warnings(noise_network)[-1]
    assert (
        "declared with path=cosine, data_at=1, time_scale=1000, prediction=eps the teacher would"
        in said
    )
    native = trained(NATIVE)
    assert warnings(native) == []
    assert (
        "declared with prediction=flow the teacher would" in warnings(native, pred_type="eps")[-1]
    )


# ---- Exact ones ----------------------------------------------------------------------------------

LAW = GaussianMixture(4 * normal(5, 8, seed=3), stds=0.3)
POINTS = LAW.sample(300, generator=torch.Generator().manual_seed(0))
BETAS = {"name": "betas", "schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ROWS = beta_table("scaled_linear", 1000, 0.00085, 0.012)


class Quadratic(BaseInterpolant):
    """A path of a user's own."""

    def _alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t * (1 + t) / 2, 0.5 + t

    def _sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t**2, -2 * t


@pytest.mark.slow
@pytest.mark.parametrize(
    "declaration",
    [
        {"path": "vp", "prediction": "score"},
        {"path": "edm", "prediction": "x0"},
        {"path": BETAS, "prediction": "v", "nearest": True},
        {"path": Quadratic(), "prediction": "v"},
    ],
    ids=["vp", "edm", "nearest betas", "a path of one's own"],
)
def test_exact_teachers_denoise_alike_and_draw_no_warning_however_they_were_trained(declaration):
    options = {key: value for key, value in declaration.items() if key != "nearest"}
    if options.get("path") == BETAS:
        options["path"] = ROWS
    teacher = as_rectified_flow(ExactTeacher(LAW, **options), **declaration)
    assert warnings(teacher, POINTS) == []
    errors, native = (
        denoising_errors(network, POINTS, None) for network in (teacher, ExactTeacher(LAW))
    )
    assert errors == pytest.approx(native, rel=0.05 if "nearest" in declaration else 1e-4)
    assert native == sorted(native) and 0 < native[0] and native[-1] < 1


def test_a_search_goes_on_past_clocks_that_a_network_cannot_be_called_with():
    class Table(nn.Module):
        """A lookup of a thousand rows: any other time is an error."""

        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Embedding(1000, 1)
            self.inside = ExactTeacher(LAW, path=ROWS)

        def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
            return self.inside(x, t) + 0 * self.rows(t)

    declared = {"path": {"name": "linear"}, "prediction": "flow", "data_at": 0, "time_scale": 1.0}
    found, errors = best_declaration(Table(), POINTS, None, declared)
    assert (
        found["path"] == {**BETAS, "nearest": True}
        and found["prediction"] == "flow"
        and max(errors) < 0.7
    )


class Mean(nn.Module):
    """Answers with the mean of the probed data, whatever it sees."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = nn.Parameter(answer)
        self.dropout = nn.Dropout()

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        return self.dropout(torch.ones_like(x)) * self.answer


def test_the_mean_of_the_data_has_an_error_of_one_and_modes_are_kept():
    few = POINTS[:50].double()
    mean = Mean(few.mean(0)).train()
    assert denoising_errors(mean, few, None, pred_type="x0") == pytest.approx([1.0] * 3, rel=1e-12)
    assert mean.training and mean.dropout.training
    nothing = denoising_errors(Mean(few.mean(0) * math.nan), few, None, pred_type="x0")
    assert nothing == [math.inf] * 3


def test_the_mean_of_what_is_real_has_an_error_of_one_beside_padding():
    """Far from zero, which padding holds: were it counted, the mean would seem to lie elsewhere."""
    few = 1000.0 + POINTS.flatten()[:96].double().reshape(16, 3, 2)
    mask = mask_of_lengths(torch.arange(16) % 3 + 1, 3)
    cond = {"Z": torch.zeros(16, 1, 1), "mask": mask}
    mean = torch.stack([few[mask[:, k], k].mean(0) for k in range(3)])
    few = few.masked_fill(~mask[..., None], 0.0)
    errors = denoising_errors(Mean(mean), few, cond, pred_type="x0")
    assert errors == pytest.approx([1.0] * 3, rel=1e-9)


def test_errors_are_the_same_whatever_a_network_predicts():
    few = POINTS[:64].double()
    errors = [
        denoising_errors(ExactTeacher(LAW, prediction=p), few, None, pred_type=p)
        for p in ("flow", "x0", "eps")
    ]
    assert errors[1] == pytest.approx(errors[0], rel=1e-9) and errors[2] == pytest.approx(
        errors[0], rel=1e-9
    )


def test_data_in_other_units_are_noticed():
    said = warnings(ExactTeacher(LAW), 0.1 * POINTS, search=False)
    assert len(said) == 1 and "denoises these data worse than their mean does" in said[0]
    assert (
        "data.normalize" in said[0] and "teacher.path, prediction, data_at, time_scale" in said[0]
    )


def test_a_clip_that_the_data_do_not_keep_to_is_named():
    law = GaussianMixture(torch.tensor([[3.0, -2.0], [-2.0, 4.0]]), stds=0.1)
    x0 = law.sample(200, generator=torch.Generator().manual_seed(0))
    declaration = {"path": "cosine", "prediction": "eps"}
    network = ExactTeacher(law, **declaration)
    within = as_rectified_flow(network, **declaration, clip_sample=(-6, 6))
    assert warnings(within, x0) == []
    cut = as_rectified_flow(network, **declaration, clip_sample=(-1, 1))
    assert "declared with clip_sample=unclipped the teacher would" in warnings(cut, x0)[-1]


def test_conditions_go_with_their_rows():
    cond = normal(300, 8, seed=5).float()
    plain = denoising_errors(ExactTeacher(LAW), POINTS, None)
    moved = denoising_errors(ExactTeacher(LAW), POINTS + cond, cond)
    wrong = denoising_errors(ExactTeacher(LAW), POINTS + cond, cond.flip(0))
    assert all(a < 1.5 * b < w for a, b, w in zip(moved, plain, wrong, strict=True))
