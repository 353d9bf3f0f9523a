"""A saved teacher: a network and what its folder says of its training; what all readers of such
folders share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._core.json_files import read_json
from .._core.messages import brief
from .._core.tensor_files import read_safetensors
from ..data.formats.parts import check_part
from .weights import fill_network

__all__ = ["CONFIG", "SavedTeacher", "built_within", "fill_from", "tensors_of"]

CONFIG = "config.json"
_AGAIN = "copy the folder anew"
# So many numbers may be built in any case, so that it is said which of them don't fit.
_NEXT_TO_NOTHING = 1 << 20


@dataclasses.dataclass(frozen=True)
class SavedTeacher:
    """What a folder of another library holds.

    Attributes:
        network: with its weights, as that library calls it.
        keywords: arguments of `KeywordNetwork`; None for a network called `net(x_t, t, cond)`.
        declaration: arguments of `as_rectified_flow`; None where the folder doesn't say how the
            network was trained.
        statistics: the file that says how the library normalises data for this network; None where
            there is none. It is named, and not applied.
    """

    network: nn.Module
    keywords: Mapping[str, Any] | None
    declaration: Mapping[str, Any] | None
    statistics: Path | None = None


def tensors_of(folder: Path, stem: str, save_again: str) -> dict[str, Tensor]:
    """The tensors of one network: `<stem>.safetensors`, the shards that
    `<stem>.safetensors.index.json` lists, or the only variant `<stem>.<variant>.safetensors`.

    Args:
        folder: where they lie.
        stem: of the files' names.
        save_again: how to save the network so that it can be read, for messages.

    Raises:
        ValueError: no such file, pickled weights only, several variants, a shard that is missing or
            lies elsewhere, a file that can't be read.
    """
    tensors: dict[str, Tensor] = {}
    for file in _files(folder, stem, save_again):
        check_part(file, _AGAIN)
        tensors.update(read_safetensors(file))
    return tensors


def _files(folder: Path, stem: str, save_again: str) -> list[Path]:
    """The files that hold one network's tensors."""
    whole = folder / f"{stem}.safetensors"
    if whole.exists():
        return [whole]
    index = folder / f"{stem}.safetensors.index.json"
    if index.exists():
        return _shards(index)
    variants = sorted(folder.glob(f"{stem}.*.safetensors"))
    if len(variants) == 1:
        return variants
    if variants:
        names = ", ".join(file.name for file in variants)
        raise ValueError(
            f"{folder}: expected one file of weights, got {names}; keep the one that is to be "
            "distilled"
        )
    pickled = sorted(
        file.name for kind in ("bin", "pt", "ckpt") for file in folder.glob(f"*.{kind}")
    )
    if pickled:
        raise ValueError(
            f"{folder}: expected {whole.name}, got {', '.join(pickled[:3])}, which is pickled and "
            f"could run code; save it anew once: {save_again}"
        )
    raise ValueError(f"{folder}: expected {whole.name}, got no weights there; {_AGAIN}")


def _shards(index: Path) -> list[Path]:
    """The files that an index names, all beside it."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index}: expected weight_map, names of files, got {brief(names)}")
    files = set(names.values())
    for name in files:
        plain = isinstance(name, str) and Path(name).name == name
        if not plain or not name.endswith(".safetensors"):
            raise ValueError(
                f"{index}: expected names of .safetensors files beside it, got {brief(name)}"
            )
    return [index.parent / name for name in sorted(files)]


def built_within(
    build: Callable[[], nn.Module], tensors: Mapping[str, Tensor], folder: Path
) -> nn.Module:
    """What `build` makes, once it is known to take no more memory than the tensors, or next to
    none: it is built without numbers first.

    Raises:
        ValueError: it would take more.
    """
    with torch.device("meta"):
        needed = sum(value.numel() for value in build().parameters())
    held = sum(value.numel() for value in tensors.values())
    if needed > max(held, _NEXT_TO_NOTHING):
        raise ValueError(
            f"{folder / CONFIG}: expected a network of the {held} numbers in {folder}, got one of "
            f"{needed}; {CONFIG} is of another network; {_AGAIN}"
        )
    return build()


def fill_from(network: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> nn.Module:
    """`network` with these tensors, in eval mode.

    Raises:
        ValueError: names or shapes that differ, numbers that aren't finite.
    """
    remedy = f"{CONFIG} is of another network; {_AGAIN}"
    with torch.no_grad():
        fill_network(network, tensors, folder, remedy)
    return network.eval()
