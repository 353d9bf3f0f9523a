"""Runs of the toy that several files hold theirs against."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from support import processes


@pytest.fixture(scope="session")
def one(tmp_path_factory) -> Callable[[torch.dtype, int], Path]:
    """`one(dtype, micro_batches)`: the run of one process, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("one")

    @cache
    def made(dtype: torch.dtype, micro_batches: int) -> Path:
        return processes.run(folder, dtype, micro_batches)

    return made


@pytest.fixture(scope="session")
def nudged(tmp_path_factory) -> list[Path]:
    """The run in float32 on data that are one unit in the last place off, three times."""
    return [
        processes.run(tmp_path_factory.mktemp("nudged"), torch.float32, 1, nudge=seed)
        for seed in range(3)
    ]
