"""Where fastgen is set up: the environment to install into, and what it holds.

A part of `tools/setup.sh`. Standard library only, since nothing is installed when it runs.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from setup_requirements import ROOT, canonical

PROBE = """
import importlib.metadata, json, sys, sysconfig
found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
found = {name: version for name, version in found.items() if name}
version = list(sys.version_info[:2])
print(json.dumps({"version": version, "purelib": sysconfig.get_path("purelib"), "found": found}))
"""


@dataclass(frozen=True)
class Environment:
    """Where to install: `prefix` with its interpreter `python`; `ours` is true for the checkout's
    own .venv."""

    prefix: Path
    python: Path
    ours: bool

    @property
    def name(self) -> str:
        return ".venv" if self.ours else str(self.prefix)


@dataclass(frozen=True)
class State:
    """What an environment holds: Python version, site-packages, canonical distribution name ->
    version."""

    version: tuple[int, int]
    purelib: Path
    found: dict[str, str]


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def choose_environment() -> Environment:
    """The active virtual or conda environment, else .venv in the checkout (which may be the active
    one)."""
    own = ROOT / ".venv"
    virtual = os.environ.get("VIRTUAL_ENV")
    conda = os.environ.get("CONDA_PREFIX")
    if os.environ.get("CONDA_DEFAULT_ENV") == "base":
        conda = None
    for active in filter(None, (virtual, conda)):
        prefix = Path(active)
        if prefix.resolve() == own.resolve():
            break
        if (prefix / "bin" / "python").exists():
            return Environment(prefix, prefix / "bin" / "python", ours=False)
        say(f"{active} is said to be active but has no bin/python: not used")
    return Environment(own, own / "bin" / "python", ours=True)


def child_environment() -> dict[str, str]:
    """The caller's variables without those that would make an interpreter look or install
    elsewhere."""
    dropped = {"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PIP_USER", "PIP_TARGET", "PIP_PREFIX"}
    return {key: value for key, value in os.environ.items() if key not in dropped}


def run(command: list[str], log: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=child_environment(),
        check=False,
    )
    if log is not None:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(command)}\n{done.stdout}\n")
    return done


def probe(env: Environment) -> State | None:
    """What the environment holds, None if there is no interpreter in it that runs."""
    if not env.python.exists():
        return None
    done = run([str(env.python), "-I", "-c", PROBE])
    if done.returncode:
        return None
    answer = json.loads(done.stdout.splitlines()[-1])
    found = {canonical(name): version for name, version in answer["found"].items()}
    return State((answer["version"][0], answer["version"][1]), Path(answer["purelib"]), found)
