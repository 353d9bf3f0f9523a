"""Checks before work starts: whether config, teacher and data fit together."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from .._core.conditions import cond_text
from .._core.json_files import read_json
from .._core.json_kinds import check_kind, mapping, maybe, number, plain, record
from .._core.room import check_room
from ..config.base import OldSpelling
from ..config.files import C, validate
from ..config.matching import MatchingConfig
from ..config.old_spellings import old_spellings
from ..config.schemas import DataConfig, DistillConfig
from ..config.student import StudentConfig
from ..config.training import DistillTrainConfig
from ..export.folders import check_box
from ..export.networks import SCORES_FILE
from ..export.schema import is_export
from ..methods.registry import METHODS, WARM_START, method_named, stages_of
from ..methods.time_grids import rung_grid
from ..networks import check_trained_sizes, time_range
from ..samplers.teacher import trusted_time
from ..teachers.answer import answer_of, telling_rows
from ..teachers.conversion import RectifiedFlow, loss_space, translated
from ..teachers.descriptions import describe_network
from ..teachers.guided import GuidedNetwork
from ..training.draws import check_batch_room, check_shares, row_bytes
from .setup import Setup
from .sources import is_changed

__all__ = [
    "NOISE_STUDENT_START",
    "check_plan",
    "coupling_notes",
    "fit_to_teacher",
    "remedies_of",
    "stored_scores",
    "with_method",
]


# What is trained after KD where a config names no method.
USUAL_METHOD: str = DistillConfig().method
# Methods that a config without updates after KD takes for KD alone: the one of today, and the one
# that was meant before there was another.
_OPEN_METHODS = (USUAL_METHOD, "dmd2")


def with_method(cfg: DistillConfig) -> DistillConfig:
    """The config with what its method implies; what contradicts it is refused before a teacher is
    loaded.

    `auto` or DMD2 with train.steps=0 is KD alone, whose spelling is method=kd. It is taken as that
    for one more release, with a warning that gives what to write.

    Raises:
        ValueError: an unknown method, another method without updates, keys that contradict it,
            nothing to train, or a stage to keep that isn't trained.
    """
    if old_spellings({"dmd": cfg.dmd}):
        # A copy with changes is not validated, and `dmd` no longer holds the student's keys.
        cfg = DistillConfig(**{name: getattr(cfg, name) for name in cfg.model_fields_set})
    steps = cfg.train.steps
    if cfg.method == WARM_START:
        if "steps" in cfg.train.model_fields_set and steps > 0:
            _note(
                f"train.steps={steps} has no effect with method={WARM_START}, which is KD alone; "
                f"leave it out, or say method={USUAL_METHOD}"
            )
    elif method_named(cfg.method).updates(cfg) == 0:
        if cfg.method not in _OPEN_METHODS:
            raise ValueError(
                f"expected train.steps > 0 with method={cfg.method}, got {steps}; say "
                f"train.steps={DistillTrainConfig().steps}, or method={WARM_START} for KD alone"
            )
        cfg = cfg.model_copy(update={"method": WARM_START})
        _note(
            f"method={WARM_START}, since train.steps=0 leaves no updates after KD; say "
            f"method={WARM_START}; the old spelling goes with the next release"
        )
    cfg = method_named(cfg.method).complete(cfg)
    _check_stages(cfg)
    return cfg


def _note(message: str) -> None:
    warnings.warn(message, OldSpelling, stacklevel=3)


def _check_stages(cfg: DistillConfig) -> None:
    """Refuse a run without a stage, and a stage to keep that is none of the run."""
    stages = [method.stage for method in stages_of(cfg)]
    if not stages:
        raise ValueError(
            "expected train.kd_steps > 0 or train.steps > 0, got 0 for both: there is nothing to "
            f"train; say train.kd_steps={DistillTrainConfig().kd_steps}"
        )
    if cfg.keep not in ("best", *stages):
        raise ValueError(
            f"expected keep to be best or a stage that runs ({', '.join(stages)}), got {cfg.keep}; "
            "say keep=best, or the method that trains it"
        )


def check_plan(setup: Setup, *, processes: int = 1, sharded: bool = False) -> None:
    """Refuse a distillation that could not be carried to its end as configured.

    Args:
        setup: the networks of the run and its data.
        processes: that share the batch.
        sharded: whether FSDP shares each network among them.

    Raises:
        ValueError: nothing to train, a student to keep that isn't trained, keys that the method
            can't serve, a batch that can't be shared, a teacher that doesn't fit the data.
    """
    cfg = setup.cfg
    train = cfg.train
    _check_stages(cfg)
    if (cfg.dmd.guidance_scale is None) != (cfg.teacher.null_cond is None):
        raise ValueError(
            "expected dmd.guidance_scale and teacher.null_cond (what to guide away from: zeros, "
            f"or a file) both or neither, got {cfg.dmd.guidance_scale} and {cfg.teacher.null_cond}"
        )
    check_shares(train.batch_size, processes, train.gradient_accumulation_steps)
    check_batch_room(train.batch_size, setup.x0)
    if any(method.uses_pairs(cfg) for method in stages_of(cfg)):
        # The states of a pair: one for each rung, and the data.
        states = len(cfg.student.t_list) * row_bytes(setup.x0, None)
        check_room("train.kd_pairs", train.kd_pairs, states + row_bytes(setup.x0[:0], setup.cond))
    _check_prefix(setup)
    check_trained_sizes(setup.source, setup.x0, setup.cond, "the teacher")
    setup.prediction_at(0.5)
    setup.check_student()
    _check_range(setup)
    _check_answers(setup)
    stages_of(cfg)[-1].check(setup, processes=processes, sharded=sharded)


def _check_prefix(setup: Setup) -> None:
    """Refuse what a run with given waypoints can't serve: methods whose losses don't know given
    tokens, networks whose conversion has one time a row."""
    cfg = setup.cfg
    if not cfg.train.prefix_max:
        return
    asked = "with train.prefix_max"
    served = [name for name, method in METHODS.items() if method.serves_prefixes]
    if cfg.method not in served:
        raise ValueError(f"expected method {' or '.join(served)} {asked}, got {cfg.method}")
    if describe_network(setup.source)[1] is not None:
        raise ValueError(
            f"expected a rectified flow called net(x_t, t, cond) {asked}, got a converted teacher, "
            "whose copy can't take a time for each token"
        )


def _check_range(setup: Setup) -> None:
    """Refuse a range of the data that would make an equivariant student something else."""
    box = setup.cfg.data.box
    if box is None:
        return
    try:
        check_box(box, setup.source, setup.x_normalizer)
        # Any other student acts as the teacher does.
        if setup.cfg.student.factory is not None:
            check_box(box, setup.student(), setup.x_normalizer)
    except ValueError as error:
        raise ValueError(f"data.range: {error}") from error


_WITHOUT_SCORES = (
    "say method=kd, which needs no score, or dmd.vsd_weight=0 and dmd.real_data_weight=1, a "
    "distance to real data"
)


def coupling_notes(setup: Setup) -> list[str]:
    """A line on a teacher whose velocity is no score; a warning if the method asks for one."""
    coupling = setup.coupling
    if coupling is None or not setup.coupled:
        return []
    found = (
        "the teacher's velocity is no score: at t = 1 its x0 follows the noise, with "
        f"{coupling.dependence:.2g} of the data's standard deviation (near 0 where data and noise "
        "are independent), as OT-coupled or reflowed flow matching does"
    )
    asking = [method for method in stages_of(setup.cfg) if method.asks_scores(setup.cfg)]
    if not asking:
        return [f"{found}; method={setup.cfg.method} needs none"]
    return [
        f"warning: {found}; {asking[0].title} takes it for a score and ruins the student: "
        f"{_WITHOUT_SCORES}"
    ]


def remedies_of(setup: Setup) -> dict[str, str]:
    """What warnings during training advise, by stage."""
    remedies = {}
    for method in stages_of(setup.cfg):
        remedies[method.stage] = method.remedy
        if method.asks_scores(setup.cfg) and setup.coupled:
            remedies[method.stage] = f"the teacher's velocity is no score: {_WITHOUT_SCORES}"
    return remedies


def _check_answers(setup: Setup) -> None:
    """Ask the teacher at the times of the run, with the labels at the ends of the data's, and under
    the null condition.

    Raises:
        ValueError: it cannot be called so, or its answer is not finite: which time, row and label.
    """
    times = _asked_times(setup)
    rows = [0, 1, *(row for row in telling_rows(setup.cond) if row > 1)]
    for time in times:
        answer_of(setup.unguided, setup.x0, setup.cond, time, rows=rows)
    if not isinstance(setup.teacher, GuidedNetwork) or setup.teacher.guidance.scale == 1.0:
        return
    null = setup.teacher.null_cond
    lo, hi = setup.teacher.guidance.interval
    try:
        for time in (time for time in times if lo <= time <= hi):
            answer_of(setup.unguided, setup.x0[:1], null, time)
    except ValueError as error:
        raise ValueError(
            f"teacher.null_cond={setup.cfg.teacher.null_cond}, {cond_text(null)}: {error}; name a "
            "file that holds a condition the teacher knows"
        ) from error


def _asked_times(setup: Setup) -> list[float]:
    """RF times, increasing, at which the run will ask its teacher: those of the pairs' grid, and
    some between the ends of the law that VSD draws from."""
    cfg = setup.cfg
    methods = stages_of(cfg)
    trusted = trusted_time(setup.unguided, cfg.student.pred_type)
    times = {0.5}
    if any(method.uses_pairs(cfg) for method in methods):
        rungs = cfg.student.t_list
        last = max(rungs[0], trusted)
        times.update(rung_grid(rungs, cfg.train.kd_teacher_calls, t_max=last)[0])
    if methods[-1].stage != WARM_START and cfg.dmd.vsd_weight > 0:
        law = cfg.dmd.vsd_t
        times.update(law.min_t + i / 8 * (law.max_t - law.min_t) for i in range(1, 8))
    return sorted(min(time, trusted) for time in times if time > 0)


_ROW = mapping(maybe(number))
_SCORES = record({"data": mapping(plain), "teacher": mapping(_ROW), "floor": _ROW})


def stored_scores(
    cfg: DistillConfig,
) -> tuple[dict[str, dict[str, float]], dict[str, float]] | None:
    """The teacher's scores and those of fresh data, from the file beside its weights.

    None if there is no such file or the folder isn't one of this package, if the file is of other
    data or lacks a row that is asked for, or if the config changes the teacher or asks to measure
    it.

    Raises:
        ValueError: the file is there and damaged.
    """
    changed = is_changed(cfg.teacher) or cfg.dmd.guidance_scale is not None
    if cfg.teacher.folder is None or cfg.teacher.measure or changed:
        return None
    file = Path(cfg.teacher.folder) / SCORES_FILE
    if not file.exists() or not is_export(file.parent):
        return None
    known = read_json(file)
    check_kind(known, _SCORES, "scores", str(file), "score the teacher again, or remove the file")
    rows = [*map(str, cfg.teacher.calls), *(f"ab2-{calls}" for calls in cfg.teacher.ab2_calls)]
    # Compared as configs: a file of an earlier version lacks the keys that came later.
    if validate(DataConfig, known["data"]) != cfg.data or not known["teacher"].keys() >= set(rows):
        return None
    return {row: known["teacher"][row] for row in rows}, known["floor"]


# A student that predicts noise finds its sample in (x_t - t eps) / (1 - t), which multiplies its
# errors by t / (1 - t): by 1 here, by 999 at .999. The first rung may be any time: the student's
# input there is pure noise anyway. Measured on a mixture, covariance error of one-step students by
# DMD: .15 at .5, .37 at .9, .45 at .95, 6.8 at .993.
NOISE_STUDENT_START = 0.5


def fit_to_teacher(cfg: DistillConfig, teacher: nn.Module) -> tuple[DistillConfig, list[str]]:
    """The config with its times within the teacher's, and one line for each thing that this
    changed.

    A student starts at the teacher's own largest RF time where that is below `student.t_max`. It
    starts at 0.5 where the teacher predicts noise. Drawn times stay within the teacher's range.

    Raises:
        ValueError: rungs that the config asks for beyond the teacher's range, or a range without a
            time in it.
    """
    notes = []
    conversion = translated(teacher)
    if isinstance(conversion, RectifiedFlow):
        notes.append(f"teacher: {conversion.extra_repr()}")
    student = _student_within(cfg.student, teacher, notes)
    changes = _times_within(cfg.dmd, teacher, notes)
    clock_ends = isinstance(conversion, RectifiedFlow) and cfg.dmd.fake_score_rung_conditioned
    if clock_ends and "fake_score_rung_conditioned" not in cfg.dmd.model_fields_set:
        changes["fake_score_rung_conditioned"] = False
    dmd = _changed(cfg.dmd, changes) if changes else cfg.dmd
    return cfg.model_copy(update={"student": student, "dmd": dmd}), notes


def _student_within(student: StudentConfig, teacher: nn.Module, notes: list[str]) -> StudentConfig:
    """The student with its first rung where the teacher is defined; rungs that were asked for are
    checked instead."""
    low, high = time_range(teacher)
    asked = student.model_fields_set
    if "t_list" in asked or "t_max" in asked:
        first = student.t_list[0]
        if first > high:
            key = "student.t_list" if "t_list" in asked else "student.t_max"
            raise ValueError(
                f"expected {key} to begin at most at {high:.6g}, the teacher's largest RF time, "
                f"got {first}"
            )
        if len(student.t_list) > 2 and student.t_list[-2] < low:
            raise ValueError(
                f"expected the rungs of student.t_list but the last within {low:.6g}..{high:.6g}, "
                f"the teacher's RF times, got {student.t_list[-2]}"
            )
        return student
    noise = "eps" in (loss_space(teacher), student.pred_type)
    start = min(student.t_max, high, NOISE_STUDENT_START if noise else 1.0)
    if start >= student.t_max:
        return student
    why = "the teacher predicts noise"
    if start == high:
        why = f"the teacher is defined up to {high:.6g}"
    notes.append(f"the student starts at t = {start:.6g} ({why})")
    return _changed(student, {"t_max": start})


def _times_within(dmd: MatchingConfig, teacher: nn.Module, notes: list[str]) -> dict[str, Any]:
    """What must change of the laws of drawn times, so that they stay within the teacher's."""
    low, high = time_range(teacher)
    changes: dict[str, Any] = {}
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
    return changes


def _changed(config: C, changes: dict[str, Any]) -> C:
    """`config` validated anew with `changes`; what was not set stays open to its default."""
    return validate(type(config), {**config.model_dump(exclude_unset=True), **changes})
