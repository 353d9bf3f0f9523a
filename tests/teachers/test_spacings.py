"""The times at which a teacher of a table is called are those of its own samplers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fastgen.export.folders import export_student, load_student
from fastgen.guidance import Guidance
from fastgen.methods.kd import teacher_pairs
from fastgen.methods.time_grids import rung_grid
from fastgen.samplers import TRUSTED_NOISE_TIME, sample_teacher
from fastgen.samplers.student import sample_student
from fastgen.samplers.teacher import teacher_grid, trusted_time
from fastgen.teachers import RectifiedFlow, as_rectified_flow
from fastgen.teachers.clocks import TableClock
from fastgen.teachers.guided import GuidedNetwork
from fastgen.teachers.paths import parse_clock
from fastgen.teachers.spacings import SPACINGS
from support.converted import Bare
from support.exact import normal
from support.exact_mixture import ExactTeacher, mixture

SQUARED = {"name": "betas", "schedule": "squared_cosine", "rows": 100}
STABLE = {"name": "betas", "schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def teacher(spacing: object = None, path: object = SQUARED, **options) -> RectifiedFlow:
    return as_rectified_flow(Bare(), path=path, prediction="eps", spacing=spacing, **options)


def rows(network: RectifiedFlow, calls: int) -> list[float]:
    """The rows that a sampler calls."""
    times = torch.tensor(teacher_grid(network, calls)[:-1], dtype=torch.float64)
    return network.clock.time_of_ratio(times / (1 - times)).tolist()


@pytest.mark.parametrize(
    ("spacing", "calls", "expected"),
    [
        ("trailing", 10, [99, 89, 79, 69, 59, 49, 39, 29, 19, 9]),
        ("trailing", 1, [99]),
        ("trailing", 3, [99, 66, 32]),
        ("leading", 10, [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]),
        ({"name": "leading", "offset": 1}, 5, [81, 61, 41, 21, 1]),
        ("leading", 100, list(range(99, -1, -1))),
        ("linspace", 4, [99, 66, 33, 0]),
        ("linspace", 1, [99]),
    ],
)
def test_rows_are_those_that_are_asked_for(spacing, calls, expected):
    assert rows(teacher(spacing), calls) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("spacing", [*SPACINGS, None])
@pytest.mark.parametrize("path", [SQUARED, STABLE, [0.1, 0.5, 1.0]])
@pytest.mark.parametrize("clip_sample", [None, (-1, 1)])
@pytest.mark.parametrize("calls", [1, 2, 3, 16, 100, 1500])
def test_any_number_of_calls_has_a_grid_that_falls_to_the_data(spacing, path, clip_sample, calls):
    grid = teacher_grid(teacher(spacing, path, clip_sample=clip_sample), calls)
    assert len(grid) == calls + 1 and grid[-1] == 0.0 and grid[0] < 1.0
    assert all(t > s for t, s in itertools.pairwise(grid))


def test_a_noise_teacher_begins_where_its_x0_can_be_used():
    """At its last row if that is clipped, else no later than where errors count 19 times."""
    assert teacher_grid(teacher(), 16)[0] == pytest.approx(TRUSTED_NOISE_TIME)
    clipped = teacher(clip_sample=(-1, 1))
    assert rows(clipped, 16)[0] == pytest.approx(99) and clipped.t_max > 0.9994
    assert trusted_time(clipped, "flow") == clipped.t_max
    # A table that ends before that is used up to its end.
    assert rows(teacher(path=STABLE), 16)[0] == pytest.approx(999)


def test_wrappers_pass_it_on_and_other_networks_keep_their_even_grid():
    guided = GuidedNetwork(teacher("trailing"), Guidance(2.0), torch.zeros(1))
    assert teacher_grid(guided, 10) == teacher_grid(teacher("trailing"), 10)
    for network in (Bare(), as_rectified_flow(Bare(), path=SQUARED, prediction="v")):
        grid = teacher_grid(network, 4)
        assert grid == [grid[0] * (1 - i / 4) for i in range(5)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"spacing": "trailing", "path": "cosine"},
            "expected spacing time or log_snr for the path",
        ),
        ({"spacing": "karras"}, "unknown spacing 'karras'"),
        ({"spacing": {"name": "trailing", "offset": 1}}, "expected spacing as a name, or leading"),
        ({"spacing": {"name": "leading", "offset": -1}}, "expected spacing as a name, or leading"),
        ({"spacing": {"name": "leading", "shift": 1}}, "expected spacing as a name, or leading"),
    ],
)
def test_what_cannot_be_spaced_so_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        as_rectified_flow(Bare(), **{"path": SQUARED, "prediction": "eps", **options})


@pytest.mark.parametrize("t_list", [[0.5, 0.0], [0.5, 0.4, 0.2, 0.1, 0.0], [0.9995, 0.94, 0.0]])
@pytest.mark.parametrize("calls", [4, 16, 33])
def test_rungs_are_points_of_such_a_grid(t_list, calls):
    times = teacher_grid(teacher(clip_sample=(-1, 1)), calls)
    grid, index = rung_grid(t_list, calls, times=times)
    assert grid[0] == times[0] and [grid[i] for i in index[1:]] == t_list[1:]
    assert all(t > s for t, s in itertools.pairwise(grid))
    assert abs(len(grid) - 1 - calls) <= len(t_list)
    # With a single rung it is the teacher's own.
    alone, _ = rung_grid([0.5, 0.0], calls, times=times)
    assert alone == pytest.approx(times, abs=1e-12)


@pytest.mark.parametrize("clip_sample", [None, (-6, 6)])
@pytest.mark.parametrize("path", [SQUARED, STABLE])
def test_pairs_of_an_exact_noise_teacher_lie_on_its_own_trajectories(path, clip_sample):
    law = mixture(4)
    network = ExactTeacher(law, path=_betas(path), prediction="eps")
    options = {"path": path, "prediction": "eps", "clip_sample": clip_sample}
    noise = normal(200, 4, seed=5)
    found = as_rectified_flow(network, **options)
    x0 = teacher_pairs(found, noise, None, [0.5, 0.0], calls=64)[:, -1]
    exact = sample_teacher(ExactTeacher(law), noise, 1000, method="heun")
    assert isinstance(exact, Tensor)
    assert float((x0 - exact).square().mean().sqrt()) < 0.1 * float(exact.std())


def _betas(path: dict) -> Tensor:
    found = parse_clock(path)
    assert isinstance(found, TableClock)
    return found.betas


@pytest.mark.parametrize("spacing", ["leading", "time", {"name": "leading", "offset": 2}])
def test_an_exported_student_is_asked_where_it_was_trained(tmp_path, spacing):
    """Rows that are asked for by name are followed to the last one, by the student, too."""
    student = teacher(spacing)
    t_list = [student.t_max, 0.5, 0.0]
    export_student(tmp_path / "student", student, t_list=t_list, horizon=(3,))
    loaded = load_student(tmp_path / "student", network=Bare())
    assert isinstance(loaded.network, RectifiedFlow)
    assert loaded.network.describe() == student.describe()
    noise = normal(5, 3, seed=2, dtype=torch.float32)
    assert torch.equal(loaded.sample(noise=noise), sample_student(student, noise, t_list))
