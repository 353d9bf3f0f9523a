"""Stages: updates that can be stopped and split among processes, whatever the condition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastgen.config import DMDConfig, SampleTimestepConfig, TeacherTrainConfig
from fastgen.discriminators import discriminator_for
from fastgen.dmd import DMDPipeline, create_fake_score
from fastgen.methods.consistency import ConsistencyDistillation
from fastgen.methods.kd import KnowledgeDistillation
from fastgen.methods.matching import DistributionMatching
from fastgen.methods.pretraining import FlowMatchingTraining
from fastgen.models.transformer import CondTransformerRegressor
from fastgen.training.stage import Stage
from support.networks import shaken
from support.stages import EVERY_BRANCH, Recorder, gradients, in_micro_batches, trained
from support.toy import ToyTask, ToyTeacher
from support.updates import BATCH, draws

TASK = ToyTask()
DMD = DMDConfig(
    student_steps=3, fake_score_warmup_steps=4, fake_steps_per_student_step=3, vsd_norm="rms"
)
SEVERAL = DMDConfig(student_steps=[1, 2, 3], fake_score_warmup_steps=4, vsd_norm="rms")


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


def distillation_of_several(rank: int = 0, world: int = 1) -> tuple[Stage, list[Recorder]]:
    """KD for several numbers of calls."""
    student, (x0, cond) = Recorder(ToyTeacher()), TASK.train.network_inputs()
    states = torch.stack([x0 + t for t in SEVERAL.t_list], 1)
    stage = KnowledgeDistillation(student, states, cond, SEVERAL, 5, 0.02, draws(rank, world))
    return stage, [student]


def matching_of_several(rank: int = 0, world: int = 1) -> tuple[Stage, list[Recorder]]:
    """DMD for several numbers of calls."""
    student = Recorder(ToyTeacher(seed=1))
    rungs = len(SEVERAL.t_list) - 1
    fake_score = Recorder(create_fake_score(ToyTeacher(seed=2), num_rungs=rungs))
    pipeline = DMDPipeline(
        student.network, ToyTeacher(), fake_score.network, SEVERAL, rank=rank, world_size=world
    )
    inputs = TASK.train.network_inputs()
    stage = DistributionMatching(
        student, fake_score, pipeline, *inputs, SEVERAL, 5, draws(rank, world)
    )
    return stage, [student, fake_score]


def flow_matching_with_prefixes(rank: int = 0, world: int = 1) -> tuple[Stage, list[Recorder]]:
    """Flow matching of trajectories whose first token may be given."""
    torch.manual_seed(0)
    network = Recorder(shaken(CondTransformerRegressor(4, 4, 2, 2, 1, 1, 2, 8)))
    cfg = TeacherTrainConfig(steps=5, batch_size=BATCH)
    inputs = TASK.train.network_inputs()
    stage = FlowMatchingTraining(network, *inputs, cfg, draws(rank, world), prefix_tokens=1)
    return stage, [network]


STAGES = {
    "flow matching": flow_matching,
    "flow matching, prefixes": flow_matching_with_prefixes,
    "KD": distillation,
    "KD, several numbers of calls": distillation_of_several,
    "DMD": matching,
    "DMD, several numbers of calls": matching_of_several,
    "DMD, every branch": everything,
    "consistency": consistency,
}
stages = pytest.mark.parametrize("make", STAGES.values(), ids=STAGES.keys())


@pytest.mark.slow
@stages
@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (3, 1), (1, 3), (2, 3), (3, 2)])
def test_the_mean_gradient_of_many_processes_and_micro_batches_is_that_of_one(
    make, world, accumulation
):
    def run(rank: int, world: int, accumulation: int = 1) -> list[Tensor]:
        stage, recorders = make(rank, world)
        in_micro_batches(stage, accumulation)
        for step in range(stage.updates):
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
    for step in range(straight.updates):
        straight.update(step)
    jumping.update(straight.updates - 1)
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
    for step in (0, stage.updates - 1):
        logs = {key: float(value) for key, value in stage.update(step).items()}
        assert logs["loss"] >= 0 and not any(
            getattr(v, "requires_grad", False) for v in stage.update(step).values()
        )


@pytest.mark.parametrize("steps", [1, 5])
def test_dmd_warms_the_fake_score_up_and_then_takes_turns(steps):
    stage, (student, fake_score) = matching(steps=steps)
    seen = []
    for step in range(stage.updates):
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
    assert stage.updates == 0


def test_no_two_updates_of_dmd_see_the_same_noise():
    stage, _ = matching()
    noise, generate = [], stage.pipeline.generate

    def spy(x0: Tensor, eps: Tensor, *rest: Tensor, **options):
        noise.append(eps)
        return generate(x0, eps, *rest, **options)

    stage.pipeline.generate = spy
    for step in range(stage.updates):
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
    for step in range(stage.updates):
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
