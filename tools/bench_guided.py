"""Students of a guided teacher: how near they are to the samples of that teacher itself.

Guidance trades spread for fidelity, so the data are no reference for its students. Their reference
here are 4000 samples of the guided teacher by AB2 with 8 calls, equally many of each class, from a
noise that no student sees.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fastgen._core.seeds import generator_for
from fastgen.data.tasks.fashion import CLASSES, Described, FashionTask, classifier, score
from fastgen.export.folders import load_student
from fastgen.export.networks import load_network
from fastgen.guidance import Guidance
from fastgen.jobs.evaluation import teacher_sampler
from fastgen.teachers.guided import GuidedNetwork

TEACHER = Path(__file__).parents[1] / "recipes" / "teachers" / "fashion"
SCALE = 2.5
SAMPLES = 4000
CALLS = 8
# Samples of the reference that neighbours are looked for among, as of the data's held-out ones.
NEIGHBOURS = 2000
# The label of no class, in a file that `teacher.null_cond` names.
NO_CLASS = "no-class.npz"


def prepare(folder: Path) -> None:
    """Write the condition that the teacher is guided away from, label 0, into `folder`."""
    import numpy

    folder.mkdir(parents=True, exist_ok=True)
    numpy.savez(folder / NO_CLASS, Z=numpy.zeros(1, dtype=numpy.int64))


def of_student(folder: Path) -> dict[str, float]:
    """`guided_scores` of an exported student, from the reference's labels and another noise.

    Args:
        folder: of the student.
    """
    noise = noise_of("students")
    return guided_scores(load_student(folder).sample(labels(), noise=noise))


def of_teacher(folder: Path | None) -> dict[str, dict[str, float]]:
    """`guided_scores` of the guided teacher, from the noise of the students; `folder` without
    effect."""
    return {f"guided ab2-{CALLS}": guided_scores(guided_samples("students"))}


def guided_scores(x: Tensor) -> dict[str, float]:
    """Scores of images beside the guided teacher's samples.

    Args:
        x: (4000, 1, 16, 16), of `labels()`.

    Returns:
        guided_frechet: Frechet distance of features, in % of the variance of the reference's.
        guided_coverage: share of 2000 of the reference's samples that have one among their five
            nearest neighbours.
        guided_spread: spread within classes over that of the reference.
        pixels_outside: share of pixels outside [-1, 1], as they are.
    """
    reference, neighbours = _reference()
    found = score(x, labels(), reference, neighbours)
    names = ("frechet", "coverage", "spread")
    outside = float(((x < -1.0) | (x > 1.0)).double().mean())
    return {f"guided_{name}": found[name] for name in names} | {"pixels_outside": outside}


def labels() -> Tensor:
    """Classes 1 .. 10 that take turns: (4000,)."""
    return torch.arange(SAMPLES) % CLASSES + 1


def noise_of(who: str) -> Tensor:
    """(4000, 1, 16, 16), for the reference or for those who are compared with it."""
    return torch.randn(SAMPLES, 1, 16, 16, generator=generator_for(0, "guided", who))


@cache
def guided_samples(who: str) -> Tensor:
    """Samples of the guided teacher from `noise_of(who)`, clamped to [-1, 1]."""
    network, _ = load_network(TEACHER)
    null = torch.zeros(1, dtype=torch.int64)
    guided = GuidedNetwork(network, Guidance(SCALE), null).eval()
    sample = teacher_sampler(guided, FashionTask().train, CALLS, "ab2")
    return sample(labels(), noise_of(who)).clamp(-1.0, 1.0)


@cache
def _reference() -> tuple[Described, Tensor]:
    """What moments are compared with, and the features (2000, 64) that neighbours are looked for
    among."""
    described = Described(classifier().describe(guided_samples("reference"))[0], labels())
    return described, described.features[:NEIGHBOURS]
