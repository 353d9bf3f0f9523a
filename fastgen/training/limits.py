"""Limits of a stage: its last update, and what ends it before: its patience, its budget."""

from __future__ import annotations

from ..config.training import LoopConfig
from .choice import Comparisons
from .endings import Ending
from .evaluations import TeacherEvaluations
from .run_state import RunState
from .stage import Stage

__all__ = ["Limits"]


class Limits:
    """Decides when the stage at hand ends. All processes must ask, in one order.

    Args:
        state: where the run stands; early ends are noted in it.
        loop: patience, and the share of updates in which learning rates fall.
        teacher: what is left of its budget.
    """

    def __init__(self, state: RunState, loop: LoopConfig, teacher: TeacherEvaluations) -> None:
        self.state = state
        self.loop = loop
        self.teacher = teacher

    def is_over(self, stage: Stage) -> bool:
        """Whether a stage has made its updates, or as many as its early end leaves it.

        An end by its budget is known once `heed_budget` was called: before the first update and
        after each one.
        """
        return self.state.updates >= self._last_of(stage)

    def share_of_rate(self, stage: Stage) -> float:
        """What the next update leaves of the way of each learning rate to its last value; 1 unless
        the stage ends early."""
        ending = self.state.endings.get(stage.name)
        return 1.0 if ending is None else ending.share_of_rate(self.state.updates)

    def heed_budget(self, stage: Stage) -> str | None:
        """Let a stage end whose budget pays for no more than its cool-down; returns what is said of
        it, None if nothing changes."""
        left = self.teacher.updates_left(stage.name)
        if left is None or left > self._cooldown(stage):
            return None
        last = self.state.updates + left
        if last >= self._last_of(stage):
            return None
        return self._end(stage, last, self.teacher.why_it_ends(stage.name))

    def heed_patience(self, stage: Stage, compared: Comparisons | None) -> str | None:
        """The same of a stage whose validations, of which the last was `compared`, show no gain."""
        updates = self.state.updates
        progress = self.state.progress[stage.name]
        ends = stage.name in self.state.endings or updates >= stage.updates
        if ends or not progress.out_of_patience(self.loop.patience):
            return None
        last = min(stage.updates, updates + self._cooldown(stage))
        return self._end(stage, last, progress.lost_patience(compared))

    def early_ends(self) -> list[str]:
        """What a report says of each stage that ended early."""
        found = []
        for stage, ending in self.state.endings.items():
            progress = self.state.progress[stage]
            kept = "its last average"
            if self.loop.keep_best and progress.best_step is not None:
                kept = f"its best validated average, that of update {progress.best_step}"
            found.append(ending.in_report(stage, kept))
        return found

    def _last_of(self, stage: Stage) -> int:
        """Updates that a stage makes, as far as it is known."""
        ending = self.state.endings.get(stage.name)
        return stage.updates if ending is None else ending.last

    def _cooldown(self, stage: Stage) -> int:
        """Updates in which learning rates fall, if the stage were to end now."""
        return round(self.loop.cooldown * max(0, self.state.updates - stage.warmup))

    def _end(self, stage: Stage, last: int, why: str) -> str:
        """Note that a stage ends after `last` updates; returns what is said of it."""
        before = self.state.endings.get(stage.name)
        decided = self.state.updates if before is None else before.decided
        ending = Ending(decided, last, stage.updates, why)
        self.state.endings[stage.name] = ending
        return ending.when_decided(stage.name)
