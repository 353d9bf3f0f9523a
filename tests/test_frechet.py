"""The Frechet distance is that of Gaussians with the same moments, and sees no rotation."""

import math

import pytest
import torch

from fastgen._core.seeds import generator_for
from fastgen.frechet import frechet_distance

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator_for(seed, "frechet"), dtype=F64)


def with_moments(mean: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    """Rows whose own mean and covariance are exactly `mean` and root^T root."""
    d = len(mean)
    x = normal(8 * d, d)
    x = x - x.mean(0)
    white = torch.linalg.qr(x)[0] * math.sqrt(len(x) - 1)
    return white @ root + mean


def test_along_common_axes_it_is_the_distance_of_means_and_of_standard_deviations():
    """|m - n|^2 + sum (s_i - r_i)^2."""
    s = torch.tensor([1.0, 0.5, 2.0], dtype=F64)
    r = torch.tensor([1.5, 0.0, 1.0], dtype=F64)
    shift = torch.tensor([0.3, -1.0, 2.0], dtype=F64)
    x = with_moments(torch.zeros(3, dtype=F64), torch.diag(s))
    y = with_moments(shift, torch.diag(r))
    expected = shift.square().sum() + (s - r).square().sum()
    assert float(frechet_distance(x, y)) == pytest.approx(float(expected), rel=1e-10)


def test_more_features_than_rows_add_no_rounding():
    """Twice the features: |m|^2 + tr S, of a covariance whose other eigenvalues are zero."""
    x = normal(5, 24)
    expected = x.mean(0).square().sum() + x.var(0).sum()
    assert float(frechet_distance(x, 2 * x)) == pytest.approx(float(expected), rel=1e-12)


def test_of_covariances_with_other_axes_it_is_the_formula_with_a_plain_matrix_root():
    first = normal(3, 3)
    second = normal(3, 3, seed=1)
    zero = torch.zeros(3, dtype=F64)
    x = with_moments(zero, first)
    y = with_moments(zero, second)
    cov_x = first.T @ first
    cov_y = second.T @ second
    # tr (S_x S_y)^(1/2) by the eigenvalues of the product, which is not symmetric.
    overlap = torch.linalg.eigvals(cov_x @ cov_y).real.sqrt().sum()
    expected = cov_x.trace() + cov_y.trace() - 2 * overlap
    assert float(frechet_distance(x, y)) == pytest.approx(float(expected), rel=1e-9)


def test_it_is_symmetric_zero_for_a_set_itself_and_sees_no_rotation_nor_order():
    x = normal(50, 4)
    y = 1.3 * normal(60, 4, seed=1) + 0.2
    turn = torch.linalg.qr(normal(4, 4, seed=2))[0]
    distance = float(frechet_distance(x, y))
    assert float(frechet_distance(y, x)) == pytest.approx(distance, rel=1e-10)
    assert float(frechet_distance(x @ turn, y @ turn)) == pytest.approx(distance, rel=1e-10)
    assert float(frechet_distance(x, y.flip(0))) == pytest.approx(distance, rel=1e-12)
    assert float(frechet_distance(3 * x, 3 * y)) == pytest.approx(9 * distance, rel=1e-10)
    assert abs(float(frechet_distance(x, x.flip(0)))) < 1e-12


def test_fewer_rows_than_numbers_and_constant_features_have_a_distance():
    x = normal(3, 10)
    constant = torch.ones(4, 10)
    expected = (x.mean(0) - 1).square().sum() + x.var(0).sum()
    assert float(frechet_distance(x, constant)) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize(("x", "y"), [((4,), (4,)), ((4, 2), (4, 3)), ((1, 2), (4, 2))])
def test_shapes_that_do_not_fit_are_refused(x, y):
    with pytest.raises(ValueError, match=r"expected x \(N >= 2, d\) and y \(M >= 2, d\), got"):
        frechet_distance(torch.zeros(x), torch.zeros(y))
