"""A policy of LeRobot, trained and saved by lerobot, is read without it: its network answers what
lerobot's answered, and samples what lerobot's sampled."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastgen.models.conv_unet import TrajectoryUnet
from fastgen.samplers import sample_teacher
from fastgen.teachers.saved import blank_network, read_saved
from support.saved import Harm, check_refused, teacher_of, with_values

POLICY = Path(__file__).parents[1] / "data" / "policies" / "drive"
FOLDER = POLICY / "pretrained_model"
STATE = "observation.state"
PLACE = "observation.environment_state"


@pytest.fixture(scope="module")
def answers() -> dict[str, Tensor]:
    """What lerobot answered; its observations as Z, too."""
    found = load_file(POLICY / "answers.safetensors")
    found["Z"] = torch.cat([found[STATE], found[PLACE]], -1)
    return found


@pytest.fixture
def copied(tmp_path) -> Path:
    """The policy, to be harmed."""
    shutil.copytree(FOLDER, tmp_path / "pretrained_model")
    return tmp_path / "pretrained_model"


def test_the_flow_becomes_their_noise(answers):
    teacher = teacher_of(FOLDER, clip_sample="unclipped")
    rows = answers["rows"].double()
    alpha, sigma = (c[:, None, None] for c in teacher.clock.coefficients(rows))
    t = (sigma / (alpha + sigma)).flatten()
    x_t = answers["x_s"].double() / (alpha + sigma)
    flow = teacher(x_t, t, answers["Z"]).double()
    eps = x_t + (1 - t)[:, None, None] * flow
    torch.testing.assert_close(eps.float(), answers["eps"], rtol=1e-5, atol=1e-5)


def test_euler_steps_are_those_of_their_sampler(answers):
    teacher = teacher_of(FOLDER)
    assert teacher.clip_sample == (-1.0, 1.0)
    # They start from noise, we from sigma times noise; ten calls of fifty rows begin at row 45.
    _, sigma = teacher.clock.coefficients(torch.tensor([45.0], dtype=torch.float64))
    noise = (answers["noise"].double() / sigma).float()
    ours = sample_teacher(teacher, noise, 10, answers["Z"])
    torch.testing.assert_close(ours, answers["clipped_samples"], rtol=1e-4, atol=1e-4)


def weights() -> dict[str, Tensor]:
    return load_file(FOLDER / "model.safetensors")


def test_a_checkpoint_around_the_policy_is_read_as_well():
    inner = read_saved(FOLDER)
    outer = read_saved(POLICY)
    assert inner is not None and outer is not None
    assert inner.declaration == outer.declaration
    assert inner.statistics == outer.statistics == FOLDER / "policy_preprocessor.json"
    assert type(blank_network(POLICY, weights())) is TrajectoryUnet


def test_the_network_says_what_it_is_called_with(answers):
    teacher = teacher_of(FOLDER)
    x_t = answers["x_s"]
    with pytest.raises(ValueError, match=r"expected 10 numbers of Z a row, got 8 .*obs_horizon"):
        teacher(x_t, 0.5, answers["Z"][:, :, :4])
    with pytest.raises(ValueError, match="expected a multiple of 2 waypoints, got 7; set data.hor"):
        teacher(x_t[:, :7], 0.5, answers["Z"])


with_config = functools.partial(with_values, "config.json")


def pickled(folder: Path) -> None:
    file = folder / "model.safetensors"
    torch.save(load_file(file), folder / "model.bin")
    file.unlink()


def another_network(folder: Path) -> None:
    tensors = {f"model.layers.{i}.weight": torch.ones(32, 32) for i in range(4)}
    save_file(tensors, folder / "model.safetensors")


CAMERA = {"type": "VISUAL", "shape": [3, 8, 8]}
SEEN = {"type": "STATE", "shape": [3]}
HARM: dict[str, Harm] = {
    "a policy of another kind": (
        with_config(type="act"),
        r"expected type diffusion \(DiffusionPolicy\) or multi_task_dit .*, got type='act'; give",
    ),
    "a camera": (
        with_config(input_features={STATE: SEEN, "observation.image": CAMERA}),
        "policy that sees observation.state and .* alone, got observation.image beside them; give",
    ),
    "no state": (
        with_config(input_features={PLACE: SEEN}),
        "expected observation.state in input_features with a shape of one number",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "expected model.safetensors, got no weights there",
    ),
    "pickled": (pickled, "got model.bin, which is pickled and could run code; save it anew"),
    "a giant": (
        with_config(down_dims=[8, 10**9]),
        r"expected down_dims within 1\.\.",
    ),
    "a giant's time": (
        with_config(diffusion_step_embed_dim=10**9),
        r"expected diffusion_step_embed_dim within 1\.\.",
    ),
    "a giant's eye": (
        with_config(n_obs_steps=10**9),
        "expected features that the tensors allow",
    ),
    "a giant of many stages": (
        with_config(down_dims=[32] * 90, kernel_size=31),
        "expected a network of the .* numbers in .*, got one of .*; config.json is of another net",
    ),
    "other stages": (
        with_config(down_dims=[8, 24]),
        "another shape: .*is of another network",
    ),
    "other weights": (another_network, "doesn't fit the network: .* missing"),
    "another schedule": (
        with_config(beta_schedule="cosine"),
        "expected beta_schedule linear, ",
    ),
    "no number": (
        with_config(kernel_size="five"),
        "expected kernel_size as a whole number > 0",
    ),
    "even": (with_config(kernel_size=4), "expected an odd kernel_size"),
}


@pytest.mark.parametrize("name", HARM)
def test_what_cannot_be_read_is_said_in_one_line(copied, name):
    check_refused(copied, HARM[name])
