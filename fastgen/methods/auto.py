"""The method `auto`: what is trained after KD follows from what is measured of the teacher.

Until the measurements are there, `auto` is DMD2: all that it may need is checked and planned. Then
:func:`decide` turns a config into that of another method, by a rule of four lines:

- a teacher that is clearly worse than fresh data is no guide: its student learns from the data;
- a teacher whose velocity is no score (pairs of data and noise that were matched) can't be matched
  by it: KD alone;
- a guided teacher follows no distribution that its scores describe: KD alone;
- any other one: DMD2 after KD.

A key that the config sets is never changed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..config.base import Config
from ..config.files import validate
from ..config.schemas import DistillConfig
from .dmd2 import DMD2

__all__ = ["Auto", "Findings", "decide"]

# A teacher is weak whose score is worse than that of fresh data by more than this part of it. The
# unbiased energy distance is about 0 for the law itself: there it is this, in units of the data. A
# few hundred samples can't tell less apart.
WEAK = 0.25
WEAK_ENERGY = 0.01

Changes = dict[str, dict[str, Any]]

# How students of weak teachers learn best from data (tools/BENCHMARKS.md, "Good and weak
# teachers"). Samples of one condition: an energy distance, ...
_ENERGY: Changes = {
    "dmd": {"vsd_weight": 0.0, "real_data_weight": 1.0},
    "train": {
        "steps": 1000,
        "student_optimizer": {"lr": 2e-3, "warmup_steps": 30, "betas": (0.0, 0.99)},
    },
    "student": {"ema": {"decay": 0.995}},
}
# ... and a discriminator beside it, where one can sit on the teacher;
_GAN: Changes = {
    "dmd": {
        "vsd_weight": 0.0,
        "real_data_weight": 1.0,
        "gan_loss_weight_gen": 1.0,
        "gan_loss": "softplus",
        "gan_t": {"time_dist_type": "uniform", "min_t": 0.02, "max_t": 0.3},
        "gan_r1_reg_weight": 0.15,
        "gan_r2_reg_weight": 0.15,
        "gan_r1_reg_alpha": 0.05,
        "gan_use_same_t_noise": True,
    },
    "train": {
        "steps": 500,
        "student_optimizer": {"lr": 5e-4, "warmup_steps": 30, "betas": (0.0, 0.99)},
    },
    "student": {"ema": {"decay": 0.995}},
}
# without a condition: a kernel distance of large groups.
_GROUP = 256
_KERNEL: Changes = {
    "dmd": {
        "vsd_weight": 0.0,
        "real_data_weight": 1.0,
        "real_data_kernel": "mmd",
        "real_data_conditional": False,
    },
    "train": {
        "steps": 2000,
        "batch_size": _GROUP,
        "student_optimizer": {"lr": 3e-3, "warmup_steps": 30, "betas": (0.9, 0.99)},
    },
    "student": {"ema": {"decay": 0.995}},
}


class Auto(DMD2):
    """DMD2, or what the measurements ask for in its place."""


class Findings(NamedTuple):
    """What was measured of a teacher and of the data.

    Attributes:
        score: name of the score, lower is better.
        teacher: the best that the teacher has; None: not measured.
        data: that of fresh data; None: unknown.
        dependence: of the teacher's x0 at t = 1 on the noise, in units of the data's standard
            deviation; None: its velocity is a score.
        guidance: scale that the teacher is guided by; None: it isn't.
        conditional: whether the data have a condition.
        heads: whether a discriminator can sit on the teacher's layers.
        parts: micro-batches that a batch is cut into, over all processes.
    """

    score: str
    teacher: float | None
    data: float | None
    dependence: float | None
    guidance: float | None
    conditional: bool
    heads: bool
    parts: int

    @property
    def weak(self) -> bool:
        """Whether the teacher is clearly worse than fresh data."""
        if self.teacher is None or self.data is None:
            return False
        if self.score == "energy_distance":
            return self.teacher > self.data + max(WEAK_ENERGY, WEAK * abs(self.data))
        return self.data > 0 and self.teacher > (1.0 + WEAK) * self.data


def decide(cfg: DistillConfig, found: Findings) -> tuple[DistillConfig, str]:
    """The config of the method that the findings ask for, and one paragraph that says why.

    Args:
        cfg: of `method: auto`.
        found: of its teacher.
    """
    quality = _quality(found)
    if found.weak:
        changes, how = _from_data(found)
        return _with(cfg, "dmd2", changes), (
            f"{quality}, a weak teacher: after KD the student learns from the data, by {how}, "
            "without the teacher's judgement"
        )
    if found.dependence is not None:
        return _with(cfg, "kd"), (
            f"{quality}. Its velocity is no score (at t = 1 its x0 follows the noise with "
            f"{found.dependence:.2g} of the data's standard deviation), so its distribution can't "
            "be matched: KD alone"
        )
    if found.guidance is not None and found.guidance != 1.0:
        return _with(cfg, "kd"), (
            f"{quality}. It is guided with scale {found.guidance:g}, and guided scores are those "
            "of no distribution: KD alone, which copies its samples"
        )
    return _with(cfg, "dmd2"), (
        f"{quality}: KD first, then DMD2, which is kept if it is better by more than chance"
    )


def _from_data(found: Findings) -> tuple[Changes, str]:
    """What the student of a weak teacher is trained by, and its name for people."""
    if not found.conditional:
        samples = max(2, _GROUP // found.parts)
        changes = {**_KERNEL, "dmd": {**_KERNEL["dmd"], "real_data_samples": samples}}
        return changes, "a kernel distance"
    if found.heads:
        return _GAN, "a discriminator and an energy distance"
    return _ENERGY, "an energy distance"


def _quality(found: Findings) -> str:
    if found.teacher is None:
        return f"the teacher's {found.score} is unknown"
    text = f"the teacher's {found.score} is {found.teacher:.3g}"
    if found.data is not None:
        text += f", that of fresh data {found.data:.3g}"
    return text


def _with(cfg: DistillConfig, method: str, changes: Changes | None = None) -> DistillConfig:
    """`cfg` of that method, with changes of its groups where it sets nothing itself."""
    groups: dict[str, Any] = {"method": method}
    for name, wanted in (changes or {}).items():
        groups[name] = _filled(getattr(cfg, name), wanted)
    return cfg.model_copy(update=groups)


def _filled(group: Config, wanted: dict[str, Any]) -> Config:
    """The group with the wanted values of the keys that it doesn't set."""
    given = group.model_dump(exclude_unset=True)
    return validate(type(group), {**wanted, **given})
