"""Folders that fastgen-distill 0.1.0 wrote load, and answer what they answered there.

`data/version_1.zip` holds a teacher, a student and a student of a converted network, their answers
in float64, and the script that made them all with 0.1.0 (`make.py`).
"""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastgen.export import export_student, load_network, load_student, save_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("version_1")
    with zipfile.ZipFile(Path(__file__).parent / "data" / "version_1.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def answers(folder) -> dict[str, Tensor]:
    return load_file(folder / "answers.safetensors")


class Linear(nn.Module):
    """W [x_t, label] (1 + t): the class that a user of the converted student brings along."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3))

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        inputs = torch.cat([x_t, cond.to(x_t.dtype)[:, None]], 1)
        return inputs @ self.weight.T * (1 + t.to(x_t.dtype)[:, None] / 1000)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-10)


def test_they_are_of_format_version_1(folder):
    for name in ("teacher", "student", "converted"):
        config = json.loads((folder / name / "config.json").read_text())
        assert (config["format_version"], config["package_version"]) == (1, "0.1.0")


@torch.no_grad()
def test_a_teacher_loads(folder, answers):
    network, description = load_network(folder / "teacher")
    flow = network.double()(answers["x_t"], answers["t"], answers["z_normalized"])
    assert close(flow, answers["teacher"])
    assert description["scores"] == {"energy_ratio": 1.2} and description["prediction"] == "flow"


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_student_loads(folder, answers, steps):
    student = load_student(folder / "student", dtype=torch.float64)
    seeded = torch.Generator().manual_seed(steps)
    x = student.sample(answers["z"], noise=answers["noise"], steps=steps, generator=seeded)
    assert student.steps == (1, 2, 4) and student.config["group"] == "C2"
    assert close(x, answers[f"student, {steps} calls"])


def test_a_student_of_a_converted_network_loads(folder, answers):
    student = load_student(folder / "converted", network=Linear())
    x = student.sample(answers["labels"], noise=answers["points"])
    assert close(x, answers["converted"])


def test_written_again_they_hold_the_same(folder, tmp_path):
    """The format has stayed the same: today's export of what was read is the folder that was
    read."""
    network, description = load_network(folder / "teacher")
    save_network(tmp_path / "teacher", network, description=description)
    student = load_student(folder / "student")
    again = (
        *("t_list", "steps", "sample_type", "pred_type", "pack"),
        *("horizon", "cond_horizon", "description"),
    )
    export_student(
        tmp_path / "student",
        student.network,
        x_normalizer=student.x_normalizer,
        z_normalizer=student.z_normalizer,
        **{key: student.config[key] for key in again},
    )
    for name, file in (("teacher", "model"), ("student", "student")):
        old = json.loads((folder / name / "config.json").read_text())
        new = json.loads((tmp_path / name / "config.json").read_text())
        # A student is folded and forgets its group; the rest belongs to the files themselves.
        for key in ("package_version", "checksum", "tensors", "group"):
            old.pop(key, None)
            new.pop(key, None)
        assert new == old
        before = load_file(folder / name / f"{file}.safetensors")
        after = load_file(tmp_path / name / f"{file}.safetensors")
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], value) for key, value in before.items())
