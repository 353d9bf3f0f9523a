"""Consistency distillation: a loss whose fixed point is the teacher's own map."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastgen.flow_matching import add_noise, convert_prediction
from fastgen.guidance import Guidance
from fastgen.methods.consistency import consistency_loss
from fastgen.methods.time_grids import consistency_times
from fastgen.samplers import sample_student, teacher_step
from fastgen.teachers.guided import GuidedNetwork
from support.exact import ConjugatedTeacher, GaussianTeacher, normal, slope

T_LIST = [0.999, 0.75, 0.5, 0.25, 0.0]
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
PRED_TYPES = ("flow", "x0", "eps")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def times_of(n: int, low: float = 0.1, high: float = 0.999, seed: int = 5) -> Tensor:
    return low + (high - low) * torch.rand(n, dtype=torch.float64, generator=generator(seed))


def exact_student(teacher: GaussianTeacher, t_list: list[float], pred_type: str = "flow"):
    """Predicts so that the map to the next time of `t_list` is the ODE's own: for one rung, the
    consistency function m + (x_t - (1 - t) m) s / sqrt((1 - t)^2 s^2 + t^2)."""

    def student(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        flow = torch.zeros_like(x_t)
        for row, time in enumerate(t.tolist()):
            end = max((rung for rung in t_list if rung < time), default=0.0)
            if time > 0:
                x = x_t[row : row + 1]
                own = None if cond is None else cond[row : row + 1]
                flow[row] = ((x - teacher.carry(x, time, end, own)) / (time - end))[0]
        return convert_prediction(flow, x_t, t, "flow", pred_type)

    return student


def test_the_exact_consistency_function_is_the_closed_form():
    teacher = GaussianTeacher(mean=0.7, std=0.4)
    x = normal(9, 2)
    t = times_of(9)
    v = exact_student(teacher, [0.999, 0.0])(x, t, None)
    time = t[:, None]
    scale = 0.4 / ((1 - time) ** 2 * 0.4**2 + time**2).sqrt()
    torch.testing.assert_close(x - time * v, 0.7 + (x - (1 - time) * 0.7) * scale)


@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize(
    "teacher", [GaussianTeacher(), ConjugatedTeacher()], ids=["gaussian", "conjugated"]
)
def test_the_exact_map_is_a_fixed_point_at_the_solvers_order(method, teacher):
    n = 24
    noise = normal(n, 2)
    t = times_of(n, low=0.3)
    cond = 0.3 * normal(n, seed=2)
    x0 = 0.5 + 0.2 * normal(n, 2, seed=1)
    losses = {}
    for parts in (8, 16, 32, 64):
        # With a c far below the residual the loss is its size: the local error, one order above the
        # solver's.
        loss = consistency_loss(
            exact_student(teacher, [0.999, 0.0]),
            teacher,
            x0,
            noise,
            t,
            t - 0.3 / parts,
            cond,
            huber_c=1e-13,
            method=method,
        )
        losses[parts] = loss.item()
    measured = slope(losses)
    assert measured > ORDERS[method] + 0.75
    # The Gaussian flow is linear in x, where some solvers do better (midpoint by a whole order).
    assert (
        measured == pytest.approx(ORDERS[method] + 1, abs=0.25) or type(teacher) is GaussianTeacher
    )
    assert losses[64] < {"euler": 2e-4, "midpoint": 3e-6, "heun": 3e-6, "rk4": 1e-9}[method]


@pytest.mark.parametrize("sample_type", ["sde", "ode"])
@pytest.mark.parametrize("pred_type", PRED_TYPES)
def test_the_map_that_the_sampler_makes_is_the_one_without_loss(sample_type, pred_type):
    teacher = GaussianTeacher()
    n = 64

    def predicts(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        return convert_prediction(teacher(x_t, t, cond), x_t, t, "flow", pred_type)

    t, s, end = consistency_times(n, 1.0, T_LIST, sample_type=sample_type, generator=generator())
    losses = {}
    for kind, t_list in (("sde", [0.999, 0.0]), ("ode", T_LIST)):
        student = exact_student(teacher, t_list, pred_type)
        losses[kind] = consistency_loss(
            student,
            predicts,
            normal(n, 2, seed=1),
            normal(n, 2),
            t,
            s,
            end=end,
            pred_type=pred_type,
            huber_c=1e-6,
        ).item()
    other = "ode" if sample_type == "sde" else "sde"
    assert losses[sample_type] < 2e-4 and losses[other] > 10 * losses[sample_type]


def test_a_student_without_loss_samples_what_the_teacher_does():
    teacher = GaussianTeacher()
    noise = normal(8, 2)
    for t_list in ([0.999, 0.0], T_LIST):
        x0 = sample_student(exact_student(teacher, t_list), noise, t_list)
        torch.testing.assert_close(x0, teacher.carry(0.999 * noise, 0.999, 0.0))


@pytest.mark.parametrize("pred_type", PRED_TYPES)
@pytest.mark.parametrize("end", [0.0, 0.25])
def test_at_its_end_the_map_is_the_identity_whatever_the_network(pred_type, end):
    teacher = GaussianTeacher()
    n = 16
    t = torch.full((n,), end + 0.1, dtype=torch.float64)
    s = torch.full((n,), end, dtype=torch.float64)
    x0 = normal(n, 2)
    noise = normal(n, 2, seed=1)
    c = 0.05

    def predicts(x_t: Tensor, t: Tensor, cond: None) -> Tensor:
        return convert_prediction(teacher(x_t, t), x_t, t, "flow", pred_type)

    def student(x_t: Tensor, t: Tensor, cond: None) -> Tensor:
        return 7.0 + torch.sin(x_t)

    loss = consistency_loss(
        student, predicts, x0, noise, t, s, end=end, pred_type=pred_type, huber_c=c
    )
    x_t = add_noise(x0, noise, t)
    flow = convert_prediction(student(x_t, t, None), x_t, t, pred_type, "flow")
    x_s = teacher_step(
        predicts, x_t, t, s, pred_type=pred_type
    )  # the truth: no network of the student's has a part
    r = x_t - 0.1 * flow - x_s
    torch.testing.assert_close(loss, ((r.square().mean(1) + c**2).sqrt() - c).mean())


class Net(nn.Module):
    """A small trainable network of (x_t, t, cond) with dropout."""

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Linear(4, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 2)
        ).double()

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.net(torch.cat([x_t, t[:, None], cond[:, None]], 1))


def slow_twin(student, teacher, x0, noise, t, s, cond, end, target, c, method) -> Tensor:
    """The loss sample by sample, with the formulas written out."""
    losses = []
    for i in range(len(x0)):
        z = cond[i : i + 1]
        ti = float(t[i])
        si = float(s[i])
        ei = float(end[i])

        def at(net, x, time, z=z):
            return net(x[None], torch.tensor([time], dtype=torch.float64), z)[0]

        x_t = (1 - ti) * x0[i] + ti * noise[i]
        with torch.no_grad():
            v = at(teacher, x_t, ti)
            if method == "midpoint":
                v = at(teacher, x_t + (si - ti) / 2 * v, (ti + si) / 2)
            elif method == "heun":
                v = (v + at(teacher, x_t + (si - ti) * v, si)) / 2
            x_s = x_t + (si - ti) * v
            wanted = x_s if si == ei else x_s - (si - ei) * at(target, x_s, si)
        r = x_t - (ti - ei) * at(student, x_t, ti) - wanted
        losses.append(((r**2).mean() + c**2) ** 0.5 - c)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun"])
@pytest.mark.parametrize("own_target", [True, False])
def test_loss_and_gradient_equal_those_of_a_slow_twin(method, own_target):
    student = Net(1)
    teacher = Net(2)
    target = Net(3)
    t, s, end = consistency_times(20, 0.0, T_LIST, sample_type="ode", generator=generator(3))
    x0 = normal(20, 2)
    noise = normal(20, 2, seed=1)
    cond = normal(20, seed=2)
    loss = consistency_loss(
        student,
        teacher,
        x0,
        noise,
        t,
        s,
        cond,
        end=end,
        huber_c=0.1,
        method=method,
        target=None if own_target else target,
    )
    twin = slow_twin(
        student, teacher, x0, noise, t, s, cond, end, student if own_target else target, 0.1, method
    )
    torch.testing.assert_close(loss, twin, rtol=1e-12, atol=1e-12)
    parameters = list(student.parameters())
    for one, other in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(twin, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("own_target", [True, False])
def test_gradients_reach_the_student_alone_with_nothing_frozen(own_target):
    student = Net(1)
    teacher = Net(2)
    target = Net(3)
    x0, noise, cond = (normal(*shape, seed=7).requires_grad_() for shape in ((8, 2), (8, 2), (8,)))
    t = times_of(8)
    loss = consistency_loss(
        student,
        teacher,
        x0,
        noise,
        t,
        t / 2,
        cond,
        target=None if own_target else target,
        huber_c=0.1,
    )
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in student.parameters())
    assert all(p.grad is None for net in (teacher, target) for p in net.parameters())


def test_teacher_and_target_judge_without_dropout_and_modes_are_restored():
    student = Net(1)
    teacher = Net(2, dropout=0.5)
    target = Net(1, dropout=0.5)
    x0 = normal(8, 2)
    noise = normal(8, 2, seed=1)
    cond = normal(8, seed=2)
    t = times_of(8)
    with_dropout = consistency_loss(student, teacher, x0, noise, t, t / 2, cond, target=target)
    assert teacher.training and target.training and teacher.net[2].training
    plain = consistency_loss(student, teacher.eval(), x0, noise, t, t / 2, cond)
    assert torch.equal(with_dropout, plain)


def test_a_teacher_that_guides_itself_is_followed_where_it_leads():
    """The Gaussian flow is linear in the condition, so scale s follows c + (s - 1)(c - u)."""
    teacher = GaussianTeacher()
    x0 = normal(8, 2)
    noise = normal(8, 2, seed=1)
    t = times_of(8)
    c = normal(8, seed=2)
    u = normal(8, seed=3)

    def student(x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return torch.sin(x_t)

    guided = GuidedNetwork(teacher, Guidance(2.0), u)
    loss = consistency_loss(student, guided, x0, noise, t, t / 2, c)
    expected = consistency_loss(student, teacher, x0, noise, t, t / 2, 2 * c - u)
    torch.testing.assert_close(loss, expected)
    assert loss != consistency_loss(student, teacher, x0, noise, t, t / 2, c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_is_at_least_float32_and_close_to_that_in_float64(dtype):
    student = Net(1)
    teacher = Net(2)
    x0 = normal(64, 2).to(dtype)
    noise = normal(64, 2, seed=1).to(dtype)
    cond = normal(64, seed=2)
    t = times_of(64)
    exact = consistency_loss(student, teacher, x0.double(), noise.double(), t, t / 2, cond)
    loss = consistency_loss(student, teacher, x0, noise, t, t / 2, cond)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"noise": normal(6, 3)}, ValueError, r"expected noise of shape \(6, 2\)"),
        ({"s": torch.full((5,), 0.1)}, ValueError, r"expected s of shape \(6,\)"),
        ({"s": torch.full((6,), 0.6)}, ValueError, "expected end <= s < t"),
        ({"end": 0.3}, ValueError, "expected end <= s < t"),
        ({"t": torch.full((6,), 1.5)}, ValueError, r"expected t in \[0, 1\]"),
        (
            {"t": torch.full((6,), 0.5, dtype=torch.bfloat16)},
            TypeError,
            "expected t to be a float or a float32",
        ),
        ({"huber_c": 0.0}, ValueError, "expected huber_c > 0"),
        ({"method": "ab2"}, ValueError, "unknown method 'ab2'"),
        ({"pred_type": "v"}, ValueError, "unknown pred_type 'v'"),
    ],
)
def test_bad_arguments_are_named(changes, error, message):
    arguments = {
        "x0": normal(6, 2),
        "noise": normal(6, 2),
        "t": torch.full((6,), 0.5),
        "s": torch.full((6,), 0.2),
        **changes,
    }
    inputs = [arguments.pop(name) for name in ("x0", "noise", "t", "s")]
    with pytest.raises(error, match=message):
        consistency_loss(GaussianTeacher(), GaussianTeacher(), *inputs, **arguments)
