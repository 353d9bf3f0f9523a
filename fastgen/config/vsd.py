"""Keys of distribution matching that say which samples VSD judges, at which times and by which
weight."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from .._core.checks import check_pred_type
from .base import Config
from .groups import SampleTimestepConfig, TimeLaw

__all__ = ["VSDConfig"]


class VSDConfig(Config):
    """Rollout, guidance, times and weight of the VSD loss: the first keys of
    :class:`fastgen.config.matching.MatchingConfig`.

    Raises:
        ValueError: keys that contradict each other.
    """

    fake_score_pred_type: Literal["flow", "x0", "eps"] | None = Field(
        default=None,
        description="space of the fake score's loss; null = what a converted teacher was trained "
        "to predict, else pred_type",
    )
    backward_simulation: bool = Field(
        default=True,
        description="train on the student's own rollout; false: on noised data, which "
        "real_data_weight doesn't go with",
    )
    rung_weights: tuple[float, ...] = Field(
        default=(), description="how often each rung is trained, relative numbers; [] = equally"
    )
    guidance_scale: float | None = Field(
        default=None, ge=0.0, description="classifier-free guidance of the teacher; null = off"
    )
    guidance_interval: tuple[float, float] = Field(
        default=(0.0, 1.0), description="RF times between which the teacher is guided"
    )
    guidance_rescale: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="how far a guided x0 is brought back to the root mean square of the unguided "
        "one",
    )
    vsd_weight: float = Field(
        default=1.0,
        ge=0.0,
        description="weight of the VSD loss; 0 = none, and no fake score is trained",
    )
    vsd_t: TimeLaw = Field(
        default=SampleTimestepConfig(time_dist_type="uniform", min_t=0.02, max_t=0.98),
        description="t of the VSD loss",
    )
    fake_score_t: TimeLaw = Field(
        default=SampleTimestepConfig(time_dist_type="uniform"),
        description="t of the fake score's loss",
    )
    gan_t: TimeLaw = Field(
        default=SampleTimestepConfig(time_dist_type="uniform", min_t=0.02, max_t=0.6),
        description="t of the GAN losses",
    )
    vsd_norm: Literal["mean_abs", "rms", "batch", "none"] = Field(
        default="mean_abs",
        description="VSD weight: 1 / the distance of each sample to the teacher's x0 (mean_abs; "
        "rms), 1 / its mean over the batch (batch), or 1 (none); all but mean_abs are "
        "rotation-invariant",
    )
    vsd_norm_min: float = Field(
        default=0.0, ge=0.0, description="least distance that the VSD weight divides by"
    )
    vsd_widen_from: float | None = Field(
        default=None,
        gt=0.0,
        lt=1.0,
        description="smallest t of the VSD loss at the first student update, from where it falls "
        "to vsd_t.min_t; null = vsd_t.min_t",
    )
    vsd_widen_updates: int = Field(
        default=0, ge=0, description="student updates until it has fallen, in a straight line"
    )
    vsd_matching_weight: float = Field(
        default=1.0, ge=0.0, description="weight of VSD's matching part, fake score - plain teacher"
    )
    vsd_matching_interval: tuple[float, float] = Field(
        default=(0.0, 1.0), description="RF times at which the matching part counts"
    )
    vsd_guidance_weight: float = Field(
        default=1.0,
        ge=0.0,
        description="weight of VSD's guidance part, plain - guided teacher",
    )
    vsd_guidance_interval: tuple[float, float] = Field(
        default=(0.0, 1.0), description="RF times at which the guidance part counts"
    )
    vsd_guidance_from_rung: bool = Field(
        default=False,
        description="guidance part only at times from the student's next rung up; below it the "
        "student makes the sample anew",
    )
    vsd_alpha_factor: bool = Field(
        default=False, description="multiply the VSD weight by alpha_t = 1 - t"
    )
    vsd_clamp: float | None = Field(
        default=None,
        gt=0.0,
        description="largest rms of one sample's VSD direction; null = no bound",
    )
    f_divergence: Literal["reverse_kl", "forward_kl", "js", "jeffreys", "hellinger"] = Field(
        default="reverse_kl",
        description="divergence that VSD descends (f-distill); all but reverse_kl need the ratio "
        "of a softplus discriminator, with gan_t over the whole range of vsd_t",
    )

    @field_validator("fake_score_pred_type", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if value is not None:
            check_pred_type(value, "fake_score_pred_type")
        return value

    @model_validator(mode="after")
    def _consistent_vsd(self) -> VSDConfig:
        if self.rung_weights and (min(self.rung_weights) < 0 or sum(self.rung_weights) <= 0):
            raise ValueError(
                f"expected rung_weights >= 0 and not all 0, got {list(self.rung_weights)}"
            )
        for name in ("guidance_interval", "vsd_matching_interval", "vsd_guidance_interval"):
            lo, hi = getattr(self, name)
            if not 0.0 <= lo < hi <= 1.0:
                raise ValueError(f"expected {name} as 0 <= lo < hi <= 1, got {[lo, hi]}")
        if self.vsd_matching_weight == self.vsd_guidance_weight == 0:
            raise ValueError(
                "expected vsd_matching_weight or vsd_guidance_weight > 0, got 0 for both; for no "
                "VSD loss set vsd_weight=0"
            )
        if self.vsd_norm_min and self.vsd_norm == "none":
            raise ValueError(
                "expected vsd_norm_min=0 with vsd_norm=none, which divides by nothing, got "
                f"{self.vsd_norm_min}"
            )
        self._check_widening()
        return self

    @property
    def vsd_in_parts(self) -> bool:
        """Whether matching and guidance part of VSD differ in weight or times from their sum."""
        return self.vsd_guidance_from_rung or not (
            self.vsd_matching_weight == self.vsd_guidance_weight == 1.0
            and self.vsd_matching_interval == self.vsd_guidance_interval == (0.0, 1.0)
        )

    def _check_widening(self) -> None:
        """Refuse a range of t that cannot widen."""
        start = self.vsd_widen_from
        if (start is None) != (self.vsd_widen_updates == 0):
            raise ValueError(
                "expected vsd_widen_from and vsd_widen_updates > 0 together, got "
                f"{start} and {self.vsd_widen_updates}"
            )
        law = self.vsd_t
        if start is not None and not law.min_t <= start < law.max_t:
            raise ValueError(
                f"expected vsd_widen_from within vsd_t, {law.min_t:g}..{law.max_t:g}, got {start:g}"
            )

    def vsd_t_at(self, update: int) -> SampleTimestepConfig:
        """The law of VSD's t at a student update, counted from 0.

        With min_t and max_t of `vsd_t`, from = `vsd_widen_from` and n = `vsd_widen_updates`, its
        smallest time is

            from + (min_t - from) min(update / n, 1)

        Large times move mass between modes, small ones sharpen what is there. The law is a pure
        function of the update, as a resumed run needs it.
        """
        start = self.vsd_widen_from
        if start is None or update >= self.vsd_widen_updates:
            return self.vsd_t
        share = update / self.vsd_widen_updates
        smallest = start + (self.vsd_t.min_t - start) * share
        return self.vsd_t.model_copy(update={"min_t": smallest})
