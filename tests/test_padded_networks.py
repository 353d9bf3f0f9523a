"""How networks are called with a condition that carries masks: padding is 0 in what they see and in
what is made of their answer, whatever they do there, under every coat."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.conditions import tensors_in
from fastgen._core.masks import with_masks
from fastgen.guidance import Guidance
from fastgen.networks import call_network, predict_x0, teacher_x0, unclipped_x0
from fastgen.teachers import KeywordNetwork, as_rectified_flow
from fastgen.teachers.guided import GuidedNetwork

MASK = torch.tensor([[True, False, True], [True, True, False]])
Z = torch.ones(2, 1, 2)
COND = with_masks(Z, MASK)
X = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0)).double()
T = torch.tensor([0.2, 0.8])


class Careless(nn.Module):
    """Answers as if all tokens were real, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.seen: list[Any] = []

    def forward(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.seen.append((x_t, cond))
        return self.scale * x_t + 1.0


class ByKeywords(nn.Module):
    """A network that is called by keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Careless()

    def forward(self, *, sample: Tensor, timestep: Tensor, z: Tensor, mask: Tensor) -> Tensor:
        return self.inner(sample, timestep, with_masks(z, mask))


NETWORKS = {
    "bare": Careless,
    "converted": lambda: as_rectified_flow(Careless(), path="cosine", prediction="v"),
    "guided": lambda: GuidedNetwork(
        Careless(), Guidance(2.0, (0.0, 0.5), 0.5), torch.zeros(1, 1, 2)
    ),
    "keywords": lambda: KeywordNetwork(ByKeywords(), x="sample", t="timestep", cond="z"),
}
CALLS = {
    "prediction": lambda net, x: call_network(net, x, T, COND, dtype=x.dtype),
    "x0": lambda net, x: predict_x0(net, x, T, COND, pred_type="flow", dtype=x.dtype),
    "teacher's x0": lambda net, x: teacher_x0(net, x, T, COND, pred_type="flow"),
    "x0 before a clip": lambda net, x: unclipped_x0(net, x, T, COND, pred_type="flow"),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("call", CALLS)
def test_padding_is_zero_before_and_after_a_network(name, call):
    network = NETWORKS[name]()
    (careless,) = (m for m in network.modules() if isinstance(m, Careless))
    answers = []
    for fill in (0.0, 7.0, float("nan")):
        careless.seen.clear()
        answers.append(CALLS[call](network, X.masked_fill(~MASK[..., None], fill)))
        assert careless.seen
        for x_t, cond in careless.seen:
            rows = len(x_t)  # of which a guided network may ask some alone
            padding = ~cond["mask"]
            assert tensors_in(cond)[-1] is cond["mask"] and padding.shape == (rows, 3)
            assert (x_t[padding] == 0).all()
    for answer in answers:
        assert torch.equal(answer, answers[0])
        assert (answer[~MASK] == 0).all() and (answer[MASK] != 0).all()
