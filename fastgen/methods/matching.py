"""Updates of distribution matching: the student and the networks that judge it take turns.

Every draw is a pure function of (seed, stage, step), so that a resumed run makes the very draws of
an uninterrupted one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._core.conditions import cond_to, take_rows
from .._core.masks import token_mask
from .._core.prefixes import with_prefix
from ..config.dmd import DMDConfig
from ..teachers.answer import first_gap
from ..training.draws import Draws
from ..training.stage import Stage, micro_batches, update_in_parts
from ..training.trained_network import TrainedNetwork
from .diagnostics import diagnose
from .dmd import DMDPipeline
from .fake_scores import check_pull, pull
from .kd import KnowledgeDistillation
from .rollouts import Generated
from .sets import ConditionSets, set_term
from .verdicts import Verdict, of_one_batch

DIAGNOSED_ROWS = 256


class TrainedJudge(NamedTuple):
    """A network that is trained beside the student, to judge it.

    Attributes:
        name: prefix of its draws and logs.
        part: its name among the networks that a checkpoint holds.
        network: with its optimiser.
        loss: name of the pipeline's method.
        warmup: updates before the first student update.
        turns: updates after each student update.
    """

    name: str
    part: str
    network: TrainedNetwork
    loss: str
    warmup: int
    turns: int

    def updates(self, step: int, warmup: int) -> range:
        """The numbers of its own updates that belong to `step` of a stage whose warm-up has
        `warmup` steps."""
        if step < warmup:
            first = step - (warmup - self.warmup)
            return range(max(first, 0), first + 1)
        first = self.warmup + (step - warmup) * self.turns
        return range(first, first + self.turns)


class DistributionMatching(Stage):
    """DMD2, or the GAN alone (LADD): warm-up of fake score and discriminator, then they and the
    student take turns.

    After every student update come `fake_steps_per_student_step` updates of the fake score and
    `gan_disc_steps_per_student_step` of the discriminator, where there are such networks. The first
    of each may take the samples that the student was just trained on (`fake_score_reuse_batch`).
    Both warm-ups end together.

    Args:
        student: the network to distil.
        fake_score: None where the pipeline has none.
        pipeline: the losses.
        x0, cond: training data as networks see them.
        dmd: as the pipeline's.
        updates: of the student.
        discriminator: the pipeline's, or None.
        pairs: KD on teacher pairs, whose loss is added with `kd_weight`; None, or a weight of 0:
            there is none.
        sets: of one condition, whose distance is added with `set_weight`; None: there is none.
        prefix_tokens: most tokens of a sample that are given, k of them drawn anew for each batch;
            0: the condition carries no prefix.
        name: of the stage.
    """

    def __init__(
        self,
        student: TrainedNetwork,
        fake_score: TrainedNetwork | None,
        pipeline: DMDPipeline,
        x0: Tensor,
        cond: Any,
        dmd: DMDConfig,
        updates: int,
        draws: Draws,
        *,
        discriminator: TrainedNetwork | None = None,
        pairs: KnowledgeDistillation | None = None,
        sets: ConditionSets | None = None,
        prefix_tokens: int = 0,
        name: str = "dmd",
    ) -> None:
        self.student = student
        self.pipeline = pipeline
        self.pairs = pairs if dmd.kd_weight > 0 else None
        self.sets = sets
        self.prefix_tokens = prefix_tokens
        self.name = name
        self.x0 = x0
        self.cond = cond
        self.dmd = dmd
        self.draws = draws
        self.judges: list[TrainedJudge] = []
        if fake_score is not None:
            self.judges.append(
                TrainedJudge(
                    "fake",
                    part="fake_score",
                    network=fake_score,
                    loss="compute_fake_score_loss",
                    warmup=dmd.fake_score_warmup_steps,
                    turns=dmd.fake_steps_per_student_step,
                )
            )
            if dmd.fake_score_pull:
                check_pull(fake_score.network, student.network)
        if discriminator is not None:
            self.judges.append(
                TrainedJudge(
                    "disc",
                    part="discriminator",
                    network=discriminator,
                    loss="compute_discriminator_loss",
                    warmup=dmd.gan_disc_warmup_steps,
                    turns=dmd.gan_disc_steps_per_student_step,
                )
            )
        self.warmup = max((judge.warmup for judge in self.judges), default=0) if updates else 0
        self.updates = self.warmup + updates

    def update(self, step: int) -> dict[str, Tensor | float]:
        logs: dict[str, Tensor | float] = {}
        made: list[Generated] = []
        if step >= self.warmup:
            with self.clock.phase("student"):
                made = self._update_student(step, logs)
        for judge in self.judges:
            for index in judge.updates(step, self.warmup):
                first = step >= self.warmup and index == judge.updates(step, self.warmup)[0]
                reused = made if first and self.dmd.fake_score_reuse_batch else []
                with self.clock.phase(judge.name):
                    self._update_judge(judge, step, index, reused, logs)
        # What a stage is watched by: the student's first loss, in the warm-up a judge's.
        logs["loss"] = next(iter(logs.values()))
        return logs

    def diagnose(self, step: int) -> dict[str, float | list[float]]:
        """What shows a collapse (:mod:`fastgen.methods.diagnostics`), on rows and draws that (seed,
        step) alone decide."""
        generator = self.draws.generator(step, "diagnose")
        rows = torch.randperm(len(self.x0), generator=generator)[:DIAGNOSED_ROWS]
        x0 = cond_to(self.x0[rows], self.draws.device)
        cond = cond_to(take_rows(self.cond, rows), self.draws.device)
        return diagnose(self.pipeline, x0, cond, generator=generator)

    def _update_student(self, step: int, logs: dict[str, Tensor | float]) -> list[Generated]:
        """One update; the samples it was made on, a micro-batch each."""
        made: list[Generated] = []

        def loss(
            pipeline: DMDPipeline,
            batch: tuple[Tensor, Tensor, Any],
            pairs: tuple[Any, ...],
            sets: tuple[Any, ...],
            verdict: Verdict | None,
        ) -> dict[str, Tensor]:
            generator = self.draws.generator(step, "student")
            generated = pipeline.generate(*batch, generator=generator)
            losses = pipeline.compute_student_loss(
                *batch, generated=generated, verdict=verdict, generator=generator
            )
            made.append(generated.detach())
            if self.pairs is not None:
                losses["kd"] = self.pairs.loss(*pairs)
                losses["total"] = losses["total"] + self.dmd.kd_weight * losses["kd"]
            if self.sets is not None:
                generator = self.draws.generator(step, "student-sets")
                losses["set"] = set_term(pipeline.rollouts, *sets, generator=generator)
                losses["total"] = losses["total"] + self.dmd.set_weight * losses["set"]
            return losses

        batches = self._split(*self._batch(step, "student"))
        of_pairs = self._split(*(() if self.pairs is None else self.pairs.batch(step)))
        pipelines = self._pipelines(step)
        verdicts = self._verdicts(step, pipelines, batches)
        of_sets = self._split(*(() if self.sets is None else self.sets.batch(step)))
        parts = list(zip(pipelines, batches, of_pairs, of_sets, verdicts, strict=True))
        logs |= update_in_parts(self.student, step - self.warmup, loss, parts)
        if self.dmd.fake_score_pull and self.pipeline.fake_score is not None:
            pull(self.pipeline.fake_score, self.student.bare, self.dmd.fake_score_pull)
        return made

    def _verdicts(
        self, step: int, pipelines: list[DMDPipeline], batches: list[tuple[Any, ...]]
    ) -> list[Verdict | None]:
        """What VSD's judges say of each micro-batch, where its weight is one for all of them; else
        None for each, and the losses ask the judges.

        The judges are asked once either way. The student makes its samples once more, without
        gradient: their graphs would not fit into memory all at once.
        """
        one_weight = self.dmd.vsd_norm == "batch" and self.dmd.vsd_weight > 0
        if not one_weight or len(pipelines) == 1:
            return [None] * len(pipelines)
        verdicts = []
        for pipeline, batch in zip(pipelines, batches, strict=True):
            generator = self.draws.generator(step, "student")
            with torch.no_grad():
                made = pipeline.generate(*batch, generator=generator)
            verdicts.append(pipeline.vsd_verdict(made, batch[2], generator=generator))
        return [*of_one_batch(verdicts)]

    def _update_judge(
        self,
        judge: TrainedJudge,
        step: int,
        index: int,
        made: list[Generated],
        logs: dict[str, Tensor | float],
    ) -> None:
        if made:
            name = f"{judge.name}0"
            batch = self._batch(step, "student")
        else:
            name = f"{judge.name}{index - judge.updates(step, self.warmup)[0]}"
            batch = self._batch(step, name, index)

        def loss(
            pipeline: DMDPipeline, batch: tuple[Tensor, Tensor, Any], generated: Generated | None
        ) -> dict[str, Tensor]:
            # Each part of the batch starts from the same state, draws for the whole and keeps its
            # own.
            generator = self.draws.generator(step, name)
            return getattr(pipeline, judge.loss)(*batch, generated=generated, generator=generator)

        samples = made or [None] * self.draws.accumulation
        parts = list(zip(self._pipelines(step), self._split(*batch), samples, strict=True))
        done = update_in_parts(judge.network, index, loss, parts)
        norm = done.pop("grad_norm")
        logs |= {key: value for key, value in done.items() if key not in ("total", "lr")}
        logs[f"{judge.name}_grad_norm"] = norm

    def _pipelines(self, step: int) -> list[DMDPipeline]:
        """The pipeline of each micro-batch."""
        pipeline = self.pipeline.at_update(max(step - self.warmup, 0))
        k = self.draws.accumulation
        return [pipeline.micro_batch(j, k) for j in range(k)]

    def _split(self, *batch: Any) -> list[tuple[Any, ...]]:
        return micro_batches(self.draws, *batch)

    def _batch(self, step: int, name: str, index: int | None = None) -> tuple[Tensor, Tensor, Any]:
        """x0, noise and cond of one update; `index` counts the updates of its network, and so its
        batches."""
        with self.clock.phase("data"):
            rows = self.draws.rows(step if index is None else index, len(self.x0))
            x0 = cond_to(self.x0[rows], self.draws.device)
            cond = cond_to(take_rows(self.cond, rows), self.draws.device)
            if self.prefix_tokens:
                cond = self._with_prefix(cond, x0, step, name)
            return x0, self.draws.normal(step, f"noise-{name}", tuple(x0.shape[1:])), cond

    def _with_prefix(self, cond: Any, x0: Tensor, step: int, name: str) -> Any:
        """The condition of a batch whose rows are given the beginning of their own data."""
        lengths = self.draws.prefix_lengths(
            step, f"prefix-{name}", self.prefix_tokens, token_mask(cond)
        )
        return with_prefix(cond, x0, lengths)

    def cause(self, step: int, part: str) -> str | None:
        asked: dict[str, nn.Module] = {"the teacher": self.pipeline.teacher}
        for judge in self.judges:
            if judge.part == "fake_score":
                asked["the fake score"] = judge.network.bare
        law = self.dmd.vsd_t
        times = [law.min_t + (i + 0.5) / 16 * (law.max_t - law.min_t) for i in range(16)]
        rows = self.batch_rows(step, part).unique()
        return first_gap(asked, self.x0, self.cond, rows, times)

    def batch_rows(self, step: int, part: str) -> Tensor:
        batches = [step]
        for judge in self.judges:
            if judge.network is self.trained()[part]:
                batches = list(judge.updates(step, self.warmup))
                if step >= self.warmup and self.dmd.fake_score_reuse_batch:
                    # Its first update takes the student's batch again.
                    batches = [step, *batches[1:]]
        return torch.cat([self.draws.batch_rows(batch, len(self.x0)) for batch in batches])

    def trained(self) -> dict[str, TrainedNetwork]:
        return {"student": self.student} | {judge.part: judge.network for judge in self.judges}

    def averaged(self) -> nn.Module:
        return self.student.averaged()
