"""Invariant discriminators: no element of the group changes their logit, D(g x | g z) = D(x | z).

Equivariant features become invariant numbers by a pointwise nonlinearity on regular copies and the
mean over each copy. Without the nonlinearity that mean would see the trivial irrep alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from escnn.group import Representation
from torch import Tensor, nn

from .._core.checks import check_count
from .arguments import check_positive
from .discriminators import FeatureHeads, FourierBase, check_width, mean_of_tokens
from .ekits import EQUIVARIANT
from .emaps import eLinear
from .etransformer import eCondTransformerRegressor
from .fourier import FourierStack
from .representations import check_representation, kernel_note, rep_matrices
from .stacks import regular_stack
from .typed import Typed

__all__ = ["InvariantHead", "InvariantHeads", "eFourierDiscriminator", "eFourierFeatures"]

# Regular copies in the head of an `eFourierDiscriminator`.
HEAD_COPIES = 32
# The least width of its tokens by default.
LEAST_WIDTH = 64


class InvariantHead(nn.Module):
    """One invariant logit of tokens: a head of `InvariantHeads`.

    Args:
        in_rep: representation of the tokens.
        width: regular copies between.
        time_features: size of the time embedding, 0 for a head without the time.
    """

    def __init__(self, in_rep: Representation, width: int, time_features: int = 0) -> None:
        super().__init__()
        check_representation("in_rep", in_rep)
        if isinstance(in_rep, FourierStack):
            copies = in_rep.of_copies(width)
        else:
            copies = regular_stack(in_rep.group, width)
        self.norm = EQUIVARIANT.norm(in_rep, "layernorm")
        self.lift = eLinear(in_rep, copies)
        # One number for each copy, which is a constant function on the group.
        self.time = nn.Linear(time_features, width, bias=False) if time_features else None
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)

    @property
    def in_rep(self) -> Representation:
        return self.lift.in_rep

    @property
    def size(self) -> int:
        """Channels of a token."""
        return self.in_rep.size

    def forward(self, x: Tensor, time: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Logits (B, 1) of x (B, T, D) at time features (B, time_features), over the tokens that
        `mask` (B, T) keeps."""
        y = self._functions(self.lift(self.norm(x)))
        if self.time is not None:
            y = y + self.time(time)[:, None, :, None]
        y = mean_of_tokens(F.silu(y).mean(-1), mask)
        return self.out(F.silu(self.hidden(y)))

    def _functions(self, y: Tensor) -> Tensor:
        """Copies of the regular representation as functions on the group, (B, T, copy, element), to
        which a pointwise nonlinearity may be applied."""
        order = self.in_rep.group.order()
        if not isinstance(self.lift.out_rep, FourierStack):
            return y.unflatten(-1, (-1, order))
        fourier: Tensor = self.lift.fourier.to(y.dtype)  # pyright: ignore[reportAssignmentType]
        return (fourier @ y.unflatten(-1, (order, -1))).mT


class InvariantHeads(FeatureHeads):
    """`TokenHeads` for equivariant features: the logits are invariant.

    Each feature (B, T, rep.size) goes through a norm and an eLinear to `width` regular copies. A
    linear map of the time features is added, and a SiLU follows. The mean over each copy and over
    the tokens goes through Linear, SiLU, Linear.

    Args:
        reps: representations of the features, one each: regular copies in either basis, or any
            other.
        width: regular copies between: a logit is made of so many invariants.
        time_features: size of the time embedding, >= 2.

    Raises:
        TypeError, ValueError: something that is no representation of a finite group, or an argument
            out of range.
    """

    def __init__(
        self, reps: Sequence[Representation], *, width: int = 32, time_features: int = 64
    ) -> None:
        check_count("width", width)
        if not isinstance(reps, Sequence) or not reps:
            raise ValueError(
                f"expected reps to be a non-empty sequence of representations, got {reps!r}"
            )
        super().__init__((InvariantHead(rep, width, time_features) for rep in reps), time_features)

    @property
    def in_reps(self) -> tuple[Representation, ...]:
        """Representations of the features."""
        return tuple(head.in_rep for head in self.heads)  # pyright: ignore[reportReturnType]


class eFourierFeatures(Typed):
    r"""Fourier features of x, read along its orbit.

    Take phi(x) = [x, cos(x W), sin(x W)]. Each number of phi gives a function on the group,
    f[g] = phi(rho(g)^{-1} x). Moving x by a turns f[g] into f[a^{-1} g], so f lives in one copy of
    the regular representation. It has the frequencies rho(g) W.

    Args:
        in_rep: representation of x, of size d.
        num_frequencies: columns of W, of which each stands for its whole orbit.
        scale: W has entries scale * N(0, 1).
        generator: draws W.
    """

    frequencies: Tensor
    orbit: Tensor

    def __init__(
        self,
        in_rep: Representation,
        num_frequencies: int,
        scale: float = 2.0,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        check_count("num_frequencies", num_frequencies)
        check_positive("scale", scale)
        check_representation("in_rep", in_rep)
        d = in_rep.size
        super().__init__(in_rep, regular_stack(in_rep.group, d + 2 * num_frequencies))
        # The matrix [e', (g, e)] = rho(g)[e', e] maps x to (rho(g)^-1 x)_e for all g.
        orbit = rep_matrices(in_rep).permute(1, 0, 2).reshape(d, -1)
        self.register_constant("orbit", orbit)
        drawn = torch.randn(d, num_frequencies, generator=generator, dtype=torch.float64)
        self.register_buffer("frequencies", (scale * drawn).to(torch.get_default_dtype()))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., (d + 2 num_frequencies) |G|), in the dtype of x; computed in at least
        float32."""
        wide = x.to(torch.promote_types(x.dtype, self.orbit.dtype))
        moved = wide @ self.orbit.to(wide.dtype)
        y = moved.unflatten(-1, (-1, x.shape[-1]))  # (..., g, d): rho(g)^-1 x
        phase = y @ self.frequencies.to(wide.dtype)
        return torch.cat([y, phase.cos(), phase.sin()], -1).mT.flatten(-2).to(x.dtype)


class eFourierDiscriminator(FourierBase):
    """`FourierDiscriminator` with an invariant logit, D(g x | g z) = D(x | z).

    Equivariant Fourier features, an `eCondTransformerRegressor` over the tokens, and a head as in
    `InvariantHeads`.

    Args:
        in_rep: representation of x tokens.
        cond_rep: representation of Z tokens, None for none.
        horizon, cond_horizon: most tokens of x and Z.
        num_frequencies: of the Fourier features, rounded up to whole orbits of |G| frequencies.
        scale: of the frequencies, in radians per unit of x.
        width: of the tokens; None for the least multiple of `num_heads` |G| that is at least 64.
        num_layers, num_heads: of the transformer.
        generator: draws the frequencies; the weights come from torch's global state.

    Raises:
        TypeError, ValueError: representations of different groups, or an argument out of range.

    References: Tancik et al. 2020, arXiv:2006.10739 (Fourier features).
    """

    features: eFourierFeatures

    def __init__(
        self,
        in_rep: Representation,
        cond_rep: Representation | None = None,
        horizon: int = 1,
        cond_horizon: int = 1,
        *,
        num_frequencies: int = 64,
        scale: float = 2.0,
        width: int | None = None,
        num_layers: int = 2,
        num_heads: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        check_count("num_frequencies", num_frequencies)
        check_count("num_heads", num_heads)
        group = check_representation("in_rep", in_rep).group
        order = group.order()
        if width is None:
            unit = num_heads * order
            width = -(-LEAST_WIDTH // unit) * unit
        check_width(width, num_heads, order)
        super().__init__(in_rep.size, cond_rep is not None)
        orbits = -(-num_frequencies // order)
        self.features = eFourierFeatures(in_rep, orbits, scale, generator=generator)
        self.body = eCondTransformerRegressor(
            self.features.out_rep,
            group.trivial_representation if cond_rep is None else cond_rep,
            regular_stack(group, width // order),
            horizon,
            cond_horizon,
            num_layers,
            num_heads,
            width,
            p_drop_emb=0.0,
            p_drop_attn=0.0,
        )
        self.head = InvariantHead(self.body.out_rep, HEAD_COPIES)
        reps = {"in_rep": in_rep}
        if cond_rep is not None:
            reps["cond_rep"] = cond_rep
        if (note := kernel_note(reps)) is not None:
            warnings.warn(note, stacklevel=2)

    @property
    def in_rep(self) -> Representation:
        """Representation of x tokens."""
        return self.features.in_rep

    @property
    def cond_rep(self) -> Representation | None:
        """Representation of Z tokens."""
        return self.body.cond_rep if self.has_cond else None
