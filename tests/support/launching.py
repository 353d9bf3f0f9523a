"""Python processes that tests start, alone or as a group of two.

Where the start is no part of a test they are forks of a warm process (support/warm.py)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from support.warm import run_all

__all__ = ["TESTS", "forked", "launched", "pair", "torchrun"]

TESTS = Path(__file__).parents[1]
# Seconds that a process may take on a machine with much else to do.
PATIENCE = 900


def launched(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python process of these arguments and environment variables, run to its end."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=_environment(variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def torchrun(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Two processes, started as the command `torchrun` starts them, on a port of their own."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    return launched(*launcher, *arguments, **variables)


def forked(
    script: Path, *arguments: object, processes: int, **variables: str
) -> list[subprocess.CompletedProcess[str]]:
    """`launched`, or `torchrun` without a launcher: one process or a group of two, that need no
    seconds to import everything."""
    words = [str(script), *map(str, arguments)]
    environment = _environment(variables)
    if processes == 1:
        return run_all([(words, environment, script.parent)], PATIENCE)
    return pair(words, environment, script.parent, PATIENCE)


def pair(
    words: Sequence[str], environment: dict[str, str], folder: Path, patience: float
) -> list[subprocess.CompletedProcess[str]]:
    """A script as a group of two forks, with the variables that a launcher sets, but without a
    launcher that would end one for the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    ranks = [environment | shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return run_all([(words, variables, folder) for variables in ranks], patience)


def _environment(variables: dict[str, str]) -> dict[str, str]:
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HOME": os.devnull,  # nobody's accelerate config
        "PYTHONPATH": path,
        **variables,
    }
