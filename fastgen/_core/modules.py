"""Modules: states that last for a block (frozen parameters, eval mode), what launchers put around
one at any depth, and the tensors of one by the names that it has without them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .precision import computing_dtype
from .processes import settle

__all__ = [
    "as_built",
    "bare_names",
    "evaluating",
    "fit_buffers",
    "frozen",
    "inside_launcher",
    "load_state",
    "state_of",
]


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


# ---- Launchers -----------------------------------------------------------------------------------


_LAUNCHERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)


def inside_launcher(module: nn.Module) -> nn.Module | None:
    """The module that DistributedDataParallel, DataParallel, torch.compile or torch's AveragedModel
    was put around; None for a module that is none of these."""
    holder = _holder(module)
    return None if holder is None else module._modules[holder]


def _holder(module: nn.Module) -> str | None:
    """The name by which a launcher holds its module; None for a module that is no launcher."""
    # The names first: they are looked up in no time, and each call of a network comes by here.
    if "module" in module._modules and isinstance(module, _LAUNCHERS):
        return "module"
    # Where torch.compile keeps it.
    return "_orig_mod" if isinstance(module._modules.get("_orig_mod"), nn.Module) else None


def as_built(module: nn.Module) -> nn.Module:
    """The module as it was built, inside what accelerate and torch.compile have put around it; the
    module itself if they have put nothing.

    Wrappers of this package stay on: they are part of what was built. See
    :func:`fastgen.networks.unwrap` for the bare network.
    """
    while (inner := inside_launcher(module)) is not None:
        module = inner
    return module


# ---- Tensors by name -----------------------------------------------------------------------------


def bare_names(module: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """{name: the name it has without launchers} of tensors of `module`, at whatever depth a
    launcher stands; what belongs to a launcher itself is left out."""
    holders = {
        path: _holder(part)
        for path, part in module.named_modules(remove_duplicate=False)
        if _holder(part) is not None
    }
    found = {}
    for name in names:
        bare = _without_holders(name, holders) if holders else name
        if bare is not None:
            found[name] = bare
    return found


def _without_holders(name: str, holders: Mapping[str, str | None]) -> str | None:
    kept = []
    path = ""
    for part in name.split("."):
        if path not in holders:
            kept.append(part)
        elif part != holders[path]:
            return None
        path = f"{path}.{part}" if path else part
    return ".".join(kept)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state dict, named as without launchers.

    Extra state (`get_extra_state`) that is no tensor is left out: training leaves it as it is, and
    exports keep it beside the tensors.
    """
    state = {name: x for name, x in module.state_dict().items() if isinstance(x, Tensor)}
    return {bare: state[name] for name, bare in bare_names(module, state).items()}


def fit_buffers(module: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give buffers that grew while the network was called the size that they have in a state.

    Such a buffer is longer there along one axis, or not made yet in `module`.

    Args:
        shapes: {name without launchers: shape} of the state.
    """
    places: dict[str, tuple[nn.Module, str]] = {}
    for path, part in module.named_modules():
        for leaf in part._buffers:
            if leaf not in part._non_persistent_buffers_set:
                places[f"{path}.{leaf}" if path else leaf] = part, leaf
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    dtype = computing_dtype(module, torch.float32)
    like = torch.empty(0, dtype=dtype, device=device)
    for name, bare in bare_names(module, places).items():
        part, leaf = places[name]
        buffer = part._buffers[leaf]
        shape = shapes.get(bare)
        if shape is not None and (buffer is None or _grew(buffer.shape, shape)):
            part._buffers[leaf] = (like if buffer is None else buffer).new_zeros(tuple(shape))


def _grew(before: Sequence[int], after: Sequence[int]) -> bool:
    if len(before) != len(after):
        return False
    longer = [b - a for a, b in zip(before, after, strict=True) if a != b]
    return len(longer) == 1 and longer[0] > 0


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Inverse of `state_of`. Extra state that is no tensor stays what it is.

    Raises:
        RuntimeError: names or shapes that differ; see `nn.Module.load_state_dict`.
    """
    fit_buffers(module, {name: value.shape for name, value in state.items()})
    own = module.state_dict()
    bare = bare_names(module, own)
    names = {bare[name]: name for name in bare}
    rest = {
        name: value
        for name, value in own.items()
        if not isinstance(value, Tensor) or name not in bare
    }
    named = {names.get(name, name): value for name, value in state.items()}
    module.load_state_dict({**rest, **named}, strict=strict)
