"""Descriptions: the conversions around a network as JSON, and the network in them again.

A description is `{"rectified_flow": arguments of as_rectified_flow or None, "keywords": names of
KeywordNetwork or None}`. Exports keep it beside the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .._core.messages import brief
from .._core.modules import as_built
from .conversion import RectifiedFlow, as_rectified_flow
from .keywords import KeywordNetwork
from .prefixed import PrefixedNetwork

__all__ = ["describe_network", "wrap_network"]


def describe_network(network: nn.Module) -> tuple[nn.Module, dict[str, Any] | None]:
    """The network inside its conversions and what launchers put around each, and the description of
    the conversions; None if it has none.

    Returns:
        `(inner, description)`, see the head of this module.
    """
    flow = None
    names = None
    network = as_built(network)
    if isinstance(network, PrefixedNetwork):
        # Not a part of it: whoever gives tokens puts it around the network.
        network = as_built(network.network)
    if isinstance(network, RectifiedFlow):
        flow = network.describe()
        network = as_built(network.network)
    if isinstance(network, KeywordNetwork):
        names = dict(network.names)
        network = as_built(network.network)
    if flow is None and names is None:
        return network, None
    return network, {"rectified_flow": flow, "keywords": names}


def wrap_network(network: nn.Module, description: Mapping[str, Any] | None) -> nn.Module:
    """The network in the conversions of a description: the inverse of `describe_network`. One that
    is converted already stays as it is, if that agrees with the description.

    Raises:
        ValueError: a description that isn't one, a path that only its author's code knows, a
            network that is converted otherwise.
    """
    own = describe_network(network)[1]
    if own is not None:
        if own != description:
            raise ValueError(
                f"expected a network converted by {brief(description)}, got one by {brief(own)}; "
                "give the bare network"
            )
        return network
    if description is None:
        return network
    if set(description) != {"rectified_flow", "keywords"}:
        raise ValueError(f"expected rectified_flow and keywords, got {sorted(description)}")
    flow = description["rectified_flow"]
    names = description["keywords"]
    try:
        if names is not None:
            network = KeywordNetwork(network, **names)
        if flow is None:
            return network
        if flow["path"].get("name") == "custom":
            kind = flow["path"].get("class")
            raise ValueError(
                f"expected as_rectified_flow(network, path={kind}(), ...), got the bare network"
            )
        return as_rectified_flow(network, **flow)
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"expected the arguments of as_rectified_flow and KeywordNetwork, got {error}"
        ) from error
