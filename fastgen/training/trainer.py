"""The training loop: updates, validation, the log, checkpoints, interruption.

The files of :mod:`fastgen.methods` say what an update does; :mod:`fastgen.training.resuming` holds
what a run goes on from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._core.processes import together
from .._core.seeds import generator_for
from .._core.tensors import wide_dtype
from .._core.timing import Stopwatch
from ..config.training import LoopConfig
from ..records.log import RunLog, progress_bar, say
from .choice import Compare, Comparisons, Validation, compare_samples
from .due import due_after
from .evaluations import VALIDATION, Asked, TeacherEvaluations
from .limits import Limits
from .processes import Processes
from .resuming import RunFiles, saying_what_is_left, tensors_of
from .run_state import RunState
from .signals import SharedStop, Stopped, StopRequest
from .skipped import Skipped, note_skipped, say_skipped, take_skipped
from .stage import Stage
from .validation import REMEDY, Progress

__all__ = ["Trainer"]


class Trainer:
    """Runs stages one after the other, each from its factory, and can be stopped anywhere.

    Every `evaluate_every` updates (a short stage more often) and at its end a stage is validated:
    its averaged weights are scored, the best of them are kept, and warnings are said
    (:class:`fastgen.training.validation.Progress`). With `patience` a stage without improvement
    ends early, as it does where its budget ends (:mod:`fastgen.training.endings`). The first
    `warmup` updates of a stage leave its network as it was; it is validated at their end, which
    can't be the best and costs no patience.

    Args:
        stages: name -> factory of the stage. It is called when the stage begins, so that it finds
            the results of those before it (``trainer.result(name)``), and no optimiser exists
            before it is needed.
        run_dir: folder of the run.
        loop: budgets and intervals.
        processes: that share the run.
        evaluate: quick validation of a network with averaged weights.
        compare: two networks by their samples in it; None: by the primary score alone.
        primary: the score by which the best is chosen, lower is better; the progress bar shows it.
        seed: of dropout. All else that is drawn has generators of its own.
        resume: whether to go on from the newest checkpoint in `run_dir`, if there is one.
        evaluate_start: also validate each stage before its first update, for stages that start from
            something trained.
        remedies: stage -> what its warnings advise; a stage that isn't in it has general advice.
        teacher: counts what is asked of the teacher, and limits it; None: there is none.

    Attributes:
        evaluations: part of the job -> rows that all processes have asked of the teacher.

    Raises:
        ValueError: there is nothing to go on from that is intact, or of this version.
    """

    def __init__(
        self,
        stages: Mapping[str, Callable[[], Stage]],
        run_dir: Path,
        loop: LoopConfig,
        processes: Processes,
        *,
        evaluate: Callable[[nn.Module], Validation],
        compare: Compare | None = None,
        primary: str,
        seed: int,
        resume: bool,
        evaluate_start: bool = False,
        remedies: Mapping[str, str] | None = None,
        teacher: Asked | None = None,
    ) -> None:
        self.stages = stages
        self.run_dir = run_dir
        self.loop = loop
        self.processes = processes
        self.evaluate = evaluate
        self.compare = compare
        self.primary = primary
        self.seed = seed
        self.evaluate_start = evaluate_start
        self.remedies = remedies or {}
        self.files = RunFiles(run_dir, loop, processes)
        self.state = self.files.restore(list(stages), primary) if resume else RunState()
        self.evaluations = self.state.teacher_evaluations
        self.teacher = TeacherEvaluations(teacher, self.evaluations, processes, list(stages))
        self.limits = Limits(self.state, loop, self.teacher)
        self._request = StopRequest()
        self._stop = SharedStop(self._request, processes)
        # A CPU tells at once what it has computed, a GPU when it has caught up with the host.
        self._on_cpu = processes.device.type == "cpu"
        with together():
            if resume:
                self.files.set_damaged_aside(self.state)
            track = None
            if loop.tracker is not None:
                track = processes.start_tracker(loop.tracker, run_dir, self.state.iteration)
            main = processes.is_main_process
            self.log = RunLog(run_dir, batch_size=loop.batch_size, main_process=main, track=track)
            self.log.truncate(list(stages), self.state.position, self.state.updates)

    @property
    def seconds(self) -> dict[str, float]:
        """Part of the job -> its wall seconds so far, and "<part>_cpu" -> its CPU seconds."""
        return self.state.seconds

    @property
    def warnings(self) -> list[str]:
        """What was warned of in all stages so far, in order."""
        of_stages = self.state.progress.values()
        return [text for progress in of_stages for text in progress.warnings.values()]

    def stage_before(self) -> str | None:
        """The stage that has ended last; None before the first has."""
        return list(self.stages)[self.state.position - 1] if self.state.position else None

    def result(self, stage: str) -> dict[str, Tensor]:
        """Averaged weights of a stage that is done, as of `RunFiles.result`."""
        return self.files.result(stage, self.state)

    def run(self) -> None:
        """Train what is left to train.

        Raises:
            Stopped: a signal came; the state is saved.
            FloatingPointError: too many updates in a row were skipped; the state is saved.
            OSError: a file cannot be written.
        """
        for factory in list(self.stages.values())[self.state.position :]:
            self._run_stage(factory())
            # Before the next stage makes networks of its own.
            self.processes.free_memory()
        self.processes.finish_trackers()

    def _run_stage(self, stage: Stage) -> None:
        """Train a stage from where it stood to its end, and keep its result."""
        if self.state.updates:
            self.files.load(stage, self.state)
        else:
            remedy = self.remedies.get(stage.name, REMEDY)
            self.state.progress[stage.name] = Progress(stage.name, self.primary, remedy=remedy)
        stage.clock = self.log.clock
        with saying_what_is_left(self.run_dir):
            self.files.restore_best(stage.name)
            title = f"{self.state.position + 1}/{len(self.stages)} {stage.name}"
            shown = self.processes.is_main_process
            bar = progress_bar(title, stage.updates, self.state.updates, shown=shown)
            with self._request.listening(), bar:
                self._train(stage, bar)
                self.files.keep_result(stage.name, stage.averaged())
                self.state.count_stage()
                self.save({})
                number = self._stop.heard(self.state.iteration)
                if number:
                    saved = f"state saved at the end of {stage.name}"
                    raise Stopped(f"{saved}; --resume goes on from there", number)

    def _train(self, stage: Stage, bar: Any) -> None:
        """The updates of a stage, until the last one or until it ends early."""
        state = self.state
        self.log.clock.take()  # what led up to the stage is not its time
        self._stop.restart(state.iteration)
        shown = self.processes.is_main_process
        ended = _told(self.limits.heed_budget(stage), shown=shown)  # before any update
        if state.updates == 0 and self.evaluate_start:
            self._log(stage, {**self.validate(stage), **ended})
        watch = Stopwatch(state.seconds, stage.name)
        scored: dict[str, Any] = {}  # by the last validation, until it is logged

        while not self.limits.is_over(stage):
            # The update.
            _seed_dropout(self.seed, stage.name, state.updates, self.processes)
            _prepare(stage, state.updates, self.limits.share_of_rate(stage))
            with self.teacher.asked_by(stage.name):
                losses = stage.update(state.updates)
            state.count_update()
            self.log.count()
            ended = _told(self.limits.heed_budget(stage), shown=shown)
            due = due_after(state.updates, stage, self.loop, last=self.limits.is_over(stage))

            # Signals, and updates that were skipped: what the device must be asked for.
            look = self._on_cpu or due.row or due.checkpoint or self._stop.due(state.updates)
            stop = self._stop.heard(state.iteration, ask=look)
            skipped = Skipped({})
            if look or stop:
                progress = state.progress[stage.name]
                skipped = take_skipped(stage, progress, self.loop.most_skipped)
                say_skipped(stage.name, skipped, shown=self.processes.is_main_process)
            # A skip stands in a row of losses only where that row is due anyway, or on a CPU, which
            # is asked each time. So the log is the same however seldom a GPU is asked.
            own = {}
            if due.row or self._on_cpu:
                own = skipped.rows.pop(state.updates, {})
            own = {**own, **ended}
            watch.lap()
            note_skipped(stage.name, skipped, self.log, state)

            # Validation.
            if due.validation:
                scored = self.validate(stage)
                watch.restart()  # it is not training time

            # The log.
            if due.row or own:
                row = self._log(stage, {**_means(losses, self.processes), **scored, **own})
                score = state.scores.get(stage.name, {}).get(self.primary)
                bar.set_postfix(_beside_bar(row, {self.primary: score}))
                scored = {}
            bar.update()

            # A checkpoint.
            if due.checkpoint or stop or skipped.hopeless:
                self.save(tensors_of(stage.trained()), best_of=stage.name)

            # The end, before its time.
            skipped.check_hope()
            if stop:
                saved = f"state saved at {stage.name} update {state.updates}"
                raise Stopped(f"{saved}; --resume goes on from there", stop)

    # ---- Validation ------------------------------------------------------------------------------

    def validate(self, stage: Stage) -> dict[str, Any]:
        """Score the averaged weights of a stage and keep them if they are the best; returns what is
        worth logging, and says what is worth saying."""
        with self.log.clock.phase("validation"), self.teacher.asked_by(VALIDATION):
            row = self._scored(stage)
        if self.processes.is_main_process:
            for text in row.get("warnings", []):
                say(f"warning: {text}")
        return row

    def _scored(self, stage: Stage) -> dict[str, Any]:
        updates = self.state.updates
        progress = self.state.progress[stage.name]
        network = stage.averaged()
        trained = updates > stage.warmup
        # What all processes decide by must be the same to the last digit.
        validation = self.evaluate(network)
        scores = self.processes.of_main(validation.scores)
        self.state.scores[stage.name] = scores
        compare = self.compare if trained else None
        compared = compare_samples(compare, self.files.reference, validation.samples)
        if compared is not None:
            compared = self.processes.of_main(compared)
        warnings = progress.add(updates, scores, trained=trained, compared=compared)
        if progress.reference_step == updates:
            self.files.reference = validation.samples
        if self.loop.keep_best and progress.best_step == updates:
            self.files.keep_best(stage.name, network)
        row = {**scores, **_compared_row(compared), **_remarks(stage, updates, progress, warnings)}
        ended = self.limits.heed_patience(stage, compared)
        return {**row, **_told(ended, shown=self.processes.is_main_process)}

    # ---- The log ---------------------------------------------------------------------------------

    def _log(self, stage: Stage, values: dict[str, Any]) -> dict[str, Any]:
        """Write a row of the log about the update that was done last; returns it."""
        seconds = round(self.state.seconds.get(stage.name, 0.0), 3)
        row = {"iteration": self.state.iteration, "seconds": seconds}
        row |= {"stage": stage.name, "step": self.state.updates, **values}
        row |= self.teacher.row()
        with together():
            return self.log.write(row)

    # ---- Checkpoints -----------------------------------------------------------------------------

    def save(self, tensors: Mapping[str, Tensor], *, best_of: str | None = None) -> None:
        """Write a checkpoint (:meth:`fastgen.training.resuming.RunFiles.save`)."""
        self.teacher.add_up()
        with self.log.clock.phase("checkpoint"):
            self.files.save(self.state, tensors, best_of=best_of)


def _remarks(stage: Stage, updates: int, progress: Progress, warnings: list[str]) -> dict[str, Any]:
    """What a validation's row of the log says beside scores: diagnostics, and what is warned of."""
    row: dict[str, Any] = {}
    # Before the first update fake score and teacher are one: there is nothing to see.
    found = stage.diagnose(updates) if updates else {}
    if found:
        row["diagnostics"] = found
        # Later a discriminator at chance may be one that the student has caught up with.
        if updates == stage.warmup:
            warnings = warnings + progress.note_diagnostics(updates, found)
    if warnings:
        row["warnings"] = warnings
    return row


def _compared_row(compared: Comparisons | None) -> dict[str, Any]:
    """What a row of the log says of a comparison; nothing where nothing was compared."""
    if not compared:
        return {}
    rows = {}
    for name, found in compared.items():
        rows[name] = {"difference": found.difference, "low": found.low, "high": found.high}
    return {"compared": rows}


def _prepare(stage: Stage, updates: int, share_of_rate: float) -> None:
    """Tell the networks of a stage which update comes, and how far their rates have fallen."""
    for network in stage.trained().values():
        network.at = updates + 1
        network.share_of_rate = share_of_rate


def _told(early_end: str | None, *, shown: bool) -> dict[str, str]:
    """What a row of the log says of a stage that ends early, after it was said where `shown`."""
    if early_end is None:
        return {}
    if shown:
        say(early_end)
    return {"stopped_early": early_end}


def _seed_dropout(seed: int, stage: str, update: int, processes: Processes) -> None:
    """Dropout draws from torch's global state; every other draw has its own generator."""
    generator = generator_for(seed, stage, "dropout", update, processes.process_index)
    # torch.manual_seed looks for devices of every kind each time.
    seeded = torch.default_generator if processes.device.type == "cpu" else torch
    seeded.manual_seed(generator.initial_seed())


def _means(losses: Mapping[str, Tensor | float], processes: Processes) -> dict[str, float]:
    """Means over the processes, each of which has the losses of its own share of the batch."""
    values = [float(value) for value in losses.values()]
    if processes.num_processes > 1:
        device = processes.device
        own = torch.tensor(values, dtype=wide_dtype(device), device=device)
        values = processes.mean(own).tolist()
    return dict(zip(losses, values, strict=True))


def _beside_bar(row: Mapping[str, Any], scores: Mapping[str, float | None]) -> dict[str, str]:
    """What of a row of the log is shown beside the progress, with the `scores` that are known."""
    shown = {"loss": f"{row['loss']:.4g}"}
    for name, score in scores.items():
        if score is not None:
            shown[name] = f"{score:.3f}"
    if "samples_per_s" in row:
        shown["samples/s"] = f"{row['samples_per_s']:.0f}"
    if "peak_memory_mb" in row:
        shown["MB"] = f"{row['peak_memory_mb']:.0f}"
    return shown
