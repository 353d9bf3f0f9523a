"""DMD2 and LADD: the methods of distribution matching.

DMD2 (Yin et al. 2024, arXiv:2405.14867) moves the student by what the teacher and a trained fake
score say of its samples, and by a GAN or real data if asked for. LADD (Sauer et al. 2024,
arXiv:2403.12015) is its GAN alone. The losses stand in :mod:`fastgen.methods.dmd`, the updates in
:mod:`fastgen.methods.matching`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..config.dmd import DMDConfig
from ..config.matching import MatchingConfig
from ..config.schemas import DistillConfig
from ..discriminators import discriminator_for
from ..teachers.prefixed import PrefixedNetwork
from ..training.stage import Stage
from .dmd import DMDPipeline
from .fake_scores import check_pull, create_fake_score
from .kd import KD, on_pairs, planned_loss
from .matching import DistributionMatching
from .method import (
    Batch,
    Method,
    Networks,
    PlannedNetwork,
    Run,
    refuse_divergence,
    refuse_fake_score,
)
from .sets import check_sets, set_term, sets_of

__all__ = ["DMD2", "LADD", "new_discriminator", "new_fake_score"]


# ---- The networks that only matching needs -------------------------------------------------------


def new_fake_score(networks: Networks) -> nn.Module | None:
    """The fake score that the config asks for, with the teacher's weights and shape; None without
    VSD."""
    cfg = networks.cfg
    if not cfg.dmd.vsd_weight:
        return None
    rank = cfg.train.fake_score_rank
    # Corrections of low rank lie on the teacher's own weights.
    source = networks.uncounted
    if rank is None:
        source = networks.teacher_copy()
        if isinstance(networks.uncounted, PrefixedNetwork):
            # Told of given tokens as the teacher is, so that both judge the same law.
            way = networks.uncounted.way
            source = PrefixedNetwork(source, way, cfg.student.pred_type)
    rungs = len(cfg.student.t_list) - 1 if cfg.dmd.fake_score_rung_conditioned else 1
    return create_fake_score(source, num_rungs=rungs, rank=rank, seed=cfg.seed)


def new_discriminator(networks: Networks) -> nn.Module | None:
    """The discriminator that the config asks for, untrained; None where no loss needs one."""
    cfg = networks.cfg
    if not cfg.dmd.trains_discriminator:
        return None
    return discriminator_for(
        networks.teacher_copy(),
        networks.x0,
        networks.cond,
        on_samples=cfg.dmd.gan_features == "sample",
        blocks=cfg.dmd.gan_blocks or None,
        seed=cfg.seed,
    )


def _losses_config(cfg: DistillConfig) -> DMDConfig:
    """The config of the losses: the teacher of a run guides itself already."""
    return cfg.pipeline.model_copy(update={"guidance_scale": None})


# ---- The methods ---------------------------------------------------------------------------------


class DMD2(Method):
    """Distribution matching with a fake score, and with a GAN or real data if asked for."""

    stage = "dmd"
    title = "DMD"
    serves_prefixes = True
    remedy = (
        "stop earlier, lower train.student_optimizer.lr, or raise dmd.fake_steps_per_student_step"
    )

    def asks_scores(self, cfg: DistillConfig) -> bool:
        return cfg.dmd.vsd_weight > 0

    def uses_pairs(self, cfg: DistillConfig) -> bool:
        from_teacher = cfg.dmd.set_weight > 0 and cfg.dmd.set_target == "teacher"
        return cfg.dmd.kd_weight > 0 or from_teacher

    def check(self, networks: Networks, *, processes: int, sharded: bool) -> None:
        cfg = networks.cfg
        dmd = cfg.dmd
        if not dmd.vsd_weight:
            refuse_fake_score(cfg, "dmd.vsd_weight=0")
        if (dmd.gan_r1_reg_weight or dmd.gan_r2_reg_weight) and not dmd.trains_discriminator:
            raise ValueError(
                "expected dmd.gan_loss_weight_gen > 0 with dmd.gan_r1_reg_weight or "
                "gan_r2_reg_weight, which are of a discriminator, got 0"
            )
        if dmd.gan_features == "fake_score" and not dmd.vsd_weight:
            raise ValueError(
                "expected dmd.gan_features teacher or sample with dmd.vsd_weight=0, which has no "
                "fake score"
            )
        if dmd.vsd_in_parts and dmd.guidance_scale is None:
            raise ValueError(
                "expected dmd.guidance_scale with weights or times of dmd.vsd_guidance_* and "
                "dmd.vsd_matching_*, which part the gradient of a guided teacher, got null"
            )
        if dmd.fake_score_pull and (fake_score := new_fake_score(networks)) is not None:
            check_pull(fake_score, networks.student())
        if networks.prefix_tokens:
            _refuse_whole_samples(cfg)
        _check_groups(cfg, processes)
        check_sets(networks)
        if sharded:
            _refuse_shards(cfg)
        new_discriminator(networks)
        if cfg.train.fake_score_rank is not None:
            create_fake_score(networks.uncounted, rank=cfg.train.fake_score_rank)
        if dmd.vsd_weight and dmd.fake_score_rung_conditioned and len(cfg.student.t_list) > 2:
            _check_times_beyond_one(networks)

    def build(self, run: Run) -> Stage:
        """Student from KD, fake score from the teacher's weights, discriminator from scratch."""
        cfg = run.cfg
        dmd = cfg.dmd
        train = cfg.train
        student = run.student(train.student_optimizer, train.steps, cfg.student.ema)
        fake_score = discriminator = None
        if (network := new_fake_score(run.networks)) is not None:
            updates = dmd.fake_score_warmup_steps + train.steps * dmd.fake_steps_per_student_step
            fake_score = run.trained(network, train.fake_score_optimizer, updates)
        if (network := new_discriminator(run.networks)) is not None:
            updates = dmd.gan_disc_warmup_steps + train.steps * dmd.gan_disc_steps_per_student_step
            discriminator = run.trained(network, train.discriminator_optimizer, updates)
        pipeline = DMDPipeline(
            student.network,
            run.teacher_in_training(),
            None if fake_score is None else fake_score.network,
            _losses_config(cfg),
            discriminator=None if discriminator is None else discriminator.network,
            same_draws=True,
            rank=run.rank,
            world_size=run.world,
            mean=student.processes.mean,
        )
        pairs = None
        if dmd.kd_weight:
            pairs = on_pairs(
                run,
                student,
                KD.stage,
                train.steps,
                draws=f"{self.stage}-pairs",
                first_rung_only=dmd.first_rung == "regress",
            )
        draws = run.draws(self.stage)
        return DistributionMatching(
            student,
            fake_score,
            pipeline,
            run.networks.x0,
            run.networks.cond,
            cfg.pipeline,
            train.steps,
            draws,
            discriminator=discriminator,
            pairs=pairs,
            sets=sets_of(run, pairs, draws),
            prefix_tokens=run.networks.prefix_tokens,
            name=self.stage,
        )

    def plan(self, networks: Networks, batch: Batch) -> Sequence[PlannedNetwork]:
        cfg = networks.cfg
        student = networks.student()
        fake_score = new_fake_score(networks)
        discriminator = new_discriminator(networks)
        pipeline = DMDPipeline(
            student, networks.teacher, fake_score, _losses_config(cfg), discriminator=discriminator
        )

        def of(loss: Callable[..., dict[str, Tensor]]) -> Tensor:
            generator = torch.Generator().manual_seed(0)
            return loss(batch.x0, batch.noise, batch.cond, generator=generator)["total"]

        def student_loss() -> Tensor:
            total = of(pipeline.compute_student_loss)
            if cfg.dmd.kd_weight:
                total = total + planned_loss(networks, student, batch)
            if cfg.dmd.set_weight:
                total = total + set_term(
                    pipeline.rollouts, batch.x0, batch.cond, generator=torch.Generator()
                )
            return total

        planned = [PlannedNetwork("student", student, student_loss, cfg.student.ema)]
        if fake_score is not None:
            loss = functools.partial(of, pipeline.compute_fake_score_loss)
            turns = cfg.dmd.fake_steps_per_student_step
            warmup = cfg.dmd.fake_score_warmup_steps
            planned.append(
                PlannedNetwork("fake score", fake_score, loss, warmup=warmup, turns=turns)
            )
        if discriminator is not None:
            loss = functools.partial(of, pipeline.compute_discriminator_loss)
            turns = cfg.dmd.gan_disc_steps_per_student_step
            warmup = cfg.dmd.gan_disc_warmup_steps
            planned.append(
                PlannedNetwork("discriminator", discriminator, loss, warmup=warmup, turns=turns)
            )
        return planned


class LADD(DMD2):
    """A GAN alone (Sauer et al. 2024, arXiv:2403.12015): DMD2 without VSD and its fake score."""

    stage = "ladd"
    title = "LADD"
    remedy = Method.remedy
    serves_prefixes = False

    def complete(self, cfg: DistillConfig) -> DistillConfig:
        """Without VSD; the GAN has weight 1 unless said otherwise."""
        if cfg.dmd.vsd_weight not in (0.0, MatchingConfig().vsd_weight):
            raise ValueError(
                "expected no dmd.vsd_weight with method=ladd, which has no VSD loss, got "
                f"{cfg.dmd.vsd_weight}; leave it out, or set method=dmd2"
            )
        if cfg.dmd.gan_features == "fake_score":
            raise ValueError(
                "expected dmd.gan_features teacher or sample for method=ladd, which has no fake "
                "score"
            )
        gan = cfg.dmd.gan_loss_weight_gen or 1.0
        changed = {"vsd_weight": 0.0, "gan_loss_weight_gen": gan}
        return cfg.model_copy(update={"dmd": cfg.dmd.model_copy(update=changed)})

    def check(self, networks: Networks, *, processes: int, sharded: bool) -> None:
        refuse_divergence(networks.cfg)
        refuse_fake_score(networks.cfg, "method=ladd")
        super().check(networks, processes=processes, sharded=sharded)


def _check_groups(cfg: DistillConfig, processes: int) -> None:
    """Refuse groups of samples that a micro-batch cannot be cut into."""
    accumulation = cfg.train.gradient_accumulation_steps
    size = cfg.train.batch_size // (processes * accumulation)
    of = "a process" if accumulation == 1 else "a process' micro-batch"
    for weight, key in (("real_data_weight", "real_data_samples"), ("set_weight", "set_samples")):
        samples = getattr(cfg.dmd, key)
        if getattr(cfg.dmd, weight) and size % samples:
            raise ValueError(
                f"expected dmd.{key} to divide the {size} samples of {of}, got {samples}"
            )


def _refuse_whole_samples(cfg: DistillConfig) -> None:
    """Refuse losses that compare whole samples where tokens of them are given: they would judge
    what the student has no part in."""
    for key, name in (
        ("gan_loss_weight_gen", "a discriminator"),
        ("real_data_weight", "a distance to real data"),
        ("set_weight", "a distance of sets"),
    ):
        if weight := getattr(cfg.dmd, key):
            raise ValueError(
                f"expected dmd.{key}=0 with train.prefix_max: {name} sees whole samples, given "
                f"tokens too, got {weight}; VSD (dmd.vsd_weight) and pairs (dmd.kd_weight) serve "
                "prefixes"
            )
    if cfg.dmd.f_divergence != "reverse_kl":
        raise ValueError(
            "expected dmd.f_divergence=reverse_kl with train.prefix_max, since another one needs a "
            f"discriminator, which sees whole samples, got {cfg.dmd.f_divergence}"
        )


def _refuse_shards(cfg: DistillConfig) -> None:
    """Refuse what FSDP cannot share among processes."""
    if cfg.dmd.gan_features == "fake_score" and cfg.dmd.trains_discriminator:
        raise ValueError(
            "expected dmd.gan_features teacher or sample with FSDP, which shards the fake score, "
            "got fake_score"
        )
    if cfg.train.fake_score_rank is not None:
        raise ValueError(
            "expected train.fake_score_rank=null with FSDP, where corrections in shards would not "
            f"be trained, got {cfg.train.fake_score_rank}"
        )
    if cfg.dmd.fake_score_pull:
        raise ValueError(
            "expected dmd.fake_score_pull=0 with FSDP, where it would move gathered copies of the "
            f"weights, got {cfg.dmd.fake_score_pull}"
        )


def _check_times_beyond_one(networks: Networks) -> None:
    """Refuse a network that a fake score told its rung would call at times it cannot take."""
    hint = (
        "a fake score that knows its rung is called with times up to the number of rungs; set "
        "dmd.fake_score_rung_conditioned=false for a network that isn't made for times beyond 1"
    )
    rungs = len(networks.cfg.student.t_list) - 1
    late = rungs - 0.5
    later = rungs - 0.25
    try:
        at_late = networks.prediction_at(late)
        at_later = networks.prediction_at(later)
    except ValueError as error:
        raise ValueError(f"{hint}: {error}") from error
    if torch.equal(at_late, at_later):
        raise ValueError(f"{hint}: this one answers the same at t = {late} and {later}")
