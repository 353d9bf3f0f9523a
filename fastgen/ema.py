"""Exponential moving average of a network's weights: what is evaluated and exported.

The average is called the shadow. Iterations count *student* updates, from 1. With
n = iteration - start_iter, an update with n <= 0 copies the weights, and one with n >= 1 does

    shadow <- beta_n shadow + (1 - beta_n) weights

    constant  beta_n = decay
    halflife  beta_n = 0.5^(batch_size / H),  H = min(1000 halflife_kimg, rampup_ratio n batch_size)
    power     beta_n = (1 - 1/n)^(gamma + 1)

beta_1 of `power` is 0: the average forgets the initialisation.

References:
    Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2023,
    arXiv:2312.02696 (power). Karras et al., EDM, 2022, arXiv:2206.00364 (half-life in samples with
    ramp-up).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ._core.checks import at_hand, check_choice
from ._core.modules import as_built, bare_names
from ._core.processes import gathered, is_shard, own, settle, shared_like, sharing

if TYPE_CHECKING:
    from .config.groups import EMAConfig

__all__ = ["SHADOW_DTYPES", "ExponentialMovingAverage", "averaged_weights"]

EMA_TYPES = ("constant", "halflife", "power")
# Where a weight is found: its name, the dict of its module that holds it, and its key in there.
Place = tuple[str, dict[str, Any], str]
SHADOW_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class ExponentialMovingAverage:
    """Shadow weights of one network.

    The shadow is kept in float32 (or float64, as weights in float64 always are): in bfloat16 an
    update by (1 - beta) of a small difference rounds to nothing. Parameters are averaged. Buffers
    that belong to the state dict are copied. Names are those of the bare network, without the
    prefixes that DistributedDataParallel and torch.compile give them, be it in a submodule.

    Of a sharded network (FSDP2) each process averages its own shards. To write them to a network
    that isn't sharded, all processes must call `copy_to`.

    Args:
        model: the network, whose present weights start the shadow.
        cfg: `fastgen.config.dmd.EMAConfig`, or any object with its attributes.
        device: where the shadow is kept; None: where the weights are.

    Attributes:
        shadow: the average by weight name.

    Raises:
        ValueError: for an unknown `type` or `dtype`, or a decay outside [0, 1).
    """

    def __init__(
        self, model: nn.Module, cfg: EMAConfig, *, device: torch.device | str | None = None
    ) -> None:
        check_choice("EMA type", cfg.type, EMA_TYPES)
        dtype = str(cfg.dtype).removeprefix("torch.")
        if dtype not in SHADOW_DTYPES:
            raise ValueError(
                f"expected EMA dtype float32 or float64 (less loses small updates), got {dtype}"
            )
        if not 0.0 <= cfg.decay < 1.0:
            raise ValueError(f"expected EMA decay in [0, 1), got {cfg.decay}")
        self.cfg = cfg
        self.dtype = SHADOW_DTYPES[dtype]
        self.device = device
        self.shadow = {name: self._copy(x) for name, x in averaged_weights(model)}
        self._seen: tuple[weakref.ref[nn.Module], list[Place]] | None = None

    def beta(self, iteration: int) -> float:
        """The decay of update number `iteration`; 0 where the update is a copy."""
        n = iteration - self.cfg.start_iter
        if n <= 0:
            return 0.0
        match self.cfg.type:
            case "constant":
                return self.cfg.decay
            case "power":
                return (1.0 - 1.0 / n) ** (self.cfg.gamma + 1.0)
            case _:  # halflife
                half_life = 1000.0 * self.cfg.halflife_kimg
                if self.cfg.rampup_ratio is not None:
                    half_life = min(half_life, self.cfg.rampup_ratio * n * self.cfg.batch_size)
                return 0.5 ** (self.cfg.batch_size / half_life)

    @torch.no_grad()
    def update(self, model: nn.Module, *, iteration: int, skip: Tensor | None = None) -> None:
        """Take in the weights after student update number `iteration` (1 for the first).

        Args:
            skip: a scalar; where it is True the average stays as it is. On a GPU the host doesn't
                wait for it, unless the average is kept on another device.

        Raises:
            ValueError: if `model` has other weights than the shadow.
        """
        if skip is not None and (at_hand(skip) or self.device is not None):
            if skip:
                return
            skip = None
        beta = self.beta(iteration)
        settle(as_built(model))
        part = own if sharing() else _itself  # asked once, not of each weight
        shadows: list[Tensor] = []
        values: list[Tensor] = []
        for name, place, leaf in self._places_of(model):
            shadow = part(self.shadow[name])
            value = part(place[leaf])
            averaged = isinstance(place[leaf], nn.Parameter) and value.is_floating_point()
            if averaged and beta > 0.0:
                shadows.append(shadow)
                alike = value.dtype == shadow.dtype and value.device == shadow.device
                values.append(value if alike else value.to(shadow.device, shadow.dtype))
            elif shadow.shape != value.shape:
                self.shadow[name] = self._copy(place[leaf])  # a buffer that has grown
            else:
                shadow.copy_(value if skip is None else torch.where(skip, shadow, value))
        if shadows and skip is not None:
            # A weight of 0 leaves a number exactly as it is. The weight is a tensor, since a number
            # would have to be known to the host.
            weights = {
                dtype: torch.where(skip, 0.0, torch.tensor(1.0 - beta, dtype=dtype))
                for dtype in {shadow.dtype for shadow in shadows}
            }
            each = [weights[shadow.dtype] for shadow in shadows]
            torch._foreach_lerp_(shadows, values, each)  # pyright: ignore[reportPrivateImportUsage]
        elif shadows:
            # torch's lerp answers the end point exactly at weight 1: a network that never changes
            # is its own average.
            torch._foreach_lerp_(shadows, values, 1.0 - beta)  # pyright: ignore[reportPrivateImportUsage]

    def __getstate__(self) -> dict[str, Any]:
        # A copy must look for its places itself, in its own network.
        return {**self.__dict__, "_seen": None}

    def _places_of(self, model: nn.Module) -> list[Place]:
        """Where the weights of `model` are. They are looked for once: at each update that would
        take longer than averaging them."""
        if self._seen is None or self._seen[0]() is not model:
            places = list(_places(model))
            self._check_names({name: place[leaf] for name, place, leaf in places})
            self._seen = weakref.ref(model), places
        return self._seen[1]

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Write the shadow into the weights of `model`, cast to their dtypes."""
        weights = dict(averaged_weights(model))
        self._check_names(weights)
        for name, value in weights.items():
            shadow = self.shadow[name]
            value.copy_(shadow if is_shard(value) else gathered(shadow))

    def state_dict(self) -> dict[str, Tensor]:
        """The shadow by weight name, for safetensors. The tensors are the shadow's own."""
        return dict(self.shadow)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ValueError: if names or shapes differ.
        """
        self._check_names(state)
        for name, shadow in self.shadow.items():
            shadow.copy_(shared_like(state[name], shadow))

    def _copy(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(self.dtype, x.dtype) if x.is_floating_point() else x.dtype
        return x.detach().to(self.device, dtype, copy=True)

    def _check_names(self, weights: Mapping[str, Tensor]) -> None:
        if weights.keys() != self.shadow.keys():
            missing = sorted(self.shadow.keys() - weights.keys())[:10]
            unexpected = sorted(weights.keys() - self.shadow.keys())[:10]
            raise ValueError(
                f"expected the weights of the averaged network; missing {missing}, unexpected "
                f"{unexpected}"
            )
        for name, shadow in self.shadow.items():
            if weights[name].shape != shadow.shape:
                raise ValueError(
                    f"expected {name} of shape {tuple(shadow.shape)}, got "
                    f"{tuple(weights[name].shape)}"
                )


def averaged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of each parameter and of each buffer that belongs to the state dict; tied
    parameters once."""
    for name, place, leaf in _places(model):
        yield name, place[leaf]


def _places(model: nn.Module) -> Iterator[Place]:
    """The places of the weights that `averaged_weights` gives."""
    bare = as_built(model)
    settle(bare)
    for named in (dict(bare.named_parameters()), dict(bare.named_buffers())):
        for name, as_bare in bare_names(bare, named).items():
            path, _, leaf = name.rpartition(".")
            owner = bare.get_submodule(path)
            if isinstance(named[name], nn.Parameter):
                yield as_bare, owner._parameters, leaf
            elif leaf not in owner._non_persistent_buffers_set:
                yield as_bare, owner._buffers, leaf


def _itself(x: Tensor) -> Tensor:
    return x
