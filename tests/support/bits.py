"""Tensors to save, and whether they came back bit for bit."""

from __future__ import annotations

import torch

__all__ = ["normal", "same_bits"]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).to(dtype)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and a.numpy(force=True).tobytes() == b.numpy(force=True).tobytes()
    )
