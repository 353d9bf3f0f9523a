"""The task of recorded trajectories: a split by episode, and scores of samples against what really
happened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .._core.conditions import map_tensors, take_rows
from .._core.made_rows import part_of
from .._core.masks import real_only, with_masks
from .._core.seeds import generator_for
from ..channel_kinds import KindNormalizer
from ..comparisons import Comparison
from ..metrics import energy_score, min_ade, min_fde
from .masks import UNMASKED, Masks, filled_part
from .normalization import IDENTITY, MEASURED, Pair
from .recorded import (
    Regions,
    compare_rows,
    energy_of,
    within_floor,
    within_scores,
)
from .scoring import answered, evaluation_generator
from .trajectories import (
    TrajectoryData,
    check_pack,
    check_trajectories,
    filled,
    fit_normalizers,
)

__all__ = ["HeldOutTask", "split_episodes", "split_rows"]


# Rows that are looked at at once.
_BLOCK = 1 << 20
# Scores that are means over windows: name -> (samples, truth, mask) -> (B,).
_LOSSES = {"min_ade": min_ade, "min_fde": min_fde, "energy_score": energy_score}


class HeldOutTask:
    """Recorded trajectories, split by episode into train, validation and test.

    About a fifth of the episodes is the test set and a tenth the validation set, at least one each.
    Normalisers see training windows only. Evaluation takes at most 1000 test and 256 validation
    windows, with six samples of each.

    Args:
        name: of the task; part of the seed of the evaluation noise.
        X, Z: windows (N, T_x, d_x) and (N, T_z, d_z), float32 or float64.
        episodes: (N,); windows of one episode have one number and stay on one side of the split.
        primary: the score by which a model is chosen: "energy_distance", "energy_score",
            "min_ade" or "min_fde". Two students are compared by more (`compare`).
        pack: waypoints per token.
        seed: of the split.
        symmetry: as in `TrajectoryData`.
        normalize: what is done to X and Z; true: mean 0 and standard deviation 1; false: nothing,
            for networks that were trained in the units of the file.
        in_order: as in `TrajectoryData`.
        is_pad, masks: as in `TrajectoryData`, of all windows. Padding has no part in any score.
        notes: lines on how X and Z were made, for who is about to train on them.
    """

    # Samples of each window.
    SAMPLES = 6
    # Most windows of an evaluation.
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
        normalize: Pair | bool = True,
        in_order: bool = True,
        notes: Sequence[str] = (),
        is_pad: Tensor | None = None,
        masks: Masks = UNMASKED,
    ) -> None:
        X = filled("X", X, masks.mask)
        Z = filled("Z", Z, masks.cond_mask)
        check_trajectories(X, Z)
        check_pack(pack, X.shape[1])
        if isinstance(normalize, bool):
            normalize = MEASURED if normalize else IDENTITY
        # Of all parts, so that none is refused when training is over.
        for key, tensor, how, real in zip("XZ", (X, Z), normalize, masks, strict=True):
            how.check(key, tensor, real)
        self._normalize = normalize
        self._in_order = in_order
        self.notes = tuple(notes)
        self.name = name
        self.primary = primary
        self.pack = pack
        self.symmetry = symmetry
        self._is_pad = is_pad
        self._masks = masks
        self._X = X
        self._Z = Z
        self.episodes = episodes
        self.rows = split_rows(episodes, seed, self.LIMITS)

    def split(self, part: str) -> tuple[Tensor, Tensor]:
        """X, Z of "train", "validation" or "test" windows."""
        return self._X[self.rows[part]], self._Z[self.rows[part]]

    def conditions(self, part: str) -> Any:
        """Z of the windows of a part, with their masks."""
        rows = self.rows[part]
        return with_masks(self._Z[rows], *self._masks.rows(rows))

    @property
    def train(self) -> TrajectoryData:
        """The training set, made on first use."""
        return self._train

    @cached_property
    def _train(self) -> TrajectoryData:
        rows = self.rows["train"]
        masks = self._masks.part(rows)
        X, Z = filled_part(self._X, masks.mask, rows), filled_part(self._Z, masks.cond_mask, rows)
        normalizers = fit_normalizers(X, Z, self.symmetry, self._normalize, masks)
        return TrajectoryData(
            X,
            Z,
            *normalizers,
            pack=self.pack,
            symmetry=self.symmetry,
            in_order=self._in_order,
            is_pad=None if self._is_pad is None else part_of(self._is_pad, rows),
            masks=masks,
        )

    def evaluate(
        self, sample: Callable[[Tensor, Tensor], Tensor], *, quick: bool = False
    ) -> dict[str, float]:
        """Scores of a sampler on the test windows, by six samples of each.

        Args:
            sample: called with Z (B, T_z, d_z), which carries the masks if there are any, and noise
                (B, T_x, d_x), with d_x as networks see it; answers with X. The noise is the same
                for every sampler.
            quick: score on the validation windows.

        Returns:
            min_ade, min_fde: displacement errors of the best of the six, mean over windows; in the
                unit of the data. Here and in energy_score an angle counts as cosine and sine, and a
                rotation as two columns.
            energy_score: strictly proper, so that it rewards the right spread, too
                (`metrics.energy_score`); mean over windows, in the unit of the data.
            energy_distance: between (X, Z) of the samples and of the data, in normalised units,
                without the pairs that share their window; the mean over the six draws. About 0 for
                the data's law; can be slightly negative.
            outside, missed: share of samples outside the data, and of data that samples miss, of
                the same (X, Z) (`recorded.within_scores`); .01 for the data's law, blurred and
                narrowed modes more.
        """
        part = "validation" if quick else "test"
        X, _ = self.split(part)
        k = self.SAMPLES
        n = len(X)
        shape = self.train.noise_shape
        noise = torch.randn(n * k, *shape, generator=evaluation_generator(self.name, part))
        cond = map_tensors(lambda value: value.repeat_interleave(k, 0), self.conditions(part))
        drawn = sample(cond, noise)
        own = tuple(X.shape[1:])
        fan = answered(drawn, noise, X.dtype, shape=own).view(n, k, *own)
        rows = self.rows[part]
        joint = self._joint_fan(fan, rows)
        mask = self._masks.rows(rows).mask
        fan, X = self._continuous(fan), self._continuous(X)
        losses = {name: float(loss(fan, X, mask).mean()) for name, loss in _LOSSES.items()}
        return {
            **losses,
            "energy_distance": energy_of(joint, self._joint_rows(rows), paired=True),
            **within_scores(self._regions.of(part), joint, paired=True),
        }

    def compare(self, a: Tensor, b: Tensor) -> dict[str, Comparison]:
        """Two samplers by what they answered in `evaluate(quick=True)`, each (B, T_x, d_x).

        Returns:
            the difference of their energy distances, of `outside`, of `missed` and of the primary
            score (`recorded.compare_rows`). Windows of one episode are drawn together.
        """
        X, _ = self.split("validation")
        rows = self.rows["validation"]
        fan_a, fan_b = (x.view(len(rows), self.SAMPLES, *X.shape[1:]) for x in (a, b))
        losses = {}
        if self.primary in _LOSSES:
            loss = _LOSSES[self.primary]
            mask = self._masks.rows(rows).mask
            truth, by_a, by_b = map(self._continuous, (X, fan_a, fan_b))
            losses[self.primary] = (loss(by_a, truth, mask), loss(by_b, truth, mask))
        return compare_rows(
            self._joint_fan(fan_a, rows),
            self._joint_fan(fan_b, rows),
            self._joint_rows(rows),
            self._regions.of("validation"),
            paired=True,
            groups=self.episodes[rows],
            losses=losses,
        )

    def _continuous(self, X: Tensor) -> Tensor:
        """X (..., d_x) in its own units, but for angles and rotations, which are as networks see
        them, so that an angle of pi is beside one of -pi."""
        normalizer = self.train.x_normalizer
        return normalizer.kinds.expand(X) if isinstance(normalizer, KindNormalizer) else X

    def _joint(self, X: Tensor, rows: Tensor) -> Tensor:
        """X and the Z of some rows as one row each, in normalised units, with 0 at padding: (N,
        d)."""
        mask, cond_mask = self._masks.rows(rows)
        x = real_only(self.train.x_normalizer.normalize(X), with_masks(None, mask))
        z = self.train.z_normalizer.normalize(self._Z[rows])
        z = real_only(z, with_masks(None, cond_mask))
        return torch.cat([x.flatten(1), z.flatten(1)], 1)

    def _joint_fan(self, fan: Tensor, rows: Tensor) -> Tensor:
        """Samples (N, K, T_x, d_x) as joint rows (K, N, d)."""
        return torch.stack([self._joint(x, rows) for x in fan.unbind(1)])

    @cached_property
    def _regions(self) -> Regions:
        """Of the parts: nothing that the task is built of."""
        return Regions(self.name, self.rows, self._joint_rows)

    def _joint_rows(self, rows: Tensor) -> Tensor:
        """Rows of the data as joint ones, (N, d)."""
        return self._joint(self._X[rows], rows)

    def floor(self) -> dict[str, float]:
        """What `outside` and `missed` are for the data's own law; of recorded data in general no
        more is known."""
        return within_floor(self._regions.of("test"))

    def scene(self) -> dict:
        """Nothing to draw but the trajectories, with equal axes."""
        return {"obstacles": [], "limits": None, "equal": True}

    def examples(self, n: int = 6) -> tuple[Any, Tensor]:
        """Z, X of n test windows, evenly spread over the test set (fewer if it has fewer)."""
        X, _ = self.split("test")
        pick = torch.linspace(0, len(X) - 1, min(n, len(X))).round().long()
        return take_rows(self.conditions("test"), pick), X[pick]


def split_rows(episodes: Tensor, seed: int, limits: dict[str, int]) -> dict[str, Tensor]:
    """`split_episodes`, with at most `limits` rows in the parts that it names.

    Raises:
        ValueError: fewer than 2 rows in one of these parts, or fewer than 3 episodes.
    """
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
    """Rows of "train", "validation" and "test", with no episode in two of them.

    The split is a pure function of its arguments.

    Args:
        episodes: (N,), the number of each row's episode.
        seed: of the split.

    Raises:
        ValueError: fewer than 3 episodes.
    """
    # First those that follow one another, so that of long data sets little is sorted.
    names = episodes.unique_consecutive().unique()
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
    return {part: _rows_of(episodes, members) for part, members in parts.items()}


def _rows_of(episodes: Tensor, members: Tensor) -> Tensor:
    """The rows of some episodes, looked for in blocks."""
    found = [torch.isin(block, members).nonzero().flatten() for block in episodes.split(_BLOCK)]
    starts = range(0, len(episodes), _BLOCK)
    return torch.cat([rows + start for rows, start in zip(found, starts, strict=True)])
