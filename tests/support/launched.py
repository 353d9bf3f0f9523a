"""A network with a body, and what launchers put around the whole or the body."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["AROUND", "PLACES", "Bodied", "launched"]


class Bodied(nn.Module):
    """x_t, t, cond in rows of (2, 4), (), (1, 2), as the toy's teacher is called."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(11, 6), nn.Tanh())
        self.head = nn.Linear(6, 8)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        times = torch.as_tensor(t, dtype=x_t.dtype).expand(len(x_t))[:, None]
        tokens = torch.cat([x_t.flatten(1), times, cond.flatten(1)], 1)
        return self.head(self.body(tokens)).view_as(x_t)


def _compiled(module: nn.Module) -> nn.Module:
    compiled = torch.compile(module, backend="eager")
    assert isinstance(compiled, nn.Module)
    return compiled


AROUND: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": _compiled,
    "parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "both": lambda module: _compiled(nn.DataParallel(module)),
}
PLACES = ("whole", "body", "inside the body", "everywhere")


def launched(network: Bodied, around: str, place: str) -> nn.Module:
    """`network`, changed in place but for its weights, with a launcher around it or in it."""
    wrap = AROUND[around]
    if place in ("inside the body", "everywhere"):
        network.body[0] = wrap(network.body[0])
    if place in ("body", "everywhere"):
        network.body = wrap(network.body)
    return wrap(network) if place in ("whole", "everywhere") else network
