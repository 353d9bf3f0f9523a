"""A DMD pipeline of three small networks in float64, and what it is called with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen._core.seeds import generator_for
from fastgen.config import DMDConfig, SampleTimestepConfig
from fastgen.dmd import DMDPipeline
from fastgen.flow_matching import pred_x0_from_flow, sample_timesteps
from support.exact import normal

__all__ = [
    "COND",
    "NOISE",
    "T_LIST",
    "X0",
    "Heads",
    "Net",
    "build",
    "draws",
    "judged_by",
    "networks",
    "student_x0",
]

T_LIST = (0.999, 0.75, 0.5, 0.25, 0.0)
NOISE = normal(6, 3)
X0 = normal(6, 3, seed=1)
COND = normal(6, 3, seed=2)


class Net(nn.Module):
    """A float64 MLP on [x_t, t, cond]; `hidden` are its features."""

    def __init__(self, seed: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(7, 16)
        self.last = nn.Linear(16, 3)
        self.dropout = nn.Dropout(dropout)
        generator = generator_for(seed)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.4 * torch.randn(p.shape, generator=generator))
        self.double()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def hidden(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self.seen.append((x_t.detach(), t.detach()))
        return self.dropout(torch.tanh(self.first(torch.cat([x_t, t[:, None], cond], 1))))

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.last(self.hidden(x_t, t, cond))


class Heads(nn.Module):
    """A discriminator with two heads on one feature."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 2).double()
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(normal(*p.shape, seed=4))

    def forward(self, features: list[Tensor], t: Tensor, cond: Tensor) -> Tensor:
        return self.linear(features[0]) + t[:, None]


def build(
    *, gan: bool = False, rank: int = 0, world_size: int = 1, dropout: float = 0.0, **changes
) -> DMDPipeline:
    """Student, teacher and fake score of seeds 1, 2 and 3, with `DMDConfig(**changes)`; with `gan`
    heads on the teacher's features."""
    config = DMDConfig(**{"fake_score_rung_conditioned": False, **changes})
    student, teacher, fake = (Net(seed, dropout=dropout) for seed in (1, 2, 3))
    extra = {}
    if gan:
        extra["discriminator"] = Heads()
        extra["features"] = lambda x, t, c: [teacher.hidden(x, t, c)]
    return DMDPipeline(student, teacher, fake, config, rank=rank, world_size=world_size, **extra)


def networks(pipeline: DMDPipeline) -> dict[str, nn.Module]:
    """The networks of a pipeline by their names in it."""
    names = ("student", "teacher", "fake_score", "discriminator")
    found = {name: getattr(pipeline, name) for name in names}
    return {name: network for name, network in found.items() if network is not None}


def student_x0(pipeline: DMDPipeline, x_t: Tensor, t: float) -> Tensor:
    """What the student makes of x_t at time `t`."""
    times = torch.full((len(x_t),), t, dtype=torch.float64)
    return pred_x0_from_flow(pipeline.student(x_t, times, COND), x_t, t)


def draws(
    cfg: SampleTimestepConfig, generator: torch.Generator, n: int = 6
) -> tuple[Tensor, Tensor]:
    """Times (n,) and noise (n, 3), drawn as a loss draws them."""
    t = sample_timesteps(n, cfg, device="cpu", generator=generator)
    return t, torch.randn(n, 3, dtype=torch.float64, generator=generator)


def judged_by(net: nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
    """The x0 that a network implies."""
    return pred_x0_from_flow(net(x_t, t.double(), COND), x_t, t)
