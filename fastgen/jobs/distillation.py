"""A distillation: from a teacher to an exported few-step student, its pictures and its numbers."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._core.copies import copied
from .._core.modules import load_state
from .._core.prefixes import cond_without_prefix
from .._core.processes import together
from .._core.room import naming_what_to_lower
from .._core.streams import lasting_streams
from .._core.threads import using_threads
from .._core.timing import Stopwatch
from ..config.files import load_config
from ..config.groups import EMAConfig
from ..config.schemas import DistillConfig
from ..config.training import OptimizerConfig
from ..data import Task
from ..data.checks import data_notes
from ..data.ranges import check_range
from ..methods.registry import stages_of
from ..networks import Cond
from ..records.folder import claim_run, open_run
from ..teachers.counted import CountedNetwork
from ..teachers.declarations import declaration_notes
from ..training.accelerator import start_accelerator
from ..training.choice import validate_by
from ..training.draws import Draws
from ..training.evaluations import DECISION, PAIRS, Asked
from ..training.processes import Processes
from ..training.recompute import keep_blocks
from ..training.trained_network import TrainedNetwork, check_compiler
from ..training.trainer import Trainer
from .budgets import check_budget, check_pairs, planned_evaluations, planned_pairs
from .checks import (
    check_plan,
    coupling_notes,
    fit_to_teacher,
    remedies_of,
    stored_scores,
    with_method,
)
from .decisions import AUTO, decided
from .encoders import encoder_of, encoder_of_student, task_of
from .evaluation import chunk_rows, score_exported
from .hand_over import HandOver, Rows, teacher_notes
from .origin import data_origin, encoder_origin, student_origin, teacher_origin
from .pairs import evaluations_of_a_pair, pairs_of_run
from .setup import Setup
from .sources import load_run_student, load_teacher
from .threads import threads_of_training
from .trial import try_network

__all__ = ["Distillation", "distill", "score_student"]

_PAIR_CHUNK = 2048  # pairs that the teacher makes at once; bounds the memory


@lasting_streams()
@naming_what_to_lower("train.batch_size", "train.kd_pairs", "data.size")
def distill(
    cfg: DistillConfig, *, teacher: nn.Module | None = None, task: Task | None = None
) -> Path:
    """Distil `teacher` on `task` as `cfg` says; returns the run folder.

    Args:
        teacher: network called as ``net(x_t, t, cond)``, in RF time and predicting the flow unless
            ``cfg.teacher`` declares otherwise (or :func:`fastgen.teachers.as_rectified_flow` has
            converted it); None loads what ``cfg.teacher`` names.
        task: data and scores; None builds ``cfg.data``.

    Raises:
        ValueError: before any training, when config, data and teacher do not fit together or the
            folder holds another run.
    """
    cfg = with_method(cfg)
    processes = start_accelerator(cfg.train.threads, tracker=cfg.train.tracker)
    check_compiler(processes.device, wanted=cfg.train.compile)
    if teacher is not None and (cfg.teacher.dtype is not None or cfg.train.gradient_checkpointing):
        # These change a network in place, and this one is the caller's.
        teacher = copied(teacher)
    teacher = load_teacher(cfg, teacher)
    cfg, notes = fit_to_teacher(cfg, teacher)
    with open_run(cfg, main_process=processes.is_main_process) as run_dir:
        with together():
            job = Distillation(cfg, run_dir, processes, teacher=teacher, task=task)
            if processes.is_main_process:
                print("\n".join(notes + job.notes()), file=sys.stderr, flush=True)
                claim_run(run_dir, cfg, job.origin())
        job.decide()
        job.train()
        with together():
            if processes.is_main_process:
                job.hand_over()
    return run_dir


class Distillation:
    """One run, in its order: pairs, the stages of its method, and the hand-over of a student.

    It is also the :class:`fastgen.methods.method.Run` from which a method builds its stage.

    Args:
        cfg: with what its method implies, fitted to the teacher.
        run_dir: the folder of the run.
        processes: that share the run.
        teacher: called `teacher(x_t, t, cond)`; moved to the device.
        task: data and scores; None builds `cfg.data`.

    Raises:
        ValueError: config, data and teacher do not fit together.
    """

    def __init__(
        self,
        cfg: DistillConfig,
        run_dir: Path,
        processes: Processes,
        *,
        teacher: nn.Module,
        task: Task | None = None,
    ) -> None:
        self.cfg = cfg
        self.run_dir = run_dir
        self.processes = processes
        self.rank = processes.process_index
        self.world = processes.num_processes
        self._built = task is None
        if task is not None:
            check_range(task, cfg.data.box)
        self.encoder = encoder_of(cfg)
        if task is not None and self.encoder is not None:
            raise ValueError(
                "expected teacher.encoder for the data of a config, got a task; let it hold what "
                "the encoder makes, and leave teacher.encoder out"
            )
        self.task = task_of(cfg, self.encoder) if task is None else task
        self.networks = Setup(cfg, teacher.to(processes.device).eval(), self.task.train)
        self.networks.encoder = encoder_of_student(self.encoder)
        check_plan(self.networks, processes=self.world, sharded=processes.is_fsdp2)
        if not processes.is_fsdp2:  # one process may not hold a network that several share
            try_network(self.networks, autocast=processes.autocast)
        self.stored_scores: tuple[Rows, dict[str, float]] | None = stored_scores(cfg)
        self.all_threads = torch.get_num_threads()
        self.decisions: list[str] = []
        self.asked_to_decide = 0  # evaluations of the teacher
        self._of_an_update: dict[str, int] = {}
        self._check_budget()

    def notes(self) -> list[str]:
        """What a user should know of data and teacher before the first update."""
        found = self.networks.notes()
        found += data_notes(self.task, self.cfg.train.batch_size)
        found += declaration_notes(
            self.networks.unguided,
            self.networks.x0,
            cond_without_prefix(self.networks.cond),
            pred_type=self.cfg.student.pred_type,
            search=False,
            coupled=self.networks.coupled,
        )
        if self.cfg.method != AUTO:  # which decides by it, and says so
            found += coupling_notes(self.networks)
        if self.stored_scores is not None:
            found += teacher_notes(*self.stored_scores, self.task.primary)
        return found

    def _check_budget(self) -> None:
        """Refuse a budget of teacher evaluations that is too small; else note what updates take."""
        if self.cfg.train.teacher_calls is None:
            return
        if self.cfg.method == AUTO:  # which updates there are is decided later
            check_pairs(self.networks, planned_pairs(self.networks))
            return
        planned = planned_evaluations(self.networks, processes=self.world)
        check_budget(self.networks, planned, decision=self.asked_to_decide)
        self._of_an_update = planned.of_an_update

    def origin(self) -> dict[str, Any]:
        """What a run that is resumed must go on with, beside its config."""
        return {
            **encoder_origin(self.encoder),
            **data_origin(self.task, self.cfg.data, built=self._built),
            **teacher_origin(self.networks),
            **student_origin(self.networks),
            "mixed precision": str(self.processes.mixed_precision),
        }

    def decide(self) -> None:
        """Settle what `method: auto` leaves open, and say so."""
        cfg, self.decisions, self.asked_to_decide = decided(
            self.networks, self.task, self.run_dir, self.processes, self.stored_scores
        )
        if cfg != self.cfg:
            self.cfg = cfg
            self.networks.cfg = cfg
            check_plan(self.networks, processes=self.world, sharded=self.processes.is_fsdp2)
        if self.decisions:
            self._check_budget()
        if self.decisions and self.processes.is_main_process:
            print("\n".join(self.decisions), file=sys.stderr, flush=True)

    def train(self) -> None:
        """Run what is left of the stages."""
        cfg = self.cfg
        networks = self.networks
        self.closing = HandOver(
            self.networks,
            self.task,
            self.run_dir,
            stored=self.stored_scores,
            decisions=self.decisions,
            origin=self.origin,
        )
        self.trainer = Trainer(
            {method.stage: functools.partial(method.build, self) for method in stages_of(cfg)},
            self.run_dir,
            cfg.train,
            self.processes,
            evaluate=lambda network: validate_by(self.task, self.closing.sampler(network)),
            compare=getattr(self.task, "compare", None),
            primary=self.task.primary,
            seed=cfg.seed,
            resume=cfg.resume,
            evaluate_start=True,
            remedies=remedies_of(self.networks),
            teacher=Asked(networks.rows, cfg.train.teacher_calls, self._of_an_update),
        )
        if self.asked_to_decide:
            self.trainer.evaluations[DECISION] = self.asked_to_decide
        threads = threads_of_training(
            cfg.train, networks.student, networks.x0, networks.cond, self.processes
        )
        with using_threads(threads):
            self.trainer.run()

    def hand_over(self) -> None:
        """Score, choose, export and report."""
        students = {}
        for stage in self.trainer.stages:
            network = self.networks.student()
            load_state(network, self.trainer.result(stage))
            students[stage] = keep_blocks(network).eval()
        self.closing.decisions += self.trainer.limits.early_ends()
        self.closing.run(
            students,
            dict(self.trainer.seconds),
            self.trainer.warnings,
            dict(self.trainer.evaluations),
        )

    # ---- What stages are built from --------------------------------------------------------------

    def student(
        self, optimizer: OptimizerConfig, updates: int, ema: EMAConfig | None = None
    ) -> TrainedNetwork:
        network = self.networks.student()
        if (before := self.trainer.stage_before()) is not None:
            load_state(network, self.trainer.result(before))
        return self.trained(network, optimizer, updates, ema)

    def trained(
        self,
        network: nn.Module,
        optimizer: OptimizerConfig,
        updates: int,
        ema: EMAConfig | None = None,
    ) -> TrainedNetwork:
        return TrainedNetwork(
            network,
            optimizer,
            updates,
            self.processes,
            ema=ema,
            ema_on_cpu=self.cfg.train.ema_on_cpu,
            compiled=self.cfg.train.compile,
        )

    def teacher_in_training(self) -> nn.Module:
        # Samplers call it with other sizes, for which compiling again would not pay.
        networks = self.networks
        if not self.cfg.train.compile:
            return networks.teacher
        if networks.teacher is not networks.unguided:
            compiled: Any = torch.compile(networks.teacher)
            return compiled
        # The counting stays outside of what is traced.
        inside: Any = torch.compile(networks.uncounted)
        return CountedNetwork(inside, networks.rows).eval()

    def pairs(self) -> tuple[Tensor, Cond]:
        watch = Stopwatch(self.trainer.seconds, "pairs")
        chunk = chunk_rows(self.task.train, _PAIR_CHUNK)
        # Many rows at once, whatever an update is.
        with using_threads(self.all_threads):
            found = pairs_of_run(self.networks, self.run_dir, self.processes, chunk=chunk)
        watch.lap()
        # Also where they were read: what they cost when they were made. What fills up the shares of
        # processes isn't counted.
        cost = self.cfg.train.kd_pairs * evaluations_of_a_pair(self.networks)
        self.trainer.evaluations[PAIRS] = cost
        return found

    def draws(self, stage: str) -> Draws:
        train = self.cfg.train
        return Draws(
            self.cfg.seed,
            stage,
            self.processes,
            train.batch_size,
            accumulation=train.gradient_accumulation_steps,
        )


def score_student(run_dir: Path, factory: str | None = None) -> Rows:
    """Scores of the exported student of a run, through the very sampler that its users call; keyed
    by network calls."""
    cfg = load_config(DistillConfig, run_dir / "config.yaml")
    return score_exported(load_run_student(run_dir / "student", factory), task_of(cfg))
