"""Samples of any shape are read as the file holds them, split by row, and score best by the sampler
that knows the law."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastgen.data import Task, build_task
from fastgen.data.held_out import HeldOutTask
from fastgen.data.samples import SampleData, SampleTask
from fastgen.metrics import energy_distance
from fastgen.training.choice import compare_samples, is_better


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def file_task(path, **options) -> Task:
    return build_task(SimpleNamespace(name="file", path=str(path), **options))


# ---- Files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (5, 3), (4, 6, 6), (2, 3, 4, 5)])
@pytest.mark.parametrize("condition", ["none", "labels", "tokens", "vectors", "images"])
def test_a_file_of_any_shape_becomes_a_task(tmp_path, suffix, shape, condition):
    X = normal(40, *shape).double()
    Z = {
        "none": None,
        "labels": torch.arange(40) % 5,
        "tokens": torch.arange(80).view(40, 2).int(),
        "vectors": normal(40, 8, seed=1),
        "images": normal(40, 1, 3, 3, seed=1),
    }[condition]
    arrays = {"X": X} | ({} if Z is None else {"Z": Z})
    path = tmp_path / f"mine.{suffix}"
    save_file(arrays, path) if suffix == "safetensors" else np.savez(
        path, **{k: v.numpy() for k, v in arrays.items()}
    )
    task = file_task(path)
    assert isinstance(task, SampleTask) and isinstance(task, Task) and task.name == "file"
    x0, cond = task.train.network_inputs()
    rows = task.rows["train"]
    assert (
        torch.equal(x0, X[rows].float())
        and x0.dtype == torch.float32
        and len(task.train) == len(rows)
    )
    if Z is None:
        assert cond is None
    else:
        assert torch.equal(cond.double(), Z[rows].double())
        assert cond.dtype == (torch.float32 if Z.is_floating_point() else torch.int64)
    seen = []

    def sample(z, noise):
        seen.append(z)
        return noise

    scores = task.evaluate(sample, quick=True)
    assert task.primary in scores and all(map(math.isfinite, scores.values()))
    assert (seen[0] is None) == (Z is None) and (
        Z is None or len(seen[0]) == 6 * len(task.rows["validation"])
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_three_axes_of_both_are_trajectories_as_ever(tmp_path, dtype):
    X, Z = normal(40, 4, 2), (10 * normal(40, 2, 2, seed=1)).to(dtype)
    np.savez(tmp_path / "mine.npz", X=X.numpy(), Z=Z.numpy())
    task = file_task(tmp_path / "mine.npz", pack=2)
    assert (
        isinstance(task, HeldOutTask)
        and task.train.pack == 2
        and task.train.Z.dtype == torch.float32
    )
    assert float(task.train.network_inputs()[0].mean().abs()) < 1e-6  # normalised


GOOD = {"X": normal(40, 3, 4, 4).numpy(), "Z": np.arange(40)}


def with_nan(*rows: int) -> np.ndarray:
    X = GOOD["X"].copy()
    X[list(rows), 0, 0, 0] = np.nan
    return X


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        (
            GOOD | {"X": with_nan(3, 7)},
            {},
            "finite numbers in X, got NaN or infinity in 2 rows: 3, 7",
        ),
        (
            GOOD | {"Z": np.full(40, np.nan)},
            {},
            "finite numbers in Z, got NaN or infinity in 40 rows",
        ),
        (GOOD | {"Z": np.arange(39)}, {}, "as many rows in Z as in X, got 39 and 40"),
        (GOOD | {"Z": np.array(3)}, {}, "as many rows in Z as in X, got 1 and 40"),
        (
            {"X": np.zeros(40)},
            {},
            r"X of shape \(N, \*shape\) with at least one number, got \(40,\)",
        ),
        ({"X": np.zeros((0, 3))}, {}, r"at least one number, got \(0, 3\)"),
        (
            {"X": GOOD["X"], "z": np.arange(40)},
            {},
            r"expected X alone or with Z in .*, got \['X', 'z'\]",
        ),
        ({"x": GOOD["X"]}, {}, r"expected X and Z, or actions, .* got \['x'\]"),
        ({"X": GOOD["X"][:2]}, {}, "at least 3 episodes"),
        ({"X": GOOD["X"][:9]}, {}, "at least 2 validation rows, got 1 of 9"),
        (
            GOOD,
            {"pack": 2},
            r"no data.pack but for trajectories, .* got 2 for X \(40, 3, 4, 4\) and Z \(40,\)",
        ),
        (GOOD, {"normalize": True}, "no data.normalize but for trajectories, .* got True"),
        (GOOD, {"horizon": 4}, "no data.horizon but for trajectories"),
        (GOOD, {"stride": 2}, "no data.stride but for trajectories"),
        (
            {"X": GOOD["X"]},
            {"symmetry": {"group": "C2"}},
            r"no data.symmetry .* for X \(40, 3, 4, 4\) alone",
        ),
    ],
)
def test_files_and_options_that_do_not_go_together_are_one_line(tmp_path, arrays, options, words):
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(ValueError, match=words) as caught:
        file_task(tmp_path / "mine.npz", **options)
    assert "\n" not in str(caught.value)


def test_options_that_change_nothing_are_allowed(tmp_path):
    np.savez(tmp_path / "mine.npz", **GOOD)
    task = file_task(
        tmp_path / "mine.npz", pack=1, normalize=False, stride=1, seed=3, symmetry=None
    )
    assert torch.equal(task.rows["test"], file_task(tmp_path / "mine.npz", seed=3).rows["test"])
    assert not torch.equal(task.rows["test"], file_task(tmp_path / "mine.npz", seed=4).rows["test"])


def test_yes_or_no_labels_are_refused(tmp_path):
    np.savez(tmp_path / "mine.npz", X=GOOD["X"], Z=np.ones(40, bool))
    with pytest.raises(TypeError, match="expected Z to hold numbers, got torch.bool"):
        file_task(tmp_path / "mine.npz")


# ---- The container -------------------------------------------------------------------------------


def test_conditions_of_several_tensors_are_split_together():
    Z = {"label": torch.arange(60), "map": (torch.arange(60.0)[:, None, None].expand(60, 2, 2),)}
    task = SampleTask("mine", torch.arange(60.0)[:, None], Z)
    for part in ("train", "validation", "test"):
        X, z = task.split(part)
        assert torch.equal(X[:, 0].long(), z["label"]) and torch.equal(
            z["map"][0][:, 1, 1], X[:, 0]
        )
    assert sum(len(rows) for rows in task.rows.values()) == 60
    seen = []
    task.evaluate(lambda z, noise: seen.append(z) or noise, quick=True)
    assert torch.equal(seen[0]["label"].float(), seen[0]["map"][0][:, 0, 0])
    assert torch.equal(seen[0]["label"], task.split("validation")[1]["label"].repeat_interleave(6))


@pytest.mark.parametrize(
    ("parts", "kind", "words"),
    [
        (
            {"X": torch.zeros(5, 2, dtype=torch.float16)},
            TypeError,
            "X in float32 or float64, got torch.float16",
        ),
        ({"X": torch.zeros(5, 2).long()}, TypeError, "floating-point Tensor, got torch.int64"),
        (
            {"X": torch.zeros(5, 2), "Z": {"a": torch.zeros(4)}},
            ValueError,
            "as many rows in Z as in X, got 4 and 5",
        ),
        ({"X": torch.zeros(5, 2), "Z": [1, 2, 3, 4, 5]}, TypeError, "labels are an integer Tensor"),
    ],
)
def test_sample_data_checks_its_parts(parts, kind, words):
    with pytest.raises(kind, match=words):
        SampleData(**parts)


# ---- Scores --------------------------------------------------------------------------------------


def test_without_a_condition_the_true_law_is_at_no_distance_and_others_are():
    task = SampleTask("free", 2.0 + 3.0 * normal(5000, 4))
    true = task.evaluate(lambda z, noise: 2.0 + 3.0 * noise)
    assert task.primary == "energy_distance" and set(true) == {
        "energy_distance",
        "mean_error",
        "std_ratio",
        "outside",
        "missed",
    }
    assert (
        abs(true["energy_distance"]) < 5e-3
        and true["mean_error"] < 0.06
        and abs(true["std_ratio"] - 1) < 0.05
    )
    assert set(task.floor()) == set(true) and abs(task.floor()["energy_distance"]) < 5e-3
    for name, sampler in {
        "narrow": lambda z, n: 2.0 + n,
        "shifted": lambda z, n: 3.5 + 3.0 * n,
    }.items():
        assert task.evaluate(sampler)["energy_distance"] > 0.05, name
    assert task.evaluate(lambda z, n: 2.0 + n)["std_ratio"] == pytest.approx(1 / 3, abs=0.03)
    # |shift| / (root of the total variance): 1.5 * 2 / (3 * 2).
    assert task.evaluate(lambda z, n: 3.5 + 3.0 * n)["mean_error"] == pytest.approx(0.5, abs=0.05)


def test_an_energy_distance_is_free_of_units():
    X = normal(400, 3, 2, 2)
    scores = [
        SampleTask("a", c * X).evaluate(lambda z, noise, c=c: c * noise.abs()) for c in (1.0, 100.0)
    ]
    assert scores[0]["energy_distance"] == pytest.approx(scores[1]["energy_distance"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["labels", "vectors"])
def test_with_a_condition_the_true_law_scores_best(condition):
    label = torch.randint(3, (4000,), generator=torch.Generator().manual_seed(5))
    Z = label if condition == "labels" else torch.nn.functional.one_hot(label, 3).float()

    def law(z, noise):
        z = z if z.ndim == 1 else z.argmax(1)
        return noise * 0.5 + 2.0 * z.float()[:, None, None, None]

    task = SampleTask("given", law(Z, normal(4000, 3, 2, 2, seed=1)), Z)
    true = task.evaluate(law)
    assert (
        task.primary == "energy_distance"
        and set(true) == {"energy_score", "energy_distance", "outside", "missed"}
        and task.floor() == {"outside": 0.01, "missed": 0.01}
    )
    assert abs(true["energy_distance"]) < 5e-3
    wrong = {
        "narrow": lambda z, noise: law(z, 0.3 * noise),
        "wide": lambda z, noise: law(z, 2.0 * noise),
        "of other conditions": lambda z, noise: law(z.roll(600, 0), noise),
    }
    for name, sampler in wrong.items():
        scores = task.evaluate(sampler)
        assert scores["energy_score"] > 1.03 * true["energy_score"], name
        assert scores["energy_distance"] > 0.01, name


def narrow_modes(n: int, seed: int) -> torch.Tensor:
    """Nine narrow modes in twelve dimensions."""
    means = normal(9, 12, seed=77)
    mode = torch.randint(9, (n,), generator=torch.Generator().manual_seed(seed))
    return means[mode] + 0.05 * normal(n, 12, seed=seed)


def test_students_that_differ_within_modes_alone_are_told_apart():
    task = SampleTask("modes", narrow_modes(2600, 1))
    fresh = narrow_modes(256, 2)
    means = normal(9, 12, seed=77)
    own = means[torch.cdist(fresh, means).argmin(1)]
    blurred = own + 1.7 * (fresh - own)
    found = task.compare(blurred, fresh)
    assert found["outside"].better and not found["energy_distance"].better
    assert task.compare(fresh, own + 0.5 * (fresh - own))["missed"].worse
    copies = task.compare(fresh, narrow_modes(256, 3))
    assert not any(score.better or score.worse for score in copies.values())


def test_equal_students_are_seldom_called_better():
    """Of one law, which is narrower than the data's or theirs, by samples of other seeds."""
    task = SampleTask("plane", normal(2600, 2))
    for scale in (0.7, 1.0):
        told = 0
        for seed in range(40):
            a, b = (scale * normal(256, 2, seed=s) for s in (2 * seed + 1, 2 * seed + 2))
            told += is_better(task.compare(a, b))
        assert told <= 4


def test_ten_episodes_and_two_rows_end_no_comparison():
    episodes = torch.arange(600) // 60
    task = SampleTask("few", normal(600, 2), episodes=episodes)
    rows = len(task.rows["validation"])
    first = normal(rows, 2, seed=1)
    assert task.compare(3 * first, first)["energy_distance"].better
    tiny = SampleTask("tiny", normal(20, 2), normal(20, 1, seed=1))
    samples = normal(12, 2, seed=2)
    assert len(tiny.rows["validation"]) == 2
    assert compare_samples(tiny.compare, samples, 2 * samples) is None


def test_a_student_that_ignores_labels_is_told_from_one_that_knows_them():
    label = torch.arange(3000) % 3
    task = SampleTask("given", 0.5 * normal(3000, 4) + label[:, None], label)
    _, Z = task.split("validation")
    z = Z.repeat_interleave(6)
    right, again = (0.5 * normal(len(z), 4, seed=seed) + z[:, None] for seed in (1, 2))
    shuffled = 0.5 * normal(len(z), 4, seed=1) + z.roll(100)[:, None]
    worse = task.compare(right, shuffled)
    assert worse["energy_distance"].worse and worse["outside"].worse
    assert not any(score.better or score.worse for score in task.compare(right, again).values())


def test_the_distance_is_that_of_the_metrics():
    X, Z = normal(90, 2, 3), torch.arange(90)
    task = SampleTask("a", X.double().float(), Z)
    test, _ = task.split("test")
    noise = []
    got = task.evaluate(lambda z, n: noise.append(n) or n)["energy_distance"]
    unit = task.train.X.double().sub(task.train.X.double().mean(0)).square().mean().sqrt()
    fans = noise[0].view(len(test), 6, -1).double() / unit
    one = [
        energy_distance(fans[:, k], test.flatten(1) / unit, unbiased=True, paired=True)
        for k in range(6)
    ]
    assert got == pytest.approx(float(torch.stack(one).mean()), abs=1e-5)


def test_evaluation_is_bounded_and_the_same_for_every_sampler():
    seen = []

    def spy(z, noise):
        seen.append(noise)
        return noise

    task = SampleTask("a", normal(6000, 2))
    assert task.evaluate(spy) == task.evaluate(spy) and torch.equal(seen[0], seen[1])
    task.evaluate(spy, quick=True)
    assert [len(noise) for noise in seen] == [1000, 1000, 256] and not torch.equal(
        seen[0][:256], seen[2]
    )
    large = SampleTask("b", normal(700, 3, 50, 50))  # 7500 numbers: 139 of them are a million
    assert len(large.rows["test"]) == 139 and len(large.rows["validation"]) == 70
    huge = SampleTask("c", torch.zeros(1, 1).expand(700, 2**16))
    assert len(huge.rows["test"]) == 64


def test_answers_in_another_shape_or_with_nan_are_refused():
    task = SampleTask("a", normal(60, 2))
    with pytest.raises(ValueError, match="expected sample.Z, noise. to return"):
        task.evaluate(lambda z, noise: noise[:, :1])
    with pytest.raises(ValueError, match="finite samples"):
        task.evaluate(lambda z, noise: noise / 0)


# ---- Pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "labelled", "kind", "examples", "each"),
    [
        ((2,), False, "points", 120, 1),
        ((2,), True, "points", 120, 1),
        ((5,), False, "values", 120, 1),
        ((2, 2), True, "values", 120, 1),
        ((3, 8, 8), True, "images", 6, 6),
        ((1, 8, 8), False, "images", 36, 1),
        ((4, 8, 8), False, "images", 36, 1),
        ((5, 8, 8), False, "values", 120, 1),
    ],
)
def test_the_scene_says_how_to_draw_them(shape, labelled, kind, examples, each):
    task = SampleTask("a", normal(600, *shape), torch.arange(600) if labelled else None)
    scene = task.scene()
    assert (scene["kind"], scene["samples"]) == (kind, each)
    Z, X = task.examples()
    assert X.shape == (examples, *shape) and (Z is None) == (not labelled)
    Z, X = task.examples(4)
    assert X.shape == (4, *shape) and (Z is None or len(Z) == 4)
