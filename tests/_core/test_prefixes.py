"""Prefixes that conditions carry."""

import torch

from fastgen._core.conditions import take_rows
from fastgen._core.prefixes import (
    cond_without_prefix,
    has_prefix,
    open_share,
    over_open_tokens,
    prefix_of,
    with_prefix,
)
from support.exact import normal

X = normal(4, 5, 2)
LENGTHS = torch.tensor([0, 1, 3, 4])


def test_a_prefix_travels_with_its_condition():
    cond = with_prefix({"a": normal(4, 2)}, X, LENGTHS)
    Z, prefix, given = prefix_of(take_rows(cond, slice(1, 3)))
    assert given.sum(1).tolist() == [1, 3] and bool(given[:, 0].all())
    assert torch.equal(prefix, X[1:3]) and torch.equal(Z["a"], normal(4, 2)[1:3])
    assert has_prefix(cond) and cond_without_prefix(cond).keys() == {"a"}


def test_other_conditions_carry_none():
    for cond in (None, X, {"Z": X}, {"Z": X, "prefix": X, "given": X, "more": X}, (X, X)):
        assert not has_prefix(cond) and cond_without_prefix(cond) is cond
        assert prefix_of(cond)[1:] == (None, None) and open_share(cond) is None
        assert over_open_tokens(X, cond) is X


def test_means_are_those_of_open_tokens():
    cond = with_prefix(None, X, LENGTHS)
    residual = normal(4, 5, 2, seed=1).masked_fill(cond["given"][..., None], 0.0)
    found = over_open_tokens(residual, cond).square().mean((1, 2))
    for row, k in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(found[row], residual[row, k:].square().mean())
        assert float(open_share(cond)[row]) == 1 - k / 5
