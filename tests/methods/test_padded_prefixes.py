"""Losses whose condition carries masks and a prefix: what stands in padding, and beyond the given
tokens of the prefix, changes no bit; and a batch has the mean of the losses that its samples have
by themselves, each over its open real tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.masks import with_masks
from fastgen._core.prefixes import with_prefix
from fastgen.methods.kd import kd_loss, teacher_pairs
from fastgen.methods.pretraining import flow_matching_loss
from fastgen.samplers import sample_student
from fastgen.teachers.prefixed import PREFIX_WAYS, PrefixedNetwork
from support.exact import normal
from support.padded import masks, network, walks

ROWS = 8
MASK, COND_MASK = masks().rows(torch.arange(ROWS))
REAL = MASK.sum(1)
# Every other row has all given that may be.
LENGTHS = torch.where(torch.arange(ROWS) % 2 == 0, REAL - 1, 0)
T_LIST = [0.999, 0.5, 0.0]
T = torch.linspace(0.1, 0.9, ROWS, dtype=torch.float64)
Batch = tuple[Tensor, Tensor, Any, Tensor]
Loss = Callable[[nn.Module, nn.Module, Batch], Tensor]


def batch(fill: float, dtype: torch.dtype = torch.float64) -> Batch:
    """x0, noise, the condition and the rows' numbers; padding and what is not given of the prefix
    hold `fill`."""
    x0, z = (value[:ROWS].to(dtype) for value in walks(0.0))
    x0 = x0.masked_fill(~MASK[..., None], fill)
    z = z.masked_fill(~COND_MASK[..., None], fill)
    noise = normal(ROWS, 4, 2, seed=1).masked_fill(~MASK[..., None], fill).to(dtype)
    cond = with_prefix(with_masks(z, MASK, COND_MASK), x0, LENGTHS)
    prefix = x0.masked_fill(~cond["given"][..., None], fill)
    return x0, noise, {**cond, "prefix": prefix}, torch.arange(ROWS)


def alone(row: int) -> Batch:
    """One sample without its padding."""
    x0, noise, cond, rows = batch(50.0)
    length = int(REAL[row])
    one = slice(row, row + 1)
    z = cond["Z"][one, : int(COND_MASK[row].sum())]
    x0 = x0[one, :length]
    return x0, noise[one, :length], with_prefix(z, x0, LENGTHS[one]), rows[one]


def kd(student: nn.Module, teacher: nn.Module, given: Batch) -> Tensor:
    _, noise, cond, rows = given
    states = teacher_pairs(teacher, noise, cond, T_LIST, calls=4)
    return kd_loss(student, states, T_LIST, cond, rows % 2, sample_type="ode")


def flow_matching(student: nn.Module, teacher: nn.Module, given: Batch) -> Tensor:
    x0, noise, cond, rows = given
    return flow_matching_loss(student, x0, noise, T[rows].to(x0.dtype), cond)


LOSSES: dict[str, Loss] = {"kd": kd, "flow matching": flow_matching}


def networks(
    equivariant: bool, way: str = "times", dtype: torch.dtype = torch.float64
) -> tuple[nn.Module, nn.Module]:
    student = network(equivariant=equivariant, seed=1).to(dtype)
    teacher = network(equivariant=equivariant, seed=2).to(dtype)
    return PrefixedNetwork(student), PrefixedNetwork(teacher, way)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("equivariant", [False, True])
@pytest.mark.parametrize("way", PREFIX_WAYS)
@pytest.mark.parametrize("name", LOSSES)
def test_what_stands_in_padding_changes_no_bit(name, way, equivariant, dtype):
    student, teacher = networks(equivariant, way, dtype)
    results = []
    for fill in (0.0, 50.0):
        loss = LOSSES[name](student, teacher, batch(fill, dtype))
        results.append([loss, *torch.autograd.grad(loss, list(student.parameters()))])
    for plain, filled in zip(*results, strict=True):
        assert plain.isfinite().all() and torch.equal(plain, filled)
    assert any(bool(g.any()) for g in results[0][1:])


@pytest.mark.parametrize("equivariant", [False, True])
@pytest.mark.parametrize("way", PREFIX_WAYS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_has_the_mean_of_what_its_samples_have_alone(name, way, equivariant):
    student, teacher = networks(equivariant, way)
    whole = LOSSES[name](student, teacher, batch(50.0))
    parts = [LOSSES[name](student, teacher, alone(row)) for row in range(ROWS)]
    torch.testing.assert_close(whole, torch.stack(parts).mean(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("equivariant", [False, True])
def test_samples_end_at_what_is_given_and_go_on_as_without_padding(equivariant):
    student, _ = networks(equivariant)
    x0, noise, cond, _ = batch(50.0)
    x = sample_student(student, noise, T_LIST, cond)
    assert isinstance(x, Tensor)
    torch.testing.assert_close(x[cond["given"]], x0[cond["given"]], rtol=0, atol=1e-12)
    assert not x[~MASK].any()
    for row in range(ROWS):
        _, one, of_one, _ = alone(row)
        found = sample_student(student, one, T_LIST, of_one)
        assert isinstance(found, Tensor)
        real = x[row, : int(REAL[row])]
        torch.testing.assert_close(found[0], real, rtol=1e-9, atol=1e-9)
