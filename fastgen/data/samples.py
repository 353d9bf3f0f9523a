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
from ..metrics import energy_distance, energy_score
from .held_out import split_rows
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
    numbers in all, though at least 64 rows. The score by which a model is chosen is `energy_score`
    with a condition, `energy_distance` without.

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
        self.primary = "energy_distance" if Z is None else "energy_score"
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
                share their row; mean over the six. Floating conditions are part of it, labels are
                not.

        Without a condition, there are as many samples as rows:
            energy_distance: between samples and data.
            mean_error: |mean of the samples - mean of the data| / s, with s the root of the data's
                total variance.
            std_ratio: the same root for the samples / s; 1 for the data's law.

        Energy distances are in units of the training set's standard deviation, one for X and one
        for each condition. They are about 0 for the data's law and can be slightly negative.

        Args:
            sample: called with Z and noise (B, *shape), answers with X (B, *shape). The noise is
                the same for every sampler.
            quick: score on the validation rows.
        """
        part = "validation" if quick else "test"
        X, Z = self.split(part)
        k = 1 if Z is None else self.SAMPLES
        n = len(X)
        noise = torch.randn(n * k, *X.shape[1:], generator=evaluation_generator(self.name, part))
        drawn = sample(map_tensors(lambda z: z.repeat_interleave(k, 0), Z), noise)
        fan = answered(drawn, noise, X.dtype).reshape(n, k, -1)
        if Z is None:
            return self._unconditional(fan[:, 0], X)
        return self._conditional(fan, X, Z)

    def floor(self) -> dict[str, float]:
        """Without a condition, the scores of as many training rows as there are test rows, drawn
        from all over the file. With one, {}: each row has but one sample."""
        if self._Z is not None:
            return {}
        test, _ = self.split("test")
        rows = self.rows["train"]
        count = min(len(test), len(rows))
        drawn = draw_rows(len(rows), count, evaluation_generator(self.name, "floor"))
        X = self._X[rows[drawn]]
        return self._unconditional(X.flatten(1), test)

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

    def _conditional(self, fan: Tensor, X: Tensor, Z: Any) -> dict[str, float]:
        """Scores of samples (N, K, numbers) beside X (N, *shape) and Z."""
        condition = [
            z.reshape(len(z), -1) / _spread(all_z)
            for z, all_z in zip(tensors_in(Z), tensors_in(self.train.Z), strict=True)
            if z.is_floating_point()
        ]
        data = torch.cat([X.flatten(1) / self._unit, *condition], 1)
        distances = []
        for i in range(fan.shape[1]):
            joint = torch.cat([fan[:, i] / self._unit, *condition], 1)
            distances.append(energy_distance(joint, data, unbiased=True, paired=True))
        score = energy_score(fan[:, :, None], X.flatten(1)[:, None]).mean()
        return {
            "energy_score": float(score),
            "energy_distance": float(torch.stack(distances).mean()),
        }

    def _unconditional(self, drawn: Tensor, X: Tensor) -> dict[str, float]:
        """Scores of samples (N, numbers) beside X (N, *shape)."""
        x = drawn.double()
        y = X.double().flatten(1)
        spread = y.var(0).sum().sqrt().clamp(min=torch.finfo(y.dtype).tiny)
        distance = energy_distance(x / self._unit, y / self._unit, unbiased=True)
        return {
            "energy_distance": float(distance),
            "mean_error": float((x.mean(0) - y.mean(0)).norm() / spread),
            "std_ratio": float(x.var(0).sum().sqrt() / spread),
        }


def _spread(x: Tensor) -> float:
    """Standard deviation of all numbers, each about the mean of its place; 1 for a constant."""
    return float((x.double() - x.double().mean(0)).square().mean().sqrt()) or 1.0
