"""Stacks of the regular representation behave like the direct sums that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from escnn.group import change_basis

from fastgen.models.stacks import RegularStack, regular_copies, regular_stack
from support.exact import normal

GROUPS = ["C2", "C3", "C4", "C8", "D3", "D4", "D6"]
EVERY = [*GROUPS, "Icosahedral"]


@pytest.mark.parametrize("group", EVERY)
def test_a_stack_behaves_like_the_direct_sum_it_stands_for(group, represent):
    plain = represent(group, 2)
    stack = regular_stack(plain.group, 2)
    assert isinstance(stack, RegularStack) and regular_stack(plain.group, 2) is stack
    assert stack.size == plain.size and list(stack.irreps) == list(plain.irreps)
    assert np.allclose(stack.change_of_basis, plain.change_of_basis, atol=1e-14)
    assert np.allclose(
        stack.change_of_basis @ stack.change_of_basis_inv, np.eye(stack.size), atol=1e-12
    )
    for g in plain.group.elements[:: max(1, plain.group.order() // 6)]:
        assert np.allclose(stack(g), plain(g), atol=1e-12)
        assert stack.character(g) == pytest.approx(plain.character(g), abs=1e-9)
    assert stack.multiplicity(stack.irreps[0]) == plain.multiplicity(plain.irreps[0])
    assert (stack + stack).size == 2 * stack.size  # escnn's own operations take it


@pytest.mark.parametrize("group", GROUPS)
def test_the_regular_representation_permutes_by_left_multiplication(group, represent):
    group = represent(group, 1).group
    stack, elements = regular_stack(group, 1), group.elements
    f = normal(len(elements)).numpy()
    for a in elements:
        moved = stack(a) @ f
        assert moved.tolist() == [f[elements.index(~a @ g)] for g in elements]


@pytest.mark.parametrize("group", EVERY)
def test_regular_copies_are_found_in_that_layout_and_in_no_other(group, represent):
    plain = represent(group, 2)
    assert regular_copies(plain) == regular_copies(regular_stack(plain.group, 2)) == 2
    assert regular_copies(plain.group.regular_representation) == 1
    assert regular_copies(represent(group, "mixed")) == 0
    assert regular_copies(represent(group, 2, turned=True)) == 0
    # The same copies with channel and element swapped are another layout.
    order = plain.group.order()
    shuffle = (
        np.eye(2 * order)
        .reshape(2, order, 2 * order)
        .transpose(1, 0, 2)
        .reshape(2 * order, 2 * order)
    )
    assert regular_copies(change_basis(plain, shuffle, "swapped")) == 0
