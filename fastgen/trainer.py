"""The training loop: accelerate, progress, log, validation, checkpoints, interruption.

The only module that knows accelerate. What an update is stands in :mod:`fastgen.stages`.
"""

from __future__ import annotations

import json
import os
import signal
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
from torch import nn
from tqdm import tqdm

from ._files import plain_json, write_file
from ._tensor import generator_for
from .checkpoint import (
    add_prefix,
    load_newest_checkpoint,
    load_tensors,
    save_checkpoint,
    save_tensors,
    with_prefix,
)
from .config import LoopConfig
from .stages import Stage


def start_accelerator(threads: int | None = None) -> Accelerator:
    """Accelerator of this process, with all cores in use on a CPU.

    `accelerate launch` sets OMP_NUM_THREADS=1 on a CPU machine; `threads` = None shares the cores among the local
    processes.
    """
    # While the main process scores the teacher, the others wait for longer than the 10 minutes that are usual.
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))])
    if accelerator.mixed_precision == "fp16":
        raise ValueError("expected mixed_precision no or bf16, got fp16, whose loss scale needs overflowing updates")
    if accelerator.device.type == "cpu":
        use_all_cores(threads, processes=int(os.environ.get("LOCAL_WORLD_SIZE", str(accelerator.num_processes))))
    return accelerator


def use_all_cores(threads: int | None = None, *, processes: int = 1) -> None:
    """Set torch's CPU threads: `threads`, or an equal share of the cores this process may run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or max(1, cores // processes))


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

    Args:
        stages: name -> factory of the stage. A factory is called when its stage begins, so that it sees the result of
            the stages before it (``trainer.result(name)``) and no optimiser exists before it is needed.
        evaluate: quick validation of a network with EMA weights -> scores.
        primary: the score shown in the progress bar, lower is better.
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
    ) -> None:
        self.stages, self.run_dir, self.loop, self.accelerator = stages, run_dir, loop, accelerator
        self.evaluate, self.primary, self.seed = evaluate, primary, seed
        self.scores: dict[str, dict[str, float]] = {}  # validation scores at the end of each stage
        self.seconds: dict[str, float] = {}
        self.position, self.step, self.iteration = 0, 0, 0
        self._tensors: Mapping[str, torch.Tensor] = {}
        self._stop: int | None = None
        if resume and (found := load_newest_checkpoint(run_dir)) is not None:
            self._tensors, meta = found
            self.position, self.step, self.iteration = meta["position"], meta["step"], meta["iteration"]
            self.scores, self.seconds = meta["scores"], meta["seconds"]
        self._truncate_log()

    def run(self) -> None:
        """Train what is left to train."""
        for name, factory in list(self.stages.items())[self.position :]:
            stage = factory()
            if self.step:
                for part, network in stage.trained().items():
                    network.load_tensors(with_prefix(self._tensors, part))
            self._tensors = {}
            with self._interruptible(), self._bar(stage) as bar:
                self._run_stage(stage, bar)
            self.position, self.step = self.position + 1, 0
            if self.accelerator.is_main_process:
                save_tensors(self._result_path(name), stage.averaged().state_dict())
            self._save({})
            self.accelerator.free_memory()

    def result(self, name: str) -> dict[str, torch.Tensor]:
        """EMA weights at the end of the stage `name`."""
        return load_tensors(self._result_path(name))

    def _run_stage(self, stage: Stage, bar: Any) -> None:
        loop, shown = self.loop, {}
        watch = Stopwatch(self.seconds, stage.name)
        for step in range(self.step, stage.steps):
            # Dropout draws from torch's global state; every other draw has its own generator.
            rank = self.accelerator.process_index
            torch.manual_seed(generator_for(self.seed, stage.name, "dropout", step, rank).initial_seed())
            logs = stage.update(step)
            stop = self._should_stop()
            self.step, self.iteration = step + 1, self.iteration + 1
            watch.lap()
            last = self.step == stage.steps
            if self.step % loop.evaluate_every == 0 or last:
                shown = self.scores[stage.name] = self.evaluate(stage.averaged())
                watch.restart()  # validation is not training time
            if self.step % loop.log_every == 0 or last or shown:
                logs = {key: float(value) for key, value in logs.items()}
                self._log({"stage": stage.name, "step": self.step, **logs, **shown})
                score = self.scores.get(stage.name, {}).get(self.primary)
                bar.set_postfix({"loss": f"{logs['loss']:.4g}"} | ({self.primary: f"{score:.3f}"} if score else {}))
                shown = {}
            bar.update()
            if self.step % loop.checkpoint_every == 0 and not last or stop:
                self._save({k: v for part, network in stage.trained().items() for k, v in _named(part, network)})
            if stop:
                raise KeyboardInterrupt(f"state saved at {stage.name} update {self.step}; --resume goes on from there")

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
            row = {"iteration": self.iteration, "seconds": round(self.seconds[row["stage"]], 3), **row}
            with open(self.run_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(plain_json(row, "row")) + "\n")

    def _truncate_log(self) -> None:
        # Rows after the checkpoint are about to be made again.
        path = self.run_dir / "metrics.jsonl"
        if self.accelerator.is_main_process and path.exists():
            rows = [row for row in read_log(self.run_dir) if row["iteration"] <= self.iteration]
            write_file(path, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def _save(self, tensors: Mapping[str, torch.Tensor]) -> None:
        if self.accelerator.is_main_process:
            meta = {
                "position": self.position,
                "step": self.step,
                "iteration": self.iteration,
                "scores": self.scores,
                "seconds": self.seconds,
            }
            # Numbered so that the end of a stage does not replace a checkpoint of the same iteration.
            number = self.iteration + self.position
            save_checkpoint(self.run_dir, number, tensors, plain_json(meta, "meta"), keep=self.loop.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _result_path(self, name: str) -> Path:
        return self.run_dir / "stages" / f"{name}.safetensors"

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
