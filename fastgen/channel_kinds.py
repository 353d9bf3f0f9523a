"""Channels that are no plain numbers: angles and rotations, as networks see them.

    kind          in original units             as networks see it
    angle         theta, in radians             cos theta, sin theta
    quaternion    x, y, z, w, of length 1       the first two columns of the matrix, six numbers
    rotation_6d   two orthonormal columns       the same

What networks see is continuous where the numbers aren't: an angle of pi is beside one of -pi, and
q and -q are one rotation. It is neither shifted nor scaled, so that a group may act on it: on a
pair (cos, sin) as on a vector of the plane, on each column as on a vector of space. What comes back
from a network is made an angle by atan2, in [-pi, pi], and a rotation by Gram-Schmidt; a quaternion
has w >= 0.

The numbers that stand for a channel, or for the channels of a rotation, lie where its first channel
was: (x, y, theta, speed) becomes (x, y, cos theta, sin theta, speed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._core.checks import is_count
from ._core.messages import brief, listed
from ._core.rotations import (
    columns_of_quaternion,
    orthonormal_columns,
    quaternion_of_columns,
    where_finite,
)
from .normalizer import Normalizer, matrix_times

__all__ = ["WIDTHS", "ChannelKinds", "KindNormalizer", "read_normalizer"]


class _Widths(NamedTuple):
    """Channels of one that is of a kind, in original units and as networks see it."""

    given: int
    seen: int


WIDTHS = {"angle": _Widths(1, 2), "quaternion": _Widths(4, 6), "rotation_6d": _Widths(6, 6)}

# How far lengths and products of a rotation's numbers may be from those of one: data are rounded.
_ROTATION_SLACK = 0.05
_MOST_CHANNELS = 1 << 16
# Rows by which matrices are tried, and how far rounding may take them from angles and rotations.
_TRIED_ROWS = 8
_KEPT = 1e-6


class ChannelKinds:
    """Which of d channels are angles or rotations.

    Args:
        dim: d, the channels in original units.
        kinds: {kind: its channels}, each a list of indices: one of an angle; of a quaternion x, y,
            z, w, in this order; of a rotation by six numbers both columns, one after the other.

    Attributes:
        dim, kinds: as given.
        network_dim: channels as networks see them.
        plain: indices of the channels that are of no kind.
        plain_seen: where those are among the channels that networks see.

    Raises:
        ValueError: an unknown kind, a channel that isn't there or is named twice, or another number
            of them than the kind has.
    """

    def __init__(self, dim: int, kinds: Mapping[str, Sequence[Sequence[int]]]) -> None:
        self.dim = dim
        self.kinds = {kind: tuple(map(tuple, groups)) for kind, groups in kinds.items() if groups}
        starts: dict[int, tuple[str, tuple[int, ...]]] = {}
        taken: set[int] = set()
        for kind, groups in self.kinds.items():
            for group in groups:
                _check_group(kind, group, dim, taken)
                taken |= set(group)
                starts[min(group)] = (kind, group)
        self.plain = [channel for channel in range(dim) if channel not in taken]
        self.plain_seen: list[int] = []
        # (kind, channels in original units, channels as networks see them)
        self._parts: list[tuple[str, list[int], list[int]]] = []
        seen = 0
        for channel in range(dim):
            if channel in starts:
                kind, group = starts[channel]
                width = WIDTHS[kind].seen
                self._parts.append((kind, list(group), list(range(seen, seen + width))))
                seen += width
            elif channel not in taken:
                self.plain_seen.append(seen)
                seen += 1
        self.network_dim = seen

    @property
    def has_rotations(self) -> bool:
        """Whether some are rotations, of which not all numbers are one."""
        return any(kind != "angle" for kind in self.kinds)

    @property
    def rotation_channels(self) -> list[int]:
        """Indices of the channels of rotations, in original units."""
        parts = [given for kind, given, _ in self._parts if kind != "angle"]
        return sorted(channel for given in parts for channel in given)

    def expand(self, x: Tensor) -> Tensor:
        """Channels (..., d) in original units as networks see them, (..., network_dim)."""
        seen = x.new_empty(*x.shape[:-1], self.network_dim)
        seen[..., self.plain_seen] = x[..., self.plain]
        for kind, given, at in self._parts:
            part = x[..., given]
            if kind == "angle":
                part = torch.cat([part.cos(), part.sin()], -1)
            elif kind == "quaternion":
                part = columns_of_quaternion(part)
            seen[..., at] = part
        return seen

    def collapse(self, seen: Tensor) -> Tensor:
        """The inverse of `expand`, of any numbers that a network may answer. An angle or a rotation
        is NaN where one of its numbers isn't finite."""
        x = seen.new_empty(*seen.shape[:-1], self.dim)
        x[..., self.plain] = seen[..., self.plain_seen]
        for kind, given, at in self._parts:
            part = seen[..., at]
            if kind == "angle":
                part = where_finite(part, torch.atan2(part[..., 1:], part[..., :1]))
            else:
                part = orthonormal_columns(part)
                part = quaternion_of_columns(part) if kind == "quaternion" else part
            x[..., given] = part
        return x

    def kept_by(self, matrices: Tensor) -> bool:
        """Whether matrices (G, n, n) that act on what networks see, n = `network_dim`, take angles
        and rotations to such: whether y M^T is its own `expand(collapse(y M^T))`, of random y."""
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(_TRIED_ROWS, self.network_dim, dtype=torch.float64, generator=generator)
        moved = self.expand(self.collapse(rows)) @ matrices.double().mT
        return float((self.expand(self.collapse(moved)) - moved).abs().max()) <= _KEPT

    def check(self, name: str, x: Tensor) -> None:
        """ValueError for rows x (..., d), called `name`, with numbers that are no rotation."""
        for kind, given, _ in self._parts:
            if kind == "angle" or not x.numel():
                continue
            part = x[..., given].double()
            if kind == "quaternion":
                found = part.norm(dim=-1)
                off = (found - 1).abs()
                expected = "a unit quaternion x, y, z, w"
                measured = "a length of"
            else:
                columns = part.unflatten(-1, (2, 3))
                products = columns @ columns.mT - torch.eye(2, dtype=x.dtype, device=x.device)
                off = found = products.abs().amax((-2, -1))
                expected = "two orthonormal columns"
                measured = "products off by"
            if not bool((off <= _ROTATION_SLACK).all()):
                worst = float(found.flatten()[off.flatten().argmax()])
                raise ValueError(
                    f"expected {expected} in channels {listed(given)} of {name}, got {measured} "
                    f"{worst:.3g}; name the channels of the rotation in this order, or leave them "
                    "plain"
                )

    def seen_names(self) -> list[str]:
        """What each channel that networks see is of the data's, such as "2 cos"."""
        names = dict(zip(self.plain_seen, map(str, self.plain), strict=True))
        for kind, given, at in self._parts:
            parts = ("cos", "sin") if kind == "angle" else [f"column {i // 3}" for i in range(6)]
            names |= {seen: f"{given[0]} {part}" for seen, part in zip(at, parts, strict=True)}
        return [names[seen] for seen in range(self.network_dim)]

    def state(self) -> dict[str, list[list[int]]]:
        """JSON-able `kinds`."""
        return {kind: [list(group) for group in groups] for kind, groups in self.kinds.items()}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChannelKinds):
            return NotImplemented
        return (self.dim, self.kinds) == (other.dim, other.kinds)

    def __hash__(self) -> int:
        return hash((self.dim, tuple(sorted(self.kinds.items()))))

    def __repr__(self) -> str:
        return f"ChannelKinds({self.dim}, {self.state()})"


def _check_group(kind: str, group: Sequence[int], dim: int, taken: set[int]) -> None:
    """ValueError unless these are channels of such a kind, each for the first time."""
    if kind not in WIDTHS:
        raise ValueError(f"expected kinds of channels among {', '.join(WIDTHS)}, got {brief(kind)}")
    if len(group) != WIDTHS[kind].given:
        raise ValueError(
            f"expected {WIDTHS[kind].given} channels for each {kind}, got {brief(list(group))}"
        )
    for channel in group:
        if not is_count(channel, 0) or channel >= dim:
            raise ValueError(
                f"expected {kind} among the channels 0 to {dim - 1}, got {brief(channel)}"
            )
    twice = set(group) & taken
    if twice or len(set(group)) < len(group):
        raise ValueError(
            f"expected each channel in one kind, once, got {brief(list(group))} as {kind}"
            + (f", of which {listed(sorted(twice))} are named already" if twice else "")
        )


class KindNormalizer(Normalizer):
    """An affine map of plain channels, with angles and rotations beside them as networks see them.

    Args:
        kinds: of the d channels in original units.
        mean, scale, needs_float64: as in `Normalizer`, of the channels that networks see; those of
            angles and rotations are neither shifted nor scaled.

    Raises:
        ValueError, TypeError: as `Normalizer`; or angles and rotations that are changed.
    """

    def __init__(
        self,
        kinds: ChannelKinds,
        mean: Tensor | Sequence[float],
        scale: Tensor | Sequence[Sequence[float]],
        *,
        needs_float64: bool | None = None,
    ) -> None:
        super().__init__(mean, scale, needs_float64=needs_float64)
        self.kinds = kinds
        if self.mean.shape[-1] != kinds.network_dim:
            raise ValueError(
                f"expected mean and scale of {kinds.network_dim} channels, as networks see {kinds},"
                f" got {self.mean.shape[-1]}"
            )
        if not self._keeps_kinds():
            raise ValueError(
                "expected mean and scale that leave angles and rotations as they are, got others"
            )

    @classmethod
    def around(cls, kinds: ChannelKinds, plain: Normalizer | None) -> KindNormalizer:
        """That with `plain` for the channels that are of no kind; None: there are none."""
        d = kinds.network_dim
        if plain is None:
            return cls(kinds, torch.zeros(d), torch.eye(d))
        steps = () if plain.steps is None else (plain.steps,)
        mean = torch.zeros(*steps, d, dtype=torch.float64)
        scale = torch.eye(d, dtype=torch.float64).repeat(*steps, 1, 1)
        at = torch.tensor(kinds.plain_seen)
        mean[..., at] = plain.mean
        scale[..., at[:, None], at] = plain.scale
        return cls(kinds, mean, scale, needs_float64=plain.needs_float64)

    @property
    def dim(self) -> int:
        """Number of channels d in original units."""
        return self.kinds.dim

    @property
    def plain(self) -> Normalizer | None:
        """What is done to the channels that are of no kind; None: there are none."""
        at = torch.tensor(self.kinds.plain_seen, dtype=torch.long)
        if not len(at):
            return None
        scale = self.scale[..., at[:, None], at]
        return Normalizer(self.mean[..., at], scale, needs_float64=self.needs_float64)

    def normalize(self, x: Tensor) -> Tensor:
        """What networks see (..., network_dim) of x (..., d)."""
        x64, mean, inverse = self._prepare("x", x, self._inverse, self.dim)
        return matrix_times(inverse, self.kinds.expand(x64) - mean).to(x.dtype)

    def denormalize(self, y: Tensor) -> Tensor:
        """x (..., d) of what a network answers, y (..., network_dim). Inverse of `normalize`, but
        for turns of an angle and the sign of a quaternion."""
        y64, mean, scale = self._prepare("y", y, self.scale, self.kinds.network_dim)
        return self.kinds.collapse(mean + matrix_times(scale, y64)).to(y.dtype)

    def state(self) -> dict[str, Any]:
        """That of a `Normalizer`, with the `channels` d and the `kinds`."""
        return {**super().state(), "channels": self.dim, "kinds": self.kinds.state()}

    def _keeps_kinds(self) -> bool:
        d = self.kinds.network_dim
        fixed = torch.tensor([seen not in self.kinds.plain_seen for seen in range(d)])
        eye = torch.eye(d, dtype=torch.float64)
        kept = bool((self.mean[..., fixed] == 0).all())
        kept = kept and bool((self.scale[..., fixed, :] == eye[fixed]).all())
        return kept and bool((self.scale[..., :, fixed] == eye[:, fixed]).all())


def read_normalizer(state: Any) -> Normalizer:
    """The inverse of `state`, of either class.

    Raises:
        ValueError, TypeError: keys that are missing or unexpected, what is no number, kinds that
            don't fit.
    """
    if not isinstance(state, dict) or not {"channels", "kinds"} & set(state):
        return Normalizer.from_state(state)
    rest = dict(state)
    dim, kinds = rest.pop("channels", None), rest.pop("kinds", None)
    if not is_count(dim) or dim > _MOST_CHANNELS:
        raise ValueError(f"expected channels as a whole number >= 1, got {brief(dim)}")
    # No more names than channels, each a list of lists.
    if not isinstance(kinds, dict) or not kinds or not all(map(_is_groups, kinds.values())):
        raise ValueError(f"expected kinds as lists of channels, got {brief(kinds)}")
    plain = Normalizer.from_state(rest)
    found = ChannelKinds(dim, kinds)
    return KindNormalizer(found, plain.mean, plain.scale, needs_float64=plain.needs_float64)


def _is_groups(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(group, list) for group in value)
