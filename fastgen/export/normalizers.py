"""The normalizers in a student's config.json, and the channels that a network sees by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .._core.messages import brief
from ..channel_kinds import read_normalizer
from ..normalizer import Normalizer

__all__ = ["Normalizers", "more_channels", "read_normalizers"]


class Normalizers(NamedTuple):
    """Of X and of Z; None: there is none."""

    x: Normalizer | None
    z: Normalizer | None

    def check(self, horizon: Any, cond_horizon: Any, where: str) -> None:
        """ValueError unless they are of so many time steps and channels, [T, d] where they are
        known."""
        shapes = (("x_normalizer", self.x, (horizon[0], horizon[-1])),)
        shapes += (("z_normalizer", self.z, tuple(cond_horizon or (None, None))),)
        for key, normalizer, (steps, dim) in shapes:
            if normalizer is None:
                continue
            if dim is not None and normalizer.dim != dim:
                raise ValueError(f"{where}: expected {key} of {dim} channels, got {normalizer.dim}")
            if steps is not None and normalizer.steps not in (None, steps):
                raise ValueError(
                    f"{where}: expected {key} of {steps} steps, got {normalizer.steps}"
                )


def read_normalizers(config: Mapping[str, Any], where: str) -> Normalizers:
    """Those of a config with both keys.

    Args:
        where: begins the messages.

    Raises:
        ValueError: what is no state of one.
    """
    found = []
    for key in ("x_normalizer", "z_normalizer"):
        try:
            found.append(None if config[key] is None else read_normalizer(config[key]))
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{where}: {key}: {brief(error)}") from error
    return Normalizers(*found)


def more_channels(normalizer: Normalizer | None) -> int:
    """How many channels more a network sees than there are in original units, where some are angles
    or rotations."""
    return 0 if normalizer is None else normalizer.network_dim - normalizer.dim
