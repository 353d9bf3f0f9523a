"""What the source may not do with a user's files: run, unpickle or import anything that they
bring."""

import ast
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgen.config import DistillConfig
from fastgen.export import export_student, load_network, save_network, schema
from fastgen.export.folders import load_student
from fastgen.jobs.sources import load_run_student, load_teacher
from fastgen.models import build_model
from fastgen.models.transformer import CondTransformerRegressor

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for folder in ("fastgen", "recipes", "tools") for path in (ROOT / folder).rglob("*.py")
)

UNPICKLING = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "runpy",
    "code",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
# By their last two names; `torch.hub`, `torch.package` and `torch.jit.load` run code of a download
# or a file.
CALLS = {
    "torch.load",
    "jit.load",
    "hub.load",
    "torch.package",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.full_load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
    "yaml.dump",
    "yaml.Loader",
    "yaml.FullLoader",
    "yaml.UnsafeLoader",
    "os.system",
    "os.popen",
    "pandas.read_pickle",
    "pd.read_pickle",
    "np.fromfile",
}
# A module named by a string: the factory of a user's own config, the lazy names of our own models,
# and the optional packages that our readers of data name.
IMPORTERS = {
    "fastgen/jobs/sources.py",
    "fastgen/models/__init__.py",
    "fastgen/data/formats/parts.py",
}


def offences(tree: ast.AST, path: str) -> list[str]:
    """What a file does that it may not, with its line."""
    found = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            found += [
                f"{line}: import {name}"
                for name in names
                if name.split(".")[0] in UNPICKLING | {"builtins"}
            ]
            whole = [f"{getattr(node, 'module', '')}.{a.name}" for a in node.names]
            found += [
                f"{line}: import {name}"
                for name in whole
                if name in CALLS | {"importlib.import_module"}
            ]
        if (
            isinstance(node, ast.Name)
            and isinstance(node.ctx, ast.Load)
            and node.id in BUILTINS | {"__builtins__"}
        ):
            found.append(f"{line}: {node.id}")
        if isinstance(node, ast.Attribute):
            owner = (
                node.value.attr
                if isinstance(node.value, ast.Attribute)
                else getattr(node.value, "id", "")
            )
            name = f"{owner}.{node.attr}"
            if name in CALLS or (name == "importlib.import_module" and path not in IMPORTERS):
                found.append(f"{line}: {name}")
        if isinstance(node, ast.Call):
            keywords = {k.arg: getattr(k.value, "value", k.value) for k in node.keywords}
            name = ast.unparse(node.func)
            if name in ("np.load", "numpy.load") and keywords.get("allow_pickle") is not False:
                found.append(f"{line}: {name} that may unpickle")
            if (
                keywords.get("allow_pickle", False) is not False
                or keywords.get("weights_only", True) is not True
            ):
                found.append(f"{line}: {name} that may unpickle")
            if keywords.get("shell", False) is not False:
                found.append(f"{line}: {name} through a shell")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_source_runs_or_unpickles_what_a_file_brings(path):
    name = path.relative_to(ROOT).as_posix()
    assert not offences(ast.parse(path.read_text(encoding="utf-8")), name)


@pytest.mark.parametrize(
    "text",
    [
        *("import pickle", "from pickle import loads", "import torch as t; from torch import load"),
        *(
            "torch.load(path)",
            "f = torch.load",
            "torch.load(p, weights_only=True)",
            "torch.jit.load(p)",
        ),
        *(
            "yaml.load(text, Loader=yaml.SafeLoader)",
            "yaml.full_load(text)",
            "yaml.dump(x)",
            "import joblib.numpy_pickle",
        ),
        *(
            "eval(text)",
            "exec(text)",
            "compile(text, 'x', 'exec')",
            "x = eval",
            "__import__(name)",
            "import builtins",
        ),
        *(
            "np.load(path)",
            "np.load(path, allow_pickle=True)",
            "numpy.load(path, None)",
            "read(p, allow_pickle=flag)",
        ),
        *(
            "subprocess.run(text, shell=True)",
            "os.system(text)",
            "subprocess.run(text, shell=flag)",
        ),
        *(
            "importlib.import_module(name)",
            "from importlib import import_module",
            "from os import system",
        ),
    ],
)
def test_what_is_forbidden_is_recognised(text):
    assert offences(ast.parse(text), "fastgen/data/x.py")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "network.eval()",
            "re.compile(text)",
            "torch.compile(network)",
            "yaml.safe_load(text)",
            "yaml.parse(t)",
        ),
        *(
            "np.load(path, allow_pickle=False)",
            "subprocess.run([a, b])",
            "ast.literal_eval(text)",
            "json.load(file)",
        ),
    ],
)
def test_what_is_harmless_is_let_through(text):
    assert not offences(ast.parse(text), "fastgen/data/x.py")


# ---- Folders from elsewhere ----------------------------------------------------------------------


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module on the path that leaves a file behind when it is imported: (its name, that file)."""
    trace = tmp_path / "imported"
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "hostile_module.py").write_text(
        f"import pathlib, torch\npathlib.Path({str(trace)!r}).touch()\nclass "
        "Net(torch.nn.Linear):\n    def __init__(self, **kwargs):\n        super().__init__(2, "
        "2)\ndef net(**kwargs):\n    return Net()\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.chdir(tmp_path / "path")
    yield "hostile_module", trace
    sys.modules.pop("hostile_module", None)


def network() -> CondTransformerRegressor:
    return build_model(
        {"class": "CondTransformerRegressor", "in_dim": 2, "out_dim": 2, "cond_dim": 2, **_SMALL}
    )


_SMALL = {
    "in_horizon": 4,
    "cond_horizon": 1,
    "num_layers": 1,
    "num_attention_heads": 2,
    "embedding_dim": 8,
}


def forge(folder: Path, change) -> None:
    """Change config.json and make its checksum agree."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    schema.write_config(folder, config)


FORGERIES = {
    "a class of a module": lambda c: c["network"].update({"class": "hostile_module.Net"}),
    "a class by a colon": lambda c: c["network"].update({"class": "hostile_module:net"}),
    "a factory beside the network": lambda c: c.update(factory="hostile_module:net"),
    "a factory in the network": lambda c: c["network"].update(factory="hostile_module:net"),
    "a factory alone": lambda c: c.update(
        network={"factory": "hostile_module:net", "arguments": {}}
    ),
    "a custom class": lambda c: c.update(network={"class": "custom", "name": "hostile_module.Net"}),
    "a module key": lambda c: c["network"].update(
        {"__module__": "hostile_module", "_target_": "hostile_module.net"}
    ),
    "the target of another library": lambda c: c.update({"_target_": "hostile_module.net"}),
    "auto_map": lambda c: c.update(auto_map={"AutoModel": "hostile_module.Net"}),
    "a norm module": lambda c: c["network"].update(norm_module="hostile_module.Net"),
}
STUDENT_FORGERIES = {
    **FORGERIES,
    "a path class": lambda c: c.update(
        parameterization={
            "rectified_flow": {"path": {"name": "custom", "class": "hostile_module.Net"}},
            "keywords": None,
        }
    ),
    "a path name": lambda c: c.update(
        parameterization={
            "rectified_flow": {
                "path": "hostile_module:net",
                "prediction": "flow",
                "data_at": 0,
                "time_scale": 1.0,
            },
            "keywords": None,
        }
    ),
    "a parameterization factory": lambda c: c.update(
        parameterization={"factory": "hostile_module:net"}
    ),
    "a normalizer": lambda c: c.update(x_normalizer={"factory": "hostile_module:net"}),
    "another format": lambda c: c.update(format="hostile_module"),
}


@pytest.mark.parametrize("name", STUDENT_FORGERIES)
def test_a_student_folder_imports_nothing(tmp_path, trap, name):
    folder = tmp_path / "student"
    export_student(folder, network(), t_list=[1.0, 0.0])
    forge(folder, STUDENT_FORGERIES[name])
    for load in (load_student, load_run_student):
        with pytest.raises(ValueError) as caught:
            load(folder)
        assert "\n" not in str(caught.value) and not trap[1].exists() and trap[0] not in sys.modules


@pytest.mark.parametrize("name", [name for name in FORGERIES if name != "a norm module"])
def test_a_teacher_folder_imports_nothing(tmp_path, trap, name):
    folder = tmp_path / "teacher"
    save_network(folder, network())
    forge(folder, FORGERIES[name])
    cfg = DistillConfig.model_validate({"teacher": {"folder": str(folder)}})
    for load in (lambda: load_network(folder), lambda: load_teacher(cfg)):
        with pytest.raises(ValueError) as caught:
            load()
        assert "\n" not in str(caught.value) and not trap[1].exists() and trap[0] not in sys.modules


def test_a_description_is_only_read(tmp_path, trap):
    """Words about a network may name a factory; nobody acts on them."""
    folder = tmp_path / "teacher"
    said = {"factory": "hostile_module:net", "teacher": {"factory": "hostile_module:net"}}
    save_network(folder, network(), description=said)
    cfg = DistillConfig.model_validate({"teacher": {"folder": str(folder)}})
    load_teacher(cfg)
    assert not trap[1].exists()


def test_a_run_folder_that_came_with_a_student_imports_nothing(tmp_path, trap):
    """config.yaml beside a student names a factory, as a user's own does: it is said, never
    followed."""
    folder = tmp_path / "run" / "student"
    torch.manual_seed(0)
    export_student(folder, torch.nn.Linear(2, 2), t_list=[1.0, 0.0], horizon=(1, 2))
    (tmp_path / "run" / "config.yaml").write_text(
        "teacher: {factory: 'hostile_module:net', arguments: {a: 1}}\n"
    )
    with pytest.raises(
        ValueError, match="expected factory=.*its run was made with hostile_module:net"
    ):
        load_run_student(folder)
    assert not trap[1].exists()
    load_run_student(folder, "hostile_module:net")  # what the user names is what is imported
    assert trap[1].exists()


def test_the_module_that_a_users_config_names_is_imported(trap):
    cfg = DistillConfig.model_validate(
        {"teacher": {"factory": "hostile_module:net", "prediction": "flow"}}
    )
    load_teacher(cfg)
    assert trap[1].exists()


def test_a_folder_names_no_other_file(tmp_path):
    """A representation from a file is for a user's own config: in a folder it would be any file of
    the machine."""
    symmetry = {
        "group": "C2",
        "in_rep": ["sign"] * 2,
        "cond_rep": ["sign"] * 2,
        "out_rep": ["sign"] * 2,
    }
    save_network(
        tmp_path / "t", build_model({"class": "eCondTransformerRegressor", **symmetry, **_SMALL})
    )

    np.savez(tmp_path / "g.npz", matrices=-np.eye(2)[None])
    good = tmp_path / "good"
    shutil.copytree(tmp_path / "t", good)
    load_network(good)
    forge(
        tmp_path / "t", lambda c: c["network"].update(in_rep={"matrices": str(tmp_path / "g.npz")})
    )
    with pytest.raises(ValueError, match="network.in_rep"):
        load_network(tmp_path / "t")
    forge(
        tmp_path / "t",
        lambda c: c["network"].update(in_rep=[{"matrices": str(tmp_path / "g.npz")}]),
    )
    with pytest.raises(ValueError, match="network.in_rep .*none of them from a file"):
        load_network(tmp_path / "t")


@pytest.mark.parametrize(
    "group", ["IcosahedralxIcosahedralxIcosahedral", "OctahedralxOctahedral", "D8xD8", "C8xC8xC8"]
)
def test_a_group_that_the_tensors_do_not_allow_is_not_built(tmp_path, group):
    symmetry = {
        "group": "C2",
        "in_rep": ["sign"] * 2,
        "cond_rep": ["sign"] * 2,
        "out_rep": ["sign"] * 2,
    }
    save_network(
        tmp_path / "t", build_model({"class": "eCondTransformerRegressor", **symmetry, **_SMALL})
    )
    forge(tmp_path / "t", lambda c: c["network"].update(group=group))
    with pytest.raises(ValueError, match="network.group as a group of an order within"):
        load_network(tmp_path / "t")
