"""Arrays beside the data are used or refused by name, in every format and wherever a file is
read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastgen.data import build_task
from fastgen.data.files import load_conditions

N = 100
RNG = np.random.default_rng(0)
TRAJECTORIES = {"X": RNG.normal(size=(N, 4, 2)), "Z": RNG.normal(size=(N, 2, 2))}
LABELLED = {"X": RNG.normal(size=(N, 3)), "Z": np.arange(N) % 3}
POINTS = {"X": RNG.normal(size=(N, 3))}
EPISODES = {
    "actions": RNG.normal(size=(N, 2)),
    "observations": RNG.normal(size=(N, 2)),
    "episode_ends": np.arange(10, N + 1, 10),
}
WINDOWS = {"obs_horizon": 2, "horizon": 4}
FILES = {
    "trajectories": (TRAJECTORIES, {}),
    "labelled": (LABELLED, {}),
    "points": (POINTS, {}),
    "episodes": (EPISODES, WINDOWS),
}
SUFFIXES = ["npz", "safetensors"]


def saved(folder, suffix: str = "npz", **arrays):
    path = folder / f"mine.{suffix}"
    if suffix == "npz":
        np.savez(path, **arrays)
    else:
        save_file({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}, path)
    return path


def file_task(path, **options) -> Any:
    return build_task(SimpleNamespace(name="file", path=str(path), **options))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("Z_mask", "'Z_mask' seems to mark padding"),
        ("is_pad", "'is_pad' seems to mark padding"),
        ("action_is_pad", "'action_is_pad' seems to mark padding.* save rows of one length"),
        ("reward", "nothing reads 'reward'; leave it out of the file"),
        ("fps", "nothing reads 'fps'"),
        ("Y", "nothing reads 'Y'"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path, suffix, kind, name, advice):
    arrays, options = FILES[kind]
    path = saved(tmp_path, suffix, **arrays, **{name: np.ones(N, dtype=bool)})
    with pytest.raises(ValueError, match=advice) as caught:
        file_task(path, **options)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_many_are_one_line(tmp_path):
    more = {f"extra_{k}": np.zeros(3) for k in range(50)}
    with pytest.raises(ValueError, match="'extra_1'.*extra_12.*in all") as caught:
        file_task(saved(tmp_path, **TRAJECTORIES, **more))
    assert len(str(caught.value)) < 1500 and "\n" not in str(caught.value)


def test_names_that_mean_an_episode_say_how_it_is_called(tmp_path):
    for name in ("episodes", "episode_id", "traj_idx"):
        with pytest.raises(ValueError, match=f"call it episode if '{name}' is the number of each"):
            file_task(saved(tmp_path, **POINTS, **{name: np.arange(N)}))
    with pytest.raises(ValueError, match="nothing reads 'episode'; leave it out"):
        file_task(saved(tmp_path, **EPISODES, episode=np.arange(N)), **WINDOWS)
    with pytest.raises(ValueError, match="call 'z' Z, if it is that"):
        file_task(saved(tmp_path, **POINTS, z=np.arange(N)))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", ["trajectories", "labelled", "points"])
def test_no_episode_is_on_two_sides(tmp_path, suffix, kind):
    # Numbers need not begin at 0, nor the rows of an episode be neighbours.
    episode = (1000 + 7 * (np.arange(N) % 20)).astype(np.int32)
    task = file_task(saved(tmp_path, suffix, **FILES[kind][0], episode=episode))
    sides = [set(episode[task.rows[part]]) for part in ("train", "validation", "test")]
    assert [len(side) for side in sides] == [14, 2, 4]
    assert len(set.union(*sides)) == 20
    assert sum(len(rows) for rows in task.rows.values()) == N
    X, _ = task.split("test")
    assert torch.equal(X, torch.from_numpy(FILES[kind][0]["X"])[task.rows["test"]].float())


def test_a_number_for_each_row_is_the_split_without_episodes(tmp_path):
    plain = file_task(saved(tmp_path, **TRAJECTORIES))
    numbered = file_task(saved(tmp_path, **TRAJECTORIES, episode=np.arange(N)))
    for part in ("train", "validation", "test"):
        assert torch.equal(plain.rows[part], numbered.rows[part])


@pytest.mark.parametrize(
    "episode",
    [np.arange(N) / 2, np.arange(N - 1), np.arange(N)[:, None], np.ones(N, dtype=bool)],
)
@pytest.mark.parametrize("kind", ["trajectories", "points"])
def test_episodes_are_one_whole_number_for_each_row(tmp_path, kind, episode):
    with pytest.raises(ValueError, match=r"expected episode as one whole number for each of the"):
        file_task(saved(tmp_path, **FILES[kind][0], episode=episode))


@pytest.mark.parametrize("name", ["mask", "lengths", "cond_mask", "cond_lengths"])
@pytest.mark.parametrize("kind", sorted(set(FILES) - {"trajectories"}))
def test_padding_is_said_of_trajectories_alone(tmp_path, kind, name):
    arrays, options = FILES[kind]
    path = saved(tmp_path, **arrays, **{name: np.ones(N, dtype=bool)})
    with pytest.raises(ValueError, match=f"'{name}' seems to mark padding, which would be learned"):
        file_task(path, **options)


def test_too_few_episodes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 3 episodes .* got 2"):
        file_task(saved(tmp_path, **TRAJECTORIES, episode=np.arange(N) % 2))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_conditions_are_read_alone_or_beside_their_samples(tmp_path, suffix):
    Z = TRAJECTORIES["Z"]
    expected = torch.from_numpy(Z)
    for arrays in ({"Z": Z}, TRAJECTORIES, {**TRAJECTORIES, "episode": np.arange(N)}):
        assert torch.equal(load_conditions(saved(tmp_path, suffix, **arrays)), expected)
    for name in ("mask", "lengths", "is_pad"):
        path = saved(tmp_path, suffix, Z=Z, **{name: np.ones(N, dtype=np.int64)})
        with pytest.raises(ValueError, match=f"expected Z in .*'{name}' seems to mark padding"):
            load_conditions(path)
    with pytest.raises(ValueError, match="nothing reads 'goal'"):
        load_conditions(saved(tmp_path, suffix, Z=Z, goal=Z))
