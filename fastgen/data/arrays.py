"""Arrays of a data file by name: those that are read. Any other is refused: what means padding, or
which rows belong together, must not be passed over without a word."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .._core.messages import brief, first_names

__all__ = ["check_arrays", "episodes_of"]

# Parts of names that mean padding, and of names that say which rows belong together.
_PADDING = ("mask", "pad", "length", "valid")
_TOGETHER = ("episode", "traj", "group", "seq")
_PADDED = (
    "of trajectories X with Z call it mask (N, T_x), True = real, or lengths (N,), and of Z "
    "cond_mask or cond_lengths; of other data save rows of one length without padding"
)
# So many names are spoken of one by one.
_MOST_ADVICE = 3


def check_arrays(
    tensors: Mapping[str, Tensor], path: str | Path, known: Collection[str], expected: str
) -> None:
    """Refuse arrays that nothing reads.

    Args:
        tensors: the arrays by name.
        path: of the file, for the message.
        known: names of the arrays that are read.
        expected: what should be there, for the message.

    Raises:
        ValueError: the names of the others, and what to do about them.
    """
    unknown = sorted(set(tensors) - set(known))
    if not unknown:
        return
    advice = "; ".join(_advice(name, known) for name in unknown[:_MOST_ADVICE])
    if len(unknown) > _MOST_ADVICE:
        advice += f"; nor is there a reader of {first_names(unknown[_MOST_ADVICE:])}"
    raise ValueError(f"expected {expected} in {path}, got {brief(sorted(tensors))}: {advice}")


def _advice(name: str, known: Collection[str]) -> str:
    """What to do about an array of this name."""
    if name.upper() in known:
        return f"call {brief(name)} {name.upper()}, if it is that"
    if any(part in name.lower() for part in _PADDING):
        return f"{brief(name)} seems to mark padding, which would be learned as data; {_PADDED}"
    if "episode" in known and any(part in name.lower() for part in _TOGETHER):
        return (
            f"call it episode if {brief(name)} is the number of each row's episode, none of which "
            "is then split between training and test; else leave it out"
        )
    return f"nothing reads {brief(name)}; leave it out of the file"


def episodes_of(tensors: Mapping[str, Tensor], rows: int) -> Tensor:
    """For each row the number of its episode: `episode` of the file, or a number of its own.

    Raises:
        ValueError: `episode` isn't one whole number for each row.
    """
    if "episode" not in tensors:
        return torch.arange(rows)
    episode = tensors["episode"]
    whole = not (episode.is_floating_point() or episode.is_complex() or episode.dtype == torch.bool)
    if not whole or tuple(episode.shape) != (rows,):
        raise ValueError(
            f"expected episode as one whole number for each of the {rows} rows, ({rows},), got "
            f"{episode.dtype} {tuple(episode.shape)}"
        )
    return episode.long()
