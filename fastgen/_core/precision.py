"""Precision: in what a network is trained, whatever its author keeps it in.

Weights are trained in no less than float32: in bfloat16 an update smaller than 2^-9 of a weight
rounds to nothing, so that the ones of a LayerNorm never move. Of a network of several dtypes each
tensor is looked at alone:

    in float32, float64, complex or integer    stays as it is
    in less (bfloat16, float16, float8)        becomes float32, which holds the same number
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "accept_any_dtype",
    "computing_dtype",
    "in_full_precision",
    "is_narrow",
    "is_uniform",
    "parameters_in",
    "trainable",
]


_COMPUTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def computing_dtype(network: nn.Module, default: torch.dtype) -> torch.dtype:
    """The dtype of a network's first parameter that torch computes in, else `default`.

    Integers are passed over, and so are quantised parameters, such as those in float8.
    """
    for parameter in parameters_in(network):
        if parameter.dtype in _COMPUTED:
            return parameter.dtype
    return default


def parameters_in(network: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of a network in the order of `network.parameters()`, where one that is shared
    comes again. The first ones are found without a walk through all modules: each call of a network
    asks for its dtype."""
    waiting: list[nn.Module | None] = [network]
    while waiting:
        module = waiting.pop()
        if module is None:
            continue
        for parameter in module._parameters.values():
            if parameter is not None:
                yield parameter
        waiting.extend(reversed(module._modules.values()))


def is_narrow(x: Tensor) -> bool:
    """Whether `x` is of floating-point numbers in less than float32."""
    return x.is_floating_point() and x.element_size() < torch.float32.itemsize


def is_uniform(network: nn.Module) -> bool:
    """Whether all floating parameters have one dtype, and no parameter or buffer is in less than
    float32."""
    dtypes = {p.dtype for p in network.parameters() if p.is_floating_point()}
    return len(dtypes) < 2 and not any(map(is_narrow, _tensors(network)))


def in_full_precision(network: nn.Module) -> nn.Module:
    """`network`, changed in place: parameters and buffers in less than float32 become float32.

    One of several dtypes then accepts any (`accept_any_dtype`), so that a forward with casts of its
    own still runs. A network in float32 or float64 stays as it is.
    """
    if is_uniform(network):
        return network
    for parameter in network.parameters():
        if is_narrow(parameter):
            parameter.data = parameter.data.float()
    widened: dict[int, Tensor] = {}  # a buffer that two modules share stays one
    for module in network.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and is_narrow(buffer):
                module._buffers[name] = widened.setdefault(id(buffer), buffer.float())
    return accept_any_dtype(network)


def accept_any_dtype(network: nn.Module) -> nn.Module:
    """`network`, whose modules that have parameters cast their floating inputs to the dtype of
    these from now on. Whatever its forward casts to, no module is called with what it can't take.
    """
    for module in network.modules():
        if _own_dtype(module) is not None:
            module.register_forward_pre_hook(_as_own_dtype, with_kwargs=True)
    return network


def trainable(network: nn.Module, like: nn.Module) -> nn.Module:
    """`network`, a copy of `like`, changed in place so that it can be trained: whole if `like` is
    wholly frozen, else what is frozen in `like` stays frozen."""
    flags = {name: parameter.requires_grad for name, parameter in like.named_parameters()}
    whole = not any(flags.values())
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(whole or flags.get(name, True))
    return network


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def _own_dtype(module: nn.Module) -> torch.dtype | None:
    """The dtype of the first floating parameter that is the module's own; None without one."""
    for parameter in module._parameters.values():
        if parameter is not None and parameter.is_floating_point():
            return parameter.dtype
    return None


def _as_own_dtype(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    dtype = _own_dtype(module)

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(dtype)
        return value

    return tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}
