"""Time grids: every rung is a point, and a consistency stage draws neighbours on a grid that is
refined."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from fastgen.methods.time_grids import consistency_intervals, consistency_times, rung_grid

T_LIST = [0.999, 0.75, 0.5, 0.25, 0.0]
T_LISTS = [
    [0.999, 0.0],
    T_LIST,
    [0.999, 0.9375, 0.8333, 0.625, 0.0],
    [0.7, 0.69, 0.01, 0.0],
    [1.0, 0.5, 0.0],
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("t_list", T_LISTS)
@pytest.mark.parametrize("calls", [1, 5, 16, 100])
def test_every_rung_is_a_point_of_the_grid(t_list, calls):
    grid, index = rung_grid(t_list, calls)
    assert grid[0] == 1.0 and grid[-1] == 0.0
    assert all(t > s for t, s in itertools.pairwise(grid))
    assert index[0] == 0 and [grid[i] for i in index[1:]] == t_list[1:]
    rungs = len(t_list) - 1
    assert rungs <= len(grid) - 1 and abs(len(grid) - 1 - max(calls, rungs)) <= rungs


def test_equal_rungs_get_an_even_grid():
    grid, index = rung_grid(T_LIST, 16)
    assert grid == [1 - i / 16 for i in range(17)] and index == [0, 4, 8, 12, 16]


def test_the_grid_starts_where_the_teacher_does():
    grid, _ = rung_grid([0.99, 0.5, 0.0], 10, t_max=0.9935)
    assert grid[0] == 0.9935
    for t_max in (0.9, 1.1):
        with pytest.raises(ValueError, match=r"expected t_max in \[t_list\[0\], 1\]"):
            rung_grid([0.99, 0.5, 0.0], 10, t_max=t_max)
    with pytest.raises(ValueError, match="expected calls to be an int >= 1"):
        rung_grid([0.99, 0.0], 0)


# ---- Of consistency distillation ----------------------------------------------------------------


@pytest.mark.parametrize(("first", "last"), [(8, 64), (8, 8), (4, 50), (1, 1280)])
def test_the_grid_doubles_at_equal_parts_of_the_training_up_to_the_last(first, last):
    counts = [consistency_intervals(i / 1000, first=first, last=last) for i in range(1001)]
    assert counts[0] == first and counts[-1] == last
    levels = [(n, len(list(part))) for n, part in itertools.groupby(counts)]
    assert all(b == min(last, 2 * a) for (a, _), (b, _) in itertools.pairwise(levels))
    assert max(size for _, size in levels) - min(size for _, size in levels) <= 2


@pytest.mark.parametrize(
    "t_list", [[0.999, 0.0], [1.0, 0.0], T_LIST, [0.999, 0.9375, 0.8333, 0.625, 0.0]]
)
@pytest.mark.parametrize("sample_type", ["sde", "ode"])
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_times_are_neighbours_on_a_grid_of_which_every_rung_is_a_point(
    t_list, sample_type, progress
):
    t, s, end = consistency_times(
        4000, progress, t_list, sample_type=sample_type, generator=generator()
    )
    assert t.dtype == s.dtype == end.dtype == torch.float64 and t.shape == s.shape == end.shape == (
        4000,
    )
    assert bool(((t > s) & (s >= end) & (end >= 0)).all())
    grid = sorted({*t.tolist(), *s.tolist()}, reverse=True)
    assert grid[0] == t_list[0] and grid[-1] == 0.0 and set(t_list) <= set(grid)
    assert set(zip(t.tolist(), s.tolist(), strict=True)) == set(itertools.pairwise(grid))
    assert abs(len(grid) - 1 - consistency_intervals(progress)) < len(t_list)
    for time, stop in zip(t.tolist(), end.tolist(), strict=True):
        assert stop == (
            0.0 if sample_type == "sde" else max(rung for rung in t_list if rung < time)
        )
    # Uniformly: at most 20 intervals with at least 200 draws expected in each.
    counts = torch.tensor([float((t == time).sum()) for time in grid[:-1]])
    expected = 4000 / len(counts)
    assert float((counts - expected).abs().max()) < 5 * math.sqrt(expected)


def test_times_are_a_function_of_generator_and_progress():
    def draw(seed: int, progress: float) -> Tensor:
        return consistency_times(50, progress, T_LIST, generator=generator(seed))[0]

    assert torch.equal(draw(1, 0.3), draw(1, 0.3))
    assert not torch.equal(draw(1, 0.3), draw(2, 0.3)) and not torch.equal(
        draw(1, 0.0), draw(1, 0.9)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"progress": 1.01}, r"expected progress in \[0, 1\], got 1.01"),
        ({"progress": math.nan}, r"expected progress in \[0, 1\]"),
        ({"first": 0}, "expected first to be an int >= 1"),
        ({"first": 9, "last": 8}, "expected first <= last, got first=9, last=8"),
        ({"t_list": [0.5]}, "expected t_list such as"),
        ({"sample_type": "x"}, "unknown sample_type 'x'"),
        ({"n": 0}, "expected n to be an int >= 1"),
    ],
)
def test_times_that_cannot_be_drawn_are_refused(arguments, message):
    arguments = {"n": 4, "progress": 0.0, "t_list": T_LIST, **arguments}
    with pytest.raises(ValueError, match=message):
        consistency_times(
            arguments.pop("n"), arguments.pop("progress"), arguments.pop("t_list"), **arguments
        )
