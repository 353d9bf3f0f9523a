"""Windows: trajectories with their conditions, cut from episodes.

At the current row t of an episode,

    Z = observations[t - obs_horizon + 1 : t + 1],    X = actions[t - lead : t - lead + horizon],

and t moves by `stride`. The lead is 0, or obs_horizon - 1 where actions begin with the first of the
observations, as policies of LeRobot and Diffusion Policy are trained. No window crosses the end of
its episode, unless it may be padded: then the first observation and the last action of the episode
(with a lead also the first action) are repeated beyond its ends. Repeated actions are trained as
data, as policies are that hold still at the end, unless they are masked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .._core.checks import is_count
from .._core.made_rows import MadeRows, zipped_rows
from .._core.messages import brief, listed
from .arrays import check_arrays, episodes_of
from .masks import PADDING, Masks, without_padding
from .places import CutRows, PadMarks, places_of
from .precision import floats
from .trajectories import check_finite, check_trajectories

__all__ = ["MOST_NUMBERS", "Windows", "cut_windows", "lead_of", "unused_notes", "windows_of"]

# Windows of more numbers than this are cut when they are taken, from rows that are kept.
MOST_NUMBERS = 1 << 26


class Windows(NamedTuple):
    """X (N, T_x, d_x), Z (N, T_z, d_z), the number of each window's episode (N,), which of its
    waypoints repeat the last action, (N, T_x) of bool, None where none may, and what of X and Z is
    real."""

    X: Tensor
    Z: Tensor
    episodes: Tensor
    is_pad: Tensor | None = None
    mask: Tensor | None = None
    cond_mask: Tensor | None = None

    @property
    def masks(self) -> Masks:
        """Both masks."""
        return Masks(self.mask, self.cond_mask)


def windows_of(
    tensors: dict[str, Tensor],
    path: str | Path,
    *,
    obs_horizon: int | None = None,
    horizon: int | None = None,
    stride: int = 1,
    actions_from: str | None = None,
    pad_before: int | None = None,
    pad_after: int | None = None,
    mask_padding: bool | None = None,
) -> Windows:
    """The trajectories in the arrays of a file.

    The arrays are either `X` (N, T_x, d_x) and `Z` (N, T_z, d_z), or episodes laid end to end:
    `actions` (M, d_x), `observations` (M, d_z) and `episode_ends` (E,). An episode's end is the row
    after its last one; ends increase, the last is M. Beside X and Z, `episode` (N,) may hold the
    number of each row's episode, and what is real of each row may be said
    (:mod:`fastgen.data.masks`). Any other array is refused.

    Args:
        tensors: the arrays by name.
        path: of the file, for messages.
        obs_horizon, horizon: T_z and T_x of the windows. Episodes need them; X and Z refuse them.
        stride: rows from one window to the next.
        actions_from: "last_observation" or "first_observation", at whose row the actions of a
            window begin; None: the last one's.
        pad_before: how many observations of a window may lie before its episode, up to
            obs_horizon - 1; there the first one is repeated. None: 0.
        pad_after: how many actions may lie after it, up to horizon - lead - 1; there the last one
            is repeated. None: 0. Where one of the two is given, an episode that is too short all
            the same has one window, padded further.
        mask_padding: whether repeated actions are padding, which nothing is learned of; None:
            False, they are data.

    Returns:
        X, Z in float32, or in float64 where float32 would lose digits; and for each window the
        number (N,) of its episode. Of X and Z without `episode`, each row is one of its own.

    Raises:
        TypeError, ValueError: one line that says what was expected; rows with NaN are named.
    """
    if {"X", "Z"} <= set(tensors):
        pads = (pad_before, pad_after, mask_padding)
        cut = (obs_horizon, horizon, actions_from, *pads)
        if any(value is not None for value in cut) or stride != 1:
            raise ValueError(
                "expected no obs_horizon, horizon and stride, no actions_from and no padding, for "
                f"{path}, which holds windows X and Z already; leave them out"
            )
        known = ("X", "Z", "episode", *PADDING)
        check_arrays(tensors, path, known, "X and Z, with episode and masks at most,")
        tensors, masks = without_padding(tensors, path)
        X = floats("X", tensors["X"])
        Z = floats("Z", tensors["Z"])
        check_trajectories(X, Z)
        for name, value in (("X", X), ("Z", Z)):
            if isinstance(value, MadeRows):  # filled when it is taken
                check_finite(name, value)
        return Windows(X, Z, episodes_of(tensors, X.shape[0]), None, *masks)
    if not {"actions", "observations", "episode_ends"} <= set(tensors):
        raise ValueError(
            f"expected X and Z, or actions, observations and episode_ends in {path}, "
            f"got {brief(sorted(tensors)) if tensors else 'nothing'}"
        )
    arrays = ("actions", "observations", "episode_ends")
    check_arrays(tensors, path, arrays, "actions, observations and episode_ends alone")
    return cut_windows(
        floats("actions", tensors["actions"]),
        floats("observations", tensors["observations"]),
        tensors["episode_ends"],
        obs_horizon=obs_horizon,
        horizon=horizon,
        stride=stride,
        actions_from=actions_from,
        pad_before=pad_before,
        pad_after=pad_after,
        mask_padding=bool(mask_padding),
    )


def lead_of(actions_from: str | None, obs_horizon: int) -> int:
    """Rows from the first action of a window to its last observation.

    Raises:
        ValueError: neither "last_observation", "first_observation" nor None.
    """
    if actions_from in (None, "last_observation"):
        return 0
    if actions_from == "first_observation":
        return obs_horizon - 1
    raise ValueError(
        f"expected actions_from last_observation or first_observation, got {actions_from!r}"
    )


def cut_windows(
    actions: Tensor,
    observations: Tensor,
    episode_ends: Tensor,
    *,
    obs_horizon: int | None,
    horizon: int | None,
    stride: int,
    actions_from: str | None = None,
    pad_before: int | None = None,
    pad_after: int | None = None,
    mask_padding: bool = False,
) -> Windows:
    """Windows X (N, horizon, d_x), Z (N, obs_horizon, d_z), their episodes (N,) and padding.

    Arguments and errors as `windows_of`.
    """
    obs_horizon = _checked_length("obs_horizon", obs_horizon)
    horizon = _checked_length("horizon", horizon)
    stride = _checked_length("stride", stride)
    lead = lead_of(actions_from, obs_horizon)
    if lead >= horizon:
        raise ValueError(
            f"expected a horizon of at least {lead + 1}, so that actions from the first of "
            f"{obs_horizon} observations reach the last one, got {horizon}"
        )
    # At the current row and after it.
    coming = horizon - lead
    before = _checked_pad("pad_before", pad_before, obs_horizon)
    after = _checked_pad("pad_after", pad_after, coming)
    padded = pad_before is not None or pad_after is not None
    _check_rows(actions, observations)
    ends = _checked_ends(episode_ends, actions.shape[0])
    places = places_of(
        ends,
        obs_horizon=obs_horizon,
        horizon=coming,
        stride=stride,
        before=before,
        after=after,
        padded=padded,
    )
    if not len(places):
        longest = max(stop - start for start, stop in pairwise([0, *ends]))
        raise ValueError(
            f"expected an episode of at least {'horizon' if lead else 'obs_horizon + horizon - 1'} "
            f"= {obs_horizon + coming - 1} rows, got at most {longest}; shorten the horizons"
        )
    ahead = CutRows(actions, places, -lead, horizon)
    back = CutRows(observations, places, 1 - obs_horizon, obs_horizon)
    makers = [ahead, back, *([PadMarks(ahead)] if padded else [])]
    if math.prod(ahead.shape) + math.prod(back.shape) > MOST_NUMBERS:
        cut = [MadeRows(maker) for maker in makers]
    else:
        cut = [maker.take(torch.arange(len(places))) for maker in makers]
    X, Z, *is_pad = cut
    if not padded:
        return Windows(X, Z, places.episodes)
    mask = zipped_rows(torch.logical_not, is_pad[0]) if mask_padding else None
    return Windows(X, Z, places.episodes, is_pad[0], mask)


def unused_notes(
    episode_ends: Sequence[int],
    obs_horizon: int,
    horizon: int,
    stride: int,
    actions_from: str | None = None,
) -> list[str]:
    """A line on the episodes and rows that are in no window; arguments as `windows_of`, all of them
    numbers."""
    lead = lead_of(actions_from, obs_horizon)
    need = obs_horizon + horizon - lead - 1
    window = "data.horizon" if lead else "data.obs_horizon + data.horizon - 1"
    lengths = [stop - start for start, stop in pairwise([0, *episode_ends])]
    short = [index for index, length in enumerate(lengths) if length < need]
    used = sum(_rows_in_windows(length, need, stride) for length in lengths)
    rows = f"{used} of {episode_ends[-1]} rows"
    if short:
        return [
            f"warning: {len(lengths) - len(short)} of {len(lengths)} episodes are used, and "
            f"{rows}: {len(short)} ({listed(short)}) are shorter than a window, {window} = {need} "
            "rows; shorten the horizons to use more"
        ]
    if used < episode_ends[-1]:
        return [
            f"note: all {len(lengths)} episodes are used, but {rows}: data.stride = {stride} "
            "leaves out the others"
        ]
    return []


def _rows_in_windows(length: int, need: int, stride: int) -> int:
    """Rows of an episode that are in windows of `need` rows, one every `stride`."""
    if length < need:
        return 0
    windows = (length - need) // stride + 1
    return need + (windows - 1) * min(stride, need)


def _checked_length(name: str, value: int | None) -> int:
    if not is_count(value):
        raise ValueError(
            f"expected {name} to be a whole number >= 1 to cut episodes into windows, got {value!r}"
        )
    return value


def _checked_pad(name: str, value: int | None, horizon: int) -> int:
    if value is None:
        return 0
    if not is_count(value, 0) or value >= horizon:
        raise ValueError(
            f"expected {name} to be a whole number from 0 to {horizon - 1}, one less than the "
            f"horizon, got {value!r}"
        )
    return value


def _check_rows(actions: Tensor, observations: Tensor) -> None:
    for name, tensor in (("actions", actions), ("observations", observations)):
        if tensor.ndim != 2 or tensor.numel() == 0:
            raise ValueError(
                f"expected {name} of shape (M, d) with M >= 1, got {tuple(tensor.shape)}"
            )
        check_finite(name, tensor)
    if observations.shape[0] != actions.shape[0]:
        raise ValueError(
            f"expected as many observations as actions, got {observations.shape[0]} and "
            f"{actions.shape[0]}"
        )


def _checked_ends(episode_ends: Tensor, rows: int) -> list[int]:
    """The ends of the episodes, which increase from above 0 to the number of rows."""
    if episode_ends.is_floating_point() or episode_ends.ndim != 1 or episode_ends.numel() == 0:
        raise ValueError(
            f"expected episode_ends to be whole numbers (E,), got {episode_ends.dtype} "
            f"{tuple(episode_ends.shape)}"
        )
    ends = episode_ends.tolist()
    starts = [0, *ends[:-1]]
    if ends[-1] != rows or any(stop <= start for start, stop in zip(starts, ends, strict=True)):
        raise ValueError(
            f"expected episode_ends that increase from above 0 to {rows}, the number of rows, got "
            f"{_short(ends)}"
        )
    return ends


def _short(values: list[int]) -> str:
    if len(values) <= 6:
        return str(values)
    return f"[{', '.join(map(str, values[:5]))}, ... {values[-1]}]"
