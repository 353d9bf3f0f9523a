"""Checks of arguments name the argument, and times become a batch."""

from __future__ import annotations

import pytest
import torch

from fastgen._core.checks import check_count
from fastgen.models.arguments import (
    batch_of_times,
    check_probability,
    check_sequence,
    flat_condition,
)

CPU = torch.device("cpu")


# ---- Times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "time",
    [
        1,
        1.0,
        torch.tensor(1),
        torch.tensor(1.0, dtype=torch.float64),
        torch.ones(3),
        torch.ones(3, dtype=torch.int64),
    ],
    ids=["int", "float", "0-d int", "0-d float", "(B,)", "(B,) int"],
)
def test_every_form_of_a_time_becomes_one_number_per_sample(time, dtype):
    times = batch_of_times(time, 3, device=CPU, dtype=dtype)
    assert times.dtype == dtype and torch.equal(times, torch.ones(3, dtype=dtype))


def test_times_keep_their_digits_and_their_order():
    times = torch.tensor([0.9, 0.95, 0.999], dtype=torch.float64)
    assert torch.equal(batch_of_times(times, 3, device=CPU, dtype=torch.float64), times)
    assert batch_of_times(0.1, 1, device=CPU, dtype=torch.float64).item() == 0.1


@pytest.mark.parametrize("shape", [(1,), (2,), (4,), (3, 1), (1, 3), (3, 1, 1), (0,)])
def test_other_shapes_of_a_time_are_refused(shape):
    with pytest.raises(
        ValueError, match=r"expected opt_step to be a scalar or of shape \(3,\), got \("
    ):
        batch_of_times(torch.zeros(shape), 3, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize(
    "time", ["0.5", None, [0.5, 0.5, 0.5], True, torch.tensor(True), torch.tensor(1j)]
)
def test_what_is_no_real_number_is_refused_as_a_time(time):
    with pytest.raises(TypeError, match="expected opt_step to be"):
        batch_of_times(time, 3, device=CPU, dtype=torch.float32)


# ---- Checks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3), (2, 5, 3), (2, 0, 3), (2, 4, 2), (1, 2, 4, 3)])
def test_a_sequence_of_another_shape_is_shown_beside_the_expected_one(shape):
    with pytest.raises(ValueError) as caught:
        check_sequence("X", torch.zeros(shape), horizon=4, dim=3)
    assert str(caught.value) == f"expected X of shape (B, T_x <= 4, 3), got {shape}"


def test_a_sequence_of_another_batch_type_or_dtype_is_refused():
    check_sequence("Z", torch.zeros(5, 4, 3), horizon=4, dim=3, batch=5)
    with pytest.raises(
        ValueError, match=r"expected Z of shape \(.*5, T_z <= 4, 3\), got \(6, 4, 3\)"
    ):
        check_sequence("Z", torch.zeros(6, 4, 3), horizon=4, dim=3, batch=5)
    with pytest.raises(
        TypeError, match="expected Z to be a floating point tensor, got torch.int64"
    ):
        check_sequence("Z", torch.zeros(5, 4, 3).long(), horizon=4, dim=3)
    with pytest.raises(TypeError, match=r"expected Z of shape \(B, T_z <= 4, 3\), got list"):
        check_sequence("Z", [[[0.0] * 3]], horizon=4, dim=3)


@pytest.mark.parametrize("value", [1.0, -0.1, 2, float("nan"), True, None, "0.1"])
def test_what_is_no_probability_is_refused(value):
    with pytest.raises(ValueError, match=r"expected p to be a probability in \[0, 1\)"):
        check_probability("p", value)


def test_the_ends_of_the_allowed_ranges_are_allowed():
    for value in (0, 0.0, 0.999):
        check_probability("p", value)
    check_count("n", 1)
    check_count("n", 0, least=0)


def test_a_condition_of_one_vector_is_one_tensor_of_its_size():
    z = torch.arange(12.0).view(3, 2, 2)
    assert torch.equal(flat_condition(z, 4), z.view(3, 4))
    with pytest.raises(ValueError, match=r"expected 5 numbers of Z a row, got 4 \(2, 2\)"):
        flat_condition(z, 5)
    for cond in ({"Z": z, "mask": torch.ones(3, 8, dtype=torch.bool)}, {"a": z}, (z, z), None):
        with pytest.raises(ValueError, match="expected a Tensor as the condition .* without masks"):
            flat_condition(cond, 4)
