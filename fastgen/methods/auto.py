"""The method `auto`: what is trained after KD follows from what is measured of the teacher.

Until the measurements are there, `auto` is DMD2: all that it may need is checked and planned. Then
:func:`decide` turns a config into that of another method, by these rules, the first that applies:

- a config that chooses losses itself, leaves KD out or keeps the student of DMD2: DMD2 as it says;
- a teacher that is clearly worse than fresh data is no guide: its student learns from the data;
- a teacher whose velocity is no score (pairs of data and noise that were matched) can't be matched
  by it: KD alone;
- a guided teacher follows no distribution that its scores describe: KD alone;
- any other one: DMD2 after KD.

But for the first rule, a stage also ends where it no longer gains: after `train.patience`
validations in a row that were no better by more than noise, and a cool-down of its learning rates
(`train.cooldown`).

A key whose value isn't its default is never changed. What is chosen from are the cases of
tools/BENCHMARKS.md; set losses, drift, consistency and a GAN alone are not among them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..config.files import validate
from ..config.schemas import DistillConfig
from .dmd2 import DMD2

__all__ = ["Auto", "Decision", "Findings", "carried_out", "decide"]

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
_GROUP = 64  # a size that the micro-batches of a few processes hold
_KERNEL: Changes = {
    "dmd": {
        "vsd_weight": 0.0,
        "real_data_weight": 1.0,
        "real_data_kernel": "mmd",
        "real_data_conditional": False,
    },
    "train": {
        "steps": 2000,
        "batch_size": 256,
        "student_optimizer": {"lr": 3e-3, "warmup_steps": 30, "betas": (0.9, 0.99)},
    },
    "student": {"ema": {"decay": 0.995}},
}


# When a stage no longer gains. On `ring` KD that still gains goes without for two validations in a
# row, while its learning rate is high.
_PATIENCE: Changes = {"train": {"patience": 3, "cooldown": 0.2}}

_NOT_WEIGHED = (
    "Set losses (dmd.set_weight), drift, consistency and a GAN alone (ladd) were not considered: "
    "no measured case decides for them"
)


class Auto(DMD2):
    """DMD2, or what the measurements ask for in its place."""

    # What they ask for may be losses of whole samples.
    serves_prefixes = False


class Findings(NamedTuple):
    """What was measured of a teacher and of the data.

    Attributes:
        quality: its score beside that of fresh data, for people.
        weak: by what it is clearly worse than fresh data; "" if it isn't.
        dependence: of the teacher's x0 at t = 1 on the noise, in units of the data's standard
            deviation; None: its velocity is a score.
        guidance: scale that the teacher is guided by; None: it isn't.
        conditional: whether the data have a condition.
        heads: whether a discriminator can sit on the teacher's layers.
    """

    quality: str
    weak: str
    dependence: float | None
    guidance: float | None
    conditional: bool
    heads: bool


class Decision(NamedTuple):
    """What is trained.

    Attributes:
        method: a name of the registry.
        changes: group of the config -> keys that get another value than their default.
        why: a paragraph for people.
    """

    method: str
    changes: Changes
    why: str


def decide(cfg: DistillConfig, found: Findings) -> Decision:
    """What the findings ask for.

    Args:
        cfg: of `method: auto`.
        found: of its teacher.
    """
    quality = found.quality
    if settled := _settled_by(cfg):
        return Decision("dmd2", {}, f"{quality}. The config says {settled}: DMD2 as configured")
    method, changes, why = _by_findings(cfg, found)
    changes = _merged(changes, _open_keys(cfg, _PATIENCE))
    return Decision(method, changes, f"{why}. {_patience_told(cfg, changes)}. {_NOT_WEIGHED}")


def _by_findings(cfg: DistillConfig, found: Findings) -> Decision:
    """The method that the findings ask for, with the changes of its losses."""
    quality = found.quality
    if found.weak:
        changes, how = _from_data(cfg, found)
        return Decision(
            "dmd2",
            changes,
            f"the teacher is weak: {found.weak}. After KD the student learns from the data, by "
            f"{how}, without the teacher's judgement",
        )
    if found.dependence is not None:
        return Decision(
            "kd",
            {},
            f"{quality}. Its velocity is no score (at t = 1 its x0 follows the noise with "
            f"{found.dependence:.2g} of the data's standard deviation), so its distribution can't "
            "be matched: KD alone",
        )
    if found.guidance is not None and found.guidance != 1.0:
        return Decision(
            "kd",
            {},
            f"{quality}. It is guided with scale {found.guidance:g}, and guided scores are those "
            "of no distribution: KD alone, which copies its samples",
        )
    return Decision(
        "dmd2",
        {},
        f"{quality}: KD first, then DMD2, which is kept if it is better by more than chance",
    )


def _patience_told(cfg: DistillConfig, changes: Changes) -> str:
    """When stages end, for people."""
    patience = changes["train"].get("patience", cfg.train.patience)
    cooldown = changes["train"].get("cooldown", cfg.train.cooldown)
    return (
        f"A stage ends after {patience} validations in a row that are no better by more than "
        f"noise, and {cooldown:.0%} more updates in which its learning rates fall"
    )


def _merged(*parts: Changes) -> Changes:
    """Changes of disjoint keys in one."""
    found: Changes = {}
    for part in parts:
        for name, values in part.items():
            found[name] = {**found.get(name, {}), **values}
    return found


def carried_out(cfg: DistillConfig, decision: Decision) -> DistillConfig:
    """The config of the method that was decided for.

    Raises:
        ValueError: changes that the config's groups don't take.
    """
    groups: dict[str, Any] = {"method": decision.method}
    for name, changes in decision.changes.items():
        group = getattr(cfg, name)
        values = {**group.model_dump(exclude_unset=True), **changes}
        groups[name] = validate(type(group), values)
    return cfg.model_copy(update=groups)


# Keys of `dmd` by which a config chooses losses itself.
_LOSSES = (
    "vsd_weight",
    "vsd_matching_weight",
    "vsd_matching_interval",
    "vsd_guidance_weight",
    "vsd_guidance_interval",
    "vsd_guidance_from_rung",
    "f_divergence",
    "gan_loss_weight_gen",
    "gan_features",
    "real_data_weight",
    "set_weight",
    "kd_weight",
    "first_rung",
    "fake_score_pull",
    "fake_score_weight",
    "fake_score_pred_type",
)


def _settled_by(cfg: DistillConfig) -> str:
    """The key by which a config chooses how a student is trained, with its value; "" if none."""
    usual = type(cfg.dmd)()
    for name in _LOSSES:
        value = getattr(cfg.dmd, name)
        if value != getattr(usual, name):
            return f"dmd.{name}={value}"
    if cfg.train.fake_score_rank is not None:
        return f"train.fake_score_rank={cfg.train.fake_score_rank}"
    if cfg.train.kd_steps == 0:
        return "train.kd_steps=0"
    if cfg.keep == DMD2.stage:
        return f"keep={cfg.keep}"
    return ""


def _from_data(cfg: DistillConfig, found: Findings) -> tuple[Changes, str]:
    """What the student of a weak teacher is trained by, and its name for people."""
    if found.conditional:
        changes, how = (_ENERGY, "an energy distance")
        if found.heads:
            changes, how = (_GAN, "a discriminator and an energy distance")
        return _open_keys(cfg, changes), how
    changes = _open_keys(cfg, _KERNEL)
    batch = changes["train"].get("batch_size", cfg.train.batch_size)
    sizes = [size for size in range(2, _GROUP + 1) if batch % size == 0]
    changes["dmd"]["real_data_samples"] = max(sizes, default=batch)
    return changes, "a kernel distance"


def _open_keys(cfg: DistillConfig, wanted: Changes) -> Changes:
    """The wanted values of keys that the config leaves at their defaults."""
    found: Changes = {}
    for name, values in wanted.items():
        group = getattr(cfg, name)
        usual = type(group)()
        found[name] = {
            key: value
            for key, value in values.items()
            if getattr(group, key) == getattr(usual, key)
        }
    return found
