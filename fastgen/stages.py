"""What one update of each training stage is: flow matching, KD warm start, DMD, consistency
distillation.

A stage owns networks with their optimisers and says what `update(step)` does;
:class:`fastgen.trainer.Trainer` owns the loop, the clock, the log and the checkpoints. Every draw
is a pure function of (seed, stage, step), so that a resumed run makes the very draws of an
uninterrupted one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ._tensor import cond_to, expand_like, map_tensors, take_rows
from .config import DMDConfig, TeacherTrainConfig
from .consistency import consistency_loss, consistency_times
from .diagnostics import diagnose
from .dmd import DMDPipeline, Generated
from .draws import Draws
from .flow_matching import add_noise, sample_timesteps
from .kd import kd_loss
from .losses import check_guidance, dsm_loss
from .run_log import PhaseClock
from .trained_network import TrainedNetwork

DIAGNOSED_ROWS = 256


class Stage(Protocol):
    """One part of a run: `steps` calls of `update`. A class that says so inherits what it need not
    offer.

    Attributes:
        warmup: first updates that leave the network of `averaged` as it was.
        clock: what counts the seconds of an update by phase; the trainer gives it its own.
    """

    name: str
    steps: int
    warmup: int = 0
    clock: PhaseClock = PhaseClock()

    def update(self, step: int) -> dict[str, Tensor | float]:
        """Do update `step` and return what is worth logging."""
        ...

    def trained(self) -> dict[str, TrainedNetwork]:
        """The networks whose state a checkpoint must hold."""
        ...

    def averaged(self) -> nn.Module:
        """The network whose quality the stage is about, with EMA weights."""
        ...

    def diagnose(self, step: int) -> dict[str, float | list[float]]:
        """What is logged beside the scores after `step` updates, drawn from generators of its own;
        nothing: {}."""
        return {}

    def batch_rows(self, step: int, part: str) -> Tensor:
        """Rows of the data in the batch, over all processes, of update `step` of the network `part`
        of `trained`."""
        return torch.empty(0, dtype=torch.int64)


Losses = Callable[
    ..., dict[str, Tensor]
]  # of one micro-batch, by name; what is descended is "total", or "loss"


def _split(draws: Draws, *batch: Any) -> list[tuple[Any, ...]]:
    """The micro-batches of a process' share, each with its part of every part of the batch."""
    parts = [draws.micro_batches(value) for value in batch]
    return [tuple(part[j] for part in parts) for j in range(draws.accumulation)]


def _update(
    network: TrainedNetwork, step: int, losses: Losses, draws: Draws, *batch: Any
) -> dict[str, Any]:
    """One update of `network` on `losses(*batch)`, micro-batch by micro-batch."""
    return _accumulate(network, step, lambda part: losses(*part), (_split(draws, *batch),))


def _accumulate(
    network: TrainedNetwork, step: int, losses: Losses, parts: tuple[Sequence[Any], ...]
) -> dict[str, Tensor | float]:
    """One update of `network` on the mean of `losses(*part)` over the micro-batches; the means,
    norm and rate."""
    logs: dict[str, Tensor | float] = {}

    def of(part: tuple[Any, ...]) -> Tensor:
        found = losses(*part)
        for name, value in found.items():
            logs[name] = logs.get(name, 0.0) + value.detach() / len(parts[0])
        return found["total" if "total" in found else "loss"]

    done = network.update([functools.partial(of, part) for part in zip(*parts, strict=True)], step)
    return logs | done


class FlowMatching(Stage):
    """Flow matching on data: regress v(x_t, t, cond) on eps - x0 (Lipman et al. 2023,
    arXiv:2210.02747)."""

    name = "flow_matching"

    def __init__(
        self, network: TrainedNetwork, x0: Tensor, cond: Any, cfg: TeacherTrainConfig, draws: Draws
    ) -> None:
        self.network = network
        self.x0 = x0
        self.cond = cond
        self.cfg = cfg
        self.draws = draws
        self.steps = cfg.steps

    def update(self, step: int) -> dict[str, Tensor | float]:
        with self.clock.phase("data"):
            x0, eps, t, cond = self._batch(step)
        with self.clock.phase("network"):
            return _update(self.network, step, self._losses, self.draws, x0, eps, t, cond)

    def _losses(self, x0: Tensor, eps: Tensor, t: Tensor, cond: Any) -> dict[str, Tensor]:
        pred = self.network.network(add_noise(x0, eps, t), t, cond)
        return {"loss": dsm_loss("flow", pred, x0=x0, eps=eps, t=t)}

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Any]:
        """x0, noise, times and cond of update `step`."""
        rows = self.draws.rows(step, len(self.x0))
        x0 = cond_to(self.x0[rows], self.draws.device)
        cond = cond_to(take_rows(self.cond, rows), self.draws.device)
        eps = self.draws.normal(step, "eps", tuple(x0.shape[1:]))
        t = self._times(step).to(x0.device)
        if self.cfg.cond_dropout:
            kept = self.draws.uniform(step, "cond") >= self.cfg.cond_dropout
            cond = map_tensors(lambda value: value * expand_like(kept.to(value), value), cond)
        return x0, eps, t, cond

    def _times(self, step: int) -> Tensor:
        draws = self.draws
        t = sample_timesteps(
            draws.batch_size,
            self.cfg.t,
            device=torch.device("cpu"),
            generator=draws.generator(step, "t"),
        )
        return t[draws.slice]

    def batch_rows(self, step: int, part: str) -> Tensor:
        return self.draws.batch_rows(step, len(self.x0))

    def trained(self) -> dict[str, TrainedNetwork]:
        return {"network": self.network}

    def averaged(self) -> nn.Module:
        return self.network.averaged()


class KnowledgeDistillation(Stage):
    """Regress the student on the teacher's ODE pairs, over all rungs of `t_list` (see
    :mod:`fastgen.kd`)."""

    name = "kd"

    def __init__(
        self,
        student: TrainedNetwork,
        states: Tensor,
        cond: Any,
        dmd: DMDConfig,
        steps: int,
        huber_c: float,
        draws: Draws,
    ) -> None:
        self.student = student
        self.states = states
        self.cond = cond
        self.dmd = dmd
        self.steps = steps
        self.huber_c = huber_c
        self.draws = draws

    def update(self, step: int) -> dict[str, Tensor | float]:
        with self.clock.phase("student"):
            return _update(self.student, step, self._losses, self.draws, *self.batch(step))

    def batch(self, step: int) -> tuple[Tensor, Any, Tensor]:
        """States (B, K + 1, ...), cond and rungs (B,) of batch `step`."""
        with self.clock.phase("data"):
            rows = self.draws.rows(step, len(self.states))
            device = self.draws.device
            rungs = self.draws.integers(step, "rung", self.dmd.student_steps).to(device)
            return (
                cond_to(self.states[rows], device),
                cond_to(take_rows(self.cond, rows), device),
                rungs,
            )

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


class Judge(NamedTuple):
    """A network that is trained beside the student, to judge it.

    Attributes:
        name: prefix of its draws and logs.
        network: with its optimiser.
        loss: name of the pipeline's method.
        warmup: updates before the first student update.
        turns: updates after each student update.
    """

    name: str
    network: TrainedNetwork
    loss: str
    warmup: int
    turns: int

    def updates(self, step: int, warmup: int) -> range:
        """The numbers of its own updates that belong to `step` of a stage whose warm-up has
        `warmup` steps."""
        if step < warmup:
            first = step - (warmup - self.warmup)
            return range(max(first, 0), first + 1)
        first = self.warmup + (step - warmup) * self.turns
        return range(first, first + self.turns)


class DistributionMatching(Stage):
    """DMD2, or the GAN alone (LADD): warm-up of fake score and discriminator, then they and the
    student take turns.

    After every student update come `fake_steps_per_student_step` updates of the fake score and
    `gan_disc_steps_per_student_step` of the discriminator, where there are such networks. The first
    of each may take the samples that the student was just trained on (`fake_score_reuse_batch`).
    Both warm-ups end together.

    Args:
        student: the network to distil.
        fake_score: None where the pipeline has none.
        pipeline: the losses.
        x0, cond: training data as networks see them.
        dmd: as the pipeline's.
        steps: student updates.
        discriminator: the pipeline's, or None.
        pairs: KD on teacher pairs, whose loss is added with `kd_weight`; None: there is none.
        name: of the stage.
    """

    def __init__(
        self,
        student: TrainedNetwork,
        fake_score: TrainedNetwork | None,
        pipeline: DMDPipeline,
        x0: Tensor,
        cond: Any,
        dmd: DMDConfig,
        steps: int,
        draws: Draws,
        *,
        discriminator: TrainedNetwork | None = None,
        pairs: KnowledgeDistillation | None = None,
        name: str = "dmd",
    ) -> None:
        self.student = student
        self.pipeline = pipeline
        self.pairs = pairs
        self.name = name
        self.x0 = x0
        self.cond = cond
        self.dmd = dmd
        self.draws = draws
        self.judges: list[Judge] = []
        if fake_score is not None:
            updates = dmd.fake_score_warmup_steps, dmd.fake_steps_per_student_step
            self.judges.append(Judge("fake", fake_score, "compute_fake_score_loss", *updates))
        if discriminator is not None:
            updates = dmd.gan_disc_warmup_steps, dmd.gan_disc_steps_per_student_step
            self.judges.append(Judge("disc", discriminator, "compute_discriminator_loss", *updates))
        self.warmup = max((judge.warmup for judge in self.judges), default=0) if steps else 0
        self.steps = self.warmup + steps

    def update(self, step: int) -> dict[str, Tensor | float]:
        logs: dict[str, Tensor | float] = {}
        made: list[Generated] = []
        if step >= self.warmup:
            with self.clock.phase("student"):
                made = self._update_student(step, logs)
        for judge in self.judges:
            for index in judge.updates(step, self.warmup):
                first = step >= self.warmup and index == judge.updates(step, self.warmup)[0]
                reused = made if first and self.dmd.fake_score_reuse_batch else []
                with self.clock.phase(judge.name):
                    self._update_judge(judge, step, index, reused, logs)
        # What a stage is watched by: the student's first loss, in the warm-up a judge's.
        logs["loss"] = next(iter(logs.values()))
        return logs

    def diagnose(self, step: int) -> dict[str, float | list[float]]:
        """What shows a collapse (:mod:`fastgen.diagnostics`), on rows and draws that (seed, step)
        alone decide."""
        generator = self.draws.generator(step, "diagnose")
        rows = torch.randperm(len(self.x0), generator=generator)[:DIAGNOSED_ROWS]
        x0 = cond_to(self.x0[rows], self.draws.device)
        cond = cond_to(take_rows(self.cond, rows), self.draws.device)
        return diagnose(self.pipeline, x0, cond, generator=generator)

    def _update_student(self, step: int, logs: dict[str, Tensor | float]) -> list[Generated]:
        """One update; the samples it was made on, a micro-batch each."""
        made: list[Generated] = []

        def loss(
            pipeline: DMDPipeline, batch: tuple[Tensor, Tensor, Any], pairs: tuple[Any, ...]
        ) -> dict[str, Tensor]:
            generator = self.draws.generator(step, "student")
            generated = pipeline.generate(*batch, generator=generator)
            losses = pipeline.compute_student_loss(*batch, generated=generated, generator=generator)
            made.append(generated.detach())
            if self.pairs is not None:
                losses["kd"] = self.pairs.loss(*pairs)
                losses["total"] = losses["total"] + self.dmd.kd_weight * losses["kd"]
            return losses

        pairs = () if self.pairs is None else self.pairs.batch(step)
        parts = self._pipelines(), self._split(*self._batch(step, "student")), self._split(*pairs)
        logs |= _accumulate(self.student, step - self.warmup, loss, parts)
        return made

    def _update_judge(
        self,
        judge: Judge,
        step: int,
        index: int,
        made: list[Generated],
        logs: dict[str, Tensor | float],
    ) -> None:
        if made:
            name = f"{judge.name}0"
            batch = self._batch(step, "student")
        else:
            name = f"{judge.name}{index - judge.updates(step, self.warmup)[0]}"
            batch = self._batch(step, name, index)

        def loss(
            pipeline: DMDPipeline, batch: tuple[Tensor, Tensor, Any], generated: Generated | None
        ) -> dict[str, Tensor]:
            # Each part of the batch starts from the same state, draws for the whole and keeps its
            # own.
            generator = self.draws.generator(step, name)
            return getattr(pipeline, judge.loss)(*batch, generated=generated, generator=generator)

        parts = self._pipelines(), self._split(*batch), made or [None] * self.draws.accumulation
        done = _accumulate(judge.network, index, loss, parts)
        norm = done.pop("grad_norm")
        logs |= {key: value for key, value in done.items() if key not in ("total", "lr")}
        logs[f"{judge.name}_grad_norm"] = norm

    def _pipelines(self) -> list[DMDPipeline]:
        """The pipeline of each micro-batch."""
        k = self.draws.accumulation
        return [self.pipeline.micro_batch(j, k) for j in range(k)]

    def _split(self, *batch: Any) -> list[tuple[Any, ...]]:
        return _split(self.draws, *batch)

    def _batch(self, step: int, name: str, index: int | None = None) -> tuple[Tensor, Tensor, Any]:
        """x0, noise and cond of one update; `index` counts the updates of its network, and so its
        batches."""
        with self.clock.phase("data"):
            rows = self.draws.rows(step if index is None else index, len(self.x0))
            x0 = cond_to(self.x0[rows], self.draws.device)
            cond = cond_to(take_rows(self.cond, rows), self.draws.device)
            return x0, self.draws.normal(step, f"noise-{name}", tuple(x0.shape[1:])), cond

    def batch_rows(self, step: int, part: str) -> Tensor:
        batches = [step]
        for judge in self.judges:
            if judge.network is self.trained()[part]:
                batches = list(judge.updates(step, self.warmup))
                if step >= self.warmup and self.dmd.fake_score_reuse_batch:
                    batches[:1] = [step]
        return torch.cat([self.draws.batch_rows(batch, len(self.x0)) for batch in batches])

    def trained(self) -> dict[str, TrainedNetwork]:
        names = {"fake": "fake_score", "disc": "discriminator"}
        return {"student": self.student} | {
            names[judge.name]: judge.network for judge in self.judges
        }

    def averaged(self) -> nn.Module:
        return self.student.averaged()


class ConsistencyDistillation(Stage):
    """One answer along each trajectory of the teacher, from data and one teacher step (see
    :mod:`fastgen.consistency`).

    Times run over [0, t_1], on a grid of which every rung is a point and that is refined as `step`
    nears `steps`. At the first rung the student sees t_1 noise, as its sampler does, without the (1
    - t_1) x0 of noised data.

    Args:
        student: starts from the teacher's weights. Its EMA, if it keeps one, is the target network;
            else itself.
        teacher: called `teacher(x_t, t, cond)`, predicts `dmd.pred_type`.
        x0: data (N, ...) in the networks' units.      cond: its conditions, N rows each, or None.
        dmd: of it `t_list`, `student_sample_type`, `pred_type`, `guidance_scale`.
        steps: updates.      huber_c: c of the pseudo-Huber loss.      draws: of this stage.
        first, last: intervals of the grid at the start and at the end.
        method: solver of the teacher's step; "euler" costs one call of the teacher, the others two
            or more.
        negative_cond: for a guided teacher, N rows.

    Raises:
        ValueError: guidance without `negative_cond`; a first rung below .9: there t_1 noise, which
            the sampler starts from, is no state of any trajectory.
    """

    name = "consistency"
    least_first_rung = 0.9

    def __init__(
        self,
        student: TrainedNetwork,
        teacher: nn.Module,
        x0: Tensor,
        cond: Any,
        dmd: DMDConfig,
        steps: int,
        huber_c: float,
        draws: Draws,
        *,
        first: int = 4,
        last: int = 16,
        method: str = "midpoint",
        negative_cond: Any = None,
    ) -> None:
        check_guidance(dmd.guidance_scale, negative_cond)
        if dmd.t_list[0] < self.least_first_rung:
            raise ValueError(
                f"expected t_list[0] >= {self.least_first_rung} for consistency distillation, got "
                f"{dmd.t_list[0]}"
            )
        self.student = student
        self.teacher = teacher
        self.x0 = x0
        self.cond = cond
        self.dmd = dmd
        self.steps = steps
        self.huber_c = huber_c
        self.draws = draws
        self.first = first
        self.last = last
        self.method = method
        self.negative_cond = negative_cond
        self._target: nn.Module | None = None

    def update(self, step: int) -> dict[str, Tensor | float]:
        with self.clock.phase("student"):
            losses = functools.partial(self._losses, self._judge())
            return _update(self.student, step, losses, self.draws, *self._batch(step))

    def _batch(self, step: int) -> tuple[Any, ...]:
        """x0 (0 at the first rung), noise, t, s, end, cond and the negative one of update
        `step`."""
        draws = self.draws
        device = self.draws.device
        with self.clock.phase("data"):
            rows = draws.rows(step, len(self.x0))
            x0 = cond_to(self.x0[rows], device)
            cond, negative = (
                cond_to(take_rows(value, rows), device) for value in (self.cond, self.negative_cond)
            )
            noise = draws.normal(step, "eps", tuple(x0.shape[1:]))
            t, s, end = (time.to(device) for time in self._times(step))
        pure = (t == self.dmd.t_list[0]).view(-1, *(1,) * (x0.ndim - 1))
        return torch.where(pure, 0.0, x0), noise, t, s, end, cond, negative

    def _losses(
        self,
        target: nn.Module | None,
        x0: Tensor,
        noise: Tensor,
        t: Tensor,
        s: Tensor,
        end: Tensor,
        *conds: Any,
    ) -> dict[str, Tensor]:
        cond, negative = conds
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
            guidance_scale=self.dmd.guidance_scale,
            negative_cond=negative,
        )
        return {"loss": loss}

    def _judge(self) -> nn.Module | None:
        """The student's average as it is now, None without one: what a checkpoint holds is all
        there is to it."""
        if self.student.ema is None:
            return None
        if self._target is None:
            self._target = self.student.averaged()
        else:
            self.student.ema.copy_to(self._target)
        return self._target

    def _times(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """This process' share of (t, s, end)."""
        draws = self.draws
        t, s, end = consistency_times(
            draws.batch_size,
            min(1.0, step / max(1, self.steps)),
            self.dmd.t_list,
            sample_type=self.dmd.student_sample_type,
            first=self.first,
            last=self.last,
            generator=draws.generator(step, "t"),
        )
        return t[draws.slice], s[draws.slice], end[draws.slice]

    def batch_rows(self, step: int, part: str) -> Tensor:
        return self.draws.batch_rows(step, len(self.x0))

    def trained(self) -> dict[str, TrainedNetwork]:
        return {"student": self.student}

    def averaged(self) -> nn.Module:
        return self.student.averaged()
