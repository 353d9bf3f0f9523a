"""A flow policy of LeRobot, trained and saved by lerobot, is read without it and without its text
encoder: its network answers what lerobot's answered, and samples what lerobot's sampled. Policies
that can't be read so are named."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastgen.models.trajectory_transformer import TrajectoryTransformer
from fastgen.samplers import sample_teacher
from fastgen.teachers.saved import blank_network, read_saved
from support.saved import Harm, check_refused, teacher_of, with_values

POLICY = Path(__file__).parents[1] / "data" / "policies" / "flow"
FOLDER = POLICY / "pretrained_model"
STATE = "observation.state"
with_config = functools.partial(with_values, "config.json")


@pytest.fixture(scope="module")
def answers() -> dict[str, Tensor]:
    """What lerobot answered."""
    return load_file(POLICY / "answers.safetensors")


@pytest.fixture
def copied(tmp_path) -> Path:
    """The policy, to be harmed."""
    shutil.copytree(FOLDER, tmp_path / "pretrained_model")
    return tmp_path / "pretrained_model"


def test_the_flow_is_their_velocity_turned_round(answers):
    teacher = teacher_of(FOLDER)
    flow = teacher(answers["x_s"], 1.0 - answers["times"], answers["Z"])
    torch.testing.assert_close(-flow, answers["velocity"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_samples_are_those_of_their_sampler(answers, method):
    noise = answers[f"noise_{method}"]
    ours = sample_teacher(teacher_of(FOLDER), noise, 10, answers["Z"], method=method)
    torch.testing.assert_close(ours, answers[f"samples_{method}"], rtol=1e-4, atol=1e-4)


def weights() -> dict[str, Tensor]:
    return load_file(FOLDER / "model.safetensors")


def test_a_checkpoint_around_the_policy_is_read_as_well():
    inner = read_saved(FOLDER)
    outer = read_saved(POLICY)
    assert inner is not None and outer is not None
    assert inner.declaration == outer.declaration and inner.keywords is None
    assert type(blank_network(POLICY, weights())) is TrajectoryTransformer


def test_the_network_says_what_it_is_called_with(answers):
    with pytest.raises(ValueError, match="expected 42 numbers of Z a row, got 10 .*obs_horizon"):
        teacher_of(FOLDER)(answers["x_s"], 0.5, answers["Z"][:, :, :5])


def test_the_other_objective_is_a_table_of_noise(copied):
    with_config(objective="diffusion", prediction_type="sample")(copied)
    found = read_saved(copied)
    assert found is not None and found.declaration is not None
    assert found.declaration["path"]["schedule"] == "squared_cosine"
    assert found.declaration["prediction"] == "x0"


CAMERA = {"type": "VISUAL", "shape": [3, 8, 8]}
SEEN = {"type": "STATE", "shape": [5]}
HARM: dict[str, Harm] = {
    "a camera": (
        with_config(input_features={STATE: SEEN, "observation.images.top": CAMERA}),
        "policy that sees observation.state alone, got observation.images.top beside it; give",
    ),
    "data with noise": (
        with_config(sigma_min=0.001),
        "expected sigma_min 0, data without noise, got sigma_min=0.001; give teacher.factory",
    ),
    "another objective": (
        with_config(objective="drift"),
        "expected objective diffusion or flow_matching, got objective='drift'",
    ),
    "a giant": (with_config(hidden_dim=10**9), r"expected hidden_dim within 1\.\."),
    "a tower": (with_config(num_layers=10**6), r"expected num_layers within 1\.\."),
    "a long table": (
        with_config(use_positional_encoding=True, horizon=10**8),
        r"expected horizon within 1\.\.96, which the tensors allow",
    ),
    "another width": (with_config(hidden_dim=32), "another shape: .*is of another network"),
    "no places": (with_config(use_rope=False), "doesn't fit the network: .* missing"),
    "odd heads": (with_config(num_heads=5), "expected embedding_dim as a multiple of 10"),
    "no number": (with_config(rope_base="high"), "expected rotary_base to be a finite number > 0"),
    "no flag": (with_config(use_rope="yes"), "expected use_rope as true or false, got use_rope="),
}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"use_positional_encoding": True, "horizon": 6_000_000}, r"expected horizon within 1\.\."),
        ({"use_positional_encoding": True, "horizon": 10**15}, r"expected horizon within 1\.\."),
        ({"use_positional_encoding": True, "horizon": 10**20}, r"expected horizon within 1\.\."),
        ({"n_obs_steps": 10**30}, "expected features that the tensors allow"),
        ({"hidden_dim": 10**9}, r"expected hidden_dim within 1\.\."),
    ],
)
@pytest.mark.parametrize("blank", [False, True])
def test_a_giant_is_not_built(copied, sizes, message, blank):
    """Neither to be filled with the folder's own weights, nor with a student's."""
    with_config(**sizes)(copied)
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        if blank:
            blank_network(copied, weights())
        else:
            read_saved(copied)


def test_sizes_that_cannot_be_counted_are_said_in_one_line(copied):
    """Whatever the tensors allow: one without numbers may have an axis of any length."""
    with_config(use_positional_encoding=True, horizon=10**18)(copied)
    with pytest.raises(ValueError, match="config.json: expected sizes of a network, got: "):
        blank_network(copied, {**weights(), "empty": torch.empty(10**18, 0)})


@pytest.mark.parametrize("name", HARM)
def test_what_cannot_be_read_is_said_in_one_line(copied, name):
    check_refused(copied, HARM[name])


# The types of lerobot 0.4 to 0.6 that are flows, but for this one.
FLOWS = ["smolvla", "pi0", "pi05", "groot", "xvla", "wall_x", "eo1", "evo1", "fastwam"]
FLOWS += ["lingbot_va", "molmoact2", "vla_jepa"]


@pytest.mark.parametrize("kind", [*FLOWS, "pi0_fast"])
def test_a_policy_around_a_vision_language_model_is_refused_with_the_reason(copied, kind):
    said = (
        rf"expected type diffusion \(DiffusionPolicy\) or multi_task_dit .*, got type='{kind}', "
        "whose actions are made from what a vision-language model sees in pictures: no network of "
        "states alone is in it; give teacher.factory"
    )
    check_refused(copied, (with_config(type=kind), said))


@pytest.mark.parametrize("kind", ["act", "vqbet", "tdmpc", 3, None])
def test_a_policy_that_is_no_flow_is_refused_without_it(copied, kind):
    said = r"got type=[^,]*; give teacher.factory"
    check_refused(copied, (with_config(type=kind), said))
