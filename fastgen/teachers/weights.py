"""Weights: tensors of a file are loaded into a network that has their names and shapes, all of them
or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._core.messages import first_names
from .._core.modules import load_state, state_of
from .._core.tensor_files import read_safetensors

__all__ = ["fill_network", "load_weights"]

_OTHER_SIZES = (
    "give the factory the arguments that the network was trained with (teacher.arguments)"
)


def load_weights(network: nn.Module, path: str | Path, *, key: str = "teacher.weights") -> None:
    """Load a `.safetensors` file into `network`: all tensors of the file into all of the network.
    Names of the network that share one tensor need one entry. `key` names the file in errors.

    Raises:
        ValueError: a file that is missing, of another kind, not whole or not finite; names or
            shapes that differ. The message holds the first ten, and what would mend it.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"expected {key} as a .safetensors file, got {path.name}; convert it once: "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), "
            "'weights.safetensors')"
        )
    if not path.exists():
        raise ValueError(f"expected {key} at {path}, got nothing there")
    fill_network(network, read_safetensors(path), path)


def fill_network(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    where: str | Path,
    remedy: str = _OTHER_SIZES,
) -> None:
    """Load all of `tensors` into all of `network`.

    Args:
        network: whose numbers are replaced.
        tensors: by name.
        where: they come from, for messages.
        remedy: what to do about shapes that differ.

    Raises:
        ValueError: as `load_weights`; the network is as it was.
    """
    own = state_of(network)
    if any(value.is_meta for value in own.values()):
        raise ValueError(
            "expected a network with numbers, got one on the meta device; let the factory build "
            "it on the CPU"
        )
    _check_fit(where, own, tensors, remedy)
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{where}: expected finite weights, got NaN or infinity in {name}")
    load_state(network, dict(tensors), strict=False)


def _check_fit(
    where: str | Path, own: dict[str, Tensor], tensors: Mapping[str, Tensor], remedy: str
) -> None:
    """ValueError unless names and shapes of the file's tensors are those of the network's own."""
    tied = {_place(own[name]) for name in own.keys() & tensors.keys() if own[name].numel()}
    missing = [name for name in own if name not in tensors and _place(own[name]) not in tied]
    unexpected = [name for name in tensors if name not in own]
    if missing or unexpected:
        said = []
        if missing:
            said.append(f"{len(missing)} missing: {first_names(missing)}")
        if unexpected:
            said.append(f"{len(unexpected)} unexpected: {first_names(unexpected)}")
        raise ValueError(
            f"{where} doesn't fit the network: {'; '.join(said)}; {_remedy(set(own), set(tensors))}"
        )
    wrong = []
    for name, value in tensors.items():
        wanted = tuple(own[name].shape)
        if tuple(value.shape) != wanted:
            wrong.append(f"{name} {tuple(value.shape)} for {wanted}")
    if wrong:
        raise ValueError(
            f"{where} doesn't fit the network: {len(wrong)} of another shape: "
            f"{first_names(wrong)}; {remedy}"
        )


def _place(value: Tensor) -> tuple[Any, ...]:
    """The same for two names of one tensor, different for two tensors."""
    return value.device, value.data_ptr(), value.shape, value.stride()


def _remedy(own: set[str], found: set[str]) -> str:
    """What to do so that the names `found` in a file become the network's `own`."""
    for prefix in sorted(_prefixes(found)):
        inside = {name.removeprefix(prefix) for name in found if name.startswith(prefix)}
        if own <= inside or (inside < own and len(inside) == len(found)):
            return f"take only the names that begin with {prefix!r}, without it"
    for prefix in sorted(_prefixes(own)):
        if {prefix + name for name in found} == own:
            return f"put {prefix!r} before every name, or let the factory return the network inside"
    return "are they of this network? save its own state_dict()"


def _prefixes(names: set[str]) -> set[str]:
    """Every beginning of a name that ends with a dot."""
    return {name[: i + 1] for name in names for i, letter in enumerate(name) if letter == "."}
