"""How the channels of X and of Z are normalised, as a config asks for it: measured on the training
set, or by limits that were saved with a teacher or its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._core.made_rows import channels_of, extremes, vectors_of
from .._core.messages import first_names, listed
from ..channel_kinds import ChannelKinds, KindNormalizer
from ..normalizer import KINDS, Blocks, Normalizer
from .channel_names import Channels, Names, read_channels
from .formats.limits import Limits, read_limits
from .formats.source import STATES

__all__ = ["IDENTITY", "MEASURED", "Given", "Normalization", "Pair", "read_normalization"]

_KEYS = (
    "kind",
    "actions",
    "observations",
    "per_step",
    "limits",
    "action_keys",
    "observation_keys",
    "action_channels",
    "observation_channels",
)
# Normalised numbers beyond this mean that the limits are not of these data, or have no width.
_FAR = 1e5
# Rounding of matrices and limits, relative to the limits.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Given:
    """Origin and scale (d,) that were saved, and where they come from, for messages."""

    mean: Tensor
    scale: Tensor
    where: str

    def of(self, channels: Sequence[int]) -> Given:
        """Those of some channels."""
        return replace(self, mean=self.mean[channels], scale=self.scale[channels])


@dataclass(frozen=True)
class Normalization:
    """How the channels of X, or those of Z, are normalised.

    Attributes:
        kind: one of `fastgen.normalizer.KINDS`, measured on the training set.
        per_step: whether each time step is measured by itself.
        given: limits that are used in place of measured ones; None: there are none.
        channels: which are angles or rotations; None: all are plain numbers.
    """

    kind: str = "mean_std"
    per_step: bool = False
    given: Given | None = None
    channels: Channels | None = None

    def normalizer(
        self,
        name: str,
        x: Tensor,
        blocks: Blocks | None = None,
        matrices: Tensor | None = None,
        *,
        real: Tensor | None = None,
    ) -> Normalizer:
        """The normaliser of trajectories x (N, T, d).

        Args:
            name: "X" or "Z", for messages.
            x: the training set.
            blocks: of the representation that acts on the channels as networks see them, as in
                `Normalizer.fit`; None: none acts.
            matrices: of that representation (G, d, d).
            real: which tokens of x are measured, bool (N, T); None: all.

        Raises:
            ValueError: limits of another number of channels, that aren't of these data, or that
                the group changes; angles or rotations whose channels aren't there, or that the
                group doesn't take to angles or rotations.
        """
        kinds = self.kinds(name, x.shape[-1])
        if kinds is None:
            return self._plain(name, x, blocks, matrices, real)
        if self.given is not None:
            _check_count(self.given, name, kinds.dim)
        if matrices is not None and not kinds.kept_by(matrices):
            raise _mixed(name)
        if not kinds.plain:
            return KindNormalizer.around(kinds, None)
        plain = replace(self, given=None if self.given is None else self.given.of(kinds.plain))
        blocks, matrices = _plain_part(kinds, name, blocks, matrices)
        some = channels_of(x, kinds.plain)
        return KindNormalizer.around(kinds, plain._plain(name, some, blocks, matrices, real))

    def check(self, name: str, x: Tensor, real: Tensor | None = None) -> None:
        """ValueError for trajectories x (N, T, d) with numbers that are called a rotation and are
        none; `real` (N, T): which tokens padding repeats, None: none is padded."""
        kinds = self.kinds(name, x.shape[-1])
        if kinds is not None and kinds.has_rotations:
            for rows in vectors_of(x, real):
                kinds.check(name, rows)

    def kinds(self, name: str, dim: int) -> ChannelKinds | None:
        """Which of `dim` channels are angles or rotations; None: all are plain numbers.

        Raises:
            ValueError: a channel that isn't there or is named twice, or too few for a rotation.
        """
        return None if self.channels is None else self.channels.of(name, dim)

    def _plain(
        self,
        name: str,
        x: Tensor,
        blocks: Blocks | None,
        matrices: Tensor | None,
        real: Tensor | None,
    ) -> Normalizer:
        """The normaliser of channels that are plain numbers."""
        if self.given is not None:
            return _by_limits(self.given, name, x, matrices, real)
        if self.kind == "identity":
            return Normalizer.identity(x.shape[-1])
        if self.per_step:
            return Normalizer.fit_per_step(x, blocks=blocks, kind=self.kind, mask=real)
        return Normalizer.fit(x, blocks=blocks, kind=self.kind, mask=real)


# Of X and of Z.
Pair = tuple[Normalization, Normalization]
MEASURED: Pair = (Normalization(), Normalization())
IDENTITY: Pair = (Normalization("identity"), Normalization("identity"))


def _check_count(given: Given, name: str, d: int) -> None:
    if len(given.mean) != d:
        raise ValueError(
            f"expected limits for the {d} channels of {name}, got {len(given.mean)} of "
            f"{given.where}; data.normalize.action_keys and observation_keys name others"
        )


def _plain_part(
    kinds: ChannelKinds, name: str, blocks: Blocks | None, matrices: Tensor | None
) -> tuple[Blocks | None, Tensor | None]:
    """Blocks and matrices of the representation on the channels that are plain numbers.

    Raises:
        ValueError: the group mixes them with angles or rotations.
    """
    if blocks is None or matrices is None:
        return None, None
    at = torch.tensor(kinds.plain_seen)
    basis, spans = blocks
    share = basis.double()[at].square().sum(0)
    kept = share > 0.5
    whole = all(bool((kept[start:stop] == kept[start]).all()) for start, stop, _ in spans)
    if int(kept.sum()) != len(at) or not whole or float((share - kept.double()).abs().max()) > 1e-6:
        raise _mixed(name)
    # Where each column of the basis comes to stand.
    place = kept.long().cumsum(0) - 1
    own = [(int(place[a]), int(place[b - 1]) + 1, trivial) for a, b, trivial in spans if kept[a]]
    return (basis.double()[at][:, kept], own), matrices[:, at[:, None], at]


def _mixed(name: str) -> ValueError:
    return ValueError(
        f"expected a representation that acts on angles and rotations of {name} by themselves, "
        "got one that mixes them with other channels, or their numbers; write it as a sum in the "
        "order of the channels as networks see them, an angle as cosine and sine, a rotation as "
        "two columns"
    )


def _by_limits(
    given: Given, name: str, x: Tensor, matrices: Tensor | None, real: Tensor | None
) -> Normalizer:
    _check_count(given, name, x.shape[-1])
    farthest = ((extremes(x, real).double() - given.mean) / given.scale).abs().amax(0)
    far = (farthest > _FAR).nonzero().flatten().tolist()
    if far:
        raise ValueError(
            f"expected limits of these data, got {float(farthest.max()):.2g} as a normalised "
            f"number in channel {listed(far)} of {name}, by {given.where}; they are of other data "
            "or have no width there: choose another data.normalize.kind"
        )
    # Data in float32 have no digits that float32 could lose.
    wide = None if x.dtype == torch.float64 else False
    found = Normalizer(given.mean, given.scale.diag(), needs_float64=wide)
    if matrices is not None:
        _check_kept(found, name, given.where, matrices)
    return found


def _check_kept(normalizer: Normalizer, name: str, where: str, matrices: Tensor) -> None:
    """ValueError unless the normaliser commutes with the matrices (G, d, d) of a group."""
    size = max(float(normalizer.mean.abs().max()), float(normalizer.scale.abs().max()))
    mean, scale = normalizer.mean, normalizer.scale
    off = (matrices @ mean - mean).abs().amax(0)
    off = torch.maximum(off, (matrices @ scale - scale @ matrices).abs().amax((0, 2)))
    moved = (off > _ROUNDING * size).nonzero().flatten().tolist()
    if moved:
        raise ValueError(
            f"expected limits that the symmetry keeps, got others in channel {listed(moved)} of "
            f"{name}, by {where}; leave out data.normalize.limits, so that they are measured as "
            "the symmetry needs them, or data.symmetry"
        )


# ---- What a config asks for ----------------------------------------------------------------------


def read_normalization(
    asked: bool | str | Mapping[str, Any] | None,
    actions: Sequence[str] | None = None,
    observations: Sequence[str] | None = None,
    *,
    names: Names = (None, None),
) -> Pair:
    """How X and Z are normalised.

    Args:
        asked: `data.normalize`: true or None for mean and standard deviation, false for nothing, a
            kind, or a mapping with the keys of `fastgen.config.NormalizeConfig`.
        actions, observations: the columns of X and Z, in the order of their channels; None: they
            have no names.
        names: of the channels of X and of Z, as the data give them.

    Raises:
        FileNotFoundError, ValueError: unknown keys or kinds, or limits that can't be read
            (`read_limits`) or lack a column or a statistic, which is named.
    """
    if asked is None or asked is True:
        return MEASURED
    if asked is False:
        return IDENTITY
    options = {"kind": asked} if isinstance(asked, str) else dict(asked)
    unknown = set(options) - set(_KEYS)
    if unknown:
        raise ValueError(
            f"expected data.normalize with the keys {', '.join(_KEYS)}, got {first_names(unknown)}"
        )
    x, z = _measured_or_given(options, actions, observations)
    x_channels, z_channels = (
        read_channels(f"data.normalize.{key}", options.get(key), own)
        for key, own in zip(("action_channels", "observation_channels"), names, strict=True)
    )
    return replace(x, channels=x_channels), replace(z, channels=z_channels)


def _measured_or_given(
    options: Mapping[str, Any],
    actions: Sequence[str] | None,
    observations: Sequence[str] | None,
) -> Pair:
    """What is done to plain channels of X and Z; arguments and errors as `read_normalization`."""
    kinds = []
    for key in ("actions", "observations"):
        kind = options.get(key) or options.get("kind")
        if kind is not None and kind not in KINDS:
            raise ValueError(
                f"expected data.normalize to say {', '.join(KINDS)}, got {kind!r} for {key}"
            )
        kinds.append(kind)
    per_step = bool(options.get("per_step"))
    source = options.get("limits")
    if source is None:
        _refuse_keys(options)
        x, z = (Normalization(kind or "mean_std", per_step) for kind in kinds)
        return x, z
    if per_step:
        raise ValueError(
            "expected no data.normalize.per_step beside limits, which are one for each channel; "
            "leave one of them out"
        )
    limits = read_limits(source)
    x_columns = options.get("action_keys") or actions or ("action",)
    z_columns = options.get("observation_keys") or observations or _states(limits)
    return _given(limits, x_columns, kinds[0]), _given(limits, z_columns, kinds[1])


def _refuse_keys(options: Mapping[str, Any]) -> None:
    for key in ("action_keys", "observation_keys"):
        if options.get(key):
            raise ValueError(
                f"expected data.normalize.limits beside {key}, which names what is in them, got "
                "none"
            )


def _given(limits: Limits, columns: Sequence[str], kind: str | None) -> Normalization:
    if kind == "identity":
        return Normalization("identity")
    mean, scale = limits.affine(columns, kind)
    return Normalization(given=Given(mean, scale, f"{', '.join(columns)} in {limits.path}"))


def _states(limits: Limits) -> list[str]:
    """The usual names of observations that are there."""
    found = [name for name in STATES if name in limits.statistics]
    if not found:
        raise ValueError(
            f"{limits.path}: expected statistics of {' or '.join(STATES)}, got those of "
            f"{first_names(sorted(limits.statistics), 12)}; name yours by "
            "data.normalize.observation_keys"
        )
    return found
