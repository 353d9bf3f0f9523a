"""Discriminators: heads on a network's features, and networks of their own on Fourier features.

Dense and equivariant discriminators share the order of the calls: `FeatureHeads` and `FourierBase`
hold the forwards, subclasses give the parts, plain here and equivariant in `ediscriminators.py`.

References:
    Yin et al. 2024, arXiv:2405.14867, section 4.3 (heads on a network's features).
    Tancik et al. 2020, arXiv:2006.10739 (Fourier features).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._core.checks import check_count, check_shape
from .._core.masks import masks_of, with_masks
from .._core.tensors import expand_mask, masked_mean
from .arguments import batch_of_times, check_mask, check_positive
from .norms import NORM_EPS
from .parameters import optim_groups
from .time_embedding import TimeEmbedding
from .transformer import CondTransformerRegressor

__all__ = [
    "FeatureHeads",
    "FourierBase",
    "FourierDiscriminator",
    "FourierFeatures",
    "FourierHead",
    "TokenHead",
    "TokenHeads",
    "check_width",
    "mean_of_tokens",
]


def mean_of_tokens(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean (B, ...) of x (B, T, ...) over the tokens that `mask` (B, T) keeps; None keeps all."""
    return masked_mean(x, None if mask is None else expand_mask(mask, x), 1)


def check_width(width: int, num_heads: int, order: int = 1) -> None:
    """Raise unless each of `num_heads` heads gets whole copies of `order` channels."""
    check_count("width", width)
    check_count("num_heads", num_heads)
    if width % (num_heads * order):
        unit = f"num_heads |G| = {num_heads} x {order}" if order > 1 else f"num_heads = {num_heads}"
        raise ValueError(f"expected width to be a multiple of {unit}, got {width}")


# ---- Heads on features --------------------------------------------------------------------------


class FeatureHeads(nn.Module):
    """One head for each feature tensor, all with one time embedding.

    Args:
        heads: modules called with tokens (B, T, size), time features (B, time_features) and a mask
            (B, T) or None; each gives logits (B, 1) and says as `size` how many channels it takes.
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
            features: one tensor for each head, in their order: tokens (B, T, size), vectors
                (B, size), or channels first (B, size, H, W), whose places are the tokens. They are
                cast to the dtype of the weights.
            t: times (B,), or a scalar.
            cond: not used, since the features have seen it.
            mask: bool (B, T), True = real token, for features (B, T, size) only.

        Returns:
            (B, heads), in the dtype of the weights.

        Raises:
            ValueError: another number of features than of heads, or a shape that doesn't fit.
            TypeError: a mask that is not bool.
        """
        if mask is not None:
            check_mask(mask)
        if isinstance(features, Tensor) or len(features) != len(self.heads):
            got = "one Tensor" if isinstance(features, Tensor) else len(features)
            raise ValueError(
                f"expected a list of {len(self.heads)} features, one a head, got {got}"
            )
        weight = self.time_emb.hidden.weight
        batch = features[0].shape[0]
        wide = torch.promote_types(weight.dtype, torch.float32)
        times = batch_of_times(t, batch, device=weight.device, dtype=wide)
        time = self.time_emb(times)
        logits = []
        for i, (head, x) in enumerate(zip(self.heads, features, strict=True)):
            tokens = _tokens(i, x, batch, head.size)  # pyright: ignore[reportArgumentType]
            logits.append(head(tokens.to(weight.dtype), time, mask if x.ndim == 3 else None))
        return torch.cat(logits, 1)

    def get_optim_groups(self, weight_decay: float = 1e-3) -> list[dict[str, Any]]:
        """Two optimiser groups: weights of linear maps decay, the rest doesn't."""
        return optim_groups(self, weight_decay)


def _tokens(i: int, x: Tensor, batch: int, size: int) -> Tensor:
    """Feature number i as tokens (B, T, size)."""
    channels_first = x.ndim == 4
    fits = x.ndim in (2, 3, 4) and x.shape[0] == batch and x.numel() > 0
    if not fits or x.shape[1 if channels_first else -1] != size:
        raise ValueError(
            f"expected feature {i} of shape ({batch}, {size}), ({batch}, T, {size}) or ({batch}, "
            f"{size}, H, W), got {tuple(x.shape)}"
        )
    if channels_first:
        return x.flatten(2).mT
    return x[:, None] if x.ndim == 2 else x


class TokenHead(nn.Module):
    """One logit of tokens: a head of `TokenHeads`."""

    def __init__(self, dim: int, width: int, time_features: int) -> None:
        super().__init__()
        self.size = dim
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.first = nn.Linear(dim, width)
        self.second = nn.Linear(width, width)
        self.time = nn.Linear(time_features, width, bias=False)
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor, time: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, 1) of x (B, T, D) at time features (B, time_features), over the tokens that
        `mask` (B, T) keeps."""
        y = self.second(F.silu(self.first(self.norm(x))))
        y = F.silu(y + self.time(time)[:, None])
        return self.out(mean_of_tokens(y, mask))


class TokenHeads(FeatureHeads):
    """Small heads on a network's features, one logit each.

    Each token of a feature goes through LayerNorm, Linear, SiLU and Linear. A linear map of the
    time features is added, and a SiLU follows. The mean over the tokens goes through a Linear.

    Args:
        dims: channels of the features, in their order.
        width: hidden width of each head.
        time_features: size of the time embedding, >= 2.

    Raises:
        ValueError: an argument out of range.

    References: Yin et al. 2024, arXiv:2405.14867, section 4.3; here for networks of any shape.
    """

    def __init__(self, dims: Sequence[int], *, width: int = 64, time_features: int = 64) -> None:
        check_count("width", width)
        if not isinstance(dims, Sequence) or isinstance(dims, str) or not dims:
            raise ValueError(f"expected dims to be a non-empty sequence of ints, got {dims!r}")
        for i, dim in enumerate(dims):
            check_count(f"dims[{i}]", dim)
        super().__init__((TokenHead(dim, width, time_features) for dim in dims), time_features)


# ---- Discriminators on Fourier features ---------------------------------------------------------


class FourierBase(nn.Module):
    """A network of its own on Fourier features of x. Subclasses make its parts:

    - `features`: x tokens to features;
    - `body`: a regressor over the features, at time t and under Z;
    - `head`: tokens to a logit.

    Args:
        dim: channels of an x token.
        has_cond: whether there is a condition. Without one the body reads one constant token.
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
        cond: Any = None,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Logit of a noised sample.

        Args:
            features: [x_t] with x_t of shape (B, T <= horizon, d) or (B, d); cast to the dtype of
                the weights.
            t: times (B,), or a scalar.
            cond: Z of shape (B, T_z <= cond_horizon, d_z) or (B, d_z); None if the discriminator
                was made without a condition. Or {"Z": Z, "mask": bool (B, T), "cond_mask": bool
                (B, T_z)}, True = real token, of which either mask may be missing.
            mask: bool (B, T), True = real token of x_t, where `cond` doesn't hold it: a padded
                sample has the logit of the sample cut to its length.

        Returns:
            (B, 1), in the dtype of the weights.

        Raises:
            ValueError: a shape that doesn't fit, a condition that is missing or not expected.
            TypeError: a mask that is not bool.
        """
        if mask is not None:
            check_mask(mask)
        if isinstance(features, Tensor) or len(features) != 1:
            got = "one Tensor" if isinstance(features, Tensor) else len(features)
            raise ValueError(f"expected features [x_t], as sample_features gives them, got {got}")
        x = features[0]
        x = x[:, None] if x.ndim == 2 else x
        check_shape("x_t", x, ("B", f"T <= {self.body.in_horizon}", self.dim))
        cond, own_mask, cond_mask = masks_of(cond)
        mask = own_mask if mask is None else mask
        Z = self._condition_tokens(cond, x)
        if mask is not None:
            check_shape("mask", mask, x.shape[:2])
            # A weight of zero in attention is no protection from what is not finite.
            x = x.masked_fill(~expand_mask(mask, x), 0.0)
        y = self.features(x.to(self.body.time_emb.hidden.weight.dtype))
        return self.head(self.body(y, t, with_masks(Z, None, cond_mask), mask=mask), mask=mask)

    def _condition_tokens(self, cond: Any, x: Tensor) -> Any:
        """Z as tokens; one of zeros without a condition."""
        if self.has_cond and cond is None:
            raise ValueError("expected a condition, got None")
        if not self.has_cond and cond is not None:
            got = type(cond).__name__
            raise ValueError(f"expected cond=None from a discriminator made without one, got {got}")
        if cond is None:
            return x.new_zeros(len(x), 1, 1)
        return cond[:, None] if isinstance(cond, Tensor) and cond.ndim == 2 else cond

    def get_optim_groups(self, weight_decay: float = 1e-3) -> list[dict[str, Any]]:
        """Two optimiser groups: weights of linear maps decay, the rest doesn't."""
        return optim_groups(self, weight_decay)


class FourierFeatures(nn.Module):
    """Fourier features [x, cos(x W), sin(x W)] of x: (..., d) -> (..., d + 2 num_frequencies).

    Args:
        dim: d.
        num_frequencies: columns of W.
        scale: W has fixed entries scale * N(0, 1).
        generator: draws W.
    """

    frequencies: Tensor

    def __init__(
        self,
        dim: int,
        num_frequencies: int,
        scale: float,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("num_frequencies", num_frequencies)
        check_positive("scale", scale)
        drawn = torch.randn(dim, num_frequencies, generator=generator, dtype=torch.float64)
        self.register_buffer("frequencies", (scale * drawn).to(torch.get_default_dtype()))

    def forward(self, x: Tensor) -> Tensor:
        """Features in the dtype of x; phases are computed in at least float32."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        phase = wide @ self.frequencies.to(wide.dtype)
        return torch.cat([wide, phase.cos(), phase.sin()], -1).to(x.dtype)


class FourierHead(nn.Module):
    """One logit (B, 1) of tokens (B, T, width): mean over the tokens that a mask (B, T) keeps,
    LayerNorm, Linear, SiLU, Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.norm(mean_of_tokens(x, mask))
        return self.out(F.silu(self.hidden(y)))


class FourierDiscriminator(FourierBase):
    """A discriminator with a network of its own, for low-dimensional data.

    It is called `discriminator([x_t], t, cond)`: use it with `features=sample_features`. The tokens
    [x, cos(x W), sin(x W)] have fixed random frequencies W. A `CondTransformerRegressor` over them
    is modulated by t and reads Z, and a `FourierHead` follows.

    Why frequencies: on raw coordinates such a network would see coarse differences only. Why a
    network of its own: features of a teacher lack what the teacher did not learn.

    Args:
        dim: channels d of an x token.
        cond_dim: channels of a Z token, None for no condition.
        horizon, cond_horizon: most tokens of x and Z.
        num_frequencies: columns of W.
        scale: W has entries scale * N(0, 1), in radians per unit of x.
        width: of the tokens.
        num_layers, num_heads: of the transformer.
        generator: draws W; the weights come from torch's global state.

    Raises:
        ValueError: an argument out of range.

    References: Tancik et al. 2020, arXiv:2006.10739 (Fourier features).
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int | None = None,
        horizon: int = 1,
        cond_horizon: int = 1,
        *,
        num_frequencies: int = 64,
        scale: float = 2.0,
        width: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        check_width(width, num_heads)
        super().__init__(dim, cond_dim is not None)
        self.features = FourierFeatures(dim, num_frequencies, scale, generator=generator)
        self.body = CondTransformerRegressor(
            dim + 2 * num_frequencies,
            width,
            1 if cond_dim is None else cond_dim,
            horizon,
            cond_horizon,
            num_layers,
            num_heads,
            width,
            p_drop_emb=0.0,
            p_drop_attn=0.0,
        )
        self.head = FourierHead(width)
