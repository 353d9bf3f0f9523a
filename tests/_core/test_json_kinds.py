"""Kinds of JSON: what is right passes, what is wrong is named in one line."""

from __future__ import annotations

import pytest

from fastgen._core.json_kinds import (
    check_kind,
    count,
    listed,
    mapping,
    maybe,
    number,
    plain,
    positive,
    record,
    text,
)

ROW = record({"step": count}, optional={"loss": maybe(number)}, others=plain)
EXACT = record({"step": count}, optional={"rows": listed(count)})


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (count, 0),
        (count, 2**53),
        (number, -1.5),
        (number, 3),
        (positive, 1e-3),
        (text, "é"),
        (maybe(text), None),
        (listed(number), [1, 2.5]),
        (mapping(mapping(number)), {"a": {"b": 1}}),
        (plain, {"a": [1, None, "x", {"b": True}]}),
        (ROW, {"step": 1, "loss": None, "more": [1]}),
        (EXACT, {"step": 1, "rows": []}),
    ],
)
def test_what_is_of_its_kind_passes(kind, value):
    check_kind(value, kind, "x", "here", "mend it")


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (count, -1, "expected x as a whole number from 0 on, got -1"),
        (count, True, "got True"),
        (count, 1.0, "got 1.0"),
        (count, 10**30, "a whole number from 0 on, got 1000"),
        (number, "1", "expected x as a number, got '1'"),
        (number, float("nan"), "a number, got nan"),
        (number, 10**400, "a number, got"),
        (positive, 0, "a number above 0, got 0"),
        (text, "\ud800", "expected x as text"),
        (text, "x" * 100_000, "expected x as text"),
        (listed(count), [1, None], r"expected x\[1\] as a whole number from 0 on, got None"),
        (mapping(number), [], "expected x as an object, got "),
        (mapping(number), {"a\n": "b"}, "as a number, got 'b'"),
        (plain, [[[[[1]]]]], "at most 4 levels"),
        (ROW, {}, "expected the keys step of x, got them with missing step"),
        (ROW, {"step": 1, "loss": "x"}, "expected x.loss as a number"),
        (EXACT, {"step": 1, "y": 2}, "got them with unexpected y"),
        (EXACT, 3, "expected x as an object, got 3"),
    ],
)
def test_what_is_not_is_one_line(kind, value, said):
    with pytest.raises(ValueError, match=said) as caught:
        check_kind(value, kind, "x", "here", "mend it")
    line = str(caught.value)
    assert "\n" not in line and len(line) < 400
    assert line.startswith("here: ") and line.endswith("; mend it")
