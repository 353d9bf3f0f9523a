"""Students of `ring` that go on from given waypoints: how often the whole path succeeds."""

from __future__ import annotations

from pathlib import Path

from fastgen._core.seeds import generator_for
from fastgen.data.tasks.ring import RingTask, demonstrate, succeeds
from fastgen.export.folders import load_student

# Waypoints of a demonstration that are given, whole tokens of the shipped teacher.
GIVEN = (4, 8)


def of_student(folder: Path) -> dict[str, float]:
    """For each number of given waypoints the share of paths that succeed, and of those that begin
    with the very numbers that were given."""
    student = load_student(folder)
    references, noise = RingTask().references("all")
    Z = references.Z.repeat_interleave(RingTask.SAMPLES, 0)
    X = demonstrate(Z, generator_for(0, "prefixes"))
    found = {}
    for k in GIVEN:
        prefix = X[:, :k].float()
        x = student.sample(Z.float(), noise=noise, prefix=prefix)
        found[f"success_{k}"] = float(succeeds(x.double(), Z).double().mean())
        found[f"kept_{k}"] = float((x[:, :k] == prefix).flatten(1).all(1).double().mean())
    return found
