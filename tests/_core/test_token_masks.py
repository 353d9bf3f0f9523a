"""Masks that a condition carries: how they are made, read and refused."""

import pytest
import torch

from fastgen._core.carried import carried_like
from fastgen._core.masks import (
    check_real,
    is_masked,
    mask_of_lengths,
    masks_of,
    packed_mask,
    padding_filled,
    real_only,
    token_mask,
    with_masks,
)

Z = torch.arange(6.0).view(2, 3, 1)
MASK = torch.tensor([[True, True, False, False], [True, True, True, True]])
COND_MASK = torch.tensor([[True, False, False], [True, True, True]])


def test_a_condition_carries_its_masks_and_gives_them_back():
    assert with_masks(Z) is Z and masks_of(Z) == (Z, None, None) and not is_masked(Z)
    for masks in ((MASK, None), (None, COND_MASK), (MASK, COND_MASK)):
        cond = with_masks(Z, *masks)
        assert is_masked(cond) and masks_of(cond) == (Z, *masks)
    assert token_mask(with_masks(Z, MASK)) is MASK
    assert carried_like(2 * Z, with_masks(Z, MASK, COND_MASK))["cond_mask"] is COND_MASK
    assert carried_like(with_masks(Z, MASK), with_masks(Z, ~MASK))["mask"] is MASK
    # The samples are the same; the other condition may be shorter than the first.
    own = carried_like(with_masks(Z, None, COND_MASK), with_masks(Z, MASK, ~COND_MASK))
    assert own["mask"] is MASK and own["cond_mask"] is COND_MASK
    assert set(carried_like(with_masks(Z, MASK), with_masks(Z, MASK, COND_MASK))) == {"Z", "mask"}


@pytest.mark.parametrize(
    "cond",
    [None, Z, (Z, MASK), {"Z": Z}, {"mask": MASK}, {"Z": Z, "mask": MASK, "goal": Z}, {"goal": Z}],
)
def test_any_other_condition_is_taken_as_it_is(cond):
    assert not is_masked(cond)
    found, *masks = masks_of(cond)
    assert found is cond and masks == [None, None]
    assert real_only(Z, cond) is Z


@pytest.mark.parametrize("mask", [MASK.float(), MASK[0], MASK.tolist(), None, MASK[..., None]])
@pytest.mark.parametrize("name", ["mask", "cond_mask"])
def test_a_mask_of_another_kind_is_refused(name, mask):
    with pytest.raises(ValueError, match=rf"expected {name} to be a bool Tensor \(B, T\)"):
        masks_of({"Z": Z, name: mask})


def test_padding_is_zero_whatever_it_holds_and_has_no_gradient():
    x = torch.full((2, 4, 3), torch.nan).masked_fill(MASK[..., None], 2.0).requires_grad_()
    real = real_only(x, with_masks(Z, MASK))
    assert torch.equal(real, 2.0 * MASK[..., None].expand(2, 4, 3))
    real.sum().backward()
    assert torch.equal(x.grad, MASK[..., None].expand(2, 4, 3).float())


@pytest.mark.parametrize("mask", [MASK[:, :3], torch.zeros_like(MASK)])
def test_a_mask_that_does_not_fit_the_samples_is_refused(mask):
    with pytest.raises(ValueError, match="expected mask"):
        real_only(torch.zeros(2, 4, 3), with_masks(Z, mask))


def test_masks_are_checked_by_themselves():
    check_real("mask", MASK, (2, 4))
    with pytest.raises(ValueError, match=r"expected mask of shape \(2, 5\).*got \(2, 4\)"):
        check_real("mask", MASK, (2, 5))
    with pytest.raises(ValueError, match="real token .* in each row, got none in row 0"):
        check_real("cond_mask", MASK & MASK[:1] & ~MASK, (2, 4))
    with pytest.raises(ValueError, match=r"bool Tensor \(B, T\).*got torch.int64"):
        check_real("mask", MASK.long(), (2, 4))


def test_lengths_are_masks_of_what_comes_first():
    assert torch.equal(mask_of_lengths(torch.tensor([2, 4]), 4), MASK)


def test_tokens_of_several_waypoints_are_real_as_a_whole():
    assert torch.equal(packed_mask(MASK, 2), torch.tensor([[True, False], [True, True]]))
    assert packed_mask(MASK, 1) is MASK
    with pytest.raises(ValueError, match="whole tokens of pack=4"):
        packed_mask(MASK, 4)


def test_padding_repeats_the_real_token_before_it():
    x = torch.tensor([[7.0, 1.0, 9.0, 2.0, 8.0]])
    mask = torch.tensor([[False, True, False, True, False]])
    assert padding_filled(x, mask).tolist() == [[1.0, 1.0, 1.0, 2.0, 2.0]]
    assert padding_filled(x, None) is x
