"""From a teacher to an exported few-step student, its pictures and its numbers: the job behind
recipes/distill.py."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._core.conditions import cond_text, cond_to, map_tensors, take_rows, tensors_in
from .._core.processes import together
from .._core.seeds import generator_for
from .._core.tensor_files import load_tensors, save_tensors
from .._core.tensors import time_dtype
from .._core.timing import Stopwatch
from ..config.dmd import DMDConfig, EMAConfig
from ..config.files import load_config
from ..config.schemas import DistillConfig
from ..config.training import OptimizerConfig
from ..data import Task, build_data
from ..data.checks import data_notes
from ..export.folders import export_student
from ..methods.consistency import ConsistencyDistillation
from ..methods.dmd import DMDPipeline
from ..methods.fake_scores import create_fake_score
from ..methods.kd import KnowledgeDistillation, teacher_pairs
from ..methods.matching import DistributionMatching
from ..networks import idle_parameters, network_dtype, parameters_to
from ..records.folder import claim_run, open_run
from ..records.log import progress_bar, read_log
from ..records.origin import fingerprint
from ..report.page import write_report
from ..report.styles import StageStyle
from ..report.tables import format_table
from ..teachers.declarations import judge_declaration
from ..training.accelerator import start_accelerator
from ..training.draws import Draws
from ..training.recompute import keep_blocks
from ..training.stage import Stage
from ..training.trained_network import TrainedNetwork, check_compiler
from ..training.trainer import Trainer
from ..training.validation import teacher_note
from .checks import STAGE_OF_METHOD, check_plan, fit_to_teacher, stored_scores, with_method
from .evaluation import (
    Sampler,
    chunk_rows,
    evaluate_student,
    evaluate_teacher,
    latency_ms,
    nested_t_lists,
    student_sampler,
    teacher_sampler,
)
from .setup import frozen_teacher, guided_teacher, new_discriminator
from .sources import load_run_student, load_teacher

if TYPE_CHECKING:
    from accelerate import Accelerator

_PAIR_CHUNK = 2048
# Stage -> how a report shows it, in the order of training.
_STAGE_STYLES = {
    "kd": StageStyle(title="KD", colour="#E69F00", heading="KD: regression on teacher pairs"),
    "dmd": StageStyle(title="DMD", colour="#009E73"),
    "ladd": StageStyle(title="LADD", colour="#009E73"),
    "consistency": StageStyle(title="consistency", colour="#009E73"),
}


def distill(
    cfg: DistillConfig, *, teacher: nn.Module | None = None, task: Task | None = None
) -> Path:
    """Distil `teacher` on `task` as `cfg` says; returns the run folder.

    Args:
        teacher: network called as ``net(x_t, t, cond)``, in RF time and predicting the flow unless
            ``cfg.teacher`` declares otherwise (or :func:`fastgen.teachers.conversion.as_rectified_flow` has
            converted it); None loads what ``cfg.teacher`` names.
        task: data and scores; None builds ``cfg.data``.
    Raises:
        ValueError: before any training, when config, data and teacher do not fit together or the
            folder holds another run.
    """
    accelerator = start_accelerator(cfg.train.threads, tracker=cfg.train.tracker)
    check_compiler(accelerator.device, wanted=cfg.train.compile)
    if teacher is not None and (cfg.teacher.dtype is not None or cfg.train.gradient_checkpointing):
        teacher = copy.deepcopy(
            teacher
        )  # these change a network in place, and this one is the caller's
    teacher = load_teacher(cfg, teacher)
    cfg, notes = fit_to_teacher(with_method(cfg), teacher)
    with open_run(cfg, main_process=accelerator.is_main_process) as run_dir:
        with together():
            job = Distillation(cfg, run_dir, accelerator, teacher=teacher, task=task)
            if accelerator.is_main_process:
                notes += data_notes(job.task, cfg.train.batch_size)
                notes += judge_declaration(
                    job.frozen, job.x0, job.cond, pred_type=cfg.dmd.pred_type, search=False
                )
                if job.teacher_rows is not None:
                    notes += job.teacher_notes(*job.teacher_rows)
                print("\n".join(notes), file=sys.stderr, flush=True)
                claim_run(run_dir, cfg, job.origin())
        job.train()
        with together():
            if accelerator.is_main_process:
                job.hand_over()
    return run_dir


class Distillation:
    """The steps of one run, in their order: pairs, KD, fake-score warm-up and DMD, choice, export,
    report."""

    def __init__(
        self,
        cfg: DistillConfig,
        run_dir: Path,
        accelerator: Accelerator,
        *,
        teacher: nn.Module,
        task: Task | None = None,
    ) -> None:
        self.cfg = cfg
        self.run_dir = run_dir
        self.accelerator = accelerator
        self.task = build_data(cfg.data) if task is None else task
        self.network = teacher.to(accelerator.device).eval()
        self.x0, cond = self.task.train.network_inputs()
        self.cond = cond_to(cond, dtype=network_dtype(self.network, self.x0.dtype))
        check_plan(cfg, self.network, self.x0, self.cond, processes=accelerator.num_processes)
        if (
            accelerator.is_fsdp2
            and cfg.dmd.gan_features == "fake_score"
            and cfg.dmd.trains_discriminator
        ):
            raise ValueError(
                "expected dmd.gan_features teacher or sample with FSDP, which shards the fake "
                "score, got fake_score"
            )
        if accelerator.is_fsdp2 and cfg.train.fake_score_rank is not None:
            raise ValueError(
                "expected train.fake_score_rank=null with FSDP, where corrections in shards would "
                f"not be trained, got {cfg.train.fake_score_rank}"
            )
        # What is distilled, scored and drawn is the guided teacher; what starts from its weights is
        # the plain network.
        self.dtype, self.network, self.frozen = frozen_teacher(cfg, self.network)
        self.teacher = guided_teacher(cfg, self.frozen, self.task.train)
        self.teacher_rows = stored_scores(cfg)

    def origin(self) -> dict[str, Any]:
        """What a run that is resumed must go on with, beside its config."""
        return {
            "data": fingerprint([self.x0, *tensors_in(self.cond)]),
            "teacher": fingerprint(self.network.state_dict().values()),
            "mixed precision": str(self.accelerator.mixed_precision),
        }

    def train(self) -> None:
        """Run what is left of the stages."""
        cfg = self.cfg
        stages = {}
        if cfg.train.kd_steps:
            stages["kd"] = self.kd_stage
        if cfg.train.steps and (name := STAGE_OF_METHOD[cfg.method]) is not None:
            stages[name] = self.consistency_stage if name == "consistency" else self.matching_stage
        self.trainer = Trainer(
            stages,
            self.run_dir,
            cfg.train,
            self.accelerator,
            evaluate=lambda network: self.task.evaluate(self._sampler(network), quick=True),
            primary=self.task.primary,
            seed=cfg.seed,
            resume=cfg.resume,
            evaluate_start=True,
        )
        self.trainer.run()

    def kd_stage(self) -> KnowledgeDistillation:
        """Student from the teacher's weights, regressed on the teacher's ODE pairs."""
        cfg = self.cfg
        ema = EMAConfig(decay=cfg.train.kd_ema_decay)
        student = self._trainable(
            self._used(self._student()), cfg.train.kd_optimizer, cfg.train.kd_steps, ema=ema
        )
        return self._on_pairs(student, "kd", cfg.train.kd_steps)

    def matching_stage(self) -> Stage:
        """DMD2 or LADD from the KD student (without KD from the teacher's weights): fake score from
        the teacher's weights, discriminator from scratch, each where the losses need it."""
        cfg = self.cfg
        dmd = self.cfg.dmd
        train = self.cfg.train
        name = STAGE_OF_METHOD[cfg.method] or "dmd"
        student = self._next_student()
        fake_score = discriminator = None
        if dmd.vsd_weight > 0:
            updates = dmd.fake_score_warmup_steps + train.steps * dmd.fake_steps_per_student_step
            rungs = dmd.student_steps if dmd.fake_score_rung_conditioned else 1
            source = self._student() if train.fake_score_rank is None else self.frozen
            network = create_fake_score(
                source, num_rungs=rungs, rank=train.fake_score_rank, seed=cfg.seed
            )
            fake_score = self._trainable(self._used(network), train.fake_score_optimizer, updates)
        if dmd.trains_discriminator:
            updates = dmd.gan_disc_warmup_steps + train.steps * dmd.gan_disc_steps_per_student_step
            network = new_discriminator(cfg, self._student(), self.x0, self.cond)
            discriminator = self._trainable(network, train.discriminator_optimizer, updates)
        pipeline = DMDPipeline(
            student.network,
            self._teacher_in_training(),
            None if fake_score is None else fake_score.network,
            self._unguided(),
            discriminator=None if discriminator is None else discriminator.network,
            same_draws=True,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        return DistributionMatching(
            student,
            fake_score,
            pipeline,
            self.x0,
            self.cond,
            dmd,
            train.steps,
            self._draws(name),
            discriminator=discriminator,
            pairs=self._on_pairs(student, f"{name}-pairs", train.steps)
            if dmd.kd_weight > 0
            else None,
            name=name,
        )

    def consistency_stage(self) -> Stage:
        """Consistency distillation from the KD student, without KD from the teacher's weights."""
        cfg = self.cfg
        return ConsistencyDistillation(
            self._next_student(),
            self._teacher_in_training(),
            self.x0,
            self.cond,
            self._unguided(),
            cfg.train.steps,
            cfg.train.kd_huber_c,
            self._draws("consistency"),
        )

    def _draws(self, stage: str) -> Draws:
        train = self.cfg.train
        return Draws(
            self.cfg.seed,
            stage,
            self.accelerator,
            train.batch_size,
            accumulation=train.gradient_accumulation_steps,
        )

    def _teacher_in_training(self) -> nn.Module:
        """The teacher as losses call it: compiled if asked for, which would not pay for the sizes
        that samplers use."""
        compiled: Any = torch.compile(self.teacher) if self.cfg.train.compile else self.teacher
        return compiled

    def _unguided(self) -> DMDConfig:
        """The method's config for losses: the teacher guides itself already."""
        return self.cfg.dmd.model_copy(update={"guidance_scale": None})

    def _next_student(self) -> TrainedNetwork:
        """The student of the stage after KD."""
        cfg = self.cfg
        network = self._student()
        if cfg.train.kd_steps:
            network.load_state_dict(self.trainer.result("kd"))
        return self._trainable(
            self._used(network), cfg.train.student_optimizer, cfg.train.steps, ema=cfg.dmd.ema
        )

    def _trainable(
        self,
        network: nn.Module,
        optimizer: OptimizerConfig,
        updates: int,
        ema: EMAConfig | None = None,
    ) -> TrainedNetwork:
        train = self.cfg.train
        return TrainedNetwork(
            network,
            optimizer,
            updates,
            self.accelerator,
            ema=ema,
            ema_on_cpu=train.ema_on_cpu,
            compiled=train.compile,
        )

    def _on_pairs(self, student: TrainedNetwork, name: str, steps: int) -> KnowledgeDistillation:
        """KD of `student` on the teacher's pairs, with draws of their own."""
        cfg = self.cfg
        watch = Stopwatch(self.trainer.seconds, "pairs")
        states, cond = self.pairs()
        watch.lap()
        return KnowledgeDistillation(
            student, states, cond, cfg.dmd, steps, cfg.train.kd_huber_c, self._draws(name)
        )

    def pairs(self) -> tuple[Tensor, Any]:
        """States of the teacher's ODE at the student's rungs (N, K + 1, ...) with their conditions;
        kept in the run folder."""
        cfg = self.cfg
        path = self.run_dir / "pairs.safetensors"
        n = cfg.train.kd_pairs
        cond = take_rows(self.cond, torch.arange(n) % len(self.x0))
        shape = tuple(self.x0.shape[1:])
        parts = []
        if path.exists():
            states = load_tensors(path).get("states")
            if states is None or states.shape != (n, len(cfg.dmd.t_list), *shape):
                raise ValueError(
                    f"expected the teacher pairs of this run in {path}, got others; delete the file"
                )
            return states, cond
        rank = self.accelerator.process_index
        world = self.accelerator.num_processes
        chunk = chunk_rows(self.task.train, _PAIR_CHUNK)
        with progress_bar("teacher pairs", n, shown=self.accelerator.is_main_process) as bar:
            for start in range(0, n, chunk):
                size = min(chunk, n - start)
                noise = torch.randn(size, *shape, generator=generator_for(cfg.seed, "pairs", start))
                # Equal shares, filled up at the end of the last ones only, so that the gathered
                # rows keep their order.
                share = -(-size // world)
                rows = torch.arange(rank * share, (rank + 1) * share).clamp(max=size - 1)
                states = teacher_pairs(
                    self.teacher,
                    noise[rows].to(self.accelerator.device),
                    cond_to(take_rows(cond, start + rows), self.accelerator.device),
                    cfg.dmd.t_list,
                    calls=cfg.train.kd_teacher_calls,
                    pred_type=cfg.dmd.pred_type,
                )
                gathered = self.accelerator.gather(states)
                assert isinstance(
                    gathered, Tensor
                )  # a tensor in, a tensor out; this tells the type checker
                parts.append(gathered[:size].cpu())
                bar.update(size)
                bar.set_postfix()
        states = torch.cat(parts)
        with together():
            if self.accelerator.is_main_process:
                save_tensors(path, {"states": states})
        return states, cond

    def hand_over(self) -> None:
        """Score, choose, export and report."""
        cfg = self.cfg
        task = self.task
        seconds = dict(self.trainer.seconds)
        watch = Stopwatch(seconds, "hand_over")
        candidates = {name: self._trained(name) for name in self.trainer.stages}
        validation = {
            name: self.task.evaluate(self._sampler(network), quick=True)
            for name, network in candidates.items()
        }
        selected = self.choose(validation)
        rows = {
            name: evaluate_student(
                network,
                task,
                cfg.dmd.t_list,
                sample_type=cfg.dmd.student_sample_type,
                pred_type=cfg.dmd.pred_type,
            )
            for name, network in candidates.items()
        }
        teacher_rows, floor = self.teacher_rows or self.measured_scores()
        student = candidates[selected]
        calls = len(cfg.dmd.t_list) - 1
        few = self._sampler(student)
        many = self._teacher_sampler(100)
        results: dict[str, Any] = {
            "teacher": teacher_rows,
            "student": rows[selected],
            "kd": {},
            **rows,
            "floor": floor,
            "seconds": seconds,
            "latency": {
                f"{who}, batch {batch}, ms": latency_ms(sampler, task.train, batch, repeats=repeats)
                for who, sampler, repeats in (
                    (f"student {calls} call{'s' * (calls > 1)}", few, 15),
                    ("teacher 100 calls", many, 3),
                )
                for batch in (1, 64)
            },
            "selected": selected,
            "primary": task.primary,
            "validation": validation,
            "warnings": [*self.trainer.warnings, *self.teacher_notes(teacher_rows, floor)],
        }
        watch.lap()
        self.export(student, results)
        print(format_table(results, stages=_STAGE_STYLES))
        write_report(
            self.run_dir,
            results=results,
            curves=read_log(self.run_dir),
            examples=self.examples(student),
            stages=_STAGE_STYLES,
        )
        print(f"student: {self.run_dir / 'student'}   report: {self.run_dir / 'report'}")

    def choose(self, validation: dict[str, dict[str, float]]) -> str:
        """The stage whose student is exported: as configured, or the one with the better validation
        score."""
        if self.cfg.keep != "best":
            return self.cfg.keep
        scores = {name: row[self.task.primary] for name, row in validation.items()}
        return min(scores, key=lambda name: math.inf if math.isnan(scores[name]) else scores[name])

    def teacher_notes(
        self, rows: dict[str, dict[str, float]], floor: dict[str, float]
    ) -> list[str]:
        """Whether the teacher is one that its student may pass."""
        note = teacher_note(rows, floor, self.task.primary)
        return [] if note is None else [note]

    def measured_scores(self) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
        """Rows of the teacher and the task's floor, measured now."""
        rows = evaluate_teacher(
            self.teacher,
            self.task,
            self.cfg.teacher.calls,
            self.cfg.teacher.ab2_calls,
            pred_type=self.cfg.dmd.pred_type,
            progress=lambda row: print(f"teacher {row}", file=sys.stderr, flush=True),
        )
        return rows, self.task.floor()

    def export(self, student: nn.Module, results: dict[str, Any]) -> None:
        """Write ``student/``."""
        cfg = self.cfg
        data = self.task.train
        export_student(
            self.run_dir / "student",
            student,
            t_list=list(cfg.dmd.t_list),
            steps=list(nested_t_lists(cfg.dmd.t_list, cfg.dmd.student_sample_type)),
            sample_type=cfg.dmd.student_sample_type,
            pred_type=cfg.dmd.pred_type,
            x_normalizer=data.x_normalizer,
            z_normalizer=data.z_normalizer,
            pack=data.pack,
            horizon=tuple(data.X.shape[1:]),
            description={
                "task": self.task.name,
                "method": results["selected"],
                "condition": "none" if data.Z is None else cond_text(data.Z, "B"),
                "scores": results["student"],
                **self._guidance(),
            },
        )

    def _guidance(self) -> dict[str, Any]:
        """How the teacher was guided that the student learned from, for the description of an
        export."""
        dmd = self.cfg.dmd
        source = self.cfg.teacher.null_cond
        if dmd.guidance_scale is None or source is None:
            return {}
        return {
            "guidance_scale": dmd.guidance_scale,
            "guidance_interval": list(dmd.guidance_interval),
            "guidance_rescale": dmd.guidance_rescale,
            # Where the file lay says nothing to others.
            "guidance_null_cond": Path(source).name,
        }

    def examples(self, student: nn.Module) -> dict[str, Any]:
        """What the picture of samples shows."""
        (z, x_true), scene = self.task.examples(), self.task.scene()
        samples = scene.get("samples", 16)
        n = len(x_true)
        noise = torch.randn(
            n * samples, *x_true.shape[1:], generator=generator_for(self.cfg.seed, "examples")
        )
        repeated = map_tensors(lambda value: value.repeat_interleave(samples, 0), z)
        drawn = {
            "teacher": self._teacher_sampler(100)(repeated, noise),
            "student": self._sampler(student)(repeated, noise),
        }
        drawn = {who: x.unflatten(0, (n, samples)) for who, x in drawn.items()}
        calls = self.cfg.dmd.student_steps
        labels = {
            "teacher": "teacher, 100 calls",
            "student": f"student, {calls} call{'s' * (calls > 1)}",
        }
        return {"Z": z, "X_true": x_true, **drawn, "scene": scene, "labels": labels}

    def _student(self) -> nn.Module:
        """The teacher's weights to start from, in full precision and trainable whatever the caller
        froze."""
        return parameters_to(copy.deepcopy(self.network), self.dtype).requires_grad_(True)

    def _used(self, network: nn.Module) -> nn.Module:
        """`network`, called as the teacher is, of which parameters that nothing uses are frozen:
        processes that share a batch would wait for their gradients."""
        if self.accelerator.num_processes > 1:
            x0, cond = cond_to(
                (self.x0[:2], take_rows(self.cond, slice(2))), self.accelerator.device
            )
            t = torch.full((len(x0),), 0.5, dtype=time_dtype(x0.dtype), device=x0.device)
            with self.accelerator.autocast():
                idle = idle_parameters(network, x0, t, cond)
            for parameter in idle:
                parameter.requires_grad_(False)
        return network

    def _teacher_sampler(self, calls: int) -> Sampler:
        return teacher_sampler(
            self.teacher, self.task.train, calls, pred_type=self.cfg.dmd.pred_type
        )

    def _sampler(self, network: nn.Module) -> Sampler:
        dmd = self.cfg.dmd
        return student_sampler(
            network,
            self.task.train,
            dmd.t_list,
            sample_type=dmd.student_sample_type,
            pred_type=dmd.pred_type,
        )

    def _trained(self, name: str) -> nn.Module:
        network = self._student()
        network.load_state_dict(self.trainer.result(name))
        return keep_blocks(network).eval()


def score_student(run_dir: Path, factory: str | None = None) -> dict[str, dict[str, float]]:
    """Scores of the exported student of a run, through the very sampler that its users call; keyed
    by network calls."""
    cfg = load_config(DistillConfig, run_dir / "config.yaml")
    task = build_data(cfg.data)
    student = load_run_student(run_dir / "student", factory)

    def sampler(steps: int) -> Sampler:
        return lambda z, noise: student.sample(
            z, noise=noise, steps=steps, generator=generator_for(0, "sampler")
        )

    return {str(steps): task.evaluate(sampler(steps)) for steps in student.steps}
