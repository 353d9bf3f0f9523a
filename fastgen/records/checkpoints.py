"""Checkpoints of a run: safetensors and JSON, complete or not there.

A checkpoint is a folder ``checkpoints/step_<number>/`` with ``state.safetensors``, ``state.json``
and ``manifest.json``, the size and sha256 of each of the other two. It is written under another
name, flushed to disk and renamed: a kill at any moment leaves the whole checkpoint or none. A
damaged newest one is named, and the one before is used. A state that lacks a part is an error that
names the part. Nothing is unpickled.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core.checks import is_count
from .._core.files import check_file, new_folder, read_bytes, read_steadily
from .._core.json_files import MOST_JSON_BYTES, check_names, parse_json, read_json, write_json
from .._core.messages import brief, first_names
from .._core.tensor_files import own_memory, read_hashed, sha256, write_safetensors

__all__ = [
    "Checkpoint",
    "add_prefix",
    "check_checkpoint",
    "check_finite",
    "check_parts",
    "checkpoint_folders",
    "flatten_optimizer",
    "load_newest_checkpoint",
    "newest_checkpoint",
    "read_checkpoint",
    "save_checkpoint",
    "set_aside",
    "unflatten_optimizer",
    "with_prefix",
]

logger = logging.getLogger(__name__)

_TENSORS = "state.safetensors"
_META = "state.json"
_MANIFEST = "manifest.json"
_FILES = (_TENSORS, _META)
_COPY = "restore it, or go on from the checkpoint before"
_ADAM = ("exp_avg", "exp_avg_sq", "step")
_INCOMPLETE = (
    "the checkpoint is of another network, or incomplete: go on with what wrote it, or begin a new "
    "run"
)


# ---- Writing -------------------------------------------------------------------------------------


def save_checkpoint(
    run_dir: Path, number: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, keep: int
) -> Path:
    """Write ``checkpoints/step_<number>`` and remove all but the newest `keep` up to it.

    Args:
        run_dir: folder of the run.
        number: of the checkpoint; a later one has a larger number.
        tensors: of the state, by name.
        meta: the rest of the state, as JSON can hold it.
        keep: checkpoints that stay, this one among them.

    Returns:
        its folder.

    Raises:
        FloatingPointError: a tensor with NaN or infinity, by name; nothing is written.
        OSError: it can't be written; the checkpoints before it stay as they were.
    """
    own = own_memory(tensors)
    check_finite(own)
    folder = run_dir / "checkpoints" / f"step_{number:08d}"
    # The run's lock is ours: whatever is half written or half removed here was left by a run that
    # was killed.
    for left in folder.parent.glob(".step_*"):
        shutil.rmtree(left, ignore_errors=True)
    with new_folder(folder, (*_FILES, _MANIFEST)) as partial:
        write_safetensors(partial / _TENSORS, own)
        write_json(partial / _META, meta)
        files = {
            name: {"bytes": (partial / name).stat().st_size, "sha256": sha256(partial / name)}
            for name in _FILES
        }
        write_json(partial / _MANIFEST, {"files": files})
    # Newer ones, if any, are damaged: not among those that are kept, and not ours to remove.
    up_to_it = [other for other in checkpoint_folders(run_dir) if _number(other) <= number]
    for old in up_to_it[:-keep]:
        _remove(old)
    return folder


def _remove(folder: Path) -> None:
    """Remove a checkpoint: it is there or not, never in part, whatever moment a kill comes at."""
    aside = folder.with_name(f".{folder.name}.old")
    os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity.

    Raises:
        FloatingPointError: one that names the tensors in which they are.
    """
    bad = [
        name
        for name, value in tensors.items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if bad:
        raise FloatingPointError(
            f"expected a finite state to save, got NaN or infinity in {first_names(bad, most=3)}"
        )


# ---- Finding and reading -------------------------------------------------------------------------


def checkpoint_folders(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. What has another name is none, such as a copy that a
    user made."""
    found = [
        path
        for path in (run_dir / "checkpoints").glob("step_*")
        if re.fullmatch(r"step_\d{8,}", path.name)
    ]
    return sorted(found, key=_number)


def set_aside(run_dir: Path, number: int) -> None:
    """Rename the checkpoints after `number` to damaged_<number>.

    They could not be read. So they are kept for who wants to look, and in nobody's way.
    """
    for folder in checkpoint_folders(run_dir):
        if _number(folder) > number:
            name = folder.name.replace("step", "damaged")
            while (folder.parent / name).exists():
                name += "-again"
            os.rename(folder, folder.parent / name)


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def check_checkpoint(folder: Path) -> None:
    """Refuse a checkpoint that is not the one that was written.

    Hidden files are a file manager's or a network disk's, and no part of it.

    Raises:
        ValueError: `folder` lacks a file of its manifest, or has another one, or one whose size or
            checksum is not that of the manifest.
    """
    for name, digest in _listed(folder).items():
        _check_digest(name, digest, sha256(folder / name))


def _listed(folder: Path) -> dict[str, str]:
    """The sha256 of each file of a checkpoint, from its manifest; the sizes are compared here.

    Raises:
        ValueError: as `check_checkpoint`, but for checksums.
    """
    files = read_json(folder / _MANIFEST).get("files")
    if not isinstance(files, dict) or files.keys() != set(_FILES):
        raise ValueError(f"expected {', '.join(_FILES)} in {_MANIFEST}, got {brief(files)}")
    foreign = {path.name for path in folder.glob("[!.]*")} - {*_FILES, _MANIFEST}
    if foreign:
        raise ValueError(
            f"expected the files of {_MANIFEST}, got {first_names(foreign)} beside them"
        )
    for name, entry in files.items():
        check_names(entry, ("bytes", "sha256"), f"{_MANIFEST}: {name}")
        if not is_count(entry["bytes"], 0) or not isinstance(entry["sha256"], str):
            raise ValueError(f"expected bytes and sha256 of {name}, got {brief(entry)}")
        check_file(folder / name)
        size = (folder / name).stat().st_size
        if size != entry["bytes"]:
            raise ValueError(f"expected {name} of {entry['bytes']} bytes, got {size}")
    return {name: entry["sha256"] for name, entry in files.items()}


def _check_digest(name: str, expected: str, found: str) -> None:
    if found != expected:
        raise ValueError(f"{name} does not match its checksum")


def _read_intact(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, meta) of a checkpoint; the bytes that are compared with the manifest are those that
    are used.

    Raises:
        ValueError, OSError: as `check_checkpoint`.
    """
    listed = _listed(folder)
    text = read_bytes(folder / _META, MOST_JSON_BYTES, _COPY)
    _check_digest(_META, listed[_META], hashlib.sha256(text).hexdigest())
    meta = parse_json(text, str(folder / _META))
    if not isinstance(meta, dict):
        raise ValueError(f"expected an object in {_META}, got {brief(meta)}")
    tensors, digest = read_hashed(folder / _TENSORS)
    _check_digest(_TENSORS, listed[_TENSORS], digest)
    return tensors, meta


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        folder: where it is.
        number: of the folder's name.
        tensors, meta: as they were given to `save_checkpoint`.
    """

    folder: Path
    number: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def load_newest_checkpoint(run_dir: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(tensors, meta) of `newest_checkpoint`, None if the run has none; raises what that does."""
    found = newest_checkpoint(run_dir)
    return None if found is None else (found.tensors, found.meta)


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`.

    Raises:
        ValueError, OSError: as `check_checkpoint`.
    """
    tensors, meta = read_steadily(folder, functools.partial(_read_intact, folder))
    return Checkpoint(folder, _number(folder), tensors, meta)


def newest_checkpoint(run_dir: Path) -> Checkpoint | None:
    """The newest intact checkpoint, None if the run has none.

    Raises:
        ValueError: there are checkpoints, but every one of them is damaged.
    """
    folders = checkpoint_folders(run_dir)
    for folder in reversed(folders):
        try:
            return read_checkpoint(folder)
        except (OSError, ValueError) as error:
            logger.warning("checkpoint %s is damaged (%s): trying the one before", folder, error)
    if folders:
        raise ValueError(
            f"no checkpoint in {run_dir / 'checkpoints'} is intact; remove the folder to start "
            "again"
        )
    return None


# ---- What a state is made of ---------------------------------------------------------------------


def check_parts(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Refuse a state before any of it is loaded.

    Args:
        got: the state.
        expected: tensors with the names, shapes and dtypes that it must have.
        what: whose state it is, for the message.

    Raises:
        ValueError: a name is missing or unknown, or a shape or dtype is another one.
    """
    without = expected.keys() - got.keys()
    unknown = got.keys() - expected.keys()
    said = []
    if without:
        said.append(f"without {first_names(without)}")
    if unknown:
        said.append(f"with the unknown {first_names(unknown)}")
    if said:
        raise ValueError(
            f"expected the whole state of {what}, got one {'; '.join(said)}; {_INCOMPLETE}"
        )
    for name, value in expected.items():
        wanted = _kind(value)
        found = _kind(got[name])
        if wanted != found:
            raise ValueError(
                f"expected {name} of {what} to be {wanted}, got {found}; {_INCOMPLETE}"
            )


def _kind(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype}"


def flatten_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """Adam's moments and counts of steps as flat tensors ``<prefix>.<parameter index>.<name>``.

    ``<prefix>.begun`` holds the indices of the parameters that have a state. An optimiser before
    its first step has none, nor has a parameter that never had a gradient: a state that is lost
    can't pass for one that hasn't begun.
    """
    state = optimizer.state_dict()["state"]
    flat = {
        f"{prefix}.{i}.{name}": torch.as_tensor(value)
        for i, entry in state.items()
        for name, value in entry.items()
    }
    flat[f"{prefix}.begun"] = torch.tensor(sorted(state), dtype=torch.int64)
    return flat


def unflatten_optimizer(
    optimizer: torch.optim.Optimizer,
    prefix: str,
    tensors: Mapping[str, Tensor],
    *,
    what: str | None = None,
) -> None:
    """Inverse of :func:`flatten_optimizer`, into an optimiser of the same parameters.

    Args:
        optimizer: whose state is replaced.
        prefix: of its tensors.
        tensors: the optimiser's, and any others.
        what: its name in messages; None: `prefix`.

    Raises:
        ValueError: the state of a parameter is missing, or a part of it is, or it has another
            shape.
    """
    what = prefix if what is None else what
    found = with_prefix(tensors, prefix)
    begun = found.pop("begun", None)
    if begun is None:
        raise ValueError(f"expected the state of {what}, got none; {_INCOMPLETE}")
    packed = optimizer.state_dict()["param_groups"]
    indices_of_all = [i for group in packed for i in group["params"]]
    all_parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = dict(zip(indices_of_all, all_parameters, strict=True))
    indices = begun.tolist()
    unknown = set(indices) - parameters.keys()
    if unknown:
        raise ValueError(
            f"expected the state of {len(parameters)} parameters in {what}, got {sorted(unknown)}"
        )
    counts = [value for name, value in found.items() if name.endswith(".step")]
    dtypes = {value.dtype for value in counts if value.is_floating_point()}
    expected = _adam_state(parameters, indices, next(iter(dtypes), torch.float32))
    check_parts(found, dict(expected), what)
    state = {i: {name: found[f"{i}.{name}"] for name in _ADAM} for i in indices}
    optimizer.load_state_dict({"state": state, "param_groups": packed})


def _adam_state(
    parameters: Mapping[int, Tensor], indices: list[int], count_dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Names, shapes and dtypes of the state of the parameters `indices`."""
    for i in indices:
        yield f"{i}.step", torch.empty((), dtype=count_dtype, device="meta")
        for name in ("exp_avg", "exp_avg_sq"):
            yield f"{i}.{name}", torch.empty_like(parameters[i], device="meta")


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Entries below ``<prefix>.``, with the prefix taken off."""
    return {
        key[len(prefix) + 1 :]: value
        for key, value in tensors.items()
        if key.startswith(prefix + ".")
    }


def add_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries renamed to ``<prefix>.<name>``."""
    return {f"{prefix}.{key}": value for key, value in tensors.items()}
