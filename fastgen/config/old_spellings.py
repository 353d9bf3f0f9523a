"""Old spellings of keys: accepted for one release, with a line that gives the new ones."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from .._core.messages import brief
from .base import OldSpelling
from .dmd import STUDENT_KEYS, DMDConfig

__all__ = ["method_asked_for", "old_spellings", "respelled"]


def old_spellings(values: Any) -> dict[str, str]:
    """The old spellings in the `values` of a distillation, by the new ones:
    ``{"student.steps": "dmd.student_steps"}``."""
    dmd = _given(values.get("dmd")) if isinstance(values, dict) else None
    if not isinstance(dmd, dict):
        return {}
    return {f"student.{new}": f"dmd.{old}" for old, new in STUDENT_KEYS.items() if old in dmd}


def method_asked_for(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The `values` of a distillation, with the method that an override of `train.steps` asks for.

    A file that says `method: kd` has no updates after KD. Shipped configs once said so by
    `train.steps: 0`, and an override ``train.steps=300`` then meant DMD2. It still does; a warning
    gives what to write. An override of `method` has the last word.

    Args:
        values: of file and overrides, not validated yet.
        overrides: full key -> value.
    """
    steps = overrides.get("train.steps")
    group = overrides.get("train")
    if steps is None and isinstance(group, dict):
        steps = group.get("steps")
    asked = isinstance(steps, int) and steps > 0
    if values.get("method") != "kd" or not asked or "method" in overrides:
        return values
    warnings.warn(
        f"method=dmd2, since train.steps={steps} asks for updates after KD; say method=dmd2 beside "
        "it",
        OldSpelling,
        stacklevel=3,
    )
    return {**values, "method": "dmd2"}


def respelled(values: dict[str, Any]) -> dict[str, Any]:
    """The `values` of a distillation with the student's keys moved from `dmd` to `student`. One
    warning names all that were moved.

    Raises:
        ValueError: an old and a new spelling that say two things.
    """
    found = old_spellings(values)
    if not found and not isinstance(values.get("dmd"), DMDConfig):
        return values
    dmd = dict(_given(values["dmd"]))
    student = _given(values.get("student"))
    student = {} if student is None else student
    if not isinstance(student, dict):
        return values  # validation says what is wrong with it
    student = dict(student)
    for old, new in STUDENT_KEYS.items():
        if old not in dmd:
            continue
        value = dmd.pop(old)
        if new in student and not _same(student[new], value):
            raise ValueError(
                f"expected student.{new} or dmd.{old}, which is its old spelling, got "
                f"{brief(student[new])} and {brief(value)}; leave dmd.{old} out"
            )
        student[new] = value
    if found:
        moves = ", ".join(f"{old} is now {new}" for new, old in found.items())
        warnings.warn(f"{moves}; the old spelling goes with the next release", OldSpelling, 2)
    return {**values, "student": student, "dmd": dmd}


def _given(group: Any) -> Any:
    """A group as it was given; of a config the fields that were set, as a dict."""
    if isinstance(group, BaseModel):
        return {name: getattr(group, name) for name in group.model_fields_set}
    return group


def _same(one: Any, other: Any) -> bool:
    """Whether two values say one thing; a config may equal a dict, and a tensor or tuple a list."""
    return _plain(one) == _plain(other)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, tuple):
        return list(value)
    return value.tolist() if hasattr(value, "tolist") else value
