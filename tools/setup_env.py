"""Sets fastgen up: run as `tools/setup.sh`, which finds a Python for it. Standard library only.

    tools/setup.sh           what the recipes need
    tools/setup.sh --dev     the same and the tools of tools/check.sh
    tools/setup.sh --which   prints the Python of the environment, installs nothing

With no environment active it makes `.venv` in the checkout and installs the versions of
tools/constraints.txt. In an active one (VIRTUAL_ENV or CONDA_PREFIX; conda's `base` does not count)
it installs there: what is there and within fastgen's ranges stays, torch and numpy stay whatever
they are, what is missing comes in the pinned version. It needs no root, no compiler and no GPU;
when nothing is left to do it says so in a second.

pip's own settings apply. PyTorch's default build for Linux carries CUDA and takes some gigabytes:
to get another one, put the address of that index of PyTorch's into PIP_EXTRA_INDEX_URL before the
first run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import setup_requirements
import setup_target
from setup_requirements import (
    CONSTRAINTS,
    FLIGHTS,
    PYPROJECT,
    ROOT,
    SetupError,
    effective_pins,
    read_pins,
    requirement_name,
    wanted,
    wanted_bare,
)
from setup_target import Environment, State, choose_environment, probe, run, say

STAND_IN = ROOT / "tools" / "lie_learn"
SCRIPTS = [
    Path(file).resolve() for file in (__file__, setup_requirements.__file__, setup_target.__file__)
]
STAMP = "fastgen-setup.json"
LOG = "fastgen-setup.log"

# accelerate's launcher lists on every start which defaults it took. They are what we want (all
# GPUs, else one process), and a config file instead would fix the number of GPUs; so its one
# message is dropped, in our own environment only. When the script it runs stops, by an error or by
# Ctrl-C, that has said its one line already: the launcher's own traceback goes too, its exit code
# stays.
QUIET_LAUNCH = (
    'import sys; any("accelerate" in a for a in sys.orig_argv[1:3]) and ('
    '__import__("logging").getLogger("accelerate.commands.launch").addFilter('
    'lambda record: "had defaults used instead" not in str(record.msg)), '
    'setattr(sys, "excepthook", lambda kind, error, trace: None '
    'if kind.__name__ in ("CalledProcessError", "KeyboardInterrupt") '
    "else sys.__excepthook__(kind, error, trace)))\n"
)

VERIFY = """
import importlib.util, warnings
warnings.simplefilter("ignore")
import torch
from escnn.group import dihedral_group, so3_group
assert dihedral_group(4).order() == 8 and so3_group(1).irrep(1).size == 3
assert importlib.util.find_spec("fastgen") is not None
print(torch.__version__)
"""


def fingerprint(state: State) -> str:
    """Changes whenever an environment has to be looked at again: recipe files, Python, place of the
    checkout."""
    stand_in = sorted(path for kind in ("*.py", "*.toml") for path in STAND_IN.rglob(kind))
    files = [CONSTRAINTS, PYPROJECT, *SCRIPTS, *stand_in]
    digest = hashlib.sha256(json.dumps([str(ROOT), state.version]).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def read_stamp(env: Environment) -> dict:
    try:
        return json.loads((env.prefix / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def up_to_date(env: Environment, state: State, groups: list[str]) -> bool:
    """Whether an earlier run did all this here and the packages it left are still there (in .venv:
    unchanged)."""
    stamp = read_stamp(env)
    if stamp.get("fingerprint") != fingerprint(state) or not set(groups) <= set(
        stamp.get("groups", [])
    ):
        return False
    left = stamp.get("installed", {})
    if env.ours:
        return all(state.found.get(name) == version for name, version in left.items())
    return all(name in state.found for name in left)


def make_venv(env: Environment) -> None:
    """A fresh .venv with pip in it, made by the Python that runs this script."""
    done = run([sys.executable, "-m", "venv", "--clear", str(env.prefix)])
    if done.returncode:
        # Debian keeps ensurepip in a package of its own. A system pip can stand in for it.
        bare = run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(env.prefix)])
        if not bare.returncode:
            done = run(
                [
                    sys.executable,
                    "-m",
                    "pip",
                    "--python",
                    str(env.python),
                    "install",
                    "--no-input",
                    "pip",
                ]
            )
    if done.returncode:
        shutil.rmtree(env.prefix, ignore_errors=True)
        if not os.access(ROOT, os.W_OK):
            raise SetupError(f"cannot write to {ROOT}: .venv is made in the checkout")
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise SetupError(
            f"{sys.executable} cannot make a virtual environment (its venv or ensurepip module is "
            "missing or broken): install it, on Debian and Ubuntu with `apt install "
            f"python{version}-venv`, or name another Python: PYTHON=/path/to/python3 "
            "tools/setup.sh"
        )


def pip(env: Environment, *arguments: str) -> bool:
    """Runs `pip install` in the environment, output into the log; whether it succeeded."""
    options = [
        "--no-input",
        "--disable-pip-version-check",
        "--retries",
        "3",
        "--prefer-binary",
        "--progress-bar",
        "off",
    ]
    command = [str(env.python), "-I", "-m", "pip", "install", *options, *arguments]
    return run(command, env.prefix / LOG).returncode == 0


def install(env: Environment, what: str, *arguments: str) -> None:
    """`pip` with a failure turned into one line: the reason if it is the network or the disk, else
    pip's last error."""
    if pip(env, *arguments):
        return
    text = (env.prefix / LOG).read_text(encoding="utf-8").rsplit("\n$ ", 1)[-1]
    errors = [line.strip() for line in text.splitlines() if line.lstrip().startswith("ERROR:")]
    reason = errors[0] if errors else "pip failed"
    if re.search(r"No space left on device", text):
        reason = f"no space left on the disk of {env.prefix}"
    elif re.search(
        r"NewConnectionError|NameResolutionError|ProxyError|ConnectTimeout|ReadTimeout|"
        r"ConnectionError",
        text,
    ):
        reason = (
            "no connection to the package index (is the network up, does pip know your proxy or "
            "mirror?)"
        )
    raise SetupError(
        f"{what} could not be installed: {reason}; all of pip's output: {env.prefix / LOG}"
    )


def install_lie_learn(env: Environment, found: dict[str, str], constraints: str) -> str:
    """Makes `lie_learn` importable for escnn: the published wheel where numpy 1 is, else the
    stand-in in tools/."""
    there = found.get("lie-learn")
    if there == stand_in_version() or (there is not None and found["numpy"].startswith("1.")):
        return f"lie_learn {there}"
    wheel = ["--no-deps", "--only-binary", "lie_learn", "-c", constraints, "lie_learn"]
    if int(found["numpy"].split(".")[0]) < 2 and pip(env, *wheel):
        return "lie_learn"
    with tempfile.TemporaryDirectory() as folder:
        source = shutil.copytree(STAND_IN, Path(folder) / "lie_learn")
        install(env, "the stand-in for lie_learn", "--no-deps", str(source))
    return "the stand-in of tools/lie_learn (lie_learn has no wheel that fits here)"


def stand_in_version() -> str:
    """The version of tools/lie_learn, by which an earlier one is told."""
    text = (STAND_IN / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'^version = "(.*)"$', text, re.MULTILINE)[0]


def install_all(env: Environment, state: State, groups: list[str]) -> None:
    """Every step, each announced by one line before it starts."""
    there = state.found
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "constraints.txt"
        file.write_text("\n".join(effective_pins(there, ours=env.ours)) + "\n", encoding="utf-8")
        constraints = str(file)
        requirements = wanted(groups, there, ours=env.ours)
        if not env.ours and "torch" in there:
            say(f"torch {there['torch']} is yours and stays")
        else:
            torch = [line for line in requirements if requirement_name(line) == "torch"]
            say(
                "installing torch (the longest step: up to some gigabytes where the build carries "
                "CUDA)"
            )
            install(env, "torch", "-c", constraints, *torch)
        if not env.ours and "numpy" in there:
            say(f"numpy {there['numpy']} is yours and stays")
        say(
            "installing "
            f"{', '.join(sorted({requirement_name(line) for line in requirements} - {'torch'}))}"
        )
        install(env, "fastgen's dependencies", "-c", constraints, *requirements)
        after = probe(env)
        if after is None:
            raise SetupError(
                f"{env.python} stopped working during the set-up; delete {env.prefix} and run "
                "this again"
            )
        bare = wanted_bare(groups)
        say(
            f"installing {' and '.join(bare)}, without the optional packages that need a Fortran "
            "compiler"
        )
        install(env, "escnn", "--no-deps", "-c", constraints, *bare)
        lie_learn = install_lie_learn(env, after.found, constraints)
        say(f"installed {lie_learn} for escnn")
        if "stand-in" in lie_learn:
            # What escnn computed and kept by an earlier one.
            shutil.rmtree(after.purelib / "escnn" / "group" / "_cache", ignore_errors=True)
        say("installing the sample of recorded flights (the data files in the package traffic)")
        install(env, "traffic", "--no-deps", "-c", constraints, FLIGHTS)
        say("installing fastgen itself, editable")
        install(env, "fastgen", "--no-deps", "--editable", str(ROOT))
        if env.ours:
            (after.purelib / "fastgen_quiet_launch.pth").write_text(QUIET_LAUNCH, encoding="utf-8")


def verify(env: Environment) -> str:
    """Imports what was installed, once; the version of torch."""
    done = run([str(env.python), "-I", "-c", VERIFY], env.prefix / LOG)
    if done.returncode:
        last = done.stdout.strip().splitlines()[-1:] or ["no message"]
        raise SetupError(
            f"installed, but importing torch, escnn and fastgen fails: {last[0]} "
            f"({env.prefix / LOG})"
        )
    return done.stdout.strip().splitlines()[-1]


def set_up(groups: list[str]) -> None:
    """Brings the environment to what the constraints say, or finds that it is there already."""
    start = time.monotonic()
    env = choose_environment()
    state = probe(env)
    if state is not None and up_to_date(env, state, groups):
        say(f"{env.name} is up to date")
        return
    stamp = read_stamp(env)
    moved = env.ours and stamp.get("root", str(ROOT)) != str(ROOT)
    if env.ours and (state is None or moved or "pip" not in state.found):
        # Scripts in a virtual environment hold its absolute path: one that was moved cannot be
        # repaired.
        say(f"making .venv with {sys.executable} (Python {sys.version.split()[0]})")
        make_venv(env)
        state = probe(env)
        stamp = {}
    if state is None:
        raise SetupError(f"{env.python} does not run: deactivate that environment or repair it")
    if state.version < (3, 10):
        version = ".".join(map(str, state.version))
        raise SetupError(
            f"the active environment {env.prefix} has Python {version}, fastgen needs 3.10 or newer"
        )
    if not os.access(env.prefix, os.W_OK):
        raise SetupError(
            f"cannot write to {env.prefix}: activate an environment of your own, or none"
        )
    (env.prefix / LOG).write_text("", encoding="utf-8")
    if not env.ours:
        say(f"installing into the active environment {env.prefix}")
    if "pip" not in state.found:
        say("adding pip to the environment")
        if run([str(env.python), "-I", "-m", "ensurepip"], env.prefix / LOG).returncode:
            raise SetupError(
                f"{env.prefix} has no pip and its Python cannot add one: install pip there first"
            )
    groups = sorted(set(groups) | set(stamp.get("groups", [])))
    install_all(env, state, groups)
    torch = verify(env)
    state = probe(env) or state
    pinned = {requirement_name(pin) for pin in read_pins(CONSTRAINTS.read_text(encoding="utf-8"))}
    left = {
        name: version
        for name, version in state.found.items()
        if name in pinned or name == "fastgen-distill"
    }
    done = {
        "fingerprint": fingerprint(state),
        "root": str(ROOT),
        "groups": groups,
        "installed": left,
    }
    (env.prefix / STAMP).write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    say(
        f"{env.name} is ready: torch {torch}, Python {state.version[0]}.{state.version[1]}, "
        f"{time.monotonic() - start:.0f} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tools/setup.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--dev", action="store_true", help="also install the tools that tools/check.sh runs"
    )
    parser.add_argument(
        "--which", action="store_true", help="print the environment's Python and do nothing else"
    )
    options = parser.parse_args()
    if options.which:
        print(choose_environment().python)
        return 0
    try:
        set_up(["dependencies", "viz", *(["dev"] if options.dev else [])])
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
