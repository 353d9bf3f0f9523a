"""The ring as a task: reproducible data, one evaluation for all samplers, demonstrations score like
the floor."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastgen.data import Task, build_task
from fastgen.data.tasks.ring import RingTask, ccw_offset, demonstrate, succeeds

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def task() -> RingTask:
    return RingTask(size=64)


def demonstrator(seed: int):
    g = torch.Generator().manual_seed(seed)
    return lambda Z, noise: demonstrate(Z, g).float()


def test_demonstrations_are_not_told_apart_and_worse_samples_are(task):
    """By an unbiased distance, to which samples that are narrower than the data are no nearer."""
    references, noise = task.references("validation")
    Z = references.Z.repeat_interleave(task.SAMPLES, 0).float()
    first, second = (demonstrator(seed)(Z, noise) for seed in (1, 2))
    copies = task.compare(first, second)
    assert not any(found.better or found.worse for found in copies.values())
    noisy = task.compare(first, first + 0.2 * noise)
    assert noisy["energy_ratio"].worse and noisy["failures"].worse
    fans = first.view(-1, task.SAMPLES, 16, 2)
    narrow = (fans.mean(1, keepdim=True) + 0.97 * (fans - fans.mean(1, keepdim=True))).flatten(0, 1)
    assert task.compare(first, narrow)["energy_ratio"].difference > 0


def test_training_data_are_demonstrations_and_a_function_of_size_and_seed(task):
    data = task.train
    assert (
        data.X.shape == (64, 16, 2) and data.Z.shape == (64, 2, 2) and data.X.dtype == torch.float32
    )
    assert bool(succeeds(data.X, data.Z).all())
    assert torch.equal(RingTask(size=64).train.X, data.X)
    assert not torch.equal(RingTask(size=64, seed=1).train.Z, data.Z)


def test_network_inputs_are_normalised_by_one_scale_and_packed(task):
    x, z = task.train.network_inputs()
    assert x.shape == (64, 4, 8) and z.shape == (64, 2, 2)
    # D4 acts irreducibly on the plane: no mean, one scale.
    scale = task.train.x_normalizer.scale
    assert torch.equal(task.train.x_normalizer.mean, torch.zeros(2, dtype=torch.float64))
    assert torch.equal(scale, scale[0, 0] * torch.eye(2, dtype=torch.float64))
    assert float(x.square().mean()) == pytest.approx(1, rel=1e-5)
    assert torch.allclose(x.reshape(64, 16, 2) * scale[0, 0].float(), task.train.X, atol=1e-6)


def test_every_sampler_is_given_the_same_conditions_and_noise(task):
    calls = []

    def spy(Z, noise):
        calls.append((Z, noise))
        return demonstrate(Z, torch.Generator().manual_seed(0)).float()

    first, second = task.evaluate(spy), RingTask(size=10, seed=5).evaluate(spy)
    assert first == second
    assert [Z.shape[0] for Z, _ in calls] == [3200] * 4
    for (Z, noise), (other_Z, other_noise) in zip(calls[:2], calls[2:], strict=True):
        assert torch.equal(Z, other_Z) and torch.equal(noise, other_noise)
    for Z, noise in calls:
        assert Z.dtype == noise.dtype == torch.float32 and noise.shape == (3200, 16, 2)
        assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    offsets = [ccw_offset(Z) for Z, _ in calls[:2]]
    assert any(float((offset - 4).abs().max()) <= 0.5 + 1e-5 for offset in offsets)
    assert any(float((offset - 4).abs().max()) > 2 for offset in offsets)


def test_validation_conditions_are_none_of_the_evaluation_or_training(task):
    seen: dict[bool, set] = {True: set(), False: set()}
    for quick in seen:

        def spy(Z, noise, rows=seen[quick]):
            rows.update(map(tuple, Z.flatten(1).tolist()))
            return demonstrate(Z, torch.Generator().manual_seed(0)).float()

        task.evaluate(spy, quick=quick)
    assert len(seen[True]) == 400 and len(seen[False]) == 400
    trained = set(map(tuple, task.train.Z.flatten(1).tolist()))
    assert not seen[True] & seen[False] and not trained & (seen[True] | seen[False])


def test_demonstrations_score_like_the_floor(task):
    floor = task.floor()
    scores = task.evaluate(demonstrator(0))
    names = ["success", "mode_error", "energy_ratio", "clearance", "spread"]
    assert list(scores) == names + [f"{name}_near" for name in names]
    assert set(floor) == set(scores) | {"mode_error_floor", "mode_error_floor_near"}
    for row in (floor, scores):
        for suffix in ("", "_near"):
            assert row[f"success{suffix}"] == 1
            assert abs(row[f"energy_ratio{suffix}"] - 1) < 0.3
            assert abs(row[f"mode_error{suffix}"] - floor[f"mode_error_floor{suffix}"]) < 0.02
            assert (
                abs(row[f"spread{suffix}"] - 1) < 0.05 and abs(row[f"clearance{suffix}"] - 1) < 0.02
            )
    quick = task.evaluate(demonstrator(1), quick=True)
    assert task.primary in quick and abs(quick[task.primary] - 1) < 0.3


def test_examples_show_ordinary_conditions_and_then_ones_near_opposition(task):
    Z, X = task.examples(6)
    assert Z.shape == (6, 2, 2) and X.shape == (6, 16, 2) and bool(succeeds(X, Z).all())
    assert float((ccw_offset(Z)[3:] - 4).abs().max()) <= 0.5 + 1e-5
    assert torch.equal(task.examples(6)[1], X)


def test_scene_is_the_block_in_its_room(task):
    scene = task.scene()
    assert scene["limits"] == (-1.5, 1.5, -1.5, 1.5) and scene["equal"] is True
    assert sorted(scene["obstacles"][0]) == [(-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)]


def test_build_task_makes_the_ring_with_its_options():
    task = build_task(
        SimpleNamespace(name="ring", size=20, pack=2, seed=3, path=None, symmetry=None)
    )
    assert isinstance(task, Task) and task.name == "ring" and task.primary == "energy_ratio"
    assert task.train.pack == 2 and len(task.train) == 20 and task.train.symmetry["group"] == "D4"
    assert torch.equal(task.train.X, RingTask(size=20, seed=3).train.X)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"name": "rings"},
            "expected one of: ring, modes, two_rings, weave, flights, fashion, file",
        ),
        ({"name": "ring", "path": "x.npz"}, "no data.path for the task ring, got 'x.npz'"),
        ({"name": "flights", "horizon": 8}, "no data.horizon for the task flights"),
        ({"name": "file"}, "expected data.path"),
        ({"name": "ring", "pack": 3}, "divides the 16 waypoints, got 3"),
        ({"name": "ring", "size": 1}, "size to be a whole number >= 2"),
    ],
)
def test_build_task_refuses_what_makes_no_sense(options, words):
    with pytest.raises(ValueError, match=words):
        build_task(SimpleNamespace(**options))


def test_a_sampler_that_answers_in_another_shape_or_with_nan_is_refused(task):
    with pytest.raises(ValueError, match=r"return \(6400, 16, 2\), got \(6400, 4, 8\)"):
        task.evaluate(lambda Z, noise: noise.reshape(-1, 4, 8), quick=True)
    with pytest.raises(ValueError, match="finite samples"):
        task.evaluate(lambda Z, noise: noise * float("nan"), quick=True)


def test_a_symmetry_that_does_not_fit_is_refused():
    own = RingTask.own_symmetry
    for symmetry, words in [
        ({"group": "D4"}, "symmetry with the keys"),
        (
            own | {"out_rep": ["standard", "trivial"]},
            "out_rep of dimension 2, the channels of X, got 3",
        ),
    ]:
        with pytest.raises(ValueError, match=words):
            _ = RingTask(size=4, symmetry=symmetry).train
