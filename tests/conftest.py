"""What holds for every test."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what importing has made: hundreds of thousands of objects
    that stay to the end, looked through by every run that frees its memory."""
    gc.collect()
    gc.freeze()
