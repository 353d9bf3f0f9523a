"""Teacher evaluations of a run: rows asked of the teacher, by all processes, for each part of it.

Parts are "pairs", the stages by name, and "validation". What a run spends on learning is the sum
over pairs and stages; validation only watches. What the checks before the training ask is no part
of a run: a resumed run makes them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from .._core.row_counts import RowCount
from .processes import Processes

__all__ = ["PAIRS", "VALIDATION", "TeacherEvaluations"]

PAIRS = "pairs"
VALIDATION = "validation"


class TeacherEvaluations:
    """Adds up what the processes ask of the teacher. All of them must call `add_up` and `row`, in
    one order.

    Args:
        rows: counts what this process asks; None: there is no teacher.
        counted: part -> evaluations so far, by all processes; changed in place.
        processes: that share the run.
        stages: names of all stages of the run.
    """

    def __init__(
        self,
        rows: RowCount | None,
        counted: dict[str, int],
        processes: Processes,
        stages: Sequence[str],
    ) -> None:
        self.rows = rows
        self.counted = counted
        self.processes = processes
        self.stages = stages

    @property
    def spent(self) -> int:
        """Evaluations of pairs and training as of the last `add_up`."""
        return sum(self.counted.get(part, 0) for part in (PAIRS, *self.stages))

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
            own = self.processes.gather(own[None].to(self.processes.device)).sum(0)
        for part, rows in zip(parts, own.tolist(), strict=True):
            if rows:
                self.counted[part] = self.counted.get(part, 0) + rows

    def row(self) -> dict[str, int]:
        """What a row of the log says: the evaluations of pairs and training so far."""
        if self.rows is None:
            return {}
        self.add_up()
        return {"teacher_evaluations": self.spent}
