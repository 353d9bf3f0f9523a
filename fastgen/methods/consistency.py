"""Consistency distillation: the student learns to give one answer all along each of the teacher's
trajectories.

The teacher's ODE carries x_t to x_s, s < t, and both lie on one trajectory, so a student that maps
each to the trajectory's end must answer the same for both. With F the student's map to the time
`end`,

    F(x_t, t) = x_t + (1 - end / t) (x0_student(x_t, t) - x_t)        (= x_t - (t - end) flow),
    x_t       = (1 - t) x0 + t eps,    x_s = one solver step of the teacher from x_t,
    loss      = mean_B ( sqrt(mean_d r^2 + c^2) - c ),    r = F(x_t, t) - stopgrad F_target(x_s, s).

At `end` F(x, end) = x whatever the network says, so there it is true; from there the truth spreads
to larger t, interval by interval. No trajectory is solved or stored: an update costs one teacher
step, one call of the target and one training call of the student.

The map is the one the student's sampler makes. `sde` re-noises a predicted x0, so every time has
end = 0. `ode` moves along the flow to the next rung, so every time has the next rung below it as
its end: consistency in segments (Heek et al.), each of which starts at its rung with the very step
the sampler takes. With one rung the two are the same.

Times are those of a grid, which is refined while training goes on: a coarse grid spreads the truth
fast, a fine one has little solver error. Here it stays coarse, with 16 intervals at the end. With a
step of second order the solver's error is small already, while each interval adds an error of the
student. These add up to samples that spread too far, the more so the higher the learning rate; an
average of the student as target damps them. The continuous limit (Lu & Song) and MeanFlow need
forward-mode derivatives, and MeanFlow also a student with a second time.

References:
    Song et al., Consistency Models, 2023, arXiv:2303.01469. Song & Dhariwal, Improved Techniques
    for Training Consistency Models, 2023, arXiv:2310.14189 (refined grid, pseudo-Huber).
    Heek et al., Multistep Consistency Models, 2024, arXiv:2403.06807. Lu & Song, 2024,
    arXiv:2410.11081. Geng et al., Mean Flows, 2025, arXiv:2505.13447.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._core.checks import check_pred_type, check_shape, check_time
from .._core.conditions import cond_to, take_rows
from .._core.masks import real_only, token_mask
from .._core.modules import as_built, evaluating
from .._core.prefixes import check_no_prefix
from .._core.tensors import EPSILON, expand_like, wide_dtype
from ..config.dmd import DMDConfig
from ..flow_matching import add_noise
from ..losses import pseudo_huber
from ..networks import Cond, Network, predict_x0, time_range
from ..samplers.teacher import teacher_step
from ..teachers.answer import first_gap
from ..training.draws import Draws
from ..training.stage import Stage, one_update
from ..training.trained_network import TrainedNetwork
from .method import Batch, Method, Networks, PlannedNetwork, Run
from .time_grids import consistency_times

__all__ = [
    "Consistency",
    "ConsistencyDistillation",
    "consistency_loss",
]

# At smaller times t_1 noise, which the sampler starts from, is no state of any trajectory.
LEAST_FIRST_RUNG = 0.9


def _check_first_rung(t_list: Sequence[float], name: str, what: str) -> None:
    """Refuse a first rung, called `name`, that `what` cannot train."""
    if t_list[0] < LEAST_FIRST_RUNG:
        raise ValueError(f"expected {name} >= {LEAST_FIRST_RUNG} for {what}, got {t_list[0]}")


# ---- Loss ----------------------------------------------------------------------------------------


def consistency_loss(
    student: Network,
    teacher: Network,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    s: Tensor,
    cond: Cond = None,
    *,
    end: float | Tensor = 0.0,
    pred_type: str = "flow",
    target: Network | None = None,
    huber_c: float = 0.02,
    method: str = "midpoint",
) -> Tensor:
    """Pseudo-Huber distance between the student's answers at two neighbours on a trajectory, see
    the formulas at the head of this module.

    Gradients reach the student at (x_t, t) only, with nothing frozen by the caller. Teacher and
    target answer in eval mode; the student is in the caller's.

    Args:
        student: called `student(x_t, t, cond)`.
        teacher: its velocity takes x_t to x_s. A guided one is a
            :class:`fastgen.teachers.guided.GuidedNetwork`.
        x0: data, shape (B, ...); zeros for pure-noise inputs t eps.
        noise: standard normal eps, the shape of `x0`.
        t, s: shape (B,), 0 <= end <= s < t <= 1.
        cond: condition of all networks.
        end: where the student's map ends, a float or (B,): 0 for x0, or the next rung.
        pred_type: what all networks predict.
        target: network that answers at (x_s, s), such as an average of the student; None: the
            student as it is.
        huber_c: c of :func:`fastgen.losses.pseudo_huber`, > 0.
        method: solver of the teacher's step, see :func:`fastgen.samplers.teacher_step`.

    Returns:
        scalar, at least float32.

    Raises:
        ValueError: for shapes or times that don't fit each other, huber_c <= 0, or what
            `teacher_step` refuses.
        TypeError: for times below float32.
    """
    check_no_prefix(cond, "consistency")
    batch = x0.shape[:1]
    wide = wide_dtype(x0.device)
    check_shape("noise", noise, x0.shape)
    check_pred_type(pred_type)
    ends = end if isinstance(end, Tensor) else t.new_full(tuple(batch), end)
    for name, time in (("t", t), ("s", s), ("end", ends)):
        check_shape(name, time, batch)
        check_time(time, name)
    # Times on an accelerator are not read: see `check_time`.
    if t.device.type == "cpu" and not bool(((t > s) & (s >= ends)).all()):
        raise ValueError("expected end <= s < t for every sample, got times in another order")
    t = t.to(x0.device, wide)
    s = s.to(x0.device, wide)
    ends = ends.to(x0.device, wide)

    x_t = real_only(add_noise(x0.to(wide), noise.to(wide), t), cond)
    answer = _end_of(student, x_t, t, ends, cond, pred_type, x0.dtype)
    with torch.no_grad():
        with evaluating(*_modules(teacher)):
            x_s = teacher_step(
                teacher, x_t, t, s, cond, method=method, pred_type=pred_type, dtype=x0.dtype
            )
        if target is None:
            # Without its wrapper: nothing is to be synchronised for an answer without gradient.
            target = as_built(student) if isinstance(student, nn.Module) else student
        with evaluating(*_modules(target)):
            wanted = _end_of(target, x_s, s, ends, cond, pred_type, x0.dtype)
    # The states are float64, the loss is in the dtype of the data, at least float32.
    residual = (answer - wanted).to(torch.promote_types(x0.dtype, torch.float32))
    return pseudo_huber(residual, huber_c, mask=token_mask(cond))


def _end_of(
    network: Network,
    x_t: Tensor,
    t: Tensor,
    end: Tensor,
    cond: Cond,
    pred_type: str,
    dtype: torch.dtype,
) -> Tensor:
    """F(x_t, t) = x_t + (1 - end / t) (x0 - x_t), and x_t itself at t = end, zero included."""
    x0 = predict_x0(network, x_t, t, cond, pred_type=pred_type, dtype=dtype)
    return x_t + expand_like((t - end) / t.clamp(min=EPSILON), x_t) * (x0 - x_t)


def _modules(network: Network) -> tuple[nn.Module, ...]:
    """The network if it is a module, for `evaluating`."""
    return (network,) if isinstance(network, nn.Module) else ()


class ConsistencyDistillation(Stage):
    """One answer along each trajectory of the teacher, from data and one teacher step (see
    :mod:`fastgen.methods.consistency`).

    Times run over [0, t_1], on a grid that holds every rung and is refined while training goes on.
    At the first rung the student sees t_1 noise alone, as its sampler does, and not
    (1 - t_1) x0 + t_1 noise, as noised data would be.

    Args:
        student: starts from the teacher's weights. Its EMA, if it keeps one, is the target network;
            else itself.
        teacher: called `teacher(x_t, t, cond)`, predicts `dmd.pred_type`.
        x0: data (N, ...) in the networks' units.
        cond: its conditions, N rows each, or None.
        dmd: of it `t_list`, `student_sample_type`, `pred_type`.
        updates: in all.
        huber_c: c of the pseudo-Huber loss.
        draws: of this stage.
        first, last: intervals of the grid at the start and at the end.
        method: solver of the teacher's step; "euler" costs one call of the teacher, the others two
            or more.

    Raises:
        ValueError: a first rung below .9: there t_1 noise, which the sampler starts from, is no
            state of any trajectory.
    """

    name = "consistency"

    def __init__(
        self,
        student: TrainedNetwork,
        teacher: nn.Module,
        x0: Tensor,
        cond: Any,
        dmd: DMDConfig,
        updates: int,
        huber_c: float,
        draws: Draws,
        *,
        first: int = 4,
        last: int = 16,
        method: str = "midpoint",
    ) -> None:
        _check_first_rung(dmd.t_list, "t_list[0]", "consistency distillation")
        self.student = student
        self.teacher = teacher
        self.x0 = x0
        self.cond = cond
        self.dmd = dmd
        self.updates = updates
        self.huber_c = huber_c
        self.draws = draws
        self.first = first
        self.last = last
        self.method = method
        self._target: nn.Module | None = None

    def update(self, step: int) -> dict[str, Tensor | float]:
        with self.clock.phase("student"):
            losses = functools.partial(self._losses, self._target_now())
            return one_update(self.student, step, losses, self.draws, *self._batch(step))

    def _batch(self, step: int) -> tuple[Any, ...]:
        """x0 (0 at the first rung), noise, t, s, end and cond of update `step`."""
        draws = self.draws
        device = self.draws.device
        with self.clock.phase("data"):
            rows = draws.rows(step, len(self.x0))
            x0 = cond_to(self.x0[rows], device)
            cond = cond_to(take_rows(self.cond, rows), device)
            noise = draws.normal(step, "eps", tuple(x0.shape[1:]))
            t, s, end = self._times(step)
        pure = (t == self.dmd.t_list[0]).view(-1, *(1,) * (x0.ndim - 1))
        return torch.where(pure, 0.0, x0), noise, t, s, end, cond

    def _losses(
        self,
        target: nn.Module | None,
        x0: Tensor,
        noise: Tensor,
        t: Tensor,
        s: Tensor,
        end: Tensor,
        cond: Any,
    ) -> dict[str, Tensor]:
        loss = consistency_loss(
            self.student.network,
            self.teacher,
            x0,
            noise,
            t,
            s,
            cond,
            end=end,
            pred_type=self.dmd.pred_type,
            target=target,
            huber_c=self.huber_c,
            method=self.method,
        )
        return {"loss": loss}

    def cause(self, step: int, part: str) -> str | None:
        first, last = time_range(self.teacher)
        times = [first + (i + 0.5) / 16 * (last - first) for i in range(16)]
        rows = self.batch_rows(step, part).unique()
        return first_gap({"the teacher": self.teacher}, self.x0, self.cond, rows, times)

    def _target_now(self) -> nn.Module | None:
        """The student's average as it is now, None without one. It depends on nothing but what a
        checkpoint holds."""
        if self.student.ema is None:
            return None
        if self._target is None:
            self._target = self.student.averaged()
        else:
            self.student.ema.copy_to(self._target)
        return self._target

    def _times(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """This process' share of (t, s, end), on its device."""
        draws = self.draws
        t, s, end = consistency_times(
            draws.batch_size,
            min(1.0, step / max(1, self.updates)),
            self.dmd.t_list,
            sample_type=self.dmd.student_sample_type,
            first=self.first,
            last=self.last,
            generator=draws.generator(step, "t"),
        )
        share = draws.slice
        return t[share].to(draws.device), s[share].to(draws.device), end[share].to(draws.device)

    def batch_rows(self, step: int, part: str) -> Tensor:
        return self.draws.batch_rows(step, len(self.x0))

    def trained(self) -> dict[str, TrainedNetwork]:
        return {"student": self.student}

    def averaged(self) -> nn.Module:
        return self.student.averaged()


class Consistency(Method):
    """Consistency distillation of the KD student."""

    stage = "consistency"
    title = "consistency"

    def check(self, networks: Networks, *, processes: int, sharded: bool) -> None:
        super().check(networks, processes=processes, sharded=sharded)
        _check_first_rung(networks.cfg.student.t_list, "student.t_list[0]", "method=consistency")

    def build(self, run: Run) -> Stage:
        train = run.cfg.train
        return ConsistencyDistillation(
            run.student(train.student_optimizer, train.steps, run.cfg.student.ema),
            run.teacher_in_training(),
            run.networks.x0,
            run.networks.cond,
            run.cfg.pipeline,
            train.steps,
            train.kd_huber_c,
            run.draws(self.stage),
        )

    def plan(self, networks: Networks, batch: Batch) -> Sequence[PlannedNetwork]:
        cfg = networks.cfg
        student = networks.student()

        def loss() -> Tensor:
            t, s, end = consistency_times(
                len(batch.x0),
                0.0,
                cfg.student.t_list,
                sample_type=cfg.student.sample_type,
                generator=torch.Generator().manual_seed(0),
            )
            return consistency_loss(
                student,
                networks.teacher,
                batch.x0,
                batch.noise,
                t,
                s,
                batch.cond,
                end=end,
                pred_type=cfg.student.pred_type,
                huber_c=cfg.train.kd_huber_c,
            )

        planned = [PlannedNetwork("student", student, loss, cfg.student.ema)]
        if cfg.student.ema is not None:
            # A whole copy even of a sharded student, on its device.
            planned.append(PlannedNetwork("target", networks.student(), trained=False))
        return planned
