"""Kits of layers: constructors by which dense and equivariant networks share every forward.

A layer is built from a kit (constructors of a linear map, a norm, dropout, a table of positions and
a lift of invariants) over a *space*. In the kit of this file a space is a width, and a linear map
is `nn.Linear`. In `ekits.py` a space is a group representation, and the same calls give equivariant
modules. So the code of forwards, the names of submodules and the shapes are the same in both, and
an equivariant network folds into a dense one name by name.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from .._core.checks import check_count
from .maps import PositionTable
from .norms import NORM_EPS, RMSNorm, check_norm_module

__all__ = ["DENSE", "DenseKit", "LayerKit"]


class LayerKit(Protocol):
    """Constructors over one kind of space: a width, or a representation."""

    def dim(self, space: Any) -> int:
        """Number of channels."""
        ...

    def times(self, space: Any, n: int) -> Any:
        """The direct sum of n such spaces."""
        ...

    def hidden(self, space: Any) -> Any:
        """The space inside an MLP, at least four times as wide, on which a GELU may act."""
        ...

    def check_heads(self, space: Any, num_heads: int, name: str) -> None:
        """Raise ValueError unless the space splits into equal heads."""
        ...

    def linear(self, source: Any, target: Any, bias: bool = True) -> nn.Module:
        """A linear map between two spaces."""
        ...

    def lift(self, in_dim: int, space: Any) -> nn.Module:
        """A linear map from plain numbers, which no group element changes."""
        ...

    def norm(self, space: Any, norm_module: str, affine: bool = True) -> nn.Module:
        """A norm over the channels, "rmsnorm" or "layernorm"."""
        ...

    def check_modulated(self, space: Any) -> None:
        """Raise ValueError unless channels of the space may be scaled by numbers of a lift."""
        ...

    def dropout(self, space: Any, p: float) -> nn.Module:
        """Dropout with probability p."""
        ...

    def positions(self, horizon: int, space: Any) -> nn.Module:
        """A learned table of positions."""
        ...


class DenseKit:
    """The dense kit: a space is its width."""

    def dim(self, space: int) -> int:
        return space

    def times(self, space: int, n: int) -> int:
        return n * space

    def hidden(self, space: int) -> int:
        return 4 * space

    def check_heads(self, space: int, num_heads: int, name: str) -> None:
        check_count(name, num_heads)
        if space % num_heads:
            raise ValueError(f"expected {name} to divide the width {space}, got {num_heads}")

    def linear(self, source: int, target: int, bias: bool = True) -> nn.Module:
        return nn.Linear(source, target, bias=bias)

    def lift(self, in_dim: int, space: int) -> nn.Module:
        return nn.Linear(in_dim, space)

    def norm(self, space: int, norm_module: str, affine: bool = True) -> nn.Module:
        check_norm_module(norm_module)
        if norm_module == "rmsnorm":
            return RMSNorm(space, elementwise_affine=affine)
        return nn.LayerNorm(space, eps=NORM_EPS, elementwise_affine=affine)

    def check_modulated(self, space: int) -> None:
        """Any vector may be scaled channel by channel."""

    def dropout(self, space: int, p: float) -> nn.Module:
        return nn.Dropout(p) if p > 0.0 else nn.Identity()

    def positions(self, horizon: int, space: int) -> nn.Module:
        return PositionTable(horizon, space)


DENSE = DenseKit()
