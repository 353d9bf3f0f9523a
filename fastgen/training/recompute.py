"""Recomputed blocks (gradient checkpointing): their activations are computed a second time in the
backward instead of being kept.

References:
    Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, arXiv:1604.06174.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .._core.caches import tell_mode

__all__ = ["keep_blocks", "recompute_blocks", "recomputed"]


class Recomputed:
    """Mark of a block whose forward runs again in the backward."""


def recompute_blocks(network: nn.Module) -> nn.Module:
    """Have the blocks of `network` keep nothing but their inputs; returns it, changed in place.

    Its blocks are the entries of its outermost `nn.ModuleList`s. Names of weights stay what they
    are, and so do results, dropout included: the second forward has the random state, the modes and
    the frozen weights of the first.

    Raises:
        ValueError: `network` has no such blocks.
    """
    blocks = list(_blocks(network))
    if not blocks:
        raise ValueError(
            "expected a network with blocks in an nn.ModuleList for train.gradient_checkpointing, "
            f"got {type(network).__name__}; set it to false"
        )
    for block in blocks:
        if not isinstance(block, Recomputed):
            block.__class__ = _recomputing(type(block))
    return network


def keep_blocks(network: nn.Module) -> nn.Module:
    """Have the blocks keep their activations again; returns `network`, changed in place."""
    for block in recomputed(network):
        block.__class__ = type(block).plain  # pyright: ignore[reportAttributeAccessIssue]
    return network


def recomputed(network: nn.Module) -> list[nn.Module]:
    """The blocks of `network` that are recomputed, each named once."""
    found: dict[nn.Module, None] = {}
    for module in network.modules():
        if isinstance(module, Recomputed):
            found[module] = None
        for other in _unregistered(module):
            found |= dict.fromkeys(recomputed(other))
    return list(found)


def _unregistered(module: nn.Module) -> tuple[nn.Module, ...]:
    """Networks that a module calls without owning their weights: a fake score of low rank calls the
    teacher's."""
    return getattr(module, "unregistered", ())


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in (*module.children(), *_unregistered(module)):
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            yield child  # and nothing inside it, which would be computed a third time
        else:
            yield from _blocks(child)


@functools.cache
def _recomputing(plain: type[nn.Module]) -> type[nn.Module]:
    """The class of a recomputed block: a subclass of its own, `plain`.

    A wrapper around the block would change the names of weights, and a patched method would still
    be that of the original in a copy of the block.
    """

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain.forward(self, *args, **kwargs)
        modes = [(module, module.training) for module in self.modules()]
        flags = [(parameter, parameter.requires_grad) for parameter in self.parameters()]

        def again(*args: Any, **kwargs: Any) -> Any:
            with _as_then(modes, flags):
                tell_mode(self)  # no cached weights: the second time they would be there already
                return plain.forward(self, *args, **kwargs)

        return checkpoint(again, *args, use_reentrant=False, **kwargs)

    members = {"forward": forward, "plain": plain, "__module__": plain.__module__}
    return type(plain.__name__, (Recomputed, plain), members)


@contextmanager
def _as_then(
    modes: list[tuple[nn.Module, bool]], flags: list[tuple[nn.Parameter, bool]]
) -> Iterator[None]:
    """Inside, modules are in these modes and parameters as frozen as they were in the forward."""
    modes_now = [(module, module.training) for module, _ in modes]
    flags_now = [(parameter, parameter.requires_grad) for parameter, _ in flags]
    try:
        _set(modes, flags)
        yield
    finally:
        _set(modes_now, flags_now)


def _set(modes: list[tuple[nn.Module, bool]], flags: list[tuple[nn.Parameter, bool]]) -> None:
    for module, training in modes:
        module.training = training
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
