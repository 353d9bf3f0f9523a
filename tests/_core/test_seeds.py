"""Draws that are a function of their names."""

import pytest
import torch

from fastgen._core.seeds import (
    draw_normal,
    draw_rows,
    draw_uniform,
    draws_apart,
    generator_for,
)


def test_seeded_generators_are_functions_of_their_names_only():
    def first(*names):
        return torch.rand(4, generator=generator_for(*names))

    assert torch.equal(first(0, "noise", 7), first(0, "noise", 7))
    others = [
        first(1, "noise", 7),
        first(0, "eps", 7),
        first(0, "noise", 8),
        first(0, "noise7"),
        first(0, "noise", "7"),
    ]
    assert not any(torch.equal(first(0, "noise", 7), other) for other in others)
    # Fixed for good: a checkpoint written today must make the same draws tomorrow.
    assert generator_for(0, "noise", 7).initial_seed() == 4946164163973049188


def test_draws_follow_the_generator_and_keep_the_dtype():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        a = draw_normal((5, 3), device="cpu", dtype=dtype, generator=generator_for(3))
        assert a.dtype == dtype and torch.equal(
            a, draw_normal((5, 3), device="cpu", dtype=dtype, generator=generator_for(3))
        )
    u = draw_uniform((1000,), device="cpu", generator=generator_for(3))
    assert u.dtype == torch.float64 and 0 <= u.min() and u.max() < 1


@pytest.mark.parametrize(("rows", "count"), [(10, 10), (10, 1), (10, 7), (3, 2), (1000, 33)])
def test_drawn_rows_are_spread_over_all(rows, count):
    drawn = draw_rows(rows, count, generator_for(0, "rows"))
    assert len(drawn.unique()) == count
    # One of each stretch: never further from an even spread than the length of one.
    even = torch.arange(count) * rows / count
    assert bool(((drawn - even).abs() <= rows / count).all())
    assert int(drawn.min()) >= 0 and int(drawn.max()) < rows


def test_every_row_is_drawn_as_often():
    counts = torch.zeros(60)
    for seed in range(1000):
        counts[draw_rows(60, 20, generator_for(seed, "rows"))] += 1
    assert float((counts / 1000 - 1 / 3).abs().max()) < 0.075  # five standard deviations


def test_draws_apart_begin_at_one_place_and_leave_the_others_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    inside = []
    for _ in range(2):
        with draws_apart(torch.device("cpu")):
            inside.append(torch.rand(3))
    assert torch.equal(*inside) and torch.equal(torch.rand(3), expected)
