"""A run whose data have a declared range: what it scores, draws and exports lies within it."""

from __future__ import annotations

import pytest
import torch

from fastgen.box import Box
from fastgen.config import DataConfig, DistillConfig
from fastgen.distillation import distill
from fastgen.export import load_student
from fastgen.jobs.checks import check_plan
from fastgen.jobs.setup import Setup
from support.networks import equivariant
from support.toy import ToyTask, ToyTeacher, toy_config, without_pictures

# The toy's data reach to 3.2, and samples of its teacher far beyond.
BOX = Box(-3.5, 3.5)


class Watched(ToyTask):
    """The toy, which keeps all samples that it scores."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def evaluate(self, sample, *, quick: bool = False) -> dict[str, float]:
        def kept(z, noise):
            # Ten times the noise: whatever the network, samples lie far outside.
            self.seen.append(sample(z, 10 * noise))
            return self.seen[-1]

        return super().evaluate(kept, quick=quick)


def config(run_dir, limits: tuple[float, float] | None = None, **train) -> DistillConfig:
    cfg = toy_config(run_dir, **train)
    return cfg.model_copy(update={"data": DataConfig(range=limits)})


def test_all_that_a_run_scores_and_exports_lies_within(tmp_path):
    task = Watched()
    with without_pictures():
        distill(config(tmp_path / "run", (-3.5, 3.5)), teacher=ToyTeacher(), task=task)
    samples = torch.cat(task.seen)
    assert len(task.seen) > 8 and float(samples.abs().max()) == 3.5
    # The folder states it, and clamps for its users.
    student = load_student(tmp_path / "run" / "student", network=ToyTeacher())
    assert student.box == BOX
    noise = 10 * torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="standard normal"):
        assert float(student.sample(task.train.Z[:5], noise=noise).abs().max()) == 3.5
    # A run goes on with its own range.
    other = config(tmp_path / "run", (-4.0, 4.0)).model_copy(update={"resume": True})
    with pytest.raises(ValueError, match=r"another config \(data.range: \[-3.5, 3.5\] then"):
        distill(other, teacher=ToyTeacher(), task=ToyTask())


def test_data_outside_are_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match=r"got \d+ of 48 rows outside it"):
        distill(config(tmp_path / "run", (-1.0, 1.0)), teacher=ToyTeacher(), task=ToyTask())
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_plan_asks_the_group_of_an_equivariant_teacher(tmp_path):
    setup = Setup(config(tmp_path, (-3.5, 4.0)), equivariant("D4"), ToyTask().train)
    with pytest.raises(ValueError, match=r"data.range: expected a range that D4 keeps"):
        check_plan(setup)


def test_the_plan_asks_the_group_of_a_student_that_a_factory_builds(tmp_path):
    cfg = config(tmp_path, (-3.5, 4.0))
    student = cfg.student.model_copy(update={"factory": "support.networks:equivariant"})
    setup = Setup(cfg.model_copy(update={"student": student}), ToyTeacher(), ToyTask().train)
    with pytest.raises(ValueError, match=r"data.range: expected a range that D4 keeps"):
        check_plan(setup)
