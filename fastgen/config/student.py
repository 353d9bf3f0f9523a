"""The student: how many network calls it makes, at which times, and what it predicts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from .._core.checks import check_pred_type
from .base import Config
from .groups import EMAConfig
from .rungs import (
    check_decreasing,
    check_one_way,
    check_start,
    parse_calls,
    rungs_of,
    t_lists_of,
    with_calls,
)

__all__ = ["Calls", "StudentConfig"]

# One number of network calls, or several.
Calls = Annotated[int | tuple[int, ...], BeforeValidator(parse_calls)]


class StudentConfig(Config):
    """The student of a run, `student:` in YAML. Its network is a copy of the teacher's unless
    `layers` or `factory` say otherwise.

    Raises:
        ValueError: rungs that no student can walk, or that contradict `steps`; two networks.
    """

    steps: Calls = Field(
        default=1,
        description="network calls of the student; a list such as [1, 2, 4], or any, which is "
        "[1, 2, 3, 4, 6, 8]: one student that serves each of these numbers",
    )
    t_list: tuple[float, ...] = Field(
        default=(), description="the student's rungs, decreasing to 0.0; [] = from steps"
    )
    t_list_shift: float = Field(
        default=1.0, gt=0.0, description="shift of the default rungs: t -> s t / (1 + (s - 1) t)"
    )
    t_max: float = Field(
        default=0.999, gt=0.0, le=1.0, description="first rung of the default t_list"
    )
    pred_type: Literal["flow", "x0", "eps"] = Field(
        default="flow", description="what every network predicts"
    )
    sample_type: Literal["ode", "sde"] = Field(default="sde", description="how rungs are joined")
    ema: EMAConfig | None = Field(
        default=EMAConfig(), description="average of the student's weights; null = none"
    )
    layers: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="layers of the student: the teacher's, spread among new ones that change "
        "nothing at the start, or evenly chosen among them; null = as many as the teacher",
    )
    factory: str | None = Field(
        default=None,
        description="package.module:callable that returns the student's network, called "
        "net(x_t, t, cond) with pred_type; weights of the teacher's names and shapes are the "
        "teacher's; null = a copy of the teacher",
    )
    arguments: dict[str, Any] = Field(
        default={}, description="keyword arguments of student.factory"
    )

    @model_validator(mode="before")
    @classmethod
    def _calls(cls, values: Any) -> Any:
        return with_calls(values, "steps") if isinstance(values, dict) else values

    @field_validator("pred_type", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        check_pred_type(value, "pred_type")
        return value

    @field_validator("t_list")
    @classmethod
    def _decreasing(cls, t_list: tuple[float, ...]) -> tuple[float, ...]:
        check_decreasing(t_list)
        return t_list

    @model_validator(mode="after")
    def _rungs(self) -> StudentConfig:
        rungs = rungs_of(self.steps, self.t_list, self.t_max, self.t_list_shift)
        # Frozen models are still filled in during validation, through the base class' setter.
        object.__setattr__(self, "t_list", rungs)
        check_start(self.pred_type, self.t_list)
        return self

    @model_validator(mode="after")
    def _one_way(self) -> StudentConfig:
        check_one_way(self.sample_type, self.t_lists)
        return self

    @property
    def t_lists(self) -> dict[int, tuple[float, ...]]:
        """{number of calls: its rungs and 0.0}; of several numbers each has floats of `t_list`."""
        return t_lists_of(self.steps, self.t_list, self.t_max, self.t_list_shift)

    @property
    def judged(self) -> tuple[float, ...]:
        """The rungs that validation, pictures and timings sample with: those of the fewest calls,
        which are the hardest to learn."""
        return self.t_lists[min(self.t_lists)]

    @model_validator(mode="after")
    def _one_network(self) -> StudentConfig:
        if self.factory is not None and self.layers is not None:
            raise ValueError(
                f"expected layers or factory, got layers={self.layers} and factory="
                f"{self.factory}; give the factory's network its layers by arguments"
            )
        if self.arguments and self.factory is None:
            raise ValueError(
                f"expected arguments of a factory, got {sorted(self.arguments)} without one; give "
                "factory as package.module:callable"
            )
        return self
