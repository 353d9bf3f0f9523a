"""What a discriminator sees of a sample: features of the teacher's own blocks.

Features are passed on as arguments; nothing is kept between two calls, on the network or anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .networks import Cond, NetworkWrapper, call_network

__all__ = ["block_features"]

Features = Callable[[Tensor, Tensor, Cond], list[Tensor]]


def block_features(network: nn.Module, blocks: Sequence[str] | None = None) -> Features:
    """A function `features(x_t, t, cond)` -> outputs of `blocks`, in the order in which they are called.

    Args:
        network: called `network(x_t, t, cond)`; its call is differentiable in x_t, and so are the features.
        blocks: names of submodules as in `network.named_modules()`; None: the entries of its last `nn.ModuleList`
            (the decoder layers of the transformers here), or its direct children if it has none.

    Raises:
        ValueError: a name that the network doesn't have, or a network without submodules; when called, a block that
            returns no Tensor with the rows of x_t.
    """
    modules = dict(network.named_modules())
    if blocks is None:
        lists = [name for name, module in modules.items() if isinstance(module, nn.ModuleList) and len(module)]
        # A wrapper's only child is the network, whose output is the prediction.
        wrapped = [name for name, module in modules.items() if not isinstance(module, NetworkWrapper)]
        parent = lists[-1] if lists else wrapped[0]
        prefix = f"{parent}." if parent else ""
        blocks = [prefix + name for name, _ in modules[parent].named_children()]
    if unknown := [name for name in blocks if name not in modules]:
        raise ValueError(f"expected blocks among the network's named_modules(), got {unknown[:5]}")
    if not blocks:
        raise ValueError(f"expected a network with submodules to take features from, got {type(network).__name__}")

    def features(x_t: Tensor, t: Tensor, cond: Cond) -> list[Tensor]:
        found: list[Tensor] = []

        def keep(module: nn.Module, args: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple | list) and output else output
            if not isinstance(first, Tensor) or first.ndim == 0 or first.shape[0] != x_t.shape[0]:
                got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
                raise ValueError(f"expected Tensors (B, ...) from the blocks {list(blocks)}, got {got}; name others")
            found.append(first)

        handles = [modules[name].register_forward_hook(keep) for name in blocks]
        try:
            call_network(network, x_t, t, cond, dtype=x_t.dtype)
        finally:
            for handle in handles:
                handle.remove()
        return found

    return features
