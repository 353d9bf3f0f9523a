"""Networks of distribution matching: how they are asked for samples and for verdicts.

:class:`fastgen.methods.dmd.DMDPipeline` adds the losses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..discriminators import Features
from ..networks import Cond
from ..teachers.conversion import check_prediction
from .judges import Judges, check_judges, fake_score_space, knows_rung, named_features
from .rollouts import Generated, Rollouts, SharedDraws, student_rungs
from .verdicts import Verdict, vsd_verdict

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..config.dmd import DMDConfig

__all__ = ["Pipeline"]


class Pipeline:
    """Student and judges, and this process's part of the batches that they share. Arguments and
    errors are those of :class:`fastgen.methods.dmd.DMDPipeline`."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        fake_score: nn.Module | None,
        config: DMDConfig,
        *,
        discriminator: nn.Module | None = None,
        features: Features | None = None,
        rank: int = 0,
        world_size: int = 1,
        same_draws: bool = False,
        mean: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.t_list = student_rungs(config)
        self.num_rungs = len(self.t_list) - 1
        check_prediction(student, config.pred_type)
        check_judges(teacher, fake_score, discriminator, config)
        self.fake_score_pred_type = fake_score_space(fake_score, config)
        self._features_by_rung = False
        if discriminator is not None and features is None:
            features = named_features(teacher, fake_score, config)
            self._features_by_rung = config.gan_features == "fake_score" and knows_rung(fake_score)
        self.student = student
        self.teacher = teacher
        self.fake_score = fake_score
        self.config = config
        self.discriminator = discriminator
        self.features = features
        one_weight = config.vsd_norm == "batch" and config.vsd_weight > 0
        if one_weight and world_size > 1 and mean is None:
            raise ValueError(
                f"expected mean= for vsd_norm='batch' with world_size={world_size}, got None; give "
                "the mean over the processes, or set vsd_norm='rms'"
            )
        self.draws = SharedDraws(rank, world_size, same_draws, mean)

    # Built at each access, so that they follow a pipeline whose networks or draws are replaced.

    @property
    def judges(self) -> Judges:
        """Teacher, fake score and discriminator, as they judge a sample."""
        return Judges(
            self.teacher,
            self.fake_score,
            self.discriminator,
            self.features,
            self._features_by_rung,
            self.config,
        )

    @property
    def rollouts(self) -> Rollouts:
        """The student, as it generates."""
        return Rollouts(self.student, self.config, self.t_list, self.draws)

    def alone(self) -> Self:
        """The same pipeline for a batch that no other process has a part of."""
        return self._drawing(self.draws.alone())

    def micro_batch(self, index: int, of: int) -> Self:
        """The same pipeline for part `index` of the `of` equal parts of this process's share: with
        a generator in the same state for each, their losses average to the loss of the share. With
        `vsd_norm="batch"` they do so if each is given its verdict from
        :func:`fastgen.methods.verdicts.of_one_batch`."""
        return self._drawing(self.draws.part(index, of))

    def at_update(self, update: int) -> Self:
        """The same pipeline at a student update, counted from 0: `vsd_widen_updates` narrows the
        times of VSD by it. Without that key it is the pipeline itself."""
        if self.config.vsd_widen_from is None:
            return self
        pipeline = copy.copy(self)
        pipeline.config = self.config.model_copy(update={"vsd_t": self.config.vsd_t_at(update)})
        return pipeline

    def _drawing(self, draws: SharedDraws) -> Self:
        pipeline = copy.copy(self)
        pipeline.draws = draws
        return pipeline

    # ---- Samples ---------------------------------------------------------------------------------

    def student_input(
        self,
        x0: Tensor | None,
        noise: Tensor,
        cond: Cond = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, float | Tensor, int | Tensor]:
        """What the student is trained on, see `Rollouts.student_input`."""
        return self.rollouts.student_input(x0, noise, cond, generator=generator)

    def generate(
        self,
        x0: Tensor | None,
        noise: Tensor,
        cond: Cond = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Generated:
        """The student's samples at one rung, see `Rollouts.generate`."""
        return self.rollouts.generate(x0, noise, cond, generator=generator)

    def vsd_verdict(
        self,
        made: Generated,
        cond: Cond = None,
        *,
        negative_cond: Cond = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Verdict:
        """What the judges of VSD say of samples, see :func:`fastgen.methods.verdicts.vsd_verdict`.
        The generator's state must be the one after `generate`."""
        return vsd_verdict(
            self.judges,
            self.draws,
            made,
            cond,
            negative_cond=negative_cond,
            mask=mask,
            generator=generator,
        )

    def fake_x0(self, x_t: Tensor, t: Tensor, cond: Cond, rung: int | Tensor) -> Tensor:
        """The fake score's x0 of `x_t`, see `Judges.fake_x0`."""
        return self.judges.fake_x0(x_t, t, cond, rung)

    def discriminator_logits(
        self, x_t: Tensor, t: Tensor, cond: Cond, rung: int | Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The discriminator's logits of `x_t`, see `Judges.discriminator_logits`."""
        return self.judges.discriminator_logits(x_t, t, cond, rung, mask)
