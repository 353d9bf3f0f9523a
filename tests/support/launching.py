"""Python processes that tests start, alone or as a group of two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["TESTS", "launched", "torchrun"]

TESTS = Path(__file__).parents[1]
# Seconds that a process may take on a machine with much else to do.
PATIENCE = 900


def launched(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python process of these arguments and environment variables, run to its end."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HOME": os.devnull,  # nobody's accelerate config
        "PYTHONPATH": path,
        **variables,
    }
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def torchrun(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Two processes, started as the command `torchrun` starts them, on a port of their own."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    return launched(*launcher, *arguments, **variables)
