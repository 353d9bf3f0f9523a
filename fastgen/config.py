"""Schemas of everything a user can set: validated, immutable, unknown keys refused.

Each class is a frozen pydantic model, usable from Python (``DMDConfig(student_steps=4)``) and from
YAML. Reading files, overrides and the command line is the business of :mod:`fastgen.cli`.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ._tensor import check_pred_type


class _Config(BaseModel):
    """Immutable, with unknown keys refused; what every schema below shares. Fields may be given in
    order or by name."""

    # YAML reads run_dir: 2024 as a number.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = list(type(self).model_fields)
        if len(args) > len(names):
            raise TypeError(
                f"expected at most {len(names)} values in {type(self).__name__}, got {len(args)}"
            )
        super().__init__(**dict(zip(names, args, strict=False)), **kwargs)

    @field_validator("*", mode="before")
    @classmethod
    def _rest_of_a_group(cls, value: Any, info: ValidationInfo) -> Any:
        """A group given in part keeps the rest of this field's own default, which need not be the
        group's."""
        default = cls.model_fields[info.field_name or ""].default
        if isinstance(value, dict) and isinstance(default, BaseModel):
            return {**default.model_dump(exclude_unset=True), **value}
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError(f"expected no yes-or-no value, got {value}")
        return value


class SampleTimestepConfig(_Config):
    """Distribution of a training time t in [min_t, max_t]; see
    :func:`fastgen.flow_matching.sample_timesteps`."""

    time_dist_type: Literal["uniform", "logitnormal", "lognormal", "shifted", "polynomial"] = Field(
        default="shifted", description="law of t"
    )
    min_t: float = Field(default=0.001, ge=0.0, le=1.0, description="smallest t drawn")
    max_t: float = Field(default=0.999, ge=0.0, le=1.0, description="largest t drawn")
    shift: float = Field(
        default=5.0, gt=0.0, description="s of `shifted`: t = s u / (1 + (s - 1) u)"
    )
    p_mean: float = Field(
        default=0.0, description="mean of the normal behind logitnormal and lognormal"
    )
    p_std: float = Field(default=1.0, gt=0.0, description="standard deviation of that normal")
    t_list: tuple[float, ...] | None = Field(
        default=None, description="rungs of a student; ignored when t is drawn"
    )

    @model_validator(mode="after")
    def _ordered(self) -> SampleTimestepConfig:
        if not self.min_t < self.max_t:
            raise ValueError(f"expected min_t < max_t, got min_t={self.min_t}, max_t={self.max_t}")
        return self


class EMAConfig(_Config):
    """Exponential moving average of the student's weights, counted in student updates (Karras et
    al. 2023 for `power`)."""

    decay: float = Field(
        default=0.99,
        ge=0.0,
        lt=1.0,
        description="beta of `constant`: shadow = beta shadow + (1 - beta) w",
    )
    type: Literal["constant", "halflife", "power"] = Field(
        default="constant", description="law of beta over updates"
    )
    start_iter: int = Field(
        default=0, ge=0, description="updates before which the shadow is a plain copy"
    )
    gamma: float = Field(
        default=16.97, gt=0.0, description="exponent of `power`: beta = (1 - 1/n)^(gamma + 1)"
    )
    halflife_kimg: float = Field(
        default=500.0, gt=0.0, description="half-life of `halflife` in thousands of samples"
    )
    rampup_ratio: float | None = Field(
        default=0.05, gt=0.0, description="half-life <= ratio x samples seen; null = no ramp"
    )
    batch_size: int = Field(default=128, gt=0, description="samples per update, for `halflife`")
    dtype: Literal["float32", "float64"] = Field(
        default="float32", description="dtype of the shadow"
    )

    @field_validator("dtype", mode="before")
    @classmethod
    def _named(cls, dtype: Any) -> Any:
        return str(dtype).removeprefix("torch.")


class DMDConfig(_Config):
    """DMD2 with rectified-flow networks (Yin et al. 2024, arXiv:2405.14867)."""

    pred_type: Literal["flow", "x0", "eps"] = Field(
        default="flow", description="what every network predicts"
    )
    fake_score_pred_type: Literal["flow", "x0", "eps"] | None = Field(
        default=None,
        description="space of the fake score's loss; null = what a converted teacher was trained "
        "to predict, else pred_type",
    )
    student_steps: int = Field(default=1, ge=1, le=1000, description="network calls of the student")
    t_list: tuple[float, ...] = Field(
        default=(), description="the student's rungs, decreasing to 0.0; [] = from student_steps"
    )
    t_list_shift: float = Field(
        default=1.0, gt=0.0, description="shift of the default rungs: t -> s t / (1 + (s - 1) t)"
    )
    t_max: float = Field(
        default=0.999, gt=0.0, le=1.0, description="first rung of the default t_list"
    )
    student_sample_type: Literal["ode", "sde"] = Field(
        default="sde", description="how rungs are joined"
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
    vsd_t: SampleTimestepConfig = Field(
        default=SampleTimestepConfig(time_dist_type="uniform", min_t=0.02, max_t=0.98),
        description="t of the VSD loss",
    )
    fake_score_t: SampleTimestepConfig = Field(
        default=SampleTimestepConfig(time_dist_type="uniform"),
        description="t of the fake score's loss",
    )
    gan_t: SampleTimestepConfig = Field(
        default=SampleTimestepConfig(time_dist_type="uniform", min_t=0.02, max_t=0.6),
        description="t of the GAN losses",
    )
    vsd_norm: Literal["mean_abs", "rms"] = Field(
        default="mean_abs", description="VSD weight; rms is rotation-invariant"
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
        description="weight of the KD loss on teacher pairs beside VSD (DMD's regression term)",
    )
    ema: EMAConfig | None = Field(
        default=EMAConfig(), description="average of the student's weights; null = none"
    )

    @property
    def trains_discriminator(self) -> bool:
        """Whether anything needs one: the student's GAN loss or the ratio of an f-divergence."""
        return self.gan_loss_weight_gen > 0 or (
            self.f_divergence != "reverse_kl" and self.vsd_weight > 0
        )

    @model_validator(mode="before")
    @classmethod
    def _rungs(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        t_list = values.get("t_list")
        steps = values.get("student_steps")
        if t_list is None or (isinstance(t_list, list | tuple) and not t_list):
            return {key: value for key, value in values.items() if key != "t_list"}
        if not isinstance(t_list, list | tuple) and hasattr(t_list, "tolist"):
            values = {**values, "t_list": (t_list := t_list.tolist())}
        if not isinstance(t_list, list | tuple) or not all(
            isinstance(t, int | float) for t in t_list
        ):
            raise ValueError(f"expected t_list as a list of numbers, got {t_list!r}")
        if steps is not None and steps != len(t_list) - 1:
            raise ValueError(
                f"expected student_steps == len(t_list) - 1 = {len(t_list) - 1}, got "
                f"student_steps={steps}; set one of the two"
            )
        return {**values, "student_steps": len(t_list) - 1}

    @field_validator("pred_type", "fake_score_pred_type", mode="before")
    @classmethod
    def _known(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None:
            check_pred_type(value, info.field_name or "pred_type")
        return value

    @field_validator("t_list")
    @classmethod
    def _decreasing(cls, t_list: tuple[float, ...]) -> tuple[float, ...]:
        if t_list and (t_list[-1] != 0.0 or not 0.0 < t_list[0] <= 1.0):
            raise ValueError(
                f"expected t_list to start in (0, 1] and end at 0.0, got {list(t_list)}"
            )
        if any(a <= b for a, b in zip(t_list, t_list[1:], strict=False)):
            raise ValueError(f"expected t_list strictly decreasing, got {list(t_list)}")
        return t_list

    @model_validator(mode="after")
    def _defaults(self) -> DMDConfig:
        # Frozen models are still filled in during validation, through the base class' setter.
        if not self.t_list:
            n = self.student_steps
            s = self.t_list_shift
            even = [self.t_max * (n - i) / n for i in range(n)]
            # The first rung is t_max itself, which n t_max / n need not be.
            rungs = [self.t_max] + [s * t / (1.0 + (s - 1.0) * t) for t in even[1:]]
            object.__setattr__(self, "t_list", (*rungs, 0.0))
        if self.rung_weights and len(self.rung_weights) != self.student_steps:
            raise ValueError(
                f"expected one of rung_weights for each of the {self.student_steps} rungs, got "
                f"{len(self.rung_weights)}"
            )
        if self.rung_weights and (min(self.rung_weights) < 0 or sum(self.rung_weights) <= 0):
            raise ValueError(
                f"expected rung_weights >= 0 and not all 0, got {list(self.rung_weights)}"
            )
        lo, hi = self.guidance_interval
        if not 0.0 <= lo < hi <= 1.0:
            raise ValueError(f"expected guidance_interval as 0 <= lo < hi <= 1, got {[lo, hi]}")
        if not self.real_data_bandwidths or min(self.real_data_bandwidths) <= 0:
            raise ValueError(
                f"expected real_data_bandwidths > 0, got {list(self.real_data_bandwidths)}"
            )
        if (
            not self.vsd_weight
            and not self.gan_loss_weight_gen
            and not self.real_data_weight
            and not self.kd_weight
        ):
            raise ValueError(
                "expected a weight > 0 among vsd, gan_loss_weight_gen, real_data and kd, got 0 "
                "for all"
            )
        if self.f_divergence != "reverse_kl":
            self._check_ratio()
        if self.real_data_weight and not self.backward_simulation and self.student_steps > 1:
            raise ValueError(
                "expected backward_simulation=true with real_data_weight > 0, got false: at later "
                "rungs the student would start from the very data that its samples are compared "
                "with"
            )
        if self.pred_type == "eps" and self.t_list[0] >= 1.0:
            raise ValueError(
                "expected t_list[0] < 1 for pred_type='eps' (x0 needs 1/(1-t)), got "
                f"{self.t_list[0]}"
            )
        return self

    def _check_ratio(self) -> None:
        """What the density ratio of an f-divergence needs: a loss it weighs, and a discriminator
        that knows it."""
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


class SymmetryConfig(_Config):
    """How a group acts on the channels of one waypoint, one observation token and one predicted
    waypoint."""

    group: str = Field(description="C<n>, D<n>, Icosahedral, or a product such as C2xC2")
    in_rep: list[str] | dict[str, str] = Field(
        description="direct sum of trivial, sign, standard, regular, irrep:<id>"
    )
    cond_rep: list[str] | dict[str, str] = Field(
        description="the same for observations; or {matrices: file.npz}"
    )
    out_rep: list[str] | dict[str, str] | None = Field(
        default=None, description="the same for outputs; null = in_rep"
    )

    @field_validator("in_rep", "cond_rep", "out_rep", mode="before")
    @classmethod
    def _one(cls, rep: Any) -> Any:
        return [rep] if isinstance(rep, str) else rep


class DataConfig(_Config):
    """Where trajectories, or samples of any other shape, come from."""

    name: Literal["ring", "modes", "two_rings", "flights", "file"] = Field(
        default="ring", description="embedded task, or `file` for your own"
    )
    path: str | None = Field(
        default=None,
        description="file: .npz or .safetensors with X and Z, X alone, or actions, observations, "
        "episode_ends",
    )
    size: int | None = Field(
        default=None,
        gt=0,
        description="ring, two_rings: number of demonstrations; null = 4000; modes: of points; "
        "null = 20000",
    )
    seed: int = Field(
        default=0, ge=0, description="seed of the generated demonstrations and of splits"
    )
    pack: int | None = Field(
        default=None,
        ge=1,
        description="waypoints per token; null = the task's own (ring, two_rings, flights 4)",
    )
    symmetry: SymmetryConfig | None = Field(
        default=None, description="symmetry of the data; null = the embedded task's own"
    )
    obs_horizon: int | None = Field(
        default=None, ge=1, description="observations per window; null = the task's own"
    )
    horizon: int | None = Field(
        default=None, ge=1, description="waypoints per window; null = the task's own"
    )
    stride: int | None = Field(
        default=None, ge=1, description="steps between windows; null = the task's own"
    )
    normalize: bool | None = Field(
        default=None,
        description="file of trajectories: false for a teacher that was trained in the units of "
        "the file; null = true; other samples are never normalised",
    )


class ModelConfig(_Config):
    """A conditional transformer to train as a teacher."""

    equivariant: bool = Field(
        default=True, description="eCondTransformerRegressor; false: its dense twin"
    )
    embedding_dim: int = Field(
        default=96, gt=0, description="width; a multiple of the group order and of the heads"
    )
    num_layers: int = Field(default=3, ge=1, description="decoder layers")
    num_attention_heads: int = Field(default=4, ge=1, description="attention heads")
    num_cond_layers: int = Field(
        default=0, ge=0, description="encoder layers over the condition; 0 = an MLP"
    )
    causal_attn: bool = Field(default=False, description="waypoints attend to earlier ones only")
    p_drop_emb: float = Field(default=0.0, ge=0.0, lt=1.0, description="dropout on embeddings")
    p_drop_attn: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="dropout in attention and feed-forward blocks"
    )
    norm_module: Literal["rmsnorm", "layernorm"] = Field(
        default="rmsnorm", description="normalisation"
    )


class OptimizerConfig(_Config):
    """AdamW with linear warm-up and a cosine to `final_lr_ratio`; the rate is a pure function of
    the step."""

    lr: float = Field(default=1e-3, gt=0.0, description="peak learning rate")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="Adam's moment decays")
    weight_decay: float = Field(
        default=0.0, ge=0.0, description="decoupled weight decay, on weights of linear maps"
    )
    warmup_steps: int = Field(default=50, ge=0, description="linear warm-up")
    final_lr_ratio: float = Field(
        default=0.01, ge=0.0, le=1.0, description="last learning rate / peak"
    )
    clip_grad_norm: float = Field(default=1.0, gt=0.0, description="largest gradient norm")

    @field_validator("betas")
    @classmethod
    def _decays(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"expected betas in [0, 1), got {list(betas)}")
        return betas

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate of update `step` (0-based) of `total`."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, total - self.warmup_steps))
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.lr * (self.final_lr_ratio + (1.0 - self.final_lr_ratio) * cosine)


class LoopConfig(_Config):
    """What every training loop has."""

    batch_size: int = Field(default=128, gt=0, description="global batch, shared by all processes")
    gradient_accumulation_steps: int = Field(
        default=1,
        ge=1,
        description="micro-batches of each process that add up to one update of the same batch",
    )
    checkpoint_every: int = Field(default=500, gt=0, description="updates between checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="newest checkpoints kept")
    log_every: int = Field(default=25, gt=0, description="updates between rows of metrics.jsonl")
    evaluate_every: int = Field(default=500, gt=0, description="updates between quick validations")
    keep_best: bool = Field(
        default=True,
        description="a stage's result is its best validated average; false: its last average",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="validations in a row without improvement that end a stage; null = never",
    )
    most_skipped: int = Field(
        default=10,
        ge=1,
        description="updates in a row with a loss or gradient that is not finite, which end the "
        "run",
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads per process; null = all cores / processes"
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="compute the activations of a network's blocks again in the backward instead "
        "of keeping them",
    )
    ema_on_cpu: bool = Field(default=False, description="keep averages in CPU memory")
    compile: bool = Field(
        default=False,
        description="torch.compile the trained networks and a teacher of this package; converted "
        "and guided teachers, discriminator features and rollouts run as they are; a minute or "
        "more before it pays",
    )
    tracker: Literal["tensorboard", "wandb"] | None = Field(
        default=None,
        description="where numbers of the log go, too: tensorboard (in the run folder) or wandb",
    )


class DistillTrainConfig(LoopConfig):
    """The stages of a distillation: teacher pairs, KD warm start, fake-score warm-up, DMD."""

    kd_steps: int = Field(
        default=4000, ge=0, description="KD updates; 0 = start from the teacher's weights"
    )
    kd_pairs: int = Field(default=32000, gt=0, description="teacher ODE pairs")
    kd_teacher_calls: int = Field(default=16, ge=1, description="AB2 calls per pair")
    kd_huber_c: float = Field(
        default=0.02, gt=0.0, description="c of the pseudo-Huber loss, in normalised units"
    )
    kd_ema_decay: float = Field(default=0.99, ge=0.0, lt=1.0, description="EMA of KD")
    kd_optimizer: OptimizerConfig = Field(
        default=OptimizerConfig(lr=3e-3), description="optimiser of KD"
    )
    steps: int = Field(default=300, ge=0, description="student updates of DMD; 0 = KD only")
    student_optimizer: OptimizerConfig = Field(
        default=OptimizerConfig(lr=1e-4, betas=(0.0, 0.99), final_lr_ratio=0.05),
        description="optimiser of the student in DMD",
    )
    fake_score_optimizer: OptimizerConfig = Field(
        default=OptimizerConfig(lr=5e-4, betas=(0.0, 0.99), final_lr_ratio=0.05),
        description="optimiser of the fake score",
    )
    fake_score_rank: int | None = Field(
        default=None,
        ge=1,
        description="fake score: train corrections of this rank to the teacher's own weights; "
        "null = a whole copy",
    )
    discriminator_optimizer: OptimizerConfig = Field(
        default=OptimizerConfig(lr=1e-3, betas=(0.0, 0.99), warmup_steps=0, final_lr_ratio=1.0),
        description="optimiser of the discriminator",
    )


class KeywordsConfig(_Config):
    """Names of the arguments and of the answer of a network that isn't called `net(x_t, t,
    cond)`."""

    x: str = Field(default="hidden_states", description="its name of the noisy sample")
    t: str = Field(default="timestep", description="its name of the time")
    cond: str = Field(default="encoder_hidden_states", description="its name of the condition")
    output: str = Field(default="sample", description="attribute or key of its answer")


class TeacherConfig(_Config):
    """The network to distil: where it comes from, and how it was trained if not as a rectified
    flow."""

    folder: str | None = Field(
        default=None,
        description="folder with model.safetensors and config.json (recipes/train_teacher.py)",
    )
    factory: str | None = Field(
        default=None,
        description="package.module:callable that returns the network, in place of folder",
    )
    arguments: dict[str, Any] = Field(default={}, description="keyword arguments of the factory")
    weights: str | None = Field(
        default=None, description=".safetensors that the network's weights are loaded from"
    )
    keywords: KeywordsConfig | None = Field(
        default=None,
        description="for a network called by keywords, as those of diffusers; {} = their usual "
        "names",
    )
    path: str | dict[str, Any] = Field(
        default="linear",
        description="path it was trained on: linear, cosine, vp, edm, or {name: ..., arguments} "
        "such as {name: betas, schedule: scaled_linear, beta_start: 0.00085, beta_end: 0.012}",
    )
    prediction: Literal["flow", "velocity", "eps", "x0", "v", "score"] = Field(
        default="flow", description="what it predicts"
    )
    data_at: Literal[0, 1] = Field(default=0, description="end of its clock where the data are")
    time_scale: float = Field(
        default=1.0, gt=0.0, description="what its clock is multiplied by when it is called"
    )
    dtype: Literal["bfloat16"] | None = Field(
        default=None,
        description="keep the teacher's weights in bfloat16, from which students start; null = as "
        "they are",
    )
    null_cond: str | None = Field(
        default=None,
        description="the condition that dmd.guidance_scale guides away from: `zeros` "
        "(normalised), or an .npz or .safetensors file that holds one row of a condition as Z",
    )
    calls: tuple[int, ...] = Field(
        default=(1, 2, 4, 8, 16, 100), description="Euler steps of the teacher's rows in the report"
    )
    ab2_calls: tuple[int, ...] = Field(
        default=(4, 8, 16), description="AB2 calls of the teacher's rows in the report"
    )
    measure: bool = Field(
        default=False,
        description="measure the teacher's scores even where they lie beside its weights",
    )


class DistillConfig(_Config):
    """One run of recipes/distill.py."""

    name: str = Field(
        default="ring", min_length=1, description="name of the run; run_dir defaults to runs/<name>"
    )
    seed: int = Field(default=0, ge=0, description="seed of every draw of the run")
    run_dir: str | None = Field(default=None, description="folder of the run; null = runs/<name>")
    resume: bool = Field(default=False, description="go on from the newest checkpoint in run_dir")
    data: DataConfig = Field(default=DataConfig(), description="trajectories")
    teacher: TeacherConfig = Field(default=TeacherConfig(), description="the network to distil")
    method: Literal["dmd2", "kd", "ladd", "consistency"] = Field(
        default="dmd2",
        description="what follows the KD warm start of train.kd_steps: DMD2, nothing, a GAN alone "
        "or consistency distillation",
    )
    dmd: DMDConfig = Field(
        default=DMDConfig(), description="student, losses and schedule of the method"
    )
    train: DistillTrainConfig = Field(
        default=DistillTrainConfig(), description="budgets and optimisers"
    )
    keep: Literal["best", "kd", "dmd", "ladd", "consistency"] = Field(
        default="best", description="the stage whose student is exported; best: by validation score"
    )


class TeacherTrainConfig(LoopConfig):
    """Flow matching."""

    steps: int = Field(default=8000, gt=0, description="updates")
    ema_decay: float = Field(default=0.999, ge=0.0, lt=1.0, description="EMA of the weights")
    cond_dropout: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="share of samples trained with zeros as their condition, so that the teacher "
        "can be guided",
    )
    optimizer: OptimizerConfig = Field(
        default=OptimizerConfig(lr=2e-3, betas=(0.9, 0.99)), description="optimiser"
    )
    t: SampleTimestepConfig = Field(
        default=SampleTimestepConfig(time_dist_type="uniform", min_t=0.0, max_t=1.0),
        description="law of the training time",
    )


class TrainTeacherConfig(_Config):
    """One run of recipes/train_teacher.py."""

    name: str = Field(
        default="ring-teacher",
        min_length=1,
        description="name of the run; run_dir defaults to runs/<name>",
    )
    seed: int = Field(default=0, ge=0, description="seed of every draw of the run")
    run_dir: str | None = Field(default=None, description="folder of the run; null = runs/<name>")
    resume: bool = Field(default=False, description="go on from the newest checkpoint in run_dir")
    data: DataConfig = Field(default=DataConfig(), description="trajectories")
    model: ModelConfig = Field(default=ModelConfig(), description="the network")
    train: TeacherTrainConfig = Field(
        default=TeacherTrainConfig(), description="budget and optimiser"
    )
    calls: tuple[int, ...] = Field(
        default=(1, 2, 4, 8, 16, 100), description="Euler steps whose scores are measured"
    )
    ab2_calls: tuple[int, ...] = Field(
        default=(4, 8, 16), description="AB2 calls whose scores are measured"
    )
