"""What one update of each training stage is: flow matching, KD warm start, DMD, consistency distillation.

A stage owns networks with their optimisers and says what `update(step)` does; :class:`fastgen.trainer.Trainer` owns the
loop, the clock, the log and the checkpoints. Every draw is a pure function of (seed, stage, step), so that a resumed
run makes the very draws of an uninterrupted one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ._tensor import check_choice, cond_to, generator_for, take_rows
from .checkpoint import add_prefix, flatten_optimizer, unflatten_optimizer, with_prefix
from .config import DMDConfig, EMAConfig, OptimizerConfig, TeacherTrainConfig
from .consistency import ONE_STEP_SOLVERS, consistency_loss, consistency_times
from .dmd import DMDPipeline
from .ema import ExponentialMovingAverage
from .flow_matching import add_noise, sample_timesteps
from .kd import kd_loss
from .losses import check_guidance, dsm_loss

if TYPE_CHECKING:
    from accelerate import Accelerator


class Draws:
    """The random numbers of one stage, each a pure function of (seed, stage, step, name).

    The whole global batch is drawn everywhere and sliced, so what a sample sees does not depend on the number of
    processes.
    """

    def __init__(self, seed: int, stage: str, accelerator: Accelerator, batch_size: int) -> None:
        world, rank = accelerator.num_processes, accelerator.process_index
        if batch_size % world:
            raise ValueError(f"expected train.batch_size divisible by the {world} processes, got {batch_size}")
        self.seed, self.stage, self.device, self.batch_size = seed, stage, accelerator.device, batch_size
        self.slice = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self._rank = rank
        self._epoch: tuple[int, Tensor] | None = None

    def generator(self, step: int, name: str, *, shared: bool = True) -> torch.Generator:
        """Fresh CPU generator; `shared` ones are equal on all processes."""
        return generator_for(self.seed, self.stage, name, step, 0 if shared else self._rank)

    def rows(self, step: int, n: int) -> Tensor:
        """This process' share of the rows of batch `step`: epochs of shuffled rows, each row once an epoch."""
        sample, last, parts = step * self.batch_size, (step + 1) * self.batch_size, []
        while sample < last:
            epoch, offset = divmod(sample, n)
            take = min(n - offset, last - sample)
            parts.append(self._permutation(epoch, n)[offset : offset + take])
            sample += take
        return torch.cat(parts)[self.slice]

    def normal(self, step: int, name: str, shape: tuple[int, ...]) -> Tensor:
        """This process' share of standard normal noise of the global batch; `shape` without the batch."""
        noise = torch.randn(self.batch_size, *shape, generator=self.generator(step, name))
        return noise[self.slice].to(self.device)

    def integers(self, step: int, name: str, high: int) -> Tensor:
        """This process' share of uniform integers in [0, high)."""
        return torch.randint(high, (self.batch_size,), generator=self.generator(step, name))[self.slice]

    def _permutation(self, epoch: int, n: int) -> Tensor:
        if self._epoch is None or self._epoch[0] != epoch or len(self._epoch[1]) != n:
            self._epoch = (epoch, torch.randperm(n, generator=self.generator(epoch, "rows")))
        return self._epoch[1]


class TrainedNetwork:
    """A network with its optimiser, its learning-rate law and, if asked for, its EMA.

    `total` updates make one cosine. An update whose gradient is not finite is skipped; `most_skipped` of them in a row
    end the run with FloatingPointError, since the weights cannot be going anywhere.
    """

    most_skipped = 10

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerConfig,
        total: int,
        accelerator: Accelerator,
        *,
        ema: EMAConfig | None = None,
    ) -> None:
        self.accelerator, self.cfg, self.total = accelerator, optimizer, total
        self.bare = network.to(accelerator.device)
        groups = getattr(network, "get_optim_groups", None)
        parameters = groups(optimizer.weight_decay) if groups is not None else network.parameters()
        adam = torch.optim.AdamW(
            parameters, lr=optimizer.lr, betas=optimizer.betas, weight_decay=optimizer.weight_decay, fused=True
        )
        self.network = accelerator.prepare(self.bare)
        self.optimizer = accelerator.prepare(adam)
        self.ema = None if ema is None else ExponentialMovingAverage(self.bare, ema)
        self.skipped = 0

    def update(self, loss: Tensor, step: int) -> dict[str, float]:
        """One optimiser step on `loss`; returns the gradient norm and the learning rate."""
        lr = self.cfg.lr_at(step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.accelerator.backward(loss)
        norm_tensor: Any = self.accelerator.clip_grad_norm_(self.bare.parameters(), self.cfg.clip_grad_norm)
        norm = float(norm_tensor)
        # The norm is the same on all processes, a loss is each one's own: all must skip, or none.
        if math.isfinite(norm):
            self.skipped = 0
            self.optimizer.step()
        else:
            self.skipped += 1
            if self.skipped >= self.most_skipped:
                raise FloatingPointError(
                    f"the loss or its gradient was not finite in {self.skipped} updates in a row, up to {step}; "
                    "lower the learning rate or look at the data; the last checkpoint is intact"
                )
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.bare, iteration=step + 1)
        return {"grad_norm": norm, "lr": lr}

    def averaged(self) -> nn.Module:
        """A copy with the EMA weights (the weights themselves without an EMA), in eval mode."""
        network = copy.deepcopy(self.bare)
        if self.ema is not None:
            self.ema.copy_to(network)
        return network.eval()

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resume needs."""
        state = add_prefix("weights", self.bare.state_dict()) | flatten_optimizer(self.optimizer, "optimizer")
        if self.ema is not None:
            state |= add_prefix("ema", self.ema.state_dict())
        return state

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`tensors`; a missing part is an error."""
        self.bare.load_state_dict(with_prefix(tensors, "weights"))
        unflatten_optimizer(self.optimizer, "optimizer", tensors)
        if self.ema is not None:
            self.ema.load_state_dict(with_prefix(tensors, "ema"))


class Stage(Protocol):
    """One part of a run: `steps` calls of `update`."""

    name: str
    steps: int

    def update(self, step: int) -> dict[str, Tensor | float]:
        """Do update `step` and return what is worth logging."""
        ...

    def trained(self) -> dict[str, TrainedNetwork]:
        """The networks whose state a checkpoint must hold."""
        ...

    def averaged(self) -> nn.Module:
        """The network whose quality the stage is about, with EMA weights."""
        ...


class FlowMatching:
    """Flow matching on data: regress v(x_t, t, cond) on eps - x0 (Lipman et al. 2023, arXiv:2210.02747)."""

    name = "flow_matching"

    def __init__(self, network: TrainedNetwork, x0: Tensor, cond: Any, cfg: TeacherTrainConfig, draws: Draws) -> None:
        self.network, self.x0, self.cond, self.cfg, self.draws, self.steps = network, x0, cond, cfg, draws, cfg.steps

    def update(self, step: int) -> dict[str, Tensor | float]:
        rows = self.draws.rows(step, len(self.x0))
        x0, cond = self.x0[rows].to(self.draws.device), cond_to(take_rows(self.cond, rows), self.draws.device)
        eps = self.draws.normal(step, "eps", tuple(x0.shape[1:]))
        t = self._times(step).to(x0.device)
        pred = self.network.network(add_noise(x0, eps, t), t, cond)
        loss = dsm_loss("flow", pred, x0=x0, eps=eps, t=t)
        return {"loss": loss.detach(), **self.network.update(loss, step)}

    def _times(self, step: int) -> Tensor:
        draws = self.draws
        t = sample_timesteps(
            draws.batch_size, self.cfg.t, device=torch.device("cpu"), generator=draws.generator(step, "t")
        )
        return t[draws.slice]

    def trained(self) -> dict[str, TrainedNetwork]:
        return {"network": self.network}

    def averaged(self) -> nn.Module:
        return self.network.averaged()


class KnowledgeDistillation:
    """Regress the student on the teacher's ODE pairs, over all rungs of `t_list` (see :mod:`fastgen.kd`)."""

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
        self.student, self.states, self.cond, self.dmd = student, states, cond, dmd
        self.steps, self.huber_c, self.draws = steps, huber_c, draws

    def update(self, step: int) -> dict[str, Tensor | float]:
        rows = self.draws.rows(step, len(self.states))
        states, cond = self.states[rows].to(self.draws.device), cond_to(take_rows(self.cond, rows), self.draws.device)
        rungs = self.draws.integers(step, "rung", self.dmd.student_steps).to(states.device)
        loss = kd_loss(
            self.student.network,
            states,
            self.dmd.t_list,
            cond,
            rungs,
            pred_type=self.dmd.pred_type,
            huber_c=self.huber_c,
            sample_type=self.dmd.student_sample_type,
        )
        return {"loss": loss.detach(), **self.student.update(loss, step)}

    def trained(self) -> dict[str, TrainedNetwork]:
        return {"student": self.student}

    def averaged(self) -> nn.Module:
        return self.student.averaged()


class DistributionMatching:
    """DMD2: fake-score warm-up, then `fake_steps_per_student_step` fake-score updates after every student update."""

    name = "dmd"

    def __init__(
        self,
        student: TrainedNetwork,
        fake_score: TrainedNetwork,
        pipeline: DMDPipeline,
        x0: Tensor,
        cond: Any,
        dmd: DMDConfig,
        steps: int,
        draws: Draws,
    ) -> None:
        self.student, self.fake_score, self.pipeline = student, fake_score, pipeline
        self.x0, self.cond, self.dmd, self.draws = x0, cond, dmd, draws
        self.warmup = dmd.fake_score_warmup_steps if steps else 0
        self.steps = self.warmup + steps

    def update(self, step: int) -> dict[str, Tensor | float]:
        logs: dict[str, Tensor | float] = {}
        if step >= self.warmup:
            losses = self.pipeline.compute_student_loss(
                *self._batch(step, "student"), **self._generator(step, "student")
            )
            logs |= {name: value.detach() for name, value in losses.items()}
            logs |= self.student.update(losses["total"], step - self.warmup)
        fake_updates = self.dmd.fake_steps_per_student_step if step >= self.warmup else 1
        for k in range(fake_updates):
            name = f"fake{k}"
            losses = self.pipeline.compute_fake_score_loss(*self._batch(step, name), **self._generator(step, name))
            done = self.fake_score.update(losses["total"], self._fake_step(step, k))
            logs |= {"fake_score": losses["fake_score"].detach(), "fake_grad_norm": done["grad_norm"]}
        logs.setdefault("loss", logs.get("vsd", logs["fake_score"]))
        return logs

    def _fake_step(self, step: int, k: int) -> int:
        if step < self.warmup:
            return step
        return self.warmup + (step - self.warmup) * self.dmd.fake_steps_per_student_step + k

    def _batch(self, step: int, name: str) -> tuple[Tensor, Tensor, Any]:
        index = self._fake_step(step, int(name[4:])) if name.startswith("fake") else step
        rows = self.draws.rows(index, len(self.x0))
        x0, cond = self.x0[rows].to(self.draws.device), cond_to(take_rows(self.cond, rows), self.draws.device)
        return x0, self.draws.normal(step, f"noise-{name}", tuple(x0.shape[1:])), cond

    def _generator(self, step: int, name: str) -> dict[str, torch.Generator]:
        return {"generator": self.draws.generator(step, name)}

    def trained(self) -> dict[str, TrainedNetwork]:
        return {"student": self.student, "fake_score": self.fake_score}

    def averaged(self) -> nn.Module:
        return self.student.averaged()


class ConsistencyDistillation:
    """One answer along each trajectory of the teacher, from data and one teacher step (see
    :mod:`fastgen.consistency`).

    Times run over [0, t_1], on a grid of which every rung is a point and that is refined as `step` nears `steps`. At
    the first rung the student sees t_1 noise, as its sampler does, without the (1 - t_1) x0 of noised data.

    Args:
        student: starts from the teacher's weights. Its EMA, if it keeps one, is the target network; else itself.
        teacher: called `teacher(x_t, t, cond)`, predicts `dmd.pred_type`.
        x0: data (N, ...) in the networks' units.      cond: its conditions, N rows each, or None.
        dmd: of it `t_list`, `student_sample_type`, `pred_type`, `guidance_scale`.
        steps: updates.      huber_c: c of the pseudo-Huber loss.      draws: of this stage.
        first, last: intervals of the grid at the start and at the end.
        method: solver of the teacher's step; "euler" saves one of its two calls, a third of an update on small nets.
        negative_cond: for a guided teacher, N rows.

    Raises:
        ValueError: an unknown method; guidance without `negative_cond`; a first rung below .9: there t_1 noise, which
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
        check_choice("method", method, ONE_STEP_SOLVERS)
        check_guidance(dmd.guidance_scale, negative_cond)
        if dmd.t_list[0] < self.least_first_rung:
            raise ValueError(
                f"expected t_list[0] >= {self.least_first_rung} for consistency distillation, got {dmd.t_list[0]}"
            )
        self.student, self.teacher, self.x0, self.cond, self.dmd = student, teacher, x0, cond, dmd
        self.steps, self.huber_c, self.draws = steps, huber_c, draws
        self.first, self.last, self.method, self.negative_cond = first, last, method, negative_cond
        self._target: nn.Module | None = None

    def update(self, step: int) -> dict[str, Tensor | float]:
        draws, device = self.draws, self.draws.device
        rows = draws.rows(step, len(self.x0))
        x0 = self.x0[rows].to(device)
        noise = draws.normal(step, "eps", tuple(x0.shape[1:]))
        t, s, end = (time.to(device) for time in self._times(step))
        pure = (t == self.dmd.t_list[0]).view(-1, *(1,) * (x0.ndim - 1))
        loss = consistency_loss(
            self.student.network,
            self.teacher,
            torch.where(pure, 0.0, x0),
            noise,
            t,
            s,
            cond_to(take_rows(self.cond, rows), device),
            end=end,
            pred_type=self.dmd.pred_type,
            target=self._judge(),
            huber_c=self.huber_c,
            method=self.method,
            guidance_scale=self.dmd.guidance_scale,
            negative_cond=cond_to(take_rows(self.negative_cond, rows), device),
        )
        return {"loss": loss.detach(), **self.student.update(loss, step)}

    def _judge(self) -> nn.Module | None:
        """The student's average as it is now, None without one: what a checkpoint holds is all there is to it."""
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

    def trained(self) -> dict[str, TrainedNetwork]:
        return {"student": self.student}

    def averaged(self) -> nn.Module:
        return self.student.averaged()
