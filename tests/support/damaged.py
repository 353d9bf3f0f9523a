"""What comes of damaged files that a child process reads with little memory and time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

__all__ = ["check_damaged"]

TESTS = Path(__file__).parents[1]


def check_damaged(script: str, work: Path, number: int, *kinds: str) -> None:
    """Each of `number` files of each kind is an error that is meant for the user, or is read; none
    is a crash, a hang or memory without bound."""
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    child = subprocess.run(
        [sys.executable, str(TESTS / "support" / script), str(work), str(number), *kinds],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    rows = [json.loads(line) for line in child.stdout.splitlines()]
    assert child.returncode == 0, f"the child died after {rows[-1:]}: {child.stderr[-2000:]}"
    came = [row for row in rows if "outcome" in row]
    counts = Counter(row["kind"] for row in came)
    assert set(counts.values()) == {number} and len(counts) >= len(kinds)
    for row in came:
        kind = row["outcome"].partition(":")[0]
        assert kind in ("other", "ValueError", "FileNotFoundError"), row
