"""Knowledge distillation: the student is regressed on the teacher's own ODE trajectories.

It is the warm start of the other methods, or a method by itself. The teacher carries each noise to
one sample along its ODE. On the way its states at the student's rungs are kept, which costs no
call, and the student learns at each rung where that trajectory goes. Two-step Adams-Bashforth with
16 calls is as good a target as 100 Euler steps.

References:
    Luhman & Luhman, Knowledge Distillation in Iterative Generative Models, 2021, arXiv:2101.02388.
    Song & Dhariwal, Improved Techniques for Consistency Models, 2023, arXiv:2310.14189
    (pseudo-Huber loss).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._core.checks import check_choice
from .._core.conditions import cond_to, take_rows
from .._core.masks import real_only, token_mask
from .._core.prefixes import over_open_tokens
from .._core.seeds import draw_rows, generator_for
from .._core.tensors import expand_like, wide_dtype
from ..config.dmd import DMDConfig
from ..config.groups import EMAConfig
from ..config.schemas import DistillConfig
from ..flow_matching import check_t_list
from ..losses import pseudo_huber
from ..networks import Cond, Network, predict_x0, sampling_times, time_range
from ..samplers.student import SAMPLE_TYPES, check_student
from ..samplers.teacher import teacher_velocity
from ..solvers import SOLVERS, integrate
from ..training.draws import Draws
from ..training.stage import Stage, one_update
from ..training.trained_network import TrainedNetwork
from .method import Batch, Method, Networks, PlannedNetwork, Run
from .time_grids import rung_grid, rung_shares

__all__ = [
    "KD",
    "KnowledgeDistillation",
    "kd_loss",
    "on_pairs",
    "pair_rows",
    "planned_loss",
    "teacher_pairs",
]


@torch.no_grad()
def teacher_pairs(
    teacher: Network,
    noise: Tensor,
    cond: Cond,
    t_list: Sequence[float],
    *,
    calls: int = 16,
    method: str = "ab2",
    pred_type: str = "flow",
) -> Tensor:
    """The teacher's ODE states at the student's rungs.

    Args:
        teacher: called `teacher(x_t, t, cond)`; at the times that it declares, else from its
            `t_max` if it has one, else from t = 1, for "eps" from t_1. A guided one is a
            :class:`fastgen.teachers.guided.GuidedNetwork`.
        noise: standard normal, shape (B, ...).
        cond: condition. Where it carries masks, padding is 0 in all states.
        t_list: the student's trajectory, K rungs and 0.0.
        calls, method: the grid (see `rung_grid`) and the solver of the ODE.
        pred_type: what the teacher predicts.

    Returns:
        shape (B, K + 1, ...), dtype of `noise`. `[:, 0]` is the student's own first input
        t_1 noise, `[:, k]` the state at t_list[k], `[:, -1]` the sample x0.
    """
    check_choice("method", method, tuple(SOLVERS))
    times = check_t_list(t_list)
    # At t = 1 a noise prediction says nothing about x0, so such a teacher starts where the student
    # does.
    t_max = times[0] if pred_type == "eps" else max(times[0], time_range(teacher)[1])
    declared = sampling_times(teacher, calls)
    if declared is not None and declared[0] < times[0]:
        # It would begin below the student's first rung, which is within its times all the same.
        declared = [times[0], *declared]
    grid, index = rung_grid(times, calls, t_max=t_max, times=declared)
    velocity = teacher_velocity(teacher, cond, dtype=noise.dtype, pred_type=pred_type)
    wide_noise = real_only(noise.to(wide_dtype(noise.device)), cond)
    wanted = set(index[1:])
    states = [times[0] * wide_noise]
    for i, x in enumerate(integrate(velocity, grid[0] * wide_noise, grid, method)):
        if i in wanted:
            states.append(x)
    return torch.stack([x.to(noise.dtype) for x in states], dim=1)


def pair_rows(pairs: int, rows: int, seed: int, in_order: bool, *, each: int = 1) -> Tensor:
    """The row of the data whose condition each pair has, (pairs,).

    All rows take their turn, `each` pairs at a time. Where the last turn isn't for all of them, it
    is for the first ones, or, where the order of the rows may mean something (`in_order`), for some
    drawn from all over.
    """
    turns = -(-pairs // each)
    found = torch.arange(turns) % rows
    rest = turns % rows
    if in_order and rest:
        found[turns - rest :] = draw_rows(rows, rest, generator_for(seed, "pair rows"))
    return found.repeat_interleave(each)[:pairs]


def kd_loss(
    student: Network,
    states: Tensor,
    t_list: Sequence[float],
    cond: Cond,
    rungs: Tensor,
    *,
    pred_type: str = "flow",
    huber_c: float = 0.02,
    sample_type: str = "ode",
) -> Tensor:
    """Pseudo-Huber regression of the student's x0 at one rung per sample.

    With t = t_list[k], x_t = states[:, k] and r = x0_student - target,

        loss = mean_B ( sqrt(mean_d r^2 + c^2) - c ),    mean_d over what is real.

    The target is what the student's sampler needs at that rung. `sde` re-noises the predicted x0,
    so the target is the end of the trajectory, states[:, -1]. `ode` moves in a straight line to the
    next rung s, so the target is the x0 for which that move lands on the next state,
    x_t - t (x_t - x_s) / (t - s). At the last rung both are the end of the trajectory. The mean
    over d is that of the tokens that the condition does not give.

    Args:
        student: called `student(x_t, t, cond)`.
        states: shape (B, K + 1, ...) from `teacher_pairs`.
        t_list: the student's trajectory, K rungs and 0.0.
        cond: condition.
        rungs: integer indices in [0, K), shape (B,), drawn by the caller.
        pred_type: what the student predicts.
        huber_c: c of :func:`fastgen.losses.pseudo_huber`, > 0.
        sample_type: "sde" or "ode", how the student will be sampled.

    Returns:
        scalar, at least float32.

    Raises:
        ValueError: for shapes that do not fit each other, huber_c <= 0, or what `sample_student`
            would refuse.
    """
    check_choice("sample_type", sample_type, SAMPLE_TYPES)
    times = check_student(t_list, sample_type, pred_type)
    batch = states.shape[0]
    if states.ndim < 3 or states.shape[1] != len(times):
        raise ValueError(
            f"expected states of shape (B, {len(times)}, ...), got {tuple(states.shape)}"
        )
    if rungs.shape != (batch,) or rungs.is_floating_point():
        raise ValueError(
            f"expected rungs to be integers of shape ({batch},), got {rungs.dtype} "
            f"{tuple(rungs.shape)}"
        )

    row = torch.arange(batch, device=states.device)
    rungs = rungs.to(states.device)
    all_times = torch.tensor(times, dtype=wide_dtype(states.device), device=states.device)
    t = all_times[rungs]
    x_t = states[row, rungs]
    x0 = predict_x0(student, x_t, t, cond, pred_type=pred_type, dtype=states.dtype)
    if sample_type == "sde":
        target = states[:, -1]
    else:
        s = all_times[rungs + 1]
        x_s = states[row, rungs + 1]
        target = (x_t - expand_like(t / (t - s), x_t) * (x_t - x_s)).to(states.dtype)
    residual = over_open_tokens(x0 - target, cond)
    return pseudo_huber(residual, huber_c, mask=token_mask(cond))


class KnowledgeDistillation(Stage):
    """Regress the student on the teacher's ODE pairs, over all rungs of `t_list` or the first one
    alone (see :mod:`fastgen.methods.kd`)."""

    def __init__(
        self,
        student: TrainedNetwork,
        states: Tensor,
        cond: Any,
        dmd: DMDConfig,
        updates: int,
        huber_c: float,
        draws: Draws,
        *,
        first_rung_only: bool = False,
        name: str = "kd",
    ) -> None:
        self.name = name
        self.student = student
        self.states = states
        self.cond = cond
        self.dmd = dmd
        self.updates = updates
        self.huber_c = huber_c
        self.draws = draws
        self.num_rungs = 1 if first_rung_only else len(dmd.t_list) - 1

    def update(self, step: int) -> dict[str, Tensor | float]:
        with self.clock.phase("student"):
            return one_update(self.student, step, self._losses, self.draws, *self.batch(step))

    def batch(self, step: int) -> tuple[Tensor, Any, Tensor]:
        """States (B, K + 1, ...), cond and rungs (B,) of batch `step`."""
        with self.clock.phase("data"):
            rows = self.draws.rows(step, len(self.states))
            device = self.draws.device
            return (
                cond_to(self.states[rows], device),
                cond_to(take_rows(self.cond, rows), device),
                self._rungs(step).to(device),
            )

    def _rungs(self, step: int) -> Tensor:
        """This process' share of the rungs of batch `step`, all equally often; those of several
        numbers of calls as often as `rung_shares` says."""
        if len(self.dmd.t_lists) == 1:
            return self.draws.integers(step, "rung", self.num_rungs)
        return self.draws.strata(step, "rung", rung_shares(self.dmd.t_lists.values()))

    def _losses(self, *batch: Any) -> dict[str, Tensor]:
        return {"loss": self.loss(*batch)}

    def loss(self, states: Tensor, cond: Any, rungs: Tensor) -> Tensor:
        """The loss of such a batch, or of a part of it."""
        return kd_loss(
            self.student.network,
            states,
            self.dmd.t_list,
            cond,
            rungs,
            pred_type=self.dmd.pred_type,
            huber_c=self.huber_c,
            sample_type=self.dmd.student_sample_type,
        )

    def batch_rows(self, step: int, part: str) -> Tensor:
        return self.draws.batch_rows(step, len(self.states))

    def trained(self) -> dict[str, TrainedNetwork]:
        return {"student": self.student}

    def averaged(self) -> nn.Module:
        return self.student.averaged()


def on_pairs(
    run: Run,
    student: TrainedNetwork,
    stage: str,
    updates: int,
    *,
    draws: str | None = None,
    first_rung_only: bool = False,
) -> KnowledgeDistillation:
    """KD of `student` on the pairs of a run.

    Args:
        stage: what the stage is called.
        updates: of the student.
        draws: name of its random numbers; None: that of the stage.
        first_rung_only: whether the other rungs are left to another loss.
    """
    states, cond = run.pairs()
    return KnowledgeDistillation(
        student,
        states,
        cond,
        run.cfg.pipeline,
        updates,
        run.cfg.train.kd_huber_c,
        run.draws(stage if draws is None else draws),
        first_rung_only=first_rung_only,
        name=stage,
    )


def planned_loss(networks: Networks, student: nn.Module, batch: Batch) -> Tensor:
    """The KD loss of one micro-batch, on states that have the size of the teacher's."""
    cfg = networks.cfg
    t_list = cfg.student.t_list
    return kd_loss(
        student,
        torch.stack([batch.noise] * len(t_list), 1),
        t_list,
        batch.cond,
        torch.zeros(len(batch.x0), dtype=torch.int64),
        pred_type=cfg.student.pred_type,
        huber_c=cfg.train.kd_huber_c,
        sample_type=cfg.student.sample_type,
    )


class KD(Method):
    """Knowledge distillation: the warm start of every method, and a method of its own."""

    stage = "kd"
    title = "KD"
    colour = "#E69F00"
    heading = "KD: regression on teacher pairs"
    serves_prefixes = True
    remedy = "stop earlier, lower train.kd_optimizer.lr, or raise train.kd_pairs"

    def updates(self, cfg: DistillConfig) -> int:
        return cfg.train.kd_steps

    def complete(self, cfg: DistillConfig) -> DistillConfig:
        """Nothing comes after the warm start."""
        return cfg.model_copy(update={"train": cfg.train.model_copy(update={"steps": 0})})

    def uses_pairs(self, cfg: DistillConfig) -> bool:
        return True

    def build(self, run: Run) -> Stage:
        """The student from the teacher's weights, regressed on the teacher's pairs."""
        train = run.cfg.train
        average = EMAConfig(decay=train.kd_ema_decay)
        student = run.student(train.kd_optimizer, train.kd_steps, average)
        return on_pairs(run, student, self.stage, train.kd_steps)

    def plan(self, networks: Networks, batch: Batch) -> Sequence[PlannedNetwork]:
        student = networks.student()
        loss = functools.partial(planned_loss, networks, student, batch)
        average = EMAConfig(decay=networks.cfg.train.kd_ema_decay)
        return [PlannedNetwork("student", student, loss, average)]
