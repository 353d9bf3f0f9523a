"""The registry of methods: every value of the config key `method`, a line each."""

from __future__ import annotations

from ..config.schemas import DistillConfig
from ..report.styles import StageStyle
from .auto import Auto
from .consistency import Consistency
from .dmd2 import DMD2, LADD
from .drift import Drift
from .kd import KD
from .method import Method

__all__ = ["METHODS", "WARM_START", "method_named", "stage_styles", "stages_of"]

METHODS: dict[str, Method] = {
    "kd": KD(),
    "dmd2": DMD2(),
    "auto": Auto(),
    "ladd": LADD(),
    "consistency": Consistency(),
    "drift": Drift(),
}
WARM_START = "kd"  # the method that every other one starts from


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}, expected one of: {', '.join(METHODS)}")
    return METHODS[name]


def stages_of(cfg: DistillConfig) -> list[Method]:
    """The methods whose stages a run goes through, in order: the warm start, then its own."""
    own = method_named(cfg.method)
    warm_start = METHODS[WARM_START]
    methods = [warm_start] if own is warm_start else [warm_start, own]
    return [method for method in methods if method.updates(cfg) > 0]


def stage_styles() -> dict[str, StageStyle]:
    """How a report shows the stage of each method, in the order of training."""
    return {
        method.stage: StageStyle(method.title, method.colour, method.heading)
        for method in METHODS.values()
    }
