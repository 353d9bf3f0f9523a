"""The order of the wings: a module imports from its own floor or from those below it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fastgen"
MODULES = sorted(PACKAGE.rglob("*.py"))
FLOORS = """
testing
jobs distillation pretraining
methods export dmd
samplers teachers discriminators
training report losses two_sample networks
data records flow_matching ema
config models guidance interpolants
_core solvers metrics normalizer
"""
FLOOR_OF = {
    wing: height
    for height, floor in enumerate(reversed(FLOORS.strip().splitlines()))
    for wing in floor.split()
}


def wings(path: Path) -> set[str]:
    """The wings that a file imports from."""
    parents = ["fastgen", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        named = [getattr(node, "module", "") or "", *(a.name for a in getattr(node, "names", []))]
        if isinstance(node, ast.Import) or not getattr(node, "level", 1):
            assert not any(name.split(".")[0] == "fastgen" for name in named), (
                "imports are relative"
            )
        elif isinstance(node, ast.ImportFrom):
            base = [*parents[: len(parents) - node.level + 1], *(node.module or "").split(".")]
            found |= {base[1]} if base[1] else {alias.name for alias in node.names}
    return found - {"__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path):
    wing = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if wing == "__init__":
        return
    above = {name for name in wings(path) if FLOOR_OF[name] > FLOOR_OF[wing]}
    assert not above
