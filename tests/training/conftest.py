"""Runs of the toy that several files hold theirs against, and a folder for faults."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from fastgen.distillation import distill
from support import processes
from support.faults import JOB
from support.runs import train
from support.toy import ToyTask, ToyTeacher, toy_config, with_everything, without_pictures


@pytest.fixture(scope="session")
def one(tmp_path_factory) -> Callable[[torch.dtype, int], Path]:
    """`one(dtype, micro_batches)`: the run of one process, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("one")

    @cache
    def made(dtype: torch.dtype, micro_batches: int) -> Path:
        return processes.run(folder, dtype, micro_batches)

    return made


@pytest.fixture(scope="session")
def nudged(tmp_path_factory) -> list[Path]:
    """The run in float32 on data that are one unit in the last place off, three times."""
    return [
        processes.run(tmp_path_factory.mktemp("nudged"), torch.float32, 1, nudge=seed)
        for seed in range(3)
    ]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that any user can write in; root may write where it mayn't."""
    path = Path(tempfile.mkdtemp(prefix="faults-"))
    path.chmod(0o777)
    (path / "job.py").write_text(JOB)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """The run without a fault."""
    run_dir = tmp_path_factory.mktemp("whole")
    sizes = {
        "kd_steps": 12,
        "steps": 12,
        "checkpoint_every": 3,
        "evaluate_every": 4,
        "log_every": 2,
    }
    with without_pictures():
        distill(with_everything(run_dir, **sizes), teacher=ToyTeacher(), task=ToyTask())
    return run_dir


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory) -> Path:
    """The run of one process that nobody stops."""
    run_dir = tmp_path_factory.mktemp("whole")
    train(toy_config(run_dir))
    return run_dir
