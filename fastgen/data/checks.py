"""What is odd about training data, said before the first step: constant channels, repeated rows,
too few of them, and a group that doesn't act on them as declared.

A symmetry says that (X, Z) and (rho_x(g) X, rho_z(g) Z) have one law. Then, with v the numbers of a
row and R(g) what g does to them, its first two moments are invariant:

    E[R v] = E[v],        R M R^T = M,    M = E[v v^T], with the block E[X Z^T] that ties X to Z.

The sample moments of an invariant law differ too, by noise. With d_i the change of the moments of
row i under g, a mean of zero is what is tested:

    S = |sum_i d_i|^2 / sum_i |d_i|^2    is 1 on average,    nu S ~ chi^2_nu,    nu = tr(C)^2 / tr(C^2),  C = Cov(d)

(Welch and Satterthwaite's match of two moments). Products <d_i, d_j> need those of rows alone,
since <R a a^T R^T, b b^T> = (R a . b)^2, so no moment is ever formed. Windows of one episode count
as one draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._core.conditions import tensors_in
from ..normalizer import is_constant
from .held_out import HeldOutTask
from .samples import SampleData, SampleTask
from .trajectories import TrajectoryData, fit_normalizers

__all__ = ["Violation", "constant_channels", "data_notes", "moment_violations", "repeated_rows"]

# How often data that are invariant are warned of, over all generators and both moments.
FALSE_ALARMS = 1e-3
# What is proved and yet small is how recorded data are: nothing that a user would change.
LEAST_CHANGE = 0.1
_MOST_ROWS = 2000
_MOST_NUMBERS = 1024


@dataclass(frozen=True)
class Violation:
    """A moment that a generator of the declared group changes.

    Attributes:
        element: the generator, as the group spells it.      moment: "mean" or "second moment".
        change: |moment after - moment before| / |moment|, without what noise adds; of the mean
            relative to the root mean square of the data.
        p_value: how likely as large a change is if the data are invariant.
        channels: the largest contributors, such as "X 0".
    """

    element: str
    moment: str
    change: float
    p_value: float
    channels: tuple[str, ...]


def data_notes(task: Any, batch_size: int) -> list[str]:
    """Lines about the training data of `task`, those that start with "warning:" about what a user
    would mend.

    Rows are numbered as in the file (of episodes: by windows) where the task is one of a file, from
    0.
    """
    data = task.train
    own = (
        task.rows["train"]
        if isinstance(task, HeldOutTask | SampleTask)
        else torch.arange(len(data.X))
    )
    lines = []
    if len(data.X) < batch_size:
        lines.append(
            f"warning: expected at least train.batch_size = {batch_size} training rows, got "
            f"{len(data.X)}, so that a batch repeats some; give more data or lower "
            "train.batch_size"
        )
    lines += [
        f"warning: {name} is constant in {'channel' if len(found) == 1 else 'channels'} "
        f"{_listed(found)}: nothing can be learned of it; drop it from the data, unless the "
        "teacher was trained with it"
        for name, found in constant_channels(data).items()
    ]
    if repeated := repeated_rows(data):
        pairs = [f"{own[later]} (as {own[earlier]})" for earlier, later in repeated]
        lines.append(
            f"note: {len(repeated)} of {len(data.X)} training rows repeat an earlier one: "
            f"{_listed(pairs)}"
        )
    if isinstance(data, TrajectoryData) and data.symmetry is not None:
        episodes = task.episodes[own] if isinstance(task, HeldOutTask) else None
        lines += [
            _said(violation, data.symmetry["group"])
            for violation in moment_violations(data, episodes)
        ]
    return lines


def _said(v: Violation, group: str) -> str:
    what = "their mean" if v.moment == "mean" else "their second moment, E[v v^T] of v = (X, Z)"
    of = "the root mean square" if v.moment == "mean" else "it"
    where = _listed(v.channels)
    return (
        f"warning: the data are not invariant under {group} as data.symmetry declares it: element "
        f"{v.element} changes {what}, by {v.change:.2g} of {of} (chance of that if they were: "
        f"{v.p_value:.1g}), most in {where}; are the representations of these channels right, and "
        "the channels in the order of in_rep, cond_rep, out_rep?"
    )


def _listed(values: Sequence[Any], most: int = 5) -> str:
    return ", ".join(map(str, values[:most])) + (
        f", ... ({len(values)} in all)" if len(values) > most else ""
    )


# ---- Channels and rows ---------------------------------------------------------------------------


def constant_channels(data: TrajectoryData | SampleData) -> dict[str, list[int]]:
    """{"X" or "Z": channels with one value in every row and waypoint}, without empty lists.

    Channels are the last axis of trajectories and of vectors (N, d); a pixel of an image may well
    be constant. A Z that is constant as a whole stands for no condition and isn't listed.
    """
    parts: dict[str, Any] = {"X": data.X, "Z": data.Z}
    found = {}
    for name, value in parts.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or len(value) < 2:
            continue
        if isinstance(data, SampleData) and value.ndim != 2:
            continue
        constant = is_constant(value.reshape(-1, value.shape[-1]))
        if bool(constant.any()) and not (name == "Z" and bool(constant.all())):
            found[name] = constant.nonzero().flatten().tolist()
    return found


def repeated_rows(data: TrajectoryData | SampleData) -> list[tuple[int, int]]:
    """(first, later) rows that agree in every number of X and Z, in the order of the later ones."""
    parts = [value.reshape(len(data.X), -1) for value in (data.X, *tensors_in(data.Z))]
    generator = torch.Generator().manual_seed(0)
    key = torch.zeros(len(data.X), dtype=torch.float64)
    for part in parts:
        weights = torch.rand(part.shape[1], dtype=torch.float64, generator=generator)
        # In blocks: a copy of the data in float64 may be more than fits.
        # And row by row: a matrix product rounds equal rows of two blocks differently.
        key += torch.cat([(block.double() * weights).sum(1) for block in part.split(4096)])
    order = key.argsort(stable=True)
    first = int(order[0])
    pairs = []
    for row in order[1:].tolist() if len(key.unique()) < len(key) else []:
        if all(torch.equal(part[first], part[row]) for part in parts):
            pairs.append((first, row))
        else:
            first = row
    return sorted(pairs, key=lambda pair: pair[1])


# ---- Symmetry ------------------------------------------------------------------------------------


def moment_violations(data: TrajectoryData, episodes: Tensor | None = None) -> list[Violation]:
    """The moments of (X, Z) that the declared symmetry changes, by more than noise and by at least
    a tenth.

    Data that are invariant are reported with a probability of about `FALSE_ALARMS`, whatever the
    number of generators and of channels. Up to 2000 rows are looked at, spread over the data, and
    of long trajectories some waypoints.

    Args:
        data: with a `symmetry`.      episodes: (N,), rows with one number are not independent; None:
            those of one condition aren't, unless there is but one.
    """
    # Groups load escnn, which data without a symmetry doesn't need.
    from ..models.specs import parse_group, parse_representation

    symmetry = data.symmetry
    if symmetry is None or len(data.X) < 2:
        return []
    group = parse_group(symmetry["group"])
    reps = [parse_representation(group, symmetry[key]) for key in ("out_rep", "cond_rep")]
    if [rep.size for rep in reps] != [data.X.shape[-1], data.Z.shape[-1]]:
        return []  # the task has a stand-in for its condition
    rows = torch.linspace(0, len(data.X) - 1, min(len(data.X), _MOST_ROWS)).round().long()
    scenes = data.Z[rows].flatten(1).unique(dim=0, return_inverse=True)[1]
    draws = torch.arange(len(rows)) if int(scenes.max()) == 0 else scenes
    if episodes is not None:
        draws = episodes[rows].unique(return_inverse=True)[1]
    # One unit for all channels of an irrep, which commutes with the group, so that none drowns the
    # others.
    units = fit_normalizers(data.X, data.Z, symmetry)
    parts = [
        _spread(unit.normalize(part[rows].double()))
        for unit, part in zip(units, (data.X, data.Z), strict=True)
    ]
    names = [
        f"{name} {channel}"
        for name, part in zip("XZ", parts, strict=True)
        for _ in range(part.shape[1])
        for channel in range(part.shape[2])
    ]
    v = torch.cat([part.flatten(1) for part in parts], 1)
    generators = list(group.generators)
    found = []
    for element in generators:
        matrices = [torch.as_tensor(rep(element), dtype=torch.float64) for rep in reps]
        moved = torch.cat(
            [(part @ rho.T).flatten(1) for part, rho in zip(parts, matrices, strict=True)], 1
        )
        # Products of rows as they are and as g leaves them; R is orthogonal.
        same = v @ v.T
        across = moved @ v.T
        second = v.T @ v / len(v)
        size = v.square().sum(1).mean().sqrt()
        tests = {
            "mean": (2 * same - across - across.T, size, (moved - v).mean(0).square()),
            "second moment": (
                2 * same.square() - across.square() - across.T.square(),
                second.norm(),
                (moved.T @ moved / len(v) - second).square().sum(1),
            ),
        }
        for moment, (products, size, contributions) in tests.items():
            p_value, change = _zero_mean(products, draws)
            if p_value < FALSE_ALARMS / (2 * len(generators)) and change >= LEAST_CHANGE * float(
                size
            ):
                channels = _largest(contributions, names)
                found.append(
                    Violation(str(element), moment, change / float(size), p_value, channels)
                )
    return found


def _spread(part: Tensor) -> Tensor:
    """Some waypoints of (N, T, d), all of them where there is room."""
    most = max(1, _MOST_NUMBERS // part.shape[2])
    return part[:, torch.linspace(0, part.shape[1] - 1, min(most, part.shape[1])).round().long()]


def _zero_mean(products: Tensor, draws: Tensor) -> tuple[float, float]:
    """For vectors d_i with the products <d_i, d_j> (N, N): the p-value of E[d] = 0, and |E[d]|
    without its noise.

    Vectors of one of the `draws` (N,) are summed first: those are independent, their members
    needn't be.
    """
    count = int(draws.max()) + 1
    sums = torch.zeros(count, len(products), dtype=products.dtype).index_add_(0, draws, products)
    gram = torch.zeros(count, count, dtype=products.dtype).index_add_(1, draws, sums)
    own = float(gram.diagonal().sum())
    total = float(gram.sum())
    # Of d that are zero but for rounding, the squares of products have nothing to say.
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
    return tuple(
        name for name in sorted(totals, key=lambda name: -totals[name]) if totals[name] >= least
    )
