"""What all processes ask of a teacher is added up by part of the run."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen._core.row_counts import RowCount
from fastgen.training.evaluations import Asked, TeacherEvaluations
from fastgen.training.processes import OneProcess


class OneOfTwo(OneProcess):
    """One of two processes, of which the other has asked ten times as much."""

    def __init__(self) -> None:
        super().__init__()
        self.num_processes = 2

    def gather(self, x: Tensor) -> Tensor:
        return torch.cat([x, 10 * x])


def test_parts_and_processes_add_up():
    for processes, factor in ((OneProcess(), 1), (OneOfTwo(), 11)):
        rows = RowCount()
        found = TeacherEvaluations(Asked(rows), {"pairs": 100}, processes, ["kd", "dmd"])
        rows.add(7)  # of no part of the run
        with found.asked_by("dmd"):
            rows.add(2)
            with found.asked_by("validation"):
                rows.add(5)
            rows.add(1)
        assert found.row() == {"teacher_evaluations": 100 + 3 * factor}
        # Every process validates on all rows, as one does.
        assert found.counted == {"pairs": 100, "dmd": 3 * factor, "validation": 5}
        # What was added is not added again.
        assert found.row() == {"teacher_evaluations": 100 + 3 * factor}


def test_a_run_without_a_teacher_counts_nothing():
    found = TeacherEvaluations(None, {}, OneProcess(), ["flow matching"])
    with found.asked_by("flow matching"):
        pass
    assert found.row() == {} and found.counted == {}
