"""Samples of any shape, with any condition or none: the training set and the task of such data.

X is (N, *shape). Z is (N, ...), class labels (N,), several tensors of N rows, or None.

A network sees samples as they are: nothing is normalised or packed, and no symmetry is known.
Trajectories, X (N, T_x, d_x) with Z (N, T_z, d_z), have `trajectories` and `held_out`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._core.conditions import map_tensors, take_rows, tensors_in
from .._core.seeds import draw_rows
from ..comparisons import Comparison
from ..metrics import energy_score
from .held_out import split_rows
from .recorded import (
    Regions,
    compare_rows,
    energy_of,
    label_columns,
    within_floor,
    within_scores,
)
from .scoring import answered, evaluation_generator
from .trajectories import check_dtype, check_finite

__all__ = ["SampleData", "SampleTask", "check_samples"]


@dataclass(frozen=True)
class SampleData:
    """Samples X with their conditions Z; a network sees both as they are.

    Attributes:
        X: (N, *shape) with at least one axis in `shape`, float32, or float64 where float32 would
            lose digits. Networks see it in float32.
        Z: a Tensor (N, ...), a tuple or mapping of such, or None. Integers are labels and stay
            integers.

    Raises:
        ValueError, TypeError: anything above that doesn't hold; rows with NaN are named.
    """

    X: Tensor
    Z: Any = None

    # What trajectories have and samples don't.
    x_normalizer: ClassVar[None] = None
    z_normalizer: ClassVar[None] = None
    pack: ClassVar[int] = 1
    symmetry: ClassVar[None] = None
    # Of a file nobody knows how its rows are sorted.
    in_order: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_samples(self.X, self.Z)
        check_dtype("X", self.X)

    def __len__(self) -> int:
        return self.X.shape[0]

    @property
    def cond(self) -> Any:
        """Z: what samplers are given."""
        return self.Z

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of the noise that a sample is made of, its own."""
        return tuple(self.X.shape[1:])

    def network_inputs(self) -> tuple[Tensor, Any]:
        """X in float32, and Z."""
        return self.X.float(), self.Z


def check_samples(X: Tensor, Z: Any) -> None:
    """Check that X is (N, *shape) and that every tensor of Z has N rows, N >= 1, all finite.

    Raises:
        TypeError: X is no floating-point tensor.
        ValueError: another shape, or rows with NaN or infinity, which are named.
    """
    if not isinstance(X, Tensor) or not X.is_floating_point():
        got = getattr(X, "dtype", type(X).__name__)
        raise TypeError(f"expected X to be a floating-point Tensor, got {got}")
    if X.ndim < 2 or X.numel() == 0:
        raise ValueError(
            f"expected X of shape (N, *shape) with at least one number, got {tuple(X.shape)}"
        )
    check_finite("X", X)
    for z in tensors_in(Z):
        if len(z) != len(X):
            raise ValueError(f"expected as many rows in Z as in X, got {len(z)} and {len(X)}")
        check_finite("Z", z)


class SampleTask:
    """Samples of any shape, split by episode into train, validation and test, and scored against
    the rows held out.

    About a fifth of the episodes is the test set and a tenth the validation set. Evaluation takes
    at most 1000 test and 256 validation rows. Where samples are large it takes fewer: a million
    numbers in all, though at least 64 rows. The score by which a model is chosen is
    `energy_distance`; two students are compared within modes, too (`compare`).

    Args:
        name: of the task; part of the seed of the evaluation noise.
        X, Z: as in `SampleData`.
        seed: of the split.
        episodes: (N,); rows of one episode have one number and stay on one side of the split. None:
            each row is one of its own.
    """

    # Samples of each condition.
    SAMPLES = 6
    # Most rows of an evaluation; most numbers of all rows; and the rows that are taken anyway.
    LIMITS = {"test": 1000, "validation": 256}
    NUMBERS = 2**20
    FEWEST = 64

    def __init__(
        self,
        name: str,
        X: Tensor,
        Z: Any = None,
        *,
        seed: int = 0,
        episodes: Tensor | None = None,
    ) -> None:
        check_samples(X, Z)
        self.name = name
        self.primary = "energy_distance"
        self._X = X
        self._Z = Z
        most = max(self.FEWEST, self.NUMBERS // X[0].numel())
        limits = {part: min(limit, most) for part, limit in self.LIMITS.items()}
        self.episodes = torch.arange(len(X)) if episodes is None else episodes
        self.rows = split_rows(self.episodes, seed, limits)

    def split(self, part: str) -> tuple[Tensor, Any]:
        """X, Z of "train", "validation" or "test" rows."""
        return self._X[self.rows[part]], take_rows(self._Z, self.rows[part])

    @property
    def train(self) -> SampleData:
        """The training set, made on first use."""
        return self._train

    @cached_property
    def _train(self) -> SampleData:
        return SampleData(*self.split("train"))

    def evaluate(
        self, sample: Callable[[Any, Tensor], Tensor], *, quick: bool = False
    ) -> dict[str, float]:
        """Scores of a sampler on the test rows.

        With a condition, there are six samples of each row:
            energy_score: of the six against the row's own X (`metrics.energy_score`), mean over
                rows; in the unit of the data, strictly proper.
            energy_distance: between (X, Z) of the samples and of the data, without the pairs that
                share their row; mean over the six. Labels are part of Z where eight rows or more
                share a value; two that differ are as far apart as a standard deviation of X.

        Without a condition, there are as many samples as rows:
            energy_distance: between samples and data.
            mean_error: |mean of the samples - mean of the data| / s, with s the root of the data's
                total variance.
            std_ratio: the same root for the samples / s; 1 for the data's law.

        Both ways, of (X, Z) as the energy distance sees them:
            outside, missed: share of samples outside the data, and of data that samples miss, as
                `recorded.within_scores`; .01 for the data's law, blurred and narrowed modes more.

        Energy distances are in units of the training set's standard deviation, one for X and one
        for each condition. They are about 0 for the data's law and can be slightly negative.

        Args:
            sample: called with Z and noise (B, *shape), answers with X (B, *shape). The noise is
                the same for every sampler.
            quick: score on the validation rows.
        """
        part = "validation" if quick else "test"
        X, Z = self.split(part)
        k = self._samples_of_row
        n = len(X)
        noise = torch.randn(n * k, *X.shape[1:], generator=evaluation_generator(self.name, part))
        drawn = sample(map_tensors(lambda z: z.repeat_interleave(k, 0), Z), noise)
        fan = answered(drawn, noise, X.dtype).reshape(n, k, -1)
        return self._global_scores(fan, X, part) | self._within_scores(fan, Z, part)

    def compare(self, a: Tensor, b: Tensor) -> dict[str, Comparison]:
        """Two samplers by what they answered in `evaluate(quick=True)`, each (B, *shape).

        Returns:
            the difference of their energy distances, of `outside` and of `missed`
            (`recorded.compare_rows`). Rows of one episode are drawn together.
        """
        _, Z = self.split("validation")
        rows = self.rows["validation"]
        shape = (len(rows), self._samples_of_row, -1)
        return compare_rows(
            self._joint_fan(a.reshape(shape), Z),
            self._joint_fan(b.reshape(shape), Z),
            self._joint_rows(self.rows["validation"]),
            self._regions.of("validation"),
            paired=Z is not None,
            groups=self.episodes[rows],
        )

    def floor(self) -> dict[str, float]:
        """Without a condition, the scores of as many training rows as there are test rows, drawn
        from all over the file. With one, each row has but one sample, and only what `outside` and
        `missed` are for the data's own law is known."""
        within = within_floor(self._regions.of("test"))
        if self._Z is not None:
            return within
        test, _ = self.split("test")
        rows = self.rows["train"]
        count = min(len(test), len(rows))
        drawn = draw_rows(len(rows), count, evaluation_generator(self.name, "floor"))
        X = self._X[rows[drawn]]
        return self._global_scores(X.reshape(count, 1, -1), test, "test") | within

    def scene(self) -> dict:
        """How samples are drawn: as `kind` "points", "images" or "values", `samples` of each
        example."""
        each = 1 if self._Z is None or self._kind != "images" else 6
        return {"obstacles": [], "limits": None, "equal": True, "kind": self._kind, "samples": each}

    def examples(self, n: int | None = None) -> tuple[Any, Tensor]:
        """Z, X of n test rows, evenly spread over the test set (fewer if it has fewer); None for as
        many as a picture takes."""
        X, Z = self.split("test")
        if n is None and self._kind == "images":
            n = 36 if Z is None else 6
        elif n is None:
            n = 500
        pick = torch.linspace(0, len(X) - 1, min(n, len(X))).round().long()
        return take_rows(Z, pick), X[pick]

    @property
    def _kind(self) -> str:
        shape = self._X.shape[1:]
        if len(shape) == 3 and shape[0] in (1, 3, 4):
            return "images"
        return "points" if tuple(shape) == (2,) else "values"

    @cached_property
    def _unit(self) -> float:
        return _spread(self.train.X)

    @property
    def _samples_of_row(self) -> int:
        return 1 if self._Z is None else self.SAMPLES

    def _joint(self, X: Tensor, Z: Any) -> Tensor:
        """X (N, ...) and Z as one row each, in units of the training set: (N, d) float64."""
        flat = X.flatten(1).double() / self._unit
        parts = [flat]
        for z, all_z, train_z in zip(
            tensors_in(Z), tensors_in(self._Z), tensors_in(self.train.Z), strict=True
        ):
            if z.is_floating_point():
                parts.append(z.reshape(len(z), -1).double() / _spread(train_z))
            else:
                parts.append(label_columns(z, all_z, flat.shape[1] ** 0.5))
        return torch.cat(parts, 1)

    def _joint_fan(self, fan: Tensor, Z: Any) -> Tensor:
        """Samples (N, K, numbers) as joint rows (K, N, d)."""
        return torch.stack([self._joint(x, Z) for x in fan.unbind(1)])

    @cached_property
    def _regions(self) -> Regions:
        """Of the parts: nothing that the task is built of."""
        return Regions(self.name, self.rows, self._joint_rows)

    def _joint_rows(self, rows: Tensor) -> Tensor:
        """Rows of the data as joint ones, (N, d)."""
        return self._joint(self._X[rows], take_rows(self._Z, rows))

    def _within_scores(self, fan: Tensor, Z: Any, part: str) -> dict[str, float]:
        joint = self._joint_fan(fan, Z)
        return within_scores(self._regions.of(part), joint, paired=Z is not None)

    def _global_scores(self, fan: Tensor, X: Tensor, part: str) -> dict[str, float]:
        """Scores of samples (N, K, numbers) of the rows of a part beside X (N, *shape)."""
        if self._Z is None:
            return self._unconditional(fan[:, 0], X)
        _, Z = self.split(part)
        score = energy_score(fan[:, :, None], X.flatten(1)[:, None]).mean()
        distance = energy_of(self._joint_fan(fan, Z), self._joint(X, Z), paired=True)
        return {"energy_score": float(score), "energy_distance": distance}

    def _unconditional(self, drawn: Tensor, X: Tensor) -> dict[str, float]:
        """Scores of samples (N, numbers) beside X (N, *shape)."""
        x = drawn.double()
        y = X.double().flatten(1)
        spread = y.var(0).sum().sqrt().clamp(min=torch.finfo(y.dtype).tiny)
        distance = energy_of(x[None] / self._unit, y / self._unit, paired=False)
        return {
            "energy_distance": distance,
            "mean_error": float((x.mean(0) - y.mean(0)).norm() / spread),
            "std_ratio": float(x.var(0).sum().sqrt() / spread),
        }


def _spread(x: Tensor) -> float:
    """Standard deviation of all numbers, each about the mean of its place; 1 for a constant."""
    return float((x.double() - x.double().mean(0)).square().mean().sqrt()) or 1.0
