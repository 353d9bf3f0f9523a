"""The training loop: accelerate, validation, checkpoints, interruption.

The only module that knows accelerate. What an update is stands in :mod:`fastgen.methods.matching`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from .._core.json_files import plain_json
from .._core.processes import gather_objects, together
from .._core.seeds import generator_for
from .._core.tensor_files import load_tensors, save_tensors
from .._core.tensors import wide_dtype
from .._core.timing import Stopwatch
from ..config.training import LoopConfig
from ..records.checkpoints import (
    add_prefix,
    check_finite,
    checkpoint_folders,
    load_newest_checkpoint,
    save_checkpoint,
    set_aside,
    with_prefix,
)
from ..records.log import RunLog, progress_bar, say
from .accelerator import start_tracker
from .signals import Stopped, StopRequest
from .stage import Stage
from .validation import Progress

HEARD_WITHIN = 5.0  # seconds, about, in which processes on GPUs hear that one of them got a signal
_BEST = "best"  # prefix of a stage's best weights in its checkpoints


class Trainer:
    """Runs stages one after the other, each from a network factory, and can be stopped anywhere.

    Every `evaluate_every` updates and at its end a stage is validated: the averaged weights are
    scored, the best of them kept, warnings said in plain words (see
    :class:`fastgen.training.validation.Progress`) and, with `patience`, the stage ended early. What a
    stage's `diagnose` says is logged beside the scores as "diagnostics". The first `warmup` updates
    of a stage leave its network as it was: validations of them are neither candidates nor a loss of
    patience.

    Args:
        stages: name -> factory of the stage. A factory is called when its stage begins, so that it
            sees the result of the stages before it (``trainer.result(name)``) and no optimiser
            exists before it is needed.
        evaluate: quick validation of a network with EMA weights -> scores.
        primary: the score shown in the progress bar and by which the best is chosen, lower is
            better.
        evaluate_start: also validate each stage before its first update, for stages that start from
            something trained.
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
        self.stages = stages
        self.run_dir = run_dir
        self.loop = loop
        self.accelerator = accelerator
        self.evaluate = evaluate
        self.primary = primary
        self.seed = seed
        self.evaluate_start = evaluate_start
        self.scores: dict[str, dict[str, float]] = {}  # validation scores at the end of each stage
        self.progress: dict[str, Progress] = {}
        self.seconds: dict[str, float] = {}
        self.position = 0
        self.step = 0
        self.iteration = 0
        self._tensors: Mapping[str, torch.Tensor] = {}
        self._stop = StopRequest()
        self._stride = 1  # of looks at a GPU; the time and the iteration of the last one
        self._since = (0.0, 0)
        if resume:
            with together():
                self._restore()
            if not (self.step or self.position) and accelerator.is_main_process:
                say(f"nothing to resume in {run_dir}: the run starts at its beginning")
            if len(places := set(gather_objects((self.position, self.step, self.iteration)))) > 1:
                raise ValueError(
                    f"expected all processes to find the same checkpoint in {run_dir}, got "
                    f"(stage, update, iteration) {sorted(places)}; put the run on a disk that "
                    "they share"
                )
        main = accelerator.is_main_process
        with together():
            if resume and main:
                set_aside(run_dir, self._number())
            track = (
                None
                if loop.tracker is None
                else start_tracker(accelerator, loop.tracker, run_dir, self.iteration)
            )
            self.log = RunLog(run_dir, batch_size=loop.batch_size, main_process=main, track=track)
            self.log.truncate(list(stages), self.position, self.step)

    def run(self) -> None:
        """Train what is left to train."""
        for name, factory in list(self.stages.items())[self.position :]:
            stage = factory()
            if self.step:
                self._load(stage)
            else:
                self.progress[name] = Progress(name, self.primary)
            stage.clock = self.log.clock
            with self._saying_what_is_left():
                with together():
                    if self.accelerator.is_main_process:
                        self._restore_best(name)
                self._tensors = {}
                with self._stop.listening(), self._bar(stage) as bar:
                    self._run_stage(stage, bar)
                    self._keep(stage, self._result_path(name))
                    self.position = self.position + 1
                    self.step = 0
                    self._save({})
                    if number := self._stopped_by():
                        raise Stopped(
                            f"state saved at the end of {name}; --resume goes on from there", number
                        )
            # Before the next stage makes its own.
            del stage
            self.accelerator.free_memory()
        for (
            tracker
        ) in self.accelerator.trackers:  # not end_training, which leaves the group of processes
            tracker.finish()

    def result(self, name: str) -> dict[str, torch.Tensor]:
        """EMA weights of the stage `name`: its best validated ones with `keep_best`, else those at
        its end.

        The end is validated, too, and so one of the candidates; it is also the result where no
        validation gave a finite score. The best of several noisy scores is seldom much better than
        the last.
        """
        kept = self.loop.keep_best and self.progress[name].best_step is not None
        return load_tensors(self._best_path(name) if kept else self._result_path(name))

    @property
    def warnings(self) -> list[str]:
        """What was warned of in all stages so far, in order."""
        return [text for progress in self.progress.values() for text in progress.warnings.values()]

    def _run_stage(self, stage: Stage, bar: Any) -> None:
        loop = self.loop
        shown = {}
        progress = self.progress[stage.name]
        self.log.clock.take()  # what led up to the stage is not its time
        self._stride = 1
        self._since = (time.monotonic(), self.iteration)
        if self.step == 0 and self.evaluate_start:
            self._log({"stage": stage.name, "step": 0, **self._validate(stage)})
        watch = Stopwatch(self.seconds, stage.name)
        on_cpu = self.accelerator.device.type == "cpu"
        while self.step < stage.steps and not progress.out_of_patience(loop.patience):
            step = self.step
            # Dropout draws from torch's global state; every other draw has its own generator.
            rank = self.accelerator.process_index
            seed = generator_for(self.seed, stage.name, "dropout", step, rank).initial_seed()
            # On a CPU torch.manual_seed would look for devices of every kind each time.
            (torch.default_generator if on_cpu else torch).manual_seed(seed)
            for network in stage.trained().values():
                network.at = step + 1
            logs = stage.update(step)
            self.log.count()
            self.step = step + 1
            self.iteration = self.iteration + 1
            last = self.step == stage.steps
            save = self.step % loop.checkpoint_every == 0 and not last
            # The end of a warm-up shows whether judges see anything, before the student follows
            # them.
            validate = self.step % loop.evaluate_every == 0 or last or self.step == stage.warmup
            log = self.step % loop.log_every == 0 or last or validate
            # A GPU would have to catch up with the host first; a CPU is asked at once.
            look = on_cpu or log or save or self.step % self._stride == 0
            stop = self._stopped_by() if look or self.accelerator.num_processes == 1 else 0
            skips, hopeless = self._skipped(stage) if look or stop else ({}, None)
            # Where it is read later, which updates have rows must not depend on when.
            skipped = skips.pop(self.step, {}) if log or on_cpu else {}
            watch.lap()
            with together() if skips else nullcontext():
                for at, row in skips.items():
                    place = {
                        "iteration": self.iteration + at - self.step,
                        "stage": stage.name,
                        "step": at,
                    }
                    self.log.note({**place, **row})
            if validate:
                shown = self._validate(stage)
                watch.restart()  # validation is not training time
            if log or skipped:
                logs = self._means(logs)
                row = self._log(
                    {"stage": stage.name, "step": self.step, **logs, **shown, **skipped}
                )
                bar.set_postfix(self._postfix(row))
                shown = {}
            bar.update()
            if save or stop or hopeless:
                tensors = {
                    k: v
                    for part, network in stage.trained().items()
                    for k, v in _named(part, network)
                }
                self._save(tensors, best_of=stage.name)
            if hopeless:
                raise FloatingPointError(
                    f"loss or gradient of the {hopeless}; look at the rows that metrics.jsonl "
                    "names, lower the learning rate in a new run, or raise train.most_skipped"
                )
            if stop:
                saved = f"state saved at {stage.name} update {self.step}"
                raise Stopped(f"{saved}; --resume goes on from there", stop)

    def _validate(self, stage: Stage) -> dict[str, Any]:
        """Score the stage's averaged weights, keep them if they are the best; returns what is worth
        logging."""
        with self.log.clock.phase("validation"):
            return self._scored(stage)

    def _scored(self, stage: Stage) -> dict[str, Any]:
        network = stage.averaged()
        progress = self.progress[stage.name]
        scores = self.scores[stage.name] = self._agreed(self.evaluate(network))
        warnings = progress.add(self.step, scores, trained=self.step > stage.warmup)
        if self.loop.keep_best and progress.best_step == self.step:
            self._keep(stage, self._best_path(stage.name), network)
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
            for text in [
                *(f"warning: {text}" for text in warnings),
                *filter(None, [row.get("stopped_early")]),
            ]:
                say(text)
        return row

    def _agreed(self, scores: dict[str, float]) -> dict[str, float]:
        """The main process' scores: what all processes decide by must be the same to the last
        digit."""
        if self.accelerator.num_processes == 1:
            return scores
        return broadcast_object_list([scores])[0]

    def _means(self, logs: Mapping[str, torch.Tensor | float]) -> dict[str, float]:
        """Means over the processes, each of which has the losses of its own share of the batch."""
        values = [float(value) for value in logs.values()]
        if self.accelerator.num_processes > 1:
            own = torch.tensor(
                values, dtype=wide_dtype(self.accelerator.device), device=self.accelerator.device
            )
            mean = self.accelerator.reduce(own, "mean")
            assert isinstance(
                mean, torch.Tensor
            )  # a tensor in, a tensor out; this tells the type checker
            values = mean.tolist()
        return dict(zip(logs, values, strict=True))

    def _bar(self, stage: Stage) -> Any:
        title = f"{self.position + 1}/{len(self.stages)} {stage.name}"
        return progress_bar(title, stage.steps, self.step, shown=self.accelerator.is_main_process)

    def _log(self, row: dict[str, Any]) -> dict[str, Any]:
        seconds = round(self.seconds.get(row["stage"], 0.0), 3)
        with together():
            row = self.log.write({"iteration": self.iteration, "seconds": seconds, **row})
        return row

    def _postfix(self, row: dict[str, Any]) -> dict[str, str]:
        """What of a row of the log is shown beside the progress."""
        shown = {"loss": f"{row['loss']:.4g}"}
        score = self.scores.get(row["stage"], {}).get(self.primary)
        shown |= {} if score is None else {self.primary: f"{score:.3f}"}
        shown |= {"samples/s": f"{row['samples_per_s']:.0f}"} if "samples_per_s" in row else {}
        return shown | ({"MB": f"{row['peak_memory_mb']:.0f}"} if "peak_memory_mb" in row else {})

    def _keep(self, stage: Stage, path: Path, network: nn.Module | None = None) -> None:
        """Write the stage's averaged weights, once they are known to be numbers."""
        weights = (stage.averaged() if network is None else network).state_dict()
        with together():
            check_finite(weights)
            if self.accelerator.is_main_process:
                save_tensors(path, weights)

    def _save(self, tensors: Mapping[str, torch.Tensor], *, best_of: str | None = None) -> None:
        """Write a checkpoint of `tensors`, with the best weights so far of the stage `best_of`."""
        with self.log.clock.phase("checkpoint"), together():
            if not self.accelerator.is_main_process:
                return
            if best_of is not None and (path := self._best_path(best_of)).exists():
                tensors = {**tensors, **add_prefix(_BEST, load_tensors(path))}
            meta = {
                "position": self.position,
                "step": self.step,
                "iteration": self.iteration,
                "scores": self.scores,
                "seconds": self.seconds,
                "progress": {name: progress.to_json() for name, progress in self.progress.items()},
            }
            kept = self.loop.keep_checkpoints
            save_checkpoint(
                self.run_dir, self._number(), tensors, plain_json(meta, "meta"), keep=kept
            )

    def _number(self) -> int:
        """Of the checkpoint: the end of a stage must not replace one of the same iteration."""
        return self.iteration + self.position

    def _restore(self) -> None:
        """Where the newest intact checkpoint stood; nothing if there is none."""
        if (found := load_newest_checkpoint(self.run_dir)) is None:
            return
        self._tensors, meta = found
        needed = ("position", "step", "iteration", "scores", "seconds", "progress")
        missing = [key for key in needed if key not in meta]
        if not missing:
            self.position = meta["position"]
            self.step = meta["step"]
            self.iteration = meta["iteration"]
            self.scores = meta["scores"]
            self.seconds = meta["seconds"]
            begun = list(self.stages)[: self.position + bool(self.step)]
            names = [field.name for field in fields(Progress)]
            for stage, name in itertools.product(begun, names):
                if name not in meta["progress"].get(stage, {}):
                    missing.append(f"progress.{stage}.{name}")
        if missing:
            raise ValueError(
                f"expected a checkpoint of this version in {self.run_dir}, got one of another, "
                f"without {', '.join(missing)}; go on with the version that wrote it, or start "
                "again in a new folder"
            )
        self.progress = {
            stage: Progress(**{name: meta["progress"][stage][name] for name in names})
            for stage in begun
        }
        for stage in list(self.stages)[: self.position]:
            self.result(stage)

    def _load(self, stage: Stage) -> None:
        """The state of the stage's networks as of the checkpoint."""
        networks = stage.trained()
        kept = (
            {_BEST}
            if self.loop.keep_best and self.progress[stage.name].best_step is not None
            else set()
        )
        found = {name.partition(".")[0] for name in self._tensors}
        for how, names in (
            ("without", {*networks, *kept} - found),
            ("with the unknown", found - {*networks, _BEST}),
        ):
            if names:
                raise ValueError(
                    f"expected a checkpoint of {', '.join(networks)} in {self.run_dir}, got one "
                    f"{how} {', '.join(sorted(names))}; go on with what wrote it, or begin a new "
                    "run"
                )
        for part, network in networks.items():
            try:
                network.load_tensors(with_prefix(self._tensors, part))
            except ValueError as error:
                raise ValueError(f"cannot resume the {part}: {error}") from error

    def _skipped(self, stage: Stage) -> tuple[dict[int, dict[str, Any]], str | None]:
        """What is logged of the updates that were found to be skipped just now, by the stage's
        update, and what is said of a network whose are too many."""
        found: dict[int, dict[str, Any]] = {}
        hopeless: str | None = None
        for part, network in stage.trained().items():
            for at, in_a_row, in_all in network.take_skipped():
                rows = stage.batch_rows(at - 1, part).tolist()
                parts = found.setdefault(at, {"skipped": {}})["skipped"]
                parts[part] = {"in_a_row": in_a_row, "in_all": in_all, "rows": rows}
                if in_a_row >= self.loop.most_skipped:
                    hopeless = f"{part} not finite in {in_a_row} updates in a row, up to {stage.name} update {at}"
        found = dict(sorted(found.items()))
        for at, told in found.items():
            for part, row in told["skipped"].items():
                self.progress[stage.name].skip(part, at, row["in_all"])
                if self.accelerator.is_main_process:
                    counts = f"{row['in_a_row']} in a row, {row['in_all']} in all"
                    rows = row["rows"]
                    shown = [
                        *map(str, rows[:8]),
                        *([f"... ({len(rows)} in metrics.jsonl)"] if rows[8:] else []),
                    ]
                    what = f"{stage.name} update {at}: loss or gradient of the {part} not finite, update skipped"
                    say(f"warning: {what} ({counts}); rows of its batch: {', '.join(shown)}")
        return found, hopeless

    @contextmanager
    def _saying_what_is_left(self) -> Iterator[None]:
        """A write that fails, or a state that is no number, ends the run and says what to go on
        from."""
        try:
            yield
        except (OSError, FloatingPointError) as error:
            newest = checkpoint_folders(self.run_dir)
            left = (
                f"the state in {newest[-1]} is intact, --resume goes on from it"
                if newest
                else "nothing was saved yet"
            )
            if (
                isinstance(error, OSError)
                and error.filename
                and self.run_dir not in Path(str(error.filename)).parents
            ):
                raise OSError(f"{error}; {left}") from error  # somebody else's file
            if isinstance(error, OSError):
                # Those of Python itself have a number; ours say all there is to say.
                where = f"cannot write {error.filename or self.run_dir}: {error.strerror}"
                said = error if error.errno is None else where
                raise OSError(
                    f"{said}; {left} once there is room and the run folder can be written"
                ) from error
            raise FloatingPointError(f"{error}; {left}") from error

    def _result_path(self, name: str) -> Path:
        return self.run_dir / "stages" / f"{name}.safetensors"

    def _best_path(self, name: str) -> Path:
        return self.run_dir / "stages" / f"{name}.best.safetensors"

    def _restore_best(self, name: str) -> None:
        """The best weights as of the checkpoint: those in the folder may be of an update that
        hasn't happened yet."""
        self._best_path(name).unlink(missing_ok=True)
        if best := with_prefix(self._tensors, _BEST):
            save_tensors(self._best_path(name), best)

    def _stopped_by(self) -> int:
        """Number of the signal that any process got, 0 if none: all leave the loop after the same
        update."""
        number = self._stop.number
        if self.accelerator.num_processes == 1:
            return number
        now, (before, updates) = time.monotonic(), self._since
        self._since = now, self.iteration
        stride = int(HEARD_WITHIN * max(1, self.iteration - updates) / max(1e-3, now - before))
        own = torch.tensor([[number, max(1, stride)]], device=self.accelerator.device)
        both = self.accelerator.gather(own)
        assert isinstance(
            both, torch.Tensor
        )  # a tensor in, a tensor out; this tells the type checker
        # The clock of one of them, so that all look after the same updates.
        self._stride = int(both[0, 1])
        return int(both[:, 0].max())


def _named(part: str, network: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from add_prefix(part, network.tensors()).items()
