"""What `method: auto` measures before the first update, and what follows from it.

The decision is written into the run's folder, so that a resumed run goes on with it, whatever
another machine would measure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .._core.conditions import tensors_in
from .._core.json_files import plain_json, read_json, write_json
from .._core.json_kinds import check_kind, count, mapping, plain, record, text
from .._core.processes import together
from ..config.schemas import DistillConfig
from ..data import Task
from ..discriminators import discriminator_for
from ..methods.auto import Decision, Findings, carried_out, decide
from ..methods.registry import method_named
from ..training.evaluations import DECISION
from ..training.processes import Processes
from ..training.validation import weaknesses
from .checks import stored_scores
from .evaluation import teacher_sampler
from .setup import Setup

__all__ = ["AUTO", "DECISIONS", "Decided", "decided", "findings_of", "foreseen", "tells_apart"]

AUTO = "auto"
DECISIONS = "decision.json"
# AB2 calls of the teacher where its scores are not known yet.
_CALLS = 16
_KIND = record(
    {"method": text, "changes": mapping(mapping(plain)), "why": text, "evaluations": count}
)

Scores = Mapping[str, Mapping[str, float]]


class Decided(NamedTuple):
    """What a run trains by.

    Attributes:
        cfg: of a method other than `auto`.
        told: what is said of it, a sentence each.
        evaluations: of the teacher that the decision took.
    """

    cfg: DistillConfig
    told: list[str]
    evaluations: int = 0


def decided(
    setup: Setup,
    task: Task,
    run_dir: Path,
    processes: Processes,
    stored: tuple[Scores, Mapping[str, float]] | None,
) -> Decided:
    """What a run trains by: its config as given, unless that is `auto`.

    The main process measures, and all others learn of it. All of them must call this.

    Args:
        setup: the networks of the run.
        task: its data and scores.
        run_dir: where the decision is kept.
        processes: that share the run.
        stored: scores of the teacher and of fresh data that are known already; None: measured.

    Raises:
        ValueError: the decision in the folder is damaged.
    """
    if setup.cfg.method != AUTO:
        return Decided(setup.cfg, [])
    kept: dict[str, Any] = {}
    with together():
        if processes.is_main_process:
            kept = _kept_decision(run_dir) or _measure(setup, task, run_dir, stored)
    kept = processes.of_main(kept)
    decision = Decision(kept["method"], kept["changes"], kept["why"])
    return Decided(_settled(setup.cfg, decision), [_told(decision)], kept["evaluations"])


def foreseen(setup: Setup, task: Task) -> Decided:
    """What :func:`decided` will say, as far as it is known before the teacher is sampled.

    Args:
        setup: the networks of a run.
        task: its data and scores.
    """
    cfg = setup.cfg
    if cfg.method != AUTO:
        return Decided(cfg, [])
    stored = stored_scores(cfg)
    decision = decide(cfg, findings_of(setup, task, stored))
    told = [_told(decision)]
    if stored is None:
        told.append(f"{AUTO}: the run begins by sampling the teacher, which may change this")
    return Decided(_settled(cfg, decision), told)


def findings_of(
    setup: Setup, task: Task, stored: tuple[Scores, Mapping[str, float]] | None
) -> Findings:
    """What is known of the teacher of a run without sampling it.

    Args:
        setup: the networks of the run.
        task: its data and scores.
        stored: scores of the teacher and of fresh data; None: unknown.
    """
    rows, floor = stored or ({}, {})
    coupling = setup.coupling
    return Findings(
        quality=_quality(rows, floor, task.primary),
        weak="; ".join(weaknesses(rows, floor, task.primary)),
        dependence=coupling.dependence if coupling is not None and setup.coupled else None,
        guidance=setup.cfg.dmd.guidance_scale,
        conditional=tells_apart(setup.cond),
        heads=_takes_heads(setup),
    )


def tells_apart(cond: Any) -> bool:
    """Whether a condition (N, ...), a tensor or several, differs between any of its rows: one that
    never does is none to the losses. None never does."""
    return any(bool((rows != rows[:1]).any()) for rows in tensors_in(cond))


def _quality(rows: Scores, floor: Mapping[str, float], primary: str) -> str:
    """The teacher's best score beside that of fresh data, for people."""
    known = [row[primary] for row in rows.values() if row.get(primary) is not None]
    finite = [float(score) for score in known if math.isfinite(score)]
    if not finite:
        return f"the teacher's {primary} is unknown"
    said = f"the teacher's {primary} is {min(finite):.3g}"
    least = floor.get(primary)
    return said if least is None else f"{said}, that of fresh data {float(least):.3g}"


def _told(decision: Decision) -> str:
    return f"{AUTO}: {decision.why}"


def _settled(cfg: DistillConfig, decision: Decision) -> DistillConfig:
    """The config of the method that was decided for, with what that implies."""
    return method_named(decision.method).complete(carried_out(cfg, decision))


def _measure(
    setup: Setup,
    task: Task,
    run_dir: Path,
    stored: tuple[Scores, Mapping[str, float]] | None,
) -> dict[str, Any]:
    """The decision as it is kept, after it was written to the folder."""
    if stored is None:
        sampler = teacher_sampler(
            setup.teacher,
            task.train,
            _CALLS,
            "ab2",
            pred_type=setup.cfg.student.pred_type,
            box=setup.cfg.data.box,
        )
        with setup.rows.part(DECISION):
            scores = task.evaluate(sampler, quick=True)
        stored = ({f"ab2-{_CALLS}": scores}, task.floor())
    decision = decide(setup.cfg, findings_of(setup, task, stored))
    kept = {**decision._asdict(), "evaluations": setup.rows.take(DECISION)}
    kept = plain_json(kept, DECISION)
    write_json(run_dir / DECISIONS, kept)
    return kept


def _takes_heads(setup: Setup) -> bool:
    """Whether a discriminator finds layers of the teacher that it can sit on."""
    try:
        discriminator_for(setup.teacher_copy(), setup.x0, setup.cond, seed=setup.cfg.seed)
    except ValueError:
        return False
    return True


def _kept_decision(run_dir: Path) -> dict[str, Any] | None:
    """The decision in the folder, None where there is none yet."""
    path = run_dir / DECISIONS
    if not path.exists():
        return None
    kept = read_json(path)
    check_kind(kept, _KIND, DECISION, str(path), "restore it, or begin another run")
    return kept
