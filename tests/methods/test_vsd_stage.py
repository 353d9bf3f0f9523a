"""VSD in its stage: one weight for many processes, times that widen, draws, and the pull."""

from __future__ import annotations

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from fastgen.config import DMDConfig, SampleTimestepConfig
from fastgen.dmd import DMDPipeline, create_fake_score
from fastgen.methods.matching import DistributionMatching
from fastgen.methods.rollouts import SharedDraws
from fastgen.training.draws import Draws
from support.stages import Recorder, gradients, in_micro_batches, trained
from support.toy import ToyTask, ToyTeacher
from support.updates import draws

TASK = ToyTask()
DMD = DMDConfig(
    student_steps=3, fake_score_warmup_steps=4, fake_steps_per_student_step=3, vsd_norm="rms"
)


@pytest.mark.parametrize(("world", "accumulation"), [(1, 3), (2, 1), (2, 3)])
def test_one_weight_is_that_of_all_processes_and_micro_batches(world, accumulation):
    """Under `vsd_norm="batch"`, where the weight of a part by itself would be another."""
    dmd = DMD.model_copy(update={"vsd_norm": "batch", "fake_score_warmup_steps": 0})

    def run(rank: int, world: int, accumulation: int, mean: Meeting) -> list[Tensor]:
        student = Recorder(ToyTeacher(seed=1))
        fake_score = Recorder(create_fake_score(ToyTeacher(seed=2), num_rungs=3))
        pipeline = DMDPipeline(
            student.network,
            ToyTeacher(),
            fake_score.network,
            dmd,
            rank=rank,
            world_size=world,
            mean=functools.partial(mean.mean, rank),
        )
        inputs = TASK.train.network_inputs()
        stage = DistributionMatching(
            student, fake_score, pipeline, *inputs, dmd, 2, draws(rank, world)
        )
        in_micro_batches(stage, accumulation)
        for step in range(stage.updates):
            stage.update(step)
        return gradients([student])

    whole = run(0, 1, 1, Meeting(1))
    together = Meeting(world)
    with ThreadPoolExecutor(world) as threads:
        asked = [threads.submit(run, rank, world, accumulation, together) for rank in range(world)]
        parts = [one.result() for one in asked]
    assert whole and max(float(g.abs().max()) for g in whole) > 1e-3
    for one, *many in zip(whole, *parts, strict=True):
        assert torch.allclose(torch.stack(many).mean(0), one, rtol=1e-4, atol=1e-7)


def test_the_fake_score_is_pulled_after_each_update_of_the_student_alone():
    """Its own updates, here recorded only, come after; the warm-up pulls nothing."""
    dmd = DMDConfig(fake_score_warmup_steps=1, fake_score_pull=0.25, vsd_norm="batch")
    student = trained(network=ToyTeacher(seed=1), ema=False)
    fake_score = Recorder(ToyTeacher(seed=2))
    pipeline = DMDPipeline(student.network, ToyTeacher(), fake_score.network, dmd)
    inputs = TASK.train.network_inputs()
    stage = DistributionMatching(student, fake_score, pipeline, *inputs, dmd, 3, draws())
    expected = [p.detach().clone() for p in fake_score.network.parameters()]
    for step in range(stage.updates):
        stage.update(step)
        if step > 0:
            theirs = student.bare.parameters()
            expected = [0.75 * w + 0.25 * s for w, s in zip(expected, theirs, strict=True)]
        for weight, wanted in zip(fake_score.network.parameters(), expected, strict=True):
            torch.testing.assert_close(weight, wanted)


def test_noise_of_vsd_is_independent_of_all_other_noise(monkeypatch):
    """That of the rollout's start and of its sde rungs, and the fake score's, over 40 updates."""
    found: dict[str, list[Tensor]] = {"start": [], "rungs": [], "vsd": [], "fake score": []}
    dmd = DMD.model_copy(
        update={
            "fake_score_warmup_steps": 0,
            "fake_steps_per_student_step": 1,
            "rung_weights": (0.0, 1.0, 0.0),
        }
    )
    asked: list[str] = []

    normal = Draws.normal

    def at_start(self, step: int, name: str, shape: tuple[int, ...]) -> Tensor:
        noise = normal(self, step, name, shape)
        if name == "noise-student" and len(found["start"]) == step:
            found["start"].append(noise.flatten())
        return noise

    drawn = SharedDraws.normal_like

    def of_rungs(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        eps = drawn(self, x, generator)
        if not asked:
            found["rungs"].append(eps.flatten())
        return eps

    both = SharedDraws.times_and_noise

    def of_loss(self, x: Tensor, cfg, generator) -> tuple[Tensor, Tensor]:
        asked.append("loss")
        t, eps = both(self, x, cfg, generator)
        asked.pop()
        found["vsd" if cfg == dmd.vsd_t else "fake score"].append(eps.flatten())
        return t, eps

    monkeypatch.setattr(Draws, "normal", at_start)
    monkeypatch.setattr(SharedDraws, "normal_like", of_rungs)
    monkeypatch.setattr(SharedDraws, "times_and_noise", of_loss)
    student = Recorder(ToyTeacher(seed=1))
    fake_score = Recorder(create_fake_score(ToyTeacher(seed=2), num_rungs=3))
    pipeline = DMDPipeline(student.network, ToyTeacher(), fake_score.network, dmd)
    inputs = TASK.train.network_inputs()
    stage = DistributionMatching(student, fake_score, pipeline, *inputs, dmd, 40, draws())
    for step in range(stage.updates):
        stage.update(step)
    rows = torch.stack([torch.cat(noise) for noise in found.values()])
    n = rows.shape[1]
    assert n > 2000
    correlations = torch.corrcoef(rows) - torch.eye(len(rows))
    assert float(correlations.abs().max()) < 5 / n**0.5


def test_the_range_of_vsd_times_widens_with_the_students_updates():
    law = {"time_dist_type": "uniform", "min_t": 0.1, "max_t": 0.9}
    dmd = DMD.model_copy(
        update={
            "vsd_t": SampleTimestepConfig(**law),
            "vsd_widen_from": 0.8,
            "vsd_widen_updates": 2,
            "fake_score_warmup_steps": 1,
        }
    )
    seen: list[Tensor] = []

    class Seeing(ToyTeacher):
        def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            seen.append(t)
            return super().forward(x_t, t, cond)

    student = Recorder(ToyTeacher(seed=1))
    fake_score = Recorder(create_fake_score(ToyTeacher(seed=2), num_rungs=3))
    pipeline = DMDPipeline(student.network, Seeing(), fake_score.network, dmd)
    inputs = TASK.train.network_inputs()
    stage = DistributionMatching(student, fake_score, pipeline, *inputs, dmd, 4, draws())
    stage.update(0)
    assert not seen  # the warm-up doesn't ask the teacher
    for step in range(1, stage.updates):
        stage.update(step)
    for times, lowest in zip(seen, (0.8, 0.45, 0.1, 0.1), strict=True):
        assert lowest <= float(times.min()) < lowest + 0.3 and float(times.max()) <= 0.9


class Meeting:
    """Stands for processes, each a thread, that take the mean of their numbers."""

    def __init__(self, world: int) -> None:
        self.barrier = threading.Barrier(world, timeout=60)
        self.numbers = [torch.zeros(())] * world

    def mean(self, rank: int, x: Tensor) -> Tensor:
        self.numbers[rank] = x
        self.barrier.wait()
        mean = torch.stack(self.numbers).mean(0)
        self.barrier.wait()
        return mean
