"""A recorded data set is split by episode, and its scores prefer samplers that know what
happened."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastgen.data import Task, build_task
from fastgen.data.held_out import HeldOutTask, split_episodes


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def law(Z: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """X given Z of the data below."""
    return Z[:, -1:] + noise


@pytest.fixture(scope="module")
def task() -> HeldOutTask:
    Z = normal(3000, 2, 2)
    X, episodes = law(Z, normal(3000, 4, 2, seed=1)), torch.arange(3000) // 10
    return HeldOutTask("toy", X, Z, episodes, primary="energy_score", pack=2)


@pytest.mark.parametrize(
    ("episodes", "parts"), [(3, (1, 1, 1)), (10, (7, 1, 2)), (100, (70, 10, 20))]
)
def test_split_shares_no_episode_and_loses_none(episodes, parts):
    numbers = torch.arange(episodes * 7) % episodes  # windows of an episode need not be neighbours
    rows = split_episodes(numbers, seed=0)
    assert (
        tuple(len(numbers[rows[part]].unique()) for part in ("train", "validation", "test"))
        == parts
    )
    assert torch.equal(torch.cat(list(rows.values())).sort().values, torch.arange(episodes * 7))
    assert sum(parts) == episodes


def test_split_is_a_pure_function_of_the_seed():
    numbers = torch.arange(50)
    first, again, other = (split_episodes(numbers, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first["test"], again["test"]) and not torch.equal(
        first["test"], other["test"]
    )


def test_normalisers_see_training_windows_only(task):
    X, _ = task.split("train")
    assert torch.equal(task.train.X, X)
    assert float((task.train.x_normalizer.mean - X.double().mean((0, 1))).abs().max()) < 1e-12


def test_the_true_law_scores_best_and_is_at_no_energy_distance(task):
    true = task.evaluate(law)
    others = {
        "too narrow": lambda Z, noise: law(Z, 0.3 * noise),
        "too wide": lambda Z, noise: law(Z, 2 * noise),
        "ignores the condition": lambda Z, noise: law(Z.roll(600, 0), noise),
    }
    for name, sampler in others.items():
        score = task.evaluate(sampler)
        assert score["energy_score"] > 1.03 * true["energy_score"], name
        assert score["energy_distance"] > 3 * abs(true["energy_distance"]) + 1e-3, name
    assert abs(true["energy_distance"]) < 5e-3


def test_a_sampler_that_knows_the_answer_has_no_displacement_error(task):
    for quick, part in ((True, "validation"), (False, "test")):
        X, _ = task.split(part)
        scores = task.evaluate(lambda Z, noise, X=X: X.repeat_interleave(6, 0), quick=quick)
        assert scores["min_ade"] == scores["min_fde"] == 0 and task.primary in scores


def test_evaluation_is_bounded_and_the_same_for_every_sampler(task):
    calls = []

    def spy(Z, noise):
        calls.append((Z, noise))
        return law(Z, noise)

    assert task.evaluate(spy) == task.evaluate(spy)
    assert torch.equal(calls[0][0], calls[1][0]) and torch.equal(calls[0][1], calls[1][1])
    assert calls[0][1].shape == (600 * 6, 4, 2)
    task.evaluate(spy, quick=True)
    assert calls[2][1].shape == (256 * 6, 4, 2)
    assert not torch.equal(calls[2][1][:100], calls[0][1][:100])


def test_examples_and_scene_are_drawable(task):
    Z, X = task.examples(5)
    assert Z.shape == (5, 2, 2) and X.shape == (5, 4, 2)
    assert task.scene() == {"obstacles": [], "limits": None, "equal": True}


def test_two_copies_are_not_told_apart_and_a_blurred_one_is(task):
    Z = task.split("validation")[1].repeat_interleave(6, 0)
    first, second = (law(Z, normal(len(Z), 4, 2, seed=seed)) for seed in (1, 2))
    copies = task.compare(first, second)
    assert set(copies) == {"energy_distance", "energy_score", "outside", "missed"}
    assert not any(found.better or found.worse for found in copies.values())
    blurred = law(Z, 1.6 * normal(len(Z), 4, 2, seed=1))
    worse = task.compare(first, blurred)
    assert all(worse[name].worse for name in ("energy_distance", "energy_score", "outside"))
    better = task.compare(blurred, first)
    assert all(better[name].better for name in ("energy_distance", "energy_score", "outside"))


def test_one_episode_to_validate_by_is_compared_by_its_windows():
    """Of ten episodes one validates."""
    Z = normal(600, 2, 2)
    X = law(Z, normal(600, 4, 2, seed=1))
    task = HeldOutTask("few", X, Z, torch.arange(600) // 60, primary="energy_score")
    z = task.split("validation")[1].repeat_interleave(6, 0)
    first, second = (law(z, normal(len(z), 4, 2, seed=seed)) for seed in (1, 2))
    assert not any(found.better for found in task.compare(first, second).values())
    blurred = law(z, 2 * normal(len(z), 4, 2, seed=1))
    assert task.compare(blurred, first)["energy_score"].better


def test_of_fresh_data_it_is_known_what_lies_outside_and_what_is_missed(task):
    scores = task.evaluate(law)
    assert task.floor() == {"outside": 0.01, "missed": 0.01}
    assert scores["outside"] < 0.02 and scores["missed"] < 0.02
    assert task.evaluate(lambda Z, noise: law(Z, 2 * noise))["outside"] > 0.1
    assert task.evaluate(lambda Z, noise: law(Z, 0.3 * noise))["missed"] > 0.1
    few = small_task(20)
    assert few.floor() == {} and "outside" not in few.evaluate(lambda Z, noise: noise)


def test_a_file_becomes_a_task(tmp_path):
    rows = np.arange(60.0)
    arrays = {
        "actions": np.stack([np.sin(rows), np.cos(rows)], 1),
        "observations": rows[:, None],
        "episode_ends": np.array([15, 30, 45, 60]),
    }
    np.savez(tmp_path / "mine.npz", **arrays)
    cfg = SimpleNamespace(
        name="file",
        path=tmp_path / "mine.npz",
        pack=2,
        seed=0,
        symmetry=None,
        obs_horizon=2,
        horizon=4,
        stride=None,
    )
    task = build_task(cfg)
    assert isinstance(task, Task) and task.name == "file"
    assert (
        task.train.X.shape[1:] == (4, 2)
        and task.train.Z.shape[1:] == (2, 1)
        and task.train.pack == 2
    )
    scores = task.evaluate(lambda Z, noise: noise)
    assert task.primary in scores and "energy_distance" in scores


def test_a_file_with_a_symmetry_is_normalised_by_it(tmp_path):
    np.savez(tmp_path / "mine.npz", X=normal(40, 4, 2).numpy() + 3, Z=normal(40, 2, 3).numpy() + 3)
    symmetry = {
        "group": "C4",
        "in_rep": ["standard"],
        "cond_rep": ["standard", "trivial"],
        "out_rep": ["standard"],
    }
    cfg = SimpleNamespace(name="file", path=str(tmp_path / "mine.npz"), pack=1, symmetry=symmetry)
    data = build_task(cfg).train
    assert data.symmetry == symmetry
    assert torch.equal(data.x_normalizer.mean, torch.zeros(2, dtype=torch.float64))
    assert data.z_normalizer.mean[:2].abs().max() == 0 and float(data.z_normalizer.mean[2]) > 2


def small_task(n: int, pack: int = 1) -> HeldOutTask:
    return HeldOutTask(
        "a", normal(n, 4, 2), normal(n, 1, 1), torch.arange(n), primary="min_ade", pack=pack
    )


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: split_episodes(torch.tensor([0, 0, 1]), 0), "at least 3 episodes .* got 2"),
        (lambda: small_task(3), "at least 2 test rows"),
        (lambda: small_task(9, pack=3), "divides the 4 waypoints, got 3"),
    ],
)
def test_too_little_data_is_refused(act, words):
    with pytest.raises(ValueError, match=words):
        act()


def test_answers_in_another_shape_or_with_nan_are_refused(task):
    with pytest.raises(ValueError, match="expected sample.Z, noise. to return"):
        task.evaluate(lambda Z, noise: noise[:, :2], quick=True)
    with pytest.raises(ValueError, match="finite samples"):
        task.evaluate(lambda Z, noise: noise * float("inf"), quick=True)


def test_without_normalisation_a_network_sees_the_units_of_the_file(tmp_path):
    X, Z = 3.0 + 2.0 * normal(40, 4, 2), normal(40, 1, 3, seed=1)
    np.savez(tmp_path / "data.npz", X=X.numpy(), Z=Z.numpy())
    asked = SimpleNamespace(name="file", path=str(tmp_path / "data.npz"), normalize=False)
    raw = build_task(asked).train
    x0, cond = raw.network_inputs()
    assert torch.equal(x0, raw.X) and torch.equal(cond, raw.Z)
    asked.normalize = True
    assert not torch.allclose(build_task(asked).train.network_inputs()[0], raw.X, atol=0.1)
