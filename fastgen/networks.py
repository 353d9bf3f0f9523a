"""How a network is called, whatever it is: `net(x_t, t, cond)`, in its own dtype, with times never
below float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ._core.checks import check_shape
from ._core.modules import as_built, inside_launcher
from ._core.tensors import time_dtype
from .flow_matching import convert_prediction

__all__ = [
    "Cond",
    "Network",
    "NetworkWrapper",
    "call_network",
    "coats",
    "idle_parameters",
    "network_dtype",
    "parameters_to",
    "predict_x0",
    "predicts_noise",
    "teacher_x0",
    "time_range",
    "unwrap",
]

# What a network may say of itself, each an attribute that it has or hasn't:
#   t_min, t_max       the RF times in which it is defined
#   predicts_noise     its answer is eps up to a factor
#   call_dtype         the dtype in which it is called, where its parameters have another
#   predict_x0         a method that answers x0 straight away
DECLARED = ("t_min", "t_max", "predicts_noise", "call_dtype", "predict_x0")

Cond = Any  # a Tensor, a mapping or tuple of Tensors, or None: handed to the network untouched
Network = Callable[[Tensor, Tensor, Cond], Tensor]


class NetworkWrapper(nn.Module):
    """A module around `network` that adds no weights.

    It declares what its network declares (`t_min`, `t_max`, `predicts_noise`, `call_dtype`,
    `predict_x0`), unless it sets an attribute of its own; what the network lacks, it lacks. Its
    optimiser groups are the network's.

    Attributes:
        network: the network inside.
        passes_on: names of what it declares because its network does.
    """

    passes_on: ClassVar[tuple[str, ...]] = DECLARED

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def declared(self, name: str) -> Any:
        """What the network inside declares by this name of `DECLARED`.

        Raises:
            AttributeError: it declares nothing by this name.
        """
        return getattr(as_built(self.network), name)

    def __getattr__(self, name: str) -> Any:
        # Python asks here for what the wrapper itself doesn't have.
        return self.declared(name) if name in self.passes_on else super().__getattr__(name)

    def get_optim_groups(self, weight_decay: float = 1e-3) -> list[dict[str, Any]]:
        """The network's own groups, or one with all parameters."""
        groups = getattr(as_built(self.network), "get_optim_groups", None)
        if groups is not None:
            return groups(weight_decay)
        return [{"params": list(self.network.parameters()), "weight_decay": weight_decay}]


def coats(network: nn.Module) -> Iterator[nn.Module]:
    """The network with all that is around it, outermost first; the bare network comes last.

    Coats are a `NetworkWrapper`, DistributedDataParallel, DataParallel and torch.compile.
    """
    inner: nn.Module | None = network
    while inner is not None:
        yield inner
        inner = inner.network if isinstance(inner, NetworkWrapper) else inside_launcher(inner)


def unwrap(network: nn.Module) -> nn.Module:
    """The bare network: the last of its `coats`."""
    return list(coats(network))[-1]


def time_range(network: object) -> tuple[float, float]:
    """(t_min, t_max): the RF times in which a network says it is defined, [0, 1] if it says
    nothing."""
    return float(_declared(network, "t_min", 0.0)), float(_declared(network, "t_max", 1.0))


def predicts_noise(network: object) -> bool:
    """Whether a network says that its answer is eps up to a factor."""
    return bool(_declared(network, "predicts_noise", False))


def _declared(network: object, name: str, default: Any) -> Any:
    """An attribute of `DECLARED`, read through what launchers put around a network: not all of
    them pass it on."""
    if isinstance(network, nn.Module):
        network = as_built(network)
    return getattr(network, name, default)


def parameters_to(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`network` with its floating parameters cast in place; buffers, tables of times among them,
    stay as they are."""
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return network


def network_dtype(network: object, default: torch.dtype) -> torch.dtype:
    """The dtype a network says it is called in (`call_dtype`), else that of its first parameter
    that is one to compute in, else `default`."""
    dtype = _declared(network, "call_dtype", None)
    if dtype is not None:
        return dtype
    if isinstance(network, nn.Module):
        for parameter in network.parameters():
            if parameter.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
                return parameter.dtype
    return default


def idle_parameters(network: nn.Module, x_t: Tensor, t: Tensor, cond: Any) -> list[nn.Parameter]:
    """Trained parameters that a prediction at `x_t` (B, ...), `t` (B,) doesn't use: they get no
    gradient."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    answer = call_network(network, x_t, t, cond, dtype=network_dtype(network, x_t.dtype)).sum()
    gradients = torch.autograd.grad(answer, parameters, allow_unused=True)
    return [
        parameter
        for parameter, gradient in zip(parameters, gradients, strict=True)
        if gradient is None
    ]


def call_network(
    network: Network, x_t: Tensor, t: float | Tensor, cond: Cond, *, dtype: torch.dtype
) -> Tensor:
    """Call `network(x_t, t, cond)` in its own dtype, with t as a float32 (float64 for a float64
    network) tensor (B,).

    Args:
        network: module or function called positionally.
        x_t: shape (B, ...), any floating dtype.
        t: float or (B,).
        cond: handed over untouched.
        dtype: what a network without parameters is given.

    Returns:
        the prediction, shaped like `x_t`, in the dtype the network chose.

    Raises:
        ValueError: if the network's answer has another shape than `x_t`.
    """
    dtype = network_dtype(network, dtype)
    if isinstance(t, Tensor):
        times = t.to(x_t.device, time_dtype(dtype)).expand(x_t.shape[0])
    else:
        times = torch.full((x_t.shape[0],), t, dtype=time_dtype(dtype), device=x_t.device)
    pred = network(x_t.to(dtype), times, cond)
    check_shape("the network's output", pred, x_t.shape)
    return pred


def predict_x0(
    network: Network,
    x_t: Tensor,
    t: float | Tensor,
    cond: Cond,
    *,
    pred_type: str,
    dtype: torch.dtype,
) -> Tensor:
    """The network's prediction as data x0, in the dtype of `x_t`; differentiable. Arguments as in
    `call_network`."""
    pred = call_network(network, x_t, t, cond, dtype=dtype)
    return convert_prediction(pred, x_t, t, pred_type, "x0")


def teacher_x0(network: Network, x_t: Tensor, t: Tensor, cond: Cond, *, pred_type: str) -> Tensor:
    """What a network says of the data: by its own `predict_x0(x_t, t, cond)` where it offers one,
    which a converted or guided network answers without a lossy round trip, else from its
    prediction. Arguments as in `call_network`."""
    direct = _declared(network, "predict_x0", None)
    if direct is not None:
        return direct(x_t, t, cond)
    return predict_x0(network, x_t, t, cond, pred_type=pred_type, dtype=x_t.dtype)
