"""Helpers under the formulas: what they broadcast, cast, refuse and restore."""

import pytest
import torch
from torch import nn

from fastgen._core.modules import as_built, evaluating, frozen
from fastgen._core.tensors import (
    expand_like,
    expand_mask,
    in_float64,
    masked_mean,
    without_gradients,
)
from support.exact import normal


def test_expand_like_gives_one_time_per_sample():
    x = normal(3, 2, 5)
    t = torch.tensor([0.1, 0.2, 0.3])
    expanded = expand_like(t, x)
    assert expanded.shape == (3, 1, 1)
    assert torch.equal((expanded * torch.ones_like(x))[:, 1, 4], t.double())


@pytest.mark.parametrize("t", [0.25, torch.tensor(0.25), torch.tensor([0.25])])
def test_expand_like_takes_scalars(t):
    x = normal(3, 2)
    assert torch.equal(expand_like(t, x) * x, 0.25 * x)


@pytest.mark.parametrize("shape", [(2,), (3, 2), (1, 1, 1, 3)])
def test_expand_like_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"expected t of shape \(3,\)"):
        expand_like(torch.full(shape, 0.5), normal(3, 2))


def test_masks_are_one_flag_a_number_and_means_leave_out_the_rest():
    x, mask = normal(2, 3, 4), torch.tensor([[True, False, True], [False, True, False]])
    full = expand_mask(mask, x)
    assert full.shape == x.shape and all(torch.equal(full[..., i], mask) for i in range(4))
    assert torch.equal(expand_mask(mask[:1, :, None], x)[1], full[0])
    spoilt = x.masked_fill(~full, float("nan")).requires_grad_()
    mean = masked_mean(spoilt, full, 1)
    torch.testing.assert_close(mean, torch.stack([x[0, [0, 2]].mean(0), x[1, 1]]))
    (gradient,) = torch.autograd.grad(mean.sum(), spoilt)
    torch.testing.assert_close(
        gradient, full.double() / torch.tensor([2.0, 1.0]).double()[:, None, None]
    )
    assert torch.equal(masked_mean(x, None, 1), x.mean(1))


@pytest.mark.parametrize("shape", [(2,), (2, 4), (3, 2), (2, 3, 4, 1)])
def test_masks_of_other_shapes_are_refused(shape):
    with pytest.raises(
        ValueError, match=r"expected mask of shape \(2, 3\), or one that broadcasts to \(2, 3, 4\)"
    ):
        expand_mask(torch.ones(shape, dtype=torch.bool), normal(2, 3, 4))


def test_in_float64_computes_wide_and_answers_in_the_dtype_named():
    seen = []

    @in_float64(like="x")
    def halve(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append((x.dtype, y.dtype))
        return x / 2 + y

    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert halve(torch.ones(2, dtype=dtype), torch.ones(2)).dtype == dtype
    assert set(seen) == {(torch.float64, torch.float64)}
    with pytest.raises(
        TypeError, match="expected x to be a floating point tensor, got torch.int64"
    ):
        halve(torch.ones(2, dtype=torch.int64), torch.ones(2))


def test_in_float64_names_arguments_that_are_missing_or_too_many():
    @in_float64(like="x")
    def product(x, t):
        return x * t

    x = torch.ones(2)
    assert torch.equal(product(x, t=0.5), product(t=0.5, x=x))
    for args, kwargs in (((), {"t": 0.5}), ((x, 0.5, 1), {}), ((x,), {"x": x}), ((x,), {})):
        with pytest.raises(TypeError, match="argument"):
            product(*args, **kwargs)


def test_without_gradients_is_no_grad_inside_and_outside_of_another():
    @without_gradients
    def twice(x):
        return 2 * x

    x = torch.ones(2, requires_grad=True)
    assert not twice(x).requires_grad and torch.is_grad_enabled()
    with torch.no_grad():
        assert not twice(x).requires_grad


def test_in_float64_lets_gradients_through_the_casts():
    @in_float64(like="x")
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    x = torch.ones(3, requires_grad=True)
    double(x).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.full((3,), 2.0))


def test_frozen_stops_weights_but_not_inputs_and_restores_each_flag():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    x = torch.ones(1, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="inside"), frozen(net, None):
        net(x).sum().backward()
        raise RuntimeError("inside")
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert net.weight.grad is None
    assert net.weight.requires_grad and not net.bias.requires_grad


def test_evaluating_restores_each_mode():
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout())).train()
    net[1].eval()
    with evaluating(net):
        assert not any(m.training for m in net.modules())
    assert net.training and net[0].training and not net[1].training


def test_as_built_finds_the_network_inside_a_compiled_one():
    net = nn.Linear(2, 2)
    assert as_built(net) is net
    compiled = nn.Module()
    compiled._orig_mod = net  # the attribute torch.compile keeps the network in
    assert as_built(compiled) is net
