"""Versions of what computes: this package and torch."""

from __future__ import annotations

from importlib import metadata

import torch

__all__ = ["package_version", "versions"]

_PACKAGE = "fastgen-distill"


def package_version() -> str:
    """The version of this package, "source tree" where it isn't installed."""
    try:
        return metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError:
        return "source tree"


def versions() -> dict[str, str]:
    """Version by package."""
    return {_PACKAGE: package_version(), "torch": str(torch.__version__)}
