"""What is said of a data set: what there is, what is used, what is odd."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastgen.data.formats.description import describe_data

SETS = Path(__file__).parents[1] / "sets"


def test_a_data_set_is_described_in_about_twenty_lines():
    lines = describe_data(SETS / "lerobot3")
    assert len(lines) <= 24
    text = "\n".join(lines)
    assert "LeRobotDataset v3.0" in lines[0]
    assert "8 episodes of 8 to 24 rows (median 11.5), 105 rows, 10 rows per second" in text
    assert "observation.environment_state  observations  2 float32 (goal_x, goal_y)" in text
    assert "observation.image (images)" in text
    assert "warning" not in text


def test_what_is_odd_is_said(tmp_path):
    t = np.arange(12.0)
    t[3] = 3.5
    action = np.ones((12, 2))
    action[:, 1] = np.arange(12)
    state = np.arange(24.0).reshape(12, 2)
    state[4, 0] = np.nan
    path = tmp_path / "a.npz"
    np.savez(path, action=action, state=state, timestamp=t, episode_ends=[6, 12], mask=t > 5)
    text = "\n".join(describe_data(path))
    assert "NaN or infinity in 1 rows of state" in text
    assert "constant channels of action: 0" in text
    assert "2 steps of timestamp are not of 1 s" in text
    assert "mask may mark padding" in text


def test_a_choice_that_must_be_made_is_asked_for():
    lines = describe_data(SETS / "low_dim.hdf5")
    assert lines[-1].startswith("to choose: expected data.observations")
    assert "obs/robot0_eef_pos" in lines[-1]
    with pytest.raises(ValueError, match="'nothing'"):
        describe_data(SETS / "low_dim.hdf5", ["actions"], ["nothing"])


def test_arrays_that_are_windows_already_are_listed(tmp_path):
    np.savez(tmp_path / "w.npz", X=np.zeros((4, 3, 2)), Z=np.zeros((4, 1, 2)))
    assert "X  (4, 3, 2)" in "\n".join(describe_data(tmp_path / "w.npz"))


def test_what_has_no_finite_number_is_described(tmp_path):
    action = np.full((4, 1), np.nan)
    path = tmp_path / "a.npz"
    np.savez(path, action=action, state=np.zeros((4, 0)), episode_ends=[2, 4])
    assert "\n".join(describe_data(path)).count("no finite number") == 2


def test_arrays_that_training_must_be_told_of_are_said(tmp_path):
    path = tmp_path / "a.npz"
    rows = np.arange(12.0)[:, None]
    np.savez(path, action=rows, state=rows, episode_ends=[6, 12])
    said = "data.actions=action data.observations=state must be named"
    assert said in "\n".join(describe_data(path))
    assert said not in "\n".join(describe_data(path, ["action"], ["state"]))


@pytest.mark.parametrize("ends", [[8, 4, 12], [4, 4, 12], [0]])
def test_ends_that_do_not_increase_are_refused(tmp_path, ends):
    path = tmp_path / "a.npz"
    np.savez(path, action=np.ones((12, 1)), state=np.ones((12, 1)), episode_ends=ends)
    with pytest.raises(ValueError, match="episode_ends: expected ends .* increase from above 0"):
        describe_data(path)


def test_a_data_set_without_columns_is_described(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, action=np.ones((12, 1)), episode_ends=[4, 8])
    text = "\n".join(describe_data(path))
    assert "no array of 8 rows, left out: action" in text and "none of numbers" in text
