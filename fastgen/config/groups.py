"""Groups of keys that several schemas share: the law of a training time, and the average of
weights."""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    WrapSerializer,
    field_validator,
    model_validator,
)

from .base import PYTHON_ONLY, Config, OldSpelling

__all__ = ["EMAConfig", "SampleTimestepConfig", "TimeLaw"]


class SampleTimestepConfig(Config):
    """Distribution of a training time t in [min_t, max_t], RF time; its formulas stand at
    :func:`fastgen.flow_matching.sample_timesteps`. As a key of a config: `TimeLaw`."""

    time_dist_type: Literal["uniform", "logitnormal", "lognormal", "shifted", "polynomial"] = Field(
        default="shifted", description="law of t"
    )
    min_t: float = Field(default=0.001, ge=0.0, le=1.0, description="smallest t drawn")
    max_t: float = Field(default=0.999, ge=0.0, le=1.0, description="largest t drawn")
    shift: float = Field(
        default=5.0, gt=0.0, description="s of `shifted`: t = s u / (1 + (s - 1) u)"
    )
    p_mean: float = Field(
        default=0.0, description="mean of the normal behind logitnormal and lognormal"
    )
    p_std: float = Field(default=1.0, gt=0.0, description="standard deviation of that normal")
    t_list: tuple[float, ...] | None = Field(
        default=None,
        description="rungs of a student; ignored when t is drawn",
        json_schema_extra=PYTHON_ONLY,
    )

    @model_validator(mode="after")
    def _ordered(self) -> SampleTimestepConfig:
        if not self.min_t < self.max_t:
            raise ValueError(f"expected min_t < max_t, got min_t={self.min_t}, max_t={self.max_t}")
        return self


def _read_law(value: Any) -> Any:
    """What a config says of a law, without the `t_list` that files of 0.1.0 have."""
    if not isinstance(value, dict) or "t_list" not in value:
        return value
    if value["t_list"] is not None:
        warnings.warn(
            "t_list of a law of time was never used: leave it out; it goes with the next release",
            OldSpelling,
            stacklevel=2,
        )
    return _without_rungs(value)


def _write_law(law: SampleTimestepConfig, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
    return _without_rungs(write(law))


def _without_rungs(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "t_list"}


# A law of time as a key of a config, where it has no `t_list`: nothing is drawn from one.
TimeLaw = Annotated[SampleTimestepConfig, BeforeValidator(_read_law), WrapSerializer(_write_law)]


class EMAConfig(Config):
    """Exponential moving average of the student's weights, counted in student updates (Karras et
    al. 2023 for `power`)."""

    decay: float = Field(
        default=0.99,
        ge=0.0,
        lt=1.0,
        description="beta of `constant`: shadow = beta shadow + (1 - beta) w",
    )
    type: Literal["constant", "halflife", "power"] = Field(
        default="constant", description="law of beta over updates"
    )
    start_iter: int = Field(
        default=0, ge=0, description="updates before which the shadow is a plain copy"
    )
    gamma: float = Field(
        default=16.97, gt=0.0, description="exponent of `power`: beta = (1 - 1/n)^(gamma + 1)"
    )
    halflife_kimg: float = Field(
        default=500.0, gt=0.0, description="half-life of `halflife` in thousands of samples"
    )
    rampup_ratio: float | None = Field(
        default=0.05, gt=0.0, description="half-life <= ratio x samples seen; null = no ramp"
    )
    batch_size: int = Field(default=128, gt=0, description="samples per update, for `halflife`")
    dtype: Literal["float32", "float64"] = Field(
        default="float32", description="dtype of the shadow"
    )

    @field_validator("dtype", mode="before")
    @classmethod
    def _named(cls, dtype: Any) -> Any:
        return str(dtype).removeprefix("torch.")
