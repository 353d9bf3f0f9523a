"""Folders of diffusers: what `save_pretrained` of a pipeline or of one network writes.

    pipeline    model_index.json, unet/ or transformer/, scheduler/scheduler_config.json
    network     config.json, diffusion_pytorch_model.safetensors; scheduler_config.json beside them,
                or the scheduler/ of the pipeline around it

The network is built by the library's own class, one of those whose call is known here. Text
encoders, VAEs and all else of a pipeline stay where they are: the data are what the network itself
is called with, latents and embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._core.json_files import read_json
from .._core.messages import brief
from ..data.formats.parts import needed
from .saved_teacher import CONFIG, SavedTeacher, built_within, fill_from, tensors_of
from .schedulers import read_scheduler

__all__ = ["PIPELINE", "blank_diffusers", "read_diffusers"]

PIPELINE = "model_index.json"
_SCHEDULER = "scheduler_config.json"
_PARTS = ("unet", "transformer")
_STEM = "diffusion_pytorch_model"
# Layers or blocks, and rows of a picture; those of known models are far below.
_MOST_PARTS = 4096
_MOST_ROWS = 1024
# Networks and their name of the sample. What calls its network otherwise (times of its own, packed
# latents, further arguments) isn't here.
_SAMPLE = {
    "UNet1DModel": "sample",
    "UNet2DModel": "sample",
    "UNet2DConditionModel": "sample",
    "Transformer2DModel": "hidden_states",
    "DiTTransformer2DModel": "hidden_states",
}


def read_diffusers(folder: Path) -> SavedTeacher:
    """The network of a pipeline or model, with what its scheduler says.

    Raises:
        ValueError: see `fastgen.teachers.saved.read_saved`.
    """
    part = _part(folder)
    config = _config(part)
    name = config["_class_name"]
    save_again = f"{name}.from_pretrained(folder).save_pretrained(folder)"
    tensors = tensors_of(part, _STEM, save_again)
    network = built_within(lambda: _built(part, config), tensors, part)
    network = fill_from(network, tensors, part)
    keywords = {"x": _SAMPLE[name], "t": "timestep", "cond": _condition(name, config)}
    return SavedTeacher(network, keywords, _declaration(part, config))


def blank_diffusers(folder: Path, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of `read_diffusers` with any numbers, no larger than these tensors.

    Raises:
        ValueError: as there, but for weights and scheduler.
    """
    part = _part(folder)
    config = _config(part)
    return built_within(lambda: _built(part, config), tensors, part)


def _part(folder: Path) -> Path:
    """The folder of the network itself."""
    index = folder / PIPELINE
    if not index.is_file():
        return folder
    listed = read_json(index, only_finite=False)
    # Of a part that the pipeline lacks the entry is [null, null].
    found = [name for name in _PARTS if listed.get(name) not in (None, [None, None])]
    if len(found) == 1:
        return folder / found[0]
    expected = f"{index}: expected one network among {', '.join(_PARTS)}"
    if found:
        raise ValueError(
            f"{expected}, got {' and '.join(found)}; say teacher.folder={folder / found[0]} or "
            f"{folder / found[1]}"
        )
    names = ", ".join(name for name in listed if not name.startswith("_"))
    raise ValueError(f"{expected}, got {names or 'none'}; give teacher.factory")


def _config(part: Path) -> dict[str, Any]:
    """The config of a network of a known class."""
    file = part / CONFIG
    if not file.is_file():
        raise ValueError(f"expected {CONFIG} in {part}, got none; copy the folder anew")
    config = read_json(file, only_finite=False)
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in _SAMPLE:
        raise ValueError(
            f"{file}: expected _class_name among {', '.join(_SAMPLE)}, got {brief(name)}; give "
            "teacher.factory (such as diffusers:ClassName.from_pretrained), teacher.keywords and "
            "teacher.scheduler, if it takes (x, t, cond)"
        )
    _check_call(file, config)
    _check_sizes(file, config)
    return config


def _check_call(file: Path, config: Mapping[str, Any]) -> None:
    """ValueError for a network that isn't called with (x, t, cond), or answers something else."""
    build = "give teacher.factory, which returns a network of (x, t, cond)"
    added = config.get("addition_embed_type")
    if added is not None:
        raise ValueError(
            f"{file}: expected addition_embed_type null, got {brief(added)}: it takes further "
            f"arguments at each call; {build}"
        )
    norm = config.get("norm_type")
    if config["_class_name"] == "Transformer2DModel" and norm != "ada_norm_zero":
        raise ValueError(
            f"{file}: expected norm_type ada_norm_zero, got {brief(norm)}, which takes no time of "
            f"each row, or further arguments; {build}"
        )
    given = config.get("in_channels")
    answered = config.get("out_channels")
    if answered is not None and answered != given:
        raise ValueError(
            f"{file}: expected as many out_channels as in_channels, got {brief(answered)} for "
            f"{brief(given)}; give teacher.factory, which drops what isn't the prediction, such as "
            "a learned variance"
        )


def _check_sizes(file: Path, config: Mapping[str, Any]) -> None:
    """ValueError for what would take long to build, or much memory beside the weights: layers,
    blocks, the places of a picture."""
    # Of a transformer alone a picture's rows make a table.
    has_table = _SAMPLE[config["_class_name"]] == "hidden_states"
    for key, value in config.items():
        in_table = has_table and key == "sample_size"
        counts = "layers" in key or in_table
        most = _MOST_ROWS if in_table else _MOST_PARTS
        sizes = [value]
        while sizes:
            size = sizes.pop()
            if isinstance(size, list):
                sizes.extend(size[: most + 1])
                size = len(size)
            elif not counts:
                continue
            if isinstance(size, int | float) and size > most:
                raise ValueError(
                    f"{file}: expected {key} of at most {most}, got {brief(value)}; copy "
                    "the folder anew"
                )


def _built(part: Path, config: Mapping[str, Any]) -> nn.Module:
    """The network of a config by diffusers' own class, with random numbers."""
    diffusers = needed("diffusers", "interop", f"the network in {part}")
    kind = getattr(diffusers, str(config["_class_name"]))
    try:
        # The caller's generator stays as it is.
        with torch.random.fork_rng(devices=[]):
            return kind.from_config(dict(config)).eval()
    # Whatever its constructor meets in a value that isn't one of its own.
    except Exception as error:
        raise ValueError(
            f"{part / CONFIG}: expected a config of diffusers.{config['_class_name']}, got: "
            f"{brief(error)}; was it saved by another version of diffusers than "
            f"{diffusers.__version__}?"
        ) from error


def _condition(name: str, config: Mapping[str, Any]) -> str | None:
    """The network's name of its condition; None: it takes none."""
    if name == "UNet2DConditionModel":
        return "encoder_hidden_states"
    if _SAMPLE[name] == "hidden_states":
        return "class_labels"
    of_labels = ("num_class_embeds", "class_embed_type")
    if any(config.get(key) is not None for key in of_labels):
        return "class_labels"
    return None


def _declaration(part: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the scheduler says; of a network that looks its time up in a table, whole rows."""
    file = _scheduler_of(part)
    if file is None:
        return None
    declared = read_scheduler(file)
    looks_up = config.get("time_embedding_type") == "learned"
    path = declared["path"]
    if looks_up and isinstance(path, dict):
        declared["path"] = {**path, "nearest": True}
    return declared


def _scheduler_of(part: Path) -> Path | None:
    """The config of the scheduler beside a network, or in the pipeline around it."""
    beside = [part / _SCHEDULER, part / "scheduler" / _SCHEDULER]
    if (part.parent / PIPELINE).is_file():
        beside.append(part.parent / "scheduler" / _SCHEDULER)
    return next((file for file in beside if file.is_file()), None)
