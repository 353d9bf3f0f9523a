"""Discriminators: what they see of a noised sample, and which one fits a network.

A discriminator is called `discriminator(features, t, cond)` and returns logits (B, heads). Its
features are outputs of a network's own blocks (`block_features`), or the sample itself
(`sample_features`). They are handed over as arguments: nothing is kept between two calls.

The modules stand in :mod:`fastgen.models.discriminators`; their invariant twins, for equivariant
networks, in :mod:`fastgen.models.ediscriminators`.

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

from ._core.carried import bare
from ._core.conditions import cond_text, cond_to, take_rows
from ._core.seeds import generator_for
from .models.discriminators import (
    FeatureHeads,
    FourierDiscriminator as FourierDiscriminator,
    TokenHeads as TokenHeads,
)
from .networks import Cond, call_network, coats, network_device, network_dtype

__all__ = [
    "Features",
    "FourierDiscriminator",
    "TokenHeads",
    "block_features",
    "discriminator_for",
    "heads_for",
    "sample_features",
]

Features = Callable[[Tensor, Tensor, Cond], list[Tensor]]


def block_features(
    network: nn.Module, blocks: Sequence[str] | None = None, *, called: nn.Module | None = None
) -> Features:
    """A function `features(x_t, t, cond)` that gives the outputs of `blocks`, in the order in which
    the network calls them.

    Args:
        network: called `network(x_t, t, cond)`. Where its call is differentiable in x_t, so are the
            features.
        blocks: names of submodules as in `network.named_modules()`. None stands for the entries of
            the last `nn.ModuleList` (the decoder layers of the transformers here), or for the
            direct children of a network without one.
        called: what is called, such as a coat that calls `network` in its own precision; None:
            `network` itself.

    Raises:
        ValueError: a name that the network doesn't have, or a network without submodules; when
            called, a block that returns no Tensor with the rows of x_t.
    """
    found = _find_blocks(network, blocks)

    def features(x_t: Tensor, t: Tensor, cond: Cond) -> list[Tensor]:
        return [output for _, output in _outputs(called or network, found, x_t, t, cond)]

    return features


def _find_blocks(network: nn.Module, blocks: Sequence[str] | None) -> dict[str, nn.Module]:
    """The blocks of a network by name."""
    modules = dict(network.named_modules())
    names = _default_blocks(network) if blocks is None else list(blocks)
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise ValueError(f"expected blocks among the network's named_modules(), got {unknown[:5]}")
    if not names:
        raise ValueError(
            "expected a network with submodules to take features from, got "
            f"{type(network).__name__}"
        )
    return {name: modules[name] for name in names}


def _default_blocks(network: nn.Module) -> list[str]:
    """Names of the entries of the last list of modules, or of the children of the bare network."""
    modules = dict(network.named_modules())
    parents = [
        name for name, module in modules.items() if isinstance(module, nn.ModuleList) and module
    ]
    if not parents:
        # A coat's only child is the network, whose output is the prediction.
        around = list(coats(network))[:-1]
        parents = [name for name, module in modules.items() if module not in around][:1]
    parent = parents[-1]
    prefix = f"{parent}." if parent else ""
    return [prefix + name for name, _ in modules[parent].named_children()]


def _outputs(
    network: nn.Module, blocks: dict[str, nn.Module], x_t: Tensor, t: Tensor, cond: Cond
) -> list[tuple[str, Tensor]]:
    """Names and outputs of the blocks in the order in which the network calls them."""
    found: list[tuple[str, Tensor]] = []

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def keep(module: nn.Module, args: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple | list) and output else output
            if not isinstance(first, Tensor) or first.ndim == 0 or first.shape[0] != x_t.shape[0]:
                got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
                raise ValueError(
                    f"expected Tensors (B, ...) from the blocks {list(blocks)}, got {got}; name "
                    "others"
                )
            found.append((name, first))

        return keep

    handles = [block.register_forward_hook(hook(name)) for name, block in blocks.items()]
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
    """Heads that fit `block_features(network, blocks)`: `TokenHeads`, or for an equivariant network
    the `InvariantHeads` of :mod:`fastgen.models.ediscriminators`.

    A network is equivariant if its blocks say by an attribute `out_rep` how their output
    transforms.

    Args:
        network: called `network(x_t, t, cond)` once, with the first two rows of what is given here.
        x_t: (B, ...).
        t: (B,).
        cond: as the network takes it.
        blocks: as in `block_features`.
        width: of the heads; None for the default of their class.

    Returns:
        new heads, on the device of the network's first feature and in its dtype, but no less than
        float32.

    Raises:
        ValueError: as `block_features`; blocks that the network doesn't call; a block without
            `out_rep` in an equivariant network, since heads on it could not be invariant.
    """
    named = _find_blocks(network, blocks)
    two = slice(2)
    with torch.no_grad():
        found = _outputs(network, named, x_t[two], t[two], take_rows(cond, two))
    if not found:
        raise ValueError(
            f"expected blocks that the network calls, got {list(named)[:5]}, of which it called "
            "none"
        )
    options = {} if width is None else {"width": width}
    if any(hasattr(module, "out_rep") for module in network.modules()):
        heads = _invariant_heads([(name, named[name]) for name, _ in found], options)
    else:
        heads = TokenHeads([_channels(feature) for _, feature in found], **options)
    first = found[0][1]
    return heads.to(first.device, torch.promote_types(first.dtype, torch.float32))


def _channels(feature: Tensor) -> int:
    """Channels of (B, size, H, W), or of (B, T, size) and (B, size)."""
    return feature.shape[1 if feature.ndim == 4 else -1]


def _invariant_heads(blocks: list[tuple[str, nn.Module]], options: dict[str, int]) -> FeatureHeads:
    """Heads on these blocks of an equivariant network."""
    untyped = [name for name, block in blocks if not hasattr(block, "out_rep")]
    if untyped:
        raise ValueError(
            f"expected blocks with out_rep in an equivariant network, got {untyped[:5]} without"
        )
    # Here, since a dense network needs no escnn.
    from .models.ediscriminators import InvariantHeads

    reps: list[Any] = [block.out_rep for _, block in blocks]
    return InvariantHeads(reps, **options)


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
        on_samples: True for a discriminator that sees the noised sample itself, and conditions as
            tokens (B, T_z, d_z); False for heads on blocks of the network.
        blocks: of the network, as in `block_features`.

    Raises:
        ValueError: as `heads_for`; with `on_samples` data that aren't vectors (B, d) or tokens (B,
            T, d), or a condition that is neither tokens nor None.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(seed, "discriminator").initial_seed())
        if on_samples:
            return _sample_discriminator(network, x0, cond)
        device = network_device(network, x0.device)
        dtype = network_dtype(network, x0.dtype)
        x = x0[:2].to(device, dtype)
        z = cond_to(take_rows(cond, slice(2)), device, dtype)
        return heads_for(network, x, x.new_full((len(x),), 0.5), z, blocks=blocks)


def _sample_discriminator(network: nn.Module, x0: Tensor, cond: Cond) -> nn.Module:
    """A discriminator that sees the noised sample itself, for data like `x0` and `cond`."""
    cond = bare(cond)
    has_tokens = isinstance(cond, Tensor) and cond.ndim == 3
    if x0.ndim not in (2, 3) or not (cond is None or has_tokens):
        raise ValueError(
            "expected samples (B, d) or (B, T, d) and a condition (B, T_z, d_z) or None for a "
            f"discriminator on samples, got {tuple(x0.shape)} and {cond_text(cond)}; take "
            "features of the teacher instead"
        )
    horizon = x0.shape[1] if x0.ndim == 3 else 1
    cond_horizon = 1 if cond is None else cond.shape[1]
    for module in network.modules():
        if hasattr(module, "in_rep") and hasattr(module, "cond_rep"):
            # Here, since a dense network needs no escnn.
            from .models.ediscriminators import eFourierDiscriminator

            in_rep: Any = module.in_rep
            cond_rep: Any = None if cond is None else module.cond_rep
            return eFourierDiscriminator(in_rep, cond_rep, horizon, cond_horizon)
    cond_dim = None if cond is None else cond.shape[-1]
    return FourierDiscriminator(x0.shape[-1], cond_dim, horizon, cond_horizon)
