"""Networks that edit what they are given: they give what their twins do that don't edit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.calls import call_intact
from fastgen._core.copies import copied
from fastgen.distillation import distill
from fastgen.export import load_student
from fastgen.guidance import Guidance
from fastgen.networks import call_network, predict_x0
from fastgen.samplers import sample_student, sample_teacher
from fastgen.teachers import KeywordNetwork, as_rectified_flow
from fastgen.teachers.guided import GuidedNetwork
from support.launched import Bodied
from support.toy import ToyTask, toy_config

X = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0))
T = torch.linspace(0.1, 0.9, 5)
COND = torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(1))


class Twin(Bodied):
    """Twice its input and condition, three times the clock; without an edit."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return super().forward(2.0 * x_t, 3.0 * t, 2.0 * cond)


class Editing(Bodied):
    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        x_t.mul_(2.0)
        t.mul_(3.0)
        cond.mul_(2.0)
        return super().forward(x_t, t, cond)


class EditingUnseen(Bodied):
    """Writes where torch doesn't count."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        x_t.data.mul_(2.0)
        cond.data.mul_(2.0)
        return super().forward(x_t, 3.0 * t, cond)


class EditingAtTimes(Bodied):
    """Edits at some times only."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        if t.max() < 0.8:
            x_t.mul_(2.0)
        else:
            x_t = 2.0 * x_t
        return super().forward(x_t, 3.0 * t, 2.0 * cond)


KINDS = [Editing, EditingUnseen, EditingAtTimes]


def bare(kind: type[Bodied]) -> nn.Module:
    return kind()


def flow(kind: type[Bodied]) -> nn.Module:
    return as_rectified_flow(kind(), path="cosine", prediction="v")


def guided(kind: type[Bodied]) -> nn.Module:
    return GuidedNetwork(kind(), Guidance(2.0), torch.ones(1, 1, 2))


def called(network: nn.Module, x: Tensor, cond: Tensor) -> Tensor:
    return call_network(network, x, T, cond, dtype=x.dtype)


def at_one_time(network: nn.Module, x: Tensor, cond: Tensor) -> Tensor:
    return predict_x0(network, x, 0.5, cond, pred_type="flow", dtype=x.dtype)


def by_teacher(network: nn.Module, x: Tensor, cond: Tensor) -> Tensor:
    return sample_teacher(network, x, 30, cond)


def by_student(network: nn.Module, x: Tensor, cond: Tensor) -> Tensor:
    return sample_student(network, x, [0.9, 0.5, 0.0], cond)


@pytest.mark.parametrize("use", [called, at_one_time, by_teacher, by_student])
@pytest.mark.parametrize("coat", [bare, flow, guided])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_samples_are_those_of_the_twin_and_inputs_stay(
    kind, coat: Callable[[type[Bodied]], nn.Module], use
):
    x = X.clone()
    cond = COND.clone()
    with torch.no_grad():
        expected = use(coat(Twin), X, COND)
        found = [use(coat(kind), x, cond) for _ in range(2)]
    for samples in found:
        torch.testing.assert_close(samples, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(x, X) and torch.equal(cond, COND)


class Popping(Bodied):
    """Takes its condition out of what it was given."""

    def forward(self, x_t: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        return super().forward(x_t, t, cond.pop("obs")) + cond.setdefault("more", 1.0)


def test_a_mapping_that_is_emptied_stays_whole():
    cond = {"obs": COND, "mask": torch.ones(5, 1)}
    network = Popping()
    for _ in range(40):
        call_network(network, X, T, cond, dtype=X.dtype)
    assert list(cond) == ["obs", "mask"]


def test_a_network_that_edits_nothing_gets_the_very_tensors_after_a_while():
    seen = []

    class Noting(Bodied):
        def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            seen.append(x_t)
            return super().forward(x_t, t, cond)

    network = Noting()
    for _ in range(40):
        call_intact(network, X, T, COND)
    assert seen[0] is not X and seen[-1] is X
    call_intact(copied(network), X, T, COND)
    assert seen[-1] is X


def test_one_that_begins_to_edit_later_is_refused_by_name():
    class Late(Bodied):
        calls = 0

        def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x_t.mul_(2.0) if self.calls > 30 else x_t, t, cond)

    network = Late()
    with pytest.raises(ValueError, match="expected Late to leave x_t, t and cond as they are"):
        for _ in range(40):
            call_intact(network, X.clone(), T, COND)


def test_gradients_are_those_of_the_twin():
    for kind in (Twin, Editing):
        network = kind()
        x = X.clone().requires_grad_(True)
        for _ in range(20):
            network.zero_grad()
            x.grad = None
            called(network, 1.0 * x, COND).square().sum().backward()
        if kind is Twin:
            expected = [x.grad, *(p.grad for p in network.parameters())]
    for found, value in zip(
        [x.grad, *(p.grad for p in network.parameters())], expected, strict=True
    ):
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5)


def test_a_network_by_keywords_that_edits_is_served_too():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Editing()

        def forward(self, *, sample: Tensor, time: Tensor, obs: Tensor) -> Tensor:
            return self.inner(sample, time, obs)

    network = KeywordNetwork(Named(), x="sample", t="time", cond="obs")
    cond = COND.clone()
    torch.testing.assert_close(called(network, X.clone(), cond), Twin()(X, T, COND))
    assert torch.equal(cond, COND)


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.slow
def test_a_run_is_that_of_the_twin(tmp_path):
    folders = []
    for kind in (Twin, Editing):
        cfg = toy_config(tmp_path / kind.__name__)
        folders.append(distill(cfg, teacher=kind(), task=ToyTask()) / "student")
    noise = torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(2))
    one, other = (
        load_student(folder, network=kind()).sample(
            COND, noise=noise, generator=torch.Generator().manual_seed(3)
        )
        for folder, kind in zip(folders, (Twin, Editing), strict=True)
    )
    torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
