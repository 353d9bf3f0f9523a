"""The folder of a run: opened once, never overwritten, never used by two runs at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from .._core.files import remove_unfinished, write_file
from .._core.processes import together
from .._core.yaml_files import read_yaml
from ..config.files import dump_anywhere
from ..config.old_spellings import old_spellings
from .origin import check_origin, write_origin

CONFIG = "config.yaml"
_LOCK = ".lock"
# What a run writes: a folder that holds one of these without a config is not a run's.
_OURS = (
    "metrics.jsonl",
    "checkpoints",
    "stages",
    "pairs.safetensors",
    "student",
    "teacher",
    "report",
)
# Keys that may differ between a run and its resumption: they do not change what is computed.
_FREE_KEYS = (
    *(
        "resume",
        "run_dir",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.log_every",
        "train.threads",
    ),
    *(
        "train.tracker",
        "train.most_skipped",
        "train.gradient_accumulation_steps",
        "train.gradient_checkpointing",
    ),
    "train.ema_on_cpu",
)


def run_folder(cfg: Any) -> Path:
    """`cfg.run_dir`, by default ``runs/<cfg.name>``."""
    return Path(cfg.run_dir).expanduser() if cfg.run_dir is not None else Path("runs") / cfg.name


@contextmanager
def open_run(cfg: Any, *, main_process: bool = True) -> Iterator[Path]:
    """The run's folder, created and locked. Call `claim_run` in it when nothing stands in the way
    of the work.

    Raises:
        ValueError: the folder holds a run and `resume` is false; or it holds a run of another
            config, or files of something else; or a run is going on in it. In processes other than
            the main one: that it was refused.
        OSError: it cannot be written.
    """
    with ExitStack() as stack:
        # A refusal must reach the others, who would wait for the main process for ever.
        with together():
            folder = stack.enter_context(_locked_folder(cfg)) if main_process else run_folder(cfg)
        with together():
            if not (folder / _LOCK).exists():
                raise ValueError(
                    f"expected all processes to see {folder}, got one that doesn't; put it on a "
                    "shared disk"
                )
        yield folder


@contextmanager
def _locked_folder(cfg: Any) -> Iterator[Path]:
    folder = run_folder(cfg)
    saved = folder / CONFIG
    if saved.exists() and not cfg.resume:
        raise ValueError(
            f"{folder} holds a run already: add --resume to go on with it, or run_dir=... for a "
            "new one"
        )
    if saved.exists():
        _check_same(saved, cfg)
    elif foreign := [name for name in _OURS if (folder / name).exists()]:
        raise ValueError(
            f"{folder} holds {', '.join(foreign)} but no {CONFIG} of a run: choose another run_dir"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise OSError(
            f"cannot write in {folder}: {error.strerror or error}; choose another run_dir"
        ) from error
    try:
        _lock(lock, folder)
        try:
            if saved.exists():
                remove_unfinished(folder, folder / "stages")
            yield folder
        finally:
            if not saved.exists():
                # Nothing came of it: the folder goes as it came.
                with suppress(OSError):
                    (folder / _LOCK).unlink()
                    folder.rmdir()
    finally:
        os.close(lock)


def claim_run(folder: Path, cfg: BaseModel, origin: Mapping[str, Any] | None = None) -> None:
    """Write the resolved config, which makes `folder` the folder of this run.

    Args:
        origin: what else the run is begun with (:mod:`fastgen.records.origin`); written beside the config,
            and of a run that is resumed compared.

    Raises:
        ValueError: the run was begun with other data, another teacher or another precision.
    """
    if not (folder / CONFIG).exists():
        if origin is not None:
            write_origin(folder, origin)
        write_file(folder / CONFIG, dump_anywhere(cfg).encode())
    elif origin is not None:
        check_origin(folder, origin)


def _lock(handle: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no advisory locks on this system: the config check above is what is left
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ValueError(
            f"another process is running in {folder}: wait for it or choose another run_dir"
        ) from error


def _check_same(saved: Path, cfg: BaseModel) -> None:
    before = read_yaml(saved)
    if old := old_spellings(before):
        raise ValueError(
            f"{saved.parent} holds a run that an earlier version began (its {CONFIG} says "
            f"{', '.join(old.values())}): go on with that version, or choose another run_dir"
        )
    now = yaml.safe_load(dump_anywhere(cfg))
    before = _flatten(before)
    now = _flatten(now)
    different = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    different = [key for key in different if key not in _FREE_KEYS]
    if different:
        said = "; ".join(
            f"{key}: {before.get(key)} then, {now.get(key)} now" for key in different[:5]
        )
        raise ValueError(
            f"{saved.parent} holds a run of another config ({said}): resume with its own, or "
            "choose another run_dir"
        )


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
