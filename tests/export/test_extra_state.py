"""Extra state that is no tensor goes with an export as JSON, or is refused by name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgen.export import export_student, load_network, load_student, save_network
from fastgen.export.schema import EXPORT_CONFIG
from fastgen.teachers import as_rectified_flow


class Gain(nn.Module):
    """Linear, times a number that is no tensor."""

    def __init__(self, state: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state

    def forward(self, x_t: Tensor, t: Tensor, cond: None = None) -> Tensor:
        return self.state["gain"] * self.weight * x_t


class Fussy(Gain):
    def set_extra_state(self, state: Any) -> None:
        assert state == "other", "not this one"


class Holder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x_t: Tensor, t: Tensor, cond: None = None) -> Tensor:
        return self.inner(x_t, t, cond)


STATES = ({"gain": 2.5, "names": ["a", None], "on": True}, 0.1, "text", [], 2**70)


@pytest.mark.parametrize("state", STATES, ids=str)
def test_extra_state_comes_back_as_it_was(tmp_path, state):
    save_network(tmp_path / "net", Holder(Gain(state)))
    loaded, _ = load_network(tmp_path / "net", network=Holder(Gain("other")))
    assert loaded.inner.state == state and type(loaded.inner.state) is type(state)


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("launched", [False, True])
def test_a_student_samples_with_the_extra_state_of_the_network_that_was_exported(
    tmp_path, converted, launched
):
    network: nn.Module = Holder(Gain({"gain": 2.5}))
    if launched:
        network = Holder(nn.DataParallel(network.inner))
    if converted:
        network = as_rectified_flow(network, path="cosine", prediction="eps")
    export_student(tmp_path / "student", network, t_list=[0.9, 0.0], horizon=(2,))
    noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    students = [
        load_student(tmp_path / "student", network=Holder(Gain(state)))
        for state in ({"gain": 2.5}, {"gain": 0.0})
    ]
    one, two = (student.sample(noise=noise) for student in students)
    assert torch.equal(one, two)


UNHELD = (
    (1, 2),
    {1: "one"},
    math.nan,
    {"a": [math.inf]},
    b"bytes",
    {"a": torch.ones(2)},
    np.ones(1),
    np.float32(1.0),
)


@pytest.mark.parametrize("state", UNHELD, ids=repr)
def test_what_json_would_change_is_refused_by_name_and_nothing_is_written(tmp_path, state):
    with pytest.raises(ValueError, match=r"JSON can hold in inner\._extra_state, got") as caught:
        save_network(tmp_path / "net", Holder(Gain(state)))
    assert "\n" not in str(caught.value) and not (tmp_path / "net").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Sequential(), "extra state '_extra_state', got Sequential without"),
        (Fussy("other"), "_extra_state was refused with AssertionError: not this one"),
    ],
)
def test_a_network_that_cannot_take_it_is_refused(tmp_path, other, message):
    save_network(tmp_path / "net", Gain({"gain": 1.0}))
    if not list(other.parameters()):
        other.register_parameter("weight", nn.Parameter(torch.ones(2)))
    with pytest.raises(ValueError, match=message):
        load_network(tmp_path / "net", network=other)


def test_a_folder_without_it_leaves_that_of_the_network(tmp_path):
    plain = nn.Module()
    plain.weight = nn.Parameter(torch.zeros(2))
    save_network(tmp_path / "net", plain)
    assert "extra_state" not in (tmp_path / "net" / EXPORT_CONFIG).read_text()
    loaded, _ = load_network(tmp_path / "net", network=Gain("mine"))
    assert loaded.state == "mine" and torch.equal(loaded.weight, plain.weight)
