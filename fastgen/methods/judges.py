"""Judges of a noised sample: the teacher and the fake score say which data it came from, the
discriminator how real it looks.

No judge judges with dropout: it is in eval mode meanwhile, and its mode is restored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .._core.carried import carried_like
from .._core.checks import check_choice, check_pred_type
from .._core.masks import token_mask
from .._core.modules import as_built, evaluating, frozen
from .._core.prefixes import check_no_prefix, open_tokens, pinned
from ..discriminators import Features, block_features, sample_features
from ..flow_matching import convert_prediction
from ..guidance import Guidance, guide_x0
from ..networks import (
    Cond,
    call_network,
    clipped_x0,
    coats,
    network_dtype,
    teacher_x0,
    unclipped_x0,
)
from ..teachers.conversion import check_prediction, loss_space, translated
from ..teachers.counted import CountedNetwork
from ..teachers.guided import GuidedNetwork
from ..teachers.half import Bfloat16Network, HalfNetwork
from ..vsd import VSD_NORMS
from .fake_scores import RungConditioned

if TYPE_CHECKING:
    from ..config.dmd import DMDConfig

__all__ = ["Judges", "check_judges", "fake_score_space", "knows_rung", "named_features"]


@dataclass(frozen=True)
class Judges:
    """The networks that judge a sample x_t (B, ...) noised to t (B,), which the student made at
    `rung`, an int or integers (B,).

    Attributes:
        teacher, fake_score: predict `config.pred_type`. The fake score may be None.
        discriminator: called `discriminator(features, t, cond)`, with `mask=` if there is one;
            returns logits (B, heads). None: there is none.
        features: what the discriminator sees, `features(x_t, t, cond) -> list of Tensors`.
        features_by_rung: whether the features are blocks of a fake score that reads the rung off
            the time, and so are asked at t + rung.
        config: of it `pred_type` and the guidance of the teacher.
    """

    teacher: nn.Module
    fake_score: nn.Module | None
    discriminator: nn.Module | None
    features: Features | None
    features_by_rung: bool
    config: DMDConfig

    # ---- Teacher ---------------------------------------------------------------------------------

    def teacher_x0(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Cond,
        negative_cond: Cond = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The teacher's x0 (B, ...), guided as the config says.

        Raises:
            ValueError: for a mask with a teacher that rescales by itself.
        """
        self._check_mask(mask, cond)
        config = self.config
        if config.guidance_scale is None or config.guidance_scale == 1.0:
            with evaluating(self.teacher):
                x0 = teacher_x0(self.teacher, x_t, t, cond, pred_type=config.pred_type)
            return pinned(x0, cond)
        return self._guided_by_config(x_t, t, cond, negative_cond, mask)[1]

    def plain_and_guided_x0(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Cond,
        negative_cond: Cond = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The teacher's x0 (B, ...) without and with guidance, in the calls that `teacher_x0`
        costs; the same one twice for a teacher that isn't guided. Errors are those of
        `teacher_x0`."""
        self._check_mask(mask, cond)
        config = self.config
        if config.guidance_scale is not None and config.guidance_scale != 1.0:
            return self._guided_by_config(x_t, t, cond, negative_cond, mask)
        teacher = as_built(self.teacher)
        if not isinstance(teacher, GuidedNetwork):
            x0 = self.teacher_x0(x_t, t, cond, negative_cond, mask)
            return x0, x0
        with evaluating(teacher):
            plain, guided = teacher.plain_and_guided(x_t, t, cond)
        plain, guided = (clipped_x0(teacher, value) for value in (plain, guided))
        return pinned(plain, cond), pinned(guided, cond)

    def _check_mask(self, mask: Tensor | None, cond: Cond) -> None:
        """Refuse a mask that is not the condition's with a teacher that rescales by itself."""
        teacher = as_built(self.teacher)
        untold = mask is not None and token_mask(cond) is None
        if untold and isinstance(teacher, GuidedNetwork) and teacher.guidance.rescale:
            raise ValueError(
                "expected guidance_rescale and negative_cond of the pipeline with a mask, got a "
                "teacher that rescales by itself and cannot tell padding"
            )

    def _guided_by_config(
        self, x_t: Tensor, t: Tensor, cond: Cond, negative_cond: Cond, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x0 (B, ...) of the teacher without the guidance that the config asks for, and with it."""
        config = self.config
        assert config.guidance_scale is not None
        negative_cond = carried_like(negative_cond, cond)
        with evaluating(self.teacher):
            x0 = unclipped_x0(self.teacher, x_t, t, cond, pred_type=config.pred_type)
            negative = unclipped_x0(self.teacher, x_t, t, negative_cond, pred_type=config.pred_type)
        guidance = Guidance(
            config.guidance_scale, config.guidance_interval, config.guidance_rescale
        )
        guided = guide_x0(x0, negative, t, guidance, mask=open_tokens(cond, mask))
        plain, guided = (clipped_x0(self.teacher, value) for value in (x0, guided))
        return pinned(plain, cond), pinned(guided, cond)

    # ---- Fake score ------------------------------------------------------------------------------

    def fake_x0(self, x_t: Tensor, t: Tensor, cond: Cond, rung: int | Tensor) -> Tensor:
        """The fake score's x0 (B, ...)."""
        with evaluating(self.fake_score):
            pred = self.fake_prediction(x_t, t, cond, rung)
        return pinned(convert_prediction(pred, x_t, t, self.config.pred_type, "x0"), cond)

    def fake_prediction(self, x_t: Tensor, t: Tensor, cond: Cond, rung: int | Tensor) -> Tensor:
        """The fake score's prediction (B, ...) in `config.pred_type`. Its mode is left alone: in
        its own loss it trains.

        Raises:
            ValueError: if there is no fake score.
        """
        fake_score = self.fake_score
        if fake_score is None:
            raise ValueError("expected a pipeline with a fake_score, got None")
        if not knows_rung(fake_score):
            return call_network(fake_score, x_t, t, cond, dtype=x_t.dtype)

        def at_rung(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
            return fake_score(x_t, t, cond, rung=rung)

        return call_network(at_rung, x_t, t, cond, dtype=network_dtype(fake_score, x_t.dtype))

    # ---- Discriminator ---------------------------------------------------------------------------

    def discriminator_logits(
        self, x_t: Tensor, t: Tensor, cond: Cond, rung: int | Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The discriminator's logits (B, heads), differentiable in x_t but not in any weights.

        Data are asked about with the rung of the samples they are compared with.

        Raises:
            ValueError: if there is no discriminator.
        """
        if self.discriminator is None:
            raise ValueError("expected a pipeline with discriminator=, got none")
        # Without its wrapper: its weights get no gradient here, so nothing is to be synchronised.
        discriminator = as_built(self.discriminator)
        judges = (self.teacher, self.fake_score, discriminator)
        # Frozen rather than no_grad: this gradient goes through the networks into the sample.
        with frozen(*judges), evaluating(*judges):
            return self.logits(discriminator, self.seen(x_t, t, cond, rung), t, cond, mask)

    def seen(self, x_t: Tensor, t: Tensor, cond: Cond, rung: int | Tensor) -> list[Tensor]:
        """The features that the discriminator sees.

        Raises:
            ValueError: a condition with a prefix.
        """
        check_no_prefix(cond, "a discriminator")
        assert self.features is not None  # whoever has a discriminator has its features
        asked = t + rung if self.features_by_rung else t
        with evaluating(self.teacher, self.fake_score):
            return self.features(x_t, asked, cond)

    @staticmethod
    def logits(
        discriminator: nn.Module, seen: list[Tensor], t: Tensor, cond: Cond, mask: Tensor | None
    ) -> Tensor:
        """Logits (B, heads) of these features, in the mode that `discriminator` is in."""
        mask = token_mask(cond) if mask is None else mask
        if mask is None:
            return discriminator(seen, t, cond)
        return discriminator(seen, t, cond, mask=mask)


# ---- What a config asks of them ------------------------------------------------------------------


def check_judges(
    teacher: nn.Module,
    fake_score: nn.Module | None,
    discriminator: nn.Module | None,
    config: DMDConfig,
) -> None:
    """Refuse judges that the losses of `config` cannot use.

    Raises:
        ValueError: for a missing fake score or discriminator, an unknown `vsd_norm`, or a converted
            network whose `pred_type` isn't "flow".
    """
    check_choice("vsd_norm", config.vsd_norm, VSD_NORMS)
    check_prediction(teacher, config.pred_type)
    if fake_score is not None:
        check_prediction(fake_score, config.pred_type)
    elif config.vsd_weight > 0:
        raise ValueError(f"expected a fake_score for vsd_weight={config.vsd_weight}, got None")
    if discriminator is None and config.trains_discriminator:
        raise ValueError(
            f"expected discriminator= for gan_loss_weight_gen={config.gan_loss_weight_gen} and "
            f"f_divergence={config.f_divergence!r}, got none; give one, or set the weight to 0 and "
            "reverse_kl"
        )


def fake_score_space(fake_score: nn.Module | None, config: DMDConfig) -> str:
    """Where the fake score's loss compares, "flow", "x0" or "eps": `fake_score_pred_type`, else
    what a converted network was trained to predict, else `pred_type`."""
    space = config.fake_score_pred_type
    if space is None and fake_score is not None:
        space = loss_space(fake_score)
    if space is None:
        space = config.pred_type
    check_pred_type(space, "fake_score_pred_type")
    return space


def knows_rung(fake_score: nn.Module | None) -> bool:
    """Whether a fake score is told the rung of each sample."""
    return fake_score is not None and isinstance(as_built(fake_score), RungConditioned)


def named_features(teacher: nn.Module, fake_score: nn.Module | None, config: DMDConfig) -> Features:
    """The features that `gan_features` and `gan_blocks` name.

    Raises:
        ValueError: for blocks that the network doesn't have, or features of no fake score.
    """
    if config.gan_features == "sample":
        return sample_features
    network = teacher if config.gan_features == "teacher" else fake_score
    if network is None:
        raise ValueError("expected a fake_score for gan_features='fake_score', got None")
    # The blocks' names are the plain network's own, and a guided teacher calls it twice.
    plain = translated(network)
    around = list(coats(network))
    asked = [coat for coat in around if isinstance(coat, CountedNetwork)]
    half = [coat for coat in around if isinstance(coat, Bfloat16Network | HalfNetwork)]
    called = next(iter(asked + half), plain)
    features = block_features(plain, config.gan_blocks or None, called=called)
    if not half:
        return features

    def as_given(x_t: Tensor, t: Tensor, cond: Cond) -> list[Tensor]:
        return [feature.to(x_t.dtype) for feature in features(x_t, t, cond)]

    return as_given
