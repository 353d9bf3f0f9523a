"""The equivariant network on random inputs: tokens, times, a little training and its rounding."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from support.exact import normal
from support.rounding import MULTIPLE, sway

__all__ = [
    "EXACT",
    "GROUPS",
    "SMALL_GROUPS",
    "VARIANTS",
    "at_times",
    "inputs",
    "rounding",
    "tokens",
    "trained",
]

SMALL_GROUPS = ["C2", "C3", "C4", "C8", "D3", "D4", "D6"]
GROUPS = [*SMALL_GROUPS, "Icosahedral"]
# Whole-model relative error where digits are plenty; in fewer digits see `rounding`.
EXACT = 1e-12
VARIANTS = list(itertools.product([False, True], [0, 2], ["rmsnorm", "layernorm"]))


def rounding(model: nn.Module, lengths: tuple[int, int] = (4, 3), batch: int = 3) -> float:
    """The error that rounding may make of `model_error` in the dtype of the network."""
    return MULTIPLE * sway(at_times(model, batch), model, *tokens(model, lengths, batch))


def tokens(model: nn.Module, lengths: tuple[int, int], batch: int) -> tuple[Tensor, Tensor]:
    dtype = next(model.parameters()).dtype
    X = normal(batch, lengths[0], model.in_rep.size, seed=1).to(dtype)
    Z = normal(batch, lengths[1], model.cond_rep.size, seed=2).to(dtype)
    return X, Z


def at_times(model: nn.Module, batch: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The network at a time for each of `batch` rows, as a function of its tokens; a batch of more
    rows repeats the times."""
    t = torch.linspace(0.05, 0.95, batch, dtype=torch.float64)
    return lambda x, z: model(x, t.repeat(len(x) // batch), z)


def inputs(model: nn.Module, batch: int = 3, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    dtype = next(model.parameters()).dtype
    X = normal(batch, model.in_horizon, model.in_dim, seed=seed).to(dtype)
    Z = normal(batch, model.cond_horizon, model.cond_dim, seed=seed + 1).to(dtype)
    return X, torch.linspace(0.1, 0.9, batch), Z


def trained(model: nn.Module, steps: int = 6) -> nn.Module:
    """A few steps towards random targets, dropout on."""
    model.train()
    optimizer = torch.optim.AdamW(model.get_optim_groups(0.1), lr=1e-3)
    torch.manual_seed(5)
    for step in range(steps):
        X, t, Z = inputs(model, seed=10 * step)
        target = normal(3, model.in_horizon, model.out_dim, seed=10 * step + 5).to(X.dtype)
        optimizer.zero_grad()
        (model(X, t, Z) - target).square().mean().backward()
        optimizer.step()
    return model.eval()
