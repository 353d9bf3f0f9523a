"""Eight Gaussians: the law is exactly D8-symmetric, distances to it are exact, and each score sees
its own failure."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from escnn.group import dihedral_group

from fastgen.data import Task, build_task
from fastgen.data.tasks import modes
from fastgen.data.tasks.modes import ModesTask, exact_energy_distance, score
from fastgen.metrics import energy_distance

F64 = torch.float64
REP = dihedral_group(8).irrep(1, 1)
D8 = [torch.from_numpy(REP(element)) for element in REP.group.elements]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def task() -> ModesTask:
    return ModesTask(size=500)


@pytest.fixture(scope="module")
def held_out() -> torch.Tensor:
    return modes.draw(2048, generator(1))[:, 0]


def fresh(seed: int, n: int = 2048) -> torch.Tensor:
    return modes.draw(n, generator(seed))[:, 0]


def nearest(x: torch.Tensor) -> torch.Tensor:
    means = modes.mode_means()
    return means[torch.cdist(x, means).argmin(1)]


def test_two_draws_of_the_law_are_not_told_apart_and_a_blurred_one_is(task):
    def samples(seed: int, wide: float = 1.0) -> torch.Tensor:
        x = fresh(seed)
        return (nearest(x) + wide * (x - nearest(x)))[:, None].float()

    copies = task.compare(samples(1), samples(2))
    assert not any(found.better or found.worse for found in copies.values())
    assert task.compare(samples(1), samples(1, 1.5))["outside"].worse
    assert task.compare(samples(1, 1.5), samples(2))["outside"].better
    assert task.compare(samples(1), samples(1, 0.6))["not covered"].worse


def test_samples_that_cover_more_are_no_better_by_that_alone(task):
    few = fresh(1, 512).repeat(4, 1)[:, None]
    covering = task.compare(few, fresh(2)[:, None])
    assert covering["not covered"].high < 0 and not covering["not covered"].better


# --- the law --------------------------------------------------------------------------------------


def test_the_means_are_one_orbit_of_d8():
    means, orbit = modes.mode_means(), torch.stack([g @ modes.mode_means()[0] for g in D8])
    assert len(D8) == 16
    nearest_mean = torch.cdist(orbit, means)
    assert nearest_mean.amin(1).max() < 1e-12 and nearest_mean.amin(0).max() < 1e-12
    assert (means.norm(dim=1) - 1.4).abs().max() < 1e-12


@pytest.mark.parametrize("matrix", D8)
def test_density_is_exactly_d8_symmetric(matrix):
    x = 2 * torch.randn(200, 1, 2, generator=generator(), dtype=F64)
    law = modes.modes_mixture()
    assert (law.log_prob(x @ matrix.T) - law.log_prob(x)).abs().max() < 1e-9


def test_points_have_the_stated_moments():
    x = fresh(3, 200_000)
    offset = x - nearest(x)
    assert offset.std(0).tolist() == pytest.approx([0.1, 0.1], rel=0.01)
    assert x.mean(0).abs().max() < 0.01


# --- the distance to the law ----------------------------------------------------------------------


@pytest.mark.parametrize("distance", [0.0, 0.03, 0.1, 1.0, 3.0])
def test_mean_distance_to_a_gaussian_is_that_of_rices_law(distance):
    y = 0.1 * torch.randn(400_000, 2, generator=generator(4), dtype=F64)
    y[:, 0] += distance
    drawn = y.norm(dim=1)
    exact = float(modes._mean_distance(torch.tensor(distance, dtype=F64), 0.1))
    assert abs(exact - float(drawn.mean())) < 4 * float(drawn.std()) / math.sqrt(len(y))


def test_energy_distance_is_the_expectation_of_the_one_between_samples():
    x = 1.05 * fresh(5, 300)
    drawn = torch.stack(
        [energy_distance(x, fresh(seed, 300), unbiased=True) for seed in range(100, 200)]
    )
    assert abs(float(drawn.mean()) - exact_energy_distance(x)) < 4 * float(drawn.std()) / math.sqrt(
        len(drawn)
    )


def test_energy_distance_of_the_law_itself_is_unbiased_and_quieter_than_between_samples():
    exact = torch.tensor([exact_energy_distance(fresh(seed, 500)) for seed in range(200, 260)])
    assert abs(float(exact.mean())) < 4 * float(exact.std()) / math.sqrt(60)
    between = torch.stack(
        [
            energy_distance(fresh(s, 500), fresh(s + 500, 500), unbiased=True)
            for s in range(200, 230)
        ]
    )
    assert float(exact.std()) < 0.8 * float(between.std())


def test_energy_of_a_lost_mode_is_that_of_samples_without_it():
    x = fresh(6, 8000)
    kept = x[(x - modes.mode_means()[0]).norm(dim=1) > 0.6]
    assert modes.lost_mode_energy() == pytest.approx(exact_energy_distance(kept), rel=0.05)


# --- scores ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("matrix", D8)
def test_scores_do_not_change_when_samples_and_held_out_points_are_moved(matrix, held_out):
    x = fresh(7) + 0.03 * torch.randn(2048, 2, generator=generator(), dtype=F64)
    before, after = score(x, held_out), score(x @ matrix.T, held_out @ matrix.T)
    assert after == pytest.approx(before, abs=1e-9)


@pytest.mark.slow
def test_the_law_scores_like_its_floor(held_out):
    rows = [score(fresh(seed), held_out) for seed in range(10, 16)]
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    assert abs(mean["energy_distance"]) < 5e-4
    assert abs(mean["success"] - (1 - math.exp(-4.5))) < 0.004
    assert abs(mean["coverage"] - (1 - 2**-5)) < 0.012
    assert abs(mean["spread"] - 1) < 0.03
    assert abs(mean["mode_error"] - modes.share_error_floor(2048, generator())) < 0.004
    assert mean["mismatch"] == pytest.approx(
        1 - mean["coverage"] + mean["energy_distance"] / 8 / 0.03285, abs=1e-3
    )


@pytest.mark.slow
def test_each_failure_shows_in_its_score(held_out):
    x = fresh(8)
    good, centre = score(x, held_out), nearest(x)
    lost = x[(x - modes.mode_means()[3]).norm(dim=1) > 0.6]
    dropped = score(lost[torch.arange(2048) % len(lost)], held_out)
    assert (
        dropped["mode_error"] == pytest.approx(1 / 8)
        and dropped["coverage"] < good["coverage"] - 0.1
    )
    assert dropped["energy_distance"] > 0.03 and dropped["mismatch"] > good["mismatch"] + 0.2
    assert dropped["spread"] == pytest.approx(1, abs=0.05) and dropped["success"] > 0.98
    wide, narrow = (score(centre + factor * (x - centre), held_out) for factor in (1.3, 0.6))
    assert (
        wide["spread"] == pytest.approx(1.3 * good["spread"])
        and wide["success"] < good["success"] - 0.03
    )
    assert (
        narrow["spread"] == pytest.approx(0.6 * good["spread"])
        and narrow["coverage"] < good["coverage"] - 0.1
    )
    assert min(wide["mismatch"], narrow["mismatch"]) > good["mismatch"] + 0.01
    bridging = x.clone()
    bridging[:100] = 0.5 * (bridging[:100] + bridging[100:200])
    bridged = score(bridging, held_out)
    assert (
        bridged["success"] < good["success"] - 0.03
        and abs(bridged["spread"] - good["spread"]) < 0.08
    )
    far = x.clone()
    far[:40] *= 10
    assert score(far, held_out)["mismatch"] > good["mismatch"] + 0.01


def test_wrong_samples_are_refused(held_out):
    for wrong in (torch.zeros(5, 3), torch.zeros(1, 2), torch.zeros(4, 1, 2)):
        with pytest.raises(ValueError, match=r"samples of shape \(N >= 2, 2\)"):
            exact_energy_distance(wrong)


# --- the task -------------------------------------------------------------------------------------


def test_training_data_are_points_of_the_law_and_a_function_of_size_and_seed(task):
    data = task.train
    assert data.X.shape == (500, 1, 2) and data.Z.shape == (500, 1, 1) and bool((data.Z == 1).all())
    assert torch.equal(ModesTask(size=500).train.X, data.X)
    assert not torch.equal(ModesTask(size=500, seed=1).train.X, data.X)
    x, z = data.network_inputs()
    assert float(x.square().mean()) == pytest.approx(1, rel=1e-5) and bool((z == 1).all())
    # D8 acts irreducibly on the plane: no mean, one scale.
    scale = data.x_normalizer.scale
    assert torch.equal(scale, scale[0, 0] * torch.eye(2, dtype=F64)) and not bool(
        data.x_normalizer.mean.any()
    )
    assert ModesTask(size=500, symmetry=None).train.symmetry["group"] == "D8"


def test_every_sampler_is_given_the_same_noise_and_the_scores_are_repeatable(task):
    calls = []

    def spy(Z, noise):
        calls.append((Z, noise))
        return 1.4 * torch.nn.functional.normalize(noise, dim=-1)

    first, second = (
        task.evaluate(spy, quick=True),
        ModesTask(size=10, seed=5).evaluate(spy, quick=True),
    )
    assert first == second and task.primary in first
    assert all(Z.shape == (2048, 1, 1) and bool((Z == 1).all()) for Z, _ in calls)
    assert torch.equal(calls[0][1], calls[1][1]) and calls[0][1].shape == (2048, 1, 2)


def test_floor_is_the_laws_own_scores_with_their_deviations(task, monkeypatch):
    monkeypatch.setattr(ModesTask, "SAMPLES", 1024)
    floor = task.floor()
    names = {"mismatch", "energy_distance", "success", "coverage", "spread", "mode_error"}
    assert set(floor) == names | {f"{name}_sd" for name in names} | {
        "success_floor",
        "mode_error_floor",
    }
    assert abs(floor["energy_distance"]) < 4 * floor["energy_distance_sd"] / math.sqrt(8)
    assert 0 < floor["energy_distance_sd"] < 2e-3
    assert floor["mode_error"] == pytest.approx(floor["mode_error_floor"], abs=0.006)
    scores = task.evaluate(lambda Z, noise: modes.draw(len(noise), generator(11)).float())
    for name in names:
        assert abs(scores[name] - floor[name]) < 6 * floor[f"{name}_sd"] + 1e-4


def test_build_task_and_what_a_picture_needs():
    task = build_task(SimpleNamespace(name="modes", size=30, seed=2))
    assert isinstance(task, Task) and task.name == "modes" and len(task.train) == 30
    Z, X = task.examples(7)
    assert Z.shape == (7, 1, 1) and X.shape == (7, 1, 2) and torch.equal(task.examples(7)[1], X)
    assert task.scene()["kind"] == "points" and task.scene()["samples"] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pack": 2}, "divides the 1 waypoints, got 2"),
        ({"size": 1}, "size to be a whole number >= 2 of points"),
        ({"path": "x.npz"}, "no data.path for the task modes"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        build_task(SimpleNamespace(name="modes", **options))


def test_a_sampler_that_answers_in_another_shape_or_with_nan_is_refused(task):
    with pytest.raises(ValueError, match=r"return \(2048, 1, 2\), got \(2048, 2\)"):
        task.evaluate(lambda Z, noise: noise[:, 0], quick=True)
    with pytest.raises(ValueError, match="finite samples"):
        task.evaluate(lambda Z, noise: noise * float("nan"), quick=True)
