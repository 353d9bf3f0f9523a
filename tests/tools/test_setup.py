"""The set-up: what it reads, what it would install where, and that README, CI and scripts say the
same."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

import setup_env
import setup_requirements
import setup_target
from support.packages import installed

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# What a user's own environment may hold: torch and numpy as old or new as they like, and things of
# no concern.
THEIRS = {"torch": "2.6.0+cu118", "numpy": "2.3.1", "pydantic": "2.8.0", "some-project": "1"}
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARRAYS = setup_requirements.read_requirements(PYPROJECT)
PIN_LINES = setup_requirements.read_pins(setup_requirements.CONSTRAINTS.read_text(encoding="utf-8"))
PINS = [Requirement(line) for line in PIN_LINES]


def names(requirements: list[str]) -> set[str]:
    return {setup_requirements.requirement_name(requirement) for requirement in requirements}


def applies(requirement: Requirement, python: str) -> bool:
    environment = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.0",
    }
    return requirement.marker is None or requirement.marker.evaluate(environment)


# ---- Reading pyproject.toml and the constraints --------------------------------------------------


def test_requirements_are_read_as_a_toml_parser_reads_them():
    tomllib = installed("tomllib", since=(3, 11))
    project = tomllib.loads(PYPROJECT)["project"]
    groups = {"dependencies": project["dependencies"], **project["optional-dependencies"]}
    assert {name: ARRAYS[name] for name in groups} == groups


def test_the_reader_takes_arrays_of_one_requirement_a_line():
    text = (
        """build = ["a"]\nx = [\n    "b>=1; python_version < '3.13'",\n    "c[d]",\n]\n"""
        """hdf5 = [\n]\n"""
    )
    assert setup_requirements.read_requirements(text) == {
        "x": ["b>=1; python_version < '3.13'", "c[d]"],
        "hdf5": [],
    }


@pytest.mark.parametrize(
    ("requirement", "name"),
    [
        ("numpy>=1.24,<2; python_version < '3.13'", "numpy"),
        ("pyright[nodejs]>=1.1.400", "pyright"),
        ("PyYAML", "pyyaml"),
        ("  typing_extensions==4.16.0", "typing-extensions"),
        ("ruamel.yaml.clib ~= 0.2", "ruamel-yaml-clib"),
        ("a--b__c.d==1", "a-b-c-d"),
    ],
)
def test_a_requirement_is_known_by_its_canonical_name(requirement, name):
    assert setup_requirements.requirement_name(requirement) == name
    assert setup_requirements.canonical(name) == name


@pytest.mark.parametrize("requirement", ["", ">=1", "; python_version < '3'", "-e ."])
def test_what_names_nothing_is_refused(requirement):
    with pytest.raises(setup_requirements.SetupError, match="expected a requirement"):
        setup_requirements.requirement_name(requirement)


def test_pins_are_the_lines_that_are_no_comments():
    assert setup_requirements.read_pins("# a\n\nb==1\n  c==2; x  \n#d==3\n") == ["b==1", "c==2; x"]


def test_every_pin_is_one_version_of_one_package_for_each_python():
    for python in PYTHONS:
        valid = [pin for pin in PINS if applies(pin, python)]
        assert len({pin.name.lower() for pin in valid}) == len(valid)
        assert all([clause.operator for clause in pin.specifier] == ["=="] for pin in valid)


@pytest.mark.parametrize("python", PYTHONS)
def test_what_the_set_up_installs_is_pinned_within_its_range(python):
    asked = [line for group in ("dependencies", "viz", "dev") for line in ARRAYS[group]]
    asked += [*setup_requirements.ESCNN_NEEDS, setup_requirements.FLIGHTS]
    for requirement in filter(lambda r: applies(r, python), map(Requirement, asked)):
        name = setup_requirements.canonical(requirement.name)
        pins = [
            pin
            for pin in PINS
            if setup_requirements.canonical(pin.name) == name and applies(pin, python)
        ]
        assert len(pins) == 1, name
        version = next(iter(pins[0].specifier)).version
        assert requirement.specifier.contains(version), (
            f"{name} {version} is not within {requirement.specifier}"
        )


@pytest.mark.parametrize(("group", "name"), [("dependencies", "escnn"), ("dev", "symm-learning")])
def test_what_comes_bare_is_pinned_where_pip_alone_would_leave_it_out(group, name):
    asked = next(Requirement(line) for line in ARRAYS[group] if line.startswith(name))
    pin = next(pin for pin in PINS if pin.name == name)
    assert not applies(asked, "3.13") and applies(pin, "3.13")
    assert asked.specifier.contains(next(iter(pin.specifier)).version)


# ---- What would be installed ---------------------------------------------------------------------


def test_our_own_environment_gets_every_dependency_but_those_that_come_bare():
    lines = setup_requirements.wanted(["dependencies", "viz", "dev"], {}, ours=True)
    asked = names([line for group in ("dependencies", "viz", "dev") for line in ARRAYS[group]])
    bare = set(setup_requirements.BARE)
    assert names(lines) == (asked - bare) | set(setup_requirements.ESCNN_NEEDS)
    assert setup_requirements.wanted_bare(["dependencies", "viz"]) == ["escnn"]
    assert set(setup_requirements.wanted_bare(["dependencies", "viz", "dev"])) == bare
    # Whatever is there already, in .venv the pins decide.
    assert setup_requirements.wanted(
        ["dependencies"], THEIRS, ours=True
    ) == setup_requirements.wanted(["dependencies"], {}, ours=True)
    assert setup_requirements.effective_pins(THEIRS, ours=True) == PIN_LINES


@pytest.mark.parametrize("mine", [("torch", "numpy"), ("torch",), ("numpy",), ()])
def test_a_users_own_torch_and_numpy_are_neither_asked_for_nor_moved(mine):
    found = {
        name: version
        for name, version in THEIRS.items()
        if name not in ("torch", "numpy") or name in mine
    }
    lines = setup_requirements.wanted(["dependencies", "viz"], found, ours=False)
    pins = setup_requirements.effective_pins(found, ours=False)
    for name in ("torch", "numpy"):
        of_it = [pin for pin in pins if setup_requirements.requirement_name(pin) == name]
        if name in mine:
            # Frozen at the very version that is there, so that no dependency of another package can
            # move it.
            assert name not in names(lines) and of_it == [f"{name}=={THEIRS[name]}"]
        else:
            assert name in names(lines) and of_it == [
                pin for pin in PIN_LINES if pin.startswith(f"{name}==")
            ]


def test_in_a_users_environment_only_what_is_missing_is_pinned():
    pins = setup_requirements.effective_pins(THEIRS, ours=False)
    assert names(pins) == (names(PIN_LINES) - set(THEIRS)) | {"torch", "numpy"}
    # pydantic is there but must be within our range: pip is asked for the range, not for the pin.
    assert "pydantic" in names(setup_requirements.wanted(["dependencies"], THEIRS, ours=False))


# ---- Where ---------------------------------------------------------------------------------------


@pytest.fixture
def nowhere(monkeypatch, tmp_path) -> Path:
    """No active environment, and a checkout that isn't this one."""
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(setup_target, "ROOT", tmp_path / "checkout")
    return tmp_path


def environment(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    return folder


def test_without_an_active_environment_it_is_dot_venv(nowhere):
    chosen = setup_target.choose_environment()
    assert chosen.ours and chosen.python == nowhere / "checkout" / ".venv" / "bin" / "python"


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_active_environment_is_used(nowhere, monkeypatch, variable):
    monkeypatch.setenv(variable, str(environment(nowhere / "mine")))
    chosen = setup_target.choose_environment()
    assert not chosen.ours and chosen.prefix == nowhere / "mine"


def test_condas_base_and_an_environment_that_is_gone_do_not_count(nowhere, monkeypatch, capsys):
    monkeypatch.setenv("CONDA_PREFIX", str(environment(nowhere / "conda")))
    monkeypatch.setenv("CONDA_DEFAULT_ENV", "base")
    monkeypatch.setenv("VIRTUAL_ENV", str(nowhere / "deleted"))
    assert setup_target.choose_environment().ours
    assert "deleted is said to be active" in capsys.readouterr().out


def test_dot_venv_stays_ours_when_it_is_the_active_one(nowhere, monkeypatch):
    monkeypatch.setenv("VIRTUAL_ENV", str(environment(nowhere / "checkout" / ".venv")))
    monkeypatch.setenv("CONDA_PREFIX", str(environment(nowhere / "conda")))
    assert setup_target.choose_environment().ours


def test_variables_that_would_lead_pip_elsewhere_are_not_passed_on(monkeypatch):
    for name in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_USER"):
        monkeypatch.setenv(name, "/elsewhere")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://example.org")  # the user's own settings are
    passed = setup_target.child_environment()
    assert not {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_USER"} & passed.keys()
    assert passed["PIP_EXTRA_INDEX_URL"] == "https://example.org"


# ---- When ----------------------------------------------------------------------------------------


def test_every_part_of_the_set_up_counts_when_an_environment_is_looked_at_again():
    assert sorted(setup_env.SCRIPTS) == sorted((ROOT / "tools").glob("setup_*.py"))


# ---- The commands --------------------------------------------------------------------------------


def commands(text: str) -> list[str]:
    """Lines of the shell blocks of a Markdown text."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        line.partition("  #")[0].strip()
        for block in blocks
        for line in block.splitlines()
        if line.strip()
    ]


def script(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_readme_names_one_command_for_the_job_and_one_for_the_tests():
    first, second = commands(README)[:2]
    assert first == "tools/setup.sh && . .venv/bin/activate && accelerate launch recipes/distill.py"
    assert second == "tools/check.sh"


def test_every_script_that_the_readme_calls_exists_and_those_called_by_name_can_be_executed():
    called = {
        word
        for line in commands(README)
        for word in re.findall(r"(?:tools|recipes|\.ci)/[\w./-]+", line)
    }
    assert {"tools/setup.sh", "tools/check.sh", "recipes/distill.py"} <= called
    assert all((ROOT / path).exists() for path in called)
    assert all(
        os.access(ROOT / path, os.X_OK)
        for path in [*(p for p in called if p.endswith(".sh")), ".ci/run"]
    )


def test_ci_runs_the_readmes_test_command_to_the_letter():
    command = re.findall(r'^test_command="(.*)"$', script(".ci/run"), re.MULTILINE)
    assert command == [commands(README)[1]]
    assert re.search(r"^exec \$test_command$", script(".ci/run"), re.MULTILINE)


def test_what_the_checks_run_is_installed_for_developers():
    modules = set(re.findall(r'"\$python" -m (\w+)', script("tools/check.sh")))
    assert modules == {"ruff", "pyright", "pytest"} and modules <= names(ARRAYS["dev"])
    assert ("--numprocesses" in script("tools/check.sh")) <= (
        "pytest-xdist" in names(ARRAYS["dev"])
    )


@pytest.mark.parametrize("extra", ["parquet", "hdf5", "zarr", "interop"])
def test_what_tests_need_is_installed_for_developers(extra):
    assert names(ARRAYS[extra]) <= names(ARRAYS["dev"])


def test_no_test_is_skipped_for_a_package_that_is_missing():
    """It would say nothing where the set-up forgot one; `support.packages` fails."""
    tests = (ROOT / "tests").rglob("*.py")
    files = [path for path in tests if re.search("importor[s]kip", path.read_text("utf-8"))]
    assert not files


def test_what_the_checks_ask_of_the_set_up_is_among_its_options():
    asked = set(re.findall(r"tools/setup\.sh (--[\w-]+)", script("tools/check.sh")))
    assert asked == {"--dev", "--which"}
    text = set_up("--help").stdout
    assert all(option in text for option in asked)


def set_up(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """tools/setup.sh in no environment but what `variables` say, from a folder that isn't the
    checkout."""
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHON")
    }
    return subprocess.run(
        [str(ROOT / "tools" / "setup.sh"), *arguments],
        env={**inherited, **variables},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def test_which_prints_the_environments_python_and_installs_nothing(tmp_path):
    before = sorted(os.listdir(ROOT))
    done = set_up("--which")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{ROOT}/.venv/bin/python\n", "")
    mine = environment(tmp_path / "mine")
    assert set_up("--which", VIRTUAL_ENV=str(mine)).stdout == f"{mine}/bin/python\n"
    assert sorted(os.listdir(ROOT)) == before


def test_help_explains_and_an_unknown_option_is_refused():
    done = set_up("--help")
    assert done.returncode == 0 and "tools/setup.sh --dev" in done.stdout and ".venv" in done.stdout
    done = set_up("--devel")
    assert done.returncode == 2 and "--devel" in done.stderr


def test_a_python_that_is_missing_or_too_old_is_one_line(tmp_path):
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    for python, said in ((str(old), "Python 3.8.1"), (str(tmp_path / "none"), "none that runs")):
        done = set_up("--which", PYTHON=python)
        assert done.returncode == 1 and done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert "needs Python 3.10 or newer" in done.stderr and said in done.stderr


def test_numpy_2_is_taken_on_every_python():
    for python in PYTHONS:
        pin = next(pin for pin in PINS if pin.name == "numpy" and applies(pin, python))
        assert next(iter(pin.specifier)).version.startswith("2.")


@pytest.mark.parametrize(
    ("numpy", "there", "installed_anew"),
    [
        ("1.26.4", "0.0.2", False),
        ("2.4.6", "0.0.2", True),
        ("2.4.6", "0.0.2+standin", True),
        ("2.4.6", setup_env.stand_in_version(), False),
    ],
)
def test_a_lie_learn_that_numpy_does_not_take_is_replaced(
    monkeypatch, tmp_path, numpy, there, installed_anew
):
    called = []
    monkeypatch.setattr(setup_env, "pip", lambda env, *arguments: called.append(arguments) or True)
    env = setup_target.Environment(tmp_path, tmp_path / "bin" / "python", ours=True)
    said = setup_env.install_lie_learn(env, {"numpy": numpy, "lie-learn": there}, "none")
    assert bool(called) == installed_anew and ("stand-in" in said) == installed_anew
