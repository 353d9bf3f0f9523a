"""Files become windows that stay inside their episode, and what can't be used is refused with its
place named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastgen.data.files import file_task
from fastgen.data.formats.array_files import read_tensors
from fastgen.data.trajectories import TrajectoryData
from fastgen.data.windows import cut_windows, windows_of


def save(path, **arrays):
    """Write arrays to an .npz or .safetensors file, by the name."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file(
            {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()},
            path,
        )
    return path


def load(path, **options):
    """X, Z and the episode of each window of a file."""
    return windows_of(read_tensors(path), path, **options)[:3]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_windows_are_read_as_they_are(tmp_path, suffix, dtype):
    X, Z = (100 * normal(7, 4, 3)).astype(dtype), (100 * normal(7, 2, 5)).astype(dtype)
    x, z, _ = load(save(tmp_path / f"data{suffix}", X=X, Z=Z))
    assert x.dtype == z.dtype == torch.float32
    assert torch.equal(x, torch.from_numpy(X).float()) and torch.equal(
        z, torch.from_numpy(Z).float()
    )


def test_half_precision_and_big_endian_arrays_are_read(tmp_path):
    X, Z = normal(3, 4, 2).astype(">f8"), normal(3, 1, 2).astype("float16")
    x, z, _ = load(save(tmp_path / "data.npz", X=X, Z=Z))
    assert np.allclose(x.numpy(), X, atol=1e-6) and np.array_equal(z.numpy(), Z.astype("float32"))


def episode_file(tmp_path, ends, suffix=".npz"):
    """Rows that carry their own number, in actions and in observations."""
    rows = np.arange(ends[-1], dtype=float)
    actions, observations = np.stack([rows, -rows], 1), rows[:, None]
    return save(
        tmp_path / f"episodes{suffix}",
        actions=actions,
        observations=observations,
        episode_ends=np.array(ends),
    )


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    ("obs_horizon", "horizon", "stride"), [(1, 1, 1), (2, 4, 1), (3, 5, 2), (4, 2, 7)]
)
def test_windows_never_cross_the_end_of_an_episode(tmp_path, suffix, obs_horizon, horizon, stride):
    ends = [9, 12, 31, 50]
    path = episode_file(tmp_path, ends, suffix)
    X, Z, episodes = load(path, obs_horizon=obs_horizon, horizon=horizon, stride=stride)
    starts = [0, *ends[:-1]]
    expected = []
    for number, (start, stop) in enumerate(zip(starts, ends, strict=True)):
        now = start + obs_horizon - 1
        while now + horizon <= stop:
            expected.append((number, now))
            now += stride
    assert [
        tuple(pair) for pair in zip(episodes.tolist(), Z[:, -1, 0].int().tolist(), strict=True)
    ] == expected
    for (number, now), x, z in zip(expected, X, Z, strict=True):
        # The current observation is the last of Z, and the action taken on it the first of X.
        assert z[:, 0].tolist() == list(range(now - obs_horizon + 1, now + 1))
        assert x[:, 0].tolist() == list(range(now, now + horizon)) and torch.equal(
            x[:, 1], -x[:, 0]
        )
        assert starts[number] <= float(z[0, 0]) and float(x[-1, 0]) < ends[number]


GOOD = {"X": normal(4, 6, 2), "Z": normal(4, 2, 3)}


ONE = {"obs_horizon": 1, "horizon": 1}


EPISODES = {"actions": normal(9, 2), "observations": normal(9, 3), "episode_ends": np.array([4, 9])}


def spoiled(name: str, *rows: int) -> np.ndarray:
    array = (GOOD | EPISODES)[name].copy()
    array[list(rows)] = np.nan
    return array


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    ("arrays", "windows", "words"),
    [
        (
            GOOD | {"X": spoiled("X", 1, 3)},
            {},
            "finite numbers in X, got NaN or infinity in 2 rows: 1, 3",
        ),
        (
            GOOD | {"Z": spoiled("Z", 0)},
            {},
            "finite numbers in Z, got NaN or infinity in 1 rows: 0",
        ),
        (GOOD | {"Z": normal(5, 2, 3)}, {}, "as many rows in Z as in X, got 5 and 4"),
        (GOOD | {"X": normal(4, 6)}, {}, r"X of shape \(N, T_x, d_x\), got \(4, 6\)"),
        ({"X": normal(0, 6, 2), "Z": normal(0, 2, 3)}, {}, "at least one number, got an empty"),
        ({"X": GOOD["X"]}, {}, r"expected X and Z, or actions, .* got \['X'\]"),
        (GOOD, {"horizon": 3}, "no obs_horizon, horizon and stride"),
        (EPISODES, {"horizon": 2}, "obs_horizon to be a whole number >= 1 .* got None"),
        (EPISODES, {"obs_horizon": 1, "horizon": 0}, "horizon to be a whole number >= 1 .* got 0"),
        (
            EPISODES,
            {"obs_horizon": 3, "horizon": 4},
            "at least obs_horizon .* = 6 rows, got at most 5",
        ),
        (EPISODES | {"episode_ends": np.array([4, 8])}, ONE, r"to 9, .* got \[4, 8\]"),
        (EPISODES | {"episode_ends": np.array([4, 4, 9])}, ONE, "episode_ends that increase"),
        (EPISODES | {"episode_ends": np.array([0, 9])}, ONE, "increase from above 0"),
        (EPISODES | {"episode_ends": np.array([4.0, 9.0])}, ONE, "whole numbers"),
        (EPISODES | {"observations": normal(8, 3)}, ONE, "observations as actions, got 8 and 9"),
        (EPISODES | {"actions": normal(9)}, ONE, r"actions of shape \(M, d\)"),
        (EPISODES | {"actions": spoiled("actions", 5)}, ONE, "in actions, .* 1 rows: 5"),
    ],
)
def test_unusable_files_are_refused_in_one_line(tmp_path, suffix, arrays, windows, words):
    path = save(tmp_path / f"data{suffix}", **arrays)
    with pytest.raises(ValueError, match=words) as caught:
        load(path, **windows)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_not_data_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="data file at .*nowhere.npz"):
        load(tmp_path / "nowhere.npz")
    for name in ("a.npz", "a.safetensors"):
        (tmp_path / name).write_bytes(b"this is no archive at all")
        with pytest.raises(ValueError, match=f"{name}.* got one that can't be read"):
            load(tmp_path / name)
    whole = save(tmp_path / "whole.npz", **GOOD).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="can't be read"):
        load(tmp_path / "cut.npz")
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"ends in .npz or .safetensors, got a.csv"):
        load(tmp_path / "a.csv")


def test_pickled_arrays_are_never_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("exploded").touch, ())

    np.savez(tmp_path / "bomb.npz", X=np.array([Bomb()], dtype=object), Z=GOOD["Z"])
    with pytest.raises(ValueError, match="plain arrays"):
        load(tmp_path / "bomb.npz")
    assert not (tmp_path / "exploded").exists()


def test_arrays_that_are_no_numbers_are_refused(tmp_path):
    with pytest.raises(TypeError, match="expected numbers in X .*<U1"):
        load(save(tmp_path / "text.npz", **GOOD | {"X": np.array([["a"]])}))
    with pytest.raises(TypeError, match="expected X to hold numbers, got torch.bool"):
        load(save(tmp_path / "bool.npz", **GOOD | {"X": np.ones((4, 6, 2), bool)}))


# ---- Padding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pad_before", "pad_after"), [(0, 0), (2, 3), (1, 2), (2, None)])
def test_padded_windows_repeat_the_first_observation_and_the_last_action(pad_before, pad_after):
    """Against the definition, row by row; the last episode is shorter than a window."""
    ends = [7, 15, 17]
    rows = torch.arange(17.0)[:, None]
    windows = cut_windows(
        rows, rows, torch.tensor(ends), obs_horizon=3, horizon=4, stride=1,
        pad_before=pad_before, pad_after=pad_after,
    )  # fmt: skip
    assert windows.is_pad is not None
    found = zip(windows.X, windows.Z, windows.episodes.tolist(), windows.is_pad, strict=True)
    expected = []
    for index, (start, stop) in enumerate(zip([0, 7, 15], ends, strict=True)):
        first = start + 2 - pad_before
        times = list(range(first, stop - 4 + (pad_after or 0) + 1)) or [min(first, stop - 1)]
        for t in times:
            x = [min(t + k, stop - 1) for k in range(4)]
            z = [max(t - k, start) for k in (2, 1, 0)]
            expected.append((x, z, index, [t + k >= stop for k in range(4)]))
    got = [(x[:, 0].tolist(), z[:, 0].tolist(), e, pad.tolist()) for x, z, e, pad in found]
    assert got == expected
    if (pad_before, pad_after) == (2, 3):
        # Each row is the current one of a window.
        assert windows.Z[:, -1, 0].tolist() == list(range(17))


@pytest.mark.parametrize("pads", [None, (2, 1)])
def test_actions_may_begin_at_the_first_observation(pads):
    """Against the definition, row by row: padded as a policy of LeRobot takes its rows."""
    ends = [7, 15, 17]
    rows = torch.arange(17.0)[:, None]
    before, after = pads or (None, None)
    windows = cut_windows(
        rows, rows, torch.tensor(ends), obs_horizon=3, horizon=4, stride=1,
        actions_from="first_observation", pad_before=before, pad_after=after,
    )  # fmt: skip
    expected = []
    for start, stop in zip([0, 7, 15], ends, strict=True):
        now = range(start, stop) if pads else range(start + 2, stop - 1)
        for t in now:
            asked = [t - 2 + k for k in range(4)]
            pad = [not start <= row < stop for row in asked]
            x = [min(max(row, start), stop - 1) for row in asked]
            expected.append((x, [max(t - k, start) for k in (2, 1, 0)], pad))
    got = [(x[:, 0].tolist(), z[:, 0].tolist()) for x, z in zip(*windows[:2], strict=True)]
    assert got == [row[:2] for row in expected]
    if pads:
        assert windows.is_pad is not None
        assert windows.is_pad.tolist() == [row[2] for row in expected]


def test_actions_that_end_before_now_or_begin_elsewhere_are_refused(tmp_path):
    rows = torch.zeros(9, 1)
    options: dict[str, Any] = {"obs_horizon": 3, "stride": 1}
    ends = torch.tensor([9])
    with pytest.raises(ValueError, match="expected a horizon of at least 3, so that actions"):
        cut_windows(rows, rows, ends, horizon=2, actions_from="first_observation", **options)
    with pytest.raises(ValueError, match="expected actions_from last_observation or first_obs"):
        cut_windows(rows, rows, ends, horizon=4, actions_from="now", **options)
    arrays = {"X": torch.zeros(4, 2, 1), "Z": torch.zeros(4, 1, 1)}
    with pytest.raises(ValueError, match="which holds windows"):
        windows_of(arrays, "a.npz", actions_from="first_observation")
    path = tmp_path / "a.npz"
    numbers = np.zeros((6, 1))
    np.savez(path, actions=numbers, observations=numbers, episode_ends=np.array([6]))
    with pytest.raises(ValueError, match="at least horizon = 8 rows, got at most 6"):
        file_task(path, obs_horizon=2, horizon=8, actions_from="first_observation")


def test_what_cannot_be_padded_is_refused(tmp_path):
    rows = torch.zeros(9, 1)
    options: dict[str, Any] = {"obs_horizon": 2, "horizon": 4, "stride": 1}
    for wrong in ({"pad_before": 2}, {"pad_after": 4}, {"pad_after": -1}):
        with pytest.raises(ValueError, match="one less than the horizon, got"):
            cut_windows(rows, rows, torch.tensor([9]), **options, **wrong)
    with pytest.raises(ValueError, match="and no padding, for .*which holds windows"):
        windows_of({"X": torch.zeros(4, 2, 1), "Z": torch.zeros(4, 1, 1)}, "a.npz", pad_after=0)


def test_padding_is_kept_with_the_training_set(tmp_path):
    ends = np.arange(5, 61, 5)
    rows = np.arange(60.0)[:, None]
    path = tmp_path / "a.npz"
    np.savez(path, actions=rows, observations=rows, episode_ends=ends)
    options: dict[str, Any] = {"obs_horizon": 2, "horizon": 8}
    data = file_task(path, pad_before=1, pad_after=7, **options).train
    assert isinstance(data, TrajectoryData) and data.is_pad is not None
    assert data.is_pad.shape == data.X.shape[:2] and data.is_pad.any()
    last = data.X[:, :1, 0] // 5 * 5 + 4
    assert torch.equal(data.is_pad, data.X[:, :1, 0] + torch.arange(8) > last)
    with pytest.raises(ValueError, match="shorten the horizons"):
        file_task(path, **options)
