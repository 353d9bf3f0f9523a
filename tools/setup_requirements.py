"""Requirements of the set-up: the lists of pyproject.toml, the pins of constraints.txt.

A part of `tools/setup.sh`. Standard library only, since nothing is installed when it runs.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
PYPROJECT = ROOT / "pyproject.toml"

# What escnn imports; its own list also asks for Fortran and for two packages that it only uses if
# they are there.
ESCNN_NEEDS = ["scipy", "joblib", "requests"]
# Installed without their own lists: that of symm-learning names escnn.
BARE = ("escnn", "symm-learning")
FLIGHTS = "traffic==2.13.*"
FROZEN = ("torch", "numpy")


class SetupError(Exception):
    """Something that the reader must change; its text is the one line that they see."""


def canonical(name: str) -> str:
    """Distribution name as package indices compare it: lower case, runs of `-_.` as one dash."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(requirement: str) -> str:
    """Canonical name at the head of a requirement line such as `numpy>=1.24,<2; python_version <
    '3.13'`."""
    match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
    if match is None:
        raise SetupError(f"expected a requirement such as 'numpy>=1.24', got {requirement!r}")
    return canonical(match[1])


def read_requirements(text: str) -> dict[str, list[str]]:
    """Requirement arrays of a pyproject.toml (`dependencies` and the extras), without a TOML
    parser."""
    array = r"^([a-z][a-z0-9]*) = \[\n((?:    \"[^\"\n]*\",\n)*)\]$"
    arrays = re.findall(array, text, re.MULTILINE)
    return {name: re.findall(r"\"([^\"\n]*)\"", body) for name, body in arrays}


def read_pins(text: str) -> list[str]:
    """Lines of a constraints file without comments."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def wanted(groups: list[str], found: dict[str, str], *, ours: bool) -> list[str]:
    """Requirements to hand to pip: neither those of `BARE` nor a torch that is there."""
    arrays = read_requirements(PYPROJECT.read_text(encoding="utf-8"))
    lines = [line for group in groups for line in arrays[group]] + ESCNN_NEEDS
    absent = set(BARE) if ours else {*BARE, *(name for name in FROZEN if name in found)}
    return [line for line in lines if requirement_name(line) not in absent]


def wanted_bare(groups: list[str]) -> list[str]:
    """The names of `BARE` that these groups ask for, in its order. Markers don't count: they are
    for a pip that would install the lists as well."""
    arrays = read_requirements(PYPROJECT.read_text(encoding="utf-8"))
    asked = {requirement_name(line) for group in groups for line in arrays[group]}
    return [name for name in BARE if name in asked]


def effective_pins(found: dict[str, str], *, ours: bool) -> list[str]:
    """Constraints for pip: all pins in our .venv; elsewhere only those of missing packages, torch
    and numpy frozen."""
    pins = read_pins(CONSTRAINTS.read_text(encoding="utf-8"))
    if ours:
        return pins
    frozen = [f"{name}=={found[name]}" for name in FROZEN if name in found]
    return frozen + [pin for pin in pins if requirement_name(pin) not in found]
