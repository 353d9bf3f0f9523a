"""A box that samples are clamped to: a projection, and what commutes with it."""

import itertools

import pytest
import torch

from fastgen.box import Box

BOXES = [Box(-1.0, 1.0), Box([-1.0, 0.0], [2.0, 0.5]), Box(-3, [0.5, 4.0])]
F64 = torch.float64
ROUNDING = torch.finfo(F64).eps


def points(n: int = 200, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(n, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("box", BOXES)
def test_clamping_is_the_projection_on_the_box(box: Box):
    x = points()
    y = box.clamp(x)
    assert bool(box.contains(y).all()) and not bool(box.contains(x).all())
    assert torch.equal(box.clamp(y), y)
    # No point of the box is nearer, since x - y points away from all of it.
    inside = box.clamp(points(seed=1))
    assert float(((x - y) * (inside - y)).sum((1, 2)).max()) <= 0.0


@pytest.mark.parametrize("box", BOXES)
def test_a_sample_comes_nearer_to_every_datum_of_the_box(box: Box):
    x = points()
    data = box.clamp(points(seed=1))
    before = (x[:, None] - data[None]).flatten(2).norm(dim=2)
    after = (box.clamp(x)[:, None] - data[None]).flatten(2).norm(dim=2)
    assert bool((after <= before * (1 + 4 * ROUNDING)).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_no_number_stays_and_so_does_the_dtype(dtype: torch.dtype):
    x = torch.tensor([[float("nan"), float("inf")], [-float("inf"), 0.1]], dtype=dtype)
    y = Box(-1.0, 0.1).clamp(x)
    assert y.dtype == dtype and torch.equal(y.isfinite(), x.isfinite())
    # The end itself, rounded to the dtype, is inside.
    assert bool(Box(-1.0, 0.1).contains(x[1:, 1:]).all())


def signed_permutations() -> list[torch.Tensor]:
    found = []
    for order, signs in itertools.product([[0, 1], [1, 0]], itertools.product([1, -1], repeat=2)):
        found.append(torch.diag(torch.tensor(signs, dtype=F64))[order])
    return found


@pytest.mark.parametrize(
    "box", [Box(-1, 1), Box(0, 1), Box([-1, -2], [1, 2]), Box([-1, 0], [1, 1]), Box([0, 0], [1, 2])]
)
def test_a_matrix_keeps_the_box_exactly_if_clamping_commutes_with_it(box: Box):
    x = points()
    turn = torch.tensor(0.3, dtype=F64)
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()]).reshape(2, 2)
    answers = set()
    for rho in (*signed_permutations(), rotation):
        commutes = torch.allclose(box.clamp(x @ rho.T), box.clamp(x) @ rho.T, atol=1e-12)
        assert box.is_kept_by(rho) == commutes
        # Of a token of two waypoints, each is moved in the same way.
        assert box.is_kept_by(torch.block_diag(rho, rho)) == commutes
        answers.add(commutes)
    assert answers == {True, False}


def test_configs_and_folders_spell_it_as_two_entries():
    for box in BOXES:
        assert Box.from_state(box.state()) == box and hash(Box.from_state(box.state())) == hash(box)
    assert Box.from_state((-1, 1)).state() == [-1.0, 1.0]
    assert BOXES[1].state() == [[-1.0, 0.0], [2.0, 0.5]]
    assert repr(BOXES[0]) == "Box(-1.0, 1.0)" and BOXES[0] != BOXES[1]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ([1, -1], "lo < hi in every channel"),
        ([[0, 1], [1, 1]], "lo < hi in every channel"),
        ([0, float("inf")], "expected finite numbers"),
        ([0, 10**400], "expected finite numbers"),
        ([[0, 0], [1, 1, 1]], "as many numbers in lo as in hi, got 2 and 3"),
        (["a", 1], "expected a number, or a list with one for each channel, got 'a'"),
        ([True, 2], "expected a number, or a list"),
        ([[], 1], "expected a number, or a list"),
        ([1], "expected two entries"),
        ({"lo": 0}, "expected two entries"),
        (None, "expected two entries"),
    ],
)
def test_what_is_no_box_is_refused(state, words: str):
    with pytest.raises(ValueError, match=words):
        Box.from_state(state)


def test_channels_are_the_last_axis():
    BOXES[0].check_channels(7)
    BOXES[1].check_channels(2)
    with pytest.raises(ValueError, match="expected numbers for 3 channels, or one for all, got 2"):
        BOXES[1].check_channels(3)
