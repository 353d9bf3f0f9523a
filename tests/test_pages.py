"""The pages for readers: every link leads somewhere, every command is one that its tool takes,
every example runs.

A recipe is called as the page says it, in a folder that holds what the page speaks of: training
commands with `--dry-run`, which reads config, data and teacher and sees whether they fit together.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import parse_args as parse_torchrun

import bench
import kill
from fastgen.commands.main import main as fastgen_command
from fastgen.config import DistillConfig
from fastgen.config.files import validate
from fastgen.data.tasks.flights import read_tracks
from fastgen.distillation import distill
from support.maze_pages import run_maze, run_record
from support.packages import installed
from support.reader import bring, export_runs

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "recipes/README.md", "tools/BENCHMARKS.md", "fastgen/README.md")
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
TRAINING = ("distill.py", "train_teacher.py")
# Fewer demonstrations of an embedded task, smaller batches to measure memory with: seconds less.
FEW = "data.size=64"
SMALL = "train.batch_size=16"
# Configs of the pages that say what the data are.
OWN = ("my.yaml", "mine.yaml", "policy.yaml", "posterior.yaml")
# Tasks whose data are what they are.
RECORDED = ("flights", "fashion")
TINY = {
    "batch_size": 8,
    "kd_steps": 2,
    "kd_pairs": 16,
    "kd_teacher_calls": 4,
    "steps": 2,
    "evaluate_every": 2,
    "threads": 1,
}


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    fence = rf"^```{language}\n(.*?)^```$"
    return re.findall(fence, TEXTS[page], re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """The commands of a page, in shell blocks and within its text: continued lines joined, comments
    left out."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    text = "\n".join([text, *re.findall(r"`((?:python|accelerate|torchrun) [^`]+)`", TEXTS[page])])
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [shlex.join(words) for words in lines if words]


# ---- Links ---------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """Names that a link may use for the headings of a page: lower case, hyphens for spaces."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", TEXTS[page])
    relative = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert relative
    astray = []
    for target in relative:
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            astray.append(target)
    assert not astray


def test_the_readme_is_a_first_chapter():
    assert len(TEXTS["README.md"].splitlines()) <= 130


def test_the_map_has_the_floors_that_imports_are_held_to():
    floors = runpy.run_path(str(ROOT / "tests" / "test_imports.py"))["FLOORS"]
    assert [block.split() for block in blocks("fastgen/README.md", "text")] == [floors.split()]


def symbols_of_the_map() -> list[tuple[str, str]]:
    """(file, name) wherever the map says a name beside a file: "[file](file), `name`", "`name` in
    [file](file)" or "`name` ([file](file))"."""
    text = " ".join(TEXTS["fastgen/README.md"].split())
    found = []
    for file, names in re.findall(r"\]\(([\w/]+\.py)\),((?: `\w+`,?)+)", text):
        found += [(file, name) for name in re.findall(r"\w+", names)]
    for name, file in re.findall(r"`([\w.]+)` (?:in |of |\()\[[^\]]*\]\(([\w/]+\.py)\)", text):
        found += [(file, part) for part in name.split(".")]
    return found


def test_the_map_names_what_its_files_define():
    symbols = symbols_of_the_map()
    assert len(symbols) > 30
    absent = []
    for file, name in symbols:
        text = (ROOT / "fastgen" / file).read_text(encoding="utf-8")
        if not re.search(rf"^\s*(?:(?:def|class) {name}\b|{name}(?:: .*)? = )", text, re.MULTILINE):
            absent.append(f"{name} in {file}")
    assert not absent


# ---- The folder of a reader ----------------------------------------------------------------------


Call = Callable[..., tuple[object, str, str]]
read_once = functools.cache(read_tracks)  # 66 MB of JSON


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the pages speak of: data, configs, a network of one's own, and runs."""
    folder = tmp_path_factory.mktemp("reader")
    bring(folder)
    export_runs(folder / "runs")
    return folder


@pytest.fixture
def call(monkeypatch, capsys, folder) -> Call:
    """`call("recipes/distill.py", ...)` is `python recipes/distill.py ...` in the reader's folder,
    in this process; (exit code, stdout, stderr)."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("fastgen.data.tasks.flights.read_tracks", read_once)
    # Recipes take all cores; the tests beside this one want theirs.
    monkeypatch.setattr("fastgen.training.accelerator.use_all_cores", lambda *_, **__: None)

    def run(script: str, *arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        capsys.readouterr()
        code: object = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def runs(call: Call, folder) -> None:
    """The runs `mine-teacher` and `mine`, made once."""
    if (folder / "runs" / "mine").exists():
        return
    small = ["model.embedding_dim=16", "model.num_layers=1", "train.steps=2", "train.threads=1"]
    data = ["data.name=file", "data.path=trajectories.npz", "model.equivariant=false"]
    scores = ["calls=[1, 2]", "ab2_calls=[4]"]
    code, _, err = call("recipes/train_teacher.py", "name=mine-teacher", *data, *small, *scores)
    assert code == 0, err
    budget = [f"train.{key}={value}" for key, value in TINY.items()]
    budget += ["dmd.fake_score_warmup_steps=2", "teacher.calls=[1, 2]", "teacher.ab2_calls=[4]"]
    code, _, err = call("recipes/distill.py", "my.yaml", *budget)
    assert code == 0, err


# ---- Commands ------------------------------------------------------------------------------------


def without_launcher(words: list[str]) -> list[str]:
    """The script that a command starts, with its arguments; options of the launcher are read by the
    launcher's own parser."""
    if words[0] == "torchrun":
        args = parse_torchrun(words[1:])
    elif words[:2] == ["accelerate", "launch"]:
        args = launch_command_parser().parse_args(words[2:])
        assert args.config_file is None or (ROOT / args.config_file).is_file()
    elif words[0] == "fastgen":
        return words
    else:
        assert words[0] == "python", f"a command that no test knows: {shlex.join(words)}"
        return words[1:]
    return [args.training_script, *args.training_script_args]


def run_recipe(call: Call, folder: Path, script: str, arguments: list[str]) -> None:
    """Call a recipe as the page says it; what would train is looked at only."""
    name = Path(script).name
    config = next((word for word in arguments if word.endswith(".yaml")), "")
    arguments = [str(ROOT / word) if word.startswith("recipes/") else word for word in arguments]
    if "name=maze" in arguments or "runs/maze" in arguments:
        typed = [shlex.split(line) for line in commands("recipes/README.md") if "maze" in line]
        run_maze(call, folder, [without_launcher(words) for words in typed])
    if name in TRAINING and "--help" not in arguments:
        own = config in OWN or "data.name=file" in arguments
        if not own and not any(name in config for name in RECORDED):
            arguments = [*arguments, FEW]
        if "flights.yaml" in config:
            arguments = [*arguments, f"teacher.folder={flights_teacher(call, folder)}"]
        arguments = [*arguments, SMALL, "--dry-run"]
    if "onnx" in " ".join([name, *arguments]):
        installed("onnxruntime", since=(3, 11))
    if name == "sample_onnx.py" and not (folder / arguments[0]).exists():
        code, _, err = call("recipes/export.py", "runs/weave/student", "--to", "onnx")
        assert code == 0, err
    code, out, err = call(script, *arguments)
    assert code == 0, err
    assert out


def run_command(folder: Path, arguments: list[str]) -> None:
    """Run `fastgen` as the page says it; a run to compare with is the same one again."""
    if arguments[0] == "compare":
        shutil.copytree(folder / arguments[1], folder / arguments[2])
    fastgen_command(arguments)


def flights_teacher(call: Call, folder: Path) -> Path:
    """The teacher of the recorded flights, from one update of its training."""
    run = folder / "runs" / "flights-teacher"
    budget = ["train.steps=1", "train.threads=1", SMALL, "calls=[1]", "ab2_calls=[]"]
    config = ROOT / "recipes" / "configs" / "flights-teacher.yaml"
    code, _, err = call("recipes/train_teacher.py", str(config), *budget, f"run_dir={run}")
    assert code == 0, err
    return run / "teacher"


BENCHMARKS = {
    "backbone": "backbone",
    **{
        name: f"run_{name}" for name in ("loop", "policy", "quality", "step", "teachers", "threads")
    },
    "trainer": "run_trainer",
}


def run_bench(monkeypatch, arguments: list[str]) -> None:
    """Read the arguments of a benchmark as it does, and begin it with nothing to do."""
    begun = []
    for name, function in BENCHMARKS.items():
        stand_in = functools.partial(lambda name, *_: begun.append(name) or {}, name)
        monkeypatch.setattr(f"bench_{name}.{function}", stand_in)
    monkeypatch.setattr(sys, "argv", ["tools/bench.py", *arguments])
    bench.main()
    assert begun == arguments[:1]


def run_kill(monkeypatch, arguments: list[str]) -> None:
    """Read the arguments of tools/kill.py as it does, and kill nothing."""
    asked = []

    def nothing(out: Path, *, kills: int, seed: int) -> dict[str, Any]:
        asked.append(kills)
        return {"passed": True}

    monkeypatch.setattr(kill, "kill_and_compare", nothing)
    monkeypatch.setattr(kill, "table", str)
    monkeypatch.setattr(sys, "argv", ["tools/kill.py", *arguments])
    with pytest.raises(SystemExit, match="0"):
        kill.main()
    assert asked


DONE: set[tuple[str, ...]] = set()
CASES = [(page, command) for page in PAGES for command in commands(page)]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), CASES)
def test_every_command_is_one_that_its_tool_takes(
    call: Call, runs, folder, monkeypatch, page, command
):
    for written in blocks(page, "yaml"):
        for name in re.findall(r"^name: (\w+)", written):
            (folder / f"{name}.yaml").write_text(written)
    for part in command.split(" '&&' "):
        words = shlex.split(part)
        if words[0].startswith("tools/"):
            assert os.access(ROOT / words[0], os.X_OK)
            continue
        if words == [".", ".venv/bin/activate"]:
            continue
        script, *arguments = without_launcher(words)
        of_page = page if {"mine.yaml", "policy.yaml"} & {*arguments} else ""
        if (of_page, script, *arguments) in DONE:
            continue
        if script.startswith("recipes/"):
            run_recipe(call, folder, script, arguments)
        elif script == "fastgen":
            run_command(folder, arguments)
        elif script == "tools/bench.py":
            run_bench(monkeypatch, arguments)
        elif script == "tools/kill.py":
            run_kill(monkeypatch, arguments)
        elif script == "tools/record_maze.py":
            run_record(monkeypatch, arguments)
        else:
            raise AssertionError(f"a command that no test knows: {part}")
        DONE.add((of_page, script, *arguments))


# ---- Examples ------------------------------------------------------------------------------------

YAML = [(page, block) for page in PAGES for block in blocks(page, "yaml")]
PYTHON = [(page, block) for page in PAGES for block in blocks(page, "python")]


@pytest.mark.parametrize(("page", "block"), YAML)
def test_every_config_has_keys_that_are_known(page, block):
    assert validate(DistillConfig, yaml.safe_load(block))


@pytest.mark.slow
@pytest.mark.parametrize(("page", "block"), PYTHON)
def test_every_example_runs(call: Call, folder, monkeypatch, page, block):
    def few_updates(cfg: DistillConfig, **given: Any) -> Path:
        train = cfg.train.model_copy(update=TINY)
        dmd = cfg.dmd.model_copy(update={"fake_score_warmup_steps": 2})
        calls = cfg.teacher.model_copy(update={"calls": (1,), "ab2_calls": ()})
        changed = {"train": train, "dmd": dmd, "teacher": calls, "run_dir": "runs/example"}
        return distill(cfg.model_copy(update=changed), **given)

    monkeypatch.setattr("fastgen.distillation.distill", few_updates)
    build = importlib.import_module("my_package.my_module").build
    names: dict[str, Any] = {"net": build(), "build": build}
    exec(compile(block, page, "exec"), names)
    for shape in re.findall(r"^x = .*  # (\([\d, ]+\)):", block, re.MULTILINE):
        assert str(tuple(names["x"].shape)) == shape
