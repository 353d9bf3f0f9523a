"""Accelerate behind our own object: the only module that knows accelerate.

:func:`start_accelerator` starts it as a run needs it. What comes back is a
:class:`fastgen.training.processes.Processes`, which is all that training asks for.
"""

from __future__ import annotations

import atexit
import os
import re
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.tracking import filter_trackers
from accelerate.utils import DistributedType, broadcast_object_list
from torch import Tensor, nn

from .._core.files import read_text, write_file
from .._core.launcher import watch_launcher
from .._core.messages import brief
from .._core.processes import leave_group_at_exit
from .._core.threads import cores_of_this_process
from ..records.log import check_tracker, quiet
from .launching import warn_of_launch
from .processes import Processes, Track, Value

__all__ = ["Accelerated", "start_accelerator", "use_all_cores"]

# While the main process scores the teacher, the others wait for longer than the usual 10 minutes.
PATIENCE = timedelta(hours=12)


class Accelerated(Processes):
    """The processes that accelerate knows of: as many as were launched, on a CPU or on GPUs.

    Args:
        accelerator: accelerate's own, started.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.device = accelerator.device
        self.num_processes = accelerator.num_processes
        self.process_index = accelerator.process_index
        self.is_main_process = accelerator.is_main_process
        self.mixed_precision = accelerator.mixed_precision
        self.is_fsdp2 = accelerator.is_fsdp2

    def prepare(
        self, network: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        prepared, wrapper = self._accelerator.prepare(network, optimizer)
        # The wrapper serves a loss scale, which there is none of, and looks for packages at every
        # step.
        return prepared, wrapper.optimizer

    def autocast(self) -> AbstractContextManager[None]:
        return self._accelerator.autocast()

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def no_sync(self, network: nn.Module) -> AbstractContextManager[None]:
        return self._accelerator.no_sync(network)

    def gather(self, x: Tensor) -> Tensor:
        gathered = self._accelerator.gather(x)
        assert isinstance(gathered, Tensor)  # as what was given; the type checker doesn't know
        return gathered

    def mean(self, x: Tensor) -> Tensor:
        mean = self._accelerator.reduce(x, "mean")
        assert isinstance(mean, Tensor)
        return mean

    def of_main(self, value: Value) -> Value:
        if self.num_processes == 1:
            return value
        return broadcast_object_list([value])[0]

    def start_tracker(self, name: str, run_dir: Path, iteration: int) -> Track:
        accelerator = self._accelerator
        identity = run_dir / "tracker_id"
        if self.is_main_process and not identity.exists():
            write_file(identity, os.urandom(8).hex().encode())
        accelerator.project_configuration.set_directories(str(run_dir))
        options: dict[str, dict[str, Any]] = {"tensorboard": {"purge_step": iteration + 1}}
        if name == "wandb" and self.is_main_process:
            options["wandb"] = {
                "id": _tracker_id(identity),
                "name": run_dir.name,
                "dir": str(run_dir),
                "resume": "allow",
            }
        accelerator.log_with = filter_trackers([name], accelerator.logging_dir)
        project = "tensorboard" if name == "tensorboard" else "fastgen"
        accelerator.init_trackers(project, init_kwargs=options)
        return lambda values, iteration: accelerator.log(values, step=iteration)

    def finish_trackers(self) -> None:
        # Accelerate's end_training would leave the group of processes as well.
        for tracker in self._accelerator.trackers:
            tracker.finish()

    def free_memory(self) -> None:
        self._accelerator.free_memory()


_REMOVE = "restore it, or remove it to begin another run in the tracker"


def _tracker_id(path: Path) -> str:
    """The name of the run in its tracker."""
    found = read_text(path, 64, _REMOVE)
    if re.fullmatch("[0-9a-f]{16}", found) is None:
        raise ValueError(f"{path}: expected 16 hexadecimal digits, got {brief(found)}; {_REMOVE}")
    return found


def start_accelerator(threads: int | None = None, *, tracker: str | None = None) -> Accelerated:
    """Start accelerate in this process; from then on the main process alone warns and logs.

    Args:
        threads: of torch on a CPU. `accelerate launch` sets OMP_NUM_THREADS=1 on a CPU machine, so
            None shares all cores among the processes of this machine; training may take fewer
            (`threads_of_training`).
        tracker: name of the tracker that the run will start.

    Raises:
        ValueError: fp16, FSDP of version 1 or with `cpu_ram_efficient_loading`, or a tracker
            without its package.
    """
    check_tracker(tracker)
    accelerator = Accelerator(
        # Accelerate makes no group of the processes that torchrun starts on a CPU unless it is told
        # that it is on one.
        cpu="LOCAL_RANK" in os.environ and not torch.accelerator.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if accelerator.num_processes > 1:
        atexit.unregister(leave_group_at_exit)  # so that it is called once
        atexit.register(leave_group_at_exit)
    watch_launcher()
    warn_of_launch(accelerator.num_processes)
    if accelerator.mixed_precision == "fp16":
        raise ValueError(
            "expected mixed_precision no or bf16, got fp16, whose loss scale needs overflowing "
            "updates"
        )
    if not accelerator.is_main_process:
        quiet()
    _set_up_sharding(accelerator)
    if accelerator.device.type == "cpu":
        local = os.environ.get("LOCAL_WORLD_SIZE", str(accelerator.num_processes))
        use_all_cores(threads, processes=int(local))
    return Accelerated(accelerator)


def _set_up_sharding(accelerator: Accelerator) -> None:
    """Have FSDP2 keep float32, or refuse a kind of sharding that training doesn't know."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if accelerator.is_fsdp2 and plugin is not None:
        # Loads a symbolic algebra, which takes a second.
        from torch.distributed.fsdp import MixedPrecisionPolicy

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


def use_all_cores(threads: int | None = None, *, processes: int = 1) -> None:
    """Set the CPU threads of torch in this process.

    Args:
        threads: their number. None: an equal share of the cores that this process may run on, and
            at least 1.
        processes: that share these cores.
    """
    if threads is None:
        threads = max(1, cores_of_this_process() // processes)
    torch.set_num_threads(threads)
