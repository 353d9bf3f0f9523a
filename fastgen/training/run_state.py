"""Where a run stands: the numbers of a checkpoint, and what they must be to be gone on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .._core.json_kinds import count, listed, mapping, maybe, number, positive, record, text
from .._core.messages import brief, first_names
from .endings import ENDING, Ending
from .validation import Progress

__all__ = ["RunState"]

_SCORES = mapping(maybe(number))
_PROGRESS = record(
    {
        "stage": text,
        "primary": text,
        "start": maybe(mapping(number)),
        "start_step": count,
        "spread": maybe(positive),
        "spread_step": count,
        "best": maybe(number),
        "best_step": maybe(count),
        "reference_step": maybe(count),
        "stale": count,
        "warnings": mapping(text),
        "remedy": text,
    }
)
_KINDS = {
    "position": count,
    "step": count,
    "iteration": count,
    "updates": listed(count),
    "scores": mapping(_SCORES),
    "seconds": mapping(number),
    "progress": mapping(_PROGRESS),
}
# Earlier versions counted no evaluations, and ended no stage slowly.
_STATE = record(
    _KINDS,
    optional={"run": text, "teacher_evaluations": mapping(count), "endings": mapping(ENDING)},
)


@dataclass
class RunState:
    """Where a run stands: the numbers of a checkpoint.

    Attributes:
        position: stages that are done.
        updates: of the stage at hand that are done; "step" in files.
        iteration: updates of all stages that are done.
        earlier: updates of each of the stages that are done.
        scores: stage -> the scores of its last validation.
        seconds: part of the job -> wall seconds, and "<part>_cpu" -> CPU seconds.
        progress: stage -> its validations so far.
        teacher_evaluations: part of the job -> rows asked of the teacher, by all processes.
        endings: stage -> why and when it ends early, of stages that do.
    """

    position: int = 0
    updates: int = 0
    iteration: int = 0
    earlier: list[int] = field(default_factory=list)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    progress: dict[str, Progress] = field(default_factory=dict)
    teacher_evaluations: dict[str, int] = field(default_factory=dict)
    endings: dict[str, Ending] = field(default_factory=dict)

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
        self.earlier.append(self.updates)
        self.updates = 0

    def to_json(self) -> dict[str, Any]:
        """What the JSON of a checkpoint holds."""
        return {
            "position": self.position,
            "step": self.updates,
            "iteration": self.iteration,
            "updates": [*self.earlier, self.updates],
            "scores": self.scores,
            "seconds": self.seconds,
            "progress": {name: progress.to_json() for name, progress in self.progress.items()},
            "teacher_evaluations": self.teacher_evaluations,
            "endings": {name: ending.to_json() for name, ending in self.endings.items()},
        }

    @classmethod
    def from_json(cls, meta: Mapping[str, Any], stages: Sequence[str]) -> RunState:
        """Inverse of `to_json`, whatever `meta` holds.

        Args:
            meta: JSON of a checkpoint.
            stages: names of all stages of the run, in order.

        Raises:
            LookupError: the argument is the list of missing keys alone, "seconds,
                progress.kd.best"; the caller puts it into a sentence.
            ValueError: a value that no run has, or some that contradict each other: what was
                expected, and what was found.
        """
        _check_whole(meta, stages)
        if wrong := _STATE(dict(meta), "state") or _contradiction(meta, stages):
            raise ValueError(wrong)
        progress = {name: Progress(**values) for name, values in meta["progress"].items()}
        return cls(
            position=meta["position"],
            updates=meta["step"],
            iteration=meta["iteration"],
            earlier=meta["updates"][:-1],
            scores=meta["scores"],
            seconds=meta["seconds"],
            progress=progress,
            teacher_evaluations=meta.get("teacher_evaluations", {}),
            endings={name: Ending(**values) for name, values in meta.get("endings", {}).items()},
        )


def _check_whole(meta: Mapping[str, Any], stages: Sequence[str]) -> None:
    """LookupError that names what is missing."""
    missing = [key for key in _KINDS if key not in meta]
    if missing:
        raise LookupError(", ".join(missing))
    if not isinstance(meta["progress"], dict):
        return
    names = [field.name for field in fields(Progress)]
    for stage in _begun(meta, stages):
        found = meta["progress"].get(stage, {})
        if isinstance(found, dict):
            missing += [f"progress.{stage}.{name}" for name in names if name not in found]
    if missing:
        raise LookupError(", ".join(missing))


def _begun(meta: Mapping[str, Any], stages: Sequence[str]) -> list[str]:
    """The stages that are done or at hand; none where the numbers are no counts."""
    if count(meta["position"], "") or count(meta["step"], ""):
        return []
    return list(stages[: meta["position"] + bool(meta["step"])])


def _contradiction(meta: Mapping[str, Any], stages: Sequence[str]) -> str | None:
    """What of the numbers can't be, of a run of these stages."""
    position = meta["position"]
    step = meta["step"]
    iteration = meta["iteration"]
    begun = _begun(meta, stages)
    if position > len(stages) or (position == len(stages) and step):
        return f"expected at most {len(stages)} stages, got {position} and {step} updates of one"
    updates = meta["updates"]
    if len(updates) != position + 1 or updates[-1] != step or sum(updates) != iteration:
        return (
            f"expected the updates of {position} stages and {step} of the next, {iteration} in "
            f"all, got {brief(updates)}"
        )
    for name, done in zip(stages, updates[:-1], strict=False):
        if done and not {name, f"{name}_cpu"} <= meta["seconds"].keys():
            return f"expected the seconds of {name}, got none"
    if meta["progress"].keys() != set(begun):
        return (
            f"expected the progress of {', '.join(begun) or 'no stage'}, got that of "
            f"{first_names(meta['progress']) or 'none'}"
        )
    if unknown := meta["scores"].keys() - set(begun):
        return f"expected the scores of {', '.join(begun)}, got those of {first_names(unknown)}"
    for name, ending in meta.get("endings", {}).items():
        if name not in begun:
            return f"expected an early end of {', '.join(begun) or 'no stage'}, got that of {name}"
        if not ending["decided"] <= ending["last"] <= ending["planned"]:
            return f"expected an early end of {name} before its last update, got {ending}"
        made = updates[stages.index(name)]
        if made > ending["last"]:
            return f"expected at most {ending['last']} updates of {name}, got {made}"
    for name, progress in meta["progress"].items():
        if progress["stage"] != name:
            return f"expected the progress of {name}, got that of {brief(progress['stage'])}"
        if (progress["best"] is None) != (progress["best_step"] is None):
            return f"expected the best score of {name} with its update, got one of the two"
        for key in ("best_step", "reference_step", "start_step", "spread_step", "stale"):
            if (progress[key] or 0) > iteration + 1:
                return f"expected {key} of {name} up to {iteration}, got {progress[key]}"
    return None
