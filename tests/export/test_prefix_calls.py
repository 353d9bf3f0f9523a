"""Samples of many calls that go on from given waypoints: each call is told them."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastgen.export import Student, load_student
from support.folders import conditions, export_, seeded

# The rungs of a student of any number of calls: those of three are no part of those of two.
T_LISTS = {1: [0.999, 0.0], 2: [0.999, 0.4, 0.0], 3: [0.999, 0.7, 0.2, 0.0]}
# d_x of a waypoint, by how many of them a token of four numbers holds.
CHANNELS = {1: 4, 2: 2}
STUDENTS = {
    "sde": {"sample_type": "sde"},
    "ode": {"sample_type": "ode"},
    "any": {"sample_type": "sde", "t_lists": T_LISTS},
}


def exported(path: Path, kind: str, pack: int, **changes) -> Student:
    """A student of tokens in the network's own units that was trained to be given two of three."""
    options = {"prefix_max": 2 * pack, "pack": pack, "x_normalizer": None, "z_normalizer": None}
    export_(path, **options | STUDENTS[kind] | changes)
    return load_student(path, dtype=torch.float64)


def draws(pack: int, k: int) -> tuple[Tensor, Tensor]:
    """(noise, prefix) of three rows, k tokens given."""
    d_x = CHANNELS[pack]
    noise = torch.randn(3, 3 * pack, d_x, generator=seeded(3), dtype=torch.float64)
    prefix = 3 + torch.randn(3, k * pack, d_x, generator=seeded(7), dtype=torch.float64)
    return noise, prefix


def calls_of(student: Student, **options) -> list[tuple[Tensor, Tensor]]:
    """(tokens, times) that its network is called with while it samples."""
    told: list[tuple[Tensor, Tensor]] = []
    with student.network.register_forward_pre_hook(lambda _, args: told.append(args[:2])):
        student.sample(conditions().double(), **options)
    return told


def gone_on(student: Student, noise: Tensor, known: Tensor, steps: int) -> Tensor:
    """Slow twin: samples of tokens (B, T, d), where only those that are open are sampled."""
    k = known.shape[1]
    rungs = student.rungs(steps)
    generator = seeded(5)
    state = rungs[0] * noise[:, k:]
    for t, s in itertools.pairwise(rungs):
        times = torch.tensor([0.0] * k + [t] * (3 - k), dtype=torch.float64).expand(3, 3)
        seen = torch.cat([known, state], 1)
        flow = student.network(seen, times, conditions().double())[:, k:]
        x0 = state - t * flow
        if s == 0.0:
            state = x0
        elif student.sample_type == "ode":
            state = state + (s - t) * flow
        else:
            fresh = torch.randn(3, 3, 4, generator=generator, dtype=torch.float64)
            state = (1 - s) * x0 + s * fresh[:, k:]
    return torch.cat([known, state], 1)


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("pack", [1, 2])
@pytest.mark.parametrize("kind", STUDENTS)
def test_open_tokens_alone_are_sampled(tmp_path, kind, pack, k):
    student = exported(tmp_path / "s", kind, pack)
    noise, prefix = draws(pack, k)
    for steps in student.steps:
        x = student.sample(
            conditions().double(), noise=noise, prefix=prefix, steps=steps, generator=seeded(5)
        )
        known = prefix.reshape(3, k, 4)
        expected = gone_on(student, noise.reshape(3, 3, 4), known, steps).reshape(x.shape)
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-10)
        assert torch.equal(x[:, : k * pack], prefix)


@pytest.mark.parametrize("kind", STUDENTS)
def test_each_call_is_told_the_very_tokens_at_time_zero(tmp_path, kind):
    student = exported(tmp_path / "s", kind, 2)
    noise, prefix = draws(2, 1)
    for steps in student.steps:
        told = calls_of(student, noise=noise, prefix=prefix, steps=steps)
        assert len(told) == steps
        for (seen, times), t in zip(told, student.rungs(steps)[:-1], strict=True):
            assert torch.equal(seen[:, :1], prefix.reshape(3, 1, 4))
            assert (times[:, :1] == 0).all() and (times[:, 1:] == t).all()


@pytest.mark.parametrize("kind", STUDENTS)
def test_what_stands_in_the_noise_of_given_waypoints_does_nothing(tmp_path, kind):
    student = exported(tmp_path / "s", kind, 2)
    noise, prefix = draws(2, 1)
    other = noise.clone()
    other[:, :2] = noise[:, :2].flip(0)
    for steps in student.steps:
        samples = [
            student.sample(
                conditions().double(), noise=eps, prefix=prefix, steps=steps, generator=seeded()
            )
            for eps in (noise, other)
        ]
        assert torch.equal(*samples)


@pytest.mark.parametrize("kind", STUDENTS)
def test_a_student_that_may_be_given_waypoints_samples_as_any_other_without(tmp_path, kind):
    may = exported(tmp_path / "may", kind, 2)
    other = exported(tmp_path / "other", kind, 2, prefix_max=0)
    noise, _ = draws(2, 1)
    for steps in may.steps:
        options = {"noise": noise, "steps": steps}
        z = conditions().double()
        assert torch.equal(
            may.sample(z, generator=seeded(), **options),
            other.sample(z, generator=seeded(), **options),
        )
