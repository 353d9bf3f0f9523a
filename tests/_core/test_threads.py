"""Threads by the work alone: counted operations, and a rule that no clock is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fastgen._core.threads import operations_of, threads_for, using_threads

# A recipe up to where torch has loaded its threads, which is long before the rest of it.
UNTIL_THREADS = """
import runpy, sys

class End:
    def find_spec(self, name, path, target=None):
        if name == "torch.nn":
            sys.exit(0)

sys.meta_path.insert(0, End())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
RECIPES = Path(__file__).parents[2] / "recipes"


def test_operations_are_those_of_the_products():
    linear = nn.Linear(5, 7)
    convolution = nn.Conv1d(3, 4, 3, padding=1)
    rows = 6
    length = 10
    assert operations_of(lambda: linear(torch.rand(rows, 5))) == 2 * rows * 5 * 7
    expected = 2 * rows * length * 3 * 4 * 3
    assert operations_of(lambda: convolution(torch.rand(rows, 3, length))) == expected
    assert operations_of(lambda: torch.rand(3).exp()) == 0


@pytest.mark.parametrize(
    ("operations", "most", "expected"),
    [(0, 8, 1), (1.6e9, 2, 1), (2.9e9, 8, 1), (6.2e9, 8, 2), (1e11, 8, 8), (1e30, 64, 64)],
)
def test_small_work_gets_one_thread_and_large_work_all(operations, most, expected):
    assert threads_for(operations, most) == expected


def test_the_threads_of_before_come_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), using_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


@pytest.mark.skipif(sys.platform != "linux", reason="torch has its own OpenMP elsewhere")
@pytest.mark.parametrize("recipe", ["distill.py", "train_teacher.py"])
@pytest.mark.parametrize("chosen", [None, "ACTIVE"])
def test_threads_of_a_training_sleep_while_they_wait(recipe, chosen):
    """Unless whoever starts it has chosen otherwise."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["OMP_DISPLAY_ENV"] = "TRUE"
    if chosen is not None:
        environment["OMP_WAIT_POLICY"] = chosen
    done = subprocess.run(
        [sys.executable, "-c", UNTIL_THREADS, RECIPES / recipe, "--help"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"OMP_WAIT_POLICY = '{chosen or 'PASSIVE'}'" in done.stderr
