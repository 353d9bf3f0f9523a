"""The recipes refuse in one line what they cannot use, and are looked at before they run."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from fastgen.config import DistillConfig, TrainTeacherConfig
from fastgen.config.files import load_config
from fastgen.export import load_network
from support.recipes import RECIPES, content, the_error, walks

# ---- Refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["distill.py", "train_teacher.py"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train.step=3"], "unknown key 'train.step', did you mean 'train.steps'"),
        (["dat.path=x"], "unknown key 'dat', did you mean 'data'"),
        (["train.steps=many"], "train.steps: .*got 'many'"),
        (["train.batch_size=0"], "train.batch_size: .*got 0"),
        (["train.batch_size=[16]"], "train.batch_size: "),
        (["broken.yaml"], "config broken.yaml is not valid YAML"),
        (["list.yaml"], "expected config list.yaml to be a mapping"),
        (["none.yaml"], "cannot read config none.yaml"),
        (["--resum"], "unknown option --resum, expected --resume"),
    ],
)
def test_a_wrong_config_is_one_line_and_leaves_nothing(call, tmp_path, recipe, arguments, said):
    (tmp_path / "broken.yaml").write_text("train: {steps: 3\n")
    (tmp_path / "list.yaml").write_text("- train\n")
    before = content(tmp_path)
    code, out, err = call(recipe, *arguments, "run_dir=run")
    assert (code, out) == (2, "") and re.search(said, the_error(err))
    assert content(tmp_path) == before and not (tmp_path / "run").exists()


def damaged_data(name: str) -> dict[str, np.ndarray]:
    x, z = walks().values()
    holed = x.copy()
    holed[7, 1, 0] = np.nan
    return {
        "nan": {"X": holed, "Z": z},
        "empty": {"X": x[:0], "Z": z[:0]},
        "rows": {"X": x, "Z": z[:5]},
        "axes": {"X": x[:, 0], "Z": z},
        "channels": {"X": np.concatenate([x, x], -1), "Z": z},
        "few": {"X": x[:2], "Z": z[:2]},
    }[name]


DAMAGED = [
    ("nan", "NaN or infinity in 1 rows: 7"),
    ("empty", r"at least one number, got an empty \(0, 4, 2\)"),
    ("rows", "as many rows in Z as in X, got 5 and 120"),
    (
        "axes",
        r"no data.pack but for trajectories, X \(N, T_x, d_x\) .* got 2 for X \(120, 2\) and "
        r"Z \(120, 2, 2\)",
    ),
    ("channels", "out_rep of dimension 4, the channels of X, got 2"),
    ("few", "at least 3 episodes"),
    ("none", "expected a data file at .*none.npz"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "config"), [("distill.py", "student.yaml"), ("train_teacher.py", "teacher.yaml")]
)
@pytest.mark.parametrize(("name", "said"), DAMAGED)
def test_data_that_cannot_be_used_is_one_line_and_leaves_nothing(
    home, call, tmp_path, recipe, config, name, said
):
    if name != "none":
        np.savez(tmp_path / f"{name}.npz", **damaged_data(name))
    code, out, err = call(recipe, home / config, f"data.path={name}.npz", "run_dir=run")
    assert (code, out) == (2, "") and re.search(said, the_error(err))
    assert not (tmp_path / "run").exists()


def broken_teacher(home: Path, tmp_path: Path, how: str) -> Path:
    folder = shutil.copytree(home / "runs" / "walks-teacher" / "teacher", tmp_path / "teacher")
    if how == "truncated":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "edited":
        config = folder / "config.json"
        config.write_text(config.read_text().replace('"num_layers": 1', '"num_layers": 2'))
    elif how == "gone":
        shutil.rmtree(folder)
    elif how == "no weights":
        (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", "model.safetensors: expected .* bytes, got .*truncated"),
        ("edited", "config.json"),
        ("gone", "teacher.*: expected a file, found none"),
        ("no weights", "model.safetensors: expected a file, found none"),
    ],
)
def test_a_teacher_that_cannot_be_loaded_is_one_line_and_leaves_nothing(
    home, call, tmp_path, how, said
):
    folder = broken_teacher(home, tmp_path, how)
    code, out, err = call(
        "distill.py", home / "student.yaml", f"teacher.folder={folder}", "run_dir=run"
    )
    assert (code, out) == (2, "") and re.search(said, the_error(err))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.pack=4", r"expected X of shape \(B, 2, 4\), .* got \(84, 1, 8\)"),
        ("data.path=long.npz", r"expected X of shape \(B, 2, 4\), .* got \(84, 4, 4\)"),
        ("data.pack=3", "divides the 4 waypoints, got 3"),
        ("teacher.folder=null", "expected teacher.folder"),
    ],
)
def test_a_teacher_that_does_not_fit_the_data_is_one_line_and_leaves_nothing(
    home, call, tmp_path, override, said
):
    np.savez(tmp_path / "long.npz", X=walks()["X"].repeat(2, axis=1), Z=walks()["Z"])
    code, out, err = call("distill.py", home / "student.yaml", override, "run_dir=run")
    assert (code, out) == (2, "") and re.search(said, the_error(err))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "config", "run"),
    [
        ("distill.py", "student.yaml", "walks"),
        ("train_teacher.py", "teacher.yaml", "walks-teacher"),
    ],
)
def test_an_existing_run_is_neither_overwritten_nor_resumed_as_another(
    home, call, recipe, config, run
):
    folder = home / "runs" / run
    before = content(folder)
    code, out, err = call(recipe, home / config, f"run_dir={folder}")
    assert (code, out) == (2, "") and "holds a run already: add --resume" in the_error(err)
    code, out, err = call(recipe, home / config, f"run_dir={folder}", "seed=1", "--resume")
    assert (code, out) == (2, "") and "seed: 0 then, 1 now" in the_error(err)
    assert content(folder) == before


@pytest.mark.slow
def test_a_place_that_cannot_be_written_is_one_line(home, call, tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/run"):
        code, out, err = call("distill.py", home / "student.yaml", f"run_dir={place}")
        assert (code, out) == (2, "") and f"cannot write in {place}: " in the_error(err)
    assert content(tmp_path) == {"file": b"mine"}


# ---- Looked at before ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "config", "schema", "network"),
    [
        ("distill.py", "student.yaml", DistillConfig, "teacher"),
        ("train_teacher.py", "teacher.yaml", TrainTeacherConfig, "network"),
    ],
)
def test_a_dry_run_prints_config_and_sizes_and_writes_nothing(
    home, call, tmp_path, recipe, config, schema, network
):
    before = content(home)
    code, out, err = call(recipe, home / config, "seed=3", "run_dir=run", "--dry-run")
    assert (code, err) == (0, "")
    resolved, _, plan = out.partition("\n\n")
    (tmp_path / "resolved.yaml").write_text(resolved)
    assert load_config(schema, tmp_path / "resolved.yaml") == load_config(
        schema, home / config, ["seed=3", "run_dir=run"]
    )
    teacher, _ = load_network(home / "runs" / "walks-teacher" / "teacher")
    row = next(line.split() for line in plan.splitlines() if line.startswith(network))
    assert int(row[1].replace(",", "")) == sum(p.numel() for p in teacher.parameters())
    assert "memory, MB" in plan and any(line.startswith("total") for line in plan.splitlines())
    assert ("denoising error of the teacher" in plan) == (network == "teacher")
    assert os.listdir(tmp_path) == ["resolved.yaml"] and content(home) == before


@pytest.mark.parametrize("name", ["distill", "train_teacher", "evaluate", "sample", "export"])
def test_help_says_how_to_call_it(call, tmp_path, name):
    code, out, err = call(f"{name}.py", "--help")
    assert (code, err) == (0, "") and f"recipes/{name}.py " in out
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_no_arguments_mean_the_weave_and_the_teacher_that_is_shipped(call, tmp_path):
    code, out, err = call(
        "distill.py", "--dry-run", "data.size=64"
    )  # fewer demonstrations: seconds less
    assert (code, err) == (0, "") and os.listdir(tmp_path) == []
    values = yaml.safe_load(out.partition("\n\n")[0])
    assert (values["name"], values["data"]["name"], values["student"]["steps"]) == (
        "weave",
        "weave",
        1,
    )
    assert values["method"] == "auto"
    assert Path(values["teacher"]["folder"]) == RECIPES / "teachers" / "weave"
    config = RECIPES / "configs" / "weave-teacher.yaml"
    code, out, err = call("train_teacher.py", config, "--dry-run", "data.size=64")
    assert (code, err) == (0, "")
    # The same data, so that the scores beside the shipped teacher hold for its student.
    assert yaml.safe_load(out.partition("\n\n")[0])["data"] == values["data"]


def test_training_a_teacher_without_a_config_is_that_of_the_ring(call):
    code, out, err = call("train_teacher.py", "--dry-run", "data.size=64")
    assert (code, err) == (0, "")
    values = yaml.safe_load(out.partition("\n\n")[0])
    assert (values["name"], values["data"]["name"]) == ("ring-teacher", "ring")


@pytest.mark.parametrize("name", ["weave", "ring", "two_rings", "modes", "fashion"])
def test_the_scores_beside_a_shipped_teacher_are_of_its_student_s_data(name):
    """Keys that a later version has added are none of theirs."""
    config = name.replace("_", "-")
    configs = RECIPES / "configs"
    of_student = load_config(DistillConfig, configs / f"{config}.yaml").data
    of_teacher = load_config(TrainTeacherConfig, configs / f"{config}-teacher.yaml").data
    student = of_student.model_dump(mode="json")
    scores = json.loads((RECIPES / "teachers" / name / "scores.json").read_text())["data"]
    assert of_student == of_teacher
    assert {key: student[key] for key in scores} == scores


@pytest.mark.slow
def test_updates_after_kd_on_the_shipped_config_are_dmd2_and_a_line_says_so(call):
    config = RECIPES / "configs" / "ring-kd.yaml"
    code, out, err = call("distill.py", config, "--dry-run", "data.size=64", "train.steps=300")
    assert code == 0
    assert err.splitlines() == [
        "note: method=dmd2, since train.steps=300 asks for updates after KD; say method=dmd2 "
        "beside it"
    ]
    values = yaml.safe_load(out.partition("\n\n")[0])
    assert (values["method"], values["train"]["steps"]) == ("dmd2", 300)
