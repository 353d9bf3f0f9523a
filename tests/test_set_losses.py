"""Losses of sets: each formula by hand, rest at equal sets and laws, and what turns with them."""

import math
from typing import Any

import pytest
import torch

from fastgen._core.seeds import generator_for
from fastgen.losses import set_loss
from fastgen.set_losses import SET_LOSSES, drift_field
from fastgen.two_sample import two_sample_loss

F64 = torch.float64
ROUNDING = 64 * torch.finfo(F64).eps
kinds = pytest.mark.parametrize("kind", SET_LOSSES)
TURN = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=F64)


def normal(*shape: int, name: str = "sets") -> torch.Tensor:
    return torch.randn(*shape, generator=generator_for(0, name, *shape), dtype=F64)


def distance(a, b) -> float:
    return math.sqrt(((a - b) ** 2).mean())


def slow_chamfer(x, y) -> float:
    found = []
    for xs, ys in zip(x, y, strict=True):
        to_target = [min(distance(a, b) ** 2 for b in ys) for a in xs]
        to_samples = [min(distance(a, b) ** 2 for a in xs) for b in ys]
        found.append(sum(to_target) / len(xs) + sum(to_samples) / len(ys))
    return sum(found) / len(found)


def slow_drift(x, y, temperatures) -> torch.Tensor:
    field = torch.zeros_like(x)
    for g, (xs, ys) in enumerate(zip(x, y, strict=True)):
        for i, a in enumerate(xs):
            others = [b for k, b in enumerate(xs) if k != i]
            for h in temperatures:
                means = []
                for points in (ys, others):
                    weights = [math.exp(-distance(a, b) / h) for b in points]
                    mean = sum(w * b for w, b in zip(weights, points, strict=True))
                    means.append(mean / sum(weights))
                field[g, i] += (means[0] - means[1]) / len(temperatures)
    return field


def test_chamfer_and_drift_are_their_formulas():
    x = normal(3, 4, 5, 2)
    y = normal(3, 6, 5, 2)
    assert set_loss(x, y, "chamfer").item() == pytest.approx(slow_chamfer(x, y), rel=1e-12)
    field = slow_drift(x.flatten(2), y.flatten(2), (0.3, 1.0, 3.0))
    loss = set_loss(x, y, "drift", temperatures=(0.3, 1.0, 3.0))
    assert loss.item() == pytest.approx(field.square().mean().item(), rel=1e-12)


def test_the_kernels_are_those_of_two_samples():
    x = normal(3, 4, 2)
    y = normal(3, 6, 2)
    for kind in ("energy", "mmd"):
        assert torch.equal(
            set_loss(x, y, kind, bandwidths=(0.3,)), two_sample_loss(x, y, kind, bandwidths=(0.3,))
        )


def test_chamfer_is_zero_at_equal_sets_in_any_order_and_only_there():
    x = normal(3, 4, 2)
    order = torch.tensor([2, 0, 3, 1])
    assert set_loss(x, x[:, order], "chamfer").item() == 0.0
    # A point of the target that no sample is near, and a sample that no point is near.
    one_more = torch.cat([x, x[:, :1] + 5], 1)
    assert set_loss(x, one_more, "chamfer") > 1 and set_loss(one_more, x, "chamfer") > 1


def test_drift_is_antisymmetric_in_target_and_own_kind():
    """With an own kind that doesn't hold the sample, the two change places."""
    temperatures = (0.2, 1.0)
    point, y, z = normal(1, 1, 2), normal(1, 5, 2, name="y"), normal(1, 5, 2, name="z")

    def at_the_point(target, own):
        return drift_field(torch.cat([point, own], 1), target, temperatures)[:, 0]

    torch.testing.assert_close(at_the_point(y, z), -at_the_point(z, y), rtol=1e-12, atol=1e-14)
    assert at_the_point(y, y).abs().max() <= ROUNDING


@kinds
def test_equal_laws_have_no_gradient_in_the_mean_and_a_shift_is_pulled_back(kind: str):
    options: Any = {"bandwidths": (0.5, 1.0), "temperatures": (0.2, 0.5, 1.0)}

    def slope(shift: float) -> float:
        a = torch.tensor(shift, dtype=F64, requires_grad=True)
        x = normal(3000, 4, 2, name=f"x {shift}") + a
        loss = set_loss(x, normal(3000, 3, 2, name=f"y {shift}"), kind, **options)
        return torch.autograd.grad(loss, a)[0].item()

    pulled = slope(1.0)
    assert pulled > 0.1 and abs(slope(0.0)) < 0.1 * pulled


@kinds
def test_it_turns_and_moves_with_samples_and_target(kind: str):
    x = normal(4, 5, 6, 2).requires_grad_()
    y = normal(4, 3, 6, 2)
    (gradient,) = torch.autograd.grad(set_loss(x, y, kind), x)
    moved = (x.detach() @ TURN + 3.0).requires_grad_()
    (turned,) = torch.autograd.grad(set_loss(moved, y @ TURN + 3.0, kind), moved)
    torch.testing.assert_close(turned, gradient @ TURN, rtol=0, atol=1e-11)


@kinds
def test_no_order_within_a_set_matters(kind: str):
    x = normal(4, 5, 2)
    y = normal(4, 3, 2)
    swapped = set_loss(x.flip(1), y.flip(1), kind)
    torch.testing.assert_close(swapped, set_loss(x, y, kind), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["chamfer", "drift", "energy"])
def test_samples_on_one_of_two_modes_are_drawn_to_the_other(kind: str):
    """Regression on the mean of the two would hold all of them between; a set is split."""
    x = (0.1 * normal(1, 8, 1)).requires_grad_()
    y = torch.tensor([-1.0, 1.0], dtype=F64).repeat(4)[None, :, None]
    optimizer = torch.optim.Adam([x], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        set_loss(x, y, kind, temperatures=(0.2, 0.5, 2.0)).backward()
        optimizer.step()
    right = (x > 0).sum().item()
    assert 2 <= right <= 6 and (x.detach().abs() - 1).abs().median() < 0.35


@kinds
def test_coinciding_samples_have_a_finite_gradient_and_the_target_none(kind: str):
    x = torch.zeros(2, 3, 4, requires_grad=True)
    y = torch.zeros(2, 1, 4, requires_grad=True)
    loss = set_loss(x, y, kind)
    loss.backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and y.grad is None


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        ((2, 3, 4), (2, 1, 4), {"kind": "cosine"}, "expected one of: energy, mmd, chamfer, drift"),
        ((2, 1, 4), (2, 1, 4), {"kind": "drift"}, r"with m >= 2 .*got \(2, 1, 4\)"),
        ((2, 3, 4), (3, 3, 4), {"kind": "chamfer"}, r"expected x \(G, m, ...\)"),
        ((2, 3), (2, 3), {"kind": "chamfer"}, r"expected x \(G, m, ...\)"),
        ((2, 3, 4), (2, 3, 4), {"kind": "drift", "temperatures": (0.0,)}, "temperatures > 0"),
        ((2, 3, 4), (2, 3, 4), {"kind": "drift", "temperatures": ()}, "temperatures > 0"),
    ],
)
def test_bad_calls_are_refused(x, y, options, message: str):
    with pytest.raises(ValueError, match=message):
        set_loss(torch.zeros(x), torch.zeros(y), **options)
