"""The configs of the two recipes, and their groups for data, model and teacher.

A config is a frozen pydantic model that is validated when it is made, in Python
(``StudentConfig(steps=4)``) as from YAML. :mod:`fastgen.config.files` reads files and overrides.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ..box import Box
from .base import MOST_SEED, Config
from .dmd import DMDConfig, joined
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


class SymmetryConfig(Config):
    """How a symmetry group acts on the channels of a waypoint, of an observation token and of a
    predicted waypoint."""

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


_Kind = Literal["mean_std", "min_max", "quantiles", "identity"]


class NormalizeConfig(Config):
    """What is done to the channels of trajectories before a network sees them."""

    kind: _Kind | None = Field(
        default=None,
        description="mean_std; min_max or quantiles (1 % and 99 %) to [-1, 1]; identity; null = as "
        "a policy's limits say, else mean_std",
    )
    actions: _Kind | None = Field(default=None, description="the same for actions, X; null = kind")
    observations: _Kind | None = Field(
        default=None, description="the same for observations, Z; null = kind"
    )
    per_step: bool = Field(default=False, description="each time step is measured by itself")
    limits: str | None = Field(
        default=None,
        description="statistics to use in place of measured ones: the folder of a LeRobot policy "
        "(policy_preprocessor.json) or of a data set (meta/stats.json), or such a file",
    )
    action_keys: list[str] | None = Field(
        default=None, description="names in limits; null = data.actions, or action"
    )
    observation_keys: list[str] | None = Field(
        default=None,
        description="names in limits; null = data.observations, or observation.state and "
        "observation.environment_state",
    )

    @field_validator("action_keys", "observation_keys", mode="before")
    @classmethod
    def _one(cls, names: Any) -> Any:
        return [names] if isinstance(names, str) else names


class DataConfig(Config):
    """Where trajectories, or samples of any other shape, come from."""

    name: str = Field(default="ring", description="embedded task, or `file` for your own")
    path: str | None = Field(
        default=None,
        description="file: .npz or .safetensors with X and Z, X alone (episode beside them, the "
        "number of each row's), or actions, observations, episode_ends; or a data set of episodes: "
        "LeRobot, zarr, HDF5 (robomimic, Minari), Parquet, CSV",
    )
    actions: list[str] | None = Field(
        default=None,
        description="data set: columns that are predicted, such as action; null = action or "
        "actions",
    )
    observations: list[str] | None = Field(
        default=None,
        description="data set: columns that are the condition, such as [observation.state]; null "
        "= the usual names",
    )
    size: int | None = Field(
        default=None,
        gt=0,
        description="ring, two_rings: number of demonstrations; null = 4000; modes: of points; "
        "null = 20000",
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=MOST_SEED,
        description="seed of the generated demonstrations and of splits",
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
    actions_from: Literal["last_observation", "first_observation"] | None = Field(
        default=None,
        description="the row at which the actions of a window begin; first_observation: as LeRobot "
        "and Diffusion Policy train; null = last_observation",
    )
    pad_before: int | None = Field(
        default=None,
        ge=0,
        description="episodes: observations of a window that may lie before its episode, where the "
        "first one is repeated, up to obs_horizon - 1; null = 0",
    )
    pad_after: int | None = Field(
        default=None,
        ge=0,
        description="episodes: actions of a window that may lie after its episode, where the last "
        "one is repeated, up to horizon - 1; null = 0",
    )
    normalize: bool | NormalizeConfig | None = Field(
        default=None,
        description="file of trajectories: false for a teacher that was trained in the units of "
        "the file, or a kind, or a group; null = true, which is mean_std; other samples are never "
        "normalised",
    )
    range: tuple[float | tuple[float, ...], float | tuple[float, ...]] | None = Field(
        default=None,
        description="[lo, hi] in the units of the data, each a number, or for trajectories "
        "(N, T, d) a list of d, within which all data lie: finished samples are clamped to it; "
        "null = none",
    )

    @field_validator("actions", "observations", mode="before")
    @classmethod
    def _one(cls, names: Any) -> Any:
        return [names] if isinstance(names, str) else names

    @field_validator("normalize", mode="before")
    @classmethod
    def _kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("range")
    @classmethod
    def _is_box(cls, value: Any) -> Any:
        if value is not None:
            Box.from_state(value)
        return value

    @property
    def box(self) -> Box | None:
        """What `range` declares; None where it declares nothing."""
        return None if self.range is None else Box.from_state(self.range)


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
    keywords: KeywordsConfig | None = Field(
        default=None,
        description="for a network called by keywords, as those of diffusers; {} = their usual "
        "names",
    )
    path: str | dict[str, Any] | None = Field(
        default=None,
        description="path it was trained on: linear, cosine, vp, edm, or {name: ..., arguments} "
        "such as {name: betas, schedule: scaled_linear, beta_start: 0.00085, beta_end: 0.012}; "
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
