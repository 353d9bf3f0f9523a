"""What `method: auto` measures before the first update, and what follows from it.

The findings are written into the run's folder, so that a resumed run goes on with them, whatever
another number of processes or of threads would measure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._core.conditions import tensors_in
from .._core.json_files import read_json, write_json
from .._core.json_kinds import check_kind, count, maybe, number, record, text, yes_or_no
from ..config.schemas import DistillConfig
from ..data import Task
from ..discriminators import discriminator_for
from ..methods.auto import Findings, decide
from ..methods.registry import method_named
from ..training.processes import Processes
from .checks import stored_scores
from .evaluation import teacher_sampler
from .setup import Setup

__all__ = ["AUTO", "DECISIONS", "decided", "findings_of", "foreseen", "with_decision"]

DECISIONS = "findings.json"
AUTO = "auto"
# AB2 calls of the teacher where its scores are not known yet.
_CALLS = 16
_KIND = record(
    {
        "score": text,
        "teacher": maybe(number),
        "data": maybe(number),
        "dependence": maybe(number),
        "guidance": maybe(number),
        "conditional": yes_or_no,
        "heads": yes_or_no,
        "parts": count,
    }
)

Scores = Mapping[str, Mapping[str, float]]


def decided(
    setup: Setup,
    task: Task,
    run_dir: Path,
    processes: Processes,
    stored: tuple[Scores, Mapping[str, float]] | None,
) -> tuple[DistillConfig, list[str]]:
    """The config that a run trains by, and what is said of it; as given unless it is `auto`.

    The main process measures, and all others learn of it. All of them must call this.

    Args:
        setup: the networks of the run.
        task: its data and scores.
        run_dir: where the findings are kept.
        processes: that share the run.
        stored: scores of the teacher and of fresh data that are known already; None: measured.

    Raises:
        ValueError: the findings in the folder are damaged.
    """
    if setup.cfg.method != AUTO:
        return setup.cfg, []
    found: dict[str, Any] = {}
    if processes.is_main_process:
        parts = processes.num_processes * setup.cfg.train.gradient_accumulation_steps
        found = _kept_findings(run_dir) or _measure(setup, task, run_dir, stored, parts)
    return with_decision(setup.cfg, Findings(**processes.of_main(found)))


def foreseen(setup: Setup, task: Task, processes: int) -> tuple[DistillConfig, list[str]]:
    """What :func:`decided` will say, as far as it is known before the teacher is sampled.

    Args:
        setup: the networks of a run.
        task: its data and scores.
        processes: that will share it.
    """
    cfg = setup.cfg
    if cfg.method != AUTO:
        return cfg, []
    stored = stored_scores(cfg)
    parts = processes * cfg.train.gradient_accumulation_steps
    decided_cfg, told = with_decision(cfg, findings_of(setup, task, stored, parts))
    if stored is None:
        told.append(f"{AUTO}: the run begins by sampling the teacher, which may change this")
    return decided_cfg, told


def with_decision(cfg: DistillConfig, found: Findings) -> tuple[DistillConfig, list[str]]:
    """The config with what follows from the findings, and what is said of it."""
    cfg, why = decide(cfg, found)
    return method_named(cfg.method).complete(cfg), [f"{AUTO}: {why}"]


def findings_of(
    setup: Setup, task: Task, stored: tuple[Scores, Mapping[str, float]] | None, parts: int
) -> Findings:
    """What is known of the teacher of a run without sampling it.

    Args:
        setup: the networks of the run.
        task: its data and scores.
        stored: scores of the teacher and of fresh data; None: unknown.
        parts: micro-batches that a batch is cut into, over all processes.
    """
    rows, floor = stored or ({}, {})
    scores = [row[task.primary] for row in rows.values() if task.primary in row]
    finite = [score for score in scores if score is not None and math.isfinite(score)]
    coupling = setup.coupling
    return Findings(
        score=task.primary,
        teacher=min(finite, default=None),
        data=floor.get(task.primary),
        dependence=coupling.dependence if coupling is not None and setup.coupled else None,
        guidance=setup.cfg.dmd.guidance_scale,
        conditional=bool(tensors_in(setup.cond)),
        heads=_takes_heads(setup),
        parts=parts,
    )


def _measure(
    setup: Setup,
    task: Task,
    run_dir: Path,
    stored: tuple[Scores, Mapping[str, float]] | None,
    parts: int,
) -> dict[str, Any]:
    """The findings, after they were written to the folder."""
    if stored is None:
        sampler = teacher_sampler(
            setup.teacher,
            task.train,
            _CALLS,
            "ab2",
            pred_type=setup.cfg.student.pred_type,
            box=setup.cfg.data.box,
        )
        stored = ({f"ab2-{_CALLS}": task.evaluate(sampler, quick=True)}, task.floor())
    found = findings_of(setup, task, stored, parts)._asdict()
    write_json(run_dir / DECISIONS, found)
    return found


def _takes_heads(setup: Setup) -> bool:
    """Whether a discriminator finds layers of the teacher that it can sit on."""
    try:
        discriminator_for(setup.teacher_copy(), setup.x0, setup.cond, seed=setup.cfg.seed)
    except ValueError:
        return False
    return True


def _kept_findings(run_dir: Path) -> dict[str, Any] | None:
    """The findings in the folder, None where there are none yet."""
    path = run_dir / DECISIONS
    if not path.exists():
        return None
    found = read_json(path)
    remedy = "restore it, or begin another run"
    check_kind(found, _KIND, "findings", str(path), remedy)
    return found
