"""Teachers as a config names them."""

from __future__ import annotations

from typing import Any

from fastgen.config import DistillConfig, StudentConfig
from fastgen.jobs.sources import load_teacher

__all__ = ["built", "config"]


def config(teacher: dict[str, Any] | None = None, **given: Any) -> DistillConfig:
    """The keys of `student` and of `dmd` by their own names."""
    student = {key: value for key, value in given.items() if key in StudentConfig.model_fields}
    dmd = {key: value for key, value in given.items() if key not in student}
    return DistillConfig.model_validate({"teacher": teacher or {}, "student": student, "dmd": dmd})


def built(factory: str, **source: Any) -> Any:
    return load_teacher(config({"factory": factory, **source}))
