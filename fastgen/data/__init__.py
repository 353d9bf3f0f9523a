"""Tasks: training data, an evaluation that is the same for every sampler, and what to draw."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from .trajectories import TrajectoryData, load_trajectories

if TYPE_CHECKING:
    from ..config import DataConfig

__all__ = ["Task", "TrajectoryData", "build_data", "build_task", "load_trajectories"]

# The options each task has besides pack, symmetry and seed.
TASKS = {"ring": ("size",), "flights": ("path",), "file": ("path", "obs_horizon", "horizon", "stride", "normalize")}


@runtime_checkable
class Task(Protocol):
    """What recipes need to know of a problem.

    Attributes:
        name: "ring", "flights" or "file".
        primary: name of the score, lower is better, that a model is chosen by.
    """

    name: str
    primary: str

    @property
    def train(self) -> TrajectoryData:
        """The training set."""
        ...

    def evaluate(self, sample: Callable[[Tensor, Tensor], Tensor], *, quick: bool = False) -> dict[str, float]:
        """Scores of `sample(Z (B, T_z, d_z), noise (B, T_x, d_x)) -> X (B, T_x, d_x)`, in original units.

        `noise` is standard normal, drawn from the task's own fixed seed: every sampler sees the same draw. `quick`
        scores a small validation set, disjoint from the one the full scores are taken on.
        """
        ...

    def floor(self) -> dict[str, float]:
        """Scores to compare with: fresh demonstrations, or a simple baseline; {} where there is none."""
        ...

    def scene(self) -> dict:
        """`{"obstacles": [[(x, y), ...], ...], "limits": (xmin, xmax, ymin, ymax) or None, "equal": bool}`."""
        ...

    def examples(self, n: int = 6) -> tuple[Tensor, Tensor]:
        """Conditions Z (n, T_z, d_z) for a picture, with one true X (n, T_x, d_x) of each."""
        ...


def build_data(cfg: DataConfig) -> Task:
    """The task that the group `data` of a config names; errors as `build_task`."""
    values = cfg.model_dump()
    if values["symmetry"] is not None and values["symmetry"]["out_rep"] is None:
        values["symmetry"]["out_rep"] = values["symmetry"]["in_rep"]
    return build_task(SimpleNamespace(**values))


def build_task(cfg: Any) -> Task:
    """The task that a data configuration asks for.

    Args:
        cfg: an object with `name`, and where given (an attribute that is missing or None means the task's own default):
            `pack`, `symmetry` (every task); `size`, `seed` (ring); `path`, `seed` (flights); `path`, `obs_horizon`,
            `horizon`, `stride`, `normalize`, `seed` (file).

    Raises ValueError for an unknown name, an option the task doesn't have, or values it refuses.
    """
    if cfg.name not in TASKS:
        raise ValueError(f"unknown data.name {cfg.name!r}, expected one of: {', '.join(TASKS)}")
    for key in ("size", "path", "obs_horizon", "horizon", "stride", "normalize"):
        if key not in TASKS[cfg.name] and getattr(cfg, key, None) is not None:
            raise ValueError(f"expected no data.{key} for the task {cfg.name}, got {getattr(cfg, key)!r}; leave it out")
    options = ("pack", "symmetry", "seed", *TASKS[cfg.name])
    given = {key: getattr(cfg, key) for key in options if getattr(cfg, key, None) is not None}
    if cfg.name == "ring":
        from .ring_task import RingTask

        return RingTask(**given)
    if cfg.name == "flights":
        from .flights import FlightsTask

        return FlightsTask(**given)
    from .held_out import FileTask

    if "path" not in given:
        raise ValueError("expected data.path, an .npz or .safetensors file, for the task file, got none")
    return FileTask(**given)
