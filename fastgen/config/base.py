"""The base of every schema: validated, immutable, unknown keys refused."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

__all__ = []


class Config(BaseModel):
    """Immutable, with unknown keys refused; what every schema below shares. Fields may be given in
    order or by name."""

    # YAML reads run_dir: 2024 as a number.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = list(type(self).model_fields)
        if len(args) > len(names):
            raise TypeError(
                f"expected at most {len(names)} values in {type(self).__name__}, got {len(args)}"
            )
        super().__init__(**dict(zip(names, args, strict=False)), **kwargs)

    @field_validator("*", mode="before")
    @classmethod
    def _rest_of_a_group(cls, value: Any, info: ValidationInfo) -> Any:
        """A group given in part keeps the rest of this field's own default, which need not be the
        group's."""
        default = cls.model_fields[info.field_name or ""].default
        if isinstance(value, dict) and isinstance(default, BaseModel):
            return {**default.model_dump(exclude_unset=True), **value}
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError(f"expected no yes-or-no value, got {value}")
        return value
