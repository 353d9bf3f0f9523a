"""DMD2 in Python: losses and schedule in one config with the student that they train."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from .._core.checks import check_pred_type
from .groups import EMAConfig
from .matching import MatchingConfig
from .rungs import (
    check_decreasing,
    check_one_way,
    check_start,
    rungs_of,
    t_lists_of,
    with_calls,
)
from .student import Calls, StudentConfig

__all__ = ["STUDENT_KEYS", "DMDConfig", "joined"]

# The student's keys by their names in `DMDConfig`, with those in `StudentConfig`.
STUDENT_KEYS = {
    "student_steps": "steps",
    "t_list": "t_list",
    "t_list_shift": "t_list_shift",
    "t_max": "t_max",
    "pred_type": "pred_type",
    "student_sample_type": "sample_type",
    "ema": "ema",
}


class DMDConfig(MatchingConfig):
    """DMD2 with rectified-flow networks (Yin et al. 2024, arXiv:2405.14867), for
    :class:`fastgen.dmd.DMDPipeline`. In YAML the keys that it adds stand under `student:`.

    Raises:
        ValueError: rungs that no student can walk, or that contradict `student_steps`; several
            numbers of calls under "ode"; and as `MatchingConfig`.
    """

    pred_type: Literal["flow", "x0", "eps"] = Field(
        default="flow", description="what every network predicts"
    )
    student_steps: Calls = Field(
        default=1, description="network calls of the student; a list, or any, for several numbers"
    )
    t_list: tuple[float, ...] = Field(
        default=(), description="the student's rungs, decreasing to 0.0; [] = from student_steps"
    )
    t_list_shift: float = Field(
        default=1.0, gt=0.0, description="shift of the default rungs: t -> s t / (1 + (s - 1) t)"
    )
    t_max: float = Field(
        default=0.999, gt=0.0, le=1.0, description="first rung of the default t_list"
    )
    student_sample_type: Literal["ode", "sde"] = Field(
        default="sde", description="how rungs are joined"
    )
    ema: EMAConfig | None = Field(
        default=EMAConfig(), description="average of the student's weights; null = none"
    )

    @classmethod
    def in_order(cls) -> list[str]:
        """The student's keys stand where they always stood: `DMDConfig("x0")` is a prediction."""
        first = ["pred_type", "fake_score_pred_type", "student_steps", "t_list", "t_list_shift"]
        first += ["t_max", "student_sample_type"]
        rest = [name for name in MatchingConfig.model_fields if name not in first]
        return [*first, *rest, "ema"]

    @model_validator(mode="before")
    @classmethod
    def _calls(cls, values: Any) -> Any:
        return with_calls(values, "student_steps") if isinstance(values, dict) else values

    @field_validator("pred_type", mode="before")
    @classmethod
    def _known_pred_type(cls, value: Any) -> Any:
        check_pred_type(value, "pred_type")
        return value

    @field_validator("t_list")
    @classmethod
    def _decreasing(cls, t_list: tuple[float, ...]) -> tuple[float, ...]:
        check_decreasing(t_list)
        return t_list

    @model_validator(mode="after")
    def _rungs(self) -> DMDConfig:
        rungs = rungs_of(self.student_steps, self.t_list, self.t_max, self.t_list_shift)
        # Frozen models are still filled in during validation, through the base class' setter.
        object.__setattr__(self, "t_list", rungs)
        check_start(self.pred_type, self.t_list)
        check_one_way(self.student_sample_type, self.t_lists, "student_sample_type")
        self.check_for_rungs(len(self.t_list) - 1, several=len(self.t_lists) > 1)
        return self

    @property
    def t_lists(self) -> dict[int, tuple[float, ...]]:
        """{number of calls: its rungs and 0.0}; of several numbers each has floats of `t_list`."""
        return t_lists_of(self.student_steps, self.t_list, self.t_max, self.t_list_shift)

    @property
    def judged(self) -> tuple[float, ...]:
        """The rungs whose samples are looked at: those of the fewest calls."""
        return self.t_lists[min(self.t_lists)]


def joined(student: StudentConfig, matching: MatchingConfig) -> DMDConfig:
    """One config of a student and of the losses that train it."""
    values = {name: getattr(matching, name) for name in MatchingConfig.model_fields}
    for ours, theirs in STUDENT_KEYS.items():
        values[ours] = getattr(student, theirs)
    return DMDConfig(**values)
