"""Trajectory data sets: the container every task trains on, and the files it can be read from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .._core.checks import is_count
from .._core.messages import brief
from .._core.tensor_files import read_safetensors
from ..normalizer import Normalizer, pack_tokens

__all__ = [
    "EVALUATION_SEED",
    "TrajectoryData",
    "check_finite",
    "check_trajectories",
    "fit_normalizers",
    "floats",
    "read_tensors",
    "windows_of",
]

EVALUATION_SEED = (
    20260  # of every draw an evaluation makes, whatever the seed of the run: scores stay comparable
)


@dataclass(frozen=True)
class TrajectoryData:
    """Trajectories X with their conditions Z in original units, and what a network needs to see
    them.

    Attributes:
        X: (N, T_x, d_x) float32.      Z: (N, T_z, d_z) float32.
        x_normalizer, z_normalizer: of d_x and d_z channels, waypoint by waypoint.
        pack: consecutive waypoints per token of the network; divides T_x.
        symmetry: None, or `{"group", "in_rep", "cond_rep", "out_rep"}` for *unpacked* channels (a
            token carries `pack` copies).

    Raises:
        ValueError, TypeError: anything above that doesn't hold; rows with NaN are named.
    """

    X: Tensor
    Z: Tensor
    x_normalizer: Normalizer
    z_normalizer: Normalizer
    pack: int = 1
    symmetry: dict | None = None

    def __post_init__(self) -> None:
        check_trajectories(self.X, self.Z)
        for name, tensor, normalizer in (
            ("X", self.X, self.x_normalizer),
            ("Z", self.Z, self.z_normalizer),
        ):
            if tensor.dtype != torch.float32:
                raise TypeError(f"expected {name} in float32, got {tensor.dtype}")
            if normalizer.dim != tensor.shape[-1]:
                raise ValueError(
                    f"expected a normalizer of {tensor.shape[-1]} channels for {name}, got "
                    f"{normalizer.dim}"
                )
        check_pack(self.pack, self.X.shape[1])

    def __len__(self) -> int:
        return self.X.shape[0]

    def network_inputs(self) -> tuple[Tensor, Tensor]:
        """Normalised and packed tensors (N, T_x / pack, d_x pack) and (N, T_z, d_z)."""
        return pack_tokens(
            self.x_normalizer.normalize(self.X), self.pack
        ), self.z_normalizer.normalize(self.Z)


def check_pack(pack: int, horizon: int) -> None:
    """ValueError unless `pack` is a whole number >= 1 that divides the horizon."""
    if not is_count(pack) or horizon % pack:
        raise ValueError(
            f"expected pack to be a whole number that divides the {horizon} waypoints, got {pack!r}"
        )


def check_size(size: int, what: str = "demonstrations") -> None:
    """ValueError unless `size` is a whole number >= 2."""
    if not is_count(size, 2):
        raise ValueError(f"expected size to be a whole number >= 2 of {what}, got {size!r}")


def _bad_rows(tensor: Tensor) -> list[int]:
    return (~torch.isfinite(tensor.reshape(len(tensor), -1)).all(1)).nonzero().flatten().tolist()


def check_finite(name: str, tensor: Tensor) -> None:
    """ValueError that names the rows of `tensor` (N, ...) with NaN or infinity."""
    rows = _bad_rows(tensor)
    if rows:
        some = ", ".join(str(row) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
        raise ValueError(
            f"expected finite numbers in {name}, got NaN or infinity in {len(rows)} rows: {some}; "
            "remove them"
        )


def check_trajectories(X: Tensor, Z: Tensor) -> None:
    """Raise TypeError or ValueError unless X (N, T_x, d_x) and Z (N, T_z, d_z) are such, with N >=
    1, and finite."""
    for name, tensor, axes in (("X", X, "(N, T_x, d_x)"), ("Z", Z, "(N, T_z, d_z)")):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise TypeError(
                f"expected {name} to be a floating-point Tensor, got "
                f"{getattr(tensor, 'dtype', type(tensor).__name__)}"
            )
        if tensor.ndim != 3:
            raise ValueError(f"expected {name} of shape {axes}, got {tuple(tensor.shape)}")
        if tensor.numel() == 0:
            raise ValueError(
                f"expected {name} of shape {axes} with at least one number, got an empty "
                f"{tuple(tensor.shape)}"
            )
    if X.shape[0] != Z.shape[0]:
        raise ValueError(f"expected as many rows in Z as in X, got {Z.shape[0]} and {X.shape[0]}")
    check_finite("X", X)
    check_finite("Z", Z)


def fit_normalizers(X: Tensor, Z: Tensor, symmetry: dict | None) -> tuple[Normalizer, Normalizer]:
    """Normalisers of X (by `out_rep`) and Z (by `cond_rep`) that commute with the group of
    `symmetry`; per channel without one.

    Raises ValueError for a symmetry with missing or unknown keys, or representations that don't fit
    the channels.
    """
    if symmetry is None:
        return Normalizer.fit(X), Normalizer.fit(Z)
    keys = {"group", "in_rep", "cond_rep", "out_rep"}
    if not isinstance(symmetry, dict) or set(symmetry) != keys:
        got = sorted(symmetry) if isinstance(symmetry, dict) else repr(symmetry)
        raise ValueError(f"expected symmetry with the keys {sorted(keys)}, got {got}")
    # Groups load escnn, which data without a symmetry doesn't need.
    from ..models.representations import irrep_blocks
    from ..models.specs import parse_group, parse_representation

    group = parse_group(symmetry["group"])
    normalizers = []
    for name, tensor, key in (("X", X, "out_rep"), ("Z", Z, "cond_rep")):
        rep = parse_representation(group, symmetry[key])
        if rep.size != tensor.shape[-1]:
            raise ValueError(
                f"expected {key} of dimension {tensor.shape[-1]}, the channels of {name}, got "
                f"{rep.size}"
            )
        normalizers.append(Normalizer.fit(tensor, blocks=irrep_blocks(rep)))
    return normalizers[0], normalizers[1]


# --- files ----------------------------------------------------------------------------------------


def windows_of(
    tensors: dict[str, Tensor],
    path: str | Path,
    *,
    obs_horizon: int | None,
    horizon: int | None,
    stride: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Windows of the arrays of a data file, and the episode of each.

    The file holds either `X` (N, T_x, d_x) and `Z` (N, T_z, d_z), or episodes laid end to end:
    `actions` (M, d_x), `observations` (M, d_z) and `episode_ends` (E,), the row after the last one
    of each episode (increasing, the last is M).
    Episodes are cut into windows that never cross an end: at the current row t,

        Z = observations[t - obs_horizon + 1 : t + 1]
        X = actions[t : t + horizon]

    and t moves by `stride`.

    Args:
        tensors: by name, as `read_tensors` gives them.
        path: of the file, for errors.
        obs_horizon, horizon: T_z and T_x of the windows; needed for episodes, refused for X and Z.
        stride: rows from one window to the next.

    Returns:
        X and Z in float32, and the episode (N,) of each window: the row itself for X and Z.

    Raises:
        TypeError, ValueError: one line that says what was expected; rows with NaN are named.
    """
    episodes = {"actions", "observations", "episode_ends"}
    if {"X", "Z"} <= set(tensors):
        if obs_horizon is not None or horizon is not None or stride != 1:
            raise ValueError(
                f"expected no obs_horizon, horizon and stride for {path}, which holds windows X "
                "and Z already; leave them out"
            )
        X = floats("X", tensors["X"])
        Z = floats("Z", tensors["Z"])
        check_trajectories(X, Z)
        return X, Z, torch.arange(X.shape[0])
    if not episodes <= set(tensors):
        raise ValueError(
            f"expected X and Z, or actions, observations and episode_ends in {path}, "
            f"got {brief(sorted(tensors)) if tensors else 'nothing'}"
        )
    actions = floats("actions", tensors["actions"])
    observations = floats("observations", tensors["observations"])
    return cut_windows(
        actions,
        observations,
        tensors["episode_ends"],
        obs_horizon=obs_horizon,
        horizon=horizon,
        stride=stride,
    )


def load_conditions(path: str | Path) -> Tensor:
    """`Z` (B, ...) of an `.npz` or `.safetensors` file, float32 or, where the file holds whole
    numbers, int64.

    Raises:
        FileNotFoundError, TypeError, ValueError: no file, no `Z`, no rows, numbers that aren't
            finite.
    """
    tensors = read_tensors(path)
    if "Z" not in tensors:
        raise ValueError(
            f"expected Z in {path}, got {brief(sorted(tensors)) if tensors else 'nothing'}"
        )
    Z = floats("Z", tensors["Z"], labels=True)
    if Z.ndim == 0 or Z.numel() == 0:
        raise ValueError(
            f"expected Z of shape (B, ...) with at least one row, got {tuple(Z.shape)}"
        )
    check_finite("Z", Z)
    return Z


def cut_windows(
    actions: Tensor,
    observations: Tensor,
    episode_ends: Tensor,
    *,
    obs_horizon: int | None,
    horizon: int | None,
    stride: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Windows X (N, horizon, d_x), Z (N, obs_horizon, d_z) and their episodes (N,), as in
    `windows_of`."""
    for name, value in (("obs_horizon", obs_horizon), ("horizon", horizon), ("stride", stride)):
        if not is_count(value):
            raise ValueError(
                f"expected {name} to be a whole number >= 1 to cut episodes into windows, got "
                f"{value!r}"
            )
    assert (
        obs_horizon is not None and horizon is not None
    )  # said by the loop above; this tells the type checker
    for name, tensor in (("actions", actions), ("observations", observations)):
        if tensor.ndim != 2 or tensor.numel() == 0:
            raise ValueError(
                f"expected {name} of shape (M, d) with M >= 1, got {tuple(tensor.shape)}"
            )
        check_finite(name, tensor)
    rows = actions.shape[0]
    if observations.shape[0] != rows:
        raise ValueError(
            f"expected as many observations as actions, got {observations.shape[0]} and {rows}"
        )
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
    now = []
    episode = []
    for index, (start, stop) in enumerate(zip(starts, ends, strict=True)):
        current = range(start + obs_horizon - 1, stop - horizon + 1, stride)
        now += current
        episode += [index] * len(current)
    if not now:
        longest = max(stop - start for start, stop in zip(starts, ends, strict=True))
        raise ValueError(
            "expected an episode of at least obs_horizon + horizon - 1 = "
            f"{obs_horizon + horizon - 1} rows, got at most {longest}; shorten the horizons"
        )
    t = torch.tensor(now)[:, None]
    X = actions[t + torch.arange(horizon)]
    Z = observations[t + torch.arange(1 - obs_horizon, 1)]
    return X, Z, torch.tensor(episode)


def _short(values: list) -> str:
    return (
        str(values)
        if len(values) <= 6
        else f"[{', '.join(map(str, values[:5]))}, ... {values[-1]}]"
    )


def floats(name: str, tensor: Tensor, *, labels: bool = False) -> Tensor:
    """The numbers of a file as float32, or, with `labels`, whole ones as int64.

    Raises TypeError for yes-or-no values and complex numbers.
    """
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise TypeError(f"expected {name} to hold numbers, got {tensor.dtype}")
    return tensor.long() if labels and not tensor.is_floating_point() else tensor.float()


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Every array of an `.npz` (without pickle) or `.safetensors` file.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it can't be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a data file at {path}, got nothing there; give the path of an .npz or "
            ".safetensors file"
        )
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix == ".npz":
        # NumPy arrives with the file that needs it.
        import numpy as np

        from .._core.archives import read_npz

        return {
            name: torch.from_numpy(np.ascontiguousarray(array.astype(_torch_kind(array.dtype))))
            for name, array in read_npz(path).items()
        }
    raise ValueError(f"expected a file that ends in .npz or .safetensors, got {path.name}")


def _torch_kind(dtype):
    """The NumPy dtype, in native byte order and with a torch counterpart, that holds these
    numbers."""
    import numpy as np

    if dtype.kind == "f":
        return np.float64 if dtype.itemsize >= 8 else np.float32
    return np.bool_ if dtype.kind == "b" else np.int64
