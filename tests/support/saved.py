"""Small networks of diffusers, saved by diffusers itself, and what saved teachers are tried by."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from fastgen.jobs.sources import load_teacher
from support.sources import config

__all__ = [
    "DIT",
    "STABLE",
    "UNET",
    "Harm",
    "check_refused",
    "network_of",
    "save_pipeline",
    "teacher_of",
    "with_values",
]

# What is done to a folder, and the message that follows.
Harm = tuple[Callable[[Path], None], str]

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 2,
    "out_channels": 2,
    "num_class_embeds": 3,
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "block_out_channels": [4, 8],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 4,
}
DIT: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "in_channels": 2,
    "out_channels": 2,
    "num_layers": 1,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 3,
    "norm_num_groups": 4,
}
STABLE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def network_of(diffusers: ModuleType, name: str, **config: Any) -> nn.Module:
    """A network of diffusers with random weights, in eval mode."""
    torch.manual_seed(0)
    return getattr(diffusers, name)(**config).eval()


def save_pipeline(folder: Path, network: Any, scheduler: Any) -> Path:
    """A folder of the parts and names of DDPMPipeline or of DiTPipeline, each part saved by the
    library."""
    kind = type(network).__name__
    part = "unet" if "UNet" in kind else "transformer"
    network.save_pretrained(folder / part)
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DDPMPipeline",
        part: ["diffusers", kind],
        "scheduler": ["diffusers", type(scheduler).__name__],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


# ---- Saved teachers ------------------------------------------------------------------------------


def teacher_of(folder: Path, **said: Any) -> Any:
    """The teacher that a config with this folder has, and with what is said beside it."""
    return load_teacher(config({"folder": str(folder), **said}))


def with_values(name: str, **values: Any) -> Callable[[Path], None]:
    """A change of a folder: other values in its JSON file `name`."""

    def change(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**found, **values}))

    return change


def check_refused(folder: Path, harm: Harm) -> None:
    """A folder that was harmed is refused in one line that says what is wrong."""
    change, message = harm
    change(folder)
    with pytest.raises(ValueError, match=message) as caught:
        teacher_of(folder)
    assert "\n" not in str(caught.value)
