"""Optional packages that tests need: one that `tools/setup.sh --dev` installs fails a test where it
is missing, since a test that is skipped without a word says nothing."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest

__all__ = ["installed"]


def installed(name: str, since: tuple[int, int] = (3, 10)) -> ModuleType:
    """A package, imported.

    Args:
        name: of the module.
        since: the Python from which on `tools/setup.sh --dev` installs it. The test is skipped on
            an older one.

    Raises:
        ImportError: it should be there, and isn't.
    """
    if sys.version_info < since:
        pytest.skip(f"{name} is installed from Python {since[0]}.{since[1]} on")
    return importlib.import_module(name)
