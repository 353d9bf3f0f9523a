"""Differences of two students' distances: exact, unbiased, with intervals that hold the truth."""

import math

import pytest
import torch

from fastgen._core.seeds import generator_for
from fastgen.comparisons import (
    Comparison,
    TooFewRows,
    compare_energy,
    compare_frechet,
    compare_means,
)
from fastgen.frechet import frechet_distance
from fastgen.metrics import energy_distance, pairwise_distances

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator_for(seed, "compare"), dtype=F64)


# ---- Values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("paired", [False, True])
def test_the_difference_is_that_of_two_unbiased_distances(paired):
    y = normal(30, 3)
    a = normal(30, 3, seed=1)
    b = 1.5 * normal(30, 3, seed=2)
    found = compare_energy(a, b, y, paired=paired)
    of_a, of_b = (energy_distance(x, y, unbiased=True, paired=paired) for x in (a, b))
    assert found.difference == pytest.approx(float(of_b - of_a), abs=1e-12)
    fans = compare_energy(torch.stack([a, b]), torch.stack([b, a]), y, paired=paired)
    assert fans.difference == pytest.approx(0, abs=1e-12)


def test_with_a_kernel_it_is_the_difference_of_two_mean_discrepancies():
    y = normal(20, 2)
    a = normal(25, 2, seed=1)
    b = normal(25, 2, seed=2) + 1

    def kernel(p, q):
        return (-0.5 * pairwise_distances(p, q).square()).exp()

    def discrepancy(x):
        within = (kernel(x, x).sum() - 25) / (25 * 24)
        return within - 2 * kernel(x, y).mean()

    found = compare_energy(a, b, y, distance=lambda p, q: -kernel(p, q))
    assert found.difference == pytest.approx(float(discrepancy(b) - discrepancy(a)), abs=1e-12)


def test_the_interval_of_means_is_that_of_a_long_bootstrap():
    a = normal(40)
    b = a + 0.3 * normal(40, seed=1) + 0.1
    found = compare_means(a, b)
    rows = torch.randint(40, (20000, 40), generator=generator_for(0, "rows"))
    sd = float((b - a)[rows].mean(1).std()) * math.sqrt(40 / 39)
    assert found.difference == pytest.approx(float((b - a).mean()), rel=1e-12)
    assert found.high - found.difference == pytest.approx(1.96 * sd, rel=0.02)


def test_rows_of_one_group_count_once():
    """Losses that are copied four times have the interval of the four-times fewer."""
    a = normal(30)
    b = normal(30, seed=1)
    groups = torch.arange(30).repeat_interleave(4)
    copied = compare_means(a.repeat_interleave(4), b.repeat_interleave(4), groups=groups)
    plain = compare_means(a, b)
    assert copied.high == pytest.approx(plain.high, rel=1e-12)
    by_itself = compare_means(a, b, groups=torch.arange(30).flip(0))
    assert by_itself.low == pytest.approx(plain.low, rel=1e-12)


# ---- Intervals -----------------------------------------------------------------------------------


def test_intervals_hold_the_true_difference_and_two_copies_are_not_told_apart():
    """95 % intervals, over draws of samples and data; copies are draws of one law."""
    told_apart = 0
    held = 0
    repeats = 60
    a_scale = 1.3
    truth = compare_energy(
        normal(3000, 2, seed=900), a_scale * normal(3000, 2, seed=901), normal(3000, 2, seed=902)
    ).difference
    for seed in range(repeats):
        y = normal(80, 2, seed=3 * seed)
        x = normal(80, 2, seed=3 * seed + 1)
        again = normal(80, 2, seed=3 * seed + 2)
        copies = compare_energy(a_scale * x, a_scale * again, y)
        told_apart += copies.better or copies.worse
        found = compare_energy(x, a_scale * x, y)
        held += found.low <= truth <= found.high
    assert told_apart <= 0.1 * repeats and held >= 0.85 * repeats


@pytest.mark.parametrize("compare", [compare_energy, compare_frechet])
def test_a_clearly_better_student_is_told_apart_and_pairs_narrow_the_interval(compare):
    y = normal(300, 3)
    x = normal(300, 3, seed=1)
    other = normal(300, 3, seed=2)
    better = compare(1.5 * x, 1.1 * x, y)
    assert better.better and not better.worse and better.difference < 0
    worse = compare(1.1 * x, 1.5 * x, y)
    assert worse.worse and worse.difference == pytest.approx(-better.difference, rel=1e-12)
    unpaired = compare(1.1 * x, 1.1 * other, y)
    paired = compare(1.1 * x, 1.12 * x, y)
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)
    assert not unpaired.better and not unpaired.worse


def test_a_student_and_itself_differ_by_nothing():
    y = normal(50, 3)
    x = normal(50, 3, seed=1)
    for found in (
        compare_energy(x, x, y),
        compare_energy(x, x, y, paired=True),
        compare_frechet(x, x, y),
        compare_means(x[:, 0], x[:, 0]),
    ):
        assert (found.difference, found.low, found.high) == (0, 0, 0)
        assert not found.better and not found.worse


def test_a_comparison_is_a_pure_function_and_sees_no_rotation():
    y = normal(60, 3)
    a = normal(60, 3, seed=1)
    b = 1.2 * normal(60, 3, seed=2)
    turn = torch.linalg.qr(normal(3, 3, seed=3))[0]
    for compare in (compare_energy, compare_frechet):
        found = compare(a, b, y)
        assert compare(a, b, y) == found
        turned = compare(a @ turn, b @ turn, y @ turn)
        assert turned.low == pytest.approx(found.low, rel=1e-9)
    found = compare_energy(a, b, y)
    other = compare_energy(a, b, y, generator=generator_for(1, "other"))
    assert other.low != found.low and other.difference == found.difference


def test_the_interval_of_frechet_distances_is_that_of_a_bootstrap():
    """Of samples that aren't the data's law: by shift, by shape, and of one axis that is empty."""
    y = normal(400, 3)
    a = normal(400, 3, seed=1) * torch.tensor([1.5, 0.7, 0.0]) + 0.5
    b = a * torch.tensor([0.8, 1.1, 1.0]) + 0.1
    found = compare_frechet(a, b, y)
    assert found.difference == float(frechet_distance(b, y) - frechet_distance(a, y))
    drawn = []
    generator = generator_for(0, "rows")
    for _ in range(400):
        i, j = torch.randint(400, (2, 400), generator=generator)
        drawn.append(frechet_distance(b[i], y[j]) - frechet_distance(a[i], y[j]))
    sd = float(torch.stack(drawn).std())
    assert found.high - found.difference == pytest.approx(1.96 * sd, rel=0.12)


def test_a_wider_level_is_a_wider_interval_in_normal_quantiles():
    y = normal(60, 3)
    a = normal(60, 3, seed=1)
    b = normal(60, 3, seed=2)
    narrow = compare_energy(a, b, y, level=0.6827)
    wide = compare_energy(a, b, y, level=0.9545)
    ratio = (wide.high - wide.difference) / (narrow.high - narrow.difference)
    assert ratio == pytest.approx(2, rel=1e-3)


def test_what_is_no_number_is_worse_and_a_comparison_reads_as_numbers():
    nan = math.nan
    assert Comparison(nan, nan, nan).worse and not Comparison(nan, nan, nan).better
    assert str(Comparison(-0.0123, -0.02, 0.001)) == "-0.0123 (-0.02 to +0.001)"


def test_a_score_that_does_not_choose_can_only_be_worse():
    low, high = torch.zeros(9), torch.ones(9)
    fewer = compare_means(high, low, chooses=False)
    assert fewer.high < 0 and not fewer.better and not fewer.worse
    assert compare_means(low, high, chooses=False).worse and compare_means(high, low).better


@pytest.mark.parametrize("rows", [3, 4, 6])
def test_few_rows_have_an_interval_though_some_draws_are_of_one_row_alone(rows):
    y = normal(rows, 2)
    found = compare_energy(y + 1, y + 1.5, y, paired=True)
    assert math.isfinite(found.low) and math.isfinite(found.high)
    with pytest.raises(TooFewRows, match="at least 3 rows"):
        compare_energy(y[:2], y[:2], y[:2], paired=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare_means(normal(3), normal(4)), r"expected a and b \(n,\), got"),
        (lambda: compare_means(normal(1), normal(1)), "at least 2 rows or groups"),
        (
            lambda: compare_means(normal(3), normal(3), groups=torch.zeros(3)),
            "at least 2 rows or groups to draw from, got 1",
        ),
        (lambda: compare_means(normal(3), normal(3), groups=torch.zeros(2)), r"groups \(3,\)"),
        (lambda: compare_means(normal(3), normal(3), level=1.0), r"level in \(0, 1\)"),
        (lambda: compare_energy(normal(5, 2), normal(4, 2), normal(5, 2)), "expected a and b"),
        (lambda: compare_energy(normal(5, 2), normal(5, 2), normal(5, 3)), "expected a and b"),
        (
            lambda: compare_energy(normal(5, 2), normal(5, 2), normal(6, 2), paired=True),
            "as many samples as data when paired, got 5, 6",
        ),
        (
            lambda: compare_energy(normal(5, 2), normal(5, 2), normal(6, 2), draws=1),
            "draws >= 2, got 1",
        ),
    ],
)
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
