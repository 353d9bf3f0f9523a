"""The trial before a run: networks of many kinds are distilled and come back from their folder, or
are refused in one line before any pair is made."""

from __future__ import annotations

import pytest
import torch

from fastgen.distillation import distill
from fastgen.export import load_student
from fastgen.jobs.setup import Setup
from fastgen.jobs.trial import try_network
from support.foreign import REFUSED, SERVED
from support.toy import ToyTask, toy_config

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated"),
    pytest.mark.filterwarnings("ignore:get_optim_groups of"),
]
COND = torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(1))
NOISE = torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(2))


def setup_of(teacher, tmp_path) -> Setup:
    return Setup(toy_config(tmp_path / "run"), teacher.eval(), ToyTask().train)


@pytest.mark.parametrize("kind", SERVED)
def test_a_network_of_this_kind_passes_and_stays_as_it_is(kind, tmp_path):
    torch.manual_seed(0)
    teacher = SERVED[kind]()
    setup = setup_of(teacher, tmp_path)
    setup.prediction_at(0.5)
    before = {name: value.clone() for name, value in teacher.named_parameters()}
    state = torch.get_rng_state()
    try_network(setup, export=True)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in teacher.named_parameters():
        assert torch.equal(value, before[name]) and value.grad is None


@pytest.mark.parametrize("kind", REFUSED)
def test_a_network_of_this_kind_is_refused_in_one_line(kind, tmp_path):
    make, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message) as caught:
        distill(toy_config(tmp_path / "run"), teacher=make(), task=ToyTask())
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").rglob("*.safetensors"))


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["kept weights, own dropout", "escnn", "growing table", "extra state"],
)
def test_a_network_of_this_kind_is_distilled_and_loads_into_a_new_one(kind, tmp_path):
    torch.manual_seed(0)
    run = distill(toy_config(tmp_path / "run"), teacher=SERVED[kind](), task=ToyTask())
    torch.manual_seed(1)
    first, second = (load_student(run / "student", network=SERVED[kind]()) for _ in range(2))
    samples = [
        student.sample(COND, noise=NOISE, generator=torch.Generator().manual_seed(0))
        for student in (first, second)
    ]
    assert torch.equal(*samples)
