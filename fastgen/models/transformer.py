"""The conditional transformer regressor on plain vectors, and the forward that it shares with its
equivariant twin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._core.checks import check_count
from .._core.masks import masks_of
from .arguments import (
    batch_of_times,
    check_mask,
    check_probability,
    check_seen,
    check_sequence,
)
from .kits import DENSE, LayerKit
from .layers import TransformerDecoderLayer, TransformerEncoderLayer
from .mlp import MLP
from .norms import check_norm_module
from .parameters import check_scheme, optim_groups, reset_parameters_
from .regressor import GenCondRegressor
from .time_embedding import TimeEmbedding

__all__ = ["CondTransformerBase", "CondTransformerRegressor"]

# Time is one number: its features need not grow with the network.
TIME_FEATURES = 64


class ConditionMLP(nn.Module):
    """The condition encoder without attention: c + MLP(norm(c)), token by token."""

    def __init__(
        self, kit: LayerKit, mlp_class: type[MLP], space: Any, dropout: float, norm_module: str
    ) -> None:
        super().__init__()
        self.mlp_norm = kit.norm(space, norm_module)
        self.mlp = mlp_class(space, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.mlp_norm(x))


class CondTransformerBase(GenCondRegressor):
    """Body and forward of both transformer regressors.

    Subclasses choose the kit and the classes of layers, and call `build` with the spaces.
    """

    kit: LayerKit = DENSE
    encoder_class: type[TransformerEncoderLayer] = TransformerEncoderLayer
    decoder_class: type[TransformerDecoderLayer] = TransformerDecoderLayer
    mlp_class: type[MLP] = MLP
    layer_list = "decoder"  # whose number may change (depth.py)

    def build(
        self,
        in_space: Any,
        out_space: Any,
        cond_space: Any,
        space: Any,
        *,
        in_horizon: int,
        cond_horizon: int,
        num_layers: int,
        num_attention_heads: int,
        p_drop_emb: float,
        p_drop_attn: float,
        causal_attn: bool,
        num_cond_layers: int,
        time_scale: float,
        norm_module: str,
        init_scheme: str,
    ) -> None:
        """Make all submodules.

        Args:
            in_space, out_space, cond_space: spaces of X tokens, output tokens and Z tokens.
            space: of the hidden tokens.
            in_horizon, ..., init_scheme: as for :class:`CondTransformerRegressor`.
        """
        check_count("in_horizon", in_horizon)
        check_count("cond_horizon", cond_horizon)
        check_count("num_layers", num_layers)
        check_count("num_cond_layers", num_cond_layers, least=0)
        check_probability("p_drop_emb", p_drop_emb)
        check_probability("p_drop_attn", p_drop_attn)
        check_norm_module(norm_module)
        check_scheme("init_scheme", init_scheme)
        if not isinstance(causal_attn, bool):
            raise ValueError(f"expected causal_attn to be a bool, got {causal_attn!r}")
        kit = self.kit
        random_state = torch.get_rng_state()
        kit.check_heads(space, num_attention_heads, "num_attention_heads")
        self.in_horizon = in_horizon
        self.cond_horizon = cond_horizon
        self.causal_attn = causal_attn

        # Embed: tokens by a linear map, positions and time through the invariant subspace.
        self.input_emb = kit.linear(in_space, space)
        self.cond_emb = kit.linear(cond_space, space)
        self.time_emb = TimeEmbedding(TIME_FEATURES, time_scale)
        self.time_token = kit.lift(TIME_FEATURES, space)
        self.pos_emb = kit.positions(in_horizon, space)
        self.cond_pos_emb = kit.positions(cond_horizon + 1, space)
        self.drop = kit.dropout(space, p_drop_emb)

        # Encode the condition, decode the trajectory.
        layer = {"dropout": p_drop_attn, "norm_module": norm_module}
        if num_cond_layers:
            encoders = [
                self.encoder_class(space, num_attention_heads, **layer)
                for _ in range(num_cond_layers)
            ]
            self.encoder = nn.Sequential(*encoders)
        else:
            self.encoder = ConditionMLP(kit, self.mlp_class, space, p_drop_attn, norm_module)
        self.memory_norm = kit.norm(space, norm_module)
        self.decoder = nn.ModuleList(
            self.decoder_class(space, num_attention_heads, time_dim=TIME_FEATURES, **layer)
            for _ in range(num_layers)
        )

        # Head.
        self.norm = kit.norm(space, norm_module)
        self.head: Any = kit.linear(space, out_space)

        # What the layers drew by themselves is forgotten: a seed gives the numbers of a reset with
        # that seed.
        torch.set_rng_state(random_state)
        self.reset_parameters(init_scheme)

    def forward(
        self, X: Tensor, opt_step: Tensor | float | int, Z: Any, *, mask: Tensor | None = None
    ) -> Tensor:
        """Evaluate V = f(X, Z, t).

        Args:
            X: noisy trajectory, shape (B, T_x <= in_horizon, d_x); cast to the dtype of the
                weights.
            opt_step: time t, in [0, 1] for a rectified flow: an int, a float, a 0-d tensor or a
                tensor of shape (B,); or of shape (B, T_x), each token's own, of which the condition
                is told the latest. The same time for all tokens of a row is its time.
            Z: condition, shape (B, T_z <= cond_horizon, d_z); cast likewise. Or {"Z": Z, "mask":
                bool (B, T_x), "cond_mask": bool (B, T_z)}, True = real token, where either mask may
                be missing: no token sees padding, whatever it holds, and V is 0 there.
            mask: bool (B, T_x), where Z holds none: no token of X sees the others, which must be
                finite all the same and have answers.

        Returns:
            V of shape (B, T_x, d_v) in the dtype of the weights.

        Raises:
            ValueError: a shape that does not fit, or a mask that hides all tokens of a row.
            TypeError: an argument that is not a floating tensor, a time that is not a number, or a
                mask that is not bool.
        """
        Z, padding, cond_mask = masks_of(Z)
        check_sequence("X", X, horizon=self.in_horizon, dim=self.in_dim)
        check_sequence("Z", Z, horizon=self.cond_horizon, dim=self.cond_dim, batch=X.shape[0])
        X = _without_padding(X, padding)
        Z = _without_padding(Z, cond_mask)
        mask = padding if mask is None else mask
        if mask is not None:
            check_mask(mask, (X.shape[0], X.shape[1]))
        dtype = self.time_emb.hidden.weight.dtype
        wide = torch.promote_types(dtype, torch.float32)
        times = batch_of_times(opt_step, X.shape[0], device=X.device, dtype=wide, tokens=X.shape[1])
        features = self.time_emb(times)
        time, latest = self._time_tokens(times, features)
        x = self.drop(self.input_emb(X.to(dtype)) + self.pos_emb(X.shape[1]) + time)
        cond = torch.cat([latest, self.cond_emb(Z.to(dtype))], dim=1)
        cond = self.drop(cond + self.cond_pos_emb(cond.shape[1]))
        seen: dict[str, Tensor] = {}
        if cond_mask is not None:
            check_seen(cond_mask)
            time_is_seen = cond_mask.new_ones(cond_mask.shape[0], 1)
            seen = {"memory_mask": torch.cat([time_is_seen, cond_mask], dim=1)}
        memory = self.memory_norm(self._encoded(cond, seen.get("memory_mask")))
        for layer in self.decoder:
            x = layer(x, memory, features, is_causal=self.causal_attn, mask=mask, **seen)
        return _without_padding(self.head(self.norm(x)), padding)

    def _encoded(self, cond: Tensor, seen: Tensor | None) -> Tensor:
        """The condition stream after its encoder, whose attention sees what `seen` keeps."""
        if seen is None or isinstance(self.encoder, ConditionMLP):
            return self.encoder(cond)
        for layer in self.encoder:
            cond = layer(cond, mask=seen)
        return cond

    def _time_tokens(self, times: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """The time as it is added to tokens, (B, 1, D) or (B, T_x, D), and as a token of the
        condition, (B, 1, D): the latest of a row, where noise is that isn't given."""
        if times.ndim == 1:
            time = self.time_token(features)[:, None]
            return time, time
        time = self.time_token(features)
        row = torch.arange(times.shape[0], device=times.device)
        return time, time[row, times.argmax(1)][:, None]

    def get_optim_groups(self, weight_decay: float = 1e-3) -> list[dict[str, Any]]:
        """Two optimiser groups that hold every parameter once.

        Weights of linear maps decay, embeddings and head included; biases, norms and tables of
        positions don't.

        Raises:
            ValueError: `weight_decay` is negative.
        """
        return optim_groups(self, weight_decay)

    def reset_parameters(self, scheme: str = "xavier_uniform") -> None:
        """Draw all parameters afresh, as the constructor does.

        Linear weights are drawn by `scheme` and positions from N(0, 0.1^2); biases are 0, norms 1.

        Args:
            scheme: xavier_uniform, xavier_normal, kaiming_uniform or kaiming_normal.

        Raises:
            ValueError: unknown scheme.
        """
        reset_parameters_(self, scheme)


def _without_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """Tokens x (B, T, d) with 0 where `mask`, bool (B, T) or (1, T), is False."""
    if mask is None:
        return x
    check_mask(mask, (x.shape[0], x.shape[1]))
    return x.masked_fill(~mask[..., None], 0.0)


class CondTransformerRegressor(CondTransformerBase):
    r"""Encoder-decoder transformer :math:`V = f_\theta(X, Z, t)` of shape (B, T_x, d_v).

    The condition stream is [time token, Z tokens] with learned positions. It is encoded by
    `num_cond_layers` encoder layers or, where this is 0, by an MLP. The decoder runs over the X
    tokens, plus positions and the time embedding, with cross-attention to the condition stream.
    Layers are pre-norm and residual; those of the decoder are modulated by the time.

    Args:
        in_dim: d_x.
        out_dim: d_v.
        cond_dim: d_z.
        in_horizon: largest T_x.
        cond_horizon: largest T_z.
        num_layers: decoder layers, >= 1.
        num_attention_heads: heads; divides `embedding_dim`.
        embedding_dim: width D.
        p_drop_emb: dropout on the embedded tokens, in [0, 1).
        p_drop_attn: dropout on attention weights and residual branches, in [0, 1).
        causal_attn: X token i sees X tokens <= i, the time token and all of Z.
        num_cond_layers: encoder layers of the condition, >= 0.
        time_scale: multiplies t inside the time embedding.
        norm_module: "rmsnorm" or "layernorm".
        init_scheme: as for `reset_parameters`.

    Raises:
        ValueError: an argument out of range, named as here.

    References:
        Vaswani et al. 2017, arXiv:1706.03762.
        Chi et al. 2023, arXiv:2303.04137 (the conditioning).
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        cond_dim: int,
        in_horizon: int,
        cond_horizon: int,
        num_layers: int = 6,
        num_attention_heads: int = 6,
        embedding_dim: int = 768,
        p_drop_emb: float = 0.1,
        p_drop_attn: float = 0.1,
        causal_attn: bool = False,
        num_cond_layers: int = 0,
        time_scale: float = 1000.0,
        *,
        norm_module: str = "rmsnorm",
        init_scheme: str = "xavier_uniform",
    ) -> None:
        super().__init__(in_dim, out_dim, cond_dim)
        check_count("embedding_dim", embedding_dim)
        arguments = {
            "in_horizon": in_horizon,
            "cond_horizon": cond_horizon,
            "num_layers": num_layers,
            "num_attention_heads": num_attention_heads,
            "p_drop_emb": p_drop_emb,
            "p_drop_attn": p_drop_attn,
            "causal_attn": causal_attn,
            "num_cond_layers": num_cond_layers,
            "time_scale": time_scale,
            "norm_module": norm_module,
            "init_scheme": init_scheme,
        }
        self.config: dict[str, Any] = {
            "class": "CondTransformerRegressor",
            "in_dim": in_dim,
            "out_dim": out_dim,
            "cond_dim": cond_dim,
            "embedding_dim": embedding_dim,
            **arguments,
        }
        self.build(in_dim, out_dim, cond_dim, embedding_dim, **arguments)
