"""Data of a run: which task or file, its windows, normalisation, symmetry and range."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from ..box import Box
from .base import MOST_SEED, Config

__all__ = ["ChannelsConfig", "DataConfig", "NormalizeConfig", "SymmetryConfig"]


class SymmetryConfig(Config):
    """How a symmetry group acts on the channels of a waypoint, of an observation token and of a
    predicted waypoint."""

    group: str = Field(description="C<n>, D<n>, Icosahedral, or a product such as C2xC2")
    in_rep: list[str] | dict[str, str] = Field(
        description="direct sum of trivial, sign, standard, regular, irrep:<id>"
    )
    cond_rep: list[str] | dict[str, str] = Field(
        description="the same for observations; or {matrices: file.npz}"
    )
    out_rep: list[str] | dict[str, str] | None = Field(
        default=None, description="the same for outputs; null = in_rep"
    )

    @field_validator("in_rep", "cond_rep", "out_rep", mode="before")
    @classmethod
    def _one(cls, rep: Any) -> Any:
        return [rep] if isinstance(rep, str) else rep


_Kind = Literal["mean_std", "min_max", "quantiles", "identity"]


# A channel by its number, or by the name that the data give it.
_Channels = list[int | str | list[int | str]]


class ChannelsConfig(Config):
    """Which channels are angles or rotations; the others are plain numbers."""

    angle: _Channels | None = Field(
        default=None,
        description="angles in radians, by number or name: networks see cosine and sine",
    )
    quaternion: _Channels | None = Field(
        default=None,
        description="rotations, [x, y, z, w] or a list of such: networks see six numbers",
    )
    rotation_6d: _Channels | None = Field(
        default=None,
        description="rotations by six numbers, two columns of a matrix, or a list of such",
    )

    @field_validator("angle", "quaternion", "rotation_6d", mode="before")
    @classmethod
    def _one(cls, channels: Any) -> Any:
        return [channels] if isinstance(channels, int | str) else channels


class NormalizeConfig(Config):
    """What is done to the channels of trajectories before a network sees them."""

    kind: _Kind | None = Field(
        default=None,
        description="mean_std; min_max or quantiles (1 % and 99 %) to [-1, 1]; identity; null = as "
        "a policy's limits say, else mean_std",
    )
    actions: _Kind | None = Field(default=None, description="the same for actions, X; null = kind")
    observations: _Kind | None = Field(
        default=None, description="the same for observations, Z; null = kind"
    )
    per_step: bool = Field(default=False, description="each time step is measured by itself")
    limits: str | None = Field(
        default=None,
        description="statistics to use in place of measured ones: the folder of a LeRobot policy "
        "(policy_preprocessor.json) or of a data set (meta/stats.json), or such a file",
    )
    action_keys: list[str] | None = Field(
        default=None, description="names in limits; null = data.actions, or action"
    )
    observation_keys: list[str] | None = Field(
        default=None,
        description="names in limits; null = data.observations, or observation.state and "
        "observation.environment_state",
    )

    action_channels: ChannelsConfig | None = Field(
        default=None, description="channels of actions, X, that are angles or rotations"
    )
    observation_channels: ChannelsConfig | None = Field(
        default=None, description="the same for observations, Z"
    )

    @field_validator("action_keys", "observation_keys", mode="before")
    @classmethod
    def _one(cls, names: Any) -> Any:
        return [names] if isinstance(names, str) else names


class DataConfig(Config):
    """Where trajectories, or samples of any other shape, come from."""

    name: str = Field(default="ring", description="embedded task, or `file` for your own")
    path: str | None = Field(
        default=None,
        description="file: .npz or .safetensors with X and Z, X alone (episode beside them, the "
        "number of each row's), or actions, observations, episode_ends; or a data set of episodes: "
        "LeRobot, zarr, HDF5 (robomimic, Minari), Parquet, CSV",
    )
    actions: list[str] | None = Field(
        default=None,
        description="data set: columns that are predicted, such as action; null = action or "
        "actions",
    )
    observations: list[str] | None = Field(
        default=None,
        description="data set: columns that are the condition, such as [observation.state]; null "
        "= the usual names",
    )
    cache: str | None = Field(
        default=None,
        description="data set: folder for copies of rows that memory has no room for, which are "
        "mapped; null = beside the data",
    )
    size: int | None = Field(
        default=None,
        gt=0,
        description="ring, two_rings: number of demonstrations; null = 4000; weave: the same, "
        "modes: of points; null = 20000",
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=MOST_SEED,
        description="seed of the generated demonstrations and of splits",
    )
    pack: int | None = Field(
        default=None,
        ge=1,
        description="waypoints per token; null = the task's own (ring, two_rings, weave, flights: "
        "4)",
    )
    symmetry: SymmetryConfig | None = Field(
        default=None, description="symmetry of the data; null = the embedded task's own"
    )
    obs_horizon: int | None = Field(
        default=None, ge=1, description="observations per window; null = the task's own"
    )
    horizon: int | None = Field(
        default=None, ge=1, description="waypoints per window; null = the task's own"
    )
    stride: int | None = Field(
        default=None, ge=1, description="steps between windows; null = the task's own"
    )
    actions_from: Literal["last_observation", "first_observation"] | None = Field(
        default=None,
        description="the row at which the actions of a window begin; first_observation: as LeRobot "
        "and Diffusion Policy train; null = last_observation",
    )
    pad_before: int | None = Field(
        default=None,
        ge=0,
        description="episodes: observations of a window that may lie before its episode, where the "
        "first one is repeated, up to obs_horizon - 1; null = 0",
    )
    pad_after: int | None = Field(
        default=None,
        ge=0,
        description="episodes: actions of a window that may lie after its episode, where the last "
        "one is repeated, up to horizon - 1; null = 0",
    )
    mask_padding: bool | None = Field(
        default=None,
        description="episodes: true = actions that pad_after repeats are padding, of which nothing "
        "is learned; null = false, they are data, as for policies that hold still at the end",
    )
    normalize: bool | NormalizeConfig | None = Field(
        default=None,
        description="file of trajectories: false for a teacher that was trained in the units of "
        "the file, or a kind, or a group; null = true, which is mean_std; other samples are never "
        "normalised",
    )
    range: tuple[float | tuple[float, ...], float | tuple[float, ...]] | None = Field(
        default=None,
        description="[lo, hi] in the units of the data, each a number, or for trajectories "
        "(N, T, d) a list of d, within which all data lie: finished samples are clamped to it; "
        "null = none",
    )

    @field_validator("actions", "observations", mode="before")
    @classmethod
    def _one(cls, names: Any) -> Any:
        return [names] if isinstance(names, str) else names

    @field_validator("normalize", mode="before")
    @classmethod
    def _kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("range")
    @classmethod
    def _is_box(cls, value: Any) -> Any:
        if value is not None:
            Box.from_state(value)
        return value

    @property
    def box(self) -> Box | None:
        """What `range` declares; None where it declares nothing."""
        return None if self.range is None else Box.from_state(self.range)
