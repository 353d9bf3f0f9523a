"""The package: which libraries its parts know, and what a plain import loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fastgen"
# Library -> the files that may import it.
USERS = {
    "accelerate": {"training/accelerator.py"},
    "escnn": {
        "models/eattention.py",
        "models/ediscriminators.py",
        "models/edropout.py",
        "models/ekits.py",
        "models/elayers.py",
        "models/emaps.py",
        "models/emlp.py",
        "models/enorms.py",
        "models/etransformer.py",
        "models/groups.py",
        "models/representations.py",
        "models/specs.py",
        "models/stacks.py",
        "models/typed.py",
    },
    "matplotlib": {
        "report/axes.py",
        "report/diagnostics.py",
        "report/figures.py",
        "report/page.py",
        "report/trajectories.py",
    },
}
# torch's compiler among them: it takes as long to load as torch itself.
HEAVY = (
    *("escnn", "accelerate", "matplotlib", "pydantic", "yaml", "lie_learn", "tqdm"),
    "torch._dynamo",
)
PLAIN = "import fastgen, fastgen.models, fastgen.samplers, fastgen.flow_matching"


def imported(path: Path) -> set[str]:
    """The libraries that a file imports, without those for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("library", sorted(USERS))
def test_only_one_place_knows_a_library(library: str):
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if library in imported(path)
    }
    assert users == USERS[library]


def loaded_by(imports: str) -> set[str]:
    """The heavy libraries that a fresh interpreter holds after `imports`."""
    code = f"import sys\n{imports}\nprint(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.slow
def test_plain_import_loads_no_heavy_library():
    # torch itself may load some of these on some systems, so compare with torch alone.
    loaded = loaded_by(PLAIN)
    assert loaded == loaded_by("import torch")
    assert not loaded & {"escnn", "accelerate", "matplotlib"}


@pytest.mark.slow
def test_the_door_to_distribution_matching_loads_no_heavy_library():
    assert loaded_by("import fastgen.dmd") - loaded_by("import torch") <= {"pydantic"}
