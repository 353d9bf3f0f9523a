"""A task on recorded trajectories: a split by episode, and scores of fans of samples against what
happened."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from .._core.seeds import generator_for
from ..metrics import energy_distance, energy_score, min_ade, min_fde
from ..normalizer import Normalizer
from .trajectories import (
    EVALUATION_SEED,
    TrajectoryData,
    check_pack,
    check_trajectories,
    fit_normalizers,
)

__all__ = ["HeldOutTask", "checked", "split_episodes", "split_rows"]


class HeldOutTask:
    """Recorded trajectories, split by episode into train, validation and test, scored by fans of 6
    samples a window.

    Args:
        name: of the task; part of the seed of the evaluation noise.
        X, Z: (N, T_x, d_x) and (N, T_z, d_z) float32.      episodes: (N,), windows with the same number stay on one
            side of the split.
        primary: "min_fde" or another of the scores.
        pack: waypoints per token.      seed: of the split.      symmetry: as in `TrajectoryData`.
        normalize: false for networks that were trained in the units of the file.

    About a fifth of the episodes is the test set and a tenth the validation set, at least one each;
    normalisers see training windows only. Evaluation takes at most 1000 test and 256 validation
    windows.
    """

    SAMPLES = 6
    LIMITS = {"test": 1000, "validation": 256}

    def __init__(
        self,
        name: str,
        X: Tensor,
        Z: Tensor,
        episodes: Tensor,
        *,
        primary: str,
        pack: int = 1,
        seed: int = 0,
        symmetry: dict | None = None,
        normalize: bool = True,
    ) -> None:
        check_trajectories(X, Z)
        check_pack(pack, X.shape[1])
        self._normalize = normalize
        self.name = name
        self.primary = primary
        self.pack = pack
        self.symmetry = symmetry
        self._X = X
        self._Z = Z
        self.episodes = episodes
        self.rows = split_rows(episodes, seed, self.LIMITS)

    def split(self, part: str) -> tuple[Tensor, Tensor]:
        """X, Z of "train", "validation" or "test" windows."""
        return self._X[self.rows[part]], self._Z[self.rows[part]]

    @property
    def train(self) -> TrajectoryData:
        """The training set, made on first use."""
        return self._train

    @cached_property
    def _train(self) -> TrajectoryData:
        X, Z = self.split("train")
        if self._normalize:
            normalizers = fit_normalizers(X, Z, self.symmetry)
        else:
            normalizers = Normalizer.identity(X.shape[-1]), Normalizer.identity(Z.shape[-1])
        return TrajectoryData(X, Z, *normalizers, pack=self.pack, symmetry=self.symmetry)

    def evaluate(
        self, sample: Callable[[Tensor, Tensor], Tensor], *, quick: bool = False
    ) -> dict[str, float]:
        """Scores of `sample(Z (B, T_z, d_z), noise (B, T_x, d_x)) -> X (B, T_x, d_x)` on the test
        windows.

        Six samples of each window, with noise that is the same for every sampler; `quick` takes the
        validation windows.

        Returns, in the unit of the data:
            min_ade, min_fde: displacement errors of the best of the six, mean over windows.
            energy_score: strictly proper, rewards the right spread too (`metrics.energy_score`),
                mean over windows.
            energy_distance: between (X, Z) of the samples and of the data, in normalised units,
                without the pairs that share their window; the mean over the six draws. About 0 for
                the data's law; can be slightly negative.
        """
        part = "validation" if quick else "test"
        X, Z = self.split(part)
        k = self.SAMPLES
        n = len(X)
        noise = torch.randn(
            n * k, *X.shape[1:], generator=generator_for(EVALUATION_SEED, self.name, part)
        )
        fan = checked(sample(Z.repeat_interleave(k, 0), noise), noise).view(n, k, *X.shape[1:])
        condition = self.train.z_normalizer.normalize(Z).flatten(1)
        data = torch.cat([self.train.x_normalizer.normalize(X).flatten(1), condition], 1)
        ours = self.train.x_normalizer.normalize(fan).flatten(2)
        joint = [torch.cat([ours[:, i], condition], 1) for i in range(k)]
        distance = torch.stack(
            [energy_distance(rows, data, unbiased=True, paired=True) for rows in joint]
        ).mean()
        return {
            "min_ade": float(min_ade(fan, X).mean()),
            "min_fde": float(min_fde(fan, X).mean()),
            "energy_score": float(energy_score(fan, X).mean()),
            "energy_distance": float(distance),
        }

    def floor(self) -> dict[str, float]:
        """Nothing is known of recorded data in general: {}."""
        return {}

    def scene(self) -> dict:
        """Nothing to draw but the trajectories, with equal axes."""
        return {"obstacles": [], "limits": None, "equal": True}

    def examples(self, n: int = 6) -> tuple[Tensor, Tensor]:
        """Z, X of n test windows, evenly spread over the test set (fewer if it has fewer)."""
        X, Z = self.split("test")
        pick = torch.linspace(0, len(X) - 1, min(n, len(X))).round().long()
        return Z[pick], X[pick]


def checked(drawn: Tensor, noise: Tensor) -> Tensor:
    """What a sampler answered to `noise`, on the CPU and in float32; ValueError for another shape,
    NaN or infinity."""
    if drawn.shape != noise.shape:
        raise ValueError(
            f"expected sample(Z, noise) to return {tuple(noise.shape)}, got {tuple(drawn.shape)}"
        )
    if not bool(torch.isfinite(drawn).all()):
        raise ValueError(
            "expected finite samples, got NaN or infinity; the network or its training has diverged"
        )
    return drawn.detach().cpu().float()


def split_rows(episodes: Tensor, seed: int, limits: dict[str, int]) -> dict[str, Tensor]:
    """`split_episodes` with at most `limits` rows in the parts it names; ValueError where there are
    fewer than 2."""
    rows = split_episodes(episodes, seed)
    for part, limit in limits.items():
        found = len(rows[part])
        if found < 2:
            raise ValueError(
                f"expected at least 2 {part} rows, got {found} of {len(episodes)} in all; give "
                "more data"
            )
        if found > limit:
            chosen = torch.randperm(found, generator=generator_for(seed, "limit", part))[:limit]
            rows[part] = rows[part][chosen.sort().values]
    return rows


def split_episodes(episodes: Tensor, seed: int) -> dict[str, Tensor]:
    """Rows of "train", "validation" and "test" for episodes (N,), no episode in two of them; a pure
    function of both.

    Raises ValueError for fewer than three episodes.
    """
    names = episodes.unique()
    if len(names) < 3:
        raise ValueError(
            "expected at least 3 episodes to split into train, validation and test, got "
            f"{len(names)}"
        )
    order = names[torch.randperm(len(names), generator=generator_for(seed, "split"))]
    n_test = max(1, round(0.2 * len(names)))
    n_validation = max(1, round(0.1 * len(names)))
    parts = {
        "test": order[:n_test],
        "validation": order[n_test : n_test + n_validation],
        "train": order[n_test + n_validation :],
    }
    return {
        part: torch.isin(episodes, members).nonzero().flatten() for part, members in parts.items()
    }
