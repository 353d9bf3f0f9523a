"""Tokens of several consecutive waypoints."""

from __future__ import annotations

from torch import Tensor

from .checks import is_count

__all__ = ["pack_tokens", "unpack_tokens"]


def pack_tokens(x: Tensor, pack: int) -> Tensor:
    """(B, T, d) -> (B, T / pack, pack d): `pack` consecutive waypoints become one token.

    A group that acts on waypoints by rho acts on a token by `pack` copies of rho. ValueError if T
    is not a multiple of `pack`.
    """
    _check_pack(pack)
    if x.ndim != 3 or x.shape[1] % pack:
        raise ValueError(
            f"expected x of shape (B, T, d) with T a multiple of pack = {pack}, got "
            f"{tuple(x.shape)}"
        )
    return x.reshape(x.shape[0], x.shape[1] // pack, pack * x.shape[2])


def unpack_tokens(x: Tensor, pack: int) -> Tensor:
    """(B, T, pack d) -> (B, T pack, d), the inverse of `pack_tokens`."""
    _check_pack(pack)
    if x.ndim != 3 or x.shape[2] % pack:
        raise ValueError(f"expected x of shape (B, T, {pack} d), got {tuple(x.shape)}")
    return x.reshape(x.shape[0], x.shape[1] * pack, x.shape[2] // pack)


def _check_pack(pack: int) -> None:
    if not is_count(pack):
        raise ValueError(f"expected pack to be a whole number >= 1, got {pack!r}")
