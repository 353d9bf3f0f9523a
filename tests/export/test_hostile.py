"""More than a thousand harmed files: each is an error of one line or what it was, at the cost of
its own size."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
KINDS = (
    "config",
    "checkpoint",
    "student",
    "forged student",
    "teacher",
    "npz",
    "safetensors",
    "pairs",
    "weights",
    "log",
    "state",
    "manifest",
    "origin",
    "scores",
)
ERRORS = ("ValueError", "TypeError", "OSError", "FileNotFoundError", "IsADirectoryError")
HELD = ("same", "other")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[dict[str, str]]:
    """What a child with 64 MB of memory to spare reports of every mutation; it must live to the
    last."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    child = subprocess.run(
        [sys.executable, str(TESTS / "support" / "hostile.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    rows = [json.loads(line) for line in child.stdout.splitlines()]
    last = rows[-1] if rows else None
    assert child.returncode == 0, f"the child died after {last}: {child.stderr[-2000:]}"
    return [row for row in rows if "outcome" in row]


@pytest.mark.slow
def test_there_are_a_thousand_of_all_kinds(outcomes):
    kinds = Counter(row["kind"] for row in outcomes)
    assert set(kinds) == set(KINDS) and min(kinds.values()) >= 50 and kinds.total() >= 1000
    # A mutation that changes nothing shows nothing.
    assert sum(row["outcome"] != "same" for row in outcomes) >= 1000


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_harmed_file_is_one_line_of_error_or_holds_what_it_held(outcomes, kind):
    bad = [
        row
        for row in outcomes
        if row["kind"] == kind and (why := fault(row)) and not row.update(why=why)
    ]
    assert not bad, f"{len(bad)}, the first: {bad[0]}"


def fault(row: dict[str, str]) -> str | None:
    """What is wrong with the outcome of a mutation under its law."""
    name, _, text = row["outcome"].partition(": ")
    if name in HELD:
        allowed = {"refused": (), "same": ("same",), "sound": HELD}[row["law"]]
        return None if name in allowed else "loaded"
    if name not in ERRORS:
        return "not an error of the user's"
    if "\n" in text or len(text) > 2000:
        return "not one line"
    # What a caller turns into a ValueError is a lack of memory all the same.
    return "memory" if "alloc" in text.lower() or "MemoryError" in text else None


@pytest.mark.parametrize(
    ("law", "outcome"),
    [
        *(
            ("same", "other"),
            ("refused", "same"),
            ("refused", "other"),
            ("sound", "Hang: "),
            ("sound", "MemoryError: "),
        ),
        *(
            ("sound", "RecursionError: x"),
            ("same", "ValueError: two\nlines"),
            ("same", "AssertionError: other numbers"),
        ),
        (
            "same",
            "ValueError: x: [enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate "
            "memory",
        ),
    ],
)
def test_faults_are_seen(law, outcome):
    assert fault({"law": law, "outcome": outcome})
