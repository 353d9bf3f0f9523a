"""Losses and schedule of distribution matching: what is trained for a student, and how often."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .vsd import VSDConfig

__all__ = ["MatchingConfig"]


class MatchingConfig(VSDConfig):
    """Losses and schedule of distribution matching, `dmd:` in YAML. The student that they train is
    a group of its own, :class:`fastgen.config.student.StudentConfig`.

    Raises:
        ValueError: all weights 0, or losses that contradict each other; and as `VSDConfig`.
    """

    fake_score_weight: Literal["none", "sigma", "alpha", "min_snr"] = Field(
        default="none",
        description="weight of the fake score's loss over t: 1, t, 1 - t or min(snr, 5)",
    )
    fake_score_reuse_batch: bool = Field(
        default=True,
        description="the first update of the fake score, and of the discriminator, takes the "
        "samples that the student was just trained on",
    )
    fake_steps_per_student_step: int = Field(
        default=2, ge=1, description="fake-score updates per student update"
    )
    fake_score_pull: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="p: after each student update the fake score's weights are moved towards the "
        "student's, w <- (1 - p) w + p w_student; 0 = not",
    )
    fake_score_warmup_steps: int = Field(
        default=200, ge=0, description="fake-score updates before the first student update"
    )
    fake_score_rung_conditioned: bool = Field(
        default=True,
        description="tell the fake score which rung a sample came from; false unless said for a "
        "converted teacher, whose clock ends",
    )
    gan_loss_weight_gen: float = Field(
        default=0.0, ge=0.0, description="weight of the GAN loss of the student; 0 = no GAN"
    )
    gan_loss: Literal["softplus", "relativistic"] = Field(
        default="softplus", description="kind of both GAN losses"
    )
    gan_features: Literal["teacher", "fake_score", "sample"] = Field(
        default="teacher",
        description="what the discriminator sees: blocks of the teacher or of the fake score, or "
        "the noised sample itself through Fourier features (for data of few dimensions)",
    )
    gan_blocks: tuple[str, ...] = Field(
        default=(),
        description="module paths of the blocks whose outputs it sees; [] = the last list of "
        "layers",
    )
    gan_disc_warmup_steps: int = Field(
        default=100, ge=0, description="discriminator updates before the first student update"
    )
    gan_disc_steps_per_student_step: int = Field(
        default=1, ge=1, description="discriminator updates per student update"
    )
    gan_r1_reg_weight: float = Field(
        default=0.0, ge=0.0, description="weight of approximate R1; gamma / (2 alpha^2)"
    )
    gan_r2_reg_weight: float = Field(
        default=0.0,
        ge=0.0,
        description="the same on generated samples (R2), which keeps modes balanced",
    )
    gan_r1_reg_alpha: float = Field(
        default=0.1, gt=0.0, description="size of the perturbation of R1 and R2"
    )
    gan_use_same_t_noise: bool = Field(
        default=False, description="real and generated samples share t and noise"
    )
    real_data_weight: float = Field(
        default=0.0,
        ge=0.0,
        description="weight of a kernel distance of the student's samples to real data; 0 = none",
    )
    real_data_kernel: Literal["energy", "mmd"] = Field(
        default="energy", description="kernel of that distance"
    )
    real_data_bandwidths: tuple[float, ...] = Field(
        default=(0.05, 0.1, 0.2, 0.5, 1.0),
        description="bandwidths of mmd, rms distances in normalised units",
    )
    real_data_samples: int = Field(
        default=4,
        ge=2,
        description="samples per condition, or per group where real_data_conditional is false",
    )
    real_data_conditional: bool = Field(
        default=True,
        description="compare given the condition; false: groups of samples with groups of data, "
        "for data without one",
    )
    kd_weight: float = Field(
        default=0.0,
        ge=0.0,
        description="weight of the KD loss on teacher pairs beside VSD (DMD's regression term); "
        "with first_rung=regress on the first rung alone",
    )
    first_rung: Literal["match", "regress"] = Field(
        default="match",
        description="regress: the first of several rungs learns from teacher pairs alone "
        "(kd_weight), and later ones are matched on what it makes, which keeps its modes (DP-DMD)",
    )
    set_weight: float = Field(
        default=0.0,
        ge=0.0,
        description="weight of a distance between sets of one condition, of the student's samples "
        "and of set_target's; 0 = none",
    )
    set_loss: Literal["energy", "mmd", "chamfer", "drift"] = Field(
        default="energy",
        description="that distance; mmd has the bandwidths of real_data_bandwidths",
    )
    set_target: Literal["teacher", "data"] = Field(
        default="teacher",
        description="whose samples: the teacher's by its pairs, or the data where rows share a "
        "condition (labels)",
    )
    set_samples: int = Field(default=4, ge=2, description="samples of a condition in a set")
    set_conditional: bool = Field(
        default=True,
        description="compare given the condition; false: sets of samples beside their conditions, "
        "all of real numbers, where hardly any rows share one",
    )
    set_temperatures: tuple[float, ...] = Field(
        default=(0.05, 0.2, 0.5),
        description="temperatures of drift, rms distances in normalised units",
    )

    @property
    def trains_discriminator(self) -> bool:
        """Whether anything needs one: the student's GAN loss or the ratio of an f-divergence."""
        return self.gan_loss_weight_gen > 0 or (
            self.f_divergence != "reverse_kl" and self.vsd_weight > 0
        )

    @model_validator(mode="after")
    def _consistent(self) -> MatchingConfig:
        if not self.real_data_bandwidths or min(self.real_data_bandwidths) <= 0:
            raise ValueError(
                f"expected real_data_bandwidths > 0, got {list(self.real_data_bandwidths)}"
            )
        if not self.set_temperatures or min(self.set_temperatures) <= 0:
            raise ValueError(f"expected set_temperatures > 0, got {list(self.set_temperatures)}")
        if self.first_rung == "regress" and not self.kd_weight:
            raise ValueError(
                "expected kd_weight > 0 with first_rung=regress, whose regression it weighs, got "
                "0; say kd_weight=1"
            )
        weights = (self.vsd_weight, self.gan_loss_weight_gen, self.real_data_weight)
        if not any((*weights, self.kd_weight, self.set_weight)):
            raise ValueError(
                "expected a weight > 0 among vsd, gan_loss_weight_gen, real_data, kd and set, got "
                "0 for all"
            )
        if self.f_divergence != "reverse_kl":
            self._check_ratio()
        return self

    def matched_rungs(self, rungs: int) -> tuple[float, ...]:
        """How often each of the rungs is drawn for samples to match, relative numbers; () =
        equally."""
        if self.first_rung == "match":
            return self.rung_weights
        later = self.rung_weights[1:] or (1.0,) * (rungs - 1)
        return (0.0, *later)

    def check_for_rungs(self, rungs: int, *, several: bool = False) -> None:
        """Refuse losses that a student of so many rungs can't be trained with.

        Args:
            rungs: of the student.
            several: whether they are those of several numbers of calls.

        Raises:
            ValueError: another number of `rung_weights`; with several numbers of calls, what is
                about the rungs of one; real data as start and as target.
        """
        of_one = {
            "rung_weights": bool(self.rung_weights),
            "first_rung=regress": self.first_rung == "regress",
            "vsd_guidance_from_rung": self.vsd_guidance_from_rung,
        }
        asked = [name for name, is_asked in of_one.items() if is_asked]
        if several and asked:
            raise ValueError(
                f"expected one number in student.steps with {asked[0]}, which is about the rungs "
                "of one number of calls, got several; leave it out, or say one number"
            )
        if self.rung_weights and len(self.rung_weights) != rungs:
            raise ValueError(
                f"expected one of rung_weights for each of the {rungs} rungs, got "
                f"{len(self.rung_weights)}"
            )
        matched = self.matched_rungs(rungs)
        if self.first_rung == "regress" and not any(matched):
            raise ValueError(
                "expected student.steps >= 2 with first_rung=regress, and a rung_weight > 0 after "
                f"the first, got {rungs} and {list(self.rung_weights)}"
            )
        for key in ("real_data_weight", "set_weight"):
            if getattr(self, key) and not self.backward_simulation and rungs > 1:
                raise ValueError(
                    f"expected backward_simulation=true with {key} > 0, got false: at later rungs "
                    "the student would start from the very data that its samples are compared with"
                )

    def _check_ratio(self) -> None:
        """Refuse an f-divergence without a VSD loss to weigh, or whose density ratio the
        discriminator does not know."""
        asked = f"with f_divergence={self.f_divergence}"
        if not self.vsd_weight:
            raise ValueError(
                f"expected vsd_weight > 0 {asked}, which weighs the VSD loss, got 0; or say "
                "reverse_kl"
            )
        if self.gan_loss == "relativistic":
            raise ValueError(
                f"expected gan_loss=softplus {asked}, got relativistic: its logit is the log "
                "ratio of data and student up to an unknown constant only"
            )
        vsd = self.vsd_t
        gan = self.gan_t
        if not gan.min_t <= vsd.min_t < vsd.max_t <= gan.max_t:
            raise ValueError(
                f"expected gan_t to cover vsd_t {asked}, whose ratio is the discriminator's at "
                f"times of vsd_t, got {gan.min_t}..{gan.max_t} and {vsd.min_t}..{vsd.max_t}; "
                "widen gan_t or narrow vsd_t"
            )
