"""States of a module that last for a block: frozen parameters, eval mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from .processes import settle

__all__ = ["evaluating", "frozen", "unwrap"]


@contextlib.contextmanager
def frozen(*modules: nn.Module | None) -> Iterator[None]:
    """Inside, no parameter of `modules` collects gradients, while gradients still flow through to
    their inputs.

    Unlike `torch.no_grad` this lets a loss reach what *feeds* the network. Each parameter gets its
    own flag back on exit, also after an error. `None` entries are skipped.
    """
    settle(*modules)
    flags = {
        p: p.requires_grad for module in modules if module is not None for p in module.parameters()
    }
    try:
        for parameter in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        settle(*modules)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def evaluating(*modules: nn.Module | None) -> Iterator[None]:
    """Inside, `modules` are in eval mode (no dropout); every submodule gets its own mode back on
    exit."""
    # Into the dicts themselves: a module's own setattr first looks through parameters and buffers,
    # which over all submodules, several times an update, is a twentieth of the update of a small
    # network.
    training = [
        m.__dict__
        for module in modules
        if module is not None
        for m in module.modules()
        if m.training
    ]
    try:
        for attributes in training:
            attributes["training"] = False
        yield
    finally:
        for attributes in training:
            attributes["training"] = True


def unwrap(module: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel and torch.compile wrappers; the module itself if
    there are none."""
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module
