"""A student to export, with normalizers that are no identity."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fastgen.export import export_student
from fastgen.export.schema import EXPORT_CONFIG, NETWORK_FORMAT
from fastgen.normalizer import Normalizer
from support.networks import dense

__all__ = [
    "T_LIST",
    "X_NORMALIZER",
    "Z_NORMALIZER",
    "conditions",
    "export_",
    "mark_as_export",
    "seeded",
]

T_LIST = [0.999, 0.7, 0.4, 0.2, 0.0]
X_NORMALIZER = Normalizer([3.0, -2.0], [[2.0, 0.5], [0.0, 0.25]])
Z_NORMALIZER = Normalizer([1.0, 0.1], [[0.7, 0.0], [0.0, 1.3]])


def export_(path: Path, network: nn.Module | None = None, **changes) -> Path:
    options = {"t_list": T_LIST, "sample_type": "sde", "pack": 2}
    options |= {"x_normalizer": X_NORMALIZER, "z_normalizer": Z_NORMALIZER}
    export_student(path, dense() if network is None else network, **{**options, **changes})
    return path


def mark_as_export(folder: Path) -> None:
    """Let `folder` look like an export of this package, unless another config is there."""
    config = folder / EXPORT_CONFIG
    if not config.exists():
        config.write_text(f'{{"format": "{NETWORK_FORMAT}"}}')


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def conditions(n: int = 3) -> Tensor:
    return torch.randn(n, 2, 2, generator=seeded(1))
