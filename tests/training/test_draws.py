"""Draws of a stage depend on nothing but seed, stage, step and name."""

from __future__ import annotations

import pytest
import torch

from fastgen.training.draws import Draws
from support.updates import BATCH, draws, process

# What a stage draws in one step: rows of 31 (so that a batch can span two epochs), noise and
# integers.
DRAWN = {
    "rows": lambda d, step: d.rows(step, 31),
    "rows of a small set": lambda d, step: d.rows(step, 5),
    "normal": lambda d, step: d.normal(step, "eps", (3, 2)),
    "integers": lambda d, step: d.integers(step, "rung", 4),
    "strata": lambda d, step: d.strata(step, "rung", [4.0, 2.0, 1.0, 1.0]),
}
drawn = pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN.keys())


@drawn
def test_a_draw_depends_on_seed_stage_and_step_alone(draw):
    straight, jumping = draws(), draws()
    in_order = [draw(straight, step) for step in range(12)]
    torch.manual_seed(99)  # the global state has no part in it
    for step in (7, 2, 11, 2):
        assert torch.equal(draw(jumping, step), in_order[step])
        assert not torch.equal(draw(jumping, step), in_order[step - 1])
        assert not torch.equal(draw(draws(seed=1), step), in_order[step])
        assert not torch.equal(draw(draws(stage="dmd"), step), in_order[step])


def test_draws_of_one_step_differ_by_name():
    assert not torch.equal(draws().normal(3, "a", (2,)), draws().normal(3, "b", (2,)))


@drawn
@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_the_draw_of_one(draw, world):
    for step in range(8):
        parts = [draw(draws(rank, world), step) for rank in range(world)]
        assert {len(part) for part in parts} == {BATCH // world}
        assert torch.equal(torch.cat(parts), draw(draws(), step))


@pytest.mark.parametrize("n", [1, 5, 12, 31, 100])
def test_every_row_comes_once_an_epoch_in_an_order_of_its_own(n):
    steps = -(-4 * n // BATCH)
    sequence = torch.cat([draws().rows(step, n) for step in range(steps)])
    epochs = [sequence[i * n : (i + 1) * n] for i in range(4)]
    assert all(torch.equal(epoch.sort().values, torch.arange(n)) for epoch in epochs)
    if n > 5:
        assert not any(torch.equal(a, b) for a, b in zip(epochs, epochs[1:], strict=False))


@pytest.mark.parametrize("world", [1, 2])
def test_micro_batches_are_the_rows_of_a_share_in_their_order(world):
    for rank in range(world):
        share = Draws(0, "kd", process(rank, world), BATCH, accumulation=3)
        rows = share.rows(2, 31)
        parts = share.micro_batches({"x": rows, "y": (rows[:, None] + 1,)})
        assert [len(part["x"]) for part in parts] == [BATCH // (3 * world)] * 3
        assert torch.equal(torch.cat([part["x"] for part in parts]), rows)
        assert all(torch.equal(part["y"][0][:, 0], part["x"] + 1) for part in parts)
        assert share.micro_batches(None) == [None] * 3


def test_only_a_shared_generator_is_equal_everywhere():
    def number(rank: int, **options: bool) -> float:
        return float(torch.rand(1, generator=draws(rank, 2).generator(3, "x", **options)))

    assert number(0) == number(1)
    assert number(0, shared=False) != number(1, shared=False)


def test_a_batch_that_does_not_divide_among_the_processes_is_refused():
    with pytest.raises(
        ValueError, match="train.batch_size to be a multiple of the 5 processes, got 12"
    ):
        draws(0, 5)
    with pytest.raises(
        ValueError, match="a multiple of the 2 processes times 4 micro-batches, got 12"
    ):
        Draws(0, "kd", process(0, 2), BATCH, accumulation=4)


@pytest.mark.parametrize("shares", [[1.0], [0.4, 0.0, 0.35, 0.25], [3.0, 1.0, 1.0, 1.0, 7.0]])
def test_strata_give_each_its_share_of_every_batch_in_random_order(shares):
    expected = BATCH * torch.tensor(shares, dtype=torch.float64) / sum(shares)
    counts = []
    first = []
    for step in range(400):
        drawn = draws().strata(step, "rung", shares)
        counts.append(drawn.bincount(minlength=len(shares)))
        first.append(drawn[:1])
        assert bool(((counts[-1] - expected).abs() < 1 + 1e-9).all())
    # Rounded up as often as the share says, and nothing stands always first: within five standard
    # errors of the mean of 400 numbers whose standard deviation is at most 1/2.
    off = (torch.stack(counts).double().mean(0) - expected).abs()
    assert bool((off < 5 * 0.5 / 20).all())
    leading = torch.cat(first).bincount(minlength=len(shares)) / 400
    assert bool(((leading - expected / BATCH).abs() < 5 * 0.5 / 20).all())
