"""The configs of the two recipes, and their groups for data, model and teacher.

A config is a frozen pydantic model that is validated when it is made, in Python
(``StudentConfig(steps=4)``) as from YAML. :mod:`fastgen.config.files` reads files and overrides.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from .base import MOST_SEED, Config
from .data import DataConfig, NormalizeConfig, SymmetryConfig
from .dmd import DMDConfig, joined
from .encoder import EncoderConfig
from .matching import MatchingConfig
from .old_spellings import respelled
from .student import StudentConfig
from .training import DistillTrainConfig, TeacherTrainConfig

__all__ = [
    "DataConfig",
    "DistillConfig",
    "KeywordsConfig",
    "ModelConfig",
    "NormalizeConfig",
    "SymmetryConfig",
    "TeacherConfig",
    "TrainTeacherConfig",
]


class ModelConfig(Config):
    """A conditional transformer to train as a teacher; of images the patch transformer."""

    equivariant: bool = Field(
        default=True, description="eCondTransformerRegressor; false: its dense twin"
    )
    embedding_dim: int = Field(
        default=96, gt=0, description="width; a multiple of the group order and of the heads"
    )
    num_layers: int = Field(default=3, ge=1, description="decoder layers; of images all layers")
    patch_size: int = Field(
        default=4, ge=1, description="images: pixels of a patch's side, of which each is a token"
    )
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


class KeywordsConfig(Config):
    """Names of the arguments and of the answer, for a network that isn't called
    `net(x_t, t, cond)`."""

    x: str = Field(default="hidden_states", description="its name of the noisy sample")
    t: str = Field(default="timestep", description="its name of the time")
    cond: str | None = Field(
        default="encoder_hidden_states",
        description="its name of the condition; null: it takes none",
    )
    output: str = Field(default="sample", description="attribute or key of its answer")


class TeacherConfig(Config):
    """The network to distil: where it comes from, and how it was trained. By default that is as a
    rectified flow."""

    folder: str | None = Field(
        default=None,
        description="folder with model.safetensors and config.json (recipes/train_teacher.py), or "
        "what save_pretrained of diffusers wrote, a pipeline or a model, or a LeRobot "
        "pretrained_model: its scheduler says path, prediction, clip_sample and spacing unless set "
        "here",
    )
    factory: str | None = Field(
        default=None,
        description="package.module:callable that returns the network, in place of folder",
    )
    arguments: dict[str, Any] = Field(default={}, description="keyword arguments of the factory")
    weights: str | None = Field(
        default=None, description=".safetensors that the network's weights are loaded from"
    )
    encoder: EncoderConfig | None = Field(
        default=None,
        description="the frozen network that makes Z of raw observations, once; null = none",
    )
    keywords: KeywordsConfig | None = Field(
        default=None,
        description="for a network called by keywords, as those of diffusers; {} = their usual "
        "names",
    )
    path: str | dict[str, Any] | None = Field(
        default=None,
        description="path it was trained on: linear, cosine, vp, subvp, ve, edm, or "
        "{name: ..., arguments} such as {name: betas, schedule: scaled_linear, "
        "beta_start: 0.00085, beta_end: 0.012}; "
        "null = as teacher.scheduler says, else linear",
    )
    scheduler: str | None = Field(
        default=None,
        description="scheduler_config.json of diffusers or config.json of lerobot, or a folder "
        "with one, that says path, prediction, clip_sample and spacing; keys set beside it win",
    )
    clip_sample: tuple[float, float] | Literal["unclipped"] | None = Field(
        default=None,
        description="[low, high]: its x0 is clipped to that in every call, in its own units, and "
        "so are its students'; null = as teacher.scheduler says, else unclipped",
    )
    spacing: str | dict[str, Any] | None = Field(
        default=None,
        description="times at which it is called to make samples: time, log_snr, or of betas "
        "leading, linspace, trailing; null = as teacher.scheduler says, else trailing for betas "
        "with prediction=eps, else time",
    )
    prediction: Literal["flow", "velocity", "eps", "x0", "v", "score"] | None = Field(
        default=None,
        description="what it predicts; null = as teacher.scheduler says, else flow",
    )
    data_at: Literal[0, 1] | None = Field(
        default=None, description="end of its clock where the data are; null = 0"
    )
    time_scale: float | None = Field(
        default=None,
        gt=0.0,
        description="what its clock is multiplied by when it is called; null = as "
        "teacher.scheduler says, else 1",
    )
    dtype: Literal["bfloat16"] | None = Field(
        default=None,
        description="keep the teacher's weights in bfloat16, from which students start; null = as "
        "they are",
    )
    null_cond: str | None = Field(
        default=None,
        description="the condition that dmd.guidance_scale guides away from: `zeros` "
        "(normalised), or an .npz or .safetensors file that holds one row of a condition as Z, or "
        "of each member of one: Z.goal of a mapping, Z.0 of a tuple",
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


class DistillConfig(Config):
    """One run of recipes/distill.py.

    Raises:
        ValueError: a group that is not valid, or losses in `dmd` that the `student` can't be
            trained with.
    """

    name: str = Field(
        default="ring", min_length=1, description="name of the run; run_dir defaults to runs/<name>"
    )
    seed: int = Field(default=0, ge=0, le=MOST_SEED, description="seed of every draw of the run")
    run_dir: str | None = Field(default=None, description="folder of the run; null = runs/<name>")
    resume: bool = Field(default=False, description="go on from the newest checkpoint in run_dir")
    data: DataConfig = Field(default=DataConfig(), description="trajectories")
    teacher: TeacherConfig = Field(default=TeacherConfig(), description="the network to distil")
    method: str = Field(
        default="auto",
        description="what is trained: kd is KD alone (train.kd_steps updates); after KD as a warm "
        "start: dmd2, ladd (a GAN alone), consistency or drift (data alone); auto: what is "
        "measured of the teacher decides among KD alone, dmd2, and real data",
    )
    student: StudentConfig = Field(
        default=StudentConfig(), description="calls of the student, and how it is sampled"
    )
    dmd: MatchingConfig = Field(
        default=MatchingConfig(), description="losses and schedule of the method"
    )
    train: DistillTrainConfig = Field(
        default=DistillTrainConfig(), description="budgets and optimisers"
    )
    keep: str = Field(
        default="best",
        description="the stage whose student is exported; best: the earliest, or one that is "
        "better than it by more than noise",
    )

    @model_validator(mode="before")
    @classmethod
    def _respelled(cls, values: Any) -> Any:
        return respelled(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _consistent(self) -> DistillConfig:
        try:
            self.dmd.check_for_rungs(
                len(self.student.t_list) - 1, several=len(self.student.t_lists) > 1
            )
        except ValueError as error:
            raise ValueError(f"dmd: {error}") from error
        return self

    @property
    def pipeline(self) -> DMDConfig:
        """What :class:`fastgen.dmd.DMDPipeline` takes: `dmd` with the keys of `student`."""
        return joined(self.student, self.dmd)


class TrainTeacherConfig(Config):
    """One run of recipes/train_teacher.py."""

    name: str = Field(
        default="ring-teacher",
        min_length=1,
        description="name of the run; run_dir defaults to runs/<name>",
    )
    seed: int = Field(default=0, ge=0, le=MOST_SEED, description="seed of every draw of the run")
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
