"""Samples in original units: what every sampler here does around its solver.

A network sees normalised channels, and `pack` waypoints of a trajectory as one token:

    y_T = pack(noise)        y = solve(y_T, normalize(Z))        X = denormalize(unpack(y))

`sample_in_original_units` is this line for any solver: the few calls of a student, and the many of
the teacher that it is scored against.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._core.conditions import cond_to, map_tensors, take_rows
from .._core.masks import masks_of, packed_mask, real_only, with_masks
from .._core.tensors import without_gradients
from ..box import Box
from ..networks import network_device, network_dtype
from ..normalizer import Normalizer, pack_tokens, unpack_tokens

__all__ = ["sample_in_original_units"]


@without_gradients
def sample_in_original_units(
    network: nn.Module,
    solve: Callable[[Tensor, Any], Tensor],
    noise: Tensor,
    cond: Any,
    *,
    x_normalizer: Normalizer | None = None,
    z_normalizer: Normalizer | None = None,
    pack: int = 1,
    box: Box | None = None,
    num_samples: int = 1,
    rows: int | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Samples X given Z by a solver that speaks what the network speaks.

    Args:
        network: what `solve` calls. Its device and its dtype are those that `solve` is given
            tensors in.
        solve: (noise, cond) -> samples, on packed tokens of normalised channels.
        noise: (R, ...), R = B num_samples, standard normal, in the shape of the samples.
        cond: Z of B rows in original units, or what a network of your own takes; its integers stay
            as they are. With masks (`_core/masks.py`), that of X for waypoints.
        x_normalizer, z_normalizer: None changes nothing.
        pack: waypoints per token of a trajectory (R, T_x, d_x).
        box: in original units, what the samples are clamped to; None: they aren't.
        num_samples: rows of `noise` for each row of `cond`, one after the other.
        rows: the most that `solve` is given at once, to bound the memory; None: all.
        device: where the samples are wanted; None: where the network is.

    Returns:
        X in the shape of `noise`, original units, no gradient. In the dtype of the network, or in
        float64 where `x_normalizer` needs it. Padding is 0.
    """
    place = network_device(network, torch.device("cpu"))
    dtype = network_dtype(network, torch.float32)

    def normalized(z: Tensor) -> Tensor:
        # In float64: an observation far from the origin must not lose its digits before the mean
        # is taken off. Before it is moved: not every device has float64.
        return z if z_normalizer is None else z_normalizer.normalize(z.double()).to(dtype)

    def repeated(z: Tensor) -> Tensor:
        return z if num_samples == 1 else z.repeat_interleave(num_samples, dim=0)

    Z, mask, cond_mask = masks_of(cond)
    Z = map_tensors(normalized, Z)
    if cond_mask is not None:
        Z = map_tensors(lambda z: real_only(z, with_masks(None, cond_mask)), Z)
    tokens = None if mask is None else packed_mask(mask, pack)
    cond = map_tensors(repeated, cond_to(with_masks(Z, tokens, cond_mask), place, dtype))
    y_T = pack_tokens(noise, pack) if pack > 1 else noise
    # Half precision has too few digits for the state of a sampler; the network still sees its own
    # dtype.
    y_T = y_T.to(place, torch.promote_types(dtype, torch.float32))

    if rows is None:
        y = solve(y_T, cond)
    else:
        chunks = [slice(start, start + rows) for start in range(0, len(y_T), rows)]
        y = torch.cat([solve(y_T[chunk], take_rows(cond, chunk)) for chunk in chunks])

    x = unpack_tokens(y, pack) if pack > 1 else y
    x = x.to(place if device is None else device)
    if x_normalizer is None:
        x = x.to(dtype)
    elif x_normalizer.needs_float64:
        x = x_normalizer.denormalize(x.double())
    else:
        x = x_normalizer.denormalize(x).to(dtype)
    x = x if box is None else box.clamp(x)
    return x if mask is None else real_only(x, with_masks(None, repeated(mask).to(x.device)))
