"""The order of the wings: a module imports from its own floor or from those below it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fastgen"
MODULES = sorted(PACKAGE.rglob("*.py"))
FLOORS = """
testing __main__
commands
jobs distillation pretraining
methods export dmd
samplers teachers discriminators
training report losses two_sample set_losses networks
data records flow_matching ema
config models guidance interpolants vsd
_core solvers metrics frechet neighbours comparisons normalizer channel_kinds box
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
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*parents[: len(parents) - node.level + 1], *(node.module or "").split(".")]
            found |= {base[1]} if base[1] else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is None or node.module.split(".")[0] != "fastgen", (
                "say it relatively"
            )
        elif isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "fastgen" for alias in node.names)
    return found - {"__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path):
    wing = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if wing == "__init__":
        return
    above = {name for name in wings(path) if FLOOR_OF[name] > FLOOR_OF[wing]}
    assert not above
