"""Tensors whose rows are made when they are taken: like any other, but never whole."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from fastgen._core import made_rows
from fastgen._core.made_rows import (
    MadeRows,
    RowMaker,
    blocks_of,
    even_rows,
    evenly,
    extremes,
    mapped_rows,
    part_of,
)

HUGE = 1 << 40


class Numbers(RowMaker):
    """Row i holds the numbers 6 i to 6 i + 5."""

    def __init__(self, rows: int) -> None:
        self.shape = (rows, 3, 2)
        self.dtype = torch.float64

    def take(self, rows: Tensor) -> Tensor:
        return (rows[:, None] * 6 + torch.arange(6)).double().view(-1, 3, 2)


@pytest.fixture
def whole() -> Tensor:
    return torch.arange(600.0, dtype=torch.float64).view(100, 3, 2)


@pytest.fixture
def made() -> MadeRows:
    return MadeRows(Numbers(100))


PARTS = [
    torch.tensor([3, 0, 99, 3]),
    torch.tensor([-1, -100]),
    torch.tensor([[1, 2], [3, 4]]),
    torch.tensor([], dtype=torch.long),
    torch.arange(100) % 7 == 2,
    slice(10, 20),
    slice(None, None, 9),
    slice(95, 300),
    slice(0),
    5,
    -2,
]


@pytest.mark.parametrize("rows", PARTS)
def test_rows_are_those_of_the_whole(made, whole, rows):
    assert torch.equal(made[rows], whole[rows])


def test_shape_and_dtype_are_those_of_a_tensor_that_no_memory_holds():
    made = MadeRows(Numbers(HUGE))
    assert isinstance(made, Tensor) and made.shape == (HUGE, 3, 2) and len(made) == HUGE
    assert made.dtype == torch.float64 and made.numel() == 6 * HUGE and made.ndim == 3
    assert float(made[torch.tensor([HUGE - 1])][0, 0, 0]) == 6.0 * (HUGE - 1)
    assert made.detach().shape == made.shape and copy.deepcopy(made) is made
    assert "MadeRows" in repr(made)


def test_an_operation_on_all_rows_is_refused_where_they_are_many(made, whole):
    with pytest.raises(RuntimeError, match=r"take a part, x\[rows\], first"):
        MadeRows(Numbers(HUGE)).sum()
    assert torch.equal(made * 2, whole * 2)
    assert torch.equal(torch.cat([made, made]), torch.cat([whole, whole]))


def test_a_row_that_is_not_there_is_refused(made):
    for row in (100, -101):
        with pytest.raises(IndexError):
            made[torch.tensor([row])]


def test_many_rows_are_not_made_at_once(made, whole, monkeypatch):
    monkeypatch.setattr(made_rows, "_MOST_TAKEN", 60)
    part = made[torch.arange(99, -1, -2)]
    assert isinstance(part, MadeRows) and len(part) == 50
    assert torch.equal(part[torch.tensor([1, 4])], whole[torch.tensor([97, 91])])
    twice = part[torch.arange(20)]
    assert isinstance(twice, MadeRows)
    assert torch.equal(twice[:3], whole[torch.tensor([99, 97, 95])])
    assert not isinstance(made[:10], MadeRows)


def test_dtypes_and_functions_of_rows_wait_until_they_are_taken(made, whole):
    rows = torch.tensor([7, 3])
    half = made.to(dtype=torch.float32)
    assert isinstance(half, MadeRows) and half.dtype == torch.float32
    assert torch.equal(half[rows], whole[rows].float()) and made.double() is made
    flat = mapped_rows(half, lambda x: x.flatten(1) + 1)
    assert isinstance(flat, MadeRows) and flat.shape == (100, 6)
    assert torch.equal(flat[rows], whole[rows].float().flatten(1) + 1)
    assert torch.equal(mapped_rows(whole, torch.neg), -whole)


def test_a_part_stays_one_that_is_made(made, whole):
    rows = torch.tensor([5, 2])
    part = part_of(made.float(), rows)
    assert isinstance(part, MadeRows) and torch.equal(part[:], whole[rows].float())
    assert torch.equal(part_of(whole, rows), whole[rows])


def test_blocks_extremes_and_even_rows_are_those_of_the_whole(made, whole):
    for x in (made, whole):
        blocks = list(blocks_of(x, 30))
        assert {len(block) for block in blocks} == {5} and torch.equal(torch.cat(blocks), whole)
        assert torch.equal(extremes(x), torch.tensor([[0.0, 1.0], [598.0, 599.0]]).double())
    assert torch.equal(evenly(made, 4), whole[torch.tensor([0, 33, 66, 99])])
    assert evenly(whole, 4) is whole and len(even_rows(3, 10)) == 3


def test_vectors_are_all_of_them_as_often_as_they_are_there(made, whole):
    for step in (None, 1):
        expected = (whole if step is None else whole[:, step]).reshape(-1, 2)
        for x in (made, part_of(made, torch.arange(100))):
            vectors, counts = zip(*x.maker.vectors(step), strict=True)
            assert torch.equal(torch.cat(vectors), expected)
            assert int(torch.cat(counts).min()) == int(torch.cat(counts).max()) == 1
        vectors, _ = zip(*made.float().maker.vectors(step), strict=True)
        assert torch.equal(torch.cat(vectors), expected.float())


def test_a_network_takes_them_as_any_other_batch(made):
    layer = torch.nn.Linear(2, 2).double()
    layer(made).square().mean().backward()
    expected = layer.weight.grad
    layer.zero_grad()
    layer(made[:]).square().mean().backward()
    assert torch.equal(expected, layer.weight.grad)
