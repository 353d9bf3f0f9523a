"""Networks of a user's own and what can be declared of them, for the tests of conversions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from support.exact import normal

__all__ = [
    "Bare",
    "ByKeyword",
    "COSINE_EPS",
    "DECLARATIONS",
    "LABELS",
    "NAMES",
    "NONSENSE",
    "T",
    "X",
    "flow",
]

COSINE_EPS: dict[str, Any] = {
    "path": "cosine",
    "prediction": "eps",
    "data_at": 1,
    "time_scale": 1000.0,
}
NAMES = {"x": "sample", "t": "timestep", "cond": "labels", "output": "sample"}
DECLARATIONS: list[dict[str, Any]] = [
    {},
    COSINE_EPS,
    {"path": {"name": "vp", "sigma_min": 0.2, "sigma_max": 9.0}, "prediction": "score"},
    {"path": "edm", "prediction": "x0"},
    {"path": {"name": "betas", "betas": [0.25, 0.5, 1.0]}, "prediction": "v", "nearest": True},
]


class Bare(nn.Module):
    """A small network of a user's own, on vectors (B, 3) and labels (B,) or nothing."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(4, 3, dtype=dtype)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        y = self.map(torch.cat([x, t.to(x.dtype)[:, None] / 1000], 1))
        return y if cond is None else y + 0.1 * cond[:, None]


class ByKeyword(Bare):
    """The same, as diffusers would have it."""

    def __init__(self, answer: Any = None) -> None:
        super().__init__()
        self.answer = answer or (lambda y: SimpleNamespace(sample=y))

    def forward(
        self, *, sample: Tensor, timestep: Tensor, labels: Tensor | None = None, scale: float = 1.0
    ) -> Any:
        return self.answer(scale * super().forward(sample, timestep, labels))


X = normal(5, 3, dtype=torch.float32)
T = torch.linspace(0, 999, 5)
LABELS = torch.arange(5)


def flow(**changes: Any) -> dict[str, Any]:
    path = {"name": "cosine"}
    return {"rectified_flow": {"path": path, "prediction": "eps", **changes}, "keywords": None}


NONSENSE = [
    ({}, r"expected rectified_flow and keywords, got \[\]"),
    ({**flow(), "more": 1}, "expected rectified_flow and keywords, got "),
    (
        {"rectified_flow": 3, "keywords": None},
        "expected the arguments of as_rectified_flow and KeywordNetwork",
    ),
    (
        {"rectified_flow": None, "keywords": [1]},
        "expected the arguments of as_rectified_flow and KeywordNetwork",
    ),
    (
        {"rectified_flow": None, "keywords": {"y": "x"}},
        "expected the arguments of as_rectified_flow",
    ),
    (flow(path="cosine"), "expected the arguments of as_rectified_flow"),
    (flow(path={"name": "cubic"}), "unknown path 'cubic'"),
    (
        flow(path={"name": "custom", "class": "Own"}),
        r"expected as_rectified_flow\(network, path=Own\(\), ...\)",
    ),
    (flow(prediction="noise"), "unknown prediction 'noise'"),
    (flow(time_scale=-1.0), "expected time_scale > 0, got -1.0"),
    (flow(data_at="end"), "expected data_at to be 0 or 1, got 'end'"),
    (flow(clock=1), "unexpected keyword argument 'clock'"),
]
