"""Resuming a run: where it stands, and the files that hold all it needs to go on, bit for bit.

Beside ``checkpoints/`` (:mod:`fastgen.records.checkpoints`) a run keeps ``stages/``:
``<stage>.safetensors`` are the averaged weights at the end of a stage, ``<stage>.best.safetensors``
the best validated ones so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from .._core.files import check_file
from .._core.json_files import plain_json
from .._core.messages import brief, first_names
from .._core.modules import state_of
from .._core.processes import gather_objects, together
from .._core.tensor_files import load_tensors, save_tensors
from ..config.training import LoopConfig
from ..records.checkpoints import (
    Checkpoint,
    add_prefix,
    check_finite,
    checkpoint_folders,
    newest_checkpoint,
    save_checkpoint,
    set_aside,
    with_prefix,
)
from ..records.log import say
from ..records.origin import run_stamp
from .processes import Processes
from .run_state import RunState
from .stage import Stage
from .trained_network import TrainedNetwork

__all__ = ["RunFiles", "saying_what_is_left", "tensors_of"]

_EDITED = "it was edited: restore it, or remove it to go on from the one before"
# In checkpoints of a stage: prefixes of its best weights, and of the samples of the average that
# later ones are compared with.
BEST = "best"
REFERENCE = "reference"


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

    Attributes:
        reference: samples of the average that later ones of the stage are compared with; None
            before there is one.
    """

    def __init__(self, run_dir: Path, loop: LoopConfig, processes: Processes) -> None:
        self.reference: Tensor | None = None
        self.run_dir = run_dir
        self.loop = loop
        self.processes = processes
        self._owner = run_stamp(run_dir)
        self._tensors: Mapping[str, Tensor] = {}  # of the checkpoint, until its stage has begun

    # ---- Going on --------------------------------------------------------------------------------

    def restore(self, stages: Sequence[str], primary: str) -> RunState:
        """Where the newest intact checkpoint stood, or the beginning if there is none.

        Args:
            stages: names of all stages of the run, in order.
            primary: name of the score that they are compared by.

        Raises:
            ValueError: checkpoints are there, and none is intact; or the newest is of another
                run or version, or not the same for all processes; or the result of a stage is
                damaged.
        """
        with together():
            state = self._read_state(stages)
            for stage, progress in state.progress.items():
                if progress.primary != primary:
                    raise ValueError(
                        f"expected a checkpoint of {stage} that is scored by {primary}, got one by "
                        f"{brief(progress.primary)}: go on with the task of the run"
                    )
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
        found = newest_checkpoint(self.run_dir)
        if found is None:
            return RunState()
        where = str(found.folder)
        if self._owner and found.meta.get("run") != self._owner["run"]:
            raise ValueError(
                f"{where} is a checkpoint that was made by another run: restore the run's own, or "
                "begin a new run in another folder"
            )
        try:
            state = RunState.from_json(found.meta, stages)
        except LookupError as missing:
            raise ValueError(
                f"expected a checkpoint of this version in {self.run_dir}, got one of another, "
                f"without {missing.args[0]}; go on with the version that wrote it, or start again "
                "in a new folder"
            ) from missing
        except ValueError as wrong:
            raise ValueError(f"{where}: {wrong}; {_EDITED}") from wrong
        self._tensors = found.tensors
        self._check_place(state, found)
        # Found damaged now rather than after hours.
        for stage in stages[: state.position]:
            check_file(self._result_path(stage), _EDITED)
            self.result(stage, state)
        return state

    def _check_place(self, state: RunState, found: Checkpoint) -> None:
        """Refuse a state that is not that of its folder, or not that of its tensors."""
        if state.number != found.number:
            raise ValueError(
                f"{found.folder}: expected updates and stages that make {found.number}, got "
                f"{state.number}; {_EDITED}"
            )
        if self._tensors and not state.updates:
            raise ValueError(
                f"{found.folder}: expected no networks between two stages, got "
                f"{first_names(self._tensors, most=3)}; {_EDITED}"
            )

    def set_damaged_aside(self, state: RunState) -> None:
        """Rename checkpoints after `state`, which could not be read."""
        if self.processes.is_main_process:
            set_aside(self.run_dir, state.number)

    def load(self, stage: Stage, state: RunState) -> None:
        """Give the networks of `stage` their state as of the checkpoint.

        Raises:
            ValueError: the checkpoint lacks one of them or a part of it, or has one too many.
        """
        if state.updates > stage.updates:
            raise ValueError(
                f"expected at most {stage.updates} updates of {stage.name} in a checkpoint of "
                f"{self.run_dir}, got {state.updates}; {_EDITED}"
            )
        networks = stage.trained()
        kept = set()
        if self._has_best(stage.name, state):
            kept.add(BEST)
        if state.progress[stage.name].reference_step is not None:
            kept.add(REFERENCE)
        found = {name.partition(".")[0] for name in self._tensors}
        lacking = {*networks, *kept} - found
        unknown = found - {*networks, BEST, REFERENCE}
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
        update that hasn't happened yet. Finds its `reference` again, and lets go of the
        checkpoint."""
        with together():
            if self.processes.is_main_process:
                path = self._best_path(stage)
                path.unlink(missing_ok=True)
                best = with_prefix(self._tensors, BEST)
                if best:
                    save_tensors(path, best, **self._owner)
        self.reference = with_prefix(self._tensors, REFERENCE).get("samples")
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
            if best_of is not None and self.reference is not None:
                tensors = {**tensors, **add_prefix(REFERENCE, {"samples": self.reference})}
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
