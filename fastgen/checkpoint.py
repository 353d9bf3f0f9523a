"""Checkpoints of a run: safetensors and JSON, complete or not there.

A checkpoint is a folder ``checkpoints/step_<n>/`` with ``state.safetensors`` and ``state.json``. It is written under
another name, flushed to disk and renamed, so a kill at any moment leaves either the whole checkpoint or none; the JSON
carries the tensor file's sha256, and a damaged newest checkpoint is named and the one before is used. Nothing is
unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ._files import check_file, check_names, new_folder, read_json, read_safetensors, sha256, write_file, write_json

logger = logging.getLogger(__name__)

_TENSORS, _META = "state.safetensors", "state.json"


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Safetensors file, written aside and renamed; every tensor keeps its dtype."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; ValueError if it is missing, truncated or something else."""
    try:
        return read_safetensors(path)
    except ValueError as error:
        raise ValueError(f"cannot read {error}") from error


def save_checkpoint(
    run_dir: Path, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, keep: int
) -> Path:
    """Write ``checkpoints/step_<step>`` and drop all but the newest `keep`."""
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    # The run's lock is ours: whatever is half written here was left by a run that was killed.
    for left in folder.parent.glob(".step_*.new-*"):
        shutil.rmtree(left, ignore_errors=True)
    with new_folder(folder, (_TENSORS, _META)) as partial:
        save_tensors(partial / _TENSORS, tensors)
        digest = sha256(partial / _TENSORS)
        write_json(partial / _META, {"sha256": digest, "meta_sha256": _digest(digest, meta), "meta": dict(meta)})
    # Newer ones are left from before a resume that found them damaged.
    folders = checkpoint_folders(run_dir)
    newer = [other for other in folders if other.name > folder.name]
    for old in newer + folders[: len(folders) - len(newer)][:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def checkpoint_folders(run_dir: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted((run_dir / "checkpoints").glob("step_*"))


def load_newest_checkpoint(run_dir: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(tensors, meta) of the newest intact checkpoint, None if the run has none.

    Raises:
        ValueError: there are checkpoints, but every one of them is damaged.
    """
    folders = checkpoint_folders(run_dir)
    for folder in reversed(folders):
        try:
            record = read_json(folder / _META)
            check_names(record, ("sha256", "meta_sha256", "meta"), _META)
            check_file(folder / _TENSORS)
            if record["meta_sha256"] != _digest(record["sha256"], record["meta"]):
                raise ValueError(f"{_META} does not match its checksum")
            tensors = load_tensors(folder / _TENSORS)
            if sha256(folder / _TENSORS) != record["sha256"]:
                raise ValueError("its tensors do not match their checksum")
            return tensors, record["meta"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("checkpoint %s is damaged (%s): trying the one before", folder, error)
    if folders:
        raise ValueError(f"no checkpoint in {run_dir / 'checkpoints'} is intact; remove the folder to start again")
    return None


def _digest(tensors: Any, meta: Any) -> str:
    text = json.dumps([tensors, meta], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def flatten_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """Adam's moments and step counts as flat tensors ``<prefix>.<parameter index>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{i}.{name}": torch.as_tensor(v) for i, entry in state.items() for name, v in entry.items()}


def unflatten_optimizer(optimizer: torch.optim.Optimizer, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of :func:`flatten_optimizer`, into an optimiser over the same parameters.

    Raises:
        ValueError: the state of some parameter is missing, or parts of it.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in with_prefix(tensors, prefix).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    expected = {i for group in optimizer.state_dict()["param_groups"] for i in group["params"]}
    # Before its first step an optimiser has no state.
    if state and (state.keys() != expected or len({frozenset(entry) for entry in state.values()}) > 1):
        raise ValueError(f"expected the state of {len(expected)} parameters in {prefix}, got parts of it")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Entries below ``<prefix>.``, with the prefix taken off."""
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(prefix + ".")}


def add_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries renamed to ``<prefix>.<name>``."""
    return {f"{prefix}.{key}": value for key, value in tensors.items()}
