"""Networks: how one is called, what it says of itself, and what may be wrapped around it.

Every network is called `net(x_t, t, cond)`, in its own dtype, with times in no less than float32.
A condition may say which tokens are real and which are given (`_core/carried.py`): padding is 0 in
what a network sees and in what it answers.
What is wrapped around one is a coat: see `NetworkWrapper`, `coats` and `unwrap`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ._core.calls import call_intact
from ._core.carried import bare
from ._core.checks import check_shape
from ._core.conditions import named_tensors
from ._core.masks import real_only
from ._core.messages import brief
from ._core.modules import as_built, inside_launcher
from ._core.precision import computing_dtype, parameters_in
from ._core.sizes import check_sizes, parse_sizes
from ._core.tensors import time_dtype
from .flow_matching import convert_prediction

__all__ = [
    "DECLARED",
    "WAYS_TO_X0",
    "Cond",
    "Network",
    "NetworkWrapper",
    "call_network",
    "cast",
    "check_trained_sizes",
    "clip_limits",
    "clipped_x0",
    "coats",
    "network_device",
    "network_dtype",
    "parameters_to",
    "predict_x0",
    "predicts_noise",
    "sampling_times",
    "teacher_x0",
    "time_range",
    "tokens_given",
    "trusted_until",
    "unclipped_x0",
    "unwrap",
]

# What a network may declare, by having an attribute of this name:
#   t_min, t_max       the RF times in which it is defined
#   predicts_noise     True: its answer is eps up to a factor
#   call_dtype         the dtype in which it is called, if not that of its parameters
#   predict_x0         a method (x_t, t, cond) that answers x0
#   unclipped_x0       the same, before `clip_sample`
#   trained_sizes      the sizes of X and Z that it was trained with (_core/sizes.py)
#   t_trusted          the last RF time at which its x0 is followed, whatever it predicts
#   clip_sample        (low, high), to which its x0 is clipped; None: it isn't
#   spacing            its `times(calls)` are RF times for a sampler; None: equal steps
#   prefix_tokens      how many tokens it was trained to be given, clean and at t = 0
DECLARED = (
    "t_min",
    "t_max",
    "predicts_noise",
    "call_dtype",
    "predict_x0",
    "unclipped_x0",
    "trained_sizes",
    "t_trusted",
    "clip_sample",
    "spacing",
    "prefix_tokens",
)
# The methods among these.
WAYS_TO_X0 = ("predict_x0", "unclipped_x0")

Cond = Any  # a Tensor, a mapping or tuple of Tensors, or None: handed to the network untouched
Network = Callable[[Tensor, Tensor, Cond], Tensor]


class NetworkWrapper(nn.Module):
    """A module around `network` that adds no weights.

    It declares what its network declares (`DECLARED`) and nothing that the network doesn't, unless
    it has an attribute of its own. Its optimiser groups are the network's.

    Attributes:
        network: the network inside.
        passes_on: of a class: the names of what its wrappers declare if their networks do.
        added_by_run: of a class: True for what a run puts around a network that is complete without
            it; False for a part of the network.
    """

    passes_on: ClassVar[tuple[str, ...]] = DECLARED
    added_by_run: ClassVar[bool] = False

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


def trusted_until(network: object) -> float | None:
    """The last RF time at which a network says that its x0 can be followed; None if it says
    nothing."""
    return _declared(network, "t_trusted", None)


def tokens_given(network: object) -> int:
    """How many tokens at the beginning of a sample a network says that it was trained to be given;
    0 if it says nothing."""
    return int(_declared(network, "prefix_tokens", 0) or 0)


def sampling_times(network: object, calls: int) -> list[float] | None:
    """The RF times at which a network says that a sampler calls it, strictly decreasing and then 0;
    None if it says nothing."""
    # A network may call something else so, such as the spacing of its voxels.
    times: Any = getattr(_declared(network, "spacing", None), "times", None)
    if not callable(times):
        return None
    found: Any = times(calls)
    return found


def predicts_noise(network: object) -> bool:
    """Whether a network says that its answer is eps up to a factor."""
    return bool(_declared(network, "predicts_noise", False))


def check_trained_sizes(network: object, x: Tensor, cond: Cond, who: str) -> None:
    """Refuse samples or conditions of a size that a network says it was not trained with.

    Args:
        network: what it declares as `trained_sizes`, as `parse_sizes` takes it, is checked; X only
            where it speaks of X.
        x: shape (B, ...), as the network sees it.
        cond: as the network sees it.
        who: the network, for people: "the teacher".

    Raises:
        ValueError: such as `expected Z of shape (B, 2, 12), as the teacher was trained, got ...`;
            or `trained_sizes` that are no sizes.
    """
    declared = _declared(network, "trained_sizes", None)
    if declared is None:
        return
    try:
        sizes = parse_sizes(declared)
    except ValueError as error:
        raise ValueError(f"trained_sizes of {who}: {error}") from error
    if "X" in sizes:
        check_sizes(x, "X", sizes, who)
    check_sizes(bare(cond), "Z", sizes, who)


def _declared(network: object, name: str, default: Any) -> Any:
    """An attribute of `DECLARED`, read through what launchers put around a network: not all of
    them pass it on."""
    if isinstance(network, nn.Module):
        network = as_built(network)
    return getattr(network, name, default)


def parameters_to(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`network` with its floating parameters cast in place. Buffers stay as they are: a table of
    times must not be rounded."""
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return network


def cast(network: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """`network` with its floating parameters and buffers in `dtype`, cast in place; None: as it is.

    Complex tables, such as those of rotary positions, stay: `Module.to` would take their imaginary
    part away.
    """
    if dtype is None:
        return network
    return network._apply(lambda x: x.to(dtype) if x.is_floating_point() else x)


def network_dtype(network: object, default: torch.dtype) -> torch.dtype:
    """The dtype in which a network is called: its `call_dtype` if it declares one, else that of its
    first parameter that torch computes in, else `default`."""
    dtype = _declared(network, "call_dtype", None)
    if dtype is not None:
        return dtype
    return computing_dtype(network, default) if isinstance(network, nn.Module) else default


def network_device(network: nn.Module, default: torch.device) -> torch.device:
    """Where a network is called: the device of its first parameter, else `default`."""
    return next((parameter.device for parameter in parameters_in(network)), default)


def call_network(
    network: Network, x_t: Tensor, t: float | Tensor, cond: Cond, *, dtype: torch.dtype
) -> Tensor:
    """The prediction of `network(x_t, t, cond)`, called in its own dtype.

    Args:
        network: module or function called positionally. It gets `t` as a tensor (B,), in float64
            if its own dtype is that, else in float32.
        x_t: shape (B, ...), any floating dtype.
        t: float or (B,), in [0, 1].
        cond: handed over untouched. Where it carries masks (`_core/masks.py`), padding of `x_t` and
            of the answer is 0.
        dtype: in which a network without parameters is called.

    Returns:
        the prediction, shaped like `x_t`, in the dtype of the network's answer.

    Raises:
        ValueError: if the network's answer has another shape than `x_t`, or if it looks up a label
            that it doesn't have.
    """
    dtype = network_dtype(network, dtype)
    if isinstance(t, Tensor):
        times = t.to(x_t.device, time_dtype(dtype)).expand(x_t.shape[0])
    else:
        times = torch.full((x_t.shape[0],), t, dtype=time_dtype(dtype), device=x_t.device)
    try:
        pred = call_intact(network, real_only(x_t.to(dtype), cond), times, cond)
    except IndexError as error:
        labels = _label_ranges(cond)
        if not labels:
            raise
        raise ValueError(
            f"expected labels that the network knows, got {labels}: {brief(error)}"
        ) from error
    check_shape("the network's output", pred, x_t.shape)
    return real_only(pred, cond)


def _label_ranges(cond: Cond) -> str:
    """The integers in a condition, for people: "Z from 0 to 12"; nothing where there are none."""
    parts = []
    for name, value in named_tensors(cond).items():
        if value.is_floating_point() or value.dtype == torch.bool or not value.numel():
            continue
        parts.append(f"{name} from {int(value.min())} to {int(value.max())}")
    return ", ".join(parts)


def predict_x0(
    network: Network,
    x_t: Tensor,
    t: float | Tensor,
    cond: Cond,
    *,
    pred_type: str,
    dtype: torch.dtype,
) -> Tensor:
    """The network's prediction as data x0 (B, ...), in the dtype of `x_t`; differentiable.

    Args:
        pred_type: what the network predicts, "flow", "x0" or "eps".
        network, x_t, t, cond, dtype: as in `call_network`.
    """
    pred = call_network(network, x_t, t, cond, dtype=dtype)
    return real_only(convert_prediction(pred, x_t, t, pred_type, "x0"), cond)


def teacher_x0(network: Network, x_t: Tensor, t: Tensor, cond: Cond, *, pred_type: str) -> Tensor:
    """A network's data x0 (B, ...), by its own `predict_x0(x_t, t, cond)` if it has one, else from
    its prediction.

    A converted or guided network has one: from its flow x0 would come with the rounding of a way
    there and back. Arguments as in `predict_x0`.
    """
    direct = _declared(network, "predict_x0", None)
    if direct is not None:
        return _x0_by(direct, x_t, t, cond)
    return predict_x0(network, x_t, t, cond, pred_type=pred_type, dtype=x_t.dtype)


def unclipped_x0(network: Network, x_t: Tensor, t: Tensor, cond: Cond, *, pred_type: str) -> Tensor:
    """As `teacher_x0`, before the clip that the network may declare: what is guided is clipped
    once, after guidance."""
    direct = _declared(network, "unclipped_x0", None)
    if direct is not None:
        return _x0_by(direct, x_t, t, cond)
    return teacher_x0(network, x_t, t, cond, pred_type=pred_type)


def _x0_by(way: Network, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """What a network's own way to x0 answers, with 0 at padding."""
    return real_only(call_intact(way, real_only(x_t, cond), t, cond), cond)


def clipped_x0(network: object, x0: Tensor) -> Tensor:
    """x0 (B, ...) within the `clip_sample` of a network that declares one.

    The value is the clipped one to the last digit, the gradient that of x0 itself.
    """
    limits = clip_limits(network)
    if limits is None:
        return x0
    return x0.detach().clamp(*limits) + (x0 - x0.detach())


def clip_limits(network: object) -> tuple[float, float] | None:
    """The (low, high) to which a network says that its x0 is clipped; None if it says nothing."""
    limits = _declared(network, "clip_sample", None)
    # A network may call something else so, such as a flag.
    return limits if isinstance(limits, tuple) and len(limits) == 2 else None
