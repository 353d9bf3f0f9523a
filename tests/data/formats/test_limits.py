"""Limits of LeRobot: rows come out as LeRobot's own preprocessor made them, and nothing that is
missing is passed over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastgen.data.formats.limits import read_limits

SETS = Path(__file__).parents[1] / "sets"
CONFIG = "policy_preprocessor.json"
STATE = "policy_preprocessor_step_3_normalizer_processor.safetensors"
COLUMNS = ("observation.state", "observation.environment_state", "action")


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(SETS / "policy", tmp_path / "policy"))


def rows() -> dict[str, torch.Tensor]:
    arrays = np.load(SETS / "episodes.npz")
    return {
        "observation.state": torch.from_numpy(arrays["observations"][:, :3]).double(),
        "observation.environment_state": torch.from_numpy(arrays["observations"][:, 3:]).double(),
        "action": torch.from_numpy(arrays["actions"]).double(),
    }


@pytest.mark.parametrize("name", ["policy", "policy_moments"])
@pytest.mark.parametrize("column", COLUMNS)
def test_rows_are_seen_as_the_policy_saw_them(name, column):
    seen = torch.from_numpy(np.load(SETS / name / "seen.npz")[column]).double()
    mean, scale = read_limits(SETS / name).affine([column], None)
    assert ((rows()[column] - mean) / scale - seen).abs().max() < 1e-5


def test_limits_of_a_data_set_are_those_of_the_policy_that_was_given_them():
    of_data = read_limits(SETS / "lerobot3")
    for name, kind in zip(COLUMNS, ("min_max", "mean_std", "min_max"), strict=True):
        expected = read_limits(SETS / "policy").affine([name], None)
        for a, b in zip(of_data.affine([name], kind), expected, strict=True):
            assert (a - b).abs().max() < 1e-6
    again = read_limits(SETS / "lerobot3" / "meta" / "stats.json")
    assert torch.equal(
        again.affine(["action"], "min_max")[0], of_data.affine(["action"], "min_max")[0]
    )


def test_columns_stand_side_by_side_and_a_rename_is_honoured(folder):
    config = json.loads((folder / CONFIG).read_text())
    config["steps"][0]["config"]["rename_map"] = {"pose": "observation.state"}
    (folder / CONFIG).write_text(json.dumps(config))
    limits = read_limits(folder)
    mean, _ = limits.affine(["action", "pose"], None)
    parts = [limits.affine([name], None)[0] for name in ("action", "observation.state")]
    assert torch.equal(mean, torch.cat(parts)) and len(mean) == 5


def test_a_limit_without_width_is_treated_as_lerobot_does(tmp_path):
    (tmp_path / "stats.json").write_text(json.dumps({"a": {"min": [2.0], "max": [2.0]}}))
    mean, scale = read_limits(tmp_path).affine(["a"], "min_max")
    assert float((2.0 - mean) / scale) == pytest.approx(-1, abs=1e-6)


def changed(folder: Path, **config) -> None:
    value = json.loads((folder / CONFIG).read_text())
    value["steps"][3]["config"] |= config
    (folder / CONFIG).write_text(json.dumps(value))


def without(folder: Path, *keys: str) -> None:
    state = load_file(folder / STATE)
    save_file({k: v for k, v in state.items() if k not in keys}, folder / STATE)


def of_a_type_that_is_not_named(folder: Path) -> None:
    changed(folder, norm_map={"STATE": "MIN_MAX", "ACTION": "MIN_MAX"})


def test_what_a_policy_leaves_as_it_is_stays_so(folder):
    of_a_type_that_is_not_named(folder)
    mean, scale = read_limits(folder).affine(["observation.environment_state"], None)
    assert mean.tolist() == [0, 0] and scale.tolist() == [1, 1]
    changed(folder, normalize_observation_keys=[])
    assert read_limits(folder).affine(["observation.state"], None)[1].tolist() == [1, 1, 1]
    assert read_limits(folder).affine(["action"], None)[1].tolist() != [1, 1]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: without(f, "action.min"), "expected min of action for min_max, got"),
        (
            lambda f: without(f, *(f"action.{k}" for k in ("min", "max", "mean", "std", "count")),
                              "action.q01", "action.q10", "action.q50", "action.q90", "action.q99"),
            "expected statistics of action, got those of observation",
        ),
        (lambda f: changed(f, features={}), "expected action among the features"),
        (lambda f: changed(f, norm_map={"ACTION": "QUANTILE10"}), "norm_map to say MEAN_STD"),
        (lambda f: changed(f, eps=0), "expected eps between 0 and 1"),
        (lambda f: changed(f, features={"action": {"type": "ACTON"}}), "one of STATE.*ACTON"),
        (lambda f: (f / STATE).unlink(), STATE),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(folder, spoil, words):
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        read_limits(folder).affine(["action"], None)


def test_a_step_that_may_change_numbers_is_refused_by_its_name(folder):
    value = json.loads((folder / CONFIG).read_text())
    value["steps"].insert(0, {"registry_name": "delta_actions_processor", "config": {}})
    (folder / CONFIG).write_text(json.dumps(value))
    with pytest.raises(ValueError, match="got 'delta_actions_processor', which may change"):
        read_limits(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"action": [1.0]}, "expected statistics of 'action'"),
        ({"action": {"min": [0.0, [True]]}}, "expected numbers as action.min"),
        ({"action": {"min": ["a"], "max": [1.0]}}, "expected numbers as action.min"),
        ({"action": {"min": [0.0, 1.0], "max": [1.0]}}, "as many numbers in min and max"),
        ({"action": {"min": [2.0], "max": [1.0]}}, "expected min <= max of action"),
        ({"action": {"min": [0.0], "max": [float("nan")]}}, "finite numbers in max of action"),
    ],
)
def test_statistics_that_are_none_are_refused(tmp_path, content, words):
    (tmp_path / "stats.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        read_limits(tmp_path).affine(["action"], "min_max")


def test_limits_of_data_need_a_kind_and_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected data.normalize.kind .*stats.json doesn't say"):
        read_limits(SETS / "lerobot3").affine(["action"], None)
    with pytest.raises(ValueError, match="got a data set of version 2.1"):
        read_limits(SETS / "lerobot21")
    with pytest.raises(ValueError, match="got neither; a policy that was saved before"):
        read_limits(tmp_path)
    with pytest.raises(FileNotFoundError, match="got nothing there"):
        read_limits(tmp_path / "none")
