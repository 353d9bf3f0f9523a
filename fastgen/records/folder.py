"""The folder of a run: opened once, never overwritten, never used by two runs at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from .._core.files import expand_home, remove_unfinished, write_file
from .._core.processes import together
from .._core.yaml_files import read_yaml
from ..config.files import dump_anywhere
from ..config.old_spellings import old_spellings
from .log import say
from .origin import ORIGIN, check_origin, run_identity, write_origin

__all__ = ["RUN_CONFIG", "claim_run", "open_run", "run_folder"]

RUN_CONFIG = "config.yaml"
_LOCK = ".lock"
# What a run writes: a folder that holds one of these without a config is not a run's.
_OURS = (
    "metrics.jsonl",
    "origin.json",
    "decision.json",
    "measured_scores.json",
    "tracker_id",
    "checkpoints",
    "stages",
    "pairs.safetensors",
    "student",
    "teacher",
    "report",
)
# Keys that may differ between a run and its resumption: they do not change what is computed.
_FREE_KEYS = (
    "resume",
    "run_dir",
    "train.checkpoint_every",
    "train.ema_on_cpu",
    "train.gradient_accumulation_steps",
    "train.gradient_checkpointing",
    "train.keep_checkpoints",
    "train.log_every",
    "train.most_skipped",
    "train.threads",
    "train.tracker",
)


def run_folder(cfg: Any) -> Path:
    """`cfg.run_dir`, or ``runs/<cfg.name>`` where that is None."""
    if cfg.run_dir is None:
        return Path("runs") / cfg.name
    try:
        return expand_home(cfg.run_dir)
    except ValueError as error:
        raise ValueError(f"run_dir: {error}") from error


@contextmanager
def open_run(cfg: Any, *, main_process: bool = True) -> Iterator[Path]:
    """Inside, the run's folder is there and locked, so that no other run works in it.

    Call `claim_run` once nothing stands in the way of the work. A folder that was made here and
    that nobody has claimed is removed at the end.

    Args:
        cfg: config of the run, with `run_dir`, `name` and `resume`.
        main_process: whether this process makes and locks the folder. All processes must call this.

    Raises:
        ValueError: the folder holds a run and `resume` is false; or it holds a run of another
            config, or files of something else; or a run is going on in it. Other processes than
            the main one are told that it was refused.
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
    """`open_run` of the main process."""
    folder = run_folder(cfg)
    saved = folder / RUN_CONFIG
    if saved.exists() and not cfg.resume:
        raise ValueError(
            f"{folder} holds a run already: add --resume to go on with it, or run_dir=... for a "
            "new one"
        )
    if saved.exists():
        _check_same(saved, cfg)
    elif foreign := _foreign(folder):
        raise ValueError(
            f"{folder} holds {', '.join(foreign)} but no {RUN_CONFIG} of a run: choose another "
            "run_dir"
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


def _foreign(folder: Path) -> list[str]:
    """Names in a folder without a run that a run would write to."""
    found = [name for name in _OURS if os.path.lexists(folder / name)]
    if found == [ORIGIN] and _is_left_over(folder):
        found = []
    lock = folder / _LOCK
    # Ours is empty; it stays behind a run that was killed before it began.
    if os.path.lexists(lock) and not (lock.is_file() and lock.stat().st_size == 0):
        found.append(_LOCK)
    return found


def _is_left_over(folder: Path) -> bool:
    """Whether origin.json is that of a run which was killed before it wrote its config."""
    try:
        return run_identity(folder) is not None
    except ValueError:
        return False


def claim_run(folder: Path, cfg: BaseModel, origin: Mapping[str, Any] | None = None) -> None:
    """Write the resolved config, which makes `folder` the folder of this run.

    Args:
        folder: from `open_run`.
        cfg: config of the run.
        origin: what else the run is begun with (:mod:`fastgen.records.origin`). It is written
            beside the config, or compared where the run is resumed.

    Raises:
        ValueError: the run was begun with other data, another teacher or another precision. Another
            version of this package or of torch is said.
    """
    if not (folder / RUN_CONFIG).exists():
        if origin is not None:
            write_origin(folder, origin, _fixed(yaml.safe_load(dump_anywhere(cfg))))
        write_file(folder / RUN_CONFIG, dump_anywhere(cfg).encode())
    elif origin is not None:
        for note in check_origin(folder, origin):
            say(note)


def _lock(handle: int, folder: Path) -> None:
    """Lock the file `handle` until it is closed, or refuse where another process has it."""
    try:
        import fcntl
    except ImportError:  # a system without advisory locks
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ValueError(
            f"another process is running in {folder}: wait for it or choose another run_dir"
        ) from error


def _check_same(saved: Path, cfg: BaseModel) -> None:
    """Refuse a config that would compute something else than the one in the file `saved`."""
    begun_with = read_yaml(saved)
    if old := old_spellings(begun_with):
        raise ValueError(
            f"{saved.parent} holds a run that an earlier version began (its {RUN_CONFIG} says "
            f"{', '.join(old.values())}): go on with that version, or choose another run_dir"
        )
    before = _fixed(begun_with)
    now = _fixed(yaml.safe_load(dump_anywhere(cfg)))
    keys = before.keys() | now.keys()
    different = sorted(key for key in keys if before.get(key) != now.get(key))
    if different:
        said = "; ".join(
            f"{_short(key)}: {_short(before.get(key))} then, {_short(now.get(key))} now"
            for key in different[:5]
        )
        raise ValueError(
            f"{saved.parent} holds a run of another config ({said}): resume with its own, or "
            "choose another run_dir"
        )


def _fixed(values: Any) -> dict[str, Any]:
    """The keys of a config that a resumed run may not change, by dotted name."""
    return {key: value for key, value in _flatten(values).items() if key not in _FREE_KEYS}


def _short(value: Any) -> str:
    """A value of a config on a line."""
    text = " ".join(str(value).split())
    return text if len(text) <= 120 else text[:117] + "..."


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """{"group.key": value} of nested mappings."""
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
