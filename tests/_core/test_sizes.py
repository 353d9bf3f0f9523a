"""Sizes that were trained: what lies inside passes, every other size or member is refused."""

import pytest
import torch
from hypothesis import given, strategies

from fastgen._core.sizes import check_sizes, parse_sizes, sizes_of, sizes_text

COND = {"goal": torch.zeros(3, 2, 4), "past": (torch.zeros(3, 5), torch.zeros(3))}


def test_members_are_named():
    assert sizes_of(COND, "Z") == {"Z.goal": [(2, 2), (4, 4)], "Z.past.0": [(5, 5)], "Z.past.1": []}
    assert sizes_of(torch.zeros(3, 2), "X") == {"X": [(2, 2)]}
    assert sizes_of(None, "Z") == {}


def test_what_was_trained_passes_with_any_rows():
    sizes = sizes_of(COND, "Z") | sizes_of(torch.zeros(3, 9), "X")
    more = {"goal": torch.zeros(7, 2, 4), "past": (torch.zeros(7, 5), torch.zeros(7))}
    check_sizes(more, "Z", sizes, "the student")
    check_sizes(torch.zeros(1, 9), "X", sizes, "the student")
    check_sizes(None, "Z", {}, "the student")


@given(strategies.integers(0, 9), strategies.integers(1, 4), strategies.integers(0, 4))
def test_a_size_passes_exactly_within_its_range(size, least, more):
    sizes = parse_sizes({"Z": [(least, least + more), 3]})
    if least <= size <= least + more:
        check_sizes(torch.zeros(2, size, 3), "Z", sizes, "the student")
    else:
        with pytest.raises(ValueError, match=r"expected Z of shape \(B, .*, 3\), as the student"):
            check_sizes(torch.zeros(2, size, 3), "Z", sizes, "the student")


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({**COND, "goal": torch.zeros(3, 1, 4)}, r"Z\.goal of shape \(B, 2, 4\).*got \(3, 1, 4\)"),
        ({**COND, "goal": torch.zeros(3, 2)}, r"Z\.goal of shape \(B, 2, 4\).*got \(3, 2\)"),
        ({"goal": COND["goal"]}, r"Z\.past\.1 of shape \(B,\).*got \{goal"),
        ({**COND, "other": torch.zeros(3)}, r"Z\.goal of shape.*other: \(3,\)"),
        (torch.zeros(3, 2, 4), r"Z\.goal of shape.*got \(3, 2, 4\)"),
        (None, r"Z\.goal of shape.*got None"),
    ],
)
def test_other_sizes_and_members_are_refused_by_name(cond, message):
    with pytest.raises(ValueError, match=message):
        check_sizes(cond, "Z", sizes_of(COND, "Z"), "the teacher")


def test_a_condition_where_none_was_trained_is_refused():
    with pytest.raises(ValueError, match=r"expected no Z, as the student was trained, got \(3,\)"):
        check_sizes(torch.zeros(3), "Z", {}, "the student")


@pytest.mark.parametrize(
    "value",
    [None, [1], {"Z": 3}, {"Z": "2"}, {1: [2]}, {"Z": [-1]}, {"Z": [True]}, {"Z": [(2, 1)]}]
    + [{"Z": [(1, 2, 3)]}, {"Z": [1.5]}, {"Z": [None]}],
)
def test_what_are_no_sizes_is_refused(value):
    with pytest.raises(ValueError, match="expected sizes as"):
        parse_sizes(value)


def test_text():
    assert sizes_text([(2, 2), (1, 4)]) == "(B, 2, 1..4)" and sizes_text([]) == "(B,)"
