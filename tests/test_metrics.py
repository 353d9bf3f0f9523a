"""Distances vanish where they must, estimate what they claim to, and are least for the true law."""

from __future__ import annotations

import math

import pytest
import torch

from fastgen.metrics import (
    coverage,
    energy_distance,
    energy_score,
    min_ade,
    min_fde,
    neighbour_radius,
    pairwise_distances,
)

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def test_pairwise_distances_keep_their_digits_for_close_points():
    x = normal(40, 3) + 1000
    y = x + 1e-6 * normal(40, 3, seed=1)
    exact = (x[:, None] - y[None]).norm(dim=-1)
    assert torch.allclose(pairwise_distances(x, y), exact, rtol=1e-12, atol=0)


def test_energy_distance_equals_its_double_sums():
    x = normal(5, 3)
    y = normal(4, 3, seed=1)
    d = lambda a, b: sum(float((p - q).norm()) for p in a for q in b)  # noqa: E731
    v = 2 * d(x, y) / 20 - d(x, x) / 25 - d(y, y) / 16
    u = 2 * d(x, y) / 20 - d(x, x) / 20 - d(y, y) / 12
    assert float(energy_distance(x, y)) == pytest.approx(v, abs=1e-13)
    assert float(energy_distance(x, y, unbiased=True)) == pytest.approx(u, abs=1e-13)
    off_diagonal = (
        d(x[:4], y) - sum(float((p - q).norm()) for p, q in zip(x[:4], y, strict=True))
    ) / 12
    paired = 2 * off_diagonal - d(x[:4], x[:4]) / 12 - d(y, y) / 12
    assert float(energy_distance(x[:4], y, unbiased=True, paired=True)) == pytest.approx(
        paired, abs=1e-13
    )


def test_energy_distance_of_a_sample_to_itself_is_zero_and_to_others_positive():
    x = normal(30, 4)
    assert abs(float(energy_distance(x, x.flip(0)))) < 1e-13
    assert float(energy_distance(x, x + 0.3)) > 1e-3
    assert float(energy_distance(x, 1.5 * x)) > 1e-3


def test_unbiased_estimate_has_mean_zero_and_the_v_statistic_its_known_bias():
    x = normal(4000, 8, 2)
    y = normal(4000, 8, 2, seed=1)
    mean, error = mean_and_error(energy_distance(x, y, unbiased=True))
    assert abs(mean) < 4 * error
    # E V = (1/N + 1/M) E|X - X'|, and |X - X'| of two plane normals has mean sqrt(pi).
    mean, error = mean_and_error(energy_distance(x, y))
    assert abs(mean - 2 / 8 * math.sqrt(math.pi)) < 4 * error


def test_unbiased_estimate_has_the_closed_form_of_shifted_normals():
    x = normal(4000, 8, 1)
    y = normal(4000, 8, 1, seed=1) + 1.0
    m = 1.0
    # X - Y ~ N(m, 2): E|.| = 2/sqrt(pi) exp(-m^2/4) + m erf(m/2).
    between = 2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)
    mean, error = mean_and_error(energy_distance(x, y, unbiased=True))
    assert abs(mean - (2 * between - 4 / math.sqrt(math.pi))) < 4 * error


def test_rows_that_share_a_condition_need_the_paired_estimate():
    condition = 3 * normal(2000, 10, 2)
    x = torch.cat([condition, normal(2000, 10, 2, seed=1)], -1)
    y = torch.cat([condition, normal(2000, 10, 2, seed=2)], -1)
    mean, error = mean_and_error(energy_distance(x, y, unbiased=True, paired=True))
    assert abs(mean) < 4 * error
    mean, error = mean_and_error(energy_distance(x, y, unbiased=True))
    assert mean < -20 * error


@pytest.mark.parametrize("wrong", ["narrow", "wide", "shifted"])
def test_energy_score_is_least_for_the_true_law(wrong):
    truth = normal(3000, 2, 2)
    samples = normal(3000, 6, 2, 2, seed=1)
    other = {"narrow": 0.5 * samples, "wide": 1.6 * samples, "shifted": samples + 0.4}[wrong]
    mean, error = mean_and_error(energy_score(other, truth) - energy_score(samples, truth))
    assert mean > 4 * error


def test_energy_score_does_not_depend_on_how_many_samples_in_expectation():
    truth = normal(4000, 2, 2)
    samples = normal(4000, 12, 2, 2, seed=1)
    mean, error = mean_and_error(energy_score(samples, truth) - energy_score(samples[:, :2], truth))
    assert abs(mean) < 4 * error


def test_displacement_errors_of_a_known_fan():
    truth = torch.zeros(1, 2, 2)
    fan = torch.tensor(
        [[[[0.0, 5.0], [3.0, 4.0]], [[0.0, 0.0], [6.0, 8.0]], [[1.0, 0.0], [0.0, 7.0]]]]
    )
    assert min_ade(fan, truth).tolist() == [4.0]  # means 5, 5, 4
    assert min_fde(fan, truth).tolist() == [5.0]  # ends 5, 10, 7


def test_the_truth_in_the_fan_gives_zero_and_more_samples_never_hurt():
    truth = normal(20, 4, 2)
    fan = normal(20, 6, 4, 2, seed=1)
    for metric in (min_ade, min_fde):
        assert (metric(fan, truth) <= metric(fan[:, :3], truth)).all()
        fan[:, 5] = truth
        assert torch.equal(metric(fan, truth), torch.zeros(20, dtype=F64))


def test_all_are_invariant_under_rigid_motions_and_in_float64():
    fan = normal(20, 6, 4, 2, seed=1)
    truth = normal(20, 4, 2)
    turn = torch.linalg.qr(normal(2, 2, seed=3)).Q
    for metric in (min_ade, min_fde, energy_score):
        before = metric(fan, truth)
        after = metric(fan @ turn + 1, truth @ turn + 1)
        assert (before - after).abs().max() < 1e-12
        assert metric(fan.float(), truth.float()).dtype == F64
    x = fan[:, :, 0]
    y = fan[:, :, 1]
    assert (energy_distance(x, y) - energy_distance(x @ turn + 1, y @ turn + 1)).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (
            lambda: energy_distance(torch.zeros(3, 2), torch.zeros(3, 4)),
            r"got \(3, 2\) and \(3, 4\)",
        ),
        (lambda: energy_distance(torch.zeros(2), torch.zeros(2)), r"x \(..., N, d\)"),
        (
            lambda: energy_distance(torch.zeros(1, 2), torch.zeros(4, 2), unbiased=True),
            "at least 2 rows",
        ),
        (lambda: energy_distance(torch.zeros(0, 2), torch.zeros(4, 2)), "at least 1 rows"),
        (
            lambda: energy_distance(torch.zeros(3, 2), torch.zeros(4, 2), paired=True),
            "as many rows in x as in y",
        ),
        (lambda: energy_score(torch.zeros(3, 1, 4, 2), torch.zeros(3, 4, 2)), "at least 2 samples"),
        (lambda: min_ade(torch.zeros(3, 6, 4, 2), torch.zeros(3, 5, 2)), r"samples \(B, K, T, d\)"),
        (lambda: min_fde(torch.zeros(3, 4, 2), torch.zeros(3, 4, 2)), r"samples \(B, K, T, d\)"),
    ],
)
def test_user_errors(act, words):
    with pytest.raises(ValueError, match=words):
        act()


def test_coverage_equals_its_definition():
    samples = normal(60, 3)
    data = normal(1500, 3, seed=1)
    distance = (data[:, None] - data[None]).norm(dim=-1)
    radius = distance.sort(dim=1).values[:, 4]  # the first is the point itself
    assert torch.allclose(neighbour_radius(data, 4), radius)
    to_sample = (data[:, None] - samples[None]).norm(dim=-1)
    expected = (to_sample <= radius[:, None]).any(1).double().mean()
    assert float(coverage(samples, data, k=4)) == pytest.approx(float(expected))
    assert float(coverage(samples, data, radius=radius)) == pytest.approx(float(expected), abs=1e-3)


def test_coverage_of_the_law_by_itself_is_known_and_a_lost_half_is_lost():
    rows = torch.stack(
        [coverage(normal(500, 2, seed=2 * s), normal(500, 2, seed=2 * s + 1)) for s in range(20)]
    )
    mean, error = mean_and_error(rows)
    assert abs(mean - (1 - 2**-5)) < 4 * error + 2e-3
    data = normal(500, 2, seed=100)
    samples = normal(500, 2, seed=101)
    half = samples[samples[:, 0] > 0]
    assert abs(float(coverage(half, data)) - 0.5) < 0.1
    assert float(coverage(samples + 100, data)) == 0


@pytest.mark.parametrize(
    ("samples", "data", "k"),
    [((5,), (9, 2), 5), ((5, 3), (9, 2), 5), ((0, 2), (9, 2), 5), ((5, 2), (5, 2), 5)],
)
def test_coverage_refuses_what_has_no_answer(samples, data, k):
    with pytest.raises(ValueError, match="expected"):
        coverage(torch.zeros(samples), torch.zeros(data), k=k)
    with pytest.raises(ValueError, match=r"expected radius of shape \(9,\), got \(8,\)"):
        coverage(torch.zeros(5, 2), torch.zeros(9, 2), radius=torch.zeros(8))
