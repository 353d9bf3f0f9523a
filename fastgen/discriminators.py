"""Discriminators, and what they see of a sample: features of the teacher's own blocks, or the
sample itself.

A discriminator is called `discriminator(features, t, cond)` and returns logits (B, heads). Features
are passed on as arguments; nothing is kept between two calls, on the network or anywhere else.
Invariant discriminators for equivariant networks stand in :mod:`fastgen.models.ediscriminators`.

References:
    Yin et al., DMD2, 2024, arXiv:2405.14867 (heads on a network's features).
    Tancik et al., Fourier Features Let Networks Learn High Frequency Functions, 2020,
    arXiv:2006.10739.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._core.conditions import cond_text, cond_to, map_tensors, take_rows
from ._core.seeds import generator_for
from .models.discriminators import (
    FeatureHeads,
    FourierDiscriminator,
    TokenHeads,
)
from .networks import Cond, NetworkWrapper, call_network

__all__ = ["block_features", "discriminator_for", "heads_for", "sample_features"]

Features = Callable[[Tensor, Tensor, Cond], list[Tensor]]


def block_features(network: nn.Module, blocks: Sequence[str] | None = None) -> Features:
    """A function `features(x_t, t, cond)` -> outputs of `blocks`, in the order in which they are
    called.

    Args:
        network: called `network(x_t, t, cond)`; its call is differentiable in x_t, and so are the
            features.
        blocks: names of submodules as in `network.named_modules()`; None: the entries of its last
            `nn.ModuleList` (the decoder layers of the transformers here), or its direct children if
            it has none.

    Raises:
        ValueError: a name that the network doesn't have, or a network without submodules; when
            called, a block that returns no Tensor with the rows of x_t.
    """
    blocks, modules = _find_blocks(network, blocks)

    def features(x_t: Tensor, t: Tensor, cond: Cond) -> list[Tensor]:
        return [output for _, output in _outputs(network, modules, blocks, x_t, t, cond)]

    return features


def _find_blocks(
    network: nn.Module, blocks: Sequence[str] | None
) -> tuple[list[str], dict[str, nn.Module]]:
    """Names of the blocks, and the network's modules by name."""
    modules = dict(network.named_modules())
    if blocks is None:
        lists = [
            name
            for name, module in modules.items()
            if isinstance(module, nn.ModuleList) and len(module)
        ]
        # A wrapper's only child is the network, whose output is the prediction.
        wrapped = [
            name for name, module in modules.items() if not isinstance(module, NetworkWrapper)
        ]
        parent = lists[-1] if lists else wrapped[0]
        prefix = f"{parent}." if parent else ""
        blocks = [prefix + name for name, _ in modules[parent].named_children()]
    if unknown := [name for name in blocks if name not in modules]:
        raise ValueError(f"expected blocks among the network's named_modules(), got {unknown[:5]}")
    if not blocks:
        raise ValueError(
            "expected a network with submodules to take features from, got "
            f"{type(network).__name__}"
        )
    return list(blocks), modules


def _outputs(
    network: nn.Module,
    modules: dict[str, nn.Module],
    blocks: list[str],
    x_t: Tensor,
    t: Tensor,
    cond: Cond,
) -> list[tuple[str, Tensor]]:
    """Names and outputs of the blocks in the order in which the network calls them."""
    found: list[tuple[str, Tensor]] = []

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def keep(module: nn.Module, args: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple | list) and output else output
            if not isinstance(first, Tensor) or first.ndim == 0 or first.shape[0] != x_t.shape[0]:
                got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
                raise ValueError(
                    f"expected Tensors (B, ...) from the blocks {blocks}, got {got}; name others"
                )
            found.append((name, first))

        return keep

    handles = [modules[name].register_forward_hook(hook(name)) for name in blocks]
    try:
        call_network(network, x_t, t, cond, dtype=x_t.dtype)
    finally:
        for handle in handles:
            handle.remove()
    return found


def sample_features(x_t: Tensor, t: Tensor, cond: Cond) -> list[Tensor]:
    """The features function of a stand-alone discriminator: [x_t]."""
    return [x_t]


def heads_for(
    network: nn.Module,
    x_t: Tensor,
    t: Tensor,
    cond: Cond = None,
    *,
    blocks: Sequence[str] | None = None,
    width: int | None = None,
) -> FeatureHeads:
    """Heads that fit `block_features(network, blocks)`: `InvariantHeads` of :mod:`fastgen.models`
    for an equivariant network (one whose blocks say how their output transforms, by `out_rep`),
    else `TokenHeads`.

    Args:
        network: called `network(x_t, t, cond)`, once, with the first two samples of what is given
            here.
        x_t: (B, ...), t: (B,), cond: as the network takes them.
        blocks: as in `block_features`.
        width: of the heads, None for the default of their class.

    Returns:
        new heads, in the dtype and on the device of the network's first feature (float32 if that is
        below).

    Raises:
        ValueError: as `block_features`; a block without `out_rep` in an equivariant network, since
            heads on it could not be invariant.
    """
    blocks, modules = _find_blocks(network, blocks)
    with torch.no_grad():
        found = _outputs(
            network, modules, blocks, x_t[:2], t[:2], map_tensors(lambda z: z[:2], cond)
        )
    if not found:
        raise ValueError(
            f"expected blocks that the network calls, got {blocks[:5]}, of which it called none"
        )
    options = {} if width is None else {"width": width}
    if any(hasattr(module, "out_rep") for module in modules.values()):
        if untyped := [name for name, _ in found if not hasattr(modules[name], "out_rep")]:
            raise ValueError(
                f"expected blocks with out_rep in an equivariant network, got {untyped[:5]} without"
            )
        from .models.ediscriminators import InvariantHeads

        reps: list[Any] = [modules[name].out_rep for name, _ in found]
        heads: FeatureHeads = InvariantHeads(reps, **options)
    else:
        heads = TokenHeads([f.shape[1 if f.ndim == 4 else -1] for _, f in found], **options)
    first = found[0][1]
    return heads.to(first.device, torch.promote_types(first.dtype, torch.float32))


def discriminator_for(
    network: nn.Module,
    x0: Tensor,
    cond: Cond = None,
    *,
    on_samples: bool = False,
    blocks: Sequence[str] | None = None,
    seed: int = 0,
) -> nn.Module:
    """The discriminator of a recipe, invariant where the network is equivariant; its weights depend
    on `seed` alone.

    Args:
        network: teacher, or whatever else the features are taken from.
        x0, cond: data as the network takes them, at least two rows.
        on_samples: a network of its own on the noised sample (`FourierDiscriminator`), in place of
            `heads_for` the network's blocks. It reads a condition of tokens (B, T_z, d_z).
        blocks: of the network; None: its last list of layers.

    Raises:
        ValueError: as `heads_for`; with `on_samples` data that aren't vectors (B, d) or tokens (B,
            T, d), or a condition that is neither tokens nor None.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(seed, "discriminator").initial_seed())
        if not on_samples:
            parameter = next(network.parameters())
            x = x0[:2].to(parameter)
            z = cond_to(take_rows(cond, slice(2)), parameter.device, parameter.dtype)
            return heads_for(network, x, x.new_full((len(x),), 0.5), z, blocks=blocks)
        if x0.ndim not in (2, 3) or not (
            cond is None or (isinstance(cond, Tensor) and cond.ndim == 3)
        ):
            raise ValueError(
                "expected samples (B, d) or (B, T, d) and a condition (B, T_z, d_z) or None for a "
                f"discriminator on samples, got {tuple(x0.shape)} and {cond_text(cond)}; take "
                "features of the teacher instead"
            )
        horizons = (x0.shape[1] if x0.ndim == 3 else 1, 1 if cond is None else cond.shape[1])
        for module in network.modules():
            if hasattr(module, "in_rep") and hasattr(module, "cond_rep"):
                from .models.ediscriminators import eFourierDiscriminator

                cond_rep: Any = None if cond is None else module.cond_rep
                return eFourierDiscriminator(module.in_rep, cond_rep, *horizons)  # pyright: ignore[reportArgumentType]
        return FourierDiscriminator(
            x0.shape[-1], None if cond is None else cond.shape[-1], *horizons
        )
