"""The equivariant conditional transformer regressor."""

from __future__ import annotations

import warnings
from typing import Any

from escnn.group import Representation

from .._core.checks import check_count
from .ekits import EQUIVARIANT
from .elayers import eTransformerDecoderLayer, eTransformerEncoderLayer
from .emlp import eMLP
from .fourier import fourier_stack
from .representations import check_representation, kernel_note
from .specs import describe_group, describe_representation
from .stacks import Stack, regular_stack
from .transformer import CondTransformerBase
from .typed import SharedRepresentations

__all__ = ["eCondTransformerRegressor", "irreps_win"]

# Ways in which the linear maps between hidden tokens can be evaluated.
BASES = ("auto", "regular", "irrep")


def irreps_win(order: int, width: int) -> bool:
    """Whether the irrep basis is faster than the regular one, for a group order and a width.

    The irrep basis saves time by block-diagonal maps, and loses some by small products and by two
    Fourier transforms an MLP.

    It was measured on a CPU. From these widths on the irrep basis was faster for every size of the
    batch: with D4 at width 256 a training step took .81 and an evaluation .93 of the time for a
    single sample, .60 and .6 for 64 samples.
    """
    return width >= 240 and order >= 8 and width // order >= 4


class eCondTransformerRegressor(SharedRepresentations, CondTransformerBase):
    r"""Equivariant twin of `CondTransformerRegressor`.

    .. math::
        f_\theta(\rho_{in}(g) X, \rho_{cond}(g) Z, t) = \rho_{out}(g) f_\theta(X, Z, t)
            \quad \forall g \in G

    Tokens live in copies of the regular representation. Positions and time enter through its
    invariant subspace. Heads hold whole copies.

    Args:
        in_rep: representation of X tokens: a real orthogonal `escnn.group.Representation` of a
            finite group, in any basis.
        cond_rep: representation of Z tokens.
        out_rep: representation of output tokens, None for `in_rep`.
        in_horizon: largest T_x.
        cond_horizon: largest T_z.
        num_layers: decoder layers, >= 1.
        num_attention_heads: heads; divides `embedding_dim` / |G|.
        embedding_dim: width D, a multiple of the group order |G|.
        p_drop_emb, p_drop_attn, causal_attn, num_cond_layers, norm_module, init_scheme, time_scale:
            as for `CondTransformerRegressor`. Dropout removes whole copies, so that it commutes
            with the group.
        basis: how linear maps between hidden tokens are evaluated. Each way is the same function of
            the same parameters. "regular" gathers the dense matrix of a group convolution. "irrep"
            keeps the tokens in the irrep basis, where the maps are block-diagonal, and goes through
            the regular one only around the GELU. "auto" takes "irrep" where it was measured to be
            faster on a CPU: D >= 240, |G| >= 8, D / |G| >= 4.

    Raises:
        TypeError: a representation that is not one.
        ValueError: an argument out of range, named as here; representations of different groups.

    Warns:
        UserWarning: elements of the group that act as the identity on X, Z and V alike.

    References: Cohen and Welling 2016, arXiv:1602.07576 (group convolutions).
    """

    kit = EQUIVARIANT
    encoder_class = eTransformerEncoderLayer
    decoder_class = eTransformerDecoderLayer
    mlp_class = eMLP

    def __init__(
        self,
        in_rep: Representation,
        cond_rep: Representation,
        out_rep: Representation | None,
        in_horizon: int,
        cond_horizon: int,
        num_layers: int,
        num_attention_heads: int,
        embedding_dim: int,
        p_drop_emb: float = 0.1,
        p_drop_attn: float = 0.1,
        causal_attn: bool = False,
        num_cond_layers: int = 0,
        norm_module: str = "rmsnorm",
        init_scheme: str = "xavier_uniform",
        time_scale: float = 1000.0,
        *,
        basis: str = "auto",
    ) -> None:
        out_rep = in_rep if out_rep is None else out_rep
        reps = {"in_rep": in_rep, "cond_rep": cond_rep, "out_rep": out_rep}
        _check_one_group(reps)
        if basis not in BASES:
            raise ValueError(
                f"unknown basis {basis!r}, expected one of those available: {', '.join(BASES)}"
            )
        _check_width(in_rep, embedding_dim)
        if (note := kernel_note(reps)) is not None:
            warnings.warn(note, stacklevel=2)
        super().__init__(in_rep.size, out_rep.size, cond_rep.size)
        self.in_rep = in_rep
        self.cond_rep = cond_rep
        self.out_rep = out_rep
        self.basis = basis
        arguments = {
            "in_horizon": in_horizon,
            "cond_horizon": cond_horizon,
            "num_layers": num_layers,
            "num_attention_heads": num_attention_heads,
            "p_drop_emb": p_drop_emb,
            "p_drop_attn": p_drop_attn,
            "causal_attn": causal_attn,
            "num_cond_layers": num_cond_layers,
            "norm_module": norm_module,
            "init_scheme": init_scheme,
            "time_scale": time_scale,
        }
        self.config: dict[str, Any] = {
            "class": "eCondTransformerRegressor",
            "group": describe_group(in_rep.group),
            **{name: describe_representation(rep) for name, rep in reps.items()},
            "embedding_dim": embedding_dim,
            "basis": basis,
            **arguments,
        }
        space = _hidden_space(in_rep, embedding_dim, basis)
        self.build(in_rep, out_rep, cond_rep, space, **arguments)

    @property
    def embedding_rep(self) -> Representation:
        """Representation of the hidden tokens: `embedding_dim` / |G| copies of the regular
        representation, in the basis that the linear maps work in."""
        return self.head.in_rep


def _check_one_group(reps: dict[str, Representation]) -> None:
    """Raise unless all are representations of the first one's group."""
    group = None
    for name, rep in reps.items():
        check_representation(name, rep)
        group = rep.group if group is None else group
        if rep.group != group:
            raise ValueError(
                f"expected {name} to be a representation of in_rep's group {group.name}, got "
                f"{rep.group.name}"
            )


def _check_width(in_rep: Representation, embedding_dim: int) -> None:
    """Raise unless the width is a multiple of the group's order."""
    check_count("embedding_dim", embedding_dim)
    order = in_rep.group.order()
    if embedding_dim % order:
        lower = max(embedding_dim // order, 1) * order
        raise ValueError(
            f"expected embedding_dim to be a multiple of the order {order} of "
            f"{in_rep.group.name}, got {embedding_dim}; the next ones are {lower} and "
            f"{lower + order}"
        )


def _hidden_space(in_rep: Representation, embedding_dim: int, basis: str) -> Stack:
    """The regular copies that hidden tokens live in, in the basis that was chosen."""
    group = in_rep.group
    copies = embedding_dim // group.order()
    if basis == "auto":
        basis = "irrep" if irreps_win(group.order(), embedding_dim) else "regular"
    return fourier_stack(group, copies) if basis == "irrep" else regular_stack(group, copies)
