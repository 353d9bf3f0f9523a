"""Rungs of a student: the times at which it is called, for one number of calls or for several.

A student of k calls has k rungs, by default evenly spaced from `t_max` to 0, then shifted. One
that serves several numbers of calls has the rungs of all of them: their union is its `t_list`, in
which each number finds a `t_list` of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from numbers import Integral
from typing import Any

from .._core.messages import brief

__all__ = [
    "ANY_CALLS",
    "check_decreasing",
    "check_one_way",
    "check_start",
    "default_rungs",
    "parse_calls",
    "rungs_of",
    "t_lists_of",
    "with_calls",
]

# What a student of any number of calls serves.
ANY_CALLS = (1, 2, 3, 4, 6, 8)
# The most calls of a student, and the most of all its numbers together.
_MOST_CALLS = 1000


# ---- What is asked for ---------------------------------------------------------------------------


def parse_calls(value: Any) -> int | tuple[int, ...]:
    """A number of calls, or several, increasing.

    Args:
        value: a whole number, a list of different ones (one alone is that number), or "any" for
            `ANY_CALLS`.

    Raises:
        ValueError: anything else, or more calls than any student makes.
    """
    if value == "any":
        return ANY_CALLS
    if hasattr(value, "tolist"):
        value = value.tolist()
    several = isinstance(value, list | tuple)
    numbers = [_whole(number) for number in (value if several else [value])]
    within = all(number is not None and 1 <= number <= _MOST_CALLS for number in numbers)
    if not numbers or not within or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"expected a number of calls in 1..{_MOST_CALLS}, different ones such as [1, 2, 4], or "
            f"any, got {brief(value)}"
        )
    calls = tuple(sorted(number for number in numbers if number is not None))
    if len(calls) == 1:
        return calls[0]
    if sum(calls) > _MOST_CALLS:
        raise ValueError(
            f"expected numbers of calls that add up to at most {_MOST_CALLS}, got {sum(calls)}; "
            "leave out the largest"
        )
    return calls


def _whole(value: Any) -> int | None:
    """A whole number as it is given, or as text; None if it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 4:
        return int(value)
    return None


def with_calls(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """`values` with the number of calls that their `t_list` implies, if they don't say several. An
    empty `t_list` is left out: the rungs then follow from the number of calls.

    Args:
        values: keys of a student as they were given, not validated yet.
        key: name of the number of calls, `steps` or `student_steps`.

    Raises:
        ValueError: a t_list that is no list of numbers, or that contradicts `key`.
    """
    t_list = values.get("t_list")
    if t_list is None or (isinstance(t_list, list | tuple) and not t_list):
        return {name: value for name, value in values.items() if name != "t_list"}
    if not isinstance(t_list, list | tuple) and hasattr(t_list, "tolist"):
        t_list = t_list.tolist()
    if not isinstance(t_list, list | tuple) or not all(isinstance(t, int | float) for t in t_list):
        raise ValueError(f"expected t_list as a list of numbers, got {t_list!r}")
    given = values.get(key)
    if given is not None and isinstance(parse_calls(given), tuple):
        return {**values, "t_list": t_list}
    calls = len(t_list) - 1
    if given is not None and parse_calls(given) != calls:
        raise ValueError(
            f"expected {key} == len(t_list) - 1 = {calls}, got {key}={given}; set one of the two"
        )
    return {**values, "t_list": t_list, key: calls}


def check_decreasing(t_list: tuple[float, ...]) -> None:
    """Raise ValueError unless rungs start in (0, 1], fall, and end at 0; none at all are fine."""
    if t_list and (t_list[-1] != 0.0 or not 0.0 < t_list[0] <= 1.0):
        raise ValueError(f"expected t_list to start in (0, 1] and end at 0.0, got {list(t_list)}")
    if any(a <= b for a, b in zip(t_list, t_list[1:], strict=False)):
        raise ValueError(f"expected t_list strictly decreasing, got {list(t_list)}")


def check_start(pred_type: str, t_list: tuple[float, ...]) -> None:
    """Raise ValueError for a student that predicts noise and is told pure noise."""
    if pred_type == "eps" and t_list[0] >= 1.0:
        raise ValueError(
            f"expected t_list[0] < 1 for pred_type='eps' (x0 needs 1/(1-t)), got {t_list[0]}"
        )


def check_one_way(
    sample_type: str, t_lists: Mapping[int, tuple[float, ...]], key: str = "sample_type"
) -> None:
    """Raise ValueError for a student of several numbers of calls, {calls: rungs}, whose rungs are
    joined by the ODE; `key` is the name of `sample_type`."""
    if len(t_lists) > 1 and sample_type == "ode":
        raise ValueError(
            f"expected {key}=sde with several numbers of calls, got ode: there a rung is trained "
            "to reach the next one, which differs between them"
        )


# ---- The rungs -----------------------------------------------------------------------------------


def default_rungs(steps: int, t_max: float, shift: float) -> tuple[float, ...]:
    """Rungs from `t_max` to 0, evenly spaced, then t -> s t / (1 + (s - 1) t) between the ends."""
    even = [t_max * (steps - i) / steps for i in range(steps)]
    # The first rung is t_max itself, which n t_max / n need not be.
    rungs = [t_max] + [_shifted(t, shift) for t in even[1:]]
    return (*rungs, 0.0)


def rungs_of(
    calls: int | tuple[int, ...], t_list: tuple[float, ...], t_max: float, shift: float
) -> tuple[float, ...]:
    """The `t_list` of a student: as given, or the default of its number of calls; for several the
    union of theirs.

    Raises:
        ValueError: for several numbers, a `t_list` that isn't theirs, or a shift that moves rungs
            beyond `t_max`.
    """
    if isinstance(calls, int):
        return t_list or default_rungs(calls, t_max, shift)
    t_lists = [_falling(own, shift) for own in _default_t_lists(calls, t_max, shift).values()]
    joint = tuple(sorted({t for own in t_lists for t in own}, reverse=True))
    if t_list and t_list != joint:
        raise ValueError(
            f"expected no t_list beside several numbers of calls, {list(calls)}, whose rungs "
            "follow from t_max and t_list_shift; leave it out"
        )
    return joint


def t_lists_of(
    calls: int | tuple[int, ...], t_list: tuple[float, ...], t_max: float, shift: float
) -> dict[int, tuple[float, ...]]:
    """{number of calls: its rungs and 0.0}, each of them floats of `t_list`: of one number that
    list itself, of several their default rungs.

    Args:
        calls: of the student.
        t_list: its rungs, from `rungs_of`.
        t_max, shift: of the default rungs.
    """
    if isinstance(calls, int):
        return {calls: t_list}
    return _default_t_lists(calls, t_max, shift)


def _default_t_lists(
    calls: tuple[int, ...], t_max: float, shift: float
) -> dict[int, tuple[float, ...]]:
    """The default rungs of each number, the same float wherever two share a time: 3/6 is 1/2."""

    def rung(part: Fraction) -> float:
        if part == 1:
            return t_max
        return _shifted(t_max * part.numerator / part.denominator, shift)

    return {k: (*(rung(Fraction(k - i, k)) for i in range(k)), 0.0) for k in calls}


def _falling(t_list: tuple[float, ...], shift: float) -> tuple[float, ...]:
    """Default rungs, once it is clear that the shift has left them below the first one."""
    if t_list[1] >= t_list[0]:
        raise ValueError(
            f"expected t_list_shift to leave all rungs below t_max={t_list[0]}, got {shift}, which "
            f"moves the second one to {t_list[1]:.6g}; lower it"
        )
    return t_list


def _shifted(t: float, shift: float) -> float:
    return shift * t / (1.0 + (shift - 1.0) * t)
