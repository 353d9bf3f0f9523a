"""The end of a distillation: students are scored, one is chosen, exported and reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._core.conditions import cond_text, map_tensors
from .._core.masks import cond_without_masks, mask_names, padding_filled, token_mask
from .._core.seeds import generator_for
from .._core.sizes import trained_sizes_of
from .._core.timing import Stopwatch
from ..config.schemas import DistillConfig
from ..config.student import StudentConfig
from ..data import Task
from ..export.folders import export_student, exported_network
from ..methods.registry import stage_styles
from ..records.log import read_log
from ..report.page import write_report
from ..report.tables import format_table
from ..training.choice import Choice, Validation, choose, validate_by
from ..training.evaluations import DECISION, PAIRS, VALIDATION
from ..training.validation import teacher_note
from .evaluation import (
    Sampler,
    evaluate_student,
    latency_ms,
    noise_shape,
    served_t_lists,
    student_sampler,
    teacher_sampler,
)
from .setup import Setup
from .students import network_facts
from .teacher_rows import measured_rows, rows_key

__all__ = ["HandOver", "Rows", "evaluation_tables", "teacher_notes"]

REPORT = "report"  # the part of a run in which the report asks the teacher

Rows = dict[str, dict[str, float]]  # scores by sampler


def teacher_notes(rows: Rows, floor: Mapping[str, float], primary: str) -> list[str]:
    """Whether the teacher is one that its student may pass."""
    note = teacher_note(rows, floor, primary)
    return [] if note is None else [note]


def evaluation_tables(
    evaluations: Mapping[str, int], stages: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Evaluations of the teacher as a report has them.

    Args:
        evaluations: by part of the run.
        stages: that the run trained.

    Returns:
        {"teacher_evaluations": by part and stage, with their "total", "teacher_calls": by "pairs",
        "training" (all stages), "validation" and "report"}; both with "decision" where `method:
        auto` asked.
    """
    parts = {part: evaluations.get(part, 0) for part in (PAIRS, *stages, VALIDATION, REPORT)}
    decision = {}
    if DECISION in evaluations:
        decision = {DECISION: evaluations[DECISION]}
    parts = {**decision, **parts}
    phases = {
        **decision,
        PAIRS: parts[PAIRS],
        "training": sum(parts[stage] for stage in stages),
        VALIDATION: parts[VALIDATION],
        REPORT: parts[REPORT],
    }
    return {
        "teacher_evaluations": {**parts, "total": sum(parts.values())},
        "teacher_calls": phases,
    }


# Calls of the teacher that are timed.
_TIMED_CALLS = 4
# What a report may ask of the teacher, of what pairs and training did.
_REPORT_SHARE = 0.25


def _most_of_report(evaluations: Mapping[str, int]) -> int:
    """Teacher evaluations that a report may take; by part of the run so far."""
    spent = sum(count for part, count in evaluations.items() if part != VALIDATION)
    return int(_REPORT_SHARE * spent)


class HandOver:
    """What becomes of the trained students of a run.

    Args:
        setup: the networks of the run.
        task: its data and scores.
        run_dir: where `student/` and `report/` go.
        stored: scores of the teacher and of fresh data that are known already; None: measured.
        origin: says what the run's teacher and data are, for scores that are measured.
        decisions: what was decided before the training, a sentence each.
    """

    def __init__(
        self,
        setup: Setup,
        task: Task,
        run_dir: Path,
        *,
        stored: tuple[Rows, dict[str, float]] | None = None,
        decisions: Sequence[str] = (),
        origin: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.setup = setup
        self.cfg = setup.cfg
        self.task = task
        self.run_dir = run_dir
        self.stored = stored
        self.decisions = list(decisions)
        self.origin = origin

    def run(
        self,
        students: Mapping[str, nn.Module],
        seconds: dict[str, float],
        warnings: list[str],
        evaluations: Mapping[str, int],
    ) -> None:
        """Score, choose, export and report.

        Args:
            students: by stage, in eval mode.
            seconds: of the parts of the run so far; those of this one are added.
            warnings: of the run's stages.
            evaluations: of the teacher, by part of the run so far.
        """
        watch = Stopwatch(seconds, "hand_over")
        self.setup.rows.take(REPORT)
        with self.setup.rows.part(REPORT):
            results, examples = self._measured(students, _most_of_report(evaluations))
        evaluations = {**evaluations, REPORT: self.setup.rows.take(REPORT)}
        results |= {
            "seconds": seconds,
            **evaluation_tables(evaluations, list(students)),
            "warnings": [*warnings, *results["warnings"]],
        }
        watch.lap()
        self.export(students[results["selected"]], results)
        print(format_table(results, stages=stage_styles()))
        if results["choice"]:
            print(results["choice"])
        write_report(
            self.run_dir,
            results=results,
            curves=read_log(self.run_dir),
            examples=examples,
            stages=stage_styles(),
        )
        print(f"student: {self.run_dir / 'student'}   report: {self.run_dir / 'report'}")

    def _measured(
        self, students: Mapping[str, nn.Module], most: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a report says of the students and their teacher, and the samples that it shows;
        `most`: teacher evaluations that this may take. Students are measured as they are
        exported, so that whoever scores the export finds these very numbers."""
        trained = students
        students = {stage: exported_network(network) for stage, network in trained.items()}
        validations = {
            stage: validate_by(self.task, self.sampler(network))
            for stage, network in students.items()
        }
        choice = self.choose(validations)
        selected = choice.stage
        rows = {stage: self._student_rows(network) for stage, network in students.items()}
        student = students[selected]
        examples = self.examples(student)
        latency = self._latency(student)
        left = most - self.setup.rows.rows.get(REPORT, 0)
        teacher_rows, floor, left_out = self._teacher_rows(left)
        results: dict[str, Any] = {
            "teacher": teacher_rows,
            "student": rows[selected],
            "kd": {},  # readers of report.json find it also without a warm start
            **rows,
            "floor": floor,
            "networks": {
                "teacher": network_facts(self.setup.source),
                "student": network_facts(trained[selected]),
            },
            "latency": latency,
            "selected": selected,
            "choice": choice.reason,
            "primary": self.task.primary,
            "validation": {stage: found.scores for stage, found in validations.items()},
            "decisions": self.decisions,
            "warnings": [],
        }
        if left_out:
            results["decisions"] = [
                *self.decisions,
                f"Teacher rows left out: {', '.join(left_out)}. A report takes at most a quarter "
                "of the teacher evaluations of pairs and training; teacher.measure=true measures "
                "all rows.",
            ]
        # One Euler step says nothing of a teacher.
        if not left_out or any(name.startswith("ab2") for name in teacher_rows):
            results["warnings"] = teacher_notes(teacher_rows, floor, self.task.primary)
        return results, examples

    def choose(self, validations: Mapping[str, Validation]) -> Choice:
        """The stage whose student is exported, and why: as configured, or one that is better than
        those before it by more than noise (:func:`fastgen.training.choice.choose`)."""
        if self.cfg.keep != "best":
            return Choice(self.cfg.keep, f"kept {self.cfg.keep}: as configured (keep)")
        return choose(validations, self.task.primary, getattr(self.task, "compare", None))

    def export(self, student: nn.Module, results: Mapping[str, Any]) -> None:
        """Write ``student/``."""
        how = self.cfg.student
        data = self.task.train
        conditions = getattr(data, "cond", data.Z)
        export_student(
            self.run_dir / "student",
            student,
            t_list=list(how.t_list),
            steps=list(served_t_lists(how)),
            t_lists=how.t_lists if len(how.t_lists) > 1 else None,
            sample_type=how.sample_type,
            pred_type=how.pred_type,
            x_normalizer=data.x_normalizer,
            z_normalizer=data.z_normalizer,
            pack=data.pack,
            prefix_max=self.cfg.train.prefix_max,
            box=self.cfg.data.box,
            horizon=tuple(data.X.shape[1:]),
            cond_sizes=trained_sizes_of(None, conditions),
            masks=mask_names(conditions),
            encoder=self.setup.encoder,
            description={
                "task": self.task.name,
                "method": results["selected"],
                "condition": "none" if data.Z is None else cond_text(data.Z, "B"),
                "scores": results["student"],
                **_guidance(self.cfg),
            },
        )

    def examples(self, student: nn.Module) -> dict[str, Any]:
        """What the picture of samples shows: a few conditions, drawn by teacher and student."""
        z, x_true = self.task.examples()
        scene = self.task.scene()
        samples = scene.get("samples", 16)
        n = len(x_true)
        generator = generator_for(self.cfg.seed, "examples")
        noise = torch.randn(n * samples, *noise_shape(self.task.train), generator=generator)
        repeated = map_tensors(lambda value: value.repeat_interleave(samples, 0), z)
        # As the pairs of KD are made; a hundred Euler steps would cost six times that.
        calls = self.cfg.train.kd_teacher_calls
        by_teacher = self.teacher_sampler(calls, "ab2")(repeated, noise)
        by_student = self.sampler(student)(repeated, noise)
        labels = {
            "teacher": f"teacher, AB2 {calls}",
            "student": f"student, {_calls_text(self.cfg.student)}",
        }
        drawn = {
            "teacher": by_teacher.unflatten(0, (n, samples)),
            "student": by_student.unflatten(0, (n, samples)),
        }
        nearest = getattr(self.task, "nearest", None)
        if nearest is not None:
            labels["nearest"] = "nearest in training"
            drawn["nearest"] = nearest(by_student).unflatten(0, (n, samples))
        drawn = {who: _ended(x, token_mask(z)) for who, x in drawn.items()}
        z = cond_without_masks(z)
        return {"Z": z, "X_true": x_true, **drawn, "scene": scene, "labels": labels}

    def sampler(self, student: nn.Module) -> Sampler:
        """The student in original units; of several numbers of calls with the fewest."""
        how = self.cfg.student
        return student_sampler(
            student,
            self.task.train,
            how.judged,
            sample_type=how.sample_type,
            pred_type=how.pred_type,
            source=self.setup.source,
            box=self.cfg.data.box,
        )

    def teacher_sampler(self, calls: int, method: str = "euler") -> Sampler:
        """The teacher by that many steps of a solver, in original units."""
        pred_type = self.cfg.student.pred_type
        box = self.cfg.data.box
        return teacher_sampler(
            self.setup.teacher, self.task.train, calls, method, pred_type=pred_type, box=box
        )

    def _student_rows(self, student: nn.Module) -> Rows:
        how = self.cfg.student
        return evaluate_student(
            student,
            self.task,
            how.t_list,
            sample_type=how.sample_type,
            pred_type=how.pred_type,
            box=self.cfg.data.box,
            t_lists=served_t_lists(how),
        )

    def _teacher_rows(self, most: int) -> tuple[Rows, dict[str, float], list[str]]:
        """Rows of the teacher, the task's floor, and the rows that are left out; `most`: teacher
        evaluations that this may take."""
        if self.stored is not None:
            return *self.stored, []
        key = rows_key(self.setup, self.origin())
        known, left_out = measured_rows(
            self.setup, self.task, self.run_dir, key, part=REPORT, most=most
        )
        return known.teacher, known.floor, left_out

    def _latency(self, student: nn.Module) -> dict[str, float]:
        """Milliseconds of one call of the sampler, of student and teacher, by batch. A hundred
        calls of the teacher are 25 times as long as four."""
        found = {}
        samplers = (
            (f"student {_calls_text(self.cfg.student)}", self.sampler(student), 15, 1),
            ("teacher 100 calls", self.teacher_sampler(_TIMED_CALLS), 3, 100 // _TIMED_CALLS),
        )
        for who, sampler, repeats, factor in samplers:
            for batch in (1, 64):
                time = latency_ms(sampler, self.task.train, batch, repeats=repeats)
                found[f"{who}, batch {batch}, ms"] = factor * time
        return found


def _guidance(cfg: DistillConfig) -> dict[str, Any]:
    """How the teacher was guided that the student learned from, for the export."""
    dmd = cfg.dmd
    source = cfg.teacher.null_cond
    if dmd.guidance_scale is None or source is None:
        return {}
    return {
        "guidance_scale": dmd.guidance_scale,
        "guidance_interval": list(dmd.guidance_interval),
        "guidance_rescale": dmd.guidance_rescale,
        # Where the file lay says nothing to others.
        "guidance_null_cond": Path(source).name,
    }


def _ended(x: Tensor, mask: Tensor | None) -> Tensor:
    """Samples x (B, K, T, ...) that stand still after their last real waypoint, so that a picture
    ends there; `mask` (B, T)."""
    if mask is None:
        return x
    each = mask.repeat_interleave(x.shape[1], 0)
    return padding_filled(x.flatten(0, 1), each).unflatten(0, tuple(x.shape[:2]))


def _calls_text(how: StudentConfig) -> str:
    """The student's calls for people: "1 call", "4 calls"."""
    calls = len(how.judged) - 1
    return f"{calls} call" if calls == 1 else f"{calls} calls"
