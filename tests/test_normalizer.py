"""The normaliser is an exact affine bijection that commutes with the group; packing is a bijection
of tokens."""

from __future__ import annotations

import json

import pytest
import torch
from escnn.group import directsum

from fastgen.models.representations import irrep_blocks, rep_matrices
from fastgen.models.specs import parse_group, parse_representation
from fastgen.normalizer import (
    Normalizer,
    is_constant,
    outgrows_float32,
    pack_tokens,
    unpack_tokens,
)

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def test_denormalize_inverts_normalize():
    normalizer = Normalizer(normal(4, seed=1), normal(4, 4, seed=2) + 3 * torch.eye(4))
    x = normal(5, 3, 4, seed=3)
    assert (normalizer.denormalize(normalizer.normalize(x)) - x).abs().max() < 1e-13
    assert (normalizer.normalize(normalizer.denormalize(x)) - x).abs().max() < 1e-13


def test_normalize_is_the_affine_map_of_its_formula():
    mean = normal(3, seed=1)
    scale = normal(3, 3, seed=2) + 3 * torch.eye(3)
    x = normal(7, 3, seed=3)
    expected = torch.linalg.solve(scale, (x - mean).T).T
    assert (Normalizer(mean, scale).normalize(x) - expected).abs().max() < 1e-13


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, F64])
def test_arithmetic_is_float64_and_the_dtype_is_kept(dtype):
    normalizer = Normalizer([100.0, -3.0], [[0.5, 0.1], [0.0, 2.0]])
    x = (normal(6, 2) + 100).to(dtype)
    y = normalizer.normalize(x)
    assert y.dtype == dtype
    # Rounded once, at the end: computed in a narrow dtype, x - 100 would have lost most of its
    # digits.
    assert torch.equal(y, normalizer.normalize(x.double()).to(dtype))
    assert normalizer.denormalize(y).dtype == dtype


def test_fit_standardises_every_channel():
    x = normal(400, 3) * torch.tensor([1e-3, 1.0, 1e4]) + torch.tensor([5.0, -1.0, 1e5])
    y = Normalizer.fit(x).normalize(x)
    assert y.mean(0).abs().max() < 1e-9
    assert (y.square().mean(0) - 1).abs().max() < 1e-9


def test_identity_changes_nothing():
    x = normal(4, 5)
    assert torch.equal(Normalizer.identity(5).normalize(x), x)


def turned_basis(rep, seed: int):
    """The matrices and blocks of `rep` after a random rotation of its coordinates."""
    turn = torch.linalg.qr(normal(rep.size, rep.size, seed=seed)).Q
    basis, spans = irrep_blocks(rep)
    return turn @ rep_matrices(rep) @ turn.T, (turn @ basis, spans)


@pytest.mark.parametrize(
    ("group", "spec"),
    [
        ("C2", ["trivial", "sign"]),
        ("C3", ["standard", "trivial", "standard"]),
        ("C4", ["regular"]),
        ("D3", ["standard", "sign", "trivial", "regular"]),
        ("D4", ["standard"]),
        ("D4", ["standard", "trivial", "standard"]),
        ("Icosahedral", ["standard", "trivial"]),
    ],
)
def test_fitted_normalizer_commutes_with_the_group_in_any_basis(group, spec):
    rep = directsum([parse_representation(parse_group(group), name) for name in spec])
    matrices, blocks = turned_basis(rep, seed=7)
    # Data whose own mean and spread are nowhere near symmetric.
    x = normal(200, rep.size, seed=1) * torch.linspace(0.1, 4, rep.size) + torch.arange(rep.size)
    normalizer = Normalizer.fit(x, blocks=blocks)
    for matrix in matrices:
        error = normalizer.normalize(x @ matrix.T) - normalizer.normalize(x) @ matrix.T
        assert error.abs().max() < 1e-11
    # The per-channel fit of the same data doesn't commute, so the law above says something.
    plain = Normalizer.fit(x)
    assert (
        max(
            float((plain.normalize(x @ m.T) - plain.normalize(x) @ m.T).abs().max())
            for m in matrices
        )
        > 0.1
    )


def test_fit_keeps_the_mean_of_invariant_channels_only_and_gives_each_block_unit_spread():
    rep = parse_representation(parse_group("D4"), ["standard", "trivial"])
    x = normal(300, 3) * torch.tensor([2.0, 3.0, 5.0]) + torch.tensor([10.0, 20.0, 30.0])
    normalizer = Normalizer.fit(x, blocks=irrep_blocks(rep))
    assert torch.equal(normalizer.mean[:2], torch.zeros(2, dtype=F64))
    assert normalizer.mean[2] == pytest.approx(float(x[:, 2].mean()))
    y = normalizer.normalize(x)
    assert float(y[:, :2].square().mean()) == pytest.approx(1)
    assert float(y[:, 2].square().mean()) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("value", [0.0, 7.0, -3e5, 1e-30])
def test_a_constant_channel_is_not_blown_up(value, dtype):
    rounding = torch.finfo(dtype).eps
    x = normal(200, 3)
    x[:, 1] = value
    noisy = x.clone()
    noisy[:, 1] *= 1 + rounding / 2 * normal(200, seed=3).clamp(-1, 1)
    for data in (x.to(dtype), noisy.to(dtype)):
        assert is_constant(data).tolist() == [False, True, False]
        normalizer = Normalizer.fit(data)
        y = normalizer.normalize(data)
        size = max(1.0, abs(value))
        assert y[:, 1].abs().max() <= 2 * rounding * size
        assert (normalizer.denormalize(y) - data).abs().max() <= 4 * rounding * size
    # A block of a group has its mean kept at zero, so that only zeros are constant there.
    rep = parse_representation(parse_group("D4"), ["standard", "trivial"])
    x[:, :2] = 0
    assert bool(torch.isfinite(Normalizer.fit(x, blocks=irrep_blocks(rep)).normalize(x)).all())


def test_a_time_is_no_constant_and_is_normalised_with_all_its_digits():
    steps = 0.1 * torch.randint(50, (200, 2), generator=generator(), dtype=F64)
    x = steps + torch.tensor([1.7e9, 5.4e6], dtype=F64)
    assert is_constant(x).tolist() == [False, False]
    normalizer = Normalizer.fit(x)
    y = normalizer.normalize(x).float()
    assert (y.mean(0).abs() < 1e-6).all() and ((y.double().std(0) - 1).abs() < 0.01).all()
    assert normalizer.needs_float64
    # The network's own rounding is all that is lost, beside that of 1.7e9 in float64.
    back = normalizer.denormalize(y.double())
    assert (back - x).abs().max() <= 2.5e-7 * float(normalizer.scale.max())


@pytest.mark.parametrize(
    ("mean", "spread", "expected"),
    [
        (0.0, 1.0, False),
        (0.0, 1e-30, False),
        (0.0, 0.0, False),
        (6.5, 1.0, False),
        (16.0, 1.0, True),
        (100.0, 20.0, False),
        (5.4e6, 1e3, True),
        (5.4e6, 1e6, False),
        (-13.4, 0.01, True),
        (1.7e9, 1e5, True),
        (0.0, 1e-42, True),
        (0.0, 1e300, True),
    ],
)
def test_float32_is_too_coarse_far_from_the_origin(mean, spread, expected):
    wide = outgrows_float32(torch.tensor(mean, dtype=F64), torch.tensor(spread, dtype=F64))
    assert bool(wide) == expected


def test_data_in_float32_need_no_float64_however_far_they_lie():
    x = normal(50, 2) + 1e5
    assert Normalizer.fit(x).needs_float64
    narrow = Normalizer.fit(x.float())
    assert not narrow.needs_float64
    again = Normalizer.from_state(json.loads(json.dumps(narrow.state())))
    assert not again.needs_float64
    # A state says so only where mean and scale don't: what was written before stays as it is.
    assert set(Normalizer.fit(x).state()) == set(Normalizer.fit(x - 1e5).state())
    assert set(Normalizer.fit(x).state()) == {"mean", "scale"}


def test_state_survives_json_bit_for_bit():
    normalizer = Normalizer(normal(3, seed=1) / 3, normal(3, 3, seed=2) / 7 + torch.eye(3))
    again = Normalizer.from_state(json.loads(json.dumps(normalizer.state())))
    assert torch.equal(again.mean, normalizer.mean) and torch.equal(again.scale, normalizer.scale)
    x = normal(9, 3)
    assert torch.equal(again.normalize(x), normalizer.normalize(x))


def test_the_normalizer_keeps_its_own_copy():
    mean = torch.zeros(2, dtype=F64)
    normalizer = Normalizer(mean, torch.eye(2))
    mean += 1
    assert torch.equal(normalizer.mean, torch.zeros(2, dtype=F64))


@pytest.mark.parametrize(
    ("act", "kind", "words"),
    [
        (
            lambda: Normalizer([0.0, 0.0], [[1.0]]),
            ValueError,
            r"scale of shape \(2, 2\).*got \(1, 1\)",
        ),
        (lambda: Normalizer([0.0], [[float("nan")]]), ValueError, "finite numbers in scale"),
        (lambda: Normalizer([0.0, 0.0], [[1.0, 1.0], [1.0, 1.0]]), ValueError, "singular"),
        (lambda: Normalizer.identity(0), ValueError, "d >= 1"),
        (
            lambda: Normalizer.fit(torch.ones(4, 2).long()),
            TypeError,
            "floating-point Tensor, got torch.int64",
        ),
        (lambda: Normalizer.fit(torch.zeros(0, 2)), ValueError, "at least one row"),
        (lambda: Normalizer.fit(torch.randn(3)), ValueError, r"got \(3,\)"),
        (
            lambda: Normalizer.fit(torch.tensor([[0.0, 1.0], [1.0, float("nan")]])),
            ValueError,
            "NaN",
        ),
        (
            lambda: Normalizer.identity(2).normalize(torch.zeros(4, 3)),
            ValueError,
            r"\(..., 2\), got \(4, 3\)",
        ),
        (
            lambda: Normalizer.identity(2).denormalize(torch.zeros(4, 3)),
            ValueError,
            r"y of shape \(..., 2\)",
        ),
        (
            lambda: Normalizer.identity(2).normalize(torch.zeros(4, 2).int()),
            TypeError,
            "floating-point",
        ),
        (
            lambda: Normalizer.from_state({"mean": [0.0]}),
            ValueError,
            r"mean and scale, got \['mean'\]",
        ),
        (
            lambda: Normalizer.from_state({"mean": [0.0], "scale": [[1.0]], "needs_float64": 1}),
            TypeError,
            "needs_float64 as true or false, got int",
        ),
        (
            lambda: Normalizer.from_state({"mean": [True], "scale": [[1.0]]}),
            ValueError,
            r"mean\[0\] as a number, got True",
        ),
        (
            lambda: Normalizer.from_state({"mean": [0], "scale": [[1e308]]}),
            ValueError,
            r"scale\[0\]\[0\] as a number, got 1e\+308",
        ),
        (
            lambda: pack_tokens(torch.zeros(2, 5, 3), 2),
            ValueError,
            r"multiple of pack = 2, got \(2, 5, 3\)",
        ),
        (lambda: pack_tokens(torch.zeros(2, 4, 3), 0), ValueError, "whole number >= 1, got 0"),
        (
            lambda: unpack_tokens(torch.zeros(2, 4, 3), 2),
            ValueError,
            r"\(B, T, 2 d\), got \(2, 4, 3\)",
        ),
    ],
)
def test_user_errors(act, kind, words):
    with pytest.raises(kind, match=words):
        act()


@pytest.mark.parametrize(
    ("basis", "spans", "words"),
    [
        (torch.eye(3), [(0, 3, False)], "representation of dimension 2"),
        (2 * torch.eye(2), [(0, 2, False)], "orthogonal"),
        (torch.eye(2), [(0, 1, True)], "cover 0..2 once"),
        (torch.eye(2), [(0, 2, False), (1, 2, True)], "cover 0..2 once"),
    ],
)
def test_blocks_that_do_not_describe_a_splitting_are_refused(basis, spans, words):
    with pytest.raises(ValueError, match=words):
        Normalizer.fit(normal(10, 2), blocks=(basis, spans))


@pytest.mark.parametrize("pack", [1, 2, 4, 8])
def test_unpacking_inverts_packing(pack):
    x = normal(3, 8, 2)
    packed = pack_tokens(x, pack)
    assert packed.shape == (3, 8 // pack, 2 * pack)
    assert torch.equal(unpack_tokens(packed, pack), x)


def test_a_token_holds_consecutive_waypoints_so_a_group_acts_by_copies():
    x = normal(3, 8, 2)
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64)
    assert torch.equal(pack_tokens(x, 4)[:, 1], x[:, 4:8].flatten(1))
    copies = torch.block_diag(turn, turn, turn, turn)
    assert torch.equal(pack_tokens(x @ turn.T, 4), pack_tokens(x, 4) @ copies.T)
