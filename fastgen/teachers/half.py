"""Half precision: a teacher whose parameters are kept in bfloat16."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..networks import Cond, NetworkWrapper, network_dtype, parameters_to

__all__ = ["Bfloat16Network"]


class Bfloat16Network(NetworkWrapper):
    """A frozen network whose parameters are kept in bfloat16. Torch's autocast takes its products
    in bfloat16, too.

    It is called in the dtype that it had before, and answers in that of `x_t`. Times and buffers
    stay as they are, and so does all arithmetic that autocast leaves in float32. A prediction
    differs by about 2^-8 of its size.

    Args:
        network: its parameters are cast in place.
    """

    added_by_run = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.call_dtype = network_dtype(network, torch.float32)
        parameters_to(network, torch.bfloat16)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        """The prediction for `x_t` (B, ...) at `t` (B,)."""
        with torch.autocast(x_t.device.type, torch.bfloat16):
            return self.network(x_t, t, cond).to(x_t.dtype)

    @property
    def predict_x0(self) -> Callable[[Tensor, Tensor, Cond], Tensor]:
        """The network's own `predict_x0(x_t, t, cond)`, in bfloat16.

        Raises:
            AttributeError: the network has none.
        """
        predict: Callable[[Tensor, Tensor, Cond], Tensor] = self.declared("predict_x0")

        def in_bfloat16(x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
            with torch.autocast(x_t.device.type, torch.bfloat16):
                return predict(x_t, t, cond).to(x_t.dtype)

        return in_bfloat16
