"""Flow matching of trajectories whose first tokens may be given."""

import torch
from torch import Tensor, nn

from fastgen._core.prefixes import with_prefix
from fastgen.config import TeacherTrainConfig
from fastgen.methods.pretraining import FlowMatchingTraining, flow_matching_loss
from fastgen.teachers.prefixed import PrefixedNetwork
from support.exact import normal
from support.stages import Recorder
from support.updates import BATCH, draws

X0 = normal(4, 5, 2)
EPS = normal(4, 5, 2, seed=1)
LENGTHS = torch.tensor([0, 1, 3, 4])
TIMES = torch.tensor([0.9, 0.5, 1e-9, 0.3], dtype=torch.float64)


class Still(nn.Module):
    """A flow of 1 everywhere, which keeps the times that it was asked at."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.times: list[Tensor] = []

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        self.times.append(t)
        return self.flow.expand_as(x_t)


def test_the_loss_is_a_mean_over_tokens_that_are_not_given():
    cond = with_prefix(None, X0, LENGTHS)
    loss = flow_matching_loss(PrefixedNetwork(Still()), X0, EPS, TIMES, cond)
    rows = [(1.0 - (EPS - X0)[row, k:]).square().mean() for row, k in enumerate(LENGTHS.tolist())]
    torch.testing.assert_close(loss, torch.stack(rows).mean())


def test_every_length_is_drawn_and_the_same_ones_at_each_number_of_processes():
    x0 = normal(60, 5, 2)
    cfg = TeacherTrainConfig(steps=8, batch_size=BATCH)

    def given(rank: int, world: int) -> Tensor:
        network = Still()
        stage = FlowMatchingTraining(
            Recorder(network), x0, None, cfg, draws(rank, world), prefix_tokens=3
        )
        for step in range(8):
            stage.update(step)
        return torch.stack([(t == 0).sum(1) for t in network.times])

    whole = given(0, 1)
    assert set(whole.flatten().tolist()) == {0, 1, 2, 3}
    assert torch.equal(torch.cat([given(0, 2), given(1, 2)], 1), whole)
