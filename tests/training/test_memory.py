"""What a plan says of memory, and that each option that lowers it does."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from fastgen.config import DistillConfig, EMAConfig, TrainTeacherConfig
from fastgen.ema import SHADOW_DTYPES, ExponentialMovingAverage
from fastgen.jobs.checks import with_method
from fastgen.jobs.distillation import Distillation
from fastgen.jobs.planning import distillation_footprints, plan_teacher
from fastgen.jobs.setup import Setup
from fastgen.methods.consistency import consistency_loss
from fastgen.methods.registry import stages_of
from fastgen.models.transformer import CondTransformerRegressor
from fastgen.records.folder import open_run
from fastgen.training.accelerator import start_accelerator
from fastgen.training.launching import Launch
from fastgen.training.memory import Footprint, activation_bytes, footprint, memory_table
from support.toy import ToyTask, ToyTeacher, toy_config


class Squares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 16, bias=False)

    def forward(self, x):
        return functional.relu(self.linear(x)).square()


def test_activations_are_the_distinct_tensors_that_a_backward_needs():
    """x and W x; relu keeps its own result, which the square keeps too: counted once. Weights are
    not counted."""
    net = Squares()
    x = torch.randn(32, 8)
    assert activation_bytes(lambda: net(x).sum(), [net]) == 4 * (32 * 8 + 32 * 16)
    assert activation_bytes(lambda: net(x).sum(), []) == 4 * (
        32 * 8 + 32 * 16
    )  # W only matters where x has a gradient
    with torch.no_grad():
        assert activation_bytes(lambda: net(x).sum(), [net]) == 0
    x.requires_grad_(True)
    assert (
        activation_bytes(lambda: net(x).sum(), []) - activation_bytes(lambda: net(x).sum(), [net])
        == 4 * 8 * 16
    )


def test_activations_grow_with_the_micro_batch():
    net = Squares()
    one, four = (activation_bytes(lambda n=n: net(torch.ones(n, 8)).sum(), [net]) for n in (8, 32))
    assert four == 4 * one


def test_a_trained_network_has_a_gradient_two_moments_and_an_average():
    net = nn.Linear(10, 10)
    row = footprint("net", net, ema=torch.float64)
    assert (row.parameters, row.weights, row.gradients, row.adam, row.ema) == (
        110,
        440,
        440,
        880,
        880,
    )
    assert footprint("net", net, trained=False).held == 440
    # Against what torch itself holds after a step.
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    net(torch.ones(1, 10)).sum().backward()
    optimizer.step()
    moments = [
        v for state in optimizer.state.values() for name, v in state.items() if name != "step"
    ]
    assert sum(v.nbytes for v in moments) == row.adam
    assert sum(p.grad.nbytes for p in net.parameters()) == row.gradients
    shadow = ExponentialMovingAverage(net, EMAConfig(decay=0.9, dtype="float64")).shadow
    assert sum(v.nbytes for v in shadow.values()) == row.ema


def test_an_average_has_copies_of_the_buffers_of_the_state_dict():
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    net.register_buffer("passing", torch.ones(100), persistent=False)
    for name, dtype in SHADOW_DTYPES.items():
        shadow = ExponentialMovingAverage(net, EMAConfig(decay=0.9, dtype=name)).shadow
        assert footprint("net", net, ema=dtype).ema == sum(v.nbytes for v in shadow.values())


def test_processes_that_share_a_network_hold_their_rows_of_each_parameter_and_all_of_the_buffers():
    """Of 10 rows a process of four has at most 3."""
    net = nn.Sequential(nn.Linear(7, 10), nn.BatchNorm1d(10, affine=False))
    buffers = 4 * (10 + 10) + 8
    parameters = 4 * (70 + 10)
    row = footprint("net", net, ema=torch.float64, shards=4)
    shard = 4 * (3 * 7 + 3)
    assert (row.parameters, row.weights, row.gradients, row.adam) == (
        80,
        shard + buffers,
        shard,
        2 * shard,
    )
    assert row.ema == 2 * shard + 8 * (10 + 10) + 8
    # What is handed out is made from a whole copy in CPU memory.
    assert row.host == parameters + buffers and footprint("net", net).host == 0


def test_the_total_holds_the_largest_activations_once():
    rows = [
        Footprint("a", 1, 1_000_000, 1_000_000, 2_000_000, 0, 5_000_000),
        Footprint("b", 1, 1_000_000, 0, 0, 0, 3_000_000),
    ]
    total = memory_table(rows, {"data": 500_000}).splitlines()[-1].split()
    assert total == ["total", "2", "2.00", "1.00", "2.00", "0.00", "5.00", "10.50"]


def test_what_is_in_cpu_memory_has_its_own_total_where_networks_are_elsewhere():
    rows = [Footprint("a", 1, 1_000_000, host=300_000), Footprint("b", 1, 2_000_000)]
    table = memory_table(rows, {"data": 500_000}, device="cuda").splitlines()
    assert table[-2].split() == [
        "total",
        "on",
        "cuda",
        "2",
        "3.00",
        "0.00",
        "0.00",
        "0.00",
        "0.00",
        "3.00",
    ]
    assert table[-1].split() == ["total", "in", "CPU", "memory", "0.80"]
    assert memory_table(rows, {"data": 500_000}).splitlines()[-1].split()[-1] == "3.80"
    assert "a, in CPU memory" in table[-4] and table[-4].split()[-1] == "0.30"


# ---- Options -------------------------------------------------------------------------------------

GAN = {"gan_loss_weight_gen": 0.1}


def stages(
    launch: Launch | None = None,
    *,
    method: str = "dmd2",
    teacher: dict | None = None,
    dmd: dict | None = None,
    **train,
) -> dict[str, dict[str, Footprint]]:
    """Rows by name, by stage."""
    torch.manual_seed(0)
    network = CondTransformerRegressor(4, 4, 2, 2, 1, 3, 2, 16, 0.0, 0.0)
    base = toy_config("unused")
    values = {
        **base.model_dump(),
        "method": method,
        "teacher": {**base.teacher.model_dump(), **(teacher or {})},
        "student": {"steps": 1},
        "dmd": dmd or {},
        "train": {**base.train.model_dump(), **train},
    }
    cfg = with_method(DistillConfig.model_validate(values))
    found = distillation_footprints(Setup(cfg, network.eval(), ToyTask().train), launch=launch)
    return {stage: {row.name: row for row in rows} for stage, rows in found.items()}


def rows(launch: Launch | None = None, **options) -> dict[str, Footprint]:
    """Those of the last stage."""
    return list(stages(launch, **options).values())[-1]


@pytest.mark.slow
def test_each_option_lowers_what_it_is_for_and_nothing_else():
    plain = rows(dmd=GAN)
    less = rows(dmd=GAN, gradient_checkpointing=True)
    for name in ("student", "fake score"):
        assert (
            less[name].activations < 0.8 * plain[name].activations
            and less[name].held == plain[name].held
        )
    half = rows(dmd=GAN, teacher={"dtype": "bfloat16"})
    assert 2 * half["teacher"].weights == plain["teacher"].weights
    assert [half[name].held for name in ("student", "fake score")] == [
        plain["student"].held,
        plain["fake score"].held,
    ]
    low = rows(dmd=GAN, fake_score_rank=2)
    assert (
        low["fake score"].held < 0.35 * plain["fake score"].held
        and low["teacher"] == plain["teacher"]
    )
    host = rows(Launch(device="cuda"), dmd=GAN, ema_on_cpu=True)["student"]
    assert (host.ema, host.host) == (0, plain["student"].ema) and plain[
        "student"
    ].host == 0 < plain["student"].ema
    assert rows(dmd=GAN, ema_on_cpu=True) == plain  # which is where the networks are
    split = rows(Launch(2), dmd=GAN)
    assert split["student"].activations < 0.6 * plain["student"].activations
    shards = rows(Launch(2, "cuda", sharded=True), dmd=GAN)
    assert shards["teacher"] == plain["teacher"]
    for name in ("student", "fake score", "discriminator"):
        assert (
            shards[name].held < 0.6 * plain[name].held and shards[name].host == plain[name].weights
        )
        assert (split[name].held, split[name].activations) == (
            plain[name].held,
            shards[name].activations,
        )


@pytest.mark.parametrize(
    ("method", "extra"),
    [
        ("kd", []),
        ("dmd2", ["fake score"]),
        ("ladd", ["discriminator"]),
        ("consistency", ["target"]),
    ],
)
def test_every_method_has_a_plan(method, extra):
    steps = 0 if method == "kd" else 5
    found = {stage: list(rows) for stage, rows in stages(method=method, steps=steps).items()}
    last = {} if method == "kd" else {method.removesuffix("2"): ["teacher", "student", *extra]}
    assert found == {"kd": ["teacher", "student"], **last}


def nbytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("ema", [None, {"dtype": "float64"}])
def test_averages_and_targets_are_those_that_the_stages_hold(tmp_path, monkeypatch, ema):
    """The KD student has an average whatever student.ema is; the target of consistency is there
    with an average alone."""
    values = toy_config(tmp_path / "run").model_dump() | {
        "method": "consistency",
        "student": {"steps": 1, "ema": ema},
        "dmd": {},
    }
    cfg = with_method(DistillConfig.model_validate(values))
    teacher = ToyTeacher()
    task = ToyTask()
    found = distillation_footprints(Setup(cfg, copy.deepcopy(teacher), task.train))
    plan = {stage: {row.name: row for row in rows} for stage, rows in found.items()}
    with open_run(cfg) as run_dir:
        job = Distillation(cfg, run_dir, start_accelerator(1), teacher=teacher, task=task)
        job.trainer = SimpleNamespace(seconds={}, evaluations={}, stage_before=lambda: None)
        held = {method.stage: method.build(job) for method in stages_of(cfg)}
    for stage, rows in plan.items():
        average = held[stage].student.ema
        assert rows["student"].ema == (0 if average is None else nbytes(average.shadow.values()))
    assert plan["kd"]["student"].ema > 0
    targets = []

    def watched(*args: Any, target: nn.Module | None, **options: Any) -> Tensor:
        targets.append(target)
        return consistency_loss(*args, target=target, **options)

    monkeypatch.setattr("fastgen.methods.consistency.consistency_loss", watched)
    held["consistency"].update(0)
    (target,) = targets
    assert (target is None) == (ema is None) == ("target" not in plan["consistency"])
    assert target is None or plan["consistency"]["target"].held == nbytes(target.parameters())


def test_the_plan_of_a_teacher_measures_its_loss():
    values = {
        "data": {"size": 8},
        "model": {"equivariant": False, "embedding_dim": 16, "num_attention_heads": 2},
    }

    def numbers(launch: Launch | None = None, **train) -> list[float]:
        cfg = TrainTeacherConfig.model_validate({**values, "train": {"batch_size": 32, **train}})
        plan = plan_teacher(cfg, launch=launch)
        (line,) = (line for line in plan.splitlines() if line.startswith("network "))
        return [float(number) for number in line.split()[2:]]

    plain = numbers()
    assert numbers(gradient_checkpointing=True)[4] < 0.7 * plain[4]
    assert numbers(Launch(2, "cuda", sharded=True))[2] == pytest.approx(plain[2] / 2, abs=0.01)


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
    found = {
        row.name: row
        for row in distillation_footprints(Setup(cfg, network, ToyTask().train))["dmd"]
    }
    assert all(found[name].activations > 0 for name in ("student", "fake score"))
