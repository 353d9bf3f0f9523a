"""Networks of kinds that other libraries bring along; all are called as the toy's teacher is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from support.launched import Bodied

__all__ = ["REFUSED", "SERVED"]


class Expanding(nn.Module):
    """A linear map whose weight is expanded from other numbers, and kept in eval mode."""

    def __init__(self, size: int, out: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.numbers = nn.Parameter(0.3 * torch.randn(size * out))
        self.size = size
        self.dropout = dropout
        self.register_buffer("kept", None, persistent=False)

    def train(self, mode: bool = True) -> Expanding:
        self.kept = None
        return super().train(mode)

    def weight(self) -> Tensor:
        if self.training:
            return 2.0 * self.numbers.view(-1, self.size)
        if self.kept is None:
            self.kept = 2.0 * self.numbers.view(-1, self.size)
        return self.kept

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(
            functional.linear(x, self.weight()), self.dropout, training=self.training
        )


class ExpandedAtOnce(Expanding):
    """Expands when it is told to evaluate, as escnn's convolutions do, into a stored buffer."""

    def __init__(self, size: int, out: int) -> None:
        super().__init__(size, out)
        del self._buffers["kept"]

    def train(self, mode: bool = True) -> ExpandedAtOnce:
        if mode:
            self._buffers.pop("filter", None)
        elif self.training:
            self.register_buffer("filter", 2.0 * self.numbers.view(-1, self.size))
        nn.Module.train(self, mode)
        return self

    def weight(self) -> Tensor:
        return 2.0 * self.numbers.view(-1, self.size) if self.training else self.filter


class Stale(Expanding):
    """Never throws away what it keeps."""

    def train(self, mode: bool = True) -> Stale:
        nn.Module.train(self, mode)
        return self


class Convolutions(Bodied):
    """Has the convolutions of escnn, which expand their filters when they are told to evaluate."""

    def __init__(self) -> None:
        from escnn import gspaces
        from escnn.nn import FieldType, R2Conv, ReLU

        super().__init__()
        space = gspaces.rot2dOnR2(4)
        self.fields = FieldType(space, 2 * [space.trivial_repr])
        hidden = FieldType(space, [space.regular_repr])
        self.convolutions = nn.ModuleList(
            [
                R2Conv(self.fields, hidden, 3, padding=1),
                ReLU(hidden),
                R2Conv(hidden, self.fields, 3, padding=1),
            ]
        )

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        image = self.fields(super().forward(x_t, t, cond).view(-1, 2, 2, 2))
        for layer in self.convolutions:
            image = layer(image)
        return image.tensor.reshape(x_t.shape)


def with_head(head: nn.Module) -> Bodied:
    network = Bodied()
    network.head = head
    return network


class Rotary(Bodied):
    """Has a complex table that is not stored."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.polar(torch.ones(8), torch.arange(8.0)), False)

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        turned = (x_t.flatten(1) * self.table).imag.view_as(x_t)
        return super().forward(x_t + turned, t, cond)


class Growing(Bodied):
    """Has a table that grows with what it is called with, and is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(0))

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        if len(self.table) < len(x_t):
            self.table = torch.arange(float(len(x_t))).sin()
        return super().forward(x_t, t, cond)


class Extra(Bodied):
    """Has extra state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.version = 3

    def get_extra_state(self) -> dict[str, int]:
        return {"version": self.version}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.version = state["version"]


class Integer(Bodied):
    """Has a table of indices among its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.order = nn.Parameter(torch.arange(8).flip(0), requires_grad=False)

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        turned = x_t.flatten(1)[:, self.order].view_as(x_t)
        return super().forward(turned, t, cond)


class Complex(Bodied):
    def __init__(self) -> None:
        super().__init__()
        self.phases = nn.Parameter(torch.ones(8, dtype=torch.complex64))

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        turned = (x_t.flatten(1) * self.phases).real.view_as(x_t)
        return super().forward(turned, t, cond)


class WithoutGradient(Bodied):
    @torch.no_grad()
    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        return super().forward(x_t, t, cond)


class Inferring(Bodied):
    @torch.inference_mode()
    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        return super().forward(x_t, t, cond)


class Keeping(Bodied):
    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        self.last = super().forward(x_t, t, cond)
        return self.last


class Unfit(Bodied):
    """Offers groups of parameters by a rule that fails."""

    def get_optim_groups(self, weight_decay: float = 1e-3) -> list[dict]:
        raise ValueError("unrecognised parameter body.0.weight")


class Forgetful(Bodied):
    """Offers groups without its last layer."""

    def get_optim_groups(self, weight_decay: float = 1e-3) -> list[dict]:
        return [{"params": self.body.parameters(), "weight_decay": weight_decay}]


class Uncopyable(Bodied):
    def __deepcopy__(self, memo: dict) -> Uncopyable:
        raise RuntimeError("a handle of a driver")


def old_norm(normed) -> Bodied:
    network = Bodied()
    normed(network.head)
    return network


SERVED = {
    "kept weights": lambda: with_head(Expanding(6, 8)),
    "kept weights, own dropout": lambda: with_head(Expanding(6, 8, dropout=0.5)),
    "weights expanded at once": lambda: with_head(ExpandedAtOnce(6, 8)),
    "escnn": Convolutions,
    "weight_norm": lambda: old_norm(nn.utils.weight_norm),
    "spectral_norm": lambda: old_norm(nn.utils.spectral_norm),
    "weight_norm as parametrization": lambda: old_norm(parametrizations.weight_norm),
    "spectral_norm as parametrization": lambda: old_norm(parametrizations.spectral_norm),
    "orthogonal": lambda: old_norm(parametrizations.orthogonal),
    "complex table": Rotary,
    "growing table": Growing,
    "extra state": Extra,
    "integer parameter": Integer,
    "kept output": Keeping,
    "unfit groups": Unfit,
    "forgetful groups": Forgetful,
}


class Packed(Extra):
    """Has extra state that no JSON holds."""

    def get_extra_state(self) -> dict[str, Any]:
        return {"version": self.version, "packed": b"bytes"}


REFUSED = {
    "stale weights": (lambda: with_head(Stale(6, 8)), "keeps what it has computed of head.numbers"),
    "packed extra state": (Packed, "extra state that JSON can hold in .*, got .*bytes"),
    "complex parameter": (Complex, "complex numbers in phases"),
    "no gradient": (WithoutGradient, "is its forward under torch.no_grad"),
    "inference": (Inferring, "is its forward under torch.no_grad"),
    "no copy": (Uncopyable, "a copy of the network failed with RuntimeError: a handle of a driver"),
}
