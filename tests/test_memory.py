"""What a plan says of memory, and that each option that lowers it does."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from toy import ToyTask, toy_config

from fastgen.config import DistillConfig, EMAConfig, TrainTeacherConfig
from fastgen.ema import ExponentialMovingAverage
from fastgen.memory import Footprint, activation_bytes, footprint, memory_table
from fastgen.models import CondTransformerRegressor
from fastgen.planning import distillation_footprints, plan_teacher, with_method


class Squares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 16, bias=False)

    def forward(self, x):
        return functional.relu(self.linear(x)).square()


def test_activations_are_the_distinct_tensors_that_a_backward_needs():
    """x and W x; relu keeps its own result, which the square keeps too: counted once. Weights are not counted."""
    net, x = Squares(), torch.randn(32, 8)
    assert activation_bytes(lambda: net(x).sum(), [net]) == 4 * (32 * 8 + 32 * 16)
    assert activation_bytes(lambda: net(x).sum(), []) == 4 * (32 * 8 + 32 * 16)  # W only matters where x has a gradient
    with torch.no_grad():
        assert activation_bytes(lambda: net(x).sum(), [net]) == 0
    x.requires_grad_(True)
    assert activation_bytes(lambda: net(x).sum(), []) - activation_bytes(lambda: net(x).sum(), [net]) == 4 * 8 * 16


def test_activations_grow_with_the_micro_batch():
    net = Squares()
    one, four = (activation_bytes(lambda n=n: net(torch.ones(n, 8)).sum(), [net]) for n in (8, 32))
    assert four == 4 * one


def test_a_trained_network_has_a_gradient_two_moments_and_an_average():
    net = nn.Linear(10, 10)
    row = footprint("net", net, ema=torch.float64)
    assert (row.parameters, row.weights, row.gradients, row.adam, row.ema) == (110, 440, 440, 880, 880)
    assert footprint("net", net, trained=False).held == 440
    # Against what torch itself holds after a step.
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    net(torch.ones(1, 10)).sum().backward()
    optimizer.step()
    moments = [v for state in optimizer.state.values() for name, v in state.items() if name != "step"]
    assert sum(v.nbytes for v in moments) == row.adam
    assert sum(p.grad.nbytes for p in net.parameters()) == row.gradients
    shadow = ExponentialMovingAverage(net, EMAConfig(decay=0.9, dtype="float64")).shadow
    assert sum(v.nbytes for v in shadow.values()) == row.ema


def test_the_total_holds_the_largest_activations_once():
    rows = [
        Footprint("a", 1, 1_000_000, 1_000_000, 2_000_000, 0, 5_000_000),
        Footprint("b", 1, 1_000_000, 0, 0, 0, 3_000_000),
    ]
    total = memory_table(rows, {"data": 500_000}).splitlines()[-1].split()
    assert total == ["total", "2", "2.00", "1.00", "2.00", "0.00", "5.00", "10.50"]


# ---- Options ------------------------------------------------------------------------------------------------------

GAN = {"gan_loss_weight_gen": 0.1}


def rows(processes: int = 1, *, teacher: dict | None = None, dmd: dict | None = None, **train) -> dict[str, Footprint]:
    torch.manual_seed(0)
    network = CondTransformerRegressor(4, 4, 2, 2, 1, 3, 2, 16, 0.0, 0.0)
    base = toy_config("unused")
    values = {
        **base.model_dump(),
        "teacher": {**base.teacher.model_dump(), **(teacher or {})},
        "dmd": {"student_steps": 1, **(dmd or {})},
        "train": {**base.train.model_dump(), **train},
    }
    cfg = DistillConfig.model_validate(values)
    return {row.name: row for row in distillation_footprints(cfg, network.eval(), ToyTask().train, processes=processes)}


def test_each_option_lowers_what_it_is_for_and_nothing_else():
    plain = rows(dmd=GAN)
    less = rows(dmd=GAN, gradient_checkpointing=True)
    for name in ("student", "fake score"):
        assert less[name].activations < 0.8 * plain[name].activations and less[name].held == plain[name].held
    half = rows(dmd=GAN, teacher={"dtype": "bfloat16"})
    assert 2 * half["teacher"].weights == plain["teacher"].weights
    assert [half[name].held for name in ("student", "fake score")] == [plain["student"].held, plain["fake score"].held]
    low = rows(dmd=GAN, fake_score_rank=2)
    assert low["fake score"].held < 0.35 * plain["fake score"].held and low["teacher"] == plain["teacher"]
    host = rows(dmd=GAN, ema_on_cpu=True)["student"]
    assert (host.ema, host.host_ema) == (0, plain["student"].ema) and host.ema < plain["student"].ema
    split = rows(2, dmd=GAN)["student"]
    assert split.activations < 0.6 * plain["student"].activations


@pytest.mark.parametrize("method", ["kd", "dmd2", "ladd", "consistency"])
def test_every_method_has_a_plan(method):
    cfg = toy_config("unused").model_copy(update={"method": method})
    cfg = with_method(cfg)
    network = CondTransformerRegressor(4, 4, 2, 2, 1, 1, 2, 16, 0.0, 0.0)
    names = [row.name for row in distillation_footprints(cfg, network.eval(), ToyTask().train)]
    extra = {"dmd2": ["fake score"], "ladd": ["discriminator"]}.get(method, [])
    assert Counter(names) == Counter(["teacher", "student", *extra])


def test_the_plan_of_a_teacher_measures_its_loss():
    values = {"data": {"size": 8}, "model": {"equivariant": False, "embedding_dim": 16, "num_attention_heads": 2}}

    def activations(**train) -> float:
        plan = plan_teacher(TrainTeacherConfig.model_validate({**values, "train": {"batch_size": 32, **train}}))
        (line,) = (line for line in plan.splitlines() if line.startswith("network"))
        return float(line.split()[-2])

    assert activations(gradient_checkpointing=True) < 0.7 * activations()


def test_an_average_may_be_kept_on_the_cpu_of_a_network_that_is_elsewhere():
    with FakeTensorMode():  # a GPU without a GPU: shapes, dtypes and devices alone
        net = nn.Module()
        net.weight = nn.Parameter(torch.empty(2, 2, device="cuda"))
        there = ExponentialMovingAverage(net, EMAConfig(decay=0.9))
        here = ExponentialMovingAverage(net, EMAConfig(decay=0.9), device="cpu")
        for ema, device in ((there, "cuda"), (here, "cpu")):
            ema.update(net, iteration=1)
            assert {x.device.type for x in ema.shadow.values()} == {device}
            assert {p.device.type for p in net.parameters()} == {"cuda"}


def test_options_that_a_run_takes_together_have_a_plan():
    torch.manual_seed(0)
    network = CondTransformerRegressor(4, 4, 2, 2, 1, 2, 2, 16, 0.0, 0.0).eval()
    values = toy_config("nowhere", gradient_checkpointing=True, fake_score_rank=2).model_dump()
    cfg = with_method(DistillConfig.model_validate(values))
    found = {row.name: row for row in distillation_footprints(cfg, network, ToyTask().train)}
    assert all(found[name].activations > 0 for name in ("student", "fake score"))
