"""Channels that a config calls angles or rotations, by their numbers or by the names that a data
set gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._core.messages import brief, first_names
from ..channel_kinds import WIDTHS, ChannelKinds

__all__ = ["Channels", "Names", "read_channels"]

# Of the channels of X and of Z, in their order; None: they have none.
Names = tuple[Sequence[str] | None, Sequence[str] | None]
# A channel by number or name.
_Channel = int | str


@dataclass(frozen=True)
class Channels:
    """Which channels of X, or of Z, are angles or rotations.

    Attributes:
        key: of the config, for messages.
        groups: (kind, its channels), one for each angle or rotation.
        names: of all channels, in their order; None: they have none.
    """

    key: str
    groups: tuple[tuple[str, tuple[_Channel, ...]], ...]
    names: tuple[str, ...] | None = None

    @classmethod
    def like(cls, kinds: ChannelKinds) -> Channels:
        """Those of `kinds`."""
        groups = [(kind, group) for kind, own in kinds.kinds.items() for group in own]
        return cls("kinds", tuple(groups))

    def of(self, name: str, dim: int) -> ChannelKinds:
        """Their numbers among the `dim` channels of X or Z, called `name`.

        Raises:
            ValueError: a channel that isn't there, as `ChannelKinds`.
        """
        kinds: dict[str, list[list[int]]] = {}
        for kind, group in self.groups:
            kinds.setdefault(kind, []).append([self._number(one, dim) for one in group])
        try:
            return ChannelKinds(dim, kinds)
        except ValueError as error:
            raise ValueError(f"{self.key}, of {name}: {error}") from error

    def _number(self, channel: _Channel, dim: int) -> int:
        if not isinstance(channel, str):
            return channel
        names = self.names or ()
        if list(names).count(channel) != 1:
            known = f"those of {first_names(names, 12)}" if names else "none that have names"
            raise ValueError(
                f"expected {self.key} to name channels that are there once, got {channel!r} for "
                f"{known}; a number from 0 to {dim - 1} does as well"
            )
        return list(names).index(channel)


def read_channels(key: str, asked: Any, names: Sequence[str] | None) -> Channels | None:
    """What a config says of channels that are angles or rotations; None: nothing.

    Args:
        key: of the config, for messages.
        asked: {kind: channels}, as `fastgen.config.data.ChannelsConfig`, or None.
        names: of all channels, in their order; None: they have none.

    Raises:
        ValueError: unknown kinds, or what is no list of channels.
    """
    if asked is None:
        return None
    if not isinstance(asked, Mapping) or not set(asked) <= set(WIDTHS):
        got = first_names(sorted(map(str, asked))) if isinstance(asked, Mapping) else brief(asked)
        raise ValueError(f"expected {key} with the kinds {', '.join(WIDTHS)}, got {got}")
    groups = []
    for kind, channels in asked.items():
        for group in _groups(key, kind, channels):
            groups.append((kind, tuple(group)))
    if not groups:
        return None
    return Channels(key, tuple(groups), None if names is None else tuple(names))


def _groups(key: str, kind: str, channels: Any) -> list[list[_Channel]]:
    """The channels of each angle or rotation."""
    if channels is None:
        return []
    channels = [channels] if isinstance(channels, int | str) else list(channels)
    nested = [isinstance(one, list | tuple) for one in channels]
    if WIDTHS[kind].given == 1 and not any(nested):
        return [[one] for one in channels]
    if channels and not any(nested):
        return [channels]
    if not all(nested):
        raise ValueError(
            f"expected {key}.{kind} as channels of one rotation or a list of such, got "
            f"{brief(channels)}"
        )
    return [list(group) for group in channels]
