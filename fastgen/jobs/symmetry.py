"""The symmetry that a run declares, for what is measured of its exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config.files import load_config
from ..config.schemas import DistillConfig
from ..data.task import TASKS
from ..records.folder import RUN_CONFIG

__all__ = ["symmetry_of_run"]


def symmetry_of_run(student: Path) -> dict[str, Any]:
    """{"group", "in_rep", "cond_rep"} of the data that the student in this folder was distilled on,
    as `data.symmetry` of its run's config says, or the embedded task; {} where nothing does.

    What an encoder makes of observations is acted on in another way, of which a config says
    nothing.
    """
    try:
        cfg = load_config(DistillConfig, student.parent / RUN_CONFIG)
    except ValueError:  # the student doesn't lie in a run's folder
        return {}
    if cfg.teacher.encoder is not None:
        return {}
    declared = cfg.data.symmetry
    own = declared.model_dump() if declared else getattr(TASKS[cfg.data.name], "own_symmetry", None)
    return {key: own[key] for key in ("group", "in_rep", "cond_rep")} if own else {}
