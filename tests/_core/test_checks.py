"""What arguments are refused for, and in which words."""

import numpy as np
import pytest
import torch

from fastgen._core.checks import check_count, check_shape, check_time, is_count


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (("B", 2, 2), r"expected Z of shape \(B, 2, 2\), got \(8, 3, 2\)"),
        (("B", "T_z <= 2", 2), r"expected Z of shape \(B, T_z <= 2, 2\), got \(8, 3, 2\)"),
        (("B", 3), r"expected Z of shape \(B, 3\), got \(8, 3, 2\)"),
    ],
)
def test_check_shape_says_what_it_wanted(expected, message):
    with pytest.raises(ValueError, match=message):
        check_shape("Z", torch.zeros(8, 3, 2), expected)


def test_check_shape_accepts_what_fits():
    check_shape("Z", torch.zeros(8, 2, 2), ("B", "T_z <= 2", 2))
    check_shape("Z", torch.zeros(8, 1, 2), ("B", "T_z <= 2", 2))
    with pytest.raises(ValueError, match=r"got \(8, 0, 2\)"):
        check_shape("Z", torch.zeros(8, 0, 2), ("B", "T_z <= 2", 2))
    with pytest.raises(ValueError, match="got list"):
        check_shape("Z", [1.0], (1,))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("value", "least"), [(1, 1), (7, 1), (0, 0), (2, 2)])
def test_a_count_is_a_whole_number_of_at_least_the_least(value, least):
    assert is_count(value, least) and check_count("n", value, least) == value


@pytest.mark.parametrize(
    ("value", "least"),
    [(0, 1), (-1, 0), (1, 2), (2.0, 1), (True, 1), ("2", 1), (None, 1), (np.int64(2), 1)],
)
def test_what_is_no_count_is_refused(value, least):
    assert not is_count(value, least)
    with pytest.raises(ValueError) as caught:
        check_count("n", value, least)
    assert str(caught.value) == f"expected n to be an int >= {least}, got {value!r}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_low_precision_times_are_refused_with_the_reason(dtype):
    with pytest.raises(TypeError, match="float32/float64") as caught:
        check_time(torch.ones(2).to(dtype))
    assert ("rounds 0.999 to 1.0" in str(caught.value)) == dtype.is_floating_point


@pytest.mark.parametrize(
    "t", [-0.1, 1.5, 500, float("nan"), torch.tensor([0.5, 1.01]), torch.tensor([float("nan")])]
)
def test_times_outside_the_unit_interval_are_refused(t):
    with pytest.raises(ValueError, match=r"expected t in \[0, 1\]"):
        check_time(t)
