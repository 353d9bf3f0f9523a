"""Hand-written backwards: where one may stand in for autograd's."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["own_gradients"]


def own_gradients(x: Tensor) -> bool:
    """Whether an operation on `x` may use a hand-written backward.

    Compilers, function transforms and forward-mode derivatives derive their own; autocast chooses a
    dtype for each operation; and operations in half precision accumulate in float32, which a
    hand-written backward would not.
    """
    if x.dtype not in (torch.float32, torch.float64):
        return False
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if torch.autograd.forward_ad._current_level >= 0:
        return False
    device = x.device.type
    return not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device))
