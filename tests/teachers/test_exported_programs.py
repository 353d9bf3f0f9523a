"""Converted networks are exported and traced by torch, and the program is the network: at other
sizes of the batch and at other times than those of the example."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen.export import load_student
from fastgen.guidance import Guidance
from fastgen.interpolants import CosineInterpolant
from fastgen.teachers import KeywordNetwork, as_rectified_flow
from fastgen.teachers.guided import GuidedNetwork
from support.folders import export_
from support.networks import dense, equivariant

BETAS = {"name": "betas", "schedule": "linear", "rows": 50}
DECLARATIONS = {
    "flow": {},
    "reversed": {"data_at": 1, "time_scale": 1000.0},
    "cosine eps": {"path": "cosine", "prediction": "eps"},
    "cosine velocity": {"path": "cosine", "prediction": "velocity"},
    "vp score": {"path": "vp", "prediction": "score"},
    "vp v": {"path": "vp", "prediction": "v"},
    "edm x0": {"path": "edm", "prediction": "x0"},
    "betas eps": {"path": BETAS, "prediction": "eps"},
    "nearest betas": {"path": {**BETAS, "nearest": True}, "prediction": "eps"},
}
SIZES = {"x_t": {0: torch.export.Dim.DYNAMIC}, "t": {0: torch.export.Dim.DYNAMIC}}


class Small(nn.Module):
    """A network without a condition, called by names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(4, 3)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return torch.tanh(self.map(torch.cat([x, time.to(x.dtype)[:, None] / 50], 1)))


def converted(name: str) -> Any:
    named = KeywordNetwork(Small(), x="x", t="time", cond=None)
    return as_rectified_flow(named, **DECLARATIONS[name]).double().eval()


def inputs(times: list[float]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(times))
    x_t = torch.randn(len(times), 3, generator=generator, dtype=torch.float64)
    return x_t, torch.tensor(times, dtype=torch.float64)


EXAMPLE = inputs([0.3, 0.6])
OTHERS = [inputs([0.0, 0.05, 0.5, 0.9, 1.0]), inputs([0.2, 0.97, 0.97])]


@pytest.mark.slow
@pytest.mark.parametrize("name", DECLARATIONS)
def test_an_exported_program_is_the_converted_network(name):
    network = converted(name)
    program = torch.export.export(network, EXAMPLE, dynamic_shapes=SIZES).module()
    for x_t, t in OTHERS:
        torch.testing.assert_close(program(x_t, t), network(x_t, t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", DECLARATIONS)
def test_a_traced_network_is_the_converted_network(name):
    network = converted(name)
    traced: Any = torch.jit.trace(network, EXAMPLE, check_trace=False)
    for x_t, t in OTHERS:
        torch.testing.assert_close(traced(x_t, t), network(x_t, t), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["export", "trace"])
def test_the_network_of_a_loaded_student_is_exported(tmp_path, how):
    """Trained equivariant and folded; no rows of the example are left in the program."""
    network = load_student(export_(tmp_path, equivariant().double())).network
    if how == "export":
        rows = {0: torch.export.Dim.DYNAMIC}
        sizes = {"X": rows, "opt_step": rows, "Z": rows, "mask": None}
        call = {"mask": None}
        program: Any = torch.export.export(network, rows_of(2), call, dynamic_shapes=sizes).module()
    else:
        call = {}
        program = torch.jit.trace(network, rows_of(2), check_trace=False)
    for size in (5, 3):
        torch.testing.assert_close(
            program(*rows_of(size), **call), network(*rows_of(size)), rtol=1e-9, atol=1e-9
        )


def rows_of(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """X, t and Z of `size` rows."""
    generator = torch.Generator().manual_seed(size)
    X = torch.randn(size, 3, 4, generator=generator, dtype=torch.float64)
    Z = torch.randn(size, 2, 2, generator=generator, dtype=torch.float64)
    return X, torch.linspace(0.1, 0.9, size, dtype=torch.float64), Z


@pytest.mark.slow
@pytest.mark.parametrize("how", ["export", "trace"])
def test_a_guided_network_that_is_exported_is_guided_at_every_time(how):
    """The example lies outside of the interval, where nothing is guided."""
    inner = as_rectified_flow(dense().double(), path="cosine", prediction="eps")
    null = torch.zeros(1, 2, 2, dtype=torch.float64)
    network = GuidedNetwork(inner, Guidance(3.0, (0.2, 0.7)), null).eval()

    def example(times: list[float]) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(len(times))
        x_t = torch.randn(len(times), 3, 4, generator=generator, dtype=torch.float64)
        z = torch.randn(len(times), 2, 2, generator=generator, dtype=torch.float64)
        return x_t, torch.tensor(times, dtype=torch.float64), z

    if how == "export":
        rows = {0: torch.export.Dim.DYNAMIC}
        sizes = {"x_t": rows, "t": rows, "cond": rows}
        program: Any = torch.export.export(
            network, example([0.9, 0.8]), dynamic_shapes=sizes
        ).module()
    else:
        program = torch.jit.trace(network, example([0.9, 0.8]), check_trace=False)
    for other in (example([0.1, 0.4, 0.6, 0.95]), example([0.3, 0.5, 0.9])):
        torch.testing.assert_close(program(*other), network(*other), rtol=1e-9, atol=1e-9)


def test_a_negative_ratio_is_still_refused_where_it_can_be_read():
    path = CosineInterpolant()
    with pytest.raises(ValueError, match="expected ratio >= 0, got -1"):
        path.time_of_noise_ratio(torch.tensor([-1.0]))
