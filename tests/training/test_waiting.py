"""The host runs ahead of the device: between two rows of the log it reads no number that the device
computes.

Here networks and batches lie on the device "meta", where there are no numbers to read: whoever asks
for one gets an error. What a GPU decides by itself, such as whether an update is skipped, is
decided on a CPU in the same way.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen.config import DMDConfig, EMAConfig, OptimizerConfig, TeacherTrainConfig
from fastgen.discriminators import discriminator_for
from fastgen.dmd import DMDPipeline, create_fake_score
from fastgen.ema import ExponentialMovingAverage
from fastgen.guidance import Guidance
from fastgen.methods.consistency import ConsistencyDistillation
from fastgen.methods.kd import KnowledgeDistillation
from fastgen.methods.matching import DistributionMatching
from fastgen.methods.pretraining import FlowMatchingTraining
from fastgen.records.log import read_log
from fastgen.teachers.guided import GuidedNetwork
from fastgen.training.draws import Draws
from fastgen.training.processes import OneProcess
from fastgen.training.stage import Stage
from fastgen.training.trained_network import Skip, TrainedNetwork
from support.networks import equivariant
from support.runs import Counter, follow
from support.stages import EVERY_BRANCH, trained
from support.toy import ToyTask, ToyTeacher

NOWHERE = torch.device("meta")
BATCH = 8


@pytest.fixture(autouse=True)
def accepted(monkeypatch):
    """Torch takes this device for one that has memory to be copied from and a fused AdamW, as a GPU
    has."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(
        sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_, **__: None
    )


def network(module: nn.Module) -> TrainedNetwork:
    return TrainedNetwork(module, OptimizerConfig(), 9, OneProcess(NOWHERE), ema=EMAConfig())


def draws(accumulation: int) -> Draws:
    return Draws(0, "stage", OneProcess(NOWHERE), BATCH, accumulation=accumulation)


def flow_matching(accumulation: int) -> Stage:
    cfg = TeacherTrainConfig(steps=5, batch_size=BATCH, cond_dropout=0.1)
    return FlowMatchingTraining(
        network(ToyTeacher()), *ToyTask().train.network_inputs(), cfg, draws(accumulation)
    )


def consistency(accumulation: int) -> Stage:
    inputs = ToyTask().train.network_inputs()
    teacher = ToyTeacher().to(NOWHERE)
    return ConsistencyDistillation(
        network(ToyTeacher()),
        teacher,
        *inputs,
        DMDConfig(student_steps=2),
        5,
        0.02,
        draws(accumulation),
    )


def kd(
    accumulation: int, config: DMDConfig = EVERY_BRANCH, student: TrainedNetwork | None = None
) -> Any:
    x0, cond = ToyTask().train.network_inputs()
    states = torch.stack([x0 + t for t in config.t_list], 1)
    return KnowledgeDistillation(
        student or network(ToyTeacher()), states, cond, config, 5, 0.02, draws(accumulation)
    )


def matching(accumulation: int, config: DMDConfig = EVERY_BRANCH) -> Stage:
    """DMD with each of its branches on, and a teacher that is guided in an interval of times."""
    teacher = ToyTeacher()
    x0, cond = ToyTask().train.network_inputs()
    guidance = Guidance(scale=1.5, interval=(0.2, 0.8), rescale=0.3)
    guided = GuidedNetwork(ToyTeacher().to(NOWHERE), guidance, torch.zeros(1, *cond.shape[1:]))
    student = network(ToyTeacher())
    fake_score = network(create_fake_score(teacher, num_rungs=config.student_steps))
    discriminator = network(discriminator_for(teacher, x0, cond, blocks=config.gan_blocks))
    networks = student.network, guided, fake_score.network
    pipeline = DMDPipeline(*networks, config, discriminator=discriminator.network, same_draws=True)
    options = {"discriminator": discriminator, "pairs": kd(accumulation, config, student)}
    return DistributionMatching(
        student, fake_score, pipeline, x0, cond, config, 5, draws(accumulation), **options
    )


def divergences(accumulation: int) -> Stage:
    changes = {"gan_loss": "softplus", "f_divergence": "forward_kl", "backward_simulation": False}
    return matching(
        accumulation, EVERY_BRANCH.model_copy(update=changes | {"student_sample_type": "sde"})
    )


STAGES = [flow_matching, kd, matching, divergences, consistency]


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("make", STAGES)
def test_an_update_reads_nothing_from_the_device(make, accumulation):
    stage = make(accumulation)
    for step in range(stage.updates):
        logs = stage.update(step)
    assert logs["loss"].device == NOWHERE  # pyright: ignore[reportPossiblyUnboundVariable]
    for each in stage.trained().values():
        # That can be told: a reading of it is an error.
        with pytest.raises(RuntimeError, match="meta"):
            each.take_skipped()


@pytest.mark.slow
@pytest.mark.parametrize("basis", ["regular", "irrep"])
def test_equivariant_networks_read_nothing_from_the_device(basis):
    teacher = equivariant(basis=basis).requires_grad_(False).to(NOWHERE)
    student, fake_score = (network(equivariant(basis=basis)) for _ in range(2))
    config = DMDConfig(student_steps=2, fake_score_rung_conditioned=False)
    pipeline = DMDPipeline(student.network, teacher, fake_score.network, config, same_draws=True)
    x = torch.zeros(BATCH, 3, teacher.in_dim)
    z = torch.zeros(BATCH, 1, teacher.cond_dim)
    stage = DistributionMatching(student, fake_score, pipeline, x, z, config, 3, draws(1))
    for step in range(3):
        assert stage.update(step)["loss"].device == NOWHERE


# ---- What the device decides ---------------------------------------------------------------------


@pytest.mark.parametrize("start_iter", [0, 9])
def test_an_average_is_left_alone_on_the_device_exactly_as_on_the_host(monkeypatch, start_iter):
    cfg = EMAConfig(decay=0.999, start_iter=start_iter, dtype="float64")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    device, host = (ExponentialMovingAverage(model, cfg) for _ in range(2))
    for iteration in range(1, 7):
        skip = torch.tensor(iteration in (2, 3, 6))
        before = {name: value.clone() for name, value in device.shadow.items()}
        with torch.no_grad():
            [p.normal_() for p in model.parameters()]
            [b.add_(1) for b in model.buffers()]
        host.update(model, iteration=iteration, skip=skip)
        with monkeypatch.context() as patch:
            patch.setattr("fastgen.ema.at_hand", lambda x: False)
            device.update(model, iteration=iteration, skip=skip)
        for name, value in device.shadow.items():
            assert torch.equal(value, before[name]) == bool(skip), (iteration, name)
            torch.testing.assert_close(value, host.shadow[name], rtol=1e-15, atol=1e-15)


def test_the_optimizer_takes_what_it_is_told_to_skip_from_the_device():
    """Neither weights nor moments nor the count of steps, by which the moments are corrected,
    notice the update."""
    skipping = trained(weight_decay=0.5)
    plain = trained(weight_decay=0.5)
    for step in range(4):
        for each, factor in ((skipping, 1.0), (plain, 1.0), (skipping, float("nan"))):
            x = torch.ones(4, 3) * (step + 1)
            each.update(each.network(x).square().mean() * factor, step)
    a = skipping.tensors()
    b = plain.tensors()
    assert a.pop("skipped").tolist() == [1, 4] and b.pop("skipped").tolist() == [0, 0]
    assert a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


# ---- The loop ------------------------------------------------------------------------------------


class Skipping(Counter):
    """Updates that are skipped, which the loop hears of when it asks."""

    def __init__(self, *skipped: int) -> None:
        super().__init__()
        self.skipped = skipped
        self.asked = []
        self.told = 0

    def take_skipped(self) -> list[Skip]:
        self.asked.append(self.at)
        told = [at for at in self.skipped if self.told < at <= self.at]
        self.told = self.at
        in_a_row = {
            at: sum(set(range(k, at + 1)) <= set(self.skipped) for k in range(1, at + 1))
            for at in told
        }
        return [Skip(at, in_a_row[at], self.skipped.index(at) + 1) for at in told]

    def batch_rows(self, step: int, part: str) -> Tensor:
        return torch.tensor([step, 100])


SIZES = {"evaluate_every": 100, "log_every": 5, "checkpoint_every": 3, "keep_best": False}


class TwoOnADevice(OneProcess):
    """One of two processes on a device, which hears of signals when both are asked."""

    def __init__(self, stage: Skipping) -> None:
        super().__init__(NOWHERE)
        self.num_processes = 2
        self.stage = stage
        self.heard: list[int] = []

    def gather(self, x: Tensor) -> Tensor:
        self.heard.append(self.stage.at)
        return torch.tensor([[0, 100]] * 2)  # no signal; updates until somebody asks again

    def mean(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x))


def test_the_loop_asks_a_device_only_where_it_logs_or_saves(tmp_path):
    stage = Skipping()
    processes = TwoOnADevice(stage)
    follow(tmp_path, [0.0] * 9, stages=[stage], processes=processes, **SIZES)
    assert stage.asked == [1, 3, 5, 6, 8] and processes.heard == [1, 3, 5, 6, 8, 8]


@pytest.fixture
def alone_on_a_device(monkeypatch) -> OneProcess:
    """A process that asks its device once, and then where it must: however slow a machine is."""
    monkeypatch.setattr("fastgen.training.signals.HEARD_WITHIN", 1e9)
    return OneProcess(NOWHERE)


def test_a_process_that_is_alone_asks_its_device_as_seldom(tmp_path, alone_on_a_device):
    stage = Skipping()
    follow(tmp_path, [0.0] * 9, stages=[stage], processes=alone_on_a_device, **SIZES)
    assert stage.asked == [1, 3, 5, 6, 8]


def test_the_loop_asks_a_cpu_at_once(tmp_path):
    stage = Skipping(2)
    follow(tmp_path, [0.0] * 9, stages=[stage], **SIZES)
    assert stage.asked == [*range(1, 9)]


def test_updates_skipped_since_the_last_row_have_rows_of_their_own(
    tmp_path, capsys, alone_on_a_device
):
    stages = [Skipping(1, 2, 3, 5)]
    follow(tmp_path, [0.0] * 9, stages=stages, processes=alone_on_a_device, **SIZES)
    rows = {row["step"]: row for row in read_log(tmp_path)}
    assert list(rows) == [0, 1, 2, 3, 5, 8] and [row["iteration"] for row in rows.values()] == list(
        rows
    )
    told = {at: row["skipped"]["student"] for at, row in rows.items() if "skipped" in row}
    assert {at: (row["in_a_row"], row["in_all"]) for at, row in told.items()} == {
        1: (1, 1),
        2: (2, 2),
        3: (3, 3),
        5: (1, 4),
    }
    assert {at: row["rows"] for at, row in told.items()} == {
        1: [0, 100],
        2: [1, 100],
        3: [2, 100],
        5: [4, 100],
    }
    # One at a checkpoint, 3, is no row of the log: how often there are checkpoints must not show.
    assert (
        "loss" in rows[5]
        and not {"loss"} & (rows[2].keys() | rows[3].keys())
        and "samples_per_s" in rows[5]
    )
    assert (
        "dmd update 2: loss or gradient of the student not finite, update skipped (2 in a row"
        in capsys.readouterr().err
    )


def test_too_many_skipped_updates_end_a_run_though_they_are_read_late(tmp_path, alone_on_a_device):
    with pytest.raises(
        FloatingPointError, match=r"student not finite in 2 updates in a row, up to dmd update 2;"
    ):
        follow(
            tmp_path,
            [0.0] * 9,
            stages=[Skipping(1, 2)],
            processes=alone_on_a_device,
            most_skipped=2,
            **SIZES,
        )
