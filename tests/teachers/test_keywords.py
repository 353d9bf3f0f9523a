"""Networks called by keywords: with a condition by its name, or with none at all."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen.config import KeywordsConfig
from fastgen.export import export_student, load_student
from fastgen.jobs.sources import load_teacher
from fastgen.teachers import KeywordNetwork
from fastgen.teachers.descriptions import describe_network, wrap_network
from support.sources import config


class Plain(nn.Module):
    """A network that takes no condition."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(3, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.map(x) * t[:, None]


class Conditional(Plain):
    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return super().forward(x, t) + encoder_hidden_states


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
T = torch.linspace(0.1, 0.9, 4)


@pytest.mark.parametrize("cond", [None, torch.ones(4, 2), {"goal": torch.ones(4)}, (X, X)])
def test_a_network_with_cond_none_is_given_none_whatever_the_data_hold(cond):
    network: Any = KeywordNetwork(Plain(), x="x", t="t", cond=None)
    assert torch.equal(network(X, T, cond), network.network(X, T))


def test_names_that_are_left_out_keep_their_defaults():
    network: Any = load_teacher(config({"keywords": {"x": "x", "t": "t"}}), Conditional())
    assert torch.equal(network(X, T, X), network.network(X, T, X))
    with pytest.raises(TypeError, match="encoder_hidden_states"):
        load_teacher(config({"keywords": {"x": "x", "t": "t"}}), Plain())(X, T, X)


def test_null_in_a_config_is_a_network_without_a_condition():
    assert KeywordsConfig(x="x", t="t", cond=None).cond is None
    names = {"x": "x", "t": "t", "cond": None}
    network: Any = load_teacher(config({"keywords": names}), Plain())
    assert torch.equal(network(X, T, X), network.network(X, T))


def test_a_student_without_a_condition_comes_back_and_samples_without_an_argument(tmp_path):
    network: Any = KeywordNetwork(Plain(), x="x", t="t", cond=None)
    _, description = describe_network(network)
    assert wrap_network(Plain(), description)(X, T).equal(network(X, T))
    export_student(tmp_path, network, t_list=[1.0, 0.0], horizon=(3,), cond_sizes={})
    student = load_student(tmp_path, network=Plain())
    assert student.sample().shape == (1, 3) and student.sample(num_samples=5).shape == (1, 5, 3)
    with pytest.raises(
        ValueError, match=r"expected no Z, as the student was trained, got \(4, 3\)"
    ):
        student.sample(X)


@pytest.mark.parametrize("name", ["", "two words", 3, None])
def test_other_names_are_still_names(name):
    with pytest.raises(ValueError, match="expected x to be the name of an argument"):
        KeywordNetwork(Plain(), x=name)
