"""From a teacher to an exported few-step student, its pictures and its numbers: the job behind recipes/distill.py."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ._files import read_json
from ._tensor import generator_for
from .checkpoint import load_tensors, save_tensors
from .cli import load_config, validate
from .config import DataConfig, DistillConfig, EMAConfig
from .data import Task, build_task
from .dmd import DMDPipeline, create_fake_score
from .evaluation import (
    Sampler,
    evaluate_student,
    evaluate_teacher,
    latency_ms,
    nested_t_lists,
    student_sampler,
    teacher_sampler,
)
from .export import export_student, load_network, load_student
from .kd import teacher_pairs
from .report import format_table, write_report
from .runs import open_run
from .stages import DistributionMatching, Draws, KnowledgeDistillation, Stage, TrainedNetwork
from .trainer import Stopwatch, Trainer, read_log, start_accelerator

if TYPE_CHECKING:
    from accelerate import Accelerator

_PAIR_CHUNK = 2048
SCORES_FILE = "scores.json"


def distill(cfg: DistillConfig, *, teacher: nn.Module | None = None, task: Task | None = None) -> Path:
    """Distil `teacher` on `task` as `cfg` says; returns the run folder.

    Args:
        teacher: network called as ``net(x_t, t, cond)`` in RF time that predicts the flow; None loads
            ``cfg.teacher.folder``.
        task: data and scores; None builds ``cfg.data``.
    Raises:
        ValueError: before any training, when config, data and teacher do not fit together or the folder holds another
            run.
    """
    accelerator = start_accelerator(cfg.train.threads)
    with open_run(cfg, main_process=accelerator.is_main_process) as run_dir:
        job = Distillation(cfg, run_dir, accelerator, teacher=teacher, task=task)
        job.train()
        if accelerator.is_main_process:
            job.hand_over()
        accelerator.wait_for_everyone()
    return run_dir


class Distillation:
    """The steps of one run, in their order: pairs, KD, fake-score warm-up and DMD, choice, export, report."""

    def __init__(
        self,
        cfg: DistillConfig,
        run_dir: Path,
        accelerator: Accelerator,
        *,
        teacher: nn.Module | None = None,
        task: Task | None = None,
    ) -> None:
        self.cfg, self.run_dir, self.accelerator = cfg, run_dir, accelerator
        self.task = build_data(cfg.data) if task is None else task
        self.teacher = load_teacher(cfg) if teacher is None else teacher
        self.teacher.to(accelerator.device).eval()
        self.x0, self.cond = self.task.train.network_inputs()
        check_fit(self.teacher, self.x0, self.cond)

    def train(self) -> None:
        """Run what is left of the stages."""
        cfg, stages = self.cfg, {}
        if cfg.train.kd_steps:
            stages["kd"] = self.kd_stage
        if cfg.train.steps:
            stages["dmd"] = self.dmd_stage
        if not stages:
            raise ValueError(
                "expected train.kd_steps > 0 or train.steps > 0, got 0 for both: there is nothing to train"
            )
        self.trainer = Trainer(
            stages,
            self.run_dir,
            cfg.train,
            self.accelerator,
            evaluate=lambda network: self.task.evaluate(self._sampler(network), quick=True),
            primary=self.task.primary,
            seed=cfg.seed,
            resume=cfg.resume,
        )
        self.trainer.run()

    def kd_stage(self) -> Stage:
        """Student from the teacher's weights, regressed on the teacher's ODE pairs."""
        cfg, watch = self.cfg, Stopwatch(self.trainer.seconds, "pairs")
        states, cond = self.pairs()
        watch.lap()
        ema = EMAConfig(decay=cfg.train.kd_ema_decay)
        student = TrainedNetwork(
            copy.deepcopy(self.teacher), cfg.train.kd_optimizer, cfg.train.kd_steps, self.accelerator, ema=ema
        )
        draws = Draws(cfg.seed, "kd", self.accelerator, cfg.train.batch_size)
        return KnowledgeDistillation(student, states, cond, cfg.dmd, cfg.train.kd_steps, cfg.train.kd_huber_c, draws)

    def dmd_stage(self) -> Stage:
        """DMD from the KD student (without KD from the teacher's weights), fake score from the teacher's weights."""
        cfg, dmd = self.cfg, self.cfg.dmd
        network = copy.deepcopy(self.teacher)
        if cfg.train.kd_steps:
            network.load_state_dict(self.trainer.result("kd"))
        student = TrainedNetwork(network, cfg.train.student_optimizer, cfg.train.steps, self.accelerator, ema=dmd.ema)
        fake_updates = dmd.fake_score_warmup_steps + cfg.train.steps * dmd.fake_steps_per_student_step
        rungs = dmd.student_steps if dmd.fake_score_rung_conditioned else 1
        fake_score = TrainedNetwork(
            create_fake_score(self.teacher, num_rungs=rungs),
            cfg.train.fake_score_optimizer,
            fake_updates,
            self.accelerator,
        )
        pipeline = DMDPipeline(
            student.network,
            self.teacher,
            fake_score.network,
            dmd,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        draws = Draws(cfg.seed, "dmd", self.accelerator, cfg.train.batch_size)
        return DistributionMatching(student, fake_score, pipeline, self.x0, self.cond, dmd, cfg.train.steps, draws)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """States of the teacher's ODE at the student's rungs (N, K + 1, ...) with their conditions; kept in the run
        folder."""
        cfg, path = self.cfg, self.run_dir / "pairs.safetensors"
        n = cfg.train.kd_pairs
        cond = self.cond[torch.arange(n) % len(self.cond)]
        if path.exists():
            return load_tensors(path)["states"], cond
        shape, parts = tuple(self.x0.shape[1:]), []
        starts = range(0, n, _PAIR_CHUNK)
        for start in tqdm(starts, desc="teacher pairs", disable=not self.accelerator.is_main_process):
            size = min(_PAIR_CHUNK, n - start)
            noise = torch.randn(size, *shape, generator=generator_for(cfg.seed, "pairs", start))
            with self.accelerator.split_between_processes(list(range(size)), apply_padding=True) as mine:
                rows = torch.tensor(mine)
                states = teacher_pairs(
                    self.teacher,
                    noise[rows].to(self.accelerator.device),
                    cond[start + rows].to(self.accelerator.device),
                    cfg.dmd.t_list,
                    calls=cfg.train.kd_teacher_calls,
                )
            gathered = self.accelerator.gather(states)
            assert isinstance(gathered, Tensor)  # a tensor in, a tensor out; this tells the type checker
            parts.append(gathered[:size].cpu())
        states = torch.cat(parts)
        if self.accelerator.is_main_process:
            save_tensors(path, {"states": states})
        return states, cond

    def hand_over(self) -> None:
        """Score, choose, export and report."""
        cfg, task, seconds = self.cfg, self.task, dict(self.trainer.seconds)
        watch = Stopwatch(seconds, "hand_over")
        candidates = {name: self._trained(name) for name in self.trainer.stages}
        selected = self.choose(list(candidates))
        rows = {
            name: evaluate_student(
                network, task, cfg.dmd.t_list, sample_type=cfg.dmd.student_sample_type, pred_type=cfg.dmd.pred_type
            )
            for name, network in candidates.items()
        }
        teacher_rows, floor = self.teacher_scores()
        student = candidates[selected]
        one = student_sampler(student, task.train, nested_t_lists(cfg.dmd.t_list)[1])
        hundred = teacher_sampler(self.teacher, task.train, 100)
        results: dict[str, Any] = {
            "teacher": teacher_rows,
            "student": rows[selected],
            **rows,
            "floor": floor,
            "seconds": seconds,
            "latency": {
                f"{who}, batch {batch}, ms": latency_ms(sampler, task.train, batch, repeats=repeats)
                for who, sampler, repeats in (("student 1 call", one, 15), ("teacher 100 calls", hundred, 3))
                for batch in (1, 64)
            },
            "selected": selected,
            "primary": task.primary,
            "validation": self.trainer.scores,
        }
        watch.lap()
        self.export(student, results)
        write_report(self.run_dir, results=results, curves=read_log(self.run_dir), examples=self.examples(student))
        print(format_table(results))
        print(f"student: {self.run_dir / 'student'}   report: {self.run_dir / 'report'}")

    def choose(self, names: list[str]) -> str:
        """The stage whose student is exported: as configured, or the one with the better validation score."""
        if self.cfg.keep != "best":
            if self.cfg.keep not in names:
                raise ValueError(
                    f"expected keep to be one of the stages that ran ({', '.join(names)}), got {self.cfg.keep}"
                )
            return self.cfg.keep
        return min(names, key=lambda name: self.trainer.scores[name][self.task.primary])

    def teacher_scores(self) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
        """Rows of the teacher: those beside its weights if they were taken on the same data, else measured now."""
        cfg = self.cfg
        if cfg.teacher.folder is not None and not cfg.teacher.measure:
            stored = Path(cfg.teacher.folder) / SCORES_FILE
            if stored.exists():
                known = read_json(stored)
                # Compared as configs: a file of an earlier version lacks the keys that came later.
                if validate(DataConfig, known["data"]) == cfg.data:
                    return known["teacher"], known["floor"]
        rows = evaluate_teacher(
            self.teacher,
            self.task,
            cfg.teacher.calls,
            cfg.teacher.ab2_calls,
            progress=lambda row: _say(f"teacher {row}"),
        )
        return rows, self.task.floor()

    def export(self, student: nn.Module, results: dict[str, Any]) -> None:
        """Write ``student/``."""
        cfg, data = self.cfg, self.task.train
        export_student(
            self.run_dir / "student",
            student,
            t_list=list(cfg.dmd.t_list),
            steps=sorted(nested_t_lists(cfg.dmd.t_list)),
            sample_type=cfg.dmd.student_sample_type,
            pred_type=cfg.dmd.pred_type,
            x_normalizer=data.x_normalizer,
            z_normalizer=data.z_normalizer,
            pack=data.pack,
            horizon=tuple(data.X.shape[1:]),
            description={"task": self.task.name, "method": results["selected"], "scores": results["student"]},
        )

    def examples(self, student: nn.Module, samples: int = 16) -> dict[str, Any]:
        """What the picture of trajectories shows."""
        z, x_true = self.task.examples()
        noise = torch.randn(len(z) * samples, *x_true.shape[1:], generator=generator_for(self.cfg.seed, "examples"))
        repeated = z.repeat_interleave(samples, 0)
        drawn = {
            "teacher": teacher_sampler(self.teacher, self.task.train, 100)(repeated, noise),
            "student": self._sampler(student)(repeated, noise),
        }
        drawn = {who: x.unflatten(0, (len(z), samples)) for who, x in drawn.items()}
        calls = self.cfg.dmd.student_steps
        labels = {"teacher": "teacher, 100 calls", "student": f"student, {calls} call{'s' * (calls > 1)}"}
        return {"Z": z, "X_true": x_true, **drawn, "scene": self.task.scene(), "labels": labels}

    def _sampler(self, network: nn.Module) -> Any:
        dmd = self.cfg.dmd
        return student_sampler(
            network, self.task.train, dmd.t_list, sample_type=dmd.student_sample_type, pred_type=dmd.pred_type
        )

    def _trained(self, name: str) -> nn.Module:
        network = copy.deepcopy(self.teacher)
        network.load_state_dict(self.trainer.result(name))
        return network.eval()


def score_student(run_dir: Path) -> dict[str, dict[str, float]]:
    """Scores of the exported student of a run, through the very sampler that its users call; keyed by network calls."""
    cfg = load_config(DistillConfig, run_dir / "config.yaml")
    task, student = build_data(cfg.data), load_student(run_dir / "student")

    def sampler(steps: int) -> Sampler:
        return lambda z, noise: student.sample(z, noise=noise, steps=steps, generator=generator_for(0, "sampler"))

    return {str(steps): task.evaluate(sampler(steps)) for steps in student.steps}


def build_data(cfg: DataConfig) -> Task:
    """The task that the config's `data` names."""
    values = cfg.model_dump()
    if values["symmetry"] is not None and values["symmetry"]["out_rep"] is None:
        values["symmetry"]["out_rep"] = values["symmetry"]["in_rep"]
    return build_task(SimpleNamespace(**values))


def load_teacher(cfg: DistillConfig) -> nn.Module:
    """The network in ``cfg.teacher.folder``."""
    if cfg.teacher.folder is None:
        raise ValueError("expected teacher.folder, a folder with model.safetensors and config.json, got none")
    network, _ = load_network(cfg.teacher.folder)
    return network


@torch.no_grad()
def check_fit(network: nn.Module, x0: Tensor, cond: Tensor) -> None:
    """Call the teacher once on two samples: ValueError unless it answers a finite flow of the data's shape."""
    parameter = next(network.parameters())
    x, z = (part[:2].to(parameter.device, parameter.dtype) for part in (x0, cond))
    t = torch.full((len(x),), 0.5, device=x.device)
    flow = network(x, t, z)
    if not isinstance(flow, Tensor) or flow.shape != x.shape:
        got = tuple(flow.shape) if isinstance(flow, Tensor) else type(flow).__name__
        raise ValueError(f"expected the teacher to return a flow of the data's shape {tuple(x.shape)}, got {got}")
    if not bool(torch.isfinite(flow).all()):
        raise ValueError("expected a finite flow from the teacher, got NaN or infinity at t = 0.5 on the first samples")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
