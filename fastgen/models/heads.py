"""What dense and equivariant discriminators share: features as tokens, and the order of the calls.

A subclass gives the parts, plain or equivariant, and this file the forward.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastgen._tensor import check_shape, expand_mask
from fastgen.models.layers import TimeEmbedding, optim_groups
from fastgen.models.regressor import batch_of_times, check_positive_int

__all__ = ["FeatureHeads", "FourierBase", "check_scale", "check_width"]


def check_scale(scale: object) -> None:
    """Raise unless the scale of frequencies is a finite number > 0."""
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0.0 < scale < math.inf:
        raise ValueError(f"expected scale to be a finite number > 0, got {scale!r}")


def check_width(width: int, num_heads: int, order: int = 1) -> None:
    """Raise unless each of ``num_heads`` heads gets whole copies of ``order`` channels."""
    check_positive_int("width", width)
    check_positive_int("num_heads", num_heads)
    if width % (num_heads * order):
        unit = f"num_heads |G| = {num_heads} x {order}" if order > 1 else f"num_heads = {num_heads}"
        raise ValueError(f"expected width to be a multiple of {unit}, got {width}")


class FeatureHeads(nn.Module):
    """One head for each feature tensor, all at one time embedding.

    Args:
        heads: modules called (tokens (B, T, size), time features (B, time_features), mask (B, T) or
            None) -> (B, 1), each with the number of channels it takes as ``size``.
        time_features: size of the time embedding, >= 2.
    """

    def __init__(self, heads: Iterable[nn.Module], time_features: int) -> None:
        super().__init__()
        self.time_emb = TimeEmbedding(time_features)
        self.heads = nn.ModuleList(heads)

    def forward(
        self,
        features: Sequence[Tensor],
        t: Tensor | float,
        cond: Any = None,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of features.

        Args:
            features: one tensor a head, in the order of the heads: tokens (B, T, size), vectors (B,
                size), or channels first (B, size, H, W), whose places are the tokens; cast to the
                dtype of the weights.
            t: times (B,), or a scalar.
            cond: not looked at: the features have seen it.
            mask: bool (B, T), True = real token, for features (B, T, size) only.

        Returns:
            (B, heads), in the dtype of the weights.

        Raises:
            ValueError: another number of features than of heads, or a shape that doesn't fit.
        """
        if isinstance(features, Tensor) or len(features) != len(self.heads):
            got = "one Tensor" if isinstance(features, Tensor) else len(features)
            raise ValueError(
                f"expected a list of {len(self.heads)} features, one a head, got {got}"
            )
        weight = self.time_emb.hidden.weight
        batch = features[0].shape[0]
        wide = torch.promote_types(weight.dtype, torch.float32)
        time = self.time_emb(batch_of_times(t, batch, device=weight.device, dtype=wide))
        logits = []
        for i, (head, x) in enumerate(zip(self.heads, features, strict=True)):
            tokens = _tokens(i, x, batch, head.size)  # pyright: ignore[reportArgumentType]
            logits.append(head(tokens.to(weight.dtype), time, mask if x.ndim == 3 else None))
        return torch.cat(logits, 1)

    def get_optim_groups(self, weight_decay: float = 1e-3) -> list[dict[str, Any]]:
        """Two optimiser groups: weights of linear maps decay, the rest does not."""
        return optim_groups(self, weight_decay)


def _tokens(i: int, x: Tensor, batch: int, size: int) -> Tensor:
    """Feature number i as tokens (B, T, size)."""
    channels_first = x.ndim == 4
    channels = x.shape[1 if channels_first else -1] if x.ndim else 0
    if x.ndim not in (2, 3, 4) or x.shape[0] != batch or channels != size or x.numel() == 0:
        raise ValueError(
            f"expected feature {i} of shape ({batch}, {size}), ({batch}, T, {size}) or ({batch}, "
            f"{size}, H, W), got {tuple(x.shape)}"
        )
    if channels_first:
        return x.flatten(2).mT
    return x[:, None] if x.ndim == 2 else x


class FourierBase(nn.Module):
    """A discriminator of its own on Fourier features of x: ``features``, a regressor ``body`` over
    tokens, a ``head``.

    Args:
        dim: channels of an x token.
        has_cond: whether there is a condition; without, the body reads one constant token.
    """

    features: nn.Module
    body: Any
    head: nn.Module

    def __init__(self, dim: int, has_cond: bool) -> None:
        super().__init__()
        self.dim = dim
        self.has_cond = has_cond

    def forward(
        self,
        features: Sequence[Tensor],
        t: Tensor | float,
        cond: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Logit of a noised sample.

        Args:
            features: [x_t] with x_t of shape (B, T <= horizon, d) or (B, d); cast to the dtype of
                the weights.
            t: times (B,), or a scalar.
            cond: Z of shape (B, T_z <= cond_horizon, d_z) or (B, d_z); None if the discriminator
                was made without.
            mask: bool (B, T), True = real token of x_t: a padded sample has the logit of the sample
                cut to its length.

        Returns:
            (B, 1), in the dtype of the weights.

        Raises:
            ValueError: a shape that doesn't fit, a condition that is missing or not expected.
        """
        if isinstance(features, Tensor) or len(features) != 1:
            got = "one Tensor" if isinstance(features, Tensor) else len(features)
            raise ValueError(f"expected features [x_t], as sample_features gives them, got {got}")
        x = features[0]
        x = x[:, None] if x.ndim == 2 else x
        check_shape("x_t", x, ("B", f"T <= {self.body.in_horizon}", self.dim))
        if (cond is not None) != self.has_cond:
            wanted = (
                "a condition"
                if self.has_cond
                else "cond=None from a discriminator made without one"
            )
            raise ValueError(
                f"expected {wanted}, got {'None' if cond is None else type(cond).__name__}"
            )
        Z = x.new_zeros(len(x), 1, 1) if cond is None else cond
        dtype = self.body.time_emb.hidden.weight.dtype
        if mask is not None:
            check_shape("mask", mask, x.shape[:2])
            # A weight of zero in attention is no protection from what is not finite.
            x = x.masked_fill(~expand_mask(mask, x), 0.0)
        y = self.features(x.to(dtype))
        Z = Z[:, None] if isinstance(Z, Tensor) and Z.ndim == 2 else Z
        return self.head(self.body(y, t, Z, mask=mask), mask=mask)

    def get_optim_groups(self, weight_decay: float = 1e-3) -> list[dict[str, Any]]:
        """Two optimiser groups: weights of linear maps decay, the rest does not."""
        return optim_groups(self, weight_decay)
