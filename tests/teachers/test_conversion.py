"""Networks trained on any path, for any prediction and by any clock answer with the one rectified
flow of their data."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen.data.mixtures import GaussianMixture
from fastgen.dmd import create_fake_score
from fastgen.samplers import sample_teacher, teacher_velocity
from fastgen.teachers import (
    PREDICTIONS,
    KeywordNetwork,
    RectifiedFlow,
    as_rectified_flow,
    loss_space,
)
from fastgen.teachers.clocks import BETA_SCHEDULES, beta_table
from fastgen.teachers.paths import parse_clock
from support.exact import normal
from support.exact_mixture import ExactTeacher

F32 = torch.float32
F64 = torch.float64
WEIGHTS = torch.tensor([1.0, 2.0, 3.0], dtype=F64) / 6
MEANS = torch.tensor([[1.2, 0.3], [-0.9, 0.6], [0.2, -0.5]], dtype=F64)
SPREADS = torch.tensor(
    [[[0.04, 0.01], [0.01, 0.03]], [[0.05, -0.02], [-0.02, 0.06]], [[0.09, 0.0], [0.0, 0.02]]],
    dtype=F64,
)
LAW = GaussianMixture(MEANS - WEIGHTS @ MEANS, SPREADS, weights=WEIGHTS)
ENDS: dict[str, Any] = {"scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012}}
TABLES = {f"{name} betas": beta_table(name, **ENDS.get(name, {})) for name in BETA_SCHEDULES}
PATHS: dict[str, Any] = {"linear": "linear", "cosine": "cosine", "vp": "vp", "edm": "edm", **TABLES}
DECLARATIONS: list[dict[str, Any]] = [
    {"path": path, "prediction": prediction, "data_at": data_at, "time_scale": time_scale}
    for path in PATHS
    for prediction in PREDICTIONS
    for data_at in (0, 1)
    for time_scale in (1.0, 1000.0)
    if (data_at == 0 or path in ("linear", "cosine", "vp"))
    and (path not in TABLES or (time_scale == 1.0 and prediction != "velocity"))
]
COSINE_EPS: dict[str, Any] = {"path": "cosine", "prediction": "eps"}
HARD: list[dict[str, Any]] = [  # one of each kind
    COSINE_EPS,
    {"path": "vp", "prediction": "score"},
    {"path": "linear", "prediction": "velocity", "data_at": 1, "time_scale": 1000.0},
    {"path": "edm", "prediction": "x0"},
]


class Recorder(nn.Module):
    """A network with parameters of some dtype that remembers what it is called with."""

    def __init__(self, network: nn.Module, dtype: torch.dtype = F32) -> None:
        super().__init__()
        self.inside = network
        self.scale = nn.Parameter(torch.ones((), dtype=dtype))

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        self.x = x
        self.t = t
        self.cond = cond
        return self.scale * self.inside(x, t, cond)


class Linear(nn.Module):
    """A trainable map of points and times."""

    def __init__(self, dtype: torch.dtype = F64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(3, 2, dtype=dtype)

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self.map(torch.cat([x, t.to(x.dtype)[:, None]], 1))


def exact(declaration: dict[str, Any]) -> ExactTeacher:
    return ExactTeacher(LAW, **{**declaration, "path": PATHS[declaration["path"]]})


def wrapped(declaration: dict[str, Any], network: nn.Module | None = None) -> RectifiedFlow:
    path = PATHS[declaration["path"]]
    return as_rectified_flow(
        exact(declaration) if network is None else network, **{**declaration, "path": path}
    )


def points(teacher: RectifiedFlow, n: int = 64) -> tuple[Tensor, Tensor]:
    """Samples of the law at times over the whole range of a teacher."""
    t = torch.linspace(0.001, 0.999, n, dtype=F64).clamp(teacher.t_min, teacher.t_max)
    x0 = LAW.sample(n, generator=torch.Generator().manual_seed(1), dtype=F64)
    eps = normal(n, 2, seed=2)
    return (1 - t)[:, None] * x0 + t[:, None] * eps, t


def label(declaration: dict[str, Any]) -> str:
    return " ".join(map(str, declaration.values()))


hard = pytest.mark.parametrize("declaration", HARD, ids=label)


# ---- The flow ------------------------------------------------------------------------------------


@pytest.mark.parametrize("declaration", DECLARATIONS, ids=label)
def test_flow_and_data_are_those_of_the_law_whatever_the_network_was_trained_as(declaration):
    teacher = wrapped(declaration)
    x_t, t = points(teacher)
    flow = LAW.flow(x_t, t)
    x0 = LAW.predict_x0(x_t, t)
    torch.testing.assert_close(teacher(x_t, t), flow, rtol=0, atol=1e-11)
    torch.testing.assert_close(teacher.predict_x0(x_t, t), x0, rtol=0, atol=1e-11)
    # Roundings that the network shares cancel: what is left is its own answer in float32, at most
    # 1000-fold.
    single = wrapped(declaration, Recorder(exact(declaration)))
    assert bool(((single(x_t, t) - flow).abs() < 1e-4 * (1 + flow.abs())).all())
    assert bool(((single.predict_x0(x_t, t) - x0).abs() < 1e-4 * (1 + x0.abs())).all())


@pytest.mark.parametrize(
    "declaration",
    [d for d in DECLARATIONS if d["time_scale"] == 1.0 and d["data_at"] == 0],
    ids=label,
)
def test_data_follow_from_the_flow_and_times_beyond_the_range_are_its_ends(declaration):
    teacher = wrapped(declaration)
    x_t, t = points(teacher)
    # Up to roundings of the flow, which near the noise is the smaller of the two.
    torch.testing.assert_close(
        teacher.predict_x0(x_t, t), x_t - t[:, None] * teacher(x_t, t), rtol=0, atol=1e-11
    )
    for beyond, end in ((0.0, teacher.t_min), (1.0, teacher.t_max)):
        assert torch.equal(teacher(x_t, beyond), teacher(x_t, end)) and bool(
            teacher(x_t, beyond).isfinite().all()
        )
    singular = {"x0": (0.001, 1.0), "eps": (0.0, 0.999), "score": (0.001, 0.999)}
    low, high = singular.get(declaration["prediction"], (0.0, 1.0))
    ratio_low, ratio_high = parse_clock(PATHS[declaration["path"]], declaration["data_at"]).ratios
    assert teacher.t_min == pytest.approx(max(low, ratio_low / (1 + ratio_low)), abs=1e-12)
    assert teacher.t_max == pytest.approx(min(high, 1 / (1 + 1 / ratio_high)), abs=1e-12)
    noise = declaration["prediction"] in ("eps", "score") or (
        declaration["path"],
        declaration["prediction"],
    ) == (
        "edm",
        "velocity",
    )
    assert teacher.predicts_noise == noise and loss_space(teacher) == {True: "eps"}.get(
        noise, "x0" if low else "flow"
    )


def test_the_sign_of_a_velocity_follows_the_end_of_the_data():
    x_t, t = points(wrapped(COSINE_EPS))
    for data_at, sign in ((0, 1.0), (1, -1.0)):
        own = ExactTeacher(LAW, prediction="velocity", data_at=data_at)
        torch.testing.assert_close(own(x_t, t if data_at == 0 else 1 - t), sign * LAW.flow(x_t, t))
        teacher = as_rectified_flow(
            lambda x, s, cond: torch.ones_like(x), prediction="velocity", data_at=data_at
        )
        torch.testing.assert_close(teacher(x_t, t), torch.full_like(x_t, sign), rtol=0, atol=1e-12)


@pytest.mark.slow
@hard
def test_samples_of_a_converted_teacher_have_the_weights_and_moments_of_the_law(declaration):
    n = 4000
    x = sample_teacher(wrapped(declaration), normal(n, 2), 100)
    covariance = LAW.covariance()
    assert isinstance(x, Tensor)
    # Four standard deviations each. Of Gaussians var(x_i x_j) = c_ii c_jj + c_ij^2 <= 2 c_ii c_jj,
    # and the tails of modes beside each other are lighter; a hundred Euler steps add less than
    # that.
    assert bool(
        ((LAW.mode_weights(x) - WEIGHTS).abs() < 4 * (WEIGHTS * (1 - WEIGHTS) / n).sqrt()).all()
    )
    assert bool((x.mean(0).abs() < 4 * (covariance.diag() / n).sqrt()).all())
    scale = covariance.diag().sqrt()
    assert bool(
        ((x.T.cov() - covariance).abs() < 4 * math.sqrt(2 / n) * torch.outer(scale, scale)).all()
    )


@pytest.mark.parametrize("name", TABLES)
def test_the_nearest_row_is_what_the_network_is_told_and_what_its_answer_is_read_at(name):
    recorder = Recorder(ExactTeacher(LAW, path=TABLES[name], prediction="v"), F64)
    teacher = as_rectified_flow(recorder, path=TABLES[name], prediction="v", nearest=True)
    x_t, t = points(teacher)
    flow = teacher(x_t, t)
    clock = parse_clock(TABLES[name])
    assert recorder.t.dtype == torch.int64
    assert (recorder.t - clock.time_of_ratio(t / (1 - t))).abs().max() <= 0.5 + 1e-9
    alpha, sigma = clock.coefficients(recorder.t.to(F64))
    torch.testing.assert_close(flow, LAW.flow(x_t, sigma / (alpha + sigma)), rtol=0, atol=1e-11)
    float_rows = as_rectified_flow(
        recorder, path=TABLES[name], prediction="v", nearest=True, time_scale=0.001
    )
    with torch.no_grad():
        float_rows(x_t, t)
    assert recorder.t.dtype == F64


@pytest.mark.parametrize("pred_type", ["flow", "eps"])
def test_beyond_a_time_a_sampler_takes_the_data_that_a_noise_network_sees_there(pred_type):
    """Converted and native: the x0 at .95 by three rounds, by one more at the next call; errors
    stay below 20-fold."""
    error = torch.tensor([0.03, -0.02], dtype=F64)
    converted: dict[str, Any] = {
        "path": "cosine" if pred_type == "flow" else "linear",
        "prediction": "eps",
    }
    true = exact(converted)

    def off(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return true(x, t, cond) + error

    networks = (
        (true, off)
        if pred_type == "eps"
        else tuple(as_rectified_flow(net, **converted) for net in (true, off))
    )
    x = normal(64, 2)
    for t in (0.5, 0.9, 0.95, 0.96, 0.98, 0.995, 1.0):
        exact_velocity, velocity = (
            teacher_velocity(net, None, dtype=F64, pred_type=pred_type) for net in networks
        )
        found = exact_velocity(x, t)
        assert bool((t * (found - velocity(x, t)).abs() < 20 * error.abs()).all())
        if t <= 0.95:
            torch.testing.assert_close(found, LAW.flow(x, t), rtol=0, atol=1e-11)
            continue
        x0 = torch.zeros_like(x)
        share = 0.95 / t
        for _ in range(3):
            x0 = LAW.predict_x0(share * x + (1 - share) * x0, 0.95)
        torch.testing.assert_close(found, (x - x0) / t, rtol=0, atol=1e-9)
        x0 = LAW.predict_x0(0.95 / 0.955 * x + (1 - 0.95 / 0.955) * x0, 0.95)
        torch.testing.assert_close(exact_velocity(x, 0.955), (x - x0) / 0.955, rtol=0, atol=1e-9)


def test_data_off_the_origin_keep_their_weights_whatever_predicts_them():
    """Half of the data at 0 and half at 20: three standard errors of the share of 4000 samples are
    .024."""
    law = GaussianMixture(torch.tensor([[0.0], [20.0]]), stds=0.5)
    noise = normal(4000, 1)
    for declaration in (
        {"path": "linear"},
        {"path": "cosine", "prediction": "eps"},
        {"path": "vp", "prediction": "score"},
    ):
        x = sample_teacher(
            as_rectified_flow(ExactTeacher(law, **declaration), **declaration), noise, 100
        )
        assert float((x < 10).double().mean()) == pytest.approx(0.5, abs=0.024 + 0.02)


# ---- Dtypes, gradients, copies -------------------------------------------------------------------


@hard
def test_networks_see_their_own_dtype_and_times_in_no_less_than_float32(declaration):
    for dtype, t_dtype in ((torch.bfloat16, F32), (F32, F32), (F64, F64)):
        recorder = Recorder(exact(declaration), dtype)
        teacher = wrapped(declaration, recorder)
        cond = normal(64, 2).to(dtype)
        x_t, t = points(teacher)
        for x_dtype in (F32, torch.bfloat16, F64):
            assert (
                teacher(x_t.to(x_dtype), t, cond).dtype
                == teacher.predict_x0(x_t.to(x_dtype), t).dtype
                == x_dtype
            )
        teacher(x_t, t, cond)
        assert (recorder.x.dtype, recorder.t.dtype, recorder.t.shape) == (dtype, t_dtype, (64,))
        assert recorder.cond.dtype == cond.dtype and torch.equal(recorder.cond, cond)
    assert torch.equal(teacher(x_t, 0.5), teacher(x_t, torch.full((64,), 0.5)))


@hard
def test_the_flow_is_that_at_the_very_sample_and_time_that_the_network_saw(declaration):
    """A bfloat16 network whose answer has no error of its own: the roundings of its inputs cancel
    to float64."""

    class Precise(Recorder):
        def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
            super().forward(x, t)
            return self.inside(x.double(), t)

    network = Precise(exact(declaration), torch.bfloat16)
    teacher = wrapped(declaration, network)
    x_t, t = points(teacher)
    flow = teacher(x_t, t)
    x0 = teacher.predict_x0(x_t, t)
    alpha, sigma = teacher.clock.coefficients(network.t.double() / teacher.time_scale)
    seen_x = network.x.double() / (alpha + sigma)[:, None]
    seen_t = sigma / (alpha + sigma)
    assert (seen_x - x_t).abs().max() > 1e-3
    torch.testing.assert_close(flow, LAW.flow(seen_x, seen_t), rtol=0, atol=1e-10)
    torch.testing.assert_close(x0, LAW.predict_x0(seen_x, seen_t), rtol=0, atol=1e-10)


def test_autocast_leaves_the_times_alone():
    recorder = Recorder(Linear(F32))
    teacher = as_rectified_flow(recorder, **COSINE_EPS, time_scale=1000.0)
    x_t, t = points(teacher)
    # The first half of the times, where the answer isn't amplified.
    x_t = x_t[:32].float()
    t = t[:32]
    plain = teacher(x_t, t)
    told = recorder.t
    with torch.autocast("cpu", torch.bfloat16):
        cast = teacher(x_t, t)
    assert recorder.t.dtype == F32 and torch.equal(recorder.t, told) and cast.dtype == F32
    assert 0 < (cast - plain).abs().max() < 0.02 * plain.abs().max()


@hard
def test_gradients_reach_the_sample_and_the_weights_inside(declaration):
    teacher = wrapped(declaration, Linear())
    x_t, t = points(teacher, 5)
    assert torch.autograd.gradcheck(lambda x: teacher(x, t), x_t.clone().requires_grad_())
    teacher(x_t, t).square().mean().backward()
    assert all(
        p.grad is not None and bool(p.grad.isfinite().all()) for p in teacher.network.parameters()
    )


def test_a_converted_network_keeps_its_weights_and_its_copies_are_trained_apart():
    inside = Linear(F32)
    before = {name: value.clone() for name, value in inside.state_dict().items()}
    teacher = as_rectified_flow(inside, **COSINE_EPS)
    assert teacher.network is inside and list(inside.parameters()) == list(teacher.parameters())
    x_t, t = (value.float() for value in points(teacher))
    answer = teacher(x_t, t)
    student = create_fake_score(teacher)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    student(x_t, t).square().mean().backward()
    optimizer.step()
    assert inside.state_dict().keys() == before.keys()
    assert all(torch.equal(inside.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(teacher(x_t, t), answer) and not torch.equal(student(x_t, t), answer)
    assert (
        copy.deepcopy(teacher).to(F64)(x_t.to(F64), t).dtype == F64
        and inside.map.weight.dtype == F32
    )


def test_optimiser_groups_are_those_of_the_network_inside():
    inside = Linear()
    (group,) = as_rectified_flow(inside).get_optim_groups(0.2)
    assert group["params"] == list(inside.parameters()) and group["weight_decay"] == 0.2

    class Grouped(Linear):
        def get_optim_groups(self, weight_decay: float) -> list[dict[str, Any]]:
            return [{"params": [], "weight_decay": 3 * weight_decay}]

    network = as_rectified_flow(KeywordNetwork(Grouped()))
    assert network.get_optim_groups(0.1) == [{"params": [], "weight_decay": pytest.approx(0.3)}]


def test_a_plain_function_teaches():
    teacher = as_rectified_flow(exact(COSINE_EPS).forward, **COSINE_EPS)
    x_t, t = points(teacher)
    torch.testing.assert_close(teacher(x_t, t), LAW.flow(x_t, t), rtol=0, atol=1e-11)
    x = sample_teacher(teacher, x_t, 2)
    assert isinstance(x, Tensor) and x.shape == x_t.shape and not list(teacher.parameters())
