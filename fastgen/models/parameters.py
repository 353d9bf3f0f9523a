"""Parameters of a network: how they are initialised, and which of them decay."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import check_non_negative
from .maps import LinearMap

__all__ = [
    "INIT_SCHEMES",
    "check_scheme",
    "initialise_",
    "optim_groups",
    "reset_parameters_",
]

INIT_SCHEMES = ("xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal")


def check_scheme(name: str, scheme: str) -> None:
    """Raise ValueError for an unknown initialisation scheme."""
    if scheme not in INIT_SCHEMES:
        raise ValueError(f"unknown {name} {scheme!r}, expected one of: {', '.join(INIT_SCHEMES)}")


def initialise_(weight: Tensor, scheme: str, fan_in: int, fan_out: int) -> None:
    """Fill a weight with independent values of mean zero.

    Their variance is 2 / (fan_in + fan_out) for the xavier schemes and 2 / fan_in for kaiming.

    Raises:
        ValueError: unknown scheme.
    """
    check_scheme("scheme", scheme)
    fan = fan_in + fan_out if scheme.startswith("xavier") else fan_in
    std = math.sqrt(2.0 / fan)
    with torch.no_grad():
        if scheme.endswith("uniform"):
            weight.uniform_(-math.sqrt(3.0) * std, math.sqrt(3.0) * std)
        else:
            weight.normal_(0.0, std)


def reset_parameters_(root: nn.Module, scheme: str) -> None:
    """Give every submodule of `root` a fresh initialisation.

    Linear weights are drawn by `scheme` and positions from N(0, 0.1^2); biases are zero, norms one.
    A map with an attribute `starts_as` (numbers) begins as a constant: its weight is zero, and its
    bias consists of as many equal parts as there are numbers, each filled with its number.
    """
    check_scheme("scheme", scheme)
    for module in root.modules():
        reset = getattr(module, "reset_parameters", None)
        if isinstance(module, nn.Linear):
            fan_out = module.out_features // getattr(module, "fused", 1)
            initialise_(module.weight, scheme, module.in_features, fan_out)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, LinearMap):
            module.reset_parameters(scheme)
        elif module is not root and reset is not None:
            reset()
        if getattr(module, "starts_as", None) is not None:
            _start_as_constant(module)


@torch.no_grad()
def _start_as_constant(lift: Any) -> None:
    lift.weight.zero_()
    parts = lift.bias.view(len(lift.starts_as), -1)
    parts.copy_(parts.new_tensor(lift.starts_as)[:, None].expand_as(parts))


def optim_groups(root: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two optimiser groups that hold every parameter of `root` exactly once.

    Weights of linear maps decay; biases, norms and tables of positions don't.

    Raises:
        ValueError: `weight_decay` is negative or not a number.
    """
    check_non_negative("weight_decay", weight_decay)
    decay: dict[int, Tensor] = {}
    for module in root.modules():
        if isinstance(module, (nn.Linear, LinearMap)):
            decay[id(module.weight)] = module.weight
    rest = [parameter for parameter in root.parameters() if id(parameter) not in decay]
    return [
        {"params": list(decay.values()), "weight_decay": float(weight_decay)},
        {"params": rest, "weight_decay": 0.0},
    ]
