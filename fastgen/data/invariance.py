"""Invariance of data: whether training data have the symmetry that is declared of them.

A symmetry says that (X, Z) and (rho_x(g) X, rho_z(g) Z) have one law. Let v be the numbers of a row
(X, Z), and R(g) what g does to them. Then the first two moments are invariant:

    E[R v] = E[v],    R M R^T = M,    M = E[v v^T].

The sample moments of an invariant law are not, by noise. With d_i the change of the moments of row
i under g, what is tested is whether E[d] = 0. Of N independent rows, the statistic

    S = |sum_i d_i|^2 / sum_i |d_i|^2

is 1 on average if it is, and nu S ~ chi^2_nu with

    nu = tr(C)^2 / tr(C^2),    C = Cov(d)

(Welch and Satterthwaite's match of two moments). It needs the products <d_i, d_j> alone. Those of
second moments follow from <a a^T, b b^T> = (a . b)^2, so the d_i are never formed. Windows of one
episode count as one draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..channel_kinds import KindNormalizer
from ..normalizer import Normalizer
from .channel_names import Channels
from .normalization import Normalization
from .trajectories import TrajectoryData, fit_normalizers

__all__ = ["FALSE_ALARMS", "LEAST_CHANGE", "Violation", "moment_violations"]

# How often data that are invariant are warned of, over all generators and both moments.
FALSE_ALARMS = 1e-3
# A smaller change, though proved, is what recorded data have: nothing that a user would mend.
LEAST_CHANGE = 0.1
# Most rows that are looked at, and most numbers of each.
_MOST_ROWS = 2000
_MOST_NUMBERS = 1024


@dataclass(frozen=True)
class Violation:
    """A moment that a generator of the declared group changes.

    Attributes:
        element: the generator, as the group spells it.
        moment: "mean" or "second moment".
        change: |moment after - moment before| / |moment|, without what noise adds. Of the mean it
            is relative to the root mean square of the data.
        p_value: how likely a change as large is if the data are invariant.
        channels: the largest contributors, such as "X 0".
    """

    element: str
    moment: str
    change: float
    p_value: float
    channels: tuple[str, ...]


@dataclass(frozen=True)
class _Change:
    """What a generator does to a moment.

    Attributes:
        products: <d_i, d_j>, (N, N).
        size: of the moment.
        contributions: of each number of a row to the change.
    """

    products: Tensor
    size: Tensor
    contributions: Tensor


def moment_violations(data: TrajectoryData, episodes: Tensor | None = None) -> list[Violation]:
    """The moments of (X, Z) that the declared symmetry changes, by more than noise and by at least
    a tenth.

    Data that are invariant are reported with a probability of about `FALSE_ALARMS`, whatever the
    number of generators and of channels. Up to 2000 rows are looked at, spread over the data, and
    of long trajectories some waypoints.

    Args:
        data: with a `symmetry`; without one, nothing is reported.
        episodes: (N,); rows with one number are not independent. None: rows with one condition are
            not, unless all have the same.
    """
    # Groups load escnn, which data without a symmetry doesn't need.
    from ..models.specs import parse_group, parse_representation

    symmetry = data.symmetry
    if symmetry is None or len(data.X) < 2:
        return []
    group = parse_group(symmetry["group"])
    reps = [parse_representation(group, symmetry[key]) for key in ("out_rep", "cond_rep")]
    if [rep.size for rep in reps] != [one.network_dim for one in _normalizers(data)]:
        return []  # the task has a stand-in for its condition

    rows = torch.linspace(0, len(data.X) - 1, min(len(data.X), _MOST_ROWS)).round().long()
    draws = _draws(data, rows, episodes)
    parts = _normalised_parts(data, rows)
    names = _names(parts, _normalizers(data))
    generators = list(group.generators)
    least_p_value = FALSE_ALARMS / (2 * len(generators))
    found = []
    for element in generators:
        matrices = [torch.as_tensor(rep(element), dtype=torch.float64) for rep in reps]
        for moment, change in _changes(parts, matrices).items():
            p_value, size = _zero_mean(change.products, draws)
            if p_value < least_p_value and size >= LEAST_CHANGE * float(change.size):
                channels = _largest(change.contributions, names)
                share = size / float(change.size)
                found.append(Violation(str(element), moment, share, p_value, channels))
    return found


def _draws(data: TrajectoryData, rows: Tensor, episodes: Tensor | None) -> Tensor:
    """For each of the rows, the number of its independent draw."""
    if episodes is not None:
        return episodes[rows].unique(return_inverse=True)[1]
    scenes = data.Z[rows].flatten(1).unique(dim=0, return_inverse=True)[1]
    return torch.arange(len(rows)) if int(scenes.max()) == 0 else scenes


def _normalizers(data: TrajectoryData) -> tuple[Normalizer, Normalizer]:
    return data.x_normalizer, data.z_normalizer


def _normalised_parts(data: TrajectoryData, rows: Tensor) -> list[Tensor]:
    """X and Z of the rows, (n, T, d) float64.

    Their unit is one for all channels of an irrep, which commutes with the group; without units,
    large channels would drown the others.
    """
    x, z = (Normalization(channels=_channels(one)) for one in _normalizers(data))
    units = fit_normalizers(data.X, data.Z, data.symmetry, (x, z), masks=data.masks)
    parts = zip(units, (data.X, data.Z), strict=True)
    return [_some_waypoints(unit.normalize(part[rows].double())) for unit, part in parts]


def _channels(normalizer: Normalizer) -> Channels | None:
    """Those that are angles or rotations."""
    return Channels.like(normalizer.kinds) if isinstance(normalizer, KindNormalizer) else None


def _some_waypoints(part: Tensor) -> Tensor:
    """Some waypoints of (N, T, d), all of them where there is room."""
    most = max(1, _MOST_NUMBERS // part.shape[2])
    return part[:, torch.linspace(0, part.shape[1] - 1, min(most, part.shape[1])).round().long()]


def _names(parts: Sequence[Tensor], normalizers: Sequence[Normalizer]) -> list[str]:
    """The channel of each number of a row, such as "X 0"."""
    return [
        f"{name} {channel}"
        for name, part, one in zip("XZ", parts, normalizers, strict=True)
        for _ in range(part.shape[1])
        for channel in _channel_names(one)
    ]


def _channel_names(normalizer: Normalizer) -> list[str]:
    """The channels that networks see, as people call those of the data."""
    if isinstance(normalizer, KindNormalizer):
        return normalizer.kinds.seen_names()
    return [str(channel) for channel in range(normalizer.dim)]


def _changes(parts: Sequence[Tensor], matrices: Sequence[Tensor]) -> dict[str, _Change]:
    """What a group element does to both moments of v = (X, Z)."""
    v = torch.cat([part.flatten(1) for part in parts], 1)
    turned = [(part @ rho.T).flatten(1) for part, rho in zip(parts, matrices, strict=True)]
    moved = torch.cat(turned, 1)
    # Products of rows as they are, and with rows as g leaves them. R is orthogonal, so those among
    # moved rows are the same as those among rows.
    same = v @ v.T
    across = moved @ v.T
    second = v.T @ v / len(v)
    return {
        "mean": _Change(
            products=2 * same - across - across.T,
            size=v.square().sum(1).mean().sqrt(),
            contributions=(moved - v).mean(0).square(),
        ),
        "second moment": _Change(
            products=2 * same.square() - across.square() - across.T.square(),
            size=second.norm(),
            contributions=(moved.T @ moved / len(v) - second).square().sum(1),
        ),
    }


def _zero_mean(products: Tensor, draws: Tensor) -> tuple[float, float]:
    """For vectors d_i: the p-value of E[d] = 0, and |E[d]| without its noise.

    Args:
        products: <d_i, d_j>, (N, N).
        draws: (N,); the vectors of one draw are summed first. Draws are independent, their members
            need not be.
    """
    count = int(draws.max()) + 1
    sums = torch.zeros(count, len(products), dtype=products.dtype).index_add_(0, draws, products)
    gram = torch.zeros(count, count, dtype=products.dtype).index_add_(1, draws, sums)
    own = float(gram.diagonal().sum())
    total = float(gram.sum())
    # Where all d are zero but for rounding, the squares of products say nothing.
    if count < 2 or own <= 1e-20 * len(products):
        return 1.0, 0.0
    others = float(gram.square().sum() - gram.diagonal().square().sum()) * count / (count - 1)
    freedom = max(own**2 / max(others, 1e-300), 1.0)
    half = torch.tensor([freedom / 2, freedom / 2 * total / own], dtype=torch.float64)
    change = max(total - own, 0.0) ** 0.5 / len(products)
    return float(torch.special.gammaincc(half[0], half[1].clamp(min=0))), change


def _largest(contributions: Tensor, names: Sequence[str]) -> tuple[str, ...]:
    """The channels with at least a tenth of the largest contribution, the largest first."""
    totals: dict[str, float] = {}
    for name, value in zip(names, contributions.tolist(), strict=True):
        totals[name] = totals.get(name, 0.0) + value
    least = 0.1 * max(totals.values())
    ordered = sorted(totals, key=lambda name: -totals[name])
    return tuple(name for name in ordered if totals[name] >= least)
