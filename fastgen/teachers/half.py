"""Half precision: teachers whose parameters are kept in it.

Around such a teacher all is in float32: samples, conditions, answers, and the students made of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .._core.conditions import cond_to
from .._core.precision import is_narrow
from ..networks import Cond, NetworkWrapper, coats, network_dtype, parameters_to
from .answer import answer_of
from .conversion import RectifiedFlow

__all__ = ["Bfloat16Network", "HalfNetwork", "in_own_precision"]

Prediction = Callable[[Tensor, Tensor, Cond], Tensor]


class _InHalf(NetworkWrapper):
    """A coat whose network is asked in another precision, and answers in the dtype of `x_t`: by its
    forward and by the predictions of x0 that it declares.

    Each coat says in `_asked` how.
    """

    added_by_run = True

    def _asked(self, function: Prediction, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """`function(x_t, t, cond)` in the precision of the network."""
        raise NotImplementedError

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        """The prediction for `x_t` (B, ...) at `t` (B,)."""
        return self._asked(self.network, x_t, t, cond)

    @property
    def predict_x0(self) -> Prediction:
        """The network's own `predict_x0(x_t, t, cond)`.

        Raises:
            AttributeError: the network has none.
        """
        return self._declared("predict_x0")

    @property
    def unclipped_x0(self) -> Prediction:
        """As `predict_x0`, of the network's own `unclipped_x0`."""
        return self._declared("unclipped_x0")

    def _declared(self, name: str) -> Prediction:
        """A method that the network declares, asked as its forward is."""
        predict: Prediction = self.declared(name)

        def asked(x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
            return self._asked(predict, x_t, t, cond)

        return asked


class Bfloat16Network(_InHalf):
    """A frozen network whose parameters are kept in bfloat16. Torch's autocast takes its products
    in bfloat16, too.

    It is called in the dtype that it had before, or in float32 if that was less, and answers in
    that of `x_t`. Times and buffers stay as they are, and so does all arithmetic that autocast
    leaves in float32. A prediction differs by about 2^-8 of its size.

    Args:
        network: its parameters are cast in place.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        dtype = network_dtype(network, torch.float32)
        self.call_dtype = torch.promote_types(dtype, torch.float32)
        parameters_to(network, torch.bfloat16)

    def _asked(self, function: Prediction, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        with torch.autocast(x_t.device.type, torch.bfloat16):
            return function(x_t, t, cond).to(x_t.dtype)


class HalfNetwork(_InHalf):
    """A network in half precision, or partly so, as its author calls it: `x_t` and floating
    conditions are cast to the dtype that it takes. It is called in float32, and answers in the
    dtype of `x_t`. Nothing of the network is changed.

    Args:
        network: called `network(x_t, t, cond)`.
        takes: the dtype that it is called in. A converted network is given `x_t` as it is: its
            conversion is computed in float64, and casts what comes out.
    """

    def __init__(self, network: nn.Module, takes: torch.dtype) -> None:
        super().__init__(network)
        self.takes = takes
        self.call_dtype = torch.promote_types(takes, torch.float32)
        self.converted = any(isinstance(coat, RectifiedFlow) for coat in coats(network))

    def _asked(self, function: Prediction, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        seen = x_t if self.converted else x_t.to(self.takes)
        return function(seen, t, cond_to(cond, dtype=self.takes)).to(x_t.dtype)


def in_own_precision(network: nn.Module, x0: Tensor, cond: Cond) -> nn.Module:
    """A teacher as it is called in float32: in a `HalfNetwork` if any of its parameters are in half
    precision, else itself.

    A network that says so is called in its `call_dtype`. One of several dtypes is tried in each of
    them on two samples, the widest first, and called in the first that it can be called in.

    Args:
        network: called `network(x_t, t, cond)`, on its device.
        x0, cond: data (N, ...) and its conditions, N rows each or None.
    """
    if not any(map(is_narrow, network.parameters())):
        return network
    dtypes = _dtypes_of(network)
    for dtype in dtypes[:-1]:
        half = HalfNetwork(network, dtype).eval()
        try:
            answer_of(half, x0, cond)
        except ValueError:
            continue
        return half
    # What is wrong with the last is said where the teacher is checked.
    return HalfNetwork(network, dtypes[-1]).eval()


def _dtypes_of(network: nn.Module) -> list[torch.dtype]:
    """The dtypes in which a network may be meant to be called, the widest first."""
    called = network_dtype(network, torch.float32)
    if called == getattr(network, "call_dtype", None):
        return [called]
    computed = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    present = {parameter.dtype for parameter in network.parameters()}
    return [dtype for dtype in computed if dtype in present] or [called]
