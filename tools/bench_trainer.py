"""Cost of the trainer: an iteration of its loop beside forward, backward and optimiser alone, in
turns.

The recipe recipes/configs/ring-kd.yaml runs as it does for a user: draws, gathers, averages,
rows of the log and progress are included. After every few updates it is halted while a bare loop
makes as many of its own: the same losses on twins of the networks, backward, clipping and AdamW.
Its batches were drawn before, as the stage draws its own; times and noise of DMD's losses are drawn
in both.

A median over rounds shows nothing of what comes every few hundred updates. So checkpoints are timed
apart, more often than they are due, and so is all that a validation does beside scoring, which is
work of the task and doesn't count. A second number, the ratio of the sums over all rounds, has
their share at the recipe's intervals in it. Both numbers are to meet the bar. Beside wall seconds
stand CPU seconds of the process, which other work on the machine changes less. It runs on one
thread.
"""

from __future__ import annotations

import copy
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from fastgen.config import DistillConfig, LoopConfig, OptimizerConfig
from fastgen.config.files import load_config
from fastgen.dmd import DMDPipeline
from fastgen.jobs.checks import fit_to_teacher
from fastgen.jobs.distillation import Distillation
from fastgen.jobs.sources import load_teacher
from fastgen.methods.kd import KnowledgeDistillation, kd_loss
from fastgen.methods.matching import DistributionMatching
from fastgen.methods.registry import METHODS
from fastgen.records.folder import claim_run, open_run
from fastgen.training.accelerator import start_accelerator
from fastgen.training.stage import Stage
from fastgen.training.trainer import Trainer

CONFIG = Path(__file__).parents[1] / "recipes" / "configs" / "ring-kd.yaml"
UPDATES = 25  # of a round: one row of the log at the default train.log_every
PRELOADED = 8  # batches that the bare loops go round
EVENTS_EVERY = 4 * UPDATES  # updates between the checkpoints and validations that are timed
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
        self.parameters = list(self.network.parameters())
        self.clip = cfg.clip_grad_norm

    def update(self, loss: Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def bare_kd(
    stage: KnowledgeDistillation, cfg: DistillConfig, *, compiled: bool = False
) -> Callable[[int], None]:
    """One bare update of KD."""
    student = Bare(stage.student.bare, cfg.train.kd_optimizer, compiled=compiled)
    asked = cfg.student
    batches = [stage.batch(n) for n in range(PRELOADED)]

    def update(n: int) -> None:
        states, cond, rungs = batches[n % PRELOADED]
        options = {
            "pred_type": asked.pred_type,
            "huber_c": stage.huber_c,
            "sample_type": asked.sample_type,
        }
        student.update(kd_loss(student.network, states, asked.t_list, cond, rungs, **options))

    return update


def bare_dmd(
    stage: DistributionMatching, cfg: DistillConfig, *, compiled: bool = False
) -> Callable[[int], None]:
    """One bare iteration of DMD: an update of the student and those of the fake score after it."""
    train = cfg.train
    pipeline = stage.pipeline
    draws = stage.draws
    fake_score = stage.judges[0].network.bare
    student = Bare(stage.student.bare, train.student_optimizer, compiled=compiled)
    fake = Bare(fake_score, train.fake_score_optimizer, compiled=compiled)
    teacher: Any = torch.compile(pipeline.teacher) if compiled else pipeline.teacher
    twin = DMDPipeline(student.network, teacher, fake.network, pipeline.config)
    generator = torch.Generator().manual_seed(0)
    rows = [draws.rows(n, len(stage.x0)) for n in range(PRELOADED)]
    noise = [draws.normal(n, "noise", tuple(stage.x0.shape[1:])) for n in range(PRELOADED)]
    batches = [(stage.x0[r], eps, stage.cond[r]) for r, eps in zip(rows, noise, strict=True)]

    def update(n: int) -> None:
        data = batches[n % PRELOADED]
        made = twin.generate(*data, generator=generator)
        student.update(
            twin.compute_student_loss(*data, generated=made, generator=generator)["total"]
        )
        for turn in range(cfg.dmd.fake_steps_per_student_step):
            known = made.detach() if turn == 0 and cfg.dmd.fake_score_reuse_batch else None
            fake.update(
                twin.compute_fake_score_loss(*data, generated=known, generator=generator)["total"]
            )

    return update


def now() -> Tensor:
    """Wall and CPU seconds."""
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


def nothing() -> Tensor:
    return torch.zeros(2, dtype=torch.float64)


class Halted:
    """Times a stage round by round as the trainer runs it, halting it for the bare loop in between.

    Attributes:
        seconds: of each round of the trainer and of the bare loop.
        events: of each checkpoint and of each validation without its scores; they are in no round.
    """

    def __init__(self, stage: Stage, bare: Callable[[int], None], skip: int) -> None:
        self.bare = bare
        self.skip = skip
        self.seconds: dict[str, list[Tensor]] = {"trainer": [], "bare": []}
        self.events: dict[str, list[Tensor]] = {"checkpoint": [], "validation": []}
        self._update = stage.update
        self._step = 0
        self._paused = nothing()
        self._scoring = nothing()
        self._saving = nothing()
        self._started: Tensor | None = None
        stage.update = self.update  # pyright: ignore[reportAttributeAccessIssue]
        for network in stage.trained().values():
            network.tensors = self._timed(network.tensors, self._saved)

    def watch(self, trainer: Trainer) -> None:
        """Take what `trainer` does between updates out of the rounds."""
        trainer.evaluate = self._timed(trainer.evaluate, self._scored)
        trainer.validate = self._timed(trainer.validate, self._validated)
        trainer.save = self._timed(trainer.save, self._wrote)

    def update(self, step: int) -> Any:
        self._step = step
        if step >= self.skip and (step - self.skip) % UPDATES == 0:
            halted = now()
            if self._started is not None:
                self.seconds["trainer"].append(halted - self._started - self._paused)
            for n in range(UPDATES):
                self.bare(n)
            self._started = now()
            self.seconds["bare"].append(self._started - halted)
            self._paused = nothing()
        return self._update(step)

    def _timed(self, function: Callable[..., Any], then: Callable[..., None]) -> Callable[..., Any]:
        """`function`, after which `then` is told its seconds and its arguments."""

        def timed(*args: Any, **options: Any) -> Any:
            started = now()
            try:
                return function(*args, **options)
            finally:
                then(now() - started, *args)

        return timed

    def _scored(self, seconds: Tensor, network: nn.Module) -> None:
        self._scoring = self._scoring + seconds

    def _validated(self, seconds: Tensor, stage: Stage) -> None:
        self._paused = self._paused + seconds
        if self._step >= self.skip:
            self.events["validation"].append(seconds - self._scoring)
        self._scoring = nothing()

    def _saved(self, seconds: Tensor, *_: Any) -> None:
        """A part of a checkpoint."""
        self._paused = self._paused + seconds
        self._saving = self._saving + seconds

    def _wrote(self, seconds: Tensor, tensors: Mapping[str, Tensor]) -> None:
        self._saved(seconds)
        if tensors and self._step >= self.skip:  # none are in the one at the end of a stage
            self.events["checkpoint"].append(self._saving)
        self._saving = nothing()


def measure(overrides: list[str], stage_name: str, rounds: int) -> list[dict[str, Any]]:
    """Seconds of an iteration of one stage: of the trainer beside the bare loop, and of the bare
    loop beside a compiled one."""
    method = "kd" if stage_name == "kd" else "dmd2"
    bare: Any = bare_kd if stage_name == "kd" else bare_dmd
    found: list[Halted] = []
    stages: list[Any] = []
    due: LoopConfig = load_config(DistillConfig, CONFIG).train
    often = [f"train.{name}_every={EVENTS_EVERY}" for name in ("checkpoint", "evaluate")]
    with tempfile.TemporaryDirectory() as folder:
        asked = [f"run_dir={folder}/run", f"method={method}", "train.threads=1", *often, *overrides]
        cfg: Any = load_config(DistillConfig, CONFIG, asked)
        teacher = load_teacher(cfg)
        cfg, _ = fit_to_teacher(cfg, teacher)
        with open_run(cfg) as run_dir:
            job = Distillation(cfg, run_dir, start_accelerator(1), teacher=teacher)
            claim_run(run_dir, cfg)
            build = METHODS[method].build

            def halted(run: Any) -> Any:
                stage: Any = build(run)
                stages.append(stage)
                found.append(Halted(stage, bare(stage, cfg), skip=stage.warmup + UPDATES))
                found[0].watch(job.trainer)
                return stage

            with mock.patch.object(METHODS[method], "build", halted):
                job.train()
    pairs = list(zip(*found[0].seconds.values(), strict=False))[:rounds]
    events = found[0].events
    every = {"checkpoint": due.checkpoint_every, "validation": due.evaluate_every}
    overhead = overhead_row(
        stage_name, pairs, {name: (events[name], every[name]) for name in events}
    )
    for kind in ("wall", "cpu"):
        print(overhead_text(overhead, kind), flush=True)
    if not any(map(shutil.which, ("g++", "clang++"))):
        print("no C++ compiler: train.compile is left out")
        return [overhead]
    return [overhead, compiled_beside_bare(stage_name, bare, stages[0], cfg, rounds)]


def overhead_row(
    stage_name: str,
    pairs: list[tuple[Tensor, Tensor]],
    events: Mapping[str, tuple[list[Tensor], int]],
) -> dict[str, Any]:
    """The share of the trainer's iteration that the bare loop hasn't, by the median round and by
    the sums.

    Args:
        pairs: seconds of a round of the trainer and of the bare loop.
        events: name -> (seconds of each, updates between two), of what is in no round; in the sums
            is the median one.
    """
    shares = {
        name: torch.stack(seconds).median(0).values / every
        for name, (seconds, every) in events.items()
    }
    row = {
        "stage": stage_name,
        "what": "trainer, bare",
        "bar": BAR,
        **compared(pairs, sum(shares.values(), nothing())),
    }
    for n, kind in enumerate(("wall", "cpu")):
        found = row[kind]
        found["overhead"], found["overhead_of_sums"] = (
            1.0 - 1.0 / found[name] for name in ("ratio", "ratio_of_sums")
        )
        found |= {f"{name}_share": float(share[n]) for name, share in shares.items()}
        found["met"] = max(found["overhead"], found["overhead_of_sums"]) <= BAR
    return row


def overhead_text(row: Mapping[str, Any], kind: str) -> str:
    """A line about a row of `overhead_row`, by one of the clocks."""
    found = row[kind]
    events = ", ".join(
        f"{key.removesuffix('_share')}s {1e3 * value:.3f} ms"
        for key, value in found.items()
        if key.endswith("_share")
    )
    return (
        f"{row['stage']}, {kind}: trainer {1e3 * found['first']:.2f} ms, bare "
        f"{1e3 * found['second']:.2f} ms an iteration; overhead {100 * found['overhead']:.1f} % "
        f"in the median, {100 * found['overhead_of_sums']:.1f} % of the sums with {events} (bar "
        f"{100 * row['bar']:.0f} %, {'met' if found['met'] else 'MISSED'})"
    )


def compiled_beside_bare(
    stage_name: str, bare: Any, stage: Any, cfg: DistillConfig, rounds: int
) -> dict[str, Any]:
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
    row = {
        "stage": stage_name,
        "what": "plain, compiled",
        "compilation_seconds": first,
        **compared(pairs),
    }
    for kind in ("wall", "cpu"):
        print(
            f"{stage_name}, {kind}: plain {1e3 * row[kind]['first']:.2f} ms, compiled "
            f"{1e3 * row[kind]['second']:.2f} ms an iteration: {row[kind]['ratio']:.2f} times as "
            f"fast, after {first:.0f} s of compilation",
            flush=True,
        )
    return row


def compared(pairs: list[tuple[Tensor, Tensor]], beside: Tensor | None = None) -> dict[str, Any]:
    """Medians of an iteration's seconds and of the ratios first / second of the pairs, and the
    ratio of the sums, by wall and by CPU clock.

    Args:
        pairs: wall and CPU seconds of a round, of two loops.
        beside: wall and CPU seconds of an iteration of the first that are in no round; in the sums
            alone.
    """
    found: dict[str, Any] = {"rounds": len(pairs)}
    for n, kind in enumerate(("wall", "cpu")):
        first, second = (
            [float(seconds[n]) / UPDATES for seconds in side] for side in zip(*pairs, strict=True)
        )
        more = 0.0 if beside is None else float(beside[n])
        found[kind] = {
            "first": statistics.median(first),
            "second": statistics.median(second),
            "ratio": statistics.median(a / b for a, b in zip(first, second, strict=True)),
            "ratio_of_sums": (sum(first) + more * len(first)) / sum(second),
        }
    return found


def run_trainer(rounds: int) -> dict[str, Any]:
    """Measure and print; returns what goes into the JSON file."""
    if rounds * UPDATES < EVENTS_EVERY:
        raise ValueError(
            f"expected at least {EVENTS_EVERY // UPDATES} rounds, in which a checkpoint falls, "
            f"got {rounds}"
        )
    torch.set_num_threads(1)
    updates = UPDATES * (rounds + 2)
    kd = measure([f"train.kd_steps={updates}"], "kd", rounds)
    dmd = measure(
        ["train.kd_steps=0", f"train.steps={updates}", "dmd.fake_score_warmup_steps=0"],
        "dmd",
        rounds,
    )
    return {"torch": torch.__version__, "updates": UPDATES, "rows": [*kd, *dmd]}
