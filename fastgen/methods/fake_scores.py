"""The student's score: a trainable copy of the teacher that learns to denoise what the student
makes now."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .._core.checks import check_count
from .._core.seeds import generator_for
from ..networks import Cond, NetworkWrapper, network_dtype

__all__ = ["LowRankFakeScore", "RungConditioned", "create_fake_score"]


class RungConditioned(NetworkWrapper):
    """A fake score that knows which rung of the student made the sample it denoises.

    It calls `network(x_t, t + rung, cond)`: rung r uses the times [r, r + 1] of the network's own
    time embedding, which needs no new weights and respects every symmetry the embedding respects.
    Rung 0 *is* the plain network, so a start from the teacher's weights is exact there; the other
    rungs start from the embedding's continuation beyond 1 and are learned in the fake score's
    warm-up.

    Args:
        network: denoiser called `network(x_t, t, cond)` that doesn't clamp t to [0, 1].
        num_rungs: number of rungs, >= 1.
    """

    def __init__(self, network: nn.Module, num_rungs: int) -> None:
        super().__init__(network)
        if hasattr(self, "t_max"):
            raise ValueError(
                "expected a network that takes times beyond 1, got one that clamps them to its "
                f"own range (t_max={self.t_max}); set fake_score_rung_conditioned=False"
            )
        self.num_rungs = check_count("num_rungs", num_rungs)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond, rung: int | Tensor = 0) -> Tensor:
        """Predict from `x_t` (B, ...) at `t` (B,), made at `rung`: an int or integers (B,)."""
        if isinstance(rung, int) and not 0 <= rung < self.num_rungs:
            raise ValueError(f"expected rung in [0, {self.num_rungs}), got {rung}")
        return self.network(x_t, t + rung, cond)


class LowRankLinear(nn.Linear):
    r"""A frozen linear map with a trained correction of low rank, x -> W x + b + (alpha / r) B A x.

    A (r, in) starts at N(0, 1 / in), B (out, r) at 0: at the start this is the frozen map. What
    asks for `weight` instead of calling the map gets W + (alpha / r) B A.

    Args:
        linear: the frozen map, whose memory is shared.
        rank: r.      scale: alpha / r.      generator: source of A.
    """

    def __init__(
        self, linear: nn.Linear, rank: int, scale: float, generator: torch.Generator
    ) -> None:
        nn.Module.__init__(self)
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.scale = scale
        self.frozen = linear.weight
        self.bias = linear.bias
        place = {
            "device": linear.weight.device,
            "dtype": torch.promote_types(linear.weight.dtype, torch.float32),
        }
        down = torch.randn(rank, self.in_features, generator=generator) * self.in_features**-0.5
        self.down = nn.Parameter(down.to(**place))
        self.up = nn.Parameter(torch.zeros(self.out_features, rank, **place))

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.frozen + (self.scale * self.up @ self.down).to(self.frozen.dtype)

    def forward(self, input: Tensor) -> Tensor:
        low = functional.linear(functional.linear(input, self.down), self.up)
        return functional.linear(input, self.frozen, self.bias) + self.scale * low


class LowRankFakeScore(NetworkWrapper):
    """A fake score that is its teacher, whose weights it shares and leaves alone, with a trained
    correction of low rank in each `nn.Linear` (Hu et al., LoRA, 2021, arXiv:2106.09685).

    Its parameters and its state dict are the corrections alone. It is called as the teacher is,
    always in the teacher's mode (no dropout for a teacher in eval mode).

    Args:
        teacher: called `teacher(x_t, t, cond)`. On the device already: the memory is shared as it
            lies now.
        rank: r >= 1 of the corrections.
        alpha: they are multiplied by alpha / r; None: r.
        seed: of the corrections' start.

    Raises:
        ValueError: a teacher less than half of whose weights are in `nn.Linear` modules, such as an
            equivariant one: corrections of dense matrices would not respect its symmetry.
    """

    def __init__(
        self, teacher: nn.Module, rank: int, *, alpha: float | None = None, seed: int = 0
    ) -> None:
        # Not NetworkWrapper's own, which would count the teacher's weights among this module's.
        nn.Module.__init__(self)
        check_count("rank", rank)
        network = _sharing_memory(teacher)
        linears: dict[nn.Linear, str] = {}  # and their first paths
        places: list[tuple[nn.Module, str, nn.Linear]] = []
        for path, module in list(network.named_modules()):
            for name, child in module.named_children():
                # Subclasses may be read rather than called, as in nn.MultiheadAttention.
                if type(child) is nn.Linear:
                    linears.setdefault(child, f"{path}.{name}".lstrip("."))
                    places.append((module, name, child))
        reached = sum(child.weight.numel() for child in linears)
        total = sum(parameter.numel() for parameter in network.parameters())
        if 2 * reached < total:
            raise ValueError(
                "expected a teacher with most of its weights in nn.Linear modules for "
                f"train.fake_score_rank={rank}, got {type(teacher).__name__} with {reached:,} of "
                f"{total:,}; set it to null"
            )
        generator = generator_for(seed, "low rank")
        scale = 1.0 if alpha is None else alpha / rank
        self.corrections = nn.ParameterDict()
        made = {linear: LowRankLinear(linear, rank, scale, generator) for linear in linears}
        for linear, path in linears.items():
            for part in ("down", "up"):
                self.corrections[f"{path.replace('.', '/')}/{part}"] = getattr(made[linear], part)
        for module, name, linear in places:
            setattr(module, name, made[linear])
        self.call_dtype = network_dtype(teacher, torch.float32)
        # What is frozen is the teacher's, not this module's: out of `parameters()` and the state
        # dict.
        self.unregistered = (network,)

    @property
    def network(self) -> nn.Module:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The teacher's modules with the corrections in them."""
        return self.unregistered[0]

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        """Predict from `x_t` (B, ...) at `t` (B,)."""
        return self.network(x_t, t, cond)

    def get_optim_groups(self, weight_decay: float = 1e-3) -> list[dict[str, Any]]:
        """The corrections, which all decay."""
        return [{"params": list(self.parameters()), "weight_decay": weight_decay}]


def _sharing_memory(network: nn.Module) -> nn.Module:
    """A copy whose parameters are frozen and lie in the memory of those of `network`, and so do its
    buffers."""
    shared: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()
    }
    shared |= {id(buffer): buffer for buffer in network.buffers()}
    return copy.deepcopy(network, shared)


def create_fake_score(
    teacher: nn.Module, *, num_rungs: int = 1, rank: int | None = None, seed: int = 0
) -> nn.Module:
    """A trainable copy of the teacher, wrapped in `RungConditioned` if there is more than one rung.

    At the start fake score and teacher agree, and the VSD gradient is zero: warm the fake score up
    first.

    Args:
        teacher: called `teacher(x_t, t, cond)`.
        num_rungs: of the student.
        rank: not a copy, but a `LowRankFakeScore` on the teacher's own weights; None: a copy.
        seed: of such a one.
    """
    if rank is None:
        fake_score: nn.Module = copy.deepcopy(teacher).requires_grad_(True)
    else:
        fake_score = LowRankFakeScore(teacher, rank, seed=seed)
    return fake_score if num_rungs == 1 else RungConditioned(fake_score, num_rungs)
