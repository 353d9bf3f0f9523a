"""Saved teachers: the folders in which other libraries keep a network and how it was trained.

| folder                                     | is told by                        | read in         |
|--------------------------------------------|-----------------------------------|-----------------|
| diffusers: a pipeline, or a network of one | model_index.json, or a            | saved_diffusers |
| (`save_pretrained`)                        | config.json with `_class_name`    |                 |
| LeRobot: `pretrained_model/` of a policy,  | a config.json with `type` and     | saved_lerobot   |
| or the checkpoint's folder around it       | `input_features`                  |                 |

Their weights are read from `.safetensors` alone; nothing is unpickled and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from .._core.json_files import read_json
from .saved_diffusers import PIPELINE, blank_diffusers, read_diffusers
from .saved_lerobot import blank_lerobot, read_lerobot
from .saved_teacher import CONFIG, SavedTeacher

__all__ = ["SavedTeacher", "blank_network", "read_saved"]

_POLICY = "pretrained_model"


def read_saved(folder: str | Path) -> SavedTeacher | None:
    """The network in a folder of another library, on the CPU and in eval mode, and what the folder
    says of it; None for a folder of any other kind.

    Args:
        folder: of a pipeline or a model of diffusers, or of a policy of LeRobot.

    Raises:
        ValueError: a file that is missing or can't be read, weights that are pickled or don't fit,
            a class that isn't known, a scheduler that can't be used, a library that isn't
            installed.
    """
    library, found = _told(Path(folder))
    if library == "diffusers":
        return read_diffusers(found)
    if library == "lerobot":
        return read_lerobot(found)
    return None


def blank_network(folder: str | Path, tensors: Mapping[str, Tensor]) -> nn.Module | None:
    """The network of `read_saved` with any numbers, to load others into; its weights need not be
    there.

    Args:
        folder: as in `read_saved`.
        tensors: those that are to be loaded; a network that takes more memory isn't built.

    Raises:
        ValueError: as `read_saved`, but for weights and scheduler.
    """
    library, found = _told(Path(folder))
    if library == "diffusers":
        return blank_diffusers(found, tensors)
    if library == "lerobot":
        return blank_lerobot(found, tensors)
    return None


def _told(folder: Path) -> tuple[str | None, Path]:
    """The library that wrote a folder, and the folder of its that is read."""
    if (folder / PIPELINE).is_file():
        return "diffusers", folder
    if (folder / _POLICY / CONFIG).is_file():
        folder = folder / _POLICY
    config = folder / CONFIG
    if not config.is_file():
        return None, folder
    values = read_json(config, only_finite=False)
    if "_class_name" in values:
        return "diffusers", folder
    # Some versions of what writes it leave `type` out.
    if "input_features" in values and ("type" in values or "noise_scheduler_type" in values):
        return "lerobot", folder
    return None, folder
