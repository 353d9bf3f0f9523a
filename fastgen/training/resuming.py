"""Resuming a run: where it stands, and the files that hold all it needs to go on, bit for bit.

Beside ``checkpoints/`` (:mod:`fastgen.records.checkpoints`) a run keeps ``stages/``:
``<stage>.safetensors`` are the averaged weights at the end of a stage, ``<stage>.best.safetensors``
the best validated ones so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._core.json_files import plain_json
from .._core.modules import state_of
from .._core.processes import gather_objects, together
from .._core.tensor_files import load_tensors, save_tensors
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
from ..records.log import say
from ..records.origin import run_stamp
from .processes import Processes
from .stage import Stage
from .trained_network import TrainedNetwork
from .validation import Progress

__all__ = ["RunFiles", "RunState", "saying_what_is_left", "tensors_of"]

BEST = "best"  # prefix of a stage's best weights in its checkpoints


@dataclass
class RunState:
    """Where a run stands: the numbers of a checkpoint.

    Attributes:
        position: stages that are done.
        updates: of the stage at hand that are done; "step" in files.
        iteration: updates of all stages that are done.
        scores: stage -> the scores of its last validation.
        seconds: part of the job -> wall seconds, and "<part>_cpu" -> CPU seconds.
        progress: stage -> its validations so far.
    """

    position: int = 0
    updates: int = 0
    iteration: int = 0
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    progress: dict[str, Progress] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Number of a checkpoint taken now. Stages count too, since the end of a stage has the
        iteration of its last update."""
        return self.iteration + self.position

    def count_update(self) -> None:
        """One more update was done."""
        self.updates += 1
        self.iteration += 1

    def count_stage(self) -> None:
        """One more stage was done."""
        self.position += 1
        self.updates = 0

    def to_json(self) -> dict[str, Any]:
        """What the JSON of a checkpoint holds."""
        return {
            "position": self.position,
            "step": self.updates,
            "iteration": self.iteration,
            "scores": self.scores,
            "seconds": self.seconds,
            "progress": {name: progress.to_json() for name, progress in self.progress.items()},
        }

    @classmethod
    def from_json(cls, meta: Mapping[str, Any], stages: Sequence[str]) -> RunState:
        """Inverse of `to_json`.

        Args:
            meta: JSON of a checkpoint.
            stages: names of all stages of the run, in order.

        Raises:
            ValueError: the message is the list of missing keys alone, "seconds, progress.kd.best";
                the caller puts it into a sentence.
        """
        missing = [key for key in cls().to_json() if key not in meta]
        if missing:
            raise ValueError(", ".join(missing))
        begun = stages[: meta["position"] + bool(meta["step"])]
        names = [field.name for field in fields(Progress)]
        for stage in begun:
            found = meta["progress"].get(stage, {})
            missing += [f"progress.{stage}.{name}" for name in names if name not in found]
        if missing:
            raise ValueError(", ".join(missing))
        progress = {
            stage: Progress(**{name: meta["progress"][stage][name] for name in names})
            for stage in begun
        }
        return cls(
            position=meta["position"],
            updates=meta["step"],
            iteration=meta["iteration"],
            scores=meta["scores"],
            seconds=meta["seconds"],
            progress=progress,
        )


def tensors_of(networks: Mapping[str, TrainedNetwork]) -> dict[str, Tensor]:
    """The state of all networks of a stage, as ``<network>.<name>``. Of sharded networks all
    processes must ask for it."""
    tensors: dict[str, Tensor] = {}
    for name, network in networks.items():
        tensors |= add_prefix(name, network.tensors())
    return tensors


class RunFiles:
    """The files from which a run goes on. All processes must call each method, in one order; the
    main process writes.

    Args:
        run_dir: folder of the run.
        loop: how many checkpoints are kept, and whether best weights are.
        processes: that share the run.
    """

    def __init__(self, run_dir: Path, loop: LoopConfig, processes: Processes) -> None:
        self.run_dir = run_dir
        self.loop = loop
        self.processes = processes
        self._owner = run_stamp(run_dir)
        self._tensors: Mapping[str, Tensor] = {}  # of the checkpoint, until its stage has begun

    # ---- Going on --------------------------------------------------------------------------------

    def restore(self, stages: Sequence[str]) -> RunState:
        """Where the newest intact checkpoint stood, or the beginning if there is none.

        Args:
            stages: names of all stages of the run, in order.

        Raises:
            ValueError: checkpoints are there, and none is intact; or the newest is of another
                run or version, or not the same for all processes; or the result of a stage is
                damaged.
        """
        with together():
            state = self._read_state(stages)
        if not (state.position or state.updates) and self.processes.is_main_process:
            say(f"nothing to resume in {self.run_dir}: the run starts at its beginning")
        places = set(gather_objects((state.position, state.updates, state.iteration)))
        if len(places) > 1:
            raise ValueError(
                f"expected all processes to find the same checkpoint in {self.run_dir}, got "
                f"(stage, update, iteration) {sorted(places)}; put the run on a disk that they "
                "share"
            )
        return state

    def _read_state(self, stages: Sequence[str]) -> RunState:
        found = load_newest_checkpoint(self.run_dir)
        if found is None:
            return RunState()
        self._tensors, meta = found
        if self._owner and meta.get("run") != self._owner["run"]:
            raise ValueError(
                f"{checkpoint_folders(self.run_dir)[-1].parent} holds a checkpoint that was made "
                "by another run: restore the run's own, or begin a new run in another folder"
            )
        try:
            state = RunState.from_json(meta, stages)
        except ValueError as missing:
            raise ValueError(
                f"expected a checkpoint of this version in {self.run_dir}, got one of another, "
                f"without {missing}; go on with the version that wrote it, or start again in a new "
                "folder"
            ) from missing
        # Found damaged now rather than after hours.
        for stage in stages[: state.position]:
            self.result(stage, state)
        return state

    def set_damaged_aside(self, state: RunState) -> None:
        """Rename checkpoints after `state`, which could not be read."""
        if self.processes.is_main_process:
            set_aside(self.run_dir, state.number)

    def load(self, stage: Stage, state: RunState) -> None:
        """Give the networks of `stage` their state as of the checkpoint.

        Raises:
            ValueError: the checkpoint lacks one of them or a part of it, or has one too many.
        """
        networks = stage.trained()
        best = {BEST} if self._has_best(stage.name, state) else set()
        found = {name.partition(".")[0] for name in self._tensors}
        lacking = {*networks, *best} - found
        unknown = found - {*networks, BEST}
        for how, names in (("without", lacking), ("with the unknown", unknown)):
            if names:
                raise ValueError(
                    f"expected a checkpoint of {', '.join(networks)} in {self.run_dir}, got one "
                    f"{how} {', '.join(sorted(names))}; go on with what wrote it, or begin a new "
                    "run"
                )
        for name, network in networks.items():
            try:
                network.load_tensors(with_prefix(self._tensors, name))
            except ValueError as error:
                raise ValueError(f"cannot resume the {name}: {error}") from error

    def restore_best(self, stage: str) -> None:
        """Write the best weights of `stage` as of the checkpoint: those in the folder may be of an
        update that hasn't happened yet. Lets go of the checkpoint."""
        with together():
            if self.processes.is_main_process:
                path = self._best_path(stage)
                path.unlink(missing_ok=True)
                best = with_prefix(self._tensors, BEST)
                if best:
                    save_tensors(path, best, **self._owner)
        self._tensors = {}

    # ---- Keeping ---------------------------------------------------------------------------------

    def save(
        self, state: RunState, tensors: Mapping[str, Tensor], *, best_of: str | None = None
    ) -> None:
        """Write a checkpoint.

        Args:
            state: where the run stands.
            tensors: of the networks of the stage at hand, as of `tensors_of`; none between stages.
            best_of: the stage whose best weights so far are in it, too.
        """
        with together():
            if not self.processes.is_main_process:
                return
            if best_of is not None and self._best_path(best_of).exists():
                best = load_tensors(self._best_path(best_of), **self._owner)
                tensors = {**tensors, **add_prefix(BEST, best)}
            meta = plain_json({**state.to_json(), **self._owner}, "meta")
            keep = self.loop.keep_checkpoints
            save_checkpoint(self.run_dir, state.number, tensors, meta, keep=keep)

    def keep_best(self, stage: str, network: nn.Module) -> None:
        """Write the averaged weights of `stage` as its best ones so far.

        Raises:
            FloatingPointError: they are no numbers.
        """
        self._keep(self._best_path(stage), network)

    def keep_result(self, stage: str, network: nn.Module) -> None:
        """Write the averaged weights at the end of `stage`; raises what `keep_best` does."""
        self._keep(self._result_path(stage), network)

    def _keep(self, path: Path, network: nn.Module) -> None:
        weights = state_of(network)
        with together():
            check_finite(weights)
            if self.processes.is_main_process:
                save_tensors(path, weights, **self._owner)

    def result(self, stage: str, state: RunState) -> dict[str, Tensor]:
        """Averaged weights of a stage that is done: the best validated ones with `keep_best`, else
        those at its end.

        The end is validated, too, and so one of the candidates. It is also the result where no
        validation gave a finite score. The best of several noisy scores is seldom much better than
        the last.
        """
        kept = self._has_best(stage, state)
        path = self._best_path(stage) if kept else self._result_path(stage)
        return load_tensors(path, **self._owner)

    def _has_best(self, stage: str, state: RunState) -> bool:
        return self.loop.keep_best and state.progress[stage].best_step is not None

    def _result_path(self, stage: str) -> Path:
        return self.run_dir / "stages" / f"{stage}.safetensors"

    def _best_path(self, stage: str) -> Path:
        return self.run_dir / "stages" / f"{stage}.best.safetensors"


@contextmanager
def saying_what_is_left(run_dir: Path) -> Iterator[None]:
    """Inside, a write that fails, or a state that is no number, is raised again with what the run
    can go on from.

    Raises:
        OSError, FloatingPointError: as inside, such as `cannot write ...: No space left on device;
            the state in ... is intact, --resume goes on from it once there is room ...`.
    """
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(f"{error}; {_what_is_left(run_dir)}") from error
    except OSError as error:
        left = _what_is_left(run_dir)
        if error.filename and run_dir not in Path(str(error.filename)).parents:
            raise OSError(f"{error}; {left}") from error  # somebody else's file
        if error.errno is None:
            said = str(error)  # one of ours, which says all there is to say
        else:
            said = f"cannot write {error.filename or run_dir}: {error.strerror}"
        raise OSError(
            f"{said}; {left} once there is room and the run folder can be written"
        ) from error


def _what_is_left(run_dir: Path) -> str:
    folders = checkpoint_folders(run_dir)
    if not folders:
        return "nothing was saved yet"
    return f"the state in {folders[-1]} is intact, --resume goes on from it"
