"""Modules: states that last for a block (frozen parameters, eval mode), and what launchers put
around one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from .processes import settle

__all__ = ["as_built", "evaluating", "frozen", "inside_launcher"]


@contextlib.contextmanager
def frozen(*modules: nn.Module | None) -> Iterator[None]:
    """Inside, no parameter of `modules` collects gradients. They still flow through to the inputs:
    unlike under `torch.no_grad`, a loss reaches what *feeds* the network.

    On exit each parameter gets its own flag back, also after an error. `None` entries are skipped.
    """
    settle(*modules)
    flags = {
        parameter: parameter.requires_grad
        for module in modules
        if module is not None
        for parameter in module.parameters()
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
    """Inside, `modules` are in eval mode (no dropout). On exit every submodule gets its own mode
    back."""
    # Into the dicts themselves, since a module's own setattr first looks through parameters and
    # buffers. Over all submodules, several times an update, that would be a twentieth of the update
    # of a small network.
    training = [
        submodule.__dict__
        for module in modules
        if module is not None
        for submodule in module.modules()
        if submodule.training
    ]
    try:
        for attributes in training:
            attributes["training"] = False
        yield
    finally:
        for attributes in training:
            attributes["training"] = True


def inside_launcher(module: nn.Module) -> nn.Module | None:
    """The module that DistributedDataParallel, DataParallel or torch.compile was put around; None
    for a module that is none of these."""
    if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return module.module
    compiled = getattr(module, "_orig_mod", None)  # where torch.compile keeps it
    return compiled if isinstance(compiled, nn.Module) else None


def as_built(module: nn.Module) -> nn.Module:
    """The module as it was built, inside what accelerate and torch.compile have put around it; the
    module itself if they have put nothing.

    Wrappers of this package stay on: they are part of what was built. See
    :func:`fastgen.networks.unwrap` for the bare network.
    """
    while (inner := inside_launcher(module)) is not None:
        module = inner
    return module
