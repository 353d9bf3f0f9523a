"""The accelerator of a process: accelerate's own, started as a run needs it."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.tracking import filter_trackers
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy

from .._core.files import write_file
from .._core.processes import part_at_exit
from ..records.log import check_tracker, quiet
from .launching import warn_of_launch

__all__ = ["start_accelerator", "start_tracker", "use_all_cores"]


def start_accelerator(threads: int | None = None, *, tracker: str | None = None) -> Accelerator:
    """Accelerator of this process, with all cores in use on a CPU; only the main process will warn
    and log.

    `accelerate launch` sets OMP_NUM_THREADS=1 on a CPU machine; `threads` = None shares the cores
    among the local processes.

    Raises:
        ValueError: fp16; no package of the `tracker` that will be asked for.
    """
    check_tracker(tracker)
    # While the main process scores the teacher, the others wait for longer than the 10 minutes that
    # are usual.
    accelerator = Accelerator(
        # Accelerate makes no group of the processes that torchrun starts on a CPU unless it is told
        # that it is on one.
        cpu="LOCAL_RANK" in os.environ and not torch.accelerator.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
    )
    if accelerator.num_processes > 1:
        atexit.unregister(part_at_exit)  # once
        atexit.register(part_at_exit)
    warn_of_launch(accelerator.num_processes)
    if accelerator.mixed_precision == "fp16":
        raise ValueError(
            "expected mixed_precision no or bf16, got fp16, whose loss scale needs overflowing "
            "updates"
        )
    if not accelerator.is_main_process:
        quiet()
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if accelerator.is_fsdp2 and plugin is not None:
        if plugin.cpu_ram_efficient_loading:
            raise ValueError(
                "expected fsdp_cpu_ram_efficient_loading: false, got true: networks are in memory "
                "anyway"
            )
        # Shards are gathered and gradients summed in float32, and inputs stay what they are: bf16
        # would round times.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    elif accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError("expected fsdp_version: 2, got 1, which cannot freeze parts of a network")
    if accelerator.device.type == "cpu":
        use_all_cores(
            threads,
            processes=int(os.environ.get("LOCAL_WORLD_SIZE", str(accelerator.num_processes))),
        )
    return accelerator


def use_all_cores(threads: int | None = None, *, processes: int = 1) -> None:
    """Set torch's CPU threads: `threads`, or an equal share of the cores this process may run
    on."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    torch.set_num_threads(threads or max(1, cores // processes))


def start_tracker(
    accelerator: Accelerator, name: str, run_dir: Path, iteration: int
) -> Callable[[dict[str, float], int], None]:
    """What sends numbers to the tracker `name` (accelerate's); a resumed run goes on in the run
    that it had there.

    Args:
        iteration: of the checkpoint that is gone on from; what was sent of later ones is sent
            again.
    """
    identity = run_dir / "tracker_id"
    if accelerator.is_main_process and not identity.exists():
        write_file(identity, os.urandom(8).hex().encode())
    accelerator.project_configuration.set_directories(str(run_dir))
    options: dict[str, dict[str, Any]] = {"tensorboard": {"purge_step": iteration + 1}}
    if name == "wandb" and accelerator.is_main_process:
        saved = identity.read_text(encoding="utf-8")
        options["wandb"] = {
            "id": saved,
            "name": run_dir.name,
            "dir": str(run_dir),
            "resume": "allow",
        }
    accelerator.log_with = filter_trackers([name], accelerator.logging_dir)
    accelerator.init_trackers(
        "tensorboard" if name == "tensorboard" else "fastgen", init_kwargs=options
    )
    return lambda values, step: accelerator.log(values, step=step)
