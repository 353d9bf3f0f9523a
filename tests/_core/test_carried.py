"""What a condition carries: any of masks and prefix, read by one reader."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from fastgen._core.carried import Carried, bare, carried_by, carried_like, members_of
from fastgen._core.conditions import cond_to, take_rows
from fastgen._core.masks import (
    cond_without_masks,
    is_masked,
    mask_names,
    mask_of_lengths,
    masks_of,
    token_mask,
    with_masks,
)
from fastgen._core.prefixes import (
    cond_without_prefix,
    drawn_lengths,
    has_prefix,
    open_share,
    open_tokens,
    over_open_tokens,
    pinned,
    prefix_of,
    with_prefix,
)
from fastgen._core.tensors import expand_mask, mean_square_of_samples
from support.exact import normal

X = normal(4, 5, 2)
Z = normal(4, 3, 2, seed=1)
REAL = torch.tensor([5, 4, 2, 1])
MASK = mask_of_lengths(REAL, 5)
COND_MASK = mask_of_lengths(torch.tensor([1, 2, 3, 3]), 3)
LENGTHS = torch.tensor([3, 1, 1, 0])
MASKS = list(itertools.product((None, MASK), (None, COND_MASK)))


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("prefixed", [False, True])
def test_whatever_is_carried_is_read_and_taken_off_by_itself(masks, prefixed):
    cond = with_masks(Z, *masks)
    if prefixed:
        cond = with_prefix(cond, X, LENGTHS)
    found = carried_by(cond)
    assert found.Z is Z and bare(cond) is Z and found[1:3] == masks
    assert has_prefix(cond) == prefixed == (found.prefix is X)
    assert is_masked(cond) == any(mask is not None for mask in masks)
    assert mask_names(cond) == [name for name in members_of(cond) if "mask" in name]
    assert token_mask(cond) is masks[0]
    assert masks_of(cond)[1:] == masks and has_prefix(cond_without_masks(cond)) == prefixed
    assert bare(cond_without_masks(cond)) is Z and not is_masked(cond_without_masks(cond))
    rest, *given = prefix_of(cond)
    assert cond_without_prefix(cond).keys() == rest.keys() if rest is not Z else True
    assert masks_of(rest)[1:] == masks and not has_prefix(rest)
    assert given == [found.prefix, found.given]
    # Rows and dtypes as those of any condition.
    part = carried_by(cond_to(take_rows(cond, slice(1, 3)), dtype=torch.float32))
    for whole, cut in zip(found, part, strict=True):
        assert (whole is None) == (cut is None)
        if whole is not None:
            assert len(cut) == 2 and (cut.dtype == torch.bool) == (whole.dtype == torch.bool)


def test_the_spellings_of_masks_alone_and_of_a_prefix_alone_are_read():
    given = torch.arange(5) < LENGTHS[:, None]
    assert carried_by({"Z": Z, "mask": MASK}) == Carried(Z, MASK)
    assert carried_by({"Z": Z, "prefix": X, "given": given}) == Carried(Z, None, None, X, given)
    assert list(with_prefix(with_masks(Z, MASK), X, LENGTHS)) == ["Z", "mask", "prefix", "given"]


@pytest.mark.parametrize(
    "cond",
    [{"Z": Z, "prefix": X}, {"Z": Z, "given": MASK}, {"Z": Z, "mask": MASK, "prefix": X}, {"Z": Z}],
)
def test_half_a_prefix_is_a_condition_of_its_own(cond):
    assert carried_by(cond) == Carried(cond) and bare(cond) is cond and not members_of(cond)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"given": X}, "expected given to be a bool Tensor .* got torch.float64"),
        ({"prefix": MASK}, "expected prefix to be a floating-point Tensor"),
        ({"prefix": [1.0]}, "got list; a member of a condition of your own needs another name"),
        ({"mask": Z}, "expected mask to be a bool Tensor"),
    ],
)
def test_members_of_another_kind_are_refused(changes, message):
    cond: dict[str, Any] = {**with_prefix(Z, X, LENGTHS), **changes}
    with pytest.raises(ValueError, match=message):
        carried_by(cond)


def test_another_condition_of_the_samples_carries_what_they_do():
    cond = with_prefix(with_masks(Z, MASK, COND_MASK), X, LENGTHS)
    null = carried_like(torch.zeros_like(Z), cond)
    assert not bare(null).any() and carried_by(null)[1:] == carried_by(cond)[1:]
    # Of its own length: it keeps its own mask.
    own = carried_by(carried_like(with_masks(Z, None, ~COND_MASK), cond))
    assert own.cond_mask is not COND_MASK and own.mask is MASK and own.prefix is X


# ---- Prefixes of padded samples -----------------------------------------------------------------


def test_of_a_padded_sample_the_first_real_tokens_are_given():
    given = with_prefix(with_masks(Z, MASK), X, LENGTHS)["given"]
    assert torch.equal(given, torch.arange(5) < LENGTHS[:, None])
    # Padding may stand before what is real.
    late = with_prefix(with_masks(Z, MASK.flip(1)), X, LENGTHS)["given"]
    for row, k in enumerate(LENGTHS.tolist()):
        first = 5 - int(REAL[row])
        assert late[row].nonzero().flatten().tolist() == list(range(first, first + k))


def test_means_are_those_of_open_real_tokens_whatever_padding_holds():
    cond = with_prefix(with_masks(Z, MASK), X, LENGTHS)
    residual = normal(4, 5, 2, seed=2).masked_fill(cond["given"][..., None], 0.0)
    open_ = open_tokens(cond)
    assert torch.equal(open_, MASK & ~cond["given"])
    expected = torch.stack(
        [residual[i, int(LENGTHS[i]) : int(REAL[i])].square().mean() for i in range(4)]
    )
    for fill in (0.0, 1e6):
        seen = residual.masked_fill(~MASK[..., None], fill)
        scaled = over_open_tokens(seen, cond)
        found = mean_square_of_samples(scaled, expand_mask(MASK, scaled))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        found = mean_square_of_samples(seen, expand_mask(open_, seen))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(open_share(cond), 1 - LENGTHS.double() / REAL)


def test_open_tokens_follow_a_mask_that_comes_beside():
    assert open_tokens(Z) is None and open_tokens(Z, MASK) is MASK
    assert open_tokens(with_masks(Z, MASK)) is MASK
    cond = with_prefix(Z, X, LENGTHS)
    assert torch.equal(open_tokens(cond), ~cond["given"])
    assert torch.equal(open_tokens(cond, MASK), MASK & ~cond["given"])


def test_pinned_samples_begin_with_their_prefix_and_get_no_gradient_there():
    cond = with_prefix(with_masks(Z, MASK), X, LENGTHS)
    x = normal(4, 5, 2, seed=3).requires_grad_()
    y = pinned(x, cond)
    given = cond["given"]
    assert torch.equal(y[given], X[given]) and torch.equal(y[~given], x[~given])
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert not gradient[given].any() and (gradient[~given] == 1).all()
    assert pinned(x, with_masks(Z, MASK)) is x


def test_lengths_are_drawn_equally_often_below_what_is_real():
    uniform = torch.rand(40000, generator=torch.Generator().manual_seed(0))
    mask = mask_of_lengths(REAL.repeat(10000), 5)
    lengths = drawn_lengths(uniform, 2, mask).view(-1, 4)
    for row, most in enumerate((2, 2, 1, 0)):
        counts = torch.bincount(lengths[:, row], minlength=5)
        assert not counts[most + 1 :].any()
        # Four standard errors of a share.
        share = 1 / (most + 1)
        error = 4 * (share * (1 - share) / len(lengths)) ** 0.5
        assert ((counts[: most + 1] / len(lengths) - share).abs() <= error).all()
    almost = torch.full((4,), 1 - 2**-24)
    assert drawn_lengths(almost, 9, MASK).tolist() == [4, 3, 1, 0]
