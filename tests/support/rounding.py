"""What rounding alone may do: the yardstick of every comparison in float32.

A kernel that adds in another order rounds elsewhere. How far a result then moves depends on the
computation as much as on the processor, so no fixed number is a fair limit for it. The yardstick is
the computation itself, with all that goes into it moved to the next number that its dtype can hold:
one unit in the last place is the smallest change there is, and no larger than a rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

__all__ = ["MULTIPLE", "nudged", "parameters_nudged", "sway"]

# How many times the yardstick two ways of one computation may lie apart. Both ways round, which
# makes two; and the largest of many differences is twice as large in one draw of the roundings as
# in another. Measured ratios are 0.4 to 1.9. A wrong formula is off by thousands.
MULTIPLE = 4.0


def nudged(x: Tensor, seed: int = 0) -> Tensor:
    """`x` with every number moved to a neighbour in its dtype, up or down at random."""
    generator = torch.Generator().manual_seed(seed)
    up = torch.rand(x.shape, generator=generator) < 0.5
    towards = torch.where(up, torch.inf, -torch.inf).to(x)
    return torch.nextafter(x, towards)


@contextlib.contextmanager
def parameters_nudged(network: nn.Module, seed: int = 0) -> Iterator[None]:
    """Inside, every parameter of `network` is a nudged one."""
    before = [p.detach().clone() for p in network.parameters()]
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.copy_(nudged(p, seed=1000 * seed + i))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(network.parameters(), before, strict=True):
                p.copy_(value)


@torch.no_grad()
def sway(run: Callable[..., Tensor], network: nn.Module, *inputs: Tensor, nudges: int = 2) -> float:
    """How far `run(*inputs)` moves when all that goes into it moves by one unit in the last place.

    Args:
        run: computes with `network` and the inputs.
        network: its parameters are nudged.
        inputs: nudged as well.
        nudges: the largest of so many random ones counts.

    Returns:
        The L2 norm of the change, as a share of the norm of the result.
    """
    reference = run(*inputs).double()
    changes = []
    for seed in range(nudges):
        moved = [nudged(x, seed=seed + 100 * i) for i, x in enumerate(inputs)]
        with parameters_nudged(network, seed):
            changes.append((run(*moved).double() - reference).norm())
    return float(max(changes) / reference.norm())
