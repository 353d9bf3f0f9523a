"""One process and many, one batch and its micro-batches: the same losses and the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from processes import RUNS, name
from safetensors.torch import load_file

from fastgen.trainer import read_log

TESTS = Path(__file__).parent
PATIENCE = 900
# What a sum in another order costs in 20 updates: measured 4e-7 and 6e-15.
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-10}


def launched(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python process that starts others, to its end."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        # One thread, and nobody's accelerate config.
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": os.devnull, "PYTHONPATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What the command of this name does, on a port of its own."""
    return launched("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, *arguments)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """A folder with the runs of one process."""
    folder = tmp_path_factory.mktemp("one")
    for run in RUNS:
        processes.run(folder, *run)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """A folder with the same runs of two processes."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(TESTS / "processes.py", folder)
    assert done.returncode == 0, done.stderr
    return folder


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Everything that a run has written: pairs, results of stages, and the state of all networks and optimisers."""
    files = [*run.glob("*.safetensors"), *run.glob("stages/*"), *run.glob("checkpoints/*/*.safetensors")]
    return {f"{file.relative_to(run)} {key}": value for file in files for key, value in load_file(file).items()}


def compare(run: Path, other: Path, tolerance: float) -> None:
    """Fail unless two runs have the same tensors and log up to `tolerance`."""
    a, b = tensors(run), tensors(other)
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert float((value.double() - b[key].double()).abs().max()) <= tolerance, key
    log, other_log = read_log(run), read_log(other)
    for row, other_row in zip(log, other_log, strict=True):
        assert row.keys() == other_row.keys()
        for key, value in row.items():
            if isinstance(value, float) and key != "seconds":
                assert other_row[key] == pytest.approx(value, rel=tolerance, abs=tolerance), (row["step"], key)
        for key, value in row.get("diagnostics", {}).items():
            # Scores of a network, a ratio of small numbers among them.
            assert np.asarray(other_row["diagnostics"][key]) == pytest.approx(np.asarray(value), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_two_processes_and_micro_batches_make_the_run_of_one(one, two, dtype):
    whole = one / name(dtype, 1)
    parts = {key.split()[1].partition(".")[0] for key in tensors(whole) if key.startswith("checkpoints")}
    assert {"student", "fake_score", "discriminator"} <= parts
    logged = {key for row in read_log(whole) for key in row}
    assert {"vsd", "gan_gen", "real_data", "kd", "fake_score", "gan_disc", "r1", "r2", "diagnostics"} <= logged
    for other in (one / name(dtype, 2), two / name(dtype, 1), two / name(dtype, 2)):
        compare(whole, other, TOLERANCES[dtype])


def test_another_seed_makes_another_run(tmp_path, one):
    # The agreement above is not that of networks which don't move.
    other = processes.run(tmp_path, torch.float64, 1, seed=1)
    a, b = tensors(one / name(torch.float64, 1)), tensors(other)
    moved = [key for key in a if ".weights." in key and (a[key] - b[key]).abs().max() > 1e-3]
    assert {key.split()[1].partition(".")[0] for key in moved} == {"student", "fake_score", "discriminator"}
