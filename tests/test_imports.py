"""The architecture: what may import what, and what a plain import loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fastgen"

# Layers from left to right: a module imports its own layer or those before it.
LAYERS = [
    {"_shards", "_tensor", "_files", "_yaml", "_archives", "config", "cli", "faults", "origins"},
    {
        "flow_matching",
        "interpolants",
        "losses",
        "clocks",
        "solvers",
        "normalizer",
        "metrics",
        "ema",
        "models",
    },
    {"networks", "samplers", "teachers", "discriminators", "data", "guidance", "two_sample"},
    {
        "kd",
        "fake_scores",
        "dmd",
        "diagnostics",
        "consistency",
        "student",
        "card",
        "_schema",
        "tables",
        "export",
        "pictures",
        "report",
        "checkpoint",
        "memory",
        "recompute",
        "run_log",
        "runs",
        "evaluation",
        "validation",
    },
    {"draws", "trained_network", "launching"},
    {"stages"},
    {"trainer"},
    {"pretraining"},
    {"sources", "declarations"},
    {"planning"},
    {"distillation"},
]
ALLOWED = {
    "accelerate": {"trainer.py"},
    "escnn": {
        "models/groups.py",
        "models/ediscriminators.py",
        "models/elayers.py",
        "models/emaps.py",
        "models/etransformer.py",
        "models/equivariance.py",
        "models/specs.py",
    },
    "matplotlib": {"report.py", "pictures.py"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path, *, with_types: bool = False) -> set[str]:
    """Absolute names of the modules that a file imports, without those for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (
            not with_types
            and isinstance(node, ast.If)
            and getattr(node.test, "id", "") == "TYPE_CHECKING"
        ):
            node.body = []
    parents = ["fastgen", *path.relative_to(PACKAGE).with_suffix("").parts][:-1]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            names |= {start} | {f"{start}.{alias.name}" for alias in node.names}
    return names


def layer_of(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def top_name(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_every_module_has_a_layer():
    unknown = {top_name(p) for p in modules()} - set().union(*LAYERS) - {"__init__"}
    assert not unknown


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_left_to_right(path: Path):
    if top_name(path) == "__init__":
        return
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("fastgen.")}
    ours &= set().union(*LAYERS)
    later = {name for name in ours if layer_of(name) > layer_of(top_name(path))}
    assert not later


@pytest.mark.parametrize("library", sorted(ALLOWED))
def test_only_one_place_knows_a_library(library: str):
    users = {
        p.relative_to(PACKAGE).as_posix()
        for p in modules()
        if any(n.split(".")[0] == library for n in imported(p))
    }
    assert users <= ALLOWED[library]
    assert users  # or the table above is stale


def test_plain_import_loads_no_heavy_library():
    code = (
        "import sys, fastgen, fastgen.models, fastgen.samplers, fastgen.flow_matching\nheavy = "
        "{'escnn', 'accelerate', 'matplotlib', 'pydantic', 'yaml', 'lie_learn', 'tqdm'} & "
        "set(sys.modules)\nprint(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # torch itself may load some of these on some systems, so compare with torch alone.
    base = subprocess.run(
        [
            sys.executable,
            "-c",
            code.replace(
                "fastgen, fastgen.models, fastgen.samplers, fastgen.flow_matching", "torch"
            ),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == base.stdout
    assert (
        "escnn" not in done.stdout
        and "accelerate" not in done.stdout
        and "matplotlib" not in done.stdout
    )
