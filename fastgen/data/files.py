"""Data files: conditions to sample for, and the task of a user's own data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._core.masks import padding_filled, with_masks
from .._core.messages import brief
from .arrays import check_arrays, episodes_of
from .channel_names import Names
from .encoded import RowEncoder, encoded_episodes
from .formats.array_files import read_tensors
from .formats.description import time_notes
from .formats.detection import is_data_set, open_source
from .formats.selection import channel_names, read_episodes, select
from .held_out import HeldOutTask
from .masks import PADDING, masks_beside
from .normalization import read_normalization
from .precision import exact_numbers, floats
from .samples import SampleTask, check_samples
from .trajectories import check_finite
from .windows import unused_notes, windows_of

__all__ = ["file_task", "load_conditions", "load_members"]


# ---- Conditions ---------------------------------------------------------------------------------


def load_conditions(path: str | Path, *, tokens: int | None = None) -> Any:
    """`Z` (B, ...) of a data file with all its digits: real numbers in float32 or float64, whole
    ones as int64. Where there are `X` and `episode` beside it, as in a file to train on, they are
    passed over.

    Args:
        path: of the file.
        tokens: T_x of the samples that are to be made; then Z carries the masks that stand beside
            it (:mod:`fastgen.data.masks`). None: masks are passed over, beside X, too.

    Raises:
        FileNotFoundError, TypeError, ValueError: no file, no `Z`, other arrays, no rows, numbers
            that aren't finite, a mask that doesn't fit.
    """
    tensors = read_tensors(path)
    if "Z" not in tensors:
        found = brief(sorted(tensors)) if tensors else "nothing"
        raise ValueError(f"expected Z in {path}, got {found}")
    known = ("X", "Z", "episode")
    if tokens is not None or "X" in tensors:
        known = (*known, *PADDING)
    check_arrays(tensors, path, known, "Z")
    if tokens is None:
        return _condition("Z", tensors["Z"])
    masks = masks_beside(tensors, path, tokens)
    Z = _condition("Z", padding_filled(tensors["Z"], masks.cond_mask))
    return with_masks(Z, *masks)


def load_members(path: str | Path, names: Iterable[str]) -> dict[str, Tensor]:
    """The members of a condition that is a mapping or a tuple: an array of a data file for each.

    Args:
        names: such as "Z.goal" or "Z.0"; the file may call them "goal" or "0".

    Raises:
        FileNotFoundError, TypeError, ValueError: no file, a member that is missing or has no rows,
            numbers that aren't finite.
    """
    tensors = read_tensors(path)
    spelt = {name: name if name in tensors else name.removeprefix("Z.") for name in names}
    missing = [name for name, own in spelt.items() if own not in tensors]
    if missing:
        found = brief(sorted(tensors)) if tensors else "nothing"
        raise ValueError(f"expected {', '.join(missing)} in {path}, got {found}")
    return {name: _condition(name, tensors[own]) for name, own in spelt.items()}


def _condition(name: str, tensor: Tensor) -> Tensor:
    """A tensor of rows of finite numbers; yes-or-no values stay what they are in a member, which
    may be a mask."""
    is_mask = tensor.dtype == torch.bool and name != "Z"
    values = tensor if is_mask else exact_numbers(name, tensor)
    if values.ndim == 0 or values.numel() == 0:
        raise ValueError(
            f"expected {name} of shape (B, ...) with at least one row, got {tuple(values.shape)}"
        )
    check_finite(name, values)
    return values


# ---- The task of a file -------------------------------------------------------------------------


def file_task(
    path: str | Path | None = None,
    *,
    actions: Sequence[str] | None = None,
    observations: Sequence[str] | None = None,
    pack: int | None = None,
    seed: int = 0,
    symmetry: dict | None = None,
    obs_horizon: int | None = None,
    horizon: int | None = None,
    stride: int | None = None,
    actions_from: str | None = None,
    pad_before: int | None = None,
    pad_after: int | None = None,
    mask_padding: bool | None = None,
    normalize: bool | str | Mapping[str, Any] | None = None,
    cache: str | Path | None = None,
    encoder: RowEncoder | None = None,
) -> HeldOutTask | SampleTask:
    """A user's own data as a task.

    A data set of episodes (:func:`fastgen.data.formats.detection.open_source`) is cut into windows
    of the columns that `actions` and `observations` name, and becomes a `HeldOutTask`.

    Of `.npz` and `.safetensors` without those names: a file of trajectories (`X` and `Z` of three
    axes each, or episodes; see :func:`fastgen.data.windows.windows_of`) becomes a `HeldOutTask`. A
    file of samples of any shape (`X` (N, *shape), alone or with `Z` (N, ...)) becomes a
    `SampleTask`: there whole numbers in Z are labels, and no option but `seed` applies. `episode`
    (N,) beside X keeps the rows of an episode on one side of the split; any other array is refused.

    Args:
        path: of the file or folder.
        actions, observations: names of columns, as in `fastgen.data.formats.selection.select`.
        pack, seed, symmetry: as in `HeldOutTask`.
        obs_horizon, horizon, stride, actions_from, pad_before, pad_after, mask_padding: of windows,
            as in `windows_of`.
        normalize: as in `read_normalization`; false for a teacher that was trained in the units of
            the file.
        cache: as in `fastgen.data.formats.kept_rows.kept_columns`, for rows of a data set that
            memory doesn't hold.
        encoder: makes the observations of raw columns, in place of `observations`.

    Raises:
        FileNotFoundError, TypeError, ValueError: one line that says what was expected; rows with
            NaN are named.
    """
    if path is None:
        raise ValueError(
            "expected data.path, an .npz or .safetensors file or another data set, for the task "
            "file, got none"
        )
    tensors, columns, names, notes = _read(path, actions, observations, cache, encoder)
    if _holds_samples(tensors):
        options = {"pack": pack, "symmetry": symmetry, "normalize": normalize, "stride": stride}
        options |= {"obs_horizon": obs_horizon, "horizon": horizon}
        options |= {"pad_before": pad_before, "pad_after": pad_after, "actions_from": actions_from}
        options |= {"mask_padding": mask_padding}
        return _sample_task(tensors, path, seed, options)
    stride = 1 if stride is None else stride
    windows = windows_of(
        tensors,
        path,
        obs_horizon=obs_horizon,
        horizon=horizon,
        stride=stride,
        actions_from=actions_from,
        pad_before=pad_before,
        pad_after=pad_after,
        mask_padding=mask_padding,
    )
    if obs_horizon is not None and horizon is not None and windows.is_pad is None:
        ends = tensors["episode_ends"].tolist()
        notes += unused_notes(ends, obs_horizon, horizon, stride, actions_from)
    return HeldOutTask(
        "file",
        windows.X,
        windows.Z,
        windows.episodes,
        is_pad=windows.is_pad,
        masks=windows.masks,
        primary="energy_distance",
        pack=1 if pack is None else pack,
        seed=seed,
        symmetry=symmetry,
        normalize=read_normalization(normalize, *columns, names=names),
        notes=notes,
    )


def _read(
    path: str | Path,
    actions: Sequence[str] | None,
    observations: Sequence[str] | None,
    cache: str | Path | None,
    encoder: RowEncoder | None,
) -> tuple[dict[str, Tensor], tuple[Sequence[str] | None, ...], Names, list[str]]:
    """The arrays of a file, the columns of actions and of observations, the names of their channels
    and what is said of all that; arguments as `file_task`."""
    if encoder is not None:
        if observations is not None:
            raise ValueError(
                "expected data.observations or teacher.encoder.columns, got both; the encoder "
                "makes the observations"
            )
        source = open_source(path)
        tensors, chosen, notes = encoded_episodes(source, encoder, actions)
        return tensors, (chosen, None), (channel_names(source, chosen), None), notes
    if not is_data_set(path) and actions is None and observations is None:
        return read_tensors(path, mapped=True), (None, None), (None, None), []
    source = open_source(path)
    selection = select(source, actions, observations)
    columns = (selection.actions, selection.observations)
    names = (channel_names(source, columns[0]), channel_names(source, columns[1]))
    notes = [*selection.notes, *time_notes(source)]
    return read_episodes(source, selection, cache), columns, names, notes


def _holds_samples(tensors: dict[str, Tensor]) -> bool:
    """Whether there is an X, but not X and Z of three axes each."""
    if "X" not in tensors:
        return False
    return "Z" not in tensors or tensors["X"].ndim != 3 or tensors["Z"].ndim != 3


def _sample_task(
    tensors: dict[str, Tensor], path: str | Path, seed: int, options: dict[str, object]
) -> SampleTask:
    """The task of samples; options of trajectories must be missing, or say what is so anyway."""
    neutral = {"pack": (1,), "normalize": (False, "identity"), "stride": (1,)}
    for key, value in options.items():
        if value is not None and value not in neutral.get(key, ()):
            found = f"X {tuple(tensors['X'].shape)}"
            found += f" and Z {tuple(tensors['Z'].shape)}" if "Z" in tensors else " alone"
            raise ValueError(
                f"expected no data.{key} but for trajectories, X (N, T_x, d_x) with Z (N, T_z, "
                f"d_z), got {value!r} for {found} in {path}; leave it out"
            )
    check_arrays(tensors, path, ("X", "Z", "episode"), "X alone or with Z")
    X = floats("X", tensors["X"])
    Z = floats("Z", tensors["Z"], labels=True) if "Z" in tensors else None
    check_samples(X, Z)
    return SampleTask("file", X, Z, seed=seed, episodes=episodes_of(tensors, len(X)))
