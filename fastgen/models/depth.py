"""Depth: a network of this package with more or fewer layers than it was made with.

Its layers are residual: x + f_1(x) + f_2(...) + ... A layer whose branches f end in a map that is
zero hands x on as it is. So a network grows without becoming another function: its own layers are
spread among new ones of this kind, which training then puts to use.

A network can change its depth if its class names the `nn.ModuleList` of its layers by
`layer_list`, its `config` counts them as `num_layers`, and each layer answers `last_maps()`: the
maps to set to zero, so that a fresh layer hands x on.

References:
    Chen et al., Net2Net, 2016, arXiv:1511.05641 (growth that preserves the function).
    Bachlechner et al., ReZero is All You Need, 2020, arXiv:2003.04887 (branches that begin at 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .._core.checks import check_count
from .._core.copies import copied
from .parameters import INIT_SCHEMES, reset_parameters_

__all__ = ["change_layers", "layers_of", "spread_places", "with_layers"]


def with_layers(
    network: nn.Module, layers: int, generator: torch.Generator | None = None
) -> nn.Module:
    """A copy of a network with another number of layers.

    A deeper copy is the same function at the start: its layers at `spread_places` are those of
    `network`, and the others hand on what they are given. These are drawn as in a new network, but
    for the last map of each branch, which is zero. A shallower copy has the layers at
    `spread_places` of `network`, and is another function.

    Args:
        network: of `fastgen.models`, without anything around it.
        layers: of the copy, >= 1.
        generator: of the new layers; None: torch's global one.

    Raises:
        ValueError: a number below 1, or a network that isn't of this package or has no layers.
    """
    network = copied(network)
    change_layers(network, layers, generator)
    return network


def spread_places(few: int, many: int) -> list[int]:
    """Places of `few` layers among `many`, evenly spread, the first and the last among them:

        place_i = floor(i (many - 1) / (few - 1)),  i = 0, ..., few - 1;

    place 0 for one alone. Three among six are at 0, 2, 5.
    """
    return [i * (many - 1) // max(few - 1, 1) for i in range(few)]


def layers_of(network: nn.Module) -> int | None:
    """The number of layers of a network whose depth can be changed; None of any other."""
    config = getattr(network, "config", None)
    if getattr(network, "layer_list", None) is None or not isinstance(config, Mapping):
        return None
    return len(_list_of(network))


def change_layers(
    network: nn.Module, layers: int, generator: torch.Generator | None = None
) -> None:
    """As `with_layers`, in place."""
    check_count("layers", layers)
    before = layers_of(network)
    if before is None:
        raise ValueError(
            f"expected a network of fastgen.models with layers, got {type(network).__name__}"
        )
    old = list(_list_of(network))
    if layers <= before:
        kept = [old[place] for place in spread_places(layers, before)]
    else:
        kept = _grown(old, layers, network, generator)
    known: Any = network
    changed = nn.ModuleList(kept)
    changed.training = _list_of(network).training
    setattr(network, known.layer_list, changed)
    known.config = {**known.config, "num_layers": layers}


def _list_of(network: nn.Module) -> nn.ModuleList:
    known: Any = network
    return getattr(network, known.layer_list)


def _grown(
    old: list[nn.Module], layers: int, network: nn.Module, generator: torch.Generator | None
) -> list[nn.Module]:
    """The old layers at their places, and new ones before and between them."""
    known: Any = network
    scheme = known.config.get("init_scheme", INIT_SCHEMES[0])
    at = dict(zip(spread_places(len(old), layers), old, strict=True))
    found = []
    for place in range(layers):
        layer = at.get(place)
        found.append(_handing_on(old[0], scheme, generator) if layer is None else layer)
    return found


def _handing_on(like: nn.Module, scheme: str, generator: torch.Generator | None) -> nn.Module:
    """A new layer of the kind of `like`, each branch of which ends in a map that is zero."""
    device = next(like.parameters()).device
    # On the CPU, so that every device draws the same numbers.
    layer: Any = copied(like).cpu().requires_grad_(True)
    place = torch.device("cpu") if generator is None else generator.device
    seed = torch.randint(2**62, (), generator=generator, device=place)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(int(seed))
        reset_parameters_(layer, scheme)
        for last in layer.last_maps():
            for parameter in last.parameters(recurse=False):
                parameter.zero_()
    return layer.to(device)
