"""A teacher whose parameters are kept in bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..networks import DECLARED, Cond, NetworkWrapper, network_dtype, parameters_to

__all__ = ["Bfloat16Network"]


class Bfloat16Network(NetworkWrapper):
    """A frozen network whose parameters are kept in bfloat16 and whose products are taken in it, by
    torch's autocast.

    It is called in the dtype that it had, and answers in that of `x_t`; times and buffers are left
    as they are, and so is all arithmetic that autocast leaves in float32. A prediction differs by
    about 2^-8 of its size.

    Args:
        network: its parameters are cast in place.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.call_dtype = network_dtype(network, torch.float32)
        parameters_to(network, torch.bfloat16)
        for name in DECLARED:
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))
        if hasattr(network, "predict_x0"):
            self.predict_x0 = self._predict_x0

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        """Predict from `x_t` (B, ...) at `t` (B,)."""
        with torch.autocast(x_t.device.type, torch.bfloat16):
            return self.network(x_t, t, cond).to(x_t.dtype)

    def _predict_x0(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        with torch.autocast(x_t.device.type, torch.bfloat16):
            predict: Any = self.network.predict_x0
            return predict(x_t, t, cond).to(x_t.dtype)
