"""Seeded draws: generators that are a pure function of a seed and of names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .tensors import time_dtype, wide_dtype

__all__ = ["draw_normal", "draw_rows", "draw_uniform", "draws_apart", "generator_for"]


@contextmanager
def draws_apart(device: torch.device, seed: int = 0) -> Iterator[None]:
    """Inside, torch's own generators of the CPU and of `device` begin at `seed`; afterwards they go
    on as if nothing had been drawn."""
    # Without names it would be all GPUs, of which torch warns.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def generator_for(seed: int, *stream: int | str) -> torch.Generator:
    """A fresh CPU generator whose state is a pure function of `seed` and the names in `stream`.

    `generator_for(seed, "noise", step)` gives the same draws in every process and after every
    resume. The state is a hash of the typed names (blake2b), which is the same in every Python;
    `hash` of a string is not. The CPU generator keeps its low 32 bits.
    """
    text = "\0".join(f"{type(name).__name__}:{name}" for name in (int(seed), *stream))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def draw_rows(rows: int, count: int, generator: torch.Generator) -> Tensor:
    """Some of the rows 0, 1, ..., rows - 1, in this order: (count,), count <= rows.

    One is drawn from each of `count` stretches of rows, equally long but for rounding. So they
    stand for all rows in whatever order these lie: of sorted ones each class has its share, of
    shuffled ones they are as good as drawn freely.
    """
    bounds = torch.arange(count + 1) * rows // count
    lengths = bounds.diff()
    u = torch.rand(count, dtype=torch.float64, generator=generator)
    return bounds[:-1] + (u * lengths).long()


def draw_uniform(
    shape: Sequence[int], *, device: torch.device | str, generator: torch.Generator | None = None
) -> Tensor:
    """Uniform numbers in [0, 1), in float64 where the device has it. They are drawn where
    `generator` lives and then moved."""
    place = torch.device(device) if generator is None else generator.device
    u = torch.rand(tuple(shape), dtype=wide_dtype(place), device=place, generator=generator)
    return u.to(device=device, dtype=wide_dtype(torch.device(device)))


def draw_normal(
    shape: Sequence[int],
    *,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Standard normal numbers. They are drawn where `generator` lives, in float32 at least, and
    then moved and cast."""
    place = torch.device(device) if generator is None else generator.device
    noise = torch.randn(tuple(shape), dtype=time_dtype(dtype), device=place, generator=generator)
    return noise.to(device, dtype)
