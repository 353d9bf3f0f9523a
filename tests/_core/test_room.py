"""Room in memory: what can't fit is refused before it is tried, and what fails names what to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastgen._core import room
from fastgen._core.checks import plain_int
from fastgen._core.room import check_room, free_memory, naming_what_to_lower


def test_some_memory_is_free_and_no_more_than_there_is():
    free = free_memory()
    assert free is not None and 1e6 < free < 1e15


@pytest.mark.parametrize("names", [("memory.max", "memory.current"), room.__all__[:0]])
def test_the_limit_of_a_container_counts(tmp_path, monkeypatch, names):
    groups = tmp_path / "cgroup"
    groups.write_text("0::/../nowhere\n")
    monkeypatch.setattr(room, "_OWN_GROUPS", groups)
    assert free_memory()
    for name, value in zip(names, ("3000000", "1000000"), strict=False):
        (tmp_path / name).write_text(value + "\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 400000\n")
    groups.write_text(f"0::{tmp_path.relative_to('/')}\n")
    monkeypatch.setattr(room, "_ROOT", room.Path("/"))
    assert not names or free_memory() == 2_400_000


def test_what_cannot_fit_is_refused_with_the_limit(monkeypatch):
    monkeypatch.setattr(room, "free_memory", lambda: 1000)
    check_room("num_samples", 10, 100)
    with pytest.raises(ValueError, match="expected num_samples <= 10, for which .* got 11"):
        check_room("num_samples", 11, 100)
    monkeypatch.setattr(room, "free_memory", lambda: None)
    check_room("num_samples", 10**30, 100)


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(10**15),
        lambda: torch.empty(10**12, 10**12),
        lambda: torch.zeros(10**18),
        lambda: torch.empty(10**30),
        lambda: np.empty(10**15),
        lambda: bytearray(1 << 60),
        lambda: bytearray(1 << 70),
    ],
)
def test_an_allocation_that_fails_names_what_to_lower(allocate):
    with pytest.raises(MemoryError, match="lower a or b") as caught, naming_what_to_lower("c"):
        with naming_what_to_lower("a", "b"):
            allocate()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes"), OverflowError("math range error"), TypeError("no number")]
)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, naming_what_to_lower("a"):
        raise error
    assert caught.value is error


def test_numbers_of_other_libraries_are_numbers():
    for value in (np.int64(3), np.uint8(3), 3):
        assert plain_int(value) == 3 and type(plain_int(value)) is int
    for value in (True, np.bool_(True), 3.0, "3", None):
        assert plain_int(value) is value
