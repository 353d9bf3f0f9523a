"""Tasks: what a task offers, and the table that builds one from a config."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from .files import file_task
from .ranges import check_range
from .samples import SampleData
from .tasks.fashion import FashionTask
from .tasks.flights import FlightsTask
from .tasks.modes import ModesTask
from .tasks.ring import RingTask
from .tasks.two_rings import TwoRingsTask
from .tasks.weave import WeaveTask
from .trajectories import TrajectoryData

if TYPE_CHECKING:
    from ..config.schemas import DataConfig
    from .encoded import RowEncoder

__all__ = ["TASKS", "Data", "Task", "build_data", "build_task"]

Data = TrajectoryData | SampleData

# Name of a task -> its builder, whose keywords are the options of the task.
TASKS: dict[str, Callable[..., Any]] = {
    "ring": RingTask,
    "modes": ModesTask,
    "two_rings": TwoRingsTask,
    "weave": WeaveTask,
    "flights": FlightsTask,
    "fashion": FashionTask,
    "file": file_task,
}


@runtime_checkable
class Task(Protocol):
    """What recipes need to know of a problem: its training data, its scores, and what to draw.

    A task may also offer `compare(a, b)`, two samplers by the samples that they answered in
    `evaluate(quick=True)`, all calls in one tensor each. It returns {score: difference}, each a
    :class:`fastgen.comparisons.Comparison` of b relative to a, lower is better. Then averages,
    patience and stages are decided by more than noise (:mod:`fastgen.training.choice`); without
    it, or where it raises :class:`fastgen.comparisons.TooFewRows`, by the least primary score.

    One of images may also have `nearest(x)`, which answers samples (n, C, H, W) with the training
    image that is nearest to each, to be drawn beside them.

    Attributes:
        name: of the task, a key of `TASKS`.
        primary: name of the score by which a model is chosen; lower is better.
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
        """Scores of a sampler, in original units.

        Args:
            sample: called with conditions Z and standard normal noise (B, *shape); answers with
                X (B, *shape). Z has B rows of what the training set has: (B, T_z, d_z) for
                trajectories, None where there is no condition. The noise is drawn from the task's
                own fixed seed, so that every sampler sees the same draw.
            quick: score on a small validation set, disjoint from the set of the full scores.
        """
        ...

    def floor(self) -> dict[str, float]:
        """Scores to compare with: those of fresh demonstrations, or of a simple baseline; {} where
        there is neither."""
        ...

    def scene(self) -> dict:
        """What to draw around the samples.

        Returns:
            `obstacles`: polygons [(x, y), ...].
            `limits`: (xmin, xmax, ymin, ymax), or None for the range of what is drawn.
            `equal`: whether both axes have one scale.
            `discs`, a radius, where Z is start, goal and the centres of discs: obstacles that move
                with the condition.
            `goal`: True where Z is start and goal and nothing stands in the way.
            `kind`, where X aren't trajectories: "points" (2,) or (1, 2), "images" (C, H, W) or
                "values".
            `samples`, how many to draw of each example; 16 where it is missing.
        """
        ...

    def examples(self, n: int = 6) -> tuple[Any, Tensor]:
        """Conditions Z of n rows (or None) for a picture, with one true X (n, *shape) of each."""
        ...


def build_data(cfg: DataConfig, encoder: RowEncoder | None = None) -> Task:
    """The task that the group `data` of a config names; errors as `build_task`, and a ValueError
    for data outside their declared range.

    Args:
        encoder: of the observations of a data set.
    """
    values = cfg.model_dump(exclude={"range"})
    if values["symmetry"] is not None and values["symmetry"]["out_rep"] is None:
        values["symmetry"]["out_rep"] = values["symmetry"]["in_rep"]
    task = build_task(SimpleNamespace(**values, encoder=encoder))
    check_range(task, cfg.box)
    return task


def build_task(cfg: Any) -> Task:
    """The task that a data configuration asks for.

    Args:
        cfg: an object with the attribute `name`, and options of that task as further attributes.
            An option that is missing or None has the task's own default.

    Raises:
        ValueError: an unknown name, an option that the task doesn't have, or values that it
            refuses.
    """
    if cfg.name not in TASKS:
        raise ValueError(f"unknown data.name {cfg.name!r}, expected one of: {', '.join(TASKS)}")
    builder = TASKS[cfg.name]
    known = inspect.signature(builder).parameters
    options = {}
    for key, value in vars(cfg).items():
        if key == "name" or value is None:
            continue
        if key not in known:
            raise ValueError(
                f"expected no data.{key} for the task {cfg.name}, got {value!r}; leave it out"
            )
        options[key] = value
    return builder(**options)
