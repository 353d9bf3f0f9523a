"""Which channels look like angles: those that jump by a turn and otherwise move by small steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastgen._core.yaml_files import parse_yaml
from fastgen.data.files import file_task
from fastgen.data.formats.angle_jumps import angle_like_channels
from fastgen.data.formats.description import describe_data


def _headings(rows: int = 400, seed: int = 0) -> torch.Tensor:
    """A random walk that turns several times, (rows,) float64, not wrapped."""
    steps = 0.3 * torch.randn(rows, generator=torch.Generator().manual_seed(seed)).double()
    return (steps + 0.1).cumsum(0)


def _wrapped(theta: torch.Tensor) -> torch.Tensor:
    return torch.atan2(theta.sin(), theta.cos())


@pytest.mark.parametrize(("unit", "factor"), [("radians", 1.0), ("degrees", 180 / math.pi)])
@pytest.mark.parametrize("offset", [0.0, math.pi])
def test_a_wrapped_angle_is_found_in_its_unit_wherever_its_turn_begins(unit, factor, offset):
    theta = _headings()
    numbers = (_wrapped(theta) + offset) * factor
    whole_turns = ((theta + math.pi) / (2 * math.pi)).floor()
    (found,) = angle_like_channels(numbers[:, None], [len(numbers)])
    assert (found.channel, found.unit) == (0, unit)
    assert found.jumps == int((whole_turns[1:] != whole_turns[:-1]).sum()) > 0


def test_what_is_no_angle_is_none():
    theta = _headings()
    generator = torch.Generator().manual_seed(1)
    rows = torch.stack(
        [
            theta,  # counts its turns
            0.4 * _wrapped(theta),  # jumps by less than a turn
            3.0 * theta.sin().sign(),  # opens and shuts, and never moves by a small step
            (2 * torch.rand(400, generator=generator).double() - 1) * math.pi,  # leaps anywhere
            theta.sin(),
            torch.zeros(400, dtype=torch.float64),
        ],
        1,
    )
    assert angle_like_channels(rows, [400]) == []


def test_the_step_to_the_next_episode_is_none():
    rows = torch.cat([torch.linspace(2, 3.1, 20), torch.linspace(-3.1, -2, 20)])[:, None]
    assert angle_like_channels(rows, [20, 40]) == []
    assert len(angle_like_channels(rows, [40])) == 1


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows_say_nothing(rows):
    assert angle_like_channels(torch.full((rows, 2), 3.0), [max(rows, 1)]) == []


def test_ends_beyond_the_rows_that_were_read_do_no_harm():
    numbers = _wrapped(_headings())[:, None]
    assert angle_like_channels(numbers, [len(numbers), 10**6])


def test_a_data_set_says_which_of_its_channels_look_like_angles(tmp_path):
    theta = _wrapped(_headings())
    place = theta.cumsum(0)
    path = tmp_path / "a.npz"
    state = torch.stack([place, theta * 180 / math.pi], 1).numpy()
    np.savez(path, place=place, heading=theta, state=state, episode_ends=[200, 400])
    text = "\n".join(describe_data(path, ["place", "heading"], ["place", "state"]))
    channel, other = (line for line in text.splitlines() if "looks like an angle" in line)
    assert "channel 0 of heading looks like an angle in radians" in channel
    assert "; name it in data.normalize.action_channels: {angle: [1]}" in channel
    assert "channel 1 of state looks like an angle in degrees" in other
    assert "turn it into radians, then name it in data.normalize.observation_chann" in other
    assert "{angle: [2]}" in other


def test_what_is_said_of_a_channel_makes_it_an_angle(tmp_path):
    """The numbers are those of the joined columns, as the task counts them."""
    theta = _wrapped(_headings())
    place = torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "a.npz"
    np.savez(path, place=place, heading=theta, episode_ends=[100, 200, 300, 400])
    (line,) = (x for x in describe_data(path, ["place", "heading"], ["place"]) if "angle" in x)
    key, _, value = line.partition("data.normalize.")[2].partition(", of which")[0].partition(": ")
    options = {"actions": ["place", "heading"], "observations": ["place"]}
    options |= {"obs_horizon": 1, "horizon": 4, "normalize": {key: parse_yaml(value, "note")}}
    task = file_task(path, **options)
    assert task.train.x_normalizer.kinds.kinds == {"angle": ((2,),)}
