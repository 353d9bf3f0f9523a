"""The student: how many network calls it makes, at which times, and what it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from .._core.checks import check_pred_type
from .base import Config
from .groups import EMAConfig

__all__ = ["StudentConfig", "check_decreasing", "check_start", "default_rungs", "with_calls"]


class StudentConfig(Config):
    """The student of a run, `student:` in YAML. Its network is a copy of the teacher's unless
    `layers` or `factory` say otherwise.

    Raises:
        ValueError: rungs that no student can walk, or that contradict `steps`; two networks.
    """

    steps: int = Field(default=1, ge=1, le=1000, description="network calls of the student")
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
        if not self.t_list:
            rungs = default_rungs(self.steps, self.t_max, self.t_list_shift)
            # Frozen models are still filled in during validation, through the base class' setter.
            object.__setattr__(self, "t_list", rungs)
        check_start(self.pred_type, self.t_list)
        return self

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


def with_calls(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """`values` with the number of calls that their `t_list` implies. An empty `t_list` is left out:
    the rungs then follow from the number of calls.

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
    calls = len(t_list) - 1
    given = values.get(key)
    if given is not None and given != calls:
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


def default_rungs(steps: int, t_max: float, shift: float) -> tuple[float, ...]:
    """Rungs from `t_max` to 0, evenly spaced, then t -> s t / (1 + (s - 1) t) between the ends."""
    even = [t_max * (steps - i) / steps for i in range(steps)]
    # The first rung is t_max itself, which n t_max / n need not be.
    rungs = [t_max] + [shift * t / (1.0 + (shift - 1.0) * t) for t in even[1:]]
    return (*rungs, 0.0)


def check_start(pred_type: str, t_list: tuple[float, ...]) -> None:
    """Raise ValueError for a student that predicts noise and is told pure noise."""
    if pred_type == "eps" and t_list[0] >= 1.0:
        raise ValueError(
            f"expected t_list[0] < 1 for pred_type='eps' (x0 needs 1/(1-t)), got {t_list[0]}"
        )
