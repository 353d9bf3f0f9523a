"""Words of error messages: values and names from foreign files, cut to one short line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["EXPORT_AGAIN", "brief", "differences", "first_names", "listed"]

# What to do about a file that isn't what an export wrote.
EXPORT_AGAIN = "export it again or copy it anew"


def brief(value: Any) -> str:
    """`value`, or the text of an exception, on one line of at most 120 characters."""
    said = str(value) if isinstance(value, Exception) else repr(value)
    text = " ".join(said.split())
    return text if len(text) <= 120 else text[:117] + "..."


def first_names(names: Iterable[str], most: int = 10) -> str:
    """The first `most` of the sorted names, each of at most 80 characters, and how many there
    are."""
    names = sorted(name if name.isprintable() else repr(name)[1:-1] for name in names)
    shown = ", ".join(name if len(name) <= 80 else name[:77] + "..." for name in names[:most])
    return shown + (f", ... ({len(names)} in all)" if len(names) > most else "")


def listed(values: Sequence[Any], most: int = 5) -> str:
    """The first `most` of some values in their order, and how many there are."""
    shown = ", ".join(map(str, values[:most]))
    return shown + (f", ... ({len(values)} in all)" if len(values) > most else "")


def differences(expected: set[str], got: set[str]) -> str:
    """ "missing a, b; unexpected c", or "" for equal sets."""
    said = (("missing", expected - got), ("unexpected", got - expected))
    return "; ".join(f"{what} {first_names(names)}" for what, names in said if names)
