"""Tables of a group against the group law itself, written out element by element."""

from __future__ import annotations

import pytest
import torch

from fastgen.models.groups import kernel_selector, multiplication_table

GROUPS = ["C2", "C3", "C4", "C8", "D3", "D4", "D6"]
F64 = torch.float64


@pytest.mark.parametrize("group", GROUPS)
def test_multiplication_table_is_the_group_law(group, represent):
    group = represent(group, 1).group
    table, elements = multiplication_table(group), group.elements
    assert table.tolist() == [[elements.index(a @ b) for b in elements] for a in elements]
    assert multiplication_table(group) is table


def test_multiplication_table_of_a_large_group_is_that_of_its_matrices(represent, matrices):
    rep = represent(
        "Icosahedral", "small"
    )  # escnn multiplies rotations of space slowly; this sum of irreps is faithful
    rho, table = matrices(rep), torch.as_tensor(multiplication_table(rep.group))
    assert torch.cdist(rho.flatten(1), rho.flatten(1)).add(torch.eye(60)).min() > 0.1
    assert (torch.einsum("gij,hjk->ghik", rho, rho) - rho[table]).abs().max() < 1e-12


@pytest.mark.parametrize("group", ["C3", "D3"])
def test_kernel_selector_reads_the_kernel_at_the_inverse_of_g_times_h(group, represent):
    group = represent(group, 1).group
    order = group.order()
    selector = kernel_selector(group, F64, torch.device("cpu")).view(order, order, order)
    for g, a in enumerate(group.elements):
        for h, b in enumerate(group.elements):
            assert selector[:, g, h].tolist() == [float(u == ~a @ b) for u in group.elements]
    assert kernel_selector(group, torch.float32, torch.device("cpu")).dtype == torch.float32
