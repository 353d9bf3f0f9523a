"""Helpers under the formulas: what they broadcast, cast, refuse and restore."""

import pytest
import torch
from torch import nn

from fastgen._core.checks import check_shape, check_time
from fastgen._core.conditions import cond_text, cond_to, map_tensors, take_rows, tensors_in
from fastgen._core.modules import as_built, evaluating, frozen
from fastgen._core.seeds import draw_normal, draw_uniform, generator_for
from fastgen._core.tensors import expand_like, expand_mask, in_float64, masked_mean
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


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (("B", 2, 2), r"expected Z of shape \(B, 2, 2\), got \(8, 3, 2\)"),
        (("B", "T_z <= 2", 2), r"expected Z of shape \(B, T_z <= 2, 2\), got \(8, 3, 2\)"),
        (("B", 3), r"expected Z of shape \(B, 3\), got \(8, 3, 2\)"),
    ],
)
def test_check_shape_says_what_it_wanted(expected, message):
    with pytest.raises(ValueError, match=message):
        check_shape("Z", torch.zeros(8, 3, 2), expected)


def test_check_shape_accepts_what_fits():
    check_shape("Z", torch.zeros(8, 2, 2), ("B", "T_z <= 2", 2))
    check_shape("Z", torch.zeros(8, 1, 2), ("B", "T_z <= 2", 2))
    with pytest.raises(ValueError, match=r"got \(8, 0, 2\)"):
        check_shape("Z", torch.zeros(8, 0, 2), ("B", "T_z <= 2", 2))
    with pytest.raises(ValueError, match="got list"):
        check_shape("Z", [1.0], (1,))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_low_precision_times_are_refused_with_the_reason(dtype):
    with pytest.raises(TypeError, match="float32/float64") as caught:
        check_time(torch.ones(2).to(dtype))
    assert ("rounds 0.999 to 1.0" in str(caught.value)) == dtype.is_floating_point


@pytest.mark.parametrize(
    "t", [-0.1, 1.5, 500, float("nan"), torch.tensor([0.5, 1.01]), torch.tensor([float("nan")])]
)
def test_times_outside_the_unit_interval_are_refused(t):
    with pytest.raises(ValueError, match=r"expected t in \[0, 1\]"):
        check_time(t)


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


def test_seeded_generators_are_functions_of_their_names_only():
    def first(*names):
        return torch.rand(4, generator=generator_for(*names))

    assert torch.equal(first(0, "noise", 7), first(0, "noise", 7))
    others = [
        first(1, "noise", 7),
        first(0, "eps", 7),
        first(0, "noise", 8),
        first(0, "noise7"),
        first(0, "noise", "7"),
    ]
    assert not any(torch.equal(first(0, "noise", 7), other) for other in others)
    # Fixed for good: a checkpoint written today must make the same draws tomorrow.
    assert generator_for(0, "noise", 7).initial_seed() == 4946164163973049188


def test_draws_follow_the_generator_and_keep_the_dtype():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        a = draw_normal((5, 3), device="cpu", dtype=dtype, generator=generator_for(3))
        assert a.dtype == dtype and torch.equal(
            a, draw_normal((5, 3), device="cpu", dtype=dtype, generator=generator_for(3))
        )
    u = draw_uniform((1000,), device="cpu", generator=generator_for(3))
    assert u.dtype == torch.float64 and 0 <= u.min() and u.max() < 1


def test_as_built_finds_the_network_inside_a_compiled_one():
    net = nn.Linear(2, 2)
    assert as_built(net) is net
    compiled = nn.Module()
    compiled._orig_mod = net  # the attribute torch.compile keeps the network in
    assert as_built(compiled) is net


# ---- Conditions ----------------------------------------------------------------------------------

A, B = torch.arange(6.0).view(3, 2), torch.tensor([4, 5, 6])
CONDITIONS = {
    "tensor": (A, "(3, 2)"),
    "labels": (B, "integers (3,)"),
    "tuple": ((A, B), "((3, 2), integers (3,))"),
    "mapping": ({"a": A, "b": (B, None)}, "{a: (3, 2), b: (integers (3,), None)}"),
    "none": (None, "None"),
}
conditions = pytest.mark.parametrize(("cond", "text"), CONDITIONS.values(), ids=CONDITIONS.keys())


@conditions
def test_rows_of_a_condition_are_rows_of_each_tensor_in_it(cond, text):
    for rows in (torch.tensor([2, 0]), slice(1, 3)):
        taken = take_rows(cond, rows)
        assert all(
            torch.equal(x, y[rows])
            for x, y in zip(tensors_in(taken), tensors_in(cond), strict=True)
        )
        assert cond_text(taken, "B") == text.replace("(3", "(B") and cond_text(cond) == text


@conditions
@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16])
def test_labels_keep_their_dtype(cond, text, dtype):
    for x, y in zip(
        tensors_in(cond_to(cond, torch.device("cpu"), dtype)), tensors_in(cond), strict=True
    ):
        assert x.dtype == (dtype if dtype is not None and y.is_floating_point() else y.dtype)
        assert torch.equal(x, y.to(x))


def test_what_is_no_condition_is_refused():
    assert map_tensors(lambda x: x + 1, [B])[0].tolist() == [5, 6, 7]
    for wrong in ("north", 3, [3], {"a": 1.0}):
        with pytest.raises(
            TypeError,
            match="expected cond as a Tensor, a tuple or mapping of Tensors, or None, got",
        ):
            map_tensors(lambda x: x, wrong)
    with pytest.raises(ValueError, match="a scalar Tensor"):
        tensors_in((A, torch.tensor(1)))


@pytest.mark.parametrize(
    ("source", "target", "pinned"), [("cpu", "cuda", 1), ("cuda", "cuda", 0), ("cpu", "cpu", 0)]
)
def test_only_what_goes_from_the_host_to_a_gpu_is_page_locked_and_not_waited_for(
    monkeypatch, source, target, pinned
):
    seen: list[tuple[str, bool]] = []

    class Elsewhere(torch.Tensor):
        device = torch.device(source)

        def pin_memory(self):
            seen.append(("pinned", True))
            return self

        def to(self, *, non_blocking=False, **_):
            seen.append(("moved", non_blocking))
            return self

    cond_to(torch.ones(2).as_subclass(Elsewhere), torch.device(target))
    assert seen == [("pinned", True)] * pinned + [("moved", bool(pinned))]
