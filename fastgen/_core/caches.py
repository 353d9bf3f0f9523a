"""Cached weights: what some networks compute once in eval mode and keep, until they are told their
mode.

The layers of escnn and of symm-learning are of this kind: their `train` is their own, and throws
away or computes the dense weights. A student is trained in eval mode (without dropout), where such
a layer would go on with the weights before the update, or with a graph that is gone.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .modules import frozen

__all__ = ["renew_before_calls", "renew_caches", "tell_mode"]


def renew_before_calls(network: nn.Module) -> None:
    """From now on `network` computes anew, before each call, whatever it would have kept from the
    last one. A network without modules of this kind is left as it is."""
    hooks = network._forward_pre_hooks.values()
    if any(_parts(network)) and _before_call not in hooks:
        network.register_forward_pre_hook(_before_call)


def renew_caches(network: nn.Module) -> None:
    """Have a network whose weights were changed forget what it computed of them; what it computes
    at once is a number without a graph."""
    with frozen(network):
        tell_mode(network)


def _before_call(network: nn.Module, inputs: object) -> None:
    tell_mode(network)


def tell_mode(network: nn.Module) -> None:
    """Tell each module that has a `train` of its own, and is in eval mode, that it is; the modes of
    all submodules stay what they are."""
    for part in _parts(network):
        if part.training:
            continue
        training = [submodule for submodule in part.modules() if submodule.training]
        # Some do nothing when they are in eval mode already.
        part.train(True)
        part.train(False)
        for submodule in training:
            submodule.training = True


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules of a network whose class has a `train` of its own."""
    if type(module).train is not nn.Module.train:
        yield module
        return
    for child in module.children():
        yield from _parts(child)
