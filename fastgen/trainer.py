"""The training loop: accelerate, progress, log, validation, checkpoints, interruption.

The only module that knows accelerate. What an update is stands in :mod:`fastgen.stages`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import DistributedType, broadcast_object_list
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from tqdm import tqdm

from ._files import plain_json, write_file
from ._tensor import generator_for, wide_dtype
from .checkpoint import (
    add_prefix,
    load_newest_checkpoint,
    load_tensors,
    save_checkpoint,
    save_tensors,
    with_prefix,
)
from .config import LoopConfig
from .launching import warn_of_launch
from .stages import Stage
from .validation import Progress


def start_accelerator(threads: int | None = None) -> Accelerator:
    """Accelerator of this process, with all cores in use on a CPU.

    `accelerate launch` sets OMP_NUM_THREADS=1 on a CPU machine; `threads` = None shares the cores among the local
    processes.
    """
    # While the main process scores the teacher, the others wait for longer than the 10 minutes that are usual.
    accelerator = Accelerator(
        # Accelerate makes no group of the processes that torchrun starts on a CPU unless it is told that it is on one.
        cpu="LOCAL_RANK" in os.environ and not torch.accelerator.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
    )
    warn_of_launch(accelerator.num_processes)
    if accelerator.mixed_precision == "fp16":
        raise ValueError("expected mixed_precision no or bf16, got fp16, whose loss scale needs overflowing updates")
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if accelerator.is_fsdp2 and plugin is not None:
        if plugin.cpu_ram_efficient_loading:
            raise ValueError("expected fsdp_cpu_ram_efficient_loading: false, got true: networks are in memory anyway")
        # Shards are gathered and gradients summed in float32, and inputs stay what they are: bf16 would round times.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    elif accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError("expected fsdp_version: 2, got 1, which cannot freeze parts of a network")
    if accelerator.device.type == "cpu":
        use_all_cores(threads, processes=int(os.environ.get("LOCAL_WORLD_SIZE", str(accelerator.num_processes))))
    return accelerator


def use_all_cores(threads: int | None = None, *, processes: int = 1) -> None:
    """Set torch's CPU threads: `threads`, or an equal share of the cores this process may run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or max(1, cores // processes))


_BEST = "best"  # prefix of a stage's best weights in its checkpoints


class Stopwatch:
    """Adds the wall and the CPU seconds between `restart` and `lap` to `seconds[name]` and `seconds[name + "_cpu"]`.

    CPU seconds are this process' own, over all its threads: what a busy machine does to the wall clock isn't in them.
    """

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self.seconds, self.name = seconds, name
        self.restart()

    def restart(self) -> None:
        """Forget what has passed since the last lap."""
        self._last = time.perf_counter(), time.process_time()

    def lap(self) -> None:
        """Add what has passed since the last lap or restart."""
        now = time.perf_counter(), time.process_time()
        for name, before, after in zip((self.name, f"{self.name}_cpu"), self._last, now, strict=True):
            self.seconds[name] = self.seconds.get(name, 0.0) + after - before
        self._last = now


class Trainer:
    """Runs stages one after the other, each from a network factory, and can be stopped anywhere.

    Every `evaluate_every` updates and at its end a stage is validated: the averaged weights are scored, the best of
    them kept, warnings said in plain words (see :class:`fastgen.validation.Progress`) and, with `patience`, the stage
    ended early. What a stage's `diagnose` says is logged beside the scores as "diagnostics". The first `warmup` updates
    of a stage leave its network as it was: validations of them are neither candidates nor a loss of patience.

    Args:
        stages: name -> factory of the stage. A factory is called when its stage begins, so that it sees the result of
            the stages before it (``trainer.result(name)``) and no optimiser exists before it is needed.
        evaluate: quick validation of a network with EMA weights -> scores.
        primary: the score shown in the progress bar and by which the best is chosen, lower is better.
        evaluate_start: also validate each stage before its first update, for stages that start from something trained.
    """

    def __init__(
        self,
        stages: Mapping[str, Callable[[], Stage]],
        run_dir: Path,
        loop: LoopConfig,
        accelerator: Accelerator,
        *,
        evaluate: Callable[[nn.Module], dict[str, float]],
        primary: str,
        seed: int,
        resume: bool,
        evaluate_start: bool = False,
    ) -> None:
        self.stages, self.run_dir, self.loop, self.accelerator = stages, run_dir, loop, accelerator
        self.evaluate, self.primary, self.seed, self.evaluate_start = evaluate, primary, seed, evaluate_start
        self.scores: dict[str, dict[str, float]] = {}  # validation scores at the end of each stage
        self.progress: dict[str, Progress] = {}
        self.seconds: dict[str, float] = {}
        self.position, self.step, self.iteration = 0, 0, 0
        self._tensors: Mapping[str, torch.Tensor] = {}
        self._stop: int | None = None
        if resume and (found := load_newest_checkpoint(run_dir)) is not None:
            self._tensors, meta = found
            needed = ("position", "step", "iteration", "scores", "seconds", "progress")
            if missing := [key for key in needed if key not in meta]:
                raise ValueError(
                    f"expected a checkpoint of this version in {run_dir}, got one of another, without "
                    f"{', '.join(missing)}; go on with the version that wrote it, or start again in a new folder"
                )
            self.position, self.step, self.iteration = meta["position"], meta["step"], meta["iteration"]
            self.scores, self.seconds = meta["scores"], meta["seconds"]
            self.progress = {name: Progress(**fields) for name, fields in meta["progress"].items()}
        self._truncate_log()

    def run(self) -> None:
        """Train what is left to train."""
        for name, factory in list(self.stages.items())[self.position :]:
            stage = factory()
            if self.step:
                for part, network in stage.trained().items():
                    network.load_tensors(with_prefix(self._tensors, part))
            else:
                self.progress[name] = Progress(name, self.primary)
            if self.accelerator.is_main_process:
                self._restore_best(name)
            self._tensors = {}
            with self._interruptible(), self._bar(stage) as bar:
                self._run_stage(stage, bar)
            self.position, self.step = self.position + 1, 0
            result = stage.averaged().state_dict()  # of shards, which all processes gather
            if self.accelerator.is_main_process:
                save_tensors(self._result_path(name), result)
            self._save({})
            self.accelerator.free_memory()

    def result(self, name: str) -> dict[str, torch.Tensor]:
        """EMA weights of the stage `name`: its best validated ones with `keep_best`, else those at its end.

        The end is validated, too, and so one of the candidates; it is also the result where no validation gave a
        finite score. The best of several noisy scores is seldom much better than the last.
        """
        kept = self.loop.keep_best and self.progress[name].best_step is not None
        return load_tensors(self._best_path(name) if kept else self._result_path(name))

    @property
    def warnings(self) -> list[str]:
        """What was warned of in all stages so far, in order."""
        return [text for progress in self.progress.values() for text in progress.warnings.values()]

    def _run_stage(self, stage: Stage, bar: Any) -> None:
        loop, shown, progress = self.loop, {}, self.progress[stage.name]
        if self.step == 0 and self.evaluate_start:
            self._log({"stage": stage.name, "step": 0, **self._validate(stage)})
        watch = Stopwatch(self.seconds, stage.name)
        while self.step < stage.steps and not progress.out_of_patience(loop.patience):
            step = self.step
            # Dropout draws from torch's global state; every other draw has its own generator.
            rank = self.accelerator.process_index
            torch.manual_seed(generator_for(self.seed, stage.name, "dropout", step, rank).initial_seed())
            logs = stage.update(step)
            stop = self._should_stop()
            self.step, self.iteration = step + 1, self.iteration + 1
            watch.lap()
            last = self.step == stage.steps
            # The end of a warm-up shows whether judges see anything, before the student follows them.
            if self.step % loop.evaluate_every == 0 or last or self.step == stage.warmup:
                shown = self._validate(stage)
                watch.restart()  # validation is not training time
            if self.step % loop.log_every == 0 or last or shown:
                logs = self._means(logs)
                self._log({"stage": stage.name, "step": self.step, **logs, **shown})
                score = self.scores.get(stage.name, {}).get(self.primary)
                bar.set_postfix(
                    {"loss": f"{logs['loss']:.4g}"} | ({self.primary: f"{score:.3f}"} if score is not None else {})
                )
                shown = {}
            bar.update()
            if self.step % loop.checkpoint_every == 0 and not last or stop:
                tensors = {k: v for part, network in stage.trained().items() for k, v in _named(part, network)}
                self._save(tensors | self._best_tensors(stage.name))
            if stop:
                raise KeyboardInterrupt(f"state saved at {stage.name} update {self.step}; --resume goes on from there")

    def _validate(self, stage: Stage) -> dict[str, Any]:
        """Score the stage's averaged weights, keep them if they are the best; returns what is worth logging."""
        network, progress = stage.averaged(), self.progress[stage.name]
        scores = self.scores[stage.name] = self._agreed(self.evaluate(network))
        warnings = progress.add(self.step, scores, trained=self.step > stage.warmup)
        if self.loop.keep_best and progress.best_step == self.step and self.accelerator.is_main_process:
            save_tensors(self._best_path(stage.name), network.state_dict())
        row: dict[str, Any] = dict(scores)
        # Before the first update fake score and teacher are one: there is nothing to see.
        if self.step and (found := stage.diagnose(self.step)):
            row["diagnostics"] = found
            # Later a discriminator at chance may be one that the student has caught up with.
            if self.step == stage.warmup:
                warnings = warnings + progress.judge(self.step, found)
        if warnings:
            row["warnings"] = warnings
        if progress.out_of_patience(self.loop.patience) and self.step < stage.steps:
            row["stopped_early"] = progress.early_end(self.step)
        if self.accelerator.is_main_process:
            for text in [*(f"warning: {text}" for text in warnings), *filter(None, [row.get("stopped_early")])]:
                tqdm.write(text, file=sys.stderr)
        return row

    def _agreed(self, scores: dict[str, float]) -> dict[str, float]:
        """The main process' scores: what all processes decide by must be the same to the last digit."""
        if self.accelerator.num_processes == 1:
            return scores
        return broadcast_object_list([scores])[0]

    def _means(self, logs: Mapping[str, torch.Tensor | float]) -> dict[str, float]:
        """Means over the processes, each of which has the losses of its own share of the batch."""
        values = [float(value) for value in logs.values()]
        if self.accelerator.num_processes > 1:
            own = torch.tensor(values, dtype=wide_dtype(self.accelerator.device), device=self.accelerator.device)
            mean = self.accelerator.reduce(own, "mean")
            assert isinstance(mean, torch.Tensor)  # a tensor in, a tensor out; this tells the type checker
            values = mean.tolist()
        return dict(zip(logs, values, strict=True))

    def _bar(self, stage: Stage) -> Any:
        title = f"{self.position + 1}/{len(self.stages)} {stage.name}"
        return tqdm(
            total=stage.steps,
            initial=self.step,
            desc=title,
            disable=not self.accelerator.is_main_process,
            mininterval=0.5,
        )

    def _log(self, row: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            row = {"iteration": self.iteration, "seconds": round(self.seconds.get(row["stage"], 0.0), 3), **row}
            with open(self.run_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(plain_json(row, "row")) + "\n")

    def _truncate_log(self) -> None:
        # Rows after the checkpoint are about to be made again, among them the start of a stage that hasn't begun.
        path, stages = self.run_dir / "metrics.jsonl", list(self.stages)
        if self.accelerator.is_main_process and path.exists():
            done = self.position, self.step if self.step else -1
            rows = [row for row in read_log(self.run_dir) if (stages.index(row["stage"]), row["step"]) <= done]
            write_file(path, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def _save(self, tensors: Mapping[str, torch.Tensor]) -> None:
        if self.accelerator.is_main_process:
            meta = {
                "position": self.position,
                "step": self.step,
                "iteration": self.iteration,
                "scores": self.scores,
                "seconds": self.seconds,
                "progress": {name: progress.to_json() for name, progress in self.progress.items()},
            }
            # Numbered so that the end of a stage does not replace a checkpoint of the same iteration.
            number = self.iteration + self.position
            save_checkpoint(self.run_dir, number, tensors, plain_json(meta, "meta"), keep=self.loop.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _result_path(self, name: str) -> Path:
        return self.run_dir / "stages" / f"{name}.safetensors"

    def _best_path(self, name: str) -> Path:
        return self.run_dir / "stages" / f"{name}.best.safetensors"

    def _best_tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The best weights so far, for a checkpoint; it is the main process that writes it."""
        path = self._best_path(name)
        return add_prefix(_BEST, load_tensors(path)) if self.accelerator.is_main_process and path.exists() else {}

    def _restore_best(self, name: str) -> None:
        """The best weights as of the checkpoint: those in the folder may be of an update that hasn't happened yet."""
        self._best_path(name).unlink(missing_ok=True)
        if best := with_prefix(self._tensors, _BEST):
            save_tensors(self._best_path(name), best)

    def _should_stop(self) -> bool:
        """Whether any process was asked to stop: all of them must leave the loop after the same update."""
        asked = self._stop is not None
        if self.accelerator.num_processes == 1:
            return asked
        flag = self.accelerator.reduce(torch.tensor(int(asked), device=self.accelerator.device), "sum")
        assert isinstance(flag, torch.Tensor)  # a tensor in, a tensor out; this tells the type checker
        return bool(flag)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM ends the update at hand and saves; a second one stops at once."""

        def request_stop(number: int, frame: FrameType | None) -> None:
            if self._stop is not None:
                raise KeyboardInterrupt
            self._stop = number

        if threading.current_thread() is not threading.main_thread():
            # Only the main thread may handle signals; whoever started this one decides about Ctrl-C.
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, request_stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; a last line that a kill cut short is left out."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    lines: Sequence[str] = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def _named(part: str, network: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from add_prefix(part, network.tensors()).items()
