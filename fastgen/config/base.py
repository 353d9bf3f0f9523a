"""The base of every schema: validated, immutable, unknown keys refused."""

from __future__ import annotations

import re
from numbers import Integral
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

__all__ = ["MOST_SEED", "PYTHON_ONLY", "Config", "OldSpelling"]

# Marks a field that callers in Python may give, and that is no key of a config file.
PYTHON_ONLY: dict[str, Any] = {"python_only": True}


# What torch's generators take.
MOST_SEED = 2**64 - 1
# A number with an exponent of at most two digits.
_POWER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+]?\d{1,2}")
# Most digits of a number in text: what is longer is no count.
_MOST_DIGITS = 40


class OldSpelling(FutureWarning):
    """A config was understood that should be written in another way; the message says how."""


class Config(BaseModel):
    """A group of keys: immutable, unknown keys refused, numbers finite. In Python its fields may be
    given in order or by name.

    Raises:
        ValueError: an unknown key, or a value that the field does not take.
        TypeError: more values in order than there are fields.
    """

    # YAML reads run_dir: 2024 as a number, which is text here.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = type(self).in_order()
        if len(args) > len(names):
            raise TypeError(
                f"expected at most {len(names)} values in {type(self).__name__}, got {len(args)}"
            )
        super().__init__(**dict(zip(names, args, strict=False)), **kwargs)

    @classmethod
    def in_order(cls) -> list[str]:
        """The fields in the order in which they may be given without names."""
        return list(cls.model_fields)

    @field_validator("*", mode="before")
    @classmethod
    def _rest_of_a_group(cls, value: Any, info: ValidationInfo) -> Any:
        """Fill up a group given in part from the default of its place: `student_optimizer` starts
        from other rates than `OptimizerConfig`."""
        default = cls.model_fields[info.field_name or ""].default
        if isinstance(value, dict) and isinstance(default, BaseModel):
            return {**default.model_dump(exclude_unset=True), **value}
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `steps: true`, which Python takes for 1."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError(f"expected no yes-or-no value, got {value}")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _whole_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Read `1e3`, which YAML takes for text, and NumPy's whole numbers."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if int not in (annotation, *get_args(annotation)) or isinstance(value, bool):
            return value
        if isinstance(value, Integral):
            return int(value)
        if isinstance(value, str) and len(value) <= _MOST_DIGITS and _POWER.fullmatch(value):
            number = float(value)
            return int(number) if number.is_integer() else value
        return value
