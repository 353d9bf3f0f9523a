"""Teacher evaluations of a run: rows asked of the teacher, by all processes, for each part of it.

Parts are "decision" (what `method: auto` measures), "pairs", the stages by name, and "validation".
What a run spends on learning is the sum of all but the last. Validation only watches, all of it in
every process, so that the main process' rows are counted. What the checks before the training ask
is no part of a run: a resumed run makes them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import NamedTuple

import torch

from .._core.row_counts import RowCount
from .processes import Processes

__all__ = ["DECISION", "PAIRS", "VALIDATION", "Asked", "TeacherEvaluations"]

DECISION = "decision"
PAIRS = "pairs"
VALIDATION = "validation"


class Asked(NamedTuple):
    """How a run asks its teacher.

    Attributes:
        rows: counts what this process asks.
        budget: the most that decision, pairs and training may ask together; None: there is no
            limit.
        of_an_update: stage -> the most evaluations of one of its updates, for a budget.
    """

    rows: RowCount
    budget: int | None = None
    of_an_update: Mapping[str, int] = MappingProxyType({})


class TeacherEvaluations:
    """Adds up what the processes ask of the teacher. All of them must call `add_up`, `row` and
    `updates_left`, in one order.

    Args:
        asked: counts what this process asks, and limits it; None: there is no teacher.
        counted: part -> evaluations so far, by all processes; changed in place.
        processes: that share the run.
        stages: names of all stages of the run.
    """

    def __init__(
        self,
        asked: Asked | None,
        counted: dict[str, int],
        processes: Processes,
        stages: Sequence[str],
    ) -> None:
        self.rows = None if asked is None else asked.rows
        self.budget = None if asked is None else asked.budget
        self.of_an_update = {} if asked is None else asked.of_an_update
        self.counted = counted
        self.processes = processes
        self.stages = stages

    @property
    def spent(self) -> int:
        """Evaluations of decision, pairs and training as of the last `add_up`."""
        return sum(self.counted.get(part, 0) for part in (DECISION, PAIRS, *self.stages))

    def asked_by(self, part: str) -> AbstractContextManager[None]:
        """Inside, what is asked counts as `part`."""
        return nullcontext() if self.rows is None else self.rows.part(part)

    def add_up(self) -> None:
        """Add what the processes have asked since the last time."""
        if self.rows is None:
            return
        parts = [*self.stages, VALIDATION]
        own = torch.tensor([self.rows.take(part) for part in parts])
        if self.processes.num_processes > 1:
            of_all = self.processes.gather(own[None].to(self.processes.device))
            own = of_all.sum(0)
            # Every process validates on all rows: what the others ask, one process asks, too.
            own[-1] = of_all[0, -1]
        for part, rows in zip(parts, own.tolist(), strict=True):
            if rows:
                self.counted[part] = self.counted.get(part, 0) + rows

    def updates_left(self, stage: str) -> int | None:
        """How many more updates of `stage` the budget surely pays for; None: it is no limit."""
        cost = self.of_an_update.get(stage, 0)
        if self.budget is None or not cost:
            return None
        self.add_up()
        return max(0, self.budget - self.spent) // cost

    def why_it_ends(self, stage: str) -> str:
        """What is said where the budget ends a stage."""
        return (
            f"of train.teacher_calls={self.budget:,} {self.spent:,} are spent, and an update takes "
            f"{self.of_an_update[stage]:,}"
        )

    def row(self) -> dict[str, int]:
        """What a row of the log says: the evaluations of decision, pairs and training so far."""
        if self.rows is None:
            return {}
        self.add_up()
        return {"teacher_evaluations": self.spent}
