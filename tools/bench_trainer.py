"""What the trainer costs: an iteration of its loop beside forward, backward and optimiser alone, in turns.

The default recipe (recipes/configs/ring.yaml) runs as it does for a user: draws, gathers, averages, log rows and
progress are included; of a checkpoint every few hundred updates a median over rounds shows nothing. After every few
updates it is halted while a bare loop makes as many of its own: the same losses on twins of the networks, backward,
clipping and AdamW, on batches that were drawn before (of DMD the times and noise of its losses are drawn in both).
Validations, which are work of the task, don't count. Beside wall seconds stand CPU seconds of the process, which other
work on the machine changes less; it runs on one thread.
"""

from __future__ import annotations

import copy
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.cli import load_config
from fastgen.config import DistillConfig, OptimizerConfig
from fastgen.distillation import Distillation
from fastgen.dmd import DMDPipeline
from fastgen.kd import kd_loss
from fastgen.runs import claim_run, open_run
from fastgen.sources import fit_to_teacher, load_teacher
from fastgen.stages import DistributionMatching, KnowledgeDistillation, Stage
from fastgen.trainer import start_accelerator

CONFIG = Path(__file__).parents[1] / "recipes" / "configs" / "ring.yaml"
UPDATES = 25  # of a round: one row of the log at the default train.log_every
PRELOADED = 8
BAR = 0.03


class Bare:
    """A network with its optimiser and nothing else."""

    def __init__(self, network: nn.Module, cfg: OptimizerConfig, *, compiled: bool = False) -> None:
        self.network: Any = copy.deepcopy(network).requires_grad_(True)
        groups: Any = getattr(self.network, "get_optim_groups", None)
        parameters = groups(cfg.weight_decay) if groups is not None else self.network.parameters()
        if compiled:
            self.network = torch.compile(self.network)
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-6, betas=cfg.betas, fused=True)
        self.parameters, self.clip = list(self.network.parameters()), cfg.clip_grad_norm

    def step(self, loss: Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def bare_kd(stage: KnowledgeDistillation, cfg: DistillConfig, *, compiled: bool = False) -> Callable[[int], None]:
    """One bare update of KD."""
    student = Bare(stage.student.bare, cfg.train.kd_optimizer, compiled=compiled)
    dmd, batch = cfg.dmd, cfg.train.batch_size
    rungs = torch.zeros(batch, dtype=torch.int64)
    batches = [(stage.states[n * batch : (n + 1) * batch], stage.cond[n * batch : (n + 1) * batch]) for n in range(8)]

    def update(n: int) -> None:
        states, cond = batches[n % PRELOADED]
        options = {"pred_type": dmd.pred_type, "huber_c": stage.huber_c, "sample_type": dmd.student_sample_type}
        student.step(kd_loss(student.network, states, dmd.t_list, cond, rungs, **options))

    return update


def bare_dmd(stage: DistributionMatching, cfg: DistillConfig, *, compiled: bool = False) -> Callable[[int], None]:
    """One bare iteration of DMD: an update of the student and those of the fake score after it."""
    train, pipeline, batch = cfg.train, stage.pipeline, cfg.train.batch_size
    fake_score = stage.judges[0].network.bare
    student = Bare(stage.student.bare, train.student_optimizer, compiled=compiled)
    fake = Bare(fake_score, train.fake_score_optimizer, compiled=compiled)
    teacher: Any = torch.compile(pipeline.teacher) if compiled else pipeline.teacher
    twin = DMDPipeline(student.network, teacher, fake.network, pipeline.config)
    generator = torch.Generator().manual_seed(0)
    slices = [slice(n * batch, (n + 1) * batch) for n in range(PRELOADED)]
    batches = [(stage.x0[s], torch.randn(stage.x0[s].shape, generator=generator), stage.cond[s]) for s in slices]

    def update(n: int) -> None:
        data = batches[n % PRELOADED]
        made = twin.generate(*data, generator=generator)
        student.step(twin.compute_student_loss(*data, generated=made, generator=generator)["total"])
        for turn in range(cfg.dmd.fake_steps_per_student_step):
            known = made.detach() if turn == 0 and cfg.dmd.fake_score_reuse_batch else None
            fake.step(twin.compute_fake_score_loss(*data, generated=known, generator=generator)["total"])

    return update


def now() -> Tensor:
    """Wall and CPU seconds."""
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


class Halted:
    """Times a stage round by round as the trainer runs it, halting it for the bare loop in between."""

    def __init__(self, stage: Stage, bare: Callable[[int], None], skip: int) -> None:
        self.bare, self.skip = bare, skip
        self.seconds: dict[str, list[Tensor]] = {"trainer": [], "bare": []}
        self._update, self._paused = stage.update, torch.zeros(2, dtype=torch.float64)
        self._started: Tensor | None = None
        stage.update = self.update  # pyright: ignore[reportAttributeAccessIssue]

    def update(self, step: int) -> Any:
        if step >= self.skip and (step - self.skip) % UPDATES == 0:
            halted = now()
            if self._started is not None:
                self.seconds["trainer"].append(halted - self._started - self._paused)
            for n in range(UPDATES):
                self.bare(n)
            self._started = now()
            self.seconds["bare"].append(self._started - halted)
            self._paused = torch.zeros(2, dtype=torch.float64)
        return self._update(step)

    def pause(self, evaluate: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Any]:
        """`evaluate`, whose seconds don't count."""

        def timed(network: nn.Module) -> Any:
            started = now()
            try:
                return evaluate(network)
            finally:
                self._paused += now() - started

        return timed


def measure(overrides: list[str], stage_name: str, rounds: int) -> list[dict[str, Any]]:
    """Seconds of an iteration of one stage: of the trainer beside the bare loop, and of the bare loop beside a compiled
    one."""
    maker, bare = ("kd_stage", bare_kd) if stage_name == "kd" else ("matching_stage", bare_dmd)
    found: list[Halted] = []
    stages: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        cfg: Any = load_config(DistillConfig, CONFIG, [f"run_dir={folder}/run", "train.threads=1", *overrides])
        teacher = load_teacher(cfg)
        cfg, _ = fit_to_teacher(cfg, teacher)
        with open_run(cfg) as run_dir:
            job = Distillation(cfg, run_dir, start_accelerator(1), teacher=teacher)
            claim_run(run_dir, cfg)
            make = getattr(job, maker)

            def halted() -> Any:
                stage: Any = make()
                stages.append(stage)
                found.append(Halted(stage, bare(stage, cfg), skip=stage.warmup + UPDATES))
                job.trainer.evaluate = found[0].pause(job.trainer.evaluate)
                return stage

            setattr(job, maker, halted)
            job.train()
    pairs = list(zip(*found[0].seconds.values(), strict=False))[:rounds]
    overhead = {"stage": stage_name, "what": "trainer, bare", "bar": BAR, **compared(pairs)}
    for kind in ("wall", "cpu"):
        row = overhead[kind]
        share = 1.0 - 1.0 / row["ratio"]
        row["overhead"] = share
        print(
            f"{stage_name}, {kind}: trainer {1e3 * row['first']:.2f} ms, bare {1e3 * row['second']:.2f} ms an "
            f"iteration; overhead {100 * share:.1f} % (bar {100 * BAR:.0f} %, {'met' if share <= BAR else 'MISSED'})",
            flush=True,
        )
    if not any(map(shutil.which, ("g++", "clang++"))):
        print("no C++ compiler: train.compile is left out")
        return [overhead]
    return [overhead, compiled_beside_bare(stage_name, bare, stages[0], cfg, rounds)]


def compiled_beside_bare(stage_name: str, bare: Any, stage: Any, cfg: DistillConfig, rounds: int) -> dict[str, Any]:
    """What `train.compile` gains: compiled networks in the bare loop beside plain ones."""
    loops = [bare(stage, cfg, compiled=compiled) for compiled in (False, True)]
    started = time.perf_counter()
    for _ in range(3):
        loops[1](0)
    first = time.perf_counter() - started
    pairs = []
    for _ in range(rounds):
        marks = [now()]
        for loop in loops:
            for n in range(UPDATES):
                loop(n)
            marks.append(now())
        pairs.append((marks[1] - marks[0], marks[2] - marks[1]))
    row = {"stage": stage_name, "what": "plain, compiled", "compilation_seconds": first, **compared(pairs)}
    for kind in ("wall", "cpu"):
        print(
            f"{stage_name}, {kind}: plain {1e3 * row[kind]['first']:.2f} ms, compiled {1e3 * row[kind]['second']:.2f} "
            f"ms an iteration: {row[kind]['ratio']:.2f} times as fast, after {first:.0f} s of compilation",
            flush=True,
        )
    return row


def compared(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Medians of an iteration's seconds and of the ratios first / second of the pairs, by wall and by CPU clock."""
    found: dict[str, Any] = {"rounds": len(pairs)}
    for n, kind in enumerate(("wall", "cpu")):
        first, second = ([float(seconds[n]) / UPDATES for seconds in side] for side in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in zip(first, second, strict=True))
        found[kind] = {"first": statistics.median(first), "second": statistics.median(second), "ratio": ratio}
    return found


def run_trainer(rounds: int) -> dict[str, Any]:
    """Measure and print; returns what goes into the JSON file."""
    torch.set_num_threads(1)
    updates = UPDATES * (rounds + 2)
    pairs = f"train.kd_pairs={PRELOADED * 128}"
    kd = measure([f"train.kd_steps={updates}", "train.steps=0", pairs], "kd", rounds)
    dmd = measure(["train.kd_steps=0", f"train.steps={updates}", "dmd.fake_score_warmup_steps=0"], "dmd", rounds)
    return {"torch": torch.__version__, "updates": UPDATES, "rows": [*kd, *dmd]}
