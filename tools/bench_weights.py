"""A mixture whose modes have unequal weights, and whether students keep them.

Eight Gaussians on a circle, nearly those of the task `modes`, with weights .4, .05, .15, .05, .1,
.05, .15, .05. The teacher is a small network that is trained here, in half a minute. What is
measured is how much of a sampler's mass lies in the wrong modes: the total variation distance of
the shares of its samples to these weights. A sample counts for the mode that it is nearest to;
modes are seven standard deviations apart.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench_teachers import DECLARATIONS, Denoiser, train_network
from fastgen._core.seeds import generator_for
from fastgen.data import SampleData
from fastgen.data.mixtures import GaussianMixture
from fastgen.data.tasks.modes import IN_MODE, mode_means
from fastgen.export.folders import load_student
from fastgen.jobs.evaluation import teacher_sampler

WEIGHTS = (0.4, 0.05, 0.15, 0.05, 0.1, 0.05, 0.15, 0.05)
STD = 0.15
# Points to train on, and samples of a score: fresh data are off by .003.
POINTS = 20_000
SAMPLES = 65_536
# AB2 calls of the teacher's row, as its pairs are made.
CALLS = 24
# Of the teacher, which is off by .012.
UPDATES = 8000
# What is written into the folder of the case.
DATA = "unequal-modes.safetensors"
TEACHER = "teacher.safetensors"


def law() -> GaussianMixture:
    """The mixture of X (2,)."""
    return GaussianMixture(mode_means(), stds=STD, weights=torch.tensor(WEIGHTS))


def prepare(folder: Path) -> None:
    """Write the data, X (20000, 2), and the weights of a teacher that is trained on them, unless
    they are in `folder` already."""
    if (folder / TEACHER).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    X = law().sample(POINTS, generator=generator_for(0, "unequal modes", "data"))
    save_file({"X": X}, folder / DATA)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher = train_network(DECLARATIONS["native flow"], X, 0, steps=UPDATES)
    save_file(teacher.state_dict(), folder / TEACHER)


def of_student(folder: Path) -> dict[str, float]:
    """`weight_scores` of an exported student."""
    return weight_scores(load_student(folder, network=Denoiser()).sample(noise=_noise()))


def of_teacher(folder: Path) -> dict[str, dict[str, float]]:
    """`weight_scores` of the teacher in the `folder` of the case, from the noise of the
    students."""
    network = Denoiser().eval()
    network.load_state_dict(load_file(folder / TEACHER))
    sample = teacher_sampler(network, SampleData(_noise()), CALLS, "ab2")
    return {f"ab2-{CALLS}": weight_scores(sample(None, _noise()))}


def of_data() -> dict[str, float]:
    """`weight_scores` of as many fresh samples of the law."""
    return weight_scores(
        law().sample(SAMPLES, generator=generator_for(0, "unequal modes", "fresh"))
    )


def weight_scores(x: Tensor) -> dict[str, float]:
    """Scores of samples (N, 2).

    Returns:
        weights_off: total variation distance of the shares of modes to their weights, in [0, 1].
        in_modes: share of samples within three standard deviations of a mode's mean.
    """
    distance, mode = torch.cdist(x.double(), mode_means()).min(1)
    shares = torch.bincount(mode, minlength=len(WEIGHTS)).double() / len(x)
    wrong = shares - torch.tensor(WEIGHTS, dtype=torch.float64)
    return {
        "weights_off": 0.5 * float(wrong.abs().sum()),
        "in_modes": float((distance <= IN_MODE * STD).double().mean()),
    }


def _noise() -> Tensor:
    """(65536, 2), the same for every sampler."""
    return torch.randn(SAMPLES, 2, generator=generator_for(0, "unequal modes", "noise"))
