"""A teacher in a folder of another library is distilled by its path alone, and its student is
loaded again by the run alone."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import fastgen
from fastgen.config import DistillConfig
from fastgen.config.files import validate
from fastgen.data import build_data
from fastgen.data.held_out import HeldOutTask
from fastgen.distillation import distill
from fastgen.jobs.sources import load_run_student
from fastgen.jobs.teacher_rows import MEASURED
from support.packages import installed
from support.saved import DIT, STABLE, UNET, network_of, save_pipeline
from support.toy import toy_config, without_pictures

pytestmark = pytest.mark.slow

X = torch.randn(60, 2, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 3
DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def diffusers() -> ModuleType:
    return installed("diffusers", since=(3, 11))


def config_of(folder: Any, data: dict[str, Any], run: Any) -> DistillConfig:
    base = toy_config(run, kd_steps=30, kd_pairs=16, batch_size=4).model_dump(exclude_unset=True)
    base["method"] = "kd"
    del base["train"]["steps"]
    base["data"] = {"name": "file", **data}
    base["teacher"] = {"folder": str(folder), "calls": [1], "ab2_calls": [2]}
    return validate(DistillConfig, base)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("name", "sizes", "scheduler", "said"),
    [
        ("UNet2DModel", UNET, "DDIMScheduler", STABLE),
        ("DiTTransformer2DModel", DIT, "FlowMatchEulerDiscreteScheduler", {}),
    ],
)
def test_a_network_of_diffusers_is_distilled_by_its_folder(
    diffusers, tmp_path, name, sizes, scheduler, said
):
    network = network_of(diffusers, name, **sizes)
    folder = save_pipeline(tmp_path / "p", network, getattr(diffusers, scheduler)(**said))
    np.savez(tmp_path / "data.npz", X=X.numpy(), Z=LABELS.numpy())
    with without_pictures():
        data = {"path": str(tmp_path / "data.npz")}
        run = distill(config_of(folder, data, tmp_path / "run"))
    report = json.loads((run / "report" / "report.json").read_text())
    assert all(math.isfinite(value) for value in report["student"]["1"].values())

    student = load_run_student(run / "student")
    generator = torch.Generator().manual_seed(0)
    x = student.sample(LABELS[:2], num_samples=2, generator=generator)
    assert x.shape == (2, 2, 2, 8, 8) and bool(torch.isfinite(x).all())
    (folder / "model_index.json").unlink()
    with pytest.raises(ValueError, match="expected factory=package.module:callable"):
        load_run_student(run / "student")


def distilled(policy: Path, actions: Tensor, seen: Tensor, folder: Path) -> Path:
    """The run that distils a policy on these windows, whose scores are finite."""
    np.savez(folder / "data.npz", X=actions.numpy(), Z=seen.numpy())
    data = {"path": str(folder / "data.npz"), "normalize": False}
    with without_pictures():
        run = distill(config_of(policy, data, folder / "run"))
    report = json.loads((run / "report" / "report.json").read_text())
    assert all(math.isfinite(value) for value in report["student"]["1"].values())
    return run


def test_a_policy_of_lerobot_is_distilled_by_its_folder(tmp_path):
    """Numbers as the policy's own normalisation makes them: what is tried here is the way there."""
    policy = shutil.copytree(DATA / "policies" / "drive", tmp_path / "policy")
    before = contents(policy)
    generator = torch.Generator().manual_seed(0)
    actions = 2 * torch.rand(60, 8, 2, generator=generator) - 1
    seen = 2 * torch.rand(60, 2, 5, generator=generator) - 1
    run = distilled(policy, actions, seen, tmp_path)
    # It needs neither a factory nor the folder.
    student = fastgen.load_student(run / "student")
    z = torch.zeros(3, 2, 5)
    x = student.sample(z, generator=torch.Generator().manual_seed(0))
    assert x.shape[-2:] == (8, 2) and float(x.abs().max()) <= 1.0
    # The folder is somebody's; what was measured stays in the run.
    assert contents(policy) == before and (run / MEASURED).exists()


def test_a_flow_policy_of_lerobot_is_distilled_by_its_folder(tmp_path):
    """Z is what the policy's own encoder made of states and instruction."""
    policy = shutil.copytree(DATA / "policies" / "flow", tmp_path / "policy")
    answers = load_file(policy / "answers.safetensors")
    actions = answers["train.action"]
    seen = answers["train.Z"]
    run = distilled(policy, actions, seen, tmp_path)
    student = fastgen.load_student(run / "student")
    x = student.sample(seen[:3], generator=torch.Generator().manual_seed(0))
    assert x.shape[-2:] == (8, 2) and bool(torch.isfinite(x).all())


def test_a_policy_is_distilled_on_the_data_set_that_it_was_trained_on(tmp_path):
    """In the units of the data: windows, statistics and post-processing are the policy's own."""
    drive = DATA / "policies" / "drive"
    data = {
        "path": str(DATA / "sets" / "lerobot3"),
        "obs_horizon": 2,
        "horizon": 8,
        "actions_from": "first_observation",
        "normalize": {"limits": str(drive / "pretrained_model")},
    }
    cfg = config_of(drive / "pretrained_model", data, tmp_path / "run")
    answers = load_file(drive / "answers.safetensors")
    raw = [answers[f"raw.observation.{name}"] for name in ("state", "environment_state")]
    seen = [answers[f"observation.{name}"] for name in ("state", "environment_state")]
    task = build_data(cfg.data)
    assert isinstance(task, HeldOutTask)
    parts = [torch.cat([x.flatten(1), z.flatten(1)], 1) for x, z in map(task.split, task.rows)]
    theirs = torch.cat([answers["raw.action"].flatten(1), torch.cat(raw, -1).flatten(1)], 1)
    assert all((torch.cat(parts) == window).all(1).any() for window in theirs)
    with without_pictures():
        run = distill(cfg)
    student = fastgen.load_student(run / "student")
    assert student.z_normalizer is not None and student.x_normalizer is not None
    normalised = student.z_normalizer.normalize(torch.cat(raw, -1))
    torch.testing.assert_close(normalised, torch.cat(seen, -1), rtol=1e-5, atol=1e-5)
    actions = student.x_normalizer.denormalize(answers["action"])
    torch.testing.assert_close(actions, answers["raw.action"], rtol=1e-5, atol=1e-5)
    x = student.sample(torch.cat(raw, -1), generator=torch.Generator().manual_seed(0))
    assert x.shape == answers["raw.action"].shape and bool(torch.isfinite(x).all())
