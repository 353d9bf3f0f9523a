"""Runs on headings: from a file to samples, and students that a group acts on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastgen.channel_kinds import ChannelKinds, KindNormalizer
from fastgen.config import DistillConfig, TrainTeacherConfig
from fastgen.distillation import distill
from fastgen.export import export_student, load_student
from fastgen.models import build_model
from fastgen.normalizer import Normalizer
from fastgen.pretraining import train_teacher
from fastgen.testing import assert_equivariant
from support.networks import dense, shaken
from support.toy import without_pictures

POSE = ["standard", "standard"]
KINDS = ChannelKinds(3, {"angle": [[2]]})


def wrapped(angle: torch.Tensor) -> torch.Tensor:
    return (angle + math.pi).remainder(2 * math.pi) - math.pi


def arcs(count: int = 60) -> dict[str, np.ndarray]:
    """Paths of a unicycle from a pose: straight on, or to one of two sides; headings wrap."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(count, 1, 3, generator=generator)
    start[..., 2] = wrapped(4 * start[..., 2])
    turn = torch.randint(-1, 2, (count, 1), generator=generator)
    heading = start[..., 2] + turn * torch.arange(1, 5) * 0.4
    steps = torch.stack([heading.cos(), heading.sin()], -1).cumsum(1)
    X = torch.cat([start[..., :2] + steps, wrapped(heading)[..., None]], -1)
    return {"X": X.numpy(), "Z": start.numpy()}


def data_of(path: Path) -> dict[str, Any]:
    symmetry = {"group": "D4", "in_rep": POSE, "cond_rep": POSE}
    channels = {"action_channels": {"angle": 2}, "observation_channels": {"angle": [2]}}
    return {
        "name": "file",
        "path": str(path),
        "pack": 2,
        "symmetry": symmetry,
        "normalize": channels,
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder, by configs alone."""
    folder = tmp_path_factory.mktemp("headings")
    made = arcs()
    np.savez(folder / "arcs.npz", X=made["X"], Z=made["Z"])
    data = data_of(folder / "arcs.npz")
    teacher = {
        "run_dir": str(folder / "teacher"),
        "data": data,
        "model": {"embedding_dim": 16, "num_layers": 1, "num_attention_heads": 2},
        "train": {"steps": 3, "batch_size": 8, "threads": 1, "prefix_max": 2},
        "calls": [1],
        "ab2_calls": [],
    }
    train = {"kd_steps": 3, "kd_pairs": 16, "kd_teacher_calls": 2, "steps": 0, "threads": 1}
    student = {
        "run_dir": str(folder / "student"),
        "data": data,
        "method": "kd",
        "teacher": {"folder": str(folder / "teacher/teacher"), "calls": [1], "ab2_calls": []},
        "train": {**train, "batch_size": 8, "prefix_max": 2},
    }
    with without_pictures():
        train_teacher(TrainTeacherConfig.model_validate(teacher))
        return distill(DistillConfig.model_validate(student))


def test_from_a_file_to_samples(run):
    student = load_student(run / "student")
    assert student.horizon == (4, 3) and student.noise_shape == (4, 4)
    assert student.cond_horizon == (1, 3)
    Z = torch.from_numpy(arcs()["Z"])
    x = student.sample(Z, num_samples=2)
    assert x.shape == (60, 2, 4, 3) and x[..., 2].abs().max() <= math.pi + 1e-6
    scores = json.loads((run / "report" / "report.json").read_text())["student"]["1"]
    assert all(math.isfinite(value) for value in scores.values())
    with pytest.raises(ValueError, match=r"noise of shape \(60, 4, 4\), with angles"):
        student.sample(Z, noise=torch.zeros(60, 4, 3))


def test_whole_turns_change_no_sample(run):
    student = load_student(run / "student")
    Z = torch.from_numpy(arcs()["Z"]).double()
    noise = torch.randn(60, 4, 4, generator=torch.Generator().manual_seed(1))
    x = student.sample(Z, noise=noise)
    Z[..., 2] += 2 * math.pi
    again = student.sample(Z, noise=noise)
    assert KINDS.expand(x - again)[..., 2].min() > 1 - 1e-6
    # A given path goes on, and its headings may lie on either side of the wrap.
    path = x[:, :2].clone()
    path[..., 2] += 2 * math.pi
    a, b = (student.sample(Z, noise=noise, prefix=prefix) for prefix in (x[:, :2], path))
    assert torch.equal(b[:, :2], path)
    assert (KINDS.expand(a[:, 2:].double()) - KINDS.expand(b[:, 2:].double())).abs().max() < 1e-4


def test_a_distilled_student_has_the_symmetry(run):
    assert_equivariant(load_student(run / "student"), in_rep=POSE, cond_rep=POSE)


def equivariant(folder: Path) -> Any:
    """An exported student in float64, of any weights that a group allows."""
    torch.manual_seed(0)
    options = {"group": "D4", "in_rep": POSE * 2, "out_rep": POSE * 2, "cond_rep": POSE}
    options |= {"in_horizon": 2, "cond_horizon": 2, "num_layers": 1, "num_attention_heads": 2}
    network = build_model({"class": "eCondTransformerRegressor", **options, "embedding_dim": 16})
    network = shaken(network).double()
    scaled = KindNormalizer.around(KINDS, Normalizer([0.0, 0.0], [[3.0, 0.0], [0.0, 3.0]]))
    export_student(
        folder,
        network,
        t_list=[0.999, 0.5, 0.0],
        pack=2,
        x_normalizer=scaled,
        z_normalizer=scaled,
    )
    return load_student(folder)


@pytest.mark.parametrize("quarter", [1, 2, 3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_headings_turn_with_the_scene(tmp_path, quarter, mirrored):
    """Turned: positions turn and headings shift by the angle. Mirrored in the x axis first: y and
    heading change their sign."""
    student = equivariant(tmp_path / "student")
    generator = torch.Generator().manual_seed(1)
    Z = 3 * torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(5, 4, 4, generator=generator, dtype=torch.float64)
    angle = quarter * math.pi / 2
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turn = turn.double() @ torch.diag(torch.tensor([1.0, -1.0 if mirrored else 1.0])).double()

    def moved(poses: torch.Tensor) -> torch.Tensor:
        heading = poses[..., 2:] * (-1 if mirrored else 1) + angle
        return torch.cat([poses[..., :2] @ turn.T, heading], -1)

    moved_noise = (noise.unflatten(-1, (2, 2)) @ turn.T).flatten(-2)
    found = student.sample(moved(Z), noise=moved_noise)
    expected = moved(student.sample(Z, noise=noise))
    assert student.dtype == torch.float64
    assert (found[..., :2] - expected[..., :2]).abs().max() < 1e-6
    assert wrapped(found[..., 2] - expected[..., 2]).abs().max() < 1e-6


def test_a_folder_without_kinds_is_as_ever(tmp_path):
    plain = Normalizer.identity(2)
    export_student(
        tmp_path / "s", dense(), t_list=[0.9, 0.0], pack=2, x_normalizer=plain, z_normalizer=plain
    )
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    assert set(config["x_normalizer"]) == {"mean", "scale"}


def test_rotations_are_checked_where_they_are_given(tmp_path):
    kinds = ChannelKinds(4, {"quaternion": [[0, 1, 2, 3]]})
    turns = KindNormalizer.around(kinds, None)
    torch.manual_seed(0)
    network = shaken(build_model(PLAIN))
    export_student(
        tmp_path / "s",
        network,
        t_list=[0.9, 0.0],
        x_normalizer=turns,
        z_normalizer=turns,
        masks=["cond_mask"],
    )
    student = load_student(tmp_path / "s")
    assert student.horizon == (4, 4) and student.cond_horizon == (2, 4)
    Z = torch.randn(3, 2, 4)
    Z /= Z.norm(dim=-1, keepdim=True)
    assert (student.sample(Z).norm(dim=-1) - 1).abs().max() < 1e-5
    # What the card shows can be typed: zeros would be no rotation.
    card = (tmp_path / "s" / "README.md").read_text()
    assert "torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(1, 2, 1)" in card
    Z[0, 1] = 0
    with pytest.raises(ValueError, match="unit quaternion .* of Z, got a length of 0"):
        student.sample(Z)
    real = torch.ones(3, 2, dtype=torch.bool)
    real[0, 1] = False
    assert bool(torch.isfinite(student.sample(Z, cond_mask=real)).all())


PLAIN = {"class": "CondTransformerRegressor", "in_horizon": 4, "cond_horizon": 2, "in_dim": 6}
PLAIN |= {"out_dim": 6, "cond_dim": 6, "num_layers": 1, "num_attention_heads": 2}
PLAIN |= {"embedding_dim": 8}
