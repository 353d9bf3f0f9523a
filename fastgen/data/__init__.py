"""Tasks: training data, an evaluation that is the same for every sampler, and what to draw."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from .samples import SampleData, SampleTask
from .trajectories import TrajectoryData

if TYPE_CHECKING:
    from ..config.schemas import DataConfig

__all__ = [
    "Data",
    "SampleData",
    "SampleTask",
    "Task",
    "TrajectoryData",
    "build_data",
    "build_task",
]

Data = TrajectoryData | SampleData

# The options each task has besides pack, symmetry and seed.
TASKS = {
    "ring": ("size",),
    "modes": ("size",),
    "two_rings": ("size",),
    "flights": ("path",),
    "file": ("path", "obs_horizon", "horizon", "stride", "normalize"),
}


@runtime_checkable
class Task(Protocol):
    """What recipes need to know of a problem.

    Attributes:
        name: "ring", "modes", "two_rings", "flights" or "file".
        primary: name of the score, lower is better, that a model is chosen by.
    """

    name: str
    primary: str

    @property
    def train(self) -> Data:
        """The training set."""
        ...

    def evaluate(
        self, sample: Callable[[Any, Tensor], Tensor], *, quick: bool = False
    ) -> dict[str, float]:
        """Scores of `sample(Z, noise (B, *shape)) -> X (B, *shape)`, in original units.

        Z is what the training set has, of B rows: (B, T_z, d_z) for trajectories, None where there
        is no condition. `noise` is standard normal, drawn from the task's own fixed seed: every
        sampler sees the same draw. `quick` scores a small validation set, disjoint from the one the
        full scores are taken on.
        """
        ...

    def floor(self) -> dict[str, float]:
        """Scores to compare with: fresh demonstrations, or a simple baseline; {} where there is
        none."""
        ...

    def scene(self) -> dict:
        """`{"obstacles": [[(x, y), ...], ...], "limits": (xmin, xmax, ymin, ymax) or None, "equal":
        bool}`.

        With `discs`, a radius, Z is start, goal and the centres of discs, obstacles that move with
        the condition. Where X aren't trajectories also `kind`: "points" (2,) or (1, 2), "images"
        (C, H, W) or "values"; `samples`, how many of each example to draw, is 16 unless it is
        given.
        """
        ...

    def examples(self, n: int = 6) -> tuple[Any, Tensor]:
        """Conditions Z of n rows (or None) for a picture, with one true X (n, *shape) of each."""
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
        cfg: an object with `name`, and where given (an attribute that is missing or None means the
            task's own default): `pack`, `symmetry` (every task); `size`, `seed` (ring, modes,
            two_rings); `path`, `seed` (flights); `path`, `obs_horizon`, `horizon`, `stride`,
            `normalize`, `seed` (file).

    Raises ValueError for an unknown name, an option the task doesn't have, or values it refuses.
    """
    if cfg.name not in TASKS:
        raise ValueError(f"unknown data.name {cfg.name!r}, expected one of: {', '.join(TASKS)}")
    for key in ("size", "path", "obs_horizon", "horizon", "stride", "normalize"):
        if key not in TASKS[cfg.name] and getattr(cfg, key, None) is not None:
            raise ValueError(
                f"expected no data.{key} for the task {cfg.name}, got {getattr(cfg, key)!r}; "
                "leave it out"
            )
    options = ("pack", "symmetry", "seed", *TASKS[cfg.name])
    given = {key: getattr(cfg, key) for key in options if getattr(cfg, key, None) is not None}
    if cfg.name == "ring":
        from .tasks.ring_task import RingTask

        return RingTask(**given)
    if cfg.name == "modes":
        from .tasks.modes import ModesTask

        return ModesTask(**given)
    if cfg.name == "two_rings":
        from .tasks.two_rings_task import TwoRingsTask

        return TwoRingsTask(**given)
    if cfg.name == "flights":
        from .tasks.flights import FlightsTask

        return FlightsTask(**given)
    from .samples import file_task

    if "path" not in given:
        raise ValueError(
            "expected data.path, an .npz or .safetensors file, for the task file, got none"
        )
    return file_task(**given)
