"""What holds for every test."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

# Groups of 24 elements and more. A law of groups is tried on them as well, and takes its time.
LARGE_GROUPS = {"Icosahedral", "Octahedral"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave a law on a large group out of the inner loop."""
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if any(isinstance(value, str) and value in LARGE_GROUPS for value in values):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what importing has made: hundreds of thousands of objects
    that stay to the end, looked through by every run that frees its memory."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def blank_pictures() -> Iterator[None]:
    """Runs of a toy draw no pictures: what is looked at is the rest of them."""
    from support.toy import without_pictures

    with without_pictures():
        yield
