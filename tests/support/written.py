"""Tiny students of every kind, to be written for other programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.box import Box
from fastgen.export.student import Student
from fastgen.models import CondTransformerRegressor, PatchTransformer
from fastgen.models.conv_unet import TrajectoryUnet
from fastgen.models.trajectory_transformer import TrajectoryTransformer
from fastgen.normalizer import Normalizer
from fastgen.teachers import as_rectified_flow

from .saved import DIT, UNET, network_of

__all__ = ["CONDITIONS", "STUDENTS", "Vectors", "randomised", "written_student"]

MEAN, SCALE = torch.tensor([3.0, -2.0]), torch.tensor([[2.0, 0.5], [0.0, 0.25]])
X_NORMALIZER = Normalizer(MEAN, SCALE)
Z_NORMALIZER = Normalizer(MEAN + 1, 3 * SCALE)
BETAS = {"name": "betas", "schedule": "linear", "rows": 50}
# Rows of conditions of networks whose folders don't say what one looks like.
CONDITIONS: dict[str, Any] = {
    "members": {"goal": torch.randn(4, 2), "kind": torch.tensor([0, 1, 0, 1])},
}


def randomised(network: nn.Module) -> Any:
    """The network with all its numbers random: some begin at 0 and would say nothing."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return network


class Vectors(nn.Module):
    """An MLP on vectors (B, 3) and labels (B,), or a mapping of them and a goal, or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = nn.Embedding(3, 4)
        self.first = nn.Linear(3 + 4 + 2 + 1, 16)
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        goal = x.new_zeros(x.shape[0], 2)
        kind = torch.zeros(x.shape[0], dtype=torch.long)
        if isinstance(cond, Tensor):
            kind = cond
        elif cond is not None:
            goal = cond["goal"]
            kind = cond["kind"]
        seen = torch.cat([x, self.labels(kind), goal, t.to(x.dtype)[:, None] / 1000], 1)
        return self.last(torch.tanh(self.first(seen)))


def tokens(**changes: Any) -> Any:
    options = {"num_layers": 1, "num_attention_heads": 2, "embedding_dim": 8, **changes}
    return randomised(CondTransformerRegressor(4, 4, 2, 3, 2, **options))


def unet() -> Any:
    sizes: dict[str, Any] = {"down_dims": [8, 16], "kernel_size": 3, "num_groups": 8}
    return randomised(TrajectoryUnet(2, 4, **sizes, time_dim=8, scales=True))


def rotary() -> Any:
    sizes: dict[str, Any] = {"embedding_dim": 8, "num_layers": 1, "num_attention_heads": 2}
    return randomised(TrajectoryTransformer(2, 4, **sizes, time_dim=8))


def patches() -> Any:
    return randomised(
        PatchTransformer(1, 4, 2, 3, num_layers=1, num_attention_heads=2, embedding_dim=8)
    )


def diffusers_unet() -> Any:
    import diffusers

    from fastgen.teachers import KeywordNetwork

    network = network_of(diffusers, "UNet2DModel", **UNET)
    named = KeywordNetwork(network, x="sample", t="timestep", cond="class_labels")
    return as_rectified_flow(named, path={**BETAS, "rows": 1000}, prediction="eps")


def dit() -> Any:
    import diffusers

    from fastgen.teachers import KeywordNetwork

    network = network_of(diffusers, "DiTTransformer2DModel", **DIT)
    named = KeywordNetwork(network, x="hidden_states", t="timestep", cond="class_labels")
    return as_rectified_flow(named, path={**BETAS, "nearest": True}, prediction="eps")


def converted(**declaration: Any) -> Any:
    return as_rectified_flow(randomised(Vectors()), **declaration)


TOKENS: dict[str, Any] = {
    "horizon": (6, 2),
    "cond_horizon": (2, 2),
    "pack": 2,
    "x_normalizer": X_NORMALIZER,
    "z_normalizer": Z_NORMALIZER,
}
WAYPOINTS: dict[str, Any] = {
    "horizon": (4, 2),
    "cond_horizon": (2, 2),
    "cond_sizes": {"Z": [(2, 2), (2, 2)]},
}
ONE_CALL: dict[str, Any] = {"t_list": (0.999, 0.0), "steps": [1]}
SDE: dict[str, Any] = {"t_list": (0.999, 0.6, 0.3, 0.0), "steps": [1, 3], "sample_type": "sde"}
ODE: dict[str, Any] = {"t_list": (0.99, 0.5, 0.0), "steps": [2]}
NO_CONDITION = {"cond_sizes": {}}
LABELS = {"config": {"description": {"condition": "integers (B,)"}}, "cond_sizes": {"Z": []}}

# By name: (makes the network, what else the student is).
STUDENTS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "tokens": (tokens, {**TOKENS, **ONE_CALL}),
    "tokens of three sde calls": (tokens, {**TOKENS, **SDE}),
    "tokens of two ode calls, in a box": (tokens, {**TOKENS, **ODE, "box": Box(0.0, [4.0, 1.0])}),
    "causal tokens, one observation": (
        lambda: tokens(causal_attn=True, num_cond_layers=1, norm_module="layernorm"),
        {**TOKENS, **ONE_CALL, "cond_sizes": {"Z": [(1, 1), (2, 2)]}},
    ),
    "tokens with a prefix": (tokens, {**TOKENS, **SDE, "prefix_max": 4}),
    "tokens with masks": (tokens, {**TOKENS, **ONE_CALL, "masks": ("mask", "cond_mask")}),
    "tokens with masks and a prefix": (
        tokens,
        {**TOKENS, **SDE, "masks": ("mask", "cond_mask"), "prefix_max": 2},
    ),
    "tokens that predict x0": (tokens, {**TOKENS, **ODE, "pred_type": "x0"}),
    "tokens that predict eps": (tokens, {**TOKENS, **ODE, "pred_type": "eps"}),
    "times of today": (
        tokens,
        {
            **TOKENS,
            **ONE_CALL,
            "x_normalizer": Normalizer([1.7e9, 0.0], torch.eye(2)),
            "z_normalizer": Normalizer([1.7e9, 0.0], torch.eye(2)),
        },
    ),
    "unet": (unet, {**WAYPOINTS, **ONE_CALL}),
    "rotary": (rotary, {**WAYPOINTS, **ONE_CALL}),
    "patches": (patches, {**ODE, **LABELS, "horizon": (1, 4, 4), "box": Box(-1.0, 1.0)}),
    "vectors": (lambda: randomised(Vectors()), {**SDE, **NO_CONDITION, "horizon": (3,)}),
    "members": (lambda: randomised(Vectors()), {**ONE_CALL, "horizon": (3,)}),
    "cosine eps": (
        lambda: converted(path="cosine", prediction="eps", data_at=1, time_scale=1000.0),
        {**ODE, **LABELS, "horizon": (3,)},
    ),
    "vp score": (
        lambda: converted(path="vp", prediction="score", clip_sample=(-1.0, 1.0)),
        {**ODE, **LABELS, "horizon": (3,)},
    ),
    "edm x0": (lambda: converted(path="edm", prediction="x0"), {**ODE, **LABELS, "horizon": (3,)}),
    "betas eps": (
        lambda: converted(path=BETAS, prediction="eps"),
        {**ODE, **LABELS, "horizon": (3,)},
    ),
    "nearest betas v": (
        lambda: converted(path={**BETAS, "nearest": True}, prediction="v"),
        {**SDE, **LABELS, "horizon": (3,)},
    ),
    "diffusers": (diffusers_unet, {**ONE_CALL, **LABELS, "horizon": (2, 8, 8)}),
    "dit of diffusers": (dit, {**ONE_CALL, **LABELS, "horizon": (2, 8, 8)}),
}


def written_student(name: str) -> Student:
    """The student of this name."""
    make, options = STUDENTS[name]
    torch.manual_seed(0)
    common = {"sample_type": "ode", "pred_type": "flow", "cond_horizon": None}
    return Student(make().eval(), **{**common, **options})
