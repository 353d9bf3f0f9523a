"""Fake scores: trainable copies of the teacher that learn to denoise what the student makes now.

The teacher's score is that of the data, a fake score's that of the student's samples. A fake score
is a full copy, or the teacher's own weights with corrections of low rank (`LowRankFakeScore`).
Either may be told the rung that made a sample (`RungConditioned`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .._core.caches import renew_before_calls
from .._core.checks import check_count
from .._core.copies import copied
from .._core.modules import as_built
from .._core.precision import in_full_precision, trainable
from .._core.seeds import generator_for
from ..networks import Cond, NetworkWrapper, network_dtype, unwrap

__all__ = [
    "LowRankFakeScore",
    "LowRankLinear",
    "RungConditioned",
    "check_pull",
    "create_fake_score",
    "pull",
]


class RungConditioned(NetworkWrapper):
    """A fake score that knows which rung of the student made the sample it denoises.

    It calls `network(x_t, t + rung, cond)`: rung r has the times [r, r + 1] of the network's own
    time embedding. That needs no new weights, and respects every symmetry that the embedding
    respects.

    Rung 0 *is* the plain network, so there a copy of the teacher starts exactly as the teacher. The
    other rungs start from what the embedding says beyond 1, and are learned in the fake score's
    warm-up.

    Args:
        network: denoiser called `network(x_t, t, cond)` that doesn't clamp t to [0, 1].
        num_rungs: number of rungs, >= 1.

    Raises:
        ValueError: a network that declares `t_max`: it clamps times to a range of its own.
    """

    added_by_run = True

    def __init__(self, network: nn.Module, num_rungs: int) -> None:
        super().__init__(network)
        if hasattr(self, "t_max"):
            raise ValueError(
                "expected a network that takes times beyond 1, got one that clamps them to its "
                f"own range (t_max={self.t_max}); set fake_score_rung_conditioned=False"
            )
        self.num_rungs = check_count("num_rungs", num_rungs)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond, rung: int | Tensor = 0) -> Tensor:
        """The prediction for `x_t` (B, ...) at `t` (B,), made at `rung`: an int or integers (B,).

        Raises:
            ValueError: an int that is no rung. Integers in a tensor aren't looked at: the host
                would have to wait for them.
        """
        if isinstance(rung, int) and not 0 <= rung < self.num_rungs:
            raise ValueError(f"expected rung in [0, {self.num_rungs}), got {rung}")
        return self.network(x_t, t + rung, cond)


class LowRankLinear(nn.Linear):
    r"""A frozen linear map with a trained correction of low rank, x -> W x + b + (alpha / r) B A x.

    A (r, in) starts at N(0, 1 / in), B (out, r) at 0: at the start this is the frozen map. Whoever
    reads `weight` instead of calling the map gets W + (alpha / r) B A.

    Args:
        linear: the frozen map, whose memory is shared.
        rank: r.
        scale: alpha / r.
        generator: source of A.
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
        low = functional.linear(functional.linear(input.to(self.down.dtype), self.down), self.up)
        answer = functional.linear(input, self.frozen, self.bias)
        return answer + (self.scale * low).to(answer.dtype)


class LowRankFakeScore(NetworkWrapper):
    """A fake score that is the frozen teacher with a trained correction of low rank in each
    `nn.Linear` (Hu et al., LoRA, 2021, arXiv:2106.09685).

    It shares the teacher's weights in memory and leaves them alone. Its parameters and its state
    dict are the corrections alone, in no less than float32. Maps that are frozen in a partly frozen
    teacher get none. It is called as the teacher is, always in the teacher's mode (no
    dropout for a teacher in eval mode).

    Args:
        teacher: called `teacher(x_t, t, cond)`. It must be on its device already: one that is moved
            later leaves the shared memory behind.
        rank: r >= 1 of the corrections.
        alpha: corrections are multiplied by alpha / r; None: alpha = r.
        seed: of the corrections' start.

    Raises:
        ValueError: a teacher less than half of whose weights are in `nn.Linear` modules, such as an
            equivariant one: corrections of dense matrices would not respect its symmetry.
    """

    added_by_run = True

    def __init__(
        self, teacher: nn.Module, rank: int, *, alpha: float | None = None, seed: int = 0
    ) -> None:
        # Not NetworkWrapper's own, which would count the teacher's weights among this module's.
        nn.Module.__init__(self)
        check_count("rank", rank)
        network = _sharing_memory(teacher)
        # The copy is frozen; what is to be trained, the teacher's own parameters say.
        whole = not any(parameter.requires_grad for parameter in teacher.parameters())
        linears = {
            linear: places
            for (linear, places), given in zip(
                _linears_of(network).items(), _linears_of(teacher), strict=True
            )
            if whole or given.weight.requires_grad
        }
        reached = sum(linear.weight.numel() for linear in linears)
        total = sum(p.numel() for p in teacher.parameters() if whole or p.requires_grad)
        if 2 * reached < total:
            raise ValueError(
                "expected a teacher with most of its weights in nn.Linear modules for "
                f"train.fake_score_rank={rank}, got {type(teacher).__name__} with {reached:,} of "
                f"{total:,}; set it to null"
            )
        generator = generator_for(seed, "low rank")
        scale = 1.0 if alpha is None else alpha / rank
        self.corrections = nn.ParameterDict()
        for linear, places in linears.items():
            corrected = LowRankLinear(linear, rank, scale, generator)
            path = places[0].path.replace(".", "/")
            self.corrections[f"{path}/down"] = corrected.down
            self.corrections[f"{path}/up"] = corrected.up
            for place in places:
                setattr(place.module, place.name, corrected)
        self.call_dtype = network_dtype(teacher, torch.float32)
        # In a tuple torch doesn't see it: the frozen weights are the teacher's, and stay out of
        # `parameters()` and the state dict.
        self.unregistered = (network,)

    @property
    def network(self) -> nn.Module:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The teacher's modules with the corrections in them."""
        return self.unregistered[0]

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        """The prediction for `x_t` (B, ...) at `t` (B,)."""
        return self.network(x_t, t, cond)

    def get_optim_groups(self, weight_decay: float = 1e-3) -> list[dict[str, Any]]:
        """The corrections, which all decay."""
        return [{"params": list(self.parameters()), "weight_decay": weight_decay}]


class _Place(NamedTuple):
    """Where a module holds another.

    Attributes:
        path: of the inner module in the whole network.
        module: the one that holds it.
        name: of the inner module in there.
    """

    path: str
    module: nn.Module
    name: str


def _linears_of(network: nn.Module) -> dict[nn.Linear, list[_Place]]:
    """The linear maps of a network, each with its places. Subclasses of `nn.Linear` are left out:
    they may be read rather than called, as in nn.MultiheadAttention."""
    found: dict[nn.Linear, list[_Place]] = {}
    for path, module in network.named_modules():
        prefix = f"{path}." if path else ""
        for name, child in module._modules.items():
            if type(child) is nn.Linear:
                found.setdefault(child, []).append(_Place(prefix + name, module, name))
    return found


def _sharing_memory(network: nn.Module) -> nn.Module:
    """A copy that lies in the memory of `network`, parameters and buffers, and whose parameters are
    frozen."""
    shared: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()
    }
    shared |= {id(buffer): buffer for buffer in network.buffers()}
    # A copy takes what it finds here for what it has copied already.
    return copied(network, sharing=shared)


def create_fake_score(
    teacher: nn.Module, *, num_rungs: int = 1, rank: int | None = None, seed: int = 0
) -> nn.Module:
    """A trainable fake score of the teacher, wrapped in `RungConditioned` if there is more than one
    rung. It is in full precision, whatever the teacher is in; what is frozen in a partly frozen
    teacher stays frozen.

    At the start fake score and teacher agree, and the VSD gradient is zero: warm the fake score up
    first.

    Args:
        teacher: called `teacher(x_t, t, cond)`.
        num_rungs: of the student.
        rank: of the corrections of a `LowRankFakeScore`; None for a full copy of the teacher.
        seed: of the corrections' start.
    """
    fake_score: nn.Module
    if rank is None:
        fake_score = trainable(in_full_precision(copied(teacher)), teacher)
        renew_before_calls(unwrap(fake_score))
    else:
        fake_score = LowRankFakeScore(teacher, rank, seed=seed)
    return fake_score if num_rungs == 1 else RungConditioned(fake_score, num_rungs)


# ---- A pull towards the student ------------------------------------------------------------------


def check_pull(fake_score: nn.Module, student: nn.Module) -> None:
    """Refuse a fake score that cannot be pulled towards a student.

    Raises:
        ValueError: it has corrections of low rank, is told the rung, or has other parameters.
    """
    built = as_built(fake_score)
    if isinstance(built, LowRankFakeScore | RungConditioned):
        raise ValueError(
            "expected a fake score that is called as the student is for fake_score_pull, got "
            f"{type(built).__name__}; set train.fake_score_rank=null and "
            "dmd.fake_score_rung_conditioned=false, or fake_score_pull=0"
        )
    ours = {name: tuple(value.shape) for name, value in built.named_parameters()}
    theirs = {name: tuple(value.shape) for name, value in as_built(student).named_parameters()}
    differ = sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )
    if differ:
        raise ValueError(
            "expected a fake score with the student's parameters for fake_score_pull, got another "
            f"shape of {differ[0]}: {ours.get(differ[0])} and {theirs.get(differ[0])}; set it to 0"
        )


@torch.no_grad()
def pull(fake_score: nn.Module, student: nn.Module, share: float) -> None:
    """Move the weights of a fake score towards those of the student, in place:

        w <- (1 - p) w + p w_student

    The law that the fake score knows is the one the student had before its update; p > 0 takes a
    part of the update along at once. It is no fixed point of the fake score's own loss, since a
    student is a denoiser at its rungs only: p is to be small, its updates win back the rest.

    Source: Ge et al., SenseFlow, 2025, arXiv:2506.00523 (implicit distribution alignment).

    Args:
        fake_score, student: networks that passed `check_pull`, in training or not.
        share: p in [0, 1).
    """
    theirs = dict(as_built(student).named_parameters())
    for name, weight in as_built(fake_score).named_parameters():
        if weight.requires_grad:
            weight.lerp_(theirs[name].to(weight.dtype), share)
