"""Stages: draws that depend on nothing but their place, updates that can be stopped and split among
processes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.tensor_files import load_tensors, save_tensors
from fastgen.config import (
    DMDConfig,
    EMAConfig,
    OptimizerConfig,
    SampleTimestepConfig,
    TeacherTrainConfig,
)
from fastgen.discriminators import discriminator_for
from fastgen.dmd import DMDPipeline, create_fake_score
from fastgen.methods.consistency import ConsistencyDistillation
from fastgen.methods.kd import KnowledgeDistillation
from fastgen.methods.matching import DistributionMatching
from fastgen.methods.pretraining import FlowMatchingTraining
from fastgen.training.accelerator import start_accelerator
from fastgen.training.draws import Draws
from fastgen.training.stage import Stage
from fastgen.training.trained_network import Skip, TrainedNetwork
from support.stages import EVERY_BRANCH, trained
from support.toy import ToyTask, ToyTeacher

BATCH = 12


def process(rank: int = 0, world: int = 1) -> SimpleNamespace:
    """What a stage asks of accelerate, for one of `world` processes that do not exist."""
    return SimpleNamespace(num_processes=world, process_index=rank, device=torch.device("cpu"))


def draws(rank: int = 0, world: int = 1, *, seed: int = 0, stage: str = "kd") -> Draws:
    return Draws(seed, stage, process(rank, world), BATCH)


# What a stage draws in one step: rows of 31 (so that a batch can span two epochs), noise and
# integers.
DRAWN = {
    "rows": lambda d, step: d.rows(step, 31),
    "rows of a small set": lambda d, step: d.rows(step, 5),
    "normal": lambda d, step: d.normal(step, "eps", (3, 2)),
    "integers": lambda d, step: d.integers(step, "rung", 4),
}
drawn = pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN.keys())


# ---- Draws ---------------------------------------------------------------------------------------


@drawn
def test_a_draw_depends_on_seed_stage_and_step_alone(draw):
    straight, jumping = draws(), draws()
    in_order = [draw(straight, step) for step in range(12)]
    torch.manual_seed(99)  # the global state has no part in it
    for step in (7, 2, 11, 2):
        assert torch.equal(draw(jumping, step), in_order[step])
        assert not torch.equal(draw(jumping, step), in_order[step - 1])
        assert not torch.equal(draw(draws(seed=1), step), in_order[step])
        assert not torch.equal(draw(draws(stage="dmd"), step), in_order[step])


def test_draws_of_one_step_differ_by_name():
    assert not torch.equal(draws().normal(3, "a", (2,)), draws().normal(3, "b", (2,)))


@drawn
@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_the_draw_of_one(draw, world):
    for step in range(8):
        parts = [draw(draws(rank, world), step) for rank in range(world)]
        assert {len(part) for part in parts} == {BATCH // world}
        assert torch.equal(torch.cat(parts), draw(draws(), step))


@pytest.mark.parametrize("n", [1, 5, 12, 31, 100])
def test_every_row_comes_once_an_epoch_in_an_order_of_its_own(n):
    steps = -(-4 * n // BATCH)
    sequence = torch.cat([draws().rows(step, n) for step in range(steps)])
    epochs = [sequence[i * n : (i + 1) * n] for i in range(4)]
    assert all(torch.equal(epoch.sort().values, torch.arange(n)) for epoch in epochs)
    if n > 5:
        assert not any(torch.equal(a, b) for a, b in zip(epochs, epochs[1:], strict=False))


@pytest.mark.parametrize("world", [1, 2])
def test_micro_batches_are_the_rows_of_a_share_in_their_order(world):
    for rank in range(world):
        share = Draws(0, "kd", process(rank, world), BATCH, accumulation=3)
        rows = share.rows(2, 31)
        parts = share.micro_batches({"x": rows, "y": (rows[:, None] + 1,)})
        assert [len(part["x"]) for part in parts] == [BATCH // (3 * world)] * 3
        assert torch.equal(torch.cat([part["x"] for part in parts]), rows)
        assert all(torch.equal(part["y"][0][:, 0], part["x"] + 1) for part in parts)
        assert share.micro_batches(None) == [None] * 3


def test_only_a_shared_generator_is_equal_everywhere():
    def number(rank: int, **options: bool) -> float:
        return float(torch.rand(1, generator=draws(rank, 2).generator(3, "x", **options)))

    assert number(0) == number(1)
    assert number(0, shared=False) != number(1, shared=False)


def test_a_batch_that_does_not_divide_among_the_processes_is_refused():
    with pytest.raises(
        ValueError, match="train.batch_size to be a multiple of the 5 processes, got 12"
    ):
        draws(0, 5)
    with pytest.raises(
        ValueError, match="a multiple of the 2 processes times 4 micro-batches, got 12"
    ):
        Draws(0, "kd", process(0, 2), BATCH, accumulation=4)


# ---- A network in training -----------------------------------------------------------------------


def loss_at(network: TrainedNetwork, step: int) -> Tensor:
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
    return (network.network(x) - x.sum(1, keepdim=True)).square().mean()


def train(network: TrainedNetwork, steps: range) -> list[dict[str, float]]:
    return [network.update(loss_at(network, step), step) for step in steps]


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_network_whose_state_went_through_a_file_goes_on_bit_for_bit(tmp_path, ema, stop):
    whole, first, second = (trained(seed, ema=ema) for seed in (0, 0, 1))
    train(whole, range(10))
    train(first, range(stop))
    save_tensors(tmp_path / "x", first.tensors())
    train(second, range(3))  # whatever it was before
    second.load_tensors(load_tensors(tmp_path / "x"))
    train(second, range(stop, 10))
    assert equal(second.tensors(), whole.tensors())
    assert equal(second.averaged().state_dict(), whole.averaged().state_dict())
    assert not equal(trained().tensors(), whole.tensors())


PARTS = [
    "weights",
    "weights.0.bias",
    "ema",
    "ema.2.weight",
    "optimizer",
    "optimizer.0",
    "optimizer.1.exp_avg_sq",
]


@pytest.mark.parametrize("part", [*PARTS, "skipped"])
def test_a_state_that_lacks_a_part_is_refused_by_its_name(part):
    network = trained()
    train(network, range(3))
    state = {key: value for key, value in network.tensors().items() if not key.startswith(part)}
    with pytest.raises(
        ValueError, match=part.removeprefix("optimizer.").replace("optimizer", "optimiser")
    ) as raised:
        trained().load_tensors(state)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["weights.0.bias", "ema.0.bias", "optimizer.1.exp_avg"])
@pytest.mark.parametrize(
    "change", [lambda value: value[:1], lambda value: value.double(), lambda value: value[None]]
)
def test_a_state_of_another_shape_or_dtype_is_refused_by_its_name(name, change):
    network = trained()
    train(network, range(3))
    state = network.tensors()
    state[name] = change(state[name])
    with pytest.raises(
        ValueError, match=f"expected {name.removeprefix('optimizer.')} of .* to be .*, got"
    ):
        trained().load_tensors(state)


def test_what_a_state_has_too_much_of_is_refused():
    network = trained(ema=False)
    with pytest.raises(ValueError, match="with the unknown ema.0.bias"):
        network.load_tensors(trained().tensors())


def test_the_rate_is_that_of_the_step_and_the_norm_is_reported_before_clipping():
    network = trained(clip_grad_norm=1e-3)
    for step in range(6):
        done = network.update(loss_at(network, step), step)
        assert done["lr"] == network.cfg.lr_at(step, 20) == network.optimizer.param_groups[0]["lr"]
        assert done["grad_norm"] > 1e-3


def test_what_is_averaged_is_a_copy_for_evaluation():
    network = trained()
    network.bare.train()
    train(network, range(4))
    before, average = copy.deepcopy(network.bare.state_dict()), network.averaged()
    assert not average.training and network.bare.training
    assert not torch.equal(average.state_dict()["0.weight"], before["0.weight"])
    with torch.no_grad():
        [p.zero_() for p in average.parameters()]
    assert equal(network.bare.state_dict(), before) and not equal(
        network.averaged().state_dict(), before
    )


def test_the_average_counts_updates_from_one():
    torch.manual_seed(0)
    cfg = EMAConfig(decay=0.8, start_iter=2)
    network = TrainedNetwork(nn.Linear(3, 1), OptimizerConfig(), 20, start_accelerator(1), ema=cfg)
    for step in range(4):
        train(network, range(step, step + 1))
        copied = torch.equal(network.averaged().weight, network.bare.weight)
        assert copied == (step + 1 <= cfg.start_iter)


def test_without_an_average_the_weights_themselves_are_handed_out():
    network = trained(ema=False)
    train(network, range(4))
    assert equal(network.averaged().state_dict(), network.bare.state_dict())


class Rooted(nn.Module):
    """sqrt(w x): at w = 0 its value is finite and its gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w * x).sqrt()


POISONED = {
    "loss": lambda network: loss_at(network, 0) * float("nan"),
    "infinite loss": lambda network: loss_at(network, 0) * float("inf"),
    "gradient alone": lambda network: (
        loss_at(network, 0) + Rooted.forward(network.root, torch.ones(1)).sum()
    ),
}


@pytest.mark.parametrize("poison", POISONED.values(), ids=POISONED.keys())
def test_an_update_that_is_not_finite_leaves_everything_as_it_was_and_is_counted(poison):
    class Both(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x)

    network = trained(network=Both(nn.Linear(3, 1), Rooted()))
    network.root = network.bare[1]
    network.update(
        loss_at(network, 0) + 0.0 * network.root.w.sum(), 0
    )  # a gradient that leaves the root at 0
    train(network, range(1, 3))
    for times, step in ((4, 3), (2, 8)):
        before = copy.deepcopy(network.tensors())
        for skipped in range(times):
            done = network.update(poison(network), step + skipped)
            assert done["lr"] == network.cfg.lr_at(step + skipped, 20)
        after = network.tensors()
        assert after.pop("skipped").tolist() == [times, int(before.pop("skipped")[1]) + times]
        assert equal(after, before)  # weights, moments, average
        train(network, range(step + times, step + times + 1))
        # One that is finite starts the count anew, with gradients of its own.
        assert network.tensors()["skipped"].tolist() == [0, 4 if step == 3 else 6]
        assert not equal(network.tensors(), before)
        assert all(bool(torch.isfinite(value).all()) for value in network.tensors().values())


def test_a_loss_that_is_no_number_is_noticed_though_its_gradient_is_one():
    network = trained()
    train(network, range(3))
    before = copy.deepcopy(network.tensors())
    loss = loss_at(network, 3) + torch.tensor(float("nan"))
    assert all(
        bool(g.isfinite().all())
        for g in torch.autograd.grad(loss, [*network.bare.parameters()], retain_graph=True)
    )
    assert not math.isfinite(network.update(loss, 3)["grad_norm"])
    assert equal({**network.tensors(), "skipped": before["skipped"]}, before)
    assert network.take_skipped() == [Skip(0, 1, 1)]


def test_a_skipped_update_leaves_no_trace_in_running_statistics():
    network = trained(network=nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)))
    train(network, range(2))
    before = copy.deepcopy(network.tensors())
    loss = [lambda: network.network(torch.full((8, 3), float("nan"))).square().mean()]
    network.update(loss, 2)
    after = network.tensors()
    assert after.pop("skipped").tolist() == [1, 1] and before.pop("skipped").tolist() == [0, 0]
    assert equal(after, before)
    train(network, range(2, 3))
    assert not torch.equal(
        network.tensors()["weights.1.running_mean"], before["weights.1.running_mean"]
    )


def test_updates_that_were_skipped_are_counted_on_after_a_resume(tmp_path):
    network, again = trained(), trained()
    train(network, range(3))
    for step in range(3, 6):
        network.update(loss_at(network, step) * float("nan"), step)
    save_tensors(tmp_path / "x", network.tensors())
    again.load_tensors(load_tensors(tmp_path / "x"))
    again.at = 7
    again.update(loss_at(again, 6) * float("nan"), 6)
    assert again.take_skipped() == [Skip(7, 4, 4)] and again.take_skipped() == []


def test_updates_that_were_skipped_are_told_with_what_they_belong_to():
    """Whenever they are asked for, each is told once, and all that came since count."""
    network, told = trained(), []
    broken, asked = {2, 3, 6, 8, 9, 10}, {4, 9, 12}
    for step in range(12):
        network.at = step // 2 + 1
        network.update(loss_at(network, step) * (float("nan") if step in broken else 1.0), step)
        told += network.take_skipped() if step in asked else []
        if step == 10:
            assert network.tensors()["skipped"].tolist() == [3, 6]
    told += network.take_skipped()
    assert told == [
        Skip(2, 1, 1),
        Skip(2, 2, 2),
        Skip(4, 1, 3),
        Skip(5, 1, 4),
        Skip(5, 2, 5),
        Skip(6, 3, 6),
    ]


def test_decay_is_for_the_groups_a_network_asks_for():
    class Grouped(nn.Linear):
        def get_optim_groups(self, weight_decay: float) -> list[dict]:
            return [
                {"params": [self.weight], "weight_decay": weight_decay},
                {"params": [self.bias], "weight_decay": 0},
            ]

    network = trained(network=Grouped(3, 1), weight_decay=0.25)
    assert [group["weight_decay"] for group in network.optimizer.param_groups] == [0.25, 0]


# ---- Stages --------------------------------------------------------------------------------------


class Recorder:
    """Stands for a TrainedNetwork: keeps each update's step and gradient, and changes nothing."""

    ema = None

    def __init__(self, network: nn.Module) -> None:
        self.network, self.steps, self.gradients = network, [], []

    def update(self, losses: Sequence[Callable[[], Tensor]], step: int) -> dict[str, float]:
        self.steps.append(step)
        parameters = list(self.network.parameters())
        parts = [torch.autograd.grad(loss() / len(losses), parameters) for loss in losses]
        self.gradients.append(tuple(torch.stack(part).sum(0) for part in zip(*parts, strict=True)))
        return {"grad_norm": 0.0, "lr": 0.0}


TASK = ToyTask()
DMD = DMDConfig(
    student_steps=3, fake_score_warmup_steps=4, fake_steps_per_student_step=3, vsd_norm="rms"
)


def flow_matching(rank: int = 0, world: int = 1) -> tuple[Stage, list[Recorder]]:
    network = Recorder(ToyTeacher())
    cfg = TeacherTrainConfig(steps=5, batch_size=BATCH)
    return FlowMatchingTraining(network, *TASK.train.network_inputs(), cfg, draws(rank, world)), [
        network
    ]


def distillation(rank: int = 0, world: int = 1) -> tuple[Stage, list[Recorder]]:
    student, (x0, cond) = Recorder(ToyTeacher()), TASK.train.network_inputs()
    states = torch.stack([x0 + t for t in DMD.t_list], 1)
    return KnowledgeDistillation(student, states, cond, DMD, 5, 0.02, draws(rank, world)), [student]


def matching(rank: int = 0, world: int = 1, steps: int = 5) -> tuple[Stage, list[Recorder]]:
    teacher = ToyTeacher()
    # The networks differ, as they do after a warm-up: without that there is no gradient to compare.
    student, fake_score = (
        Recorder(ToyTeacher(seed=1)),
        Recorder(create_fake_score(ToyTeacher(seed=2), num_rungs=3)),
    )
    pipeline = DMDPipeline(
        student.network, teacher, fake_score.network, DMD, rank=rank, world_size=world
    )
    inputs = TASK.train.network_inputs()
    return DistributionMatching(
        student, fake_score, pipeline, *inputs, DMD, steps, draws(rank, world)
    ), [
        student,
        fake_score,
    ]


def consistency(rank: int = 0, world: int = 1) -> tuple[Stage, list[Recorder]]:
    student, inputs = Recorder(ToyTeacher(seed=1)), TASK.train.network_inputs()
    stage = ConsistencyDistillation(
        student, ToyTeacher(), *inputs, DMD, 5, 0.02, draws(rank, world)
    )
    return stage, [student]


def everything(rank: int = 0, world: int = 1, steps: int = 5) -> tuple[Stage, list[Recorder]]:
    """DMD with each of its branches on."""
    teacher, (x0, cond) = ToyTeacher(), TASK.train.network_inputs()
    student, fake_score = (
        Recorder(ToyTeacher(seed=1)),
        Recorder(create_fake_score(ToyTeacher(seed=2), num_rungs=3)),
    )
    discriminator = Recorder(discriminator_for(teacher, x0, cond, blocks=EVERY_BRANCH.gan_blocks))
    pipeline = DMDPipeline(
        student.network,
        teacher,
        fake_score.network,
        EVERY_BRANCH,
        discriminator=discriminator.network,
        rank=rank,
        world_size=world,
    )
    states = torch.stack([x0 + t for t in EVERY_BRANCH.t_list], 1)
    pairs = KnowledgeDistillation(student, states, cond, EVERY_BRANCH, 5, 0.02, draws(rank, world))
    options = {"discriminator": discriminator, "pairs": pairs}
    stage = DistributionMatching(
        student, fake_score, pipeline, x0, cond, EVERY_BRANCH, steps, draws(rank, world), **options
    )
    return stage, [student, fake_score, discriminator]


STAGES = {
    "flow matching": flow_matching,
    "KD": distillation,
    "DMD": matching,
    "DMD, every branch": everything,
    "consistency": consistency,
}
stages = pytest.mark.parametrize("make", STAGES.values(), ids=STAGES.keys())


def gradients(recorders: list[Recorder]) -> list[Tensor]:
    return [g for recorder in recorders for update in recorder.gradients for g in update]


def in_micro_batches(stage: Stage, accumulation: int) -> Stage:
    for part in (stage, getattr(stage, "pairs", None)):
        if part is not None:
            part.draws.accumulation = accumulation
    return stage


@stages
@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (3, 1), (1, 3), (2, 3), (3, 2)])
def test_the_mean_gradient_of_many_processes_and_micro_batches_is_that_of_one(
    make, world, accumulation
):
    def run(rank: int, world: int, accumulation: int = 1) -> list[Tensor]:
        stage, recorders = make(rank, world)
        in_micro_batches(stage, accumulation)
        for step in range(stage.steps):
            stage.update(step)
        return gradients(recorders)

    whole, parts = run(0, 1), [run(rank, world, accumulation) for rank in range(world)]
    assert len(whole) > 5 and all(len(part) == len(whole) for part in parts)
    for one, *many in zip(whole, *parts, strict=True):
        assert torch.allclose(torch.stack(many).mean(0), one, rtol=1e-4, atol=1e-5)
    # A process on its own sees another batch: the agreement above is not that of constants.
    assert (
        world == 1
        or max(float((a - b).abs().max()) for a, b in zip(whole, parts[0], strict=True)) > 1e-3
    )


@stages
def test_an_update_is_a_pure_function_of_its_step(make):
    (straight, one), (jumping, other) = make(), make()
    for step in range(straight.steps):
        straight.update(step)
    jumping.update(straight.steps - 1)
    for before, alone in zip(one, other, strict=True):
        before.gradients = before.gradients[-len(alone.gradients) :]
    assert all(torch.equal(a, b) for a, b in zip(gradients(one), gradients(other), strict=True))


LABELS = torch.arange(len(TASK.train)) % 3


class Conditioned(nn.Module):
    """v of vectors (B, 5), shifted by a label where there is one, with what it was given kept."""

    def __init__(self, labelled: bool) -> None:
        super().__init__()
        self.linear, self.label, self.seen = (
            nn.Linear(6, 5),
            nn.Embedding(3, 5) if labelled else None,
            [],
        )

    def forward(self, x: Tensor, t: Tensor, cond) -> Tensor:
        self.seen.append(cond)
        v = self.linear(torch.cat([x, t[:, None].to(x.dtype)], 1))
        return (
            v
            if self.label is None
            else v + self.label(cond["label"] if isinstance(cond, dict) else cond)
        )


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize(
    "cond", [None, LABELS, {"label": LABELS, "row": torch.arange(len(LABELS))}]
)
def test_stages_take_any_condition_and_keep_it_beside_its_sample(kind, cond):
    x0 = torch.arange(float(len(LABELS)))[:, None].expand(-1, 5)
    network, teacher = (Conditioned(cond is not None) for _ in range(2))
    if kind == "flow matching":
        cfg = TeacherTrainConfig(steps=5, batch_size=BATCH)
        stage: Stage = FlowMatchingTraining(Recorder(network), x0, cond, cfg, draws())
    elif kind == "KD":
        states = torch.stack([x0 for _ in DMD.t_list], 1)
        stage = KnowledgeDistillation(Recorder(network), states, cond, DMD, 5, 0.02, draws())
    elif kind == "consistency":
        stage = ConsistencyDistillation(Recorder(network), teacher, x0, cond, DMD, 5, 0.02, draws())
    else:
        dmd = DMD.model_copy(update={"fake_score_warmup_steps": 0})
        fake_score = create_fake_score(teacher, num_rungs=3)
        pipeline = DMDPipeline(network, teacher, fake_score, dmd)
        stage = DistributionMatching(
            Recorder(network), Recorder(fake_score), pipeline, x0, cond, dmd, 5, draws()
        )
    stage.update(0)
    rows, given = draws().rows(0, len(LABELS)), network.seen[0]
    if cond is None:
        assert given is None
    elif isinstance(cond, dict):
        assert torch.equal(given["row"], rows) and torch.equal(given["label"], LABELS[rows])
    else:
        assert torch.equal(given, LABELS[rows]) and given.dtype == torch.int64


def test_pairs_of_weight_zero_are_left_alone():
    stage, recorders = everything()
    dmd = EVERY_BRANCH.model_copy(update={"kd_weight": 0.0})
    alone = DistributionMatching(
        recorders[0], None, stage.pipeline, stage.x0, stage.cond, dmd, 5, draws(), pairs=stage.pairs
    )
    assert "kd" in stage.update(stage.warmup) and "kd" not in alone.update(0)


@stages
def test_what_an_update_returns_can_be_logged(make):
    stage, _ = make()
    for step in (0, stage.steps - 1):
        logs = {key: float(value) for key, value in stage.update(step).items()}
        assert logs["loss"] >= 0 and not any(
            getattr(v, "requires_grad", False) for v in stage.update(step).values()
        )


@pytest.mark.parametrize("steps", [1, 5])
def test_dmd_warms_the_fake_score_up_and_then_takes_turns(steps):
    stage, (student, fake_score) = matching(steps=steps)
    seen = []
    for step in range(stage.steps):
        stage.update(step)
        seen.append((len(student.steps), len(fake_score.steps)))
    warm, turns = DMD.fake_score_warmup_steps, DMD.fake_steps_per_student_step
    assert seen[:warm] == [(0, n) for n in range(1, warm + 1)]
    assert seen[warm:] == [(n, warm + n * turns) for n in range(1, steps + 1)]
    # Each network counts its own updates, so that its learning rate follows one unbroken curve.
    assert student.steps == list(range(steps))
    assert fake_score.steps == list(range(warm + steps * turns))


def test_dmd_without_student_updates_is_no_stage_at_all():
    stage, _ = matching(steps=0)
    assert stage.steps == 0


def test_no_two_updates_of_dmd_see_the_same_noise():
    stage, _ = matching()
    noise, generate = [], stage.pipeline.generate

    def spy(x0: Tensor, eps: Tensor, *rest: Tensor, **options):
        noise.append(eps)
        return generate(x0, eps, *rest, **options)

    stage.pipeline.generate = spy
    for step in range(stage.steps):
        stage.update(step)
    assert len(noise) == 4 + 5 * (
        1 + 2
    )  # the first of three fake-score updates takes the student's samples
    assert len({eps.numpy().tobytes() for eps in noise}) == len(noise)


def test_flow_matching_near_pure_noise_learns_the_mean_given_the_condition():
    # X | Z ~ N(Z, 0.1 I): at t = 1 the best flow is eps - Z, which is linear, so a step from noise
    # lands at Z.
    x0, cond = TASK.train.network_inputs()
    cfg = TeacherTrainConfig(
        steps=400, batch_size=BATCH, t=SampleTimestepConfig(min_t=0.99, max_t=1.0)
    )
    network = trained(network=ToyTeacher(), total=cfg.steps, ema=False, lr=0.03, weight_decay=0.0)
    stage = FlowMatchingTraining(network, x0, cond, cfg, draws(stage="teacher"))
    for step in range(stage.steps):
        stage.update(step)
    eps, z = torch.randn(48, 2, 4, generator=torch.Generator().manual_seed(3)), cond.repeat(1, 2, 2)
    with torch.no_grad():
        landed = eps - stage.averaged()(eps, torch.ones(48), cond)
    assert float((landed - z).square().mean()) < 0.02


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_share_of_the_samples_is_trained_without_its_condition(share):
    x0, cond = TASK.train.network_inputs()
    seen = []

    class Watching(ToyTeacher):
        def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
            seen.append((cond == 0).flatten(1).all(1))
            return super().forward(x_t, t, cond)

    cfg = TeacherTrainConfig(steps=40, batch_size=BATCH, cond_dropout=share)
    stage = FlowMatchingTraining(Recorder(Watching()), x0, cond, cfg, draws())
    for step in range(40):
        stage.update(step)
    dropped = torch.cat(seen).double().mean().item()
    # Five standard deviations of the mean of 40 batches.
    assert dropped == pytest.approx(share, abs=5 * 0.5 / (40 * BATCH) ** 0.5 if share else 0.0)
