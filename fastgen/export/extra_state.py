"""Extra state: what a module keeps beside its tensors (`get_extra_state`), as JSON in config.json.

Nothing of it is pickled. What JSON would change on the way there and back is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .._core.messages import brief
from .._core.modules import bare_names

__all__ = ["extra_state_of", "load_extra_state"]


def extra_state_of(network: nn.Module) -> dict[str, Any]:
    """The extra state of a network that is no tensor, named as without launchers.

    Raises:
        ValueError: extra state that JSON can't hold as it is.
    """
    state = {name: x for name, x in network.state_dict().items() if not isinstance(x, Tensor)}
    names = bare_names(network, state)
    for name, bare in names.items():
        if not _is_held(state[name]):
            raise ValueError(
                f"expected extra state that JSON can hold in {bare}, got {brief(state[name])}; let "
                "get_extra_state answer a Tensor, or dicts and lists of text, bools and finite "
                "numbers"
            )
    return {bare: state[name] for name, bare in names.items()}


def _is_held(value: Any) -> bool:
    """Whether JSON holds `value` without a change: it makes lists of tuples and text of keys."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_held(entry) for key, entry in value.items())
    if isinstance(value, list):
        return all(map(_is_held, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or type(value) in (bool, int, str)


def load_extra_state(network: nn.Module, extra: Any, where: str) -> None:
    """Inverse of `extra_state_of`.

    Args:
        network: as it was when its extra state was written, but for its state.
        extra: {name: value}, from a file.
        where: the file, for people.

    Raises:
        ValueError: a network without this extra state, or one that refuses it.
    """
    state = network.state_dict()
    own = {bare: name for name, bare in bare_names(network, state).items()}
    if not isinstance(extra, Mapping):
        raise ValueError(f"{where}: expected extra_state as an object, got {brief(extra)}")
    for bare, value in extra.items():
        path = own.get(bare, "").rpartition(".")
        if path[-1] != "_extra_state" or isinstance(state[own[bare]], Tensor):
            raise ValueError(
                f"{where}: expected a network with extra state {brief(bare)}, got "
                f"{type(network).__name__} without; give the class that was exported"
            )
        try:
            network.get_submodule(path[0]).set_extra_state(value)
        # It is the user's code, which may raise anything.
        except Exception as error:
            kind = type(error).__name__
            raise ValueError(
                f"{where}: extra_state: {bare} was refused with {kind}: {brief(error)}"
            ) from error
