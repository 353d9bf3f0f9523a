"""What is said of a stage's validations: the best, patience, and warnings that fire on a collapse
and only then."""

from __future__ import annotations

import json
import math
import re

import pytest

from fastgen._core.json_files import plain_json
from fastgen.methods.registry import METHODS
from fastgen.training.validation import REMEDY, Progress, teacher_note

NAN = float("nan")
REMEDIES = {method.stage: method.remedy for method in METHODS.values()}


def fed(
    rows: list[dict[str, float]],
    *,
    stage: str = "dmd",
    primary: str = "energy_ratio",
    every: int = 100,
):
    """(progress, all warnings) after validations at updates 0, `every`, ...; the first is the
    start."""
    progress = Progress(stage, primary, remedy=REMEDIES.get(stage, REMEDY))
    said = []
    for k, scores in enumerate(rows):
        said += progress.add(k * every, scores, trained=k > 0)
    return progress, said


def test_the_least_score_of_a_trained_network_is_the_best():
    progress, _ = fed([{"energy_ratio": value} for value in (0.9, 1.3, 1.1, 1.2, 1.1)])
    assert (progress.best, progress.best_step, progress.stale) == (1.1, 200, 2)
    assert progress.start == {"energy_ratio": 0.9}


def test_what_is_no_number_never_wins_and_costs_patience():
    progress, said = fed([{"energy_ratio": value} for value in (NAN, NAN, math.inf)])
    assert progress.best_step is None and progress.stale == 2 and said == []
    assert progress.out_of_patience(2) and "never was a number" in progress.lost_patience()
    progress.add(300, {"energy_ratio": 5.0})
    progress.add(400, {"energy_ratio": NAN})
    assert (progress.best, progress.best_step, progress.stale) == (5.0, 300, 1)
    progress.add(500, {"other": 1.0})
    assert progress.stale == 2


def test_patience_counts_validations_in_a_row_without_improvement_of_a_trained_network_alone():
    progress = Progress("dmd", "energy")
    for step in (0, 10, 20):
        progress.add(step, {"energy": 1.0}, trained=False)
    assert progress.best_step is None and not progress.out_of_patience(1)
    progress.add(30, {"energy": 2.0})
    progress.add(40, {"energy": 2.0})
    assert (
        progress.out_of_patience(1)
        and not progress.out_of_patience(2)
        and not progress.out_of_patience(None)
    )
    progress.add(50, {"energy": 1.9})
    assert not progress.out_of_patience(1)


def test_a_checkpoint_holds_it_all():
    rows = [
        {"energy_ratio": 1.0, "spread": 1.06, "mode_error": NAN},
        {"energy_ratio": 1.5, "spread": 0.7},
    ]
    progress, said = fed(rows)
    assert len(said) == 2
    again = Progress(**json.loads(json.dumps(plain_json(progress.to_json(), "progress"))))
    assert again == progress
    assert again.add(200, rows[1]) == []  # each cause once


def test_a_collapse_is_said_in_plain_words_once():
    rows = [{"energy_ratio": 1.05, "spread": s, "mode_error": 0.02} for s in (1.06, 1.0, 0.71, 0.5)]
    progress, said = fed(rows)
    assert said == [
        "dmd update 200: the spread within modes fell from 1.06 (update 0) to 0.71: the samples "
        "are collapsing; stop earlier, lower train.student_optimizer.lr, or raise "
        "dmd.fake_steps_per_student_step"
    ]
    assert list(progress.warnings) == ["spread fell"]


def test_a_steady_stage_says_nothing():
    odd = [k % 2 for k in range(20)]
    rows = [
        {"energy_ratio": 1.05 + 0.05 * k, "spread": 0.9 + 0.2 * k, "mode_error": 0.02 + 0.01 * k}
        for k in odd
    ]
    assert fed(rows)[1] == []


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"spread": 1.0}, {"spread": 1.3}, "rose from 1.00 .* to 1.30: the samples are blurring"),
        ({"std_ratio": 1.0}, {"std_ratio": 0.75}, "the spread fell from 1.00"),
        (
            {"mode_error": 0.02},
            {"mode_error": 0.06},
            "mode error rose from 0.020 .* to 0.060: modes are being lost",
        ),
        ({"energy_ratio": 1.0}, {"energy_ratio": 1.11}, "energy_ratio got worse .* 1 .* to 1.11"),
    ],
)
def test_each_cause_has_its_words(before, after, words):
    progress, said = fed([before, after])
    assert len(said) == 1
    assert re.search(words, said[0]) and said[0].startswith("dmd update 100: ")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            {"spread": 0.1},
            {"spread": 1.2},
        ),  # a teacher in one call has no spread: gaining it is what KD is for
        ({"spread": 1.5}, {"spread": 1.0}),  # towards the data's
        ({"spread": 0.7}, {"spread": 1.2}),
        ({"mode_error": 0.3}, {"mode_error": 0.02}),
        ({"energy_ratio": 9.0}, {"energy_ratio": 1.0}),
        ({"energy_ratio": 1.0}, {"energy_ratio": 1.09}),
        ({"energy_ratio": NAN}, {"energy_ratio": 3.0}),
        ({}, {"spread": 1.0, "mode_error": 0.5, "energy_ratio": 2.0}),
    ],
)
def test_what_gets_better_is_no_cause(before, after):
    assert fed([before, after])[1] == []


def test_a_spread_gained_in_the_stage_can_be_lost_in_it():
    _, said = fed([{"spread": s} for s in (0.1, 0.9, 0.95, 0.6)], stage="kd")
    assert (
        len(said) == 1
        and "fell from 0.90 (update 100) to 0.60" in said[0]
        and "train.kd_optimizer.lr" in said[0]
    )


def test_an_energy_distance_about_zero_is_noise():
    rows = [{"energy_distance": value} for value in (0.001, 0.004, -0.002, 0.009)]
    assert fed(rows, primary="energy_distance")[1] == []
    _, said = fed([*rows, {"energy_distance": 0.03}], primary="energy_distance")
    assert len(said) == 1


def test_an_unknown_stage_has_a_remedy_too():
    _, said = fed([{"energy_ratio": 1.0}, {"energy_ratio": 2.0}], stage="mine")
    assert said[0].endswith("stop earlier, or lower the learning rate")


def test_a_blind_discriminator_is_warned_of_once():
    progress = Progress("dmd", "energy")
    assert (
        progress.note_diagnostics(10, {"gap": [0.1]})
        == []
        == progress.note_diagnostics(10, {"gan_accuracy": [0.5, 0.7]})
    )
    (text,) = progress.note_diagnostics(10, {"gan_accuracy": [0.5, 0.52]})
    assert "right in 52% of cases" in text and "dmd.gan_features=sample" in text
    assert progress.note_diagnostics(20, {"gan_accuracy": [0.5, 0.5]}) == []


def test_a_teacher_far_from_the_data_is_said_to_be_one():
    rows = {"100": {"energy": 0.4}, "ab2-8": {"energy": 0.3}, "1": {"energy": float("nan")}}
    note = teacher_note(rows, {"energy": 0.1}, "energy")
    assert note is not None and "energy 0.3 at its best (ab2-8), 0.1 for fresh data" in note
    assert teacher_note(rows, {"energy": 0.29}, "energy") is None
    # Nothing to compare with: no score of fresh data, or one that is no measure of size.
    assert (
        teacher_note(rows, {}, "energy") is None
        and teacher_note(rows, {"energy": -0.1}, "energy") is None
    )


def test_a_teacher_that_is_wrong_within_modes_is_weak_whatever_its_energy_distance():
    floor = {"energy": 0.0, "outside": 0.01, "missed": 0.01}
    rows = {
        "100": {"energy": 0.0025, "outside": 0.27, "missed": 0.02},
        "10": {"energy": 0.0026, "outside": 0.05, "missed": 0.02},
    }
    note = teacher_note(rows, floor, "energy")
    assert note is not None and "energy 0" not in note
    assert "27% of its samples lie outside the data (100), 1% for fresh data; train it" in note
    rows["100"] = {"energy": 0.0025, "outside": 0.0, "missed": 0.3}
    note = teacher_note(rows, floor, "energy")
    assert note is not None and "30% of the data are missed by its samples (100), 1% for" in note
    rows["100"] = {"energy": 0.0025, "outside": 0.1, "missed": 0.05}
    assert teacher_note(rows, floor, "energy") is None
    assert teacher_note(rows, {"energy": 0.0}, "energy") is None


def test_a_spread_that_passes_the_datas_is_no_collapse_while_it_comes_nearer():
    progress = Progress("kd", "energy")
    assert progress.add(0, {"energy": 5.0, "spread": 0.54}, trained=False) == []
    assert progress.add(500, {"energy": 2.0, "spread": 1.3}) == []  # the ring's first validations
    (text,) = progress.add(1000, {"energy": 2.0, "spread": 2.4})
    assert "rose from 0.54" in text
