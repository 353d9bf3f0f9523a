"""Checks before work starts: whether config, teacher and data fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._core.conditions import cond_text, cond_to, take_rows
from .._core.json_files import check_names, read_json
from .._core.messages import brief
from .._core.modules import evaluating
from ..config.dmd import DMDConfig
from ..config.files import validate
from ..config.schemas import DataConfig, DistillConfig
from ..export.folders import SCORES_FILE
from ..methods.consistency import ConsistencyDistillation
from ..methods.fake_scores import create_fake_score
from ..networks import Cond
from ..teachers.conversion import (
    RectifiedFlow,
    loss_space,
)
from ..training.draws import check_shares
from .setup import new_discriminator
from .sources import is_changed

__all__ = [
    "NOISE_STUDENT_START",
    "STAGE_OF_METHOD",
    "check_fit",
    "check_plan",
    "fit_to_teacher",
    "stored_scores",
    "with_method",
]


STAGE_OF_METHOD = {"dmd2": "dmd", "kd": None, "ladd": "ladd", "consistency": "consistency"}


def with_method(cfg: DistillConfig) -> DistillConfig:
    """The config with what its method implies: KD alone has no further updates, LADD a GAN (of
    weight 1 unless said otherwise) and no VSD."""
    if cfg.method == "kd":
        return cfg.model_copy(update={"train": cfg.train.model_copy(update={"steps": 0})})
    if cfg.method == "ladd":
        if cfg.dmd.vsd_weight not in (0.0, DMDConfig().vsd_weight):
            raise ValueError(
                "expected no dmd.vsd_weight with method=ladd, which has no VSD loss, got "
                f"{cfg.dmd.vsd_weight}; leave it out, or set method=dmd2"
            )
        gan = cfg.dmd.gan_loss_weight_gen or 1.0
        changed = {"vsd_weight": 0.0, "gan_loss_weight_gen": gan}
        if cfg.dmd.gan_features == "fake_score":
            raise ValueError(
                "expected dmd.gan_features teacher or sample for method=ladd, which has no fake "
                "score"
            )
        return cfg.model_copy(update={"dmd": cfg.dmd.model_copy(update=changed)})
    return cfg


def check_plan(
    cfg: DistillConfig, teacher: nn.Module, x0: Tensor, cond: Cond, *, processes: int = 1
) -> None:
    """Refuse a distillation that could not be carried to its end as configured.

    Args:
        teacher: called as `teacher(x_t, t, cond)`.
        x0, cond: the training data as networks see them, (N, ...) each.
        processes: that share the batch.

    Raises:
        ValueError: nothing to train, a student to keep that isn't trained, keys that the recipe
            can't serve, a batch that can't be shared, a teacher that doesn't fit the data.
    """
    train = cfg.train
    dmd = cfg.dmd
    if not train.kd_steps and not train.steps:
        raise ValueError(
            "expected train.kd_steps > 0 or train.steps > 0, got 0 for both: there is nothing to "
            "train"
        )
    stages = ["kd"] * bool(train.kd_steps) + [STAGE_OF_METHOD[cfg.method]] * bool(train.steps)
    if cfg.keep not in ("best", *stages):
        raise ValueError(
            f"expected keep to be best or a stage that runs ({', '.join(map(str, stages))}), got "
            f"{cfg.keep}"
        )
    if cfg.method in ("ladd", "consistency") and not train.steps:
        raise ValueError(
            f"expected train.steps > 0 with method={cfg.method}, got 0, which leaves KD alone; "
            "say train.steps=300, or method=kd"
        )
    _check_used(cfg)
    if (dmd.guidance_scale is None) != (cfg.teacher.null_cond is None):
        raise ValueError(
            "expected dmd.guidance_scale and teacher.null_cond (what to guide away from: zeros, "
            f"or a file) both or neither, got {dmd.guidance_scale} and {cfg.teacher.null_cond}"
        )
    if (dmd.gan_r1_reg_weight or dmd.gan_r2_reg_weight) and not dmd.trains_discriminator:
        raise ValueError(
            "expected dmd.gan_loss_weight_gen > 0 with dmd.gan_r1_reg_weight or "
            "gan_r2_reg_weight, which are of a discriminator, got 0"
        )
    check_shares(train.batch_size, processes, train.gradient_accumulation_steps)
    size = train.batch_size // (processes * train.gradient_accumulation_steps)
    if dmd.real_data_weight and size % dmd.real_data_samples:
        of = "a process" if train.gradient_accumulation_steps == 1 else "a process' micro-batch"
        raise ValueError(
            f"expected dmd.real_data_samples to divide the {size} samples of {of}, got "
            f"{dmd.real_data_samples}"
        )
    check_fit(teacher, x0, cond)
    matches = bool(train.steps) and cfg.method in ("dmd2", "ladd")
    if matches and dmd.gan_features == "fake_score" and not dmd.vsd_weight:
        raise ValueError(
            "expected dmd.gan_features teacher or sample with dmd.vsd_weight=0, which has no fake "
            "score"
        )
    if matches and dmd.trains_discriminator:
        new_discriminator(cfg, teacher, x0, cond)
    if (
        train.steps
        and cfg.method == "consistency"
        and dmd.t_list[0] < ConsistencyDistillation.least_first_rung
    ):
        least = ConsistencyDistillation.least_first_rung
        raise ValueError(
            f"expected dmd.t_list[0] >= {least} for method=consistency, got {dmd.t_list[0]}"
        )
    if train.fake_score_rank is not None:
        if not matches or not dmd.vsd_weight:
            raise ValueError(
                "expected train.fake_score_rank=null where no fake score is trained, got "
                f"{train.fake_score_rank}; leave it out, or set method=dmd2 with train.steps > 0 "
                "and dmd.vsd_weight > 0"
            )
        create_fake_score(teacher, rank=train.fake_score_rank)
    rungs = len(dmd.t_list) - 1
    if matches and dmd.vsd_weight and dmd.fake_score_rung_conditioned and rungs > 1:
        hint = (
            "a fake score that knows its rung is called with times up to the number of rungs; set "
        )
        hint += (
            "dmd.fake_score_rung_conditioned=false for a network that isn't made for times beyond 1"
        )
        try:
            early, late = (check_fit(teacher, x0, cond, rungs - before) for before in (0.5, 0.25))
        except ValueError as error:
            raise ValueError(f"{hint}: {error}") from error
        if torch.equal(early, late):
            raise ValueError(
                f"{hint}: this one answers the same at t = {rungs - 0.5} and {rungs - 0.25}"
            )


def _check_used(cfg: DistillConfig) -> None:
    """Refuse what is asked of losses that the method does not train."""
    dmd = cfg.dmd
    method = cfg.method
    if method in ("kd", "consistency"):
        weights = (
            "gan_loss_weight_gen",
            "gan_r1_reg_weight",
            "gan_r2_reg_weight",
            "real_data_weight",
            "kd_weight",
        )
        if unused := [f"{name}={getattr(dmd, name):g}" for name in weights if getattr(dmd, name)]:
            raise ValueError(
                f"expected no weight of a loss that method={method} does not train, got "
                f"dmd.{', dmd.'.join(unused)}; set it to 0, or method=dmd2"
            )
    if method != "dmd2" and dmd.f_divergence != "reverse_kl":
        raise ValueError(
            f"expected dmd.f_divergence=reverse_kl with method={method}, which has no VSD loss to "
            f"weigh, got {dmd.f_divergence}; or set method=dmd2"
        )
    if method != "dmd2" or not dmd.vsd_weight:
        why = "dmd.vsd_weight=0" if method == "dmd2" else f"method={method}"
        asked = {
            "fake_score_weight": dmd.fake_score_weight,
            "fake_score_pred_type": dmd.fake_score_pred_type,
        }
        if unused := [
            f"{name}={value}" for name, value in asked.items() if value not in (None, "none")
        ]:
            raise ValueError(
                f"expected no dmd.{' and dmd.'.join(unused)} with {why}, which trains no fake "
                "score; leave it out, or train one by method=dmd2 with dmd.vsd_weight > 0"
            )


@torch.no_grad()
def check_fit(network: nn.Module, x0: Tensor, cond: Cond, time: float = 0.5) -> Tensor:
    """What the network answers for two samples at `time`: ValueError unless it is finite and of the
    data's shape."""
    parameter = next(network.parameters(), None)
    if parameter is None:
        raise ValueError(
            f"expected a teacher with parameters to copy and train, got {type(network).__name__} "
            "without"
        )
    x, z = (
        cond_to(take_rows(part, slice(2)), parameter.device, parameter.dtype) for part in (x0, cond)
    )
    t = torch.full((len(x),), time, device=x.device)
    given = f"x_t {tuple(x.shape)}, t {tuple(t.shape)}, cond {cond_text(z)}"
    try:
        with evaluating(network):
            pred = network(x, t, z)
    except (
        RuntimeError,
        LookupError,
        AttributeError,
        AssertionError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            f"expected a teacher that can be called with {given}, got: {brief(error)}"
        ) from error
    if not isinstance(pred, Tensor) or pred.shape != x.shape:
        got = tuple(pred.shape) if isinstance(pred, Tensor) else type(pred).__name__
        raise ValueError(f"expected the teacher to answer {given} with the shape of x_t, got {got}")
    if not bool(torch.isfinite(pred).all()):
        raise ValueError(
            f"expected finite numbers from the teacher, got NaN or infinity at t = {time} on two "
            "samples"
        )
    return pred


def stored_scores(
    cfg: DistillConfig,
) -> tuple[dict[str, dict[str, float]], dict[str, float]] | None:
    """Teacher rows and floor that lie beside its weights, if they answer what is asked: same data,
    every row there.

    Raises:
        ValueError: the file is there and damaged.
    """
    if (
        cfg.teacher.folder is None
        or cfg.teacher.measure
        or is_changed(cfg.teacher)
        or cfg.dmd.guidance_scale is not None
        or not (Path(cfg.teacher.folder) / SCORES_FILE).exists()
    ):
        return None
    file = Path(cfg.teacher.folder) / SCORES_FILE
    known = read_json(file)
    check_names(known, ("data", "teacher", "floor"), str(file))
    rows = [*map(str, cfg.teacher.calls), *(f"ab2-{calls}" for calls in cfg.teacher.ab2_calls)]
    # Compared as configs: a file of an earlier version lacks the keys that came later.
    if validate(DataConfig, known["data"]) != cfg.data or not known["teacher"].keys() >= set(rows):
        return None
    return {row: known["teacher"][row] for row in rows}, known["floor"]


# A student that predicts noise finds its sample in (x_t - t eps) / (1 - t), which multiplies its
# errors by t / (1 - t): by 1 here, by 999 at .999. What a student is told at its first rung is
# free, its input being pure noise at any. Measured on a mixture, covariance error of one-step
# students by DMD: .15 at .5, .37 at .9, .45 at .95, 6.8 at .993.
NOISE_STUDENT_START = 0.5


def fit_to_teacher(cfg: DistillConfig, teacher: nn.Module) -> tuple[DistillConfig, list[str]]:
    """The config with its times within the teacher's, and one line for each thing that this
    changed.

    A student starts at the teacher's own largest RF time where that is below `dmd.t_max`, and at
    0.5 where the teacher predicts noise; drawn times stay within the teacher's range.

    Raises:
        ValueError: rungs that the config asks for beyond the teacher's range, or a range without a
            time in it.
    """
    low = float(getattr(teacher, "t_min", 0.0))
    high = float(getattr(teacher, "t_max", 1.0))
    dmd = cfg.dmd
    notes = []
    changes = dict[str, Any]()
    if isinstance(teacher, RectifiedFlow):
        notes.append(f"teacher: {teacher.extra_repr()}")
    asked = dmd.model_fields_set
    if "t_list" in asked or "t_max" in asked:
        first = dmd.t_list[0]
        if first > high:
            key = "dmd.t_list" if "t_list" in asked else "dmd.t_max"
            raise ValueError(
                f"expected {key} to begin at most at {high:.6g}, the teacher's largest RF time, "
                f"got {first}"
            )
        if len(dmd.t_list) > 2 and dmd.t_list[-2] < low:
            raise ValueError(
                f"expected the rungs of dmd.t_list but the last within {low:.6g}..{high:.6g}, the "
                f"teacher's RF times, got {dmd.t_list[-2]}"
            )
    else:
        noise = "eps" in (loss_space(teacher), dmd.pred_type)
        start = min(dmd.t_max, high, NOISE_STUDENT_START if noise else 1.0)
        if start < dmd.t_max:
            why = (
                f"the teacher is defined up to {high:.6g}"
                if start == high
                else "the teacher predicts noise"
            )
            changes["t_max"] = start
            notes.append(f"the student starts at t = {start:.6g} ({why})")
    for key in ("vsd_t", "fake_score_t", "gan_t"):
        law = getattr(dmd, key)
        inside = {"min_t": max(law.min_t, low), "max_t": min(law.max_t, high)}
        if inside["min_t"] >= inside["max_t"]:
            raise ValueError(
                f"expected dmd.{key} to reach into the teacher's RF times {low:.6g}..{high:.6g}, "
                f"got {law.min_t}..{law.max_t}"
            )
        if inside != {"min_t": law.min_t, "max_t": law.max_t}:
            changes[key] = {**law.model_dump(), **inside}
            notes.append(f"dmd.{key} is drawn within {inside['min_t']:.6g}..{inside['max_t']:.6g}")
    clock_ends = isinstance(teacher, RectifiedFlow) and dmd.fake_score_rung_conditioned
    if clock_ends and "fake_score_rung_conditioned" not in asked:
        changes["fake_score_rung_conditioned"] = False
    if not changes:
        return cfg, notes
    fitted = validate(DMDConfig, {**dmd.model_dump(exclude_unset=True), **changes})
    return cfg.model_copy(update={"dmd": fitted}), notes
