"""Scores of samples beside recorded rows, of each of which there is but one: how far the joint laws
of samples and conditions are apart, globally and within modes, and which of two students is nearer.

Rows are joint: the numbers of a sample and those of its condition, in units of the training set, so
that samples which ignore their condition are far from the data, too. Row i of the samples shares
its condition with row i of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .._core.seeds import draw_rows
from ..comparisons import LEVEL, Comparison, compare_energy, compare_means
from ..metrics import energy_distance
from ..neighbours import Region
from .scoring import evaluation_generator

__all__ = [
    "Regions",
    "compare_rows",
    "energy_of",
    "label_columns",
    "region_of",
    "region_rows",
    "within_floor",
    "within_scores",
]

# Share of samples of the data's own law that count as outside, and of data that they miss.
FAR = 0.01
NEIGHBOURS = 5
# Most training rows that stand for the region of the data, and most numbers in them.
_MOST_ROWS = 4096
_MOST_NUMBERS = 2**20
_FEWEST_ROWS = 64
# Labels that so few rows share on average say nothing of a law, and so many columns are too many.
_ROWS_OF_LABEL = 8
_MOST_COLUMNS = 1024


def label_columns(labels: Tensor, all_labels: Tensor, size: float) -> Tensor:
    """Labels as columns of joint rows, in which two that differ are `size` apart.

    Args:
        labels: integers (N, ...).
        all_labels: of the whole data set (M, ...), which say what values there are.

    Returns:
        (N, columns) float64; no columns where a value has fewer than eight rows on average, or
        where there would be more than 1024.
    """
    values = all_labels.unique()
    flat = labels.reshape(len(labels), -1)
    columns = len(values) * flat.shape[1]
    if len(values) * _ROWS_OF_LABEL > len(all_labels) or columns > _MOST_COLUMNS:
        return torch.zeros(len(labels), 0, dtype=torch.float64)
    return (flat[:, :, None] == values).flatten(1).double() * (size / 2**0.5)


def region_rows(rows: int, numbers: int) -> int:
    """How many of the training rows, each of so many numbers, stand for the region of the data."""
    return min(rows, _MOST_ROWS, max(_FEWEST_ROWS, _MOST_NUMBERS // numbers))


def region_of(train: Tensor, held_out: Tensor) -> Region | None:
    """The region of joint training rows (M, d) by held-out ones (H, d); None where there are too
    few of either to tell."""
    if not NEIGHBOURS < len(held_out) <= len(train):
        return None
    return Region.of(train, held_out, k=NEIGHBOURS, share=1 - FAR)


class Regions:
    """Where the data of a task lie, by the held-out rows of each of its parts; made on first use.

    Args:
        name: of the task, from which the training rows are drawn that stand for the data.
        rows: part -> its rows of the data.
        joint: rows of the data -> their joint rows (N, d).
    """

    def __init__(
        self, name: str, rows: Mapping[str, Tensor], joint: Callable[[Tensor], Tensor]
    ) -> None:
        self._name = name
        self._rows = rows
        self._joint = joint
        self._made: dict[str, Region | None] = {}

    def of(self, part: str) -> Region | None:
        """The region by the held-out rows of a part; errors and None as `region_of`."""
        if part not in self._made:
            held_out = self._joint(self._rows[part])
            train = self._rows["train"]
            count = region_rows(len(train), held_out.shape[1])
            drawn = draw_rows(len(train), count, evaluation_generator(self._name, "region"))
            self._made[part] = region_of(self._joint(train[drawn]), held_out)
        return self._made[part]


def energy_of(fan: Tensor, data: Tensor, *, paired: bool) -> float:
    """Unbiased energy distance of joint rows of samples (K, N, d) to data (N, d), the mean over the
    K samples of each row (`metrics.energy_distance`)."""
    distances = [energy_distance(x, data, unbiased=True, paired=paired) for x in fan]
    return float(torch.stack(distances).mean())


def within_floor(region: Region | None) -> dict[str, float]:
    """The scores of `within_scores` for the data's own law, in expectation."""
    if region is None:
        return {}
    return {"outside": FAR, "missed": FAR}


def within_scores(region: Region | None, fan: Tensor, *, paired: bool) -> dict[str, float]:
    """What global distances don't see, of joint rows of samples (K, N, d).

    Returns:
        outside: share of samples that lie outside the data.
        missed: share of data that samples miss. Both are `neighbours.Region`'s, .01 for the data's
            own law. Nothing without a region.
    """
    if region is None:
        return {}
    outside = torch.stack([region.outside(x) for x in fan])
    missed = torch.stack([region.missed(x, paired=paired) for x in fan])
    return {"outside": float(outside.double().mean()), "missed": float(missed.double().mean())}


def compare_rows(
    a: Tensor,
    b: Tensor,
    data: Tensor,
    region: Region | None,
    *,
    paired: bool,
    groups: Tensor | None,
    losses: dict[str, tuple[Tensor, Tensor]] | None = None,
) -> dict[str, Comparison]:
    """Two students' samples beside the data.

    The intervals hold together at the level of one, since each is as much wider as there are more
    (Bonferroni's bound).

    That of `missed` does not, and so it can only say that b is worse: whether a held-out row is
    missed depends on all samples at once, whose noise drawing held-out rows again doesn't show.
    Whether a sample is outside depends on that sample alone.

    Args:
        a, b: joint rows of their samples (K, N, d), of the same conditions and noise.
        data: joint rows (N, d).
        region: of the data; None leaves out what is within modes.
        paired: rows have conditions.
        groups: (N,), the episode of each row; None: rows are independent. Of one episode alone
            it isn't known how much episodes differ, and its rows count as independent.
        losses: more scores, name -> (losses of a's rows, losses of b's rows), (N,) each.

    Returns:
        the difference of each of the `losses`, of `energy_distance`, of `outside` and of `missed`.
    Raises:
        ValueError: as `TooFewRows`, of so few rows nothing can be told.
    """
    if groups is not None and len(groups.unique()) < 2:
        groups = None
    rows = dict(losses or {})
    if region is not None:
        rows["outside"] = (_outside(region, a), _outside(region, b))
        rows["missed"] = (_missed(region, a, paired=paired), _missed(region, b, paired=paired))
    level = 1 - (1 - LEVEL) / (len(rows) + 1)
    energy = compare_energy(
        a, b, data, paired=paired, groups=groups if paired else None, level=level
    )
    found = {
        name: compare_means(of_a, of_b, groups=groups, level=level, chooses=name != "missed")
        for name, (of_a, of_b) in rows.items()
    }
    return {"energy_distance": energy, **found}


def _outside(region: Region, fan: Tensor) -> Tensor:
    """Share of the K samples of each row (K, N, d) that are outside: (N,)."""
    return torch.stack([region.outside(x) for x in fan]).double().mean(0)


def _missed(region: Region, fan: Tensor, *, paired: bool) -> Tensor:
    """How often each held-out row is missed by samples (K, N, d), the mean over K: (N,)."""
    return torch.stack([region.missed(x, paired=paired) for x in fan]).double().mean(0)
