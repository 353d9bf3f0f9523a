"""Training: keys of the loop, of its budgets, and of optimisers."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator

from .base import Config
from .groups import SampleTimestepConfig, TimeLaw
from .prefix import PrefixKeys

__all__ = ["DistillTrainConfig", "LoopConfig", "OptimizerConfig", "TeacherTrainConfig"]


class OptimizerConfig(Config):
    """AdamW, whose learning rate rises linearly to `lr` and falls by a cosine to `final_lr_ratio`
    times that."""

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

    def cooled(self, lr: float, share: float) -> float:
        """`lr` on its way down to the last rate of the schedule; `share` of the way is left."""
        if share == 1.0:
            return lr
        last = min(lr, self.final_lr_ratio * self.lr)
        return last + share * (lr - last)


class LoopConfig(PrefixKeys):
    """Keys that every training loop has."""

    batch_size: int = Field(default=128, gt=0, description="global batch, shared by all processes")
    gradient_accumulation_steps: int = Field(
        default=1,
        ge=1,
        description="micro-batches of each process that add up to one update of the same batch",
    )
    checkpoint_every: int = Field(default=500, gt=0, description="updates between checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="newest checkpoints kept")
    log_every: int = Field(default=25, gt=0, description="updates between rows of metrics.jsonl")
    evaluate_every: int = Field(
        default=500,
        gt=0,
        description="most updates between quick validations; a short stage has them more often, "
        "four in all, but not more often than every 25 updates",
    )
    keep_best: bool = Field(
        default=True,
        description="a stage's result is its best validated average; false: its last average",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="validations in a row without improvement by more than noise that end a stage; "
        "null = never",
    )
    cooldown: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="of a stage that ends early, by patience or by train.teacher_calls: updates "
        "in which its learning rates fall to their end, as a share of those before; 0 = none",
    )
    most_skipped: int = Field(
        default=10,
        ge=1,
        description="updates in a row with a loss or gradient that is not finite, which end the "
        "run",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads per process; null = all cores / processes, and fewer where an "
        "update is too small to share",
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

    def micro_batch(self, processes: int) -> int:
        """Samples whose losses are differentiated at once in each of the processes."""
        return max(1, self.batch_size // (processes * self.gradient_accumulation_steps))


class DistillTrainConfig(LoopConfig):
    """Training of a student: teacher pairs, KD, and the updates of the method after it."""

    kd_steps: int = Field(
        default=4000, ge=0, description="KD updates; 0 = start from the teacher's weights"
    )
    kd_pairs: int = Field(default=32000, gt=0, description="teacher ODE pairs")
    kd_noises_per_condition: int = Field(
        default=1,
        ge=1,
        description="pairs of one condition that follow one another, as sets of a condition "
        "(dmd.set_weight) need them; fewer conditions for as many pairs",
    )
    kd_teacher_calls: int = Field(default=16, ge=1, description="AB2 calls per pair")
    teacher_calls: int | None = Field(
        default=None,
        ge=1,
        description="teacher evaluations (rows through its network; two for a guided one) that the "
        "decision of method=auto, pairs and training may take; a stage ends before the update that "
        "would take more; null = as many as the other keys ask for",
    )
    kd_huber_c: float = Field(
        default=0.02, gt=0.0, description="c of the pseudo-Huber loss, in normalised units"
    )
    kd_ema_decay: float = Field(default=0.99, ge=0.0, lt=1.0, description="EMA of KD")
    kd_optimizer: OptimizerConfig = Field(
        default=OptimizerConfig(lr=3e-3), description="optimiser of KD"
    )
    steps: int = Field(
        default=300, ge=0, description="student updates of the method after KD; none with method=kd"
    )
    student_optimizer: OptimizerConfig = Field(
        default=OptimizerConfig(lr=1e-4, betas=(0.0, 0.99), final_lr_ratio=0.05),
        description="optimiser of the student after KD",
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


class TeacherTrainConfig(LoopConfig):
    """Training of a teacher by flow matching."""

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
    t: TimeLaw = Field(
        default=SampleTimestepConfig(time_dist_type="uniform", min_t=0.0, max_t=1.0),
        description="law of the training time",
    )
