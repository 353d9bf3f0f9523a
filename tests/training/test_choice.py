"""Better by more than its noise, else the cheaper one: of averages, of patience, of stages."""

import math

import pytest
import torch

from fastgen._core.seeds import generator_for
from fastgen.comparisons import Comparison, TooFewRows, compare_energy
from fastgen.records.log import read_log, timeless
from fastgen.training.choice import (
    Validation,
    choose,
    compare_samples,
    is_better,
    is_worse,
    validate_by,
    verdict,
)
from fastgen.training.validation import Progress
from support.runs import Counter, follow, kept
from support.toy import Pulled

NAN = math.nan
SAME = Comparison(-0.1, -0.3, 0.1)
BETTER = Comparison(-0.4, -0.6, -0.2)
WORSE = Comparison(0.4, 0.2, 0.6)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator_for(seed, "choice"), dtype=torch.float64)


# ---- The rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compared", "better", "worse"),
    [
        ({"a": BETTER}, True, False),
        ({"a": SAME}, False, False),
        ({"a": WORSE}, False, True),
        ({"a": SAME, "b": BETTER}, True, False),
        ({"a": WORSE, "b": BETTER}, False, True),
        ({"a": BETTER, "b": Comparison(NAN, NAN, NAN)}, False, True),
        ({}, False, False),
    ],
)
def test_better_is_better_in_one_score_and_worse_in_none(compared, better, worse):
    assert is_better(compared) == better and is_worse(compared) == worse


DATA = normal(300, 3, seed=10)


def compare(a: torch.Tensor, b: torch.Tensor) -> dict[str, Comparison]:
    return {"energy_distance": compare_energy(a, b, DATA)}


def student(scale: float, seed: int) -> Validation:
    samples = scale * normal(300, 3, seed=seed)
    return Validation({"energy_distance": float(samples.var())}, samples)


@pytest.mark.parametrize(
    ("compared", "said"),
    [
        ({"a": SAME, "b": SAME}, "not told apart"),
        ({"a": SAME, "b": BETTER}, "better by more than noise"),
        ({"a": SAME, "b": WORSE}, "worse by more than noise"),
        ({"a": BETTER, "b": WORSE}, "better by more than noise in one score and worse in another"),
    ],
)
def test_the_verdict_is_what_the_intervals_say(compared, said):
    assert verdict(compared) == said


def test_copies_of_a_student_are_not_told_apart_and_the_cheaper_one_is_kept():
    """Whatever their scores say, which differ by chance."""
    for seed in range(8):
        stages = {"kd": student(1.2, 2 * seed), "dmd": student(1.2, 2 * seed + 1)}
        choice = choose(stages, "energy_distance", compare)
        assert choice.stage == "kd"
        assert choice.reason.startswith(
            "kept kd: dmd is no better by more than noise, and kd is cheaper (dmd minus kd"
        )
    scores = [stages[name].scores["energy_distance"] for name in ("kd", "dmd")]
    assert scores[0] != scores[1]


def test_a_clearly_better_student_is_kept_and_a_clearly_worse_one_is_not():
    stages = {"kd": student(1.6, 0), "dmd": student(1.1, 1)}
    choice = choose(stages, "energy_distance", compare)
    assert choice.stage == "dmd" and "better than kd by more than noise" in choice.reason
    samples = [stage.samples for stage in stages.values() if stage.samples is not None]
    numbers = compare(*samples)["energy_distance"]
    assert str(numbers) in choice.reason
    other = {"kd": stages["dmd"], "dmd": stages["kd"]}
    choice = choose(other, "energy_distance", compare)
    assert choice.stage == "kd" and "dmd is worse by more than noise" in choice.reason


def test_of_three_stages_each_must_beat_the_one_that_is_kept():
    stages = {"kd": student(1.6, 0), "dmd": student(1.1, 1), "more": student(1.1, 2)}
    choice = choose(stages, "energy_distance", compare)
    assert choice.stage == "dmd" and choice.reason.count("; then kept dmd") == 1
    assert choose({"kd": student(1.0, 0)}, "energy_distance", compare) == ("kd", "")


@pytest.mark.parametrize(
    ("scores", "stage"),
    [([0.5, 0.4], "dmd"), ([0.4, 0.5], "kd"), ([0.4, 0.4], "kd"), ([NAN, 9.0], "dmd"),
     ([9.0, NAN], "kd"), ([NAN, NAN], "kd")],
)  # fmt: skip
def test_a_task_that_compares_nothing_is_decided_by_the_lower_score(scores, stage):
    stages = {
        name: Validation({"energy": value})
        for name, value in zip(("kd", "dmd"), scores, strict=True)
    }
    choice = choose(stages, "energy", None)
    assert choice.stage == stage and "of unknown noise" in choice.reason


def test_a_validation_remembers_what_the_sampler_answered_where_the_task_compares():
    class Plain:
        def evaluate(self, sample, *, quick):
            assert quick
            parts = [sample(None, torch.full((2, 1), float(k))) for k in range(3)]
            return {"energy": float(torch.cat(parts).sum())}

    class Comparing(Plain):
        def compare(self, a, b):
            raise NotImplementedError

    found = validate_by(Comparing(), lambda z, noise: noise + 1)
    assert found.scores == {"energy": 12.0}
    assert found.samples is not None
    assert found.samples.flatten().tolist() == [1, 1, 2, 2, 3, 3]
    assert validate_by(Plain(), lambda z, noise: noise + 1) == ({"energy": 12.0}, None)


# ---- Averages and patience -----------------------------------------------------------------------


def test_a_slow_improvement_costs_patience_until_it_is_more_than_noise_but_is_kept():
    progress = Progress("dmd", "energy")
    progress.add(1, {"energy": 1.0}, compared={})
    progress.add(2, {"energy": 0.9}, compared={"energy": SAME})
    progress.add(3, {"energy": 0.95}, compared={"energy": SAME})
    assert (progress.best, progress.best_step, progress.reference_step) == (0.9, 2, 1)
    assert progress.stale == 2 and progress.out_of_patience(2)
    assert "no better than update 1 by more than noise: 2" in progress.lost_patience(
        {"energy": SAME}
    )
    progress.add(4, {"energy": 0.8}, compared={"energy": BETTER})
    assert (progress.best_step, progress.reference_step, progress.stale) == (4, 4, 0)


def test_an_average_that_is_worse_within_modes_is_not_the_best_however_low_its_score():
    progress = Progress("dmd", "energy")
    progress.add(1, {"energy": 1.0}, compared={})
    progress.add(2, {"energy": 0.5}, compared={"energy": SAME, "within": WORSE})
    assert progress.best_step == 1 and progress.stale == 1
    progress.add(3, {"energy": NAN}, compared={"energy": BETTER})
    assert progress.best_step == 1 and progress.stale == 2


def test_an_average_that_is_better_in_one_score_and_worse_in_another_wins_by_the_lower_score():
    """An early average that one score favours doesn't stand in the way of all later ones."""
    progress = Progress("kd", "energy")
    progress.add(1, {"energy": 3.0}, compared={})
    mixed = {"energy": BETTER, "class_error": WORSE}
    progress.add(2, {"energy": 2.0}, compared=mixed)
    assert (progress.best_step, progress.reference_step, progress.stale) == (2, 2, 0)
    progress.add(3, {"energy": 2.5}, compared=mixed)
    assert (progress.best_step, progress.reference_step, progress.stale) == (2, 2, 1)


def test_the_best_average_gives_way_to_a_lower_score_or_to_one_that_was_compared_with_it():
    """Update 3 is better than 1, the reference, in some score; the best one is 2, and is lower."""
    progress = Progress("kd", "energy")
    progress.add(1, {"energy": 1.0}, compared={})
    progress.add(2, {"energy": 0.5}, compared={"energy": SAME})
    progress.add(3, {"energy": 0.95}, compared={"energy": SAME, "within": BETTER})
    assert (progress.best_step, progress.reference_step, progress.stale) == (2, 3, 0)
    progress.add(4, {"energy": 0.4}, compared={"energy": BETTER})
    assert (progress.best_step, progress.reference_step) == (4, 4)
    progress.add(5, {"energy": 0.45}, compared={"energy": SAME, "within": BETTER})
    assert (progress.best_step, progress.reference_step) == (5, 5)


def by_noise(reference: torch.Tensor, samples: torch.Tensor) -> dict[str, Comparison]:
    """Samples are update numbers; scores differ by more than noise where they do by .15."""
    of_a, of_b = (NOISY[int(x)] for x in (reference, samples))
    return {"energy": Comparison(of_b - of_a, of_b - of_a - 0.15, of_b - of_a + 0.15)}


#         start  1    2    3     4    5    6    7    8
NOISY = [0.50, 0.9, 0.6, 0.55, 0.7, 0.5, 0.6, 0.56, 0.7]


def test_a_run_keeps_its_best_and_counts_its_patience_by_noise(tmp_path):
    """Update 2 is better than 1 by more than noise; 5 is the least of those like it."""
    trainer = follow(tmp_path, NOISY, compare=by_noise)
    progress = trainer.state.progress["dmd"]
    assert (kept(trainer), progress.reference_step, progress.stale) == (5, 2, 6)
    rows = {row["step"]: row.get("compared") for row in read_log(tmp_path)}
    assert rows[0] is None and rows[1] is None
    found = [rows[step] or {} for step in (2, 3)]
    assert found[0]["energy"]["difference"] == pytest.approx(-0.3)
    assert found[1]["energy"]["low"] < 0 < found[1]["energy"]["high"]


@pytest.mark.parametrize("pull_at", [3, 4, 6])
def test_a_killed_run_compares_with_the_same_reference(tmp_path, pull_at):
    whole = follow(tmp_path / "whole", NOISY, compare=by_noise, patience=5)
    assert whole.state.iteration == 7
    with pytest.raises(Pulled):
        follow(tmp_path / "killed", NOISY, compare=by_noise, patience=5, pull_at=pull_at)
    again = follow(tmp_path / "killed", NOISY, compare=by_noise, patience=5, resume=True)
    assert again.state.progress == whole.state.progress and kept(again) == kept(whole)
    whole_rows, killed_rows = (read_log(tmp_path / name) for name in ("whole", "killed"))
    assert [*map(timeless, killed_rows)] == [*map(timeless, whole_rows)]


def test_each_stage_has_a_reference_of_its_own(tmp_path):
    """And none before its student has been trained."""
    asked = []

    def spy(reference, samples):
        asked.append((int(reference), int(samples)))
        return by_noise(reference, samples)

    stages = [Counter("kd", 3), Counter("dmd", 4, warmup=1)]
    follow(tmp_path, NOISY, stages=stages, compare=spy)
    assert asked == [(1, 2), (2, 3), (2, 3), (2, 4)]


def too_few(reference: torch.Tensor, samples: torch.Tensor) -> dict[str, Comparison]:
    raise TooFewRows("expected at least 3 rows, got 1")


def test_of_too_few_rows_the_lower_score_decides_and_no_training_ends(tmp_path):
    trainer = follow(tmp_path, NOISY, compare=too_few, patience=3)
    plain = follow(tmp_path / "plain", NOISY, compare=None, patience=3)
    assert kept(trainer) == kept(plain) == 5
    progress = trainer.state.progress["dmd"]
    assert progress == plain.state.progress["dmd"] and progress.reference_step is None
    with pytest.raises(Pulled):
        follow(tmp_path / "killed", NOISY, compare=too_few, patience=3, pull_at=3)
    again = follow(tmp_path / "killed", NOISY, compare=too_few, patience=3, resume=True)
    assert again.state.progress["dmd"] == progress and kept(again) == 5
    stages = {"kd": student(1.1, 0), "dmd": student(1.6, 1)}
    choice = choose(stages, "energy_distance", too_few)
    assert choice.stage == "kd" and "of unknown noise" in choice.reason
    with pytest.raises(ValueError, match="other shapes"):
        compare_samples(broken, torch.zeros(2), torch.zeros(2))


def broken(reference: torch.Tensor, samples: torch.Tensor) -> dict[str, Comparison]:
    raise ValueError("other shapes")


def test_nothing_is_compared_before_there_is_a_reference():
    samples = torch.zeros(2)
    assert compare_samples(None, samples, samples) is None
    assert compare_samples(compare, samples, None) is None
    assert compare_samples(compare, None, samples) == {}
