"""The early end of a stage: by its patience, or by its budget of teacher evaluations.

A learning rate that is cut on its way down leaves weights that still move much. So a stage that
ends early may go on for a few updates (`train.cooldown`), in which each learning rate falls from
where it stood to where its schedule would have ended. The best validated average is kept, whenever
it was.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .._core.json_kinds import count, record, text

__all__ = ["ENDING", "Ending"]

# What a checkpoint holds of one.
ENDING = record({"decided": count, "last": count, "planned": count, "why": text})


@dataclass(frozen=True)
class Ending:
    """Why and when a stage ends before its last update.

    Attributes:
        decided: updates that were done when it was decided.
        last: updates that it makes in all.
        planned: updates that it would have made.
        why: the reason, with its numbers, for people.
    """

    decided: int
    last: int
    planned: int
    why: str

    def share_of_rate(self, update: int) -> float:
        """How far the learning rate of `update` (0-based) still lies above its end, relative to
        where it would be: it falls linearly, from n / (n + 1) in the first of n updates."""
        n = self.last - self.decided
        return (self.last - update) / (n + 1)

    def when_decided(self, stage: str) -> str:
        """What the log says."""
        if self.last == self.decided:
            then = (
                f"it ends here, before update {self.planned}, its learning rates not at their end"
            )
        else:
            then = (
                f"its learning rates fall to their end until update {self.last}, its last one of "
                f"{self.planned}"
            )
        return f"{stage} update {self.decided}: stopped early, {self.why}; {then}"

    def in_report(self, stage: str, kept: str) -> str:
        """What a report says; `kept`: which average."""
        cooled = "without a cool-down of its learning rates (train.cooldown)"
        if self.last > self.decided:
            cooled = f"of which the last {self.last - self.decided} with falling learning rates"
        return (
            f"{stage} ended early, after {self.last} of {self.planned} updates, {cooled}: "
            f"{self.why}. Kept of it: {kept}"
        )

    def to_json(self) -> dict[str, Any]:
        """Its fields; `Ending(**fields)` is the same again."""
        return asdict(self)
