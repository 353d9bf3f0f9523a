"""What is due after an update: a validation, a row of the log, a checkpoint."""

from __future__ import annotations

from typing import NamedTuple

from ..config.training import LoopConfig
from .stage import Stage

__all__ = ["Due", "due_after"]

# A stage has so many validations at least, but not for fewer updates than this between two: a short
# stage would spend its time on them.
_VALIDATIONS = 4
_LEAST_INTERVAL = 25


class Due(NamedTuple):
    """What is due after an update.

    Attributes:
        validation: the averaged weights are scored.
        row: a row of the log is written.
        checkpoint: the state is saved.
    """

    validation: bool
    row: bool
    checkpoint: bool


def due_after(updates: int, stage: Stage, loop: LoopConfig, *, last: bool) -> Due:
    """What is due when `updates` of a stage are done; `last`: it ends with them.

    Validations are counted from the end of a warm-up, which shows whether judges see anything
    before the student follows them.
    """
    trained = updates - stage.warmup
    validation = last or (trained >= 0 and trained % _interval(stage, loop) == 0)
    return Due(
        validation=validation,
        row=validation or updates % loop.log_every == 0,
        checkpoint=not last and updates % loop.checkpoint_every == 0,
    )


def _interval(stage: Stage, loop: LoopConfig) -> int:
    """Updates between validations of a stage."""
    a_share = -(-(stage.updates - stage.warmup) // _VALIDATIONS)
    return min(loop.evaluate_every, max(_LEAST_INTERVAL, a_share))
