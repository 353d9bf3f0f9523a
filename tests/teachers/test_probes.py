"""What a teacher is probed on is in the dtype that it computes in, whatever its parameters begin
with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.modules import fit_buffers
from fastgen._core.precision import computing_dtype
from fastgen.networks import network_dtype
from fastgen.teachers.answer import answer_of
from fastgen.teachers.couplings import coupling_of
from fastgen.teachers.declarations import declaration_notes, denoising_errors

X0 = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))


class Linear(nn.Module):
    """Linear in (x_t, t), after whatever parameters come first."""

    def __init__(self, *first: Tensor) -> None:
        super().__init__()
        for i, value in enumerate(first):
            self.register_parameter(f"first_{i}", nn.Parameter(value, requires_grad=False))
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, x_t: Tensor, t: Tensor, cond: None = None) -> Tensor:
        return self.layer(torch.cat([x_t, t.to(x_t)[:, None]], 1))


FIRST = (torch.arange(3), torch.ones(3, dtype=torch.bool), torch.ones(2, dtype=torch.complex64))


@pytest.mark.parametrize("first", FIRST, ids=lambda x: str(x.dtype))
def test_a_first_parameter_that_nothing_computes_in_changes_nothing(first):
    usual, odd = Linear(), Linear(first)
    assert computing_dtype(odd, torch.float64) == torch.float32
    assert torch.equal(answer_of(odd, X0, None), answer_of(usual, X0, None))
    assert coupling_of(odd, X0, None) == coupling_of(usual, X0, None)
    errors = []
    notes = []
    for network in (usual, odd):
        errors.append(denoising_errors(network, X0, None, pred_type="flow"))
        notes.append(declaration_notes(network, X0, None, pred_type="flow", search=True))
    assert errors[0] == errors[1] and notes[0] == notes[1]


def test_a_network_of_integers_alone_is_called_in_the_datas_dtype():
    odd = nn.Module()
    odd.order = nn.Parameter(torch.arange(2), requires_grad=False)
    odd.forward = lambda x_t, t, cond=None: x_t + 0.5
    x0 = X0.double()
    assert network_dtype(odd, x0.dtype) == torch.float64
    assert answer_of(odd, x0, None).dtype == torch.float64


def test_a_buffer_that_is_not_made_yet_holds_fractions():
    odd = Linear(torch.arange(3))
    odd.register_buffer("table", None)
    fit_buffers(odd, {"table": (2,)})
    assert odd.table is not None and odd.table.dtype == torch.float32
