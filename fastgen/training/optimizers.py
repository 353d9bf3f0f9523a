"""Optimisers: AdamW for a network, by the groups of parameters that it offers, if it does."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from .._core.messages import brief
from ..config.training import OptimizerConfig
from ..networks import unwrap

__all__ = ["adam"]


def adam(network: nn.Module, cfg: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW in one kernel.

    Integer parameters, such as tables of indices, can't be trained and are left out. Where the
    network's own `get_optim_groups(weight_decay)` fails, or leaves out a parameter that is trained,
    all parameters decay alike, which a warning says.
    """
    return torch.optim.AdamW(
        _groups(network, cfg.weight_decay),
        lr=cfg.lr,
        betas=cfg.betas,
        weight_decay=cfg.weight_decay,
        fused=True,
    )


def _groups(network: nn.Module, weight_decay: float) -> list[Any]:
    """Groups of parameters, as AdamW takes them."""
    everything: list[Any] = [p for p in network.parameters() if _can_be_trained(p)]
    offered = getattr(network, "get_optim_groups", None)
    if offered is None:
        return everything
    try:
        groups = [{**group, "params": list(group["params"])} for group in offered(weight_decay)]
    # It is the user's code.
    except Exception as error:
        _warn(network, f"raises {type(error).__name__}: {brief(error)}")
        return everything
    ids = [id(p) for group in groups for p in group["params"]]
    own = {id(p) for p in everything}
    missing = [name for name, p in network.named_parameters() if _is_left_out(p, ids)]
    if missing:
        _warn(network, f"leaves out {len(missing)} parameter(s) that are trained: {missing[0]}")
        return everything
    if len(set(ids)) < len(ids) or not set(ids) <= own:
        _warn(network, "names a parameter twice, or one that the network doesn't have")
        return everything
    return groups


def _can_be_trained(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point()


def _is_left_out(parameter: nn.Parameter, ids: list[int]) -> bool:
    return parameter.requires_grad and _can_be_trained(parameter) and id(parameter) not in ids


def _warn(network: nn.Module, what: str) -> None:
    name = type(unwrap(network)).__name__
    warnings.warn(
        f"get_optim_groups of {name} {what}; all of its parameters get the same weight decay "
        "instead",
        stacklevel=2,
    )
