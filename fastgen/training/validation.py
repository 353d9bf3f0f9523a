"""What the validations of a stage say, update by update: which was the best, whether to go on, what
to warn of.

A validation score is noisy: the best of many is partly luck, and with a decaying learning rate the
last average is usually as good. Keeping the best guards against a stage that goes wrong late; it
does not replace a schedule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeGuard

__all__ = ["REMEDY", "Progress", "teacher_note"]

# A student whose spread is within this factor of the data's is one that can collapse; before, it is
# still learning.
DECENT = 2.0
SPREAD_FALL = 0.8
SPREAD_RISE = 1.25
MODE_ERROR_RISE = 0.03
PRIMARY_RISE = 0.1
# Unbiased energy distances are about 0 for the right law; below this they are sampling noise, in
# units of the data.
ENERGY_NOISE = 0.01
# A teacher that good cannot be told from the data by a few hundred samples.
WEAK_TEACHER = 1.25
# Five bins of 512 logits at chance have a largest accuracy of .53.
SEEING = 0.55

# Scores that are 1 for the data's law -> what they are the spread of.
_SPREADS = {"spread": "the spread within modes", "std_ratio": "the spread"}
# What is advised where a stage names no remedy of its own.
REMEDY = "stop earlier, or lower the learning rate"


@dataclass
class Progress:
    """The validations of one stage so far; plain numbers, so that a checkpoint can hold them.

    Attributes:
        stage, primary: names of the stage and of the score it is judged by, lower is better.
        start: finite scores of the first validation, and `start_step`, its update (0: before the
            first).
        spread, spread_step: first spread within a factor 2 of the data's.
        best, best_step: least primary score of a trained network, and its update; None before there
            is one.
        stale: validations since then.
        warnings: cause -> what was said about it, once each.
        remedy: what a warning advises.
    """

    stage: str
    primary: str
    start: dict[str, float] | None = None
    start_step: int = 0
    spread: float | None = None
    spread_step: int = 0
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    warnings: dict[str, str] = field(default_factory=dict)
    remedy: str = REMEDY

    def add(self, step: int, scores: Mapping[str, float], *, trained: bool = True) -> list[str]:
        """Note the scores of update `step` and return new warnings.

        Args:
            step: updates done, 0 before the first.
            scores: of this validation. A score that isn't finite never wins, and counts as one
                without improvement.
            trained: false before this stage has changed the network (its start, the fake score's
                warm-up): such a validation is where curves begin, but not this stage's work, and no
                loss of patience.
        """
        finite = {name: float(value) for name, value in scores.items() if _is_finite(value)}
        if trained:
            score = finite.get(self.primary)
            if score is not None and (self.best is None or score < self.best):
                self.best = score
                self.best_step = step
                self.stale = 0
            else:
                self.stale += 1
        if self.start is None:
            self.start = finite
            self.start_step = step
        new = {
            cause: text
            for cause, text in self._causes(step, finite).items()
            if cause not in self.warnings
        }
        self.warnings |= new
        return list(new.values())

    def judge(self, step: int, diagnostics: Mapping[str, Any]) -> list[str]:
        """Warn of a discriminator that is still blind after its warm-up; `diagnostics` as
        `diagnose` of :mod:`fastgen.methods.diagnostics` returns them. Returns new warnings."""
        accuracy = diagnostics.get("gan_accuracy")
        if not accuracy or max(accuracy) >= SEEING or "blind" in self.warnings:
            return []
        self.warnings["blind"] = (
            f"{self.stage} update {step}: the discriminator is right in {max(accuracy):.0%} of "
            "cases at best (50% is chance), so its loss teaches the student nothing; raise "
            "dmd.gan_disc_warmup_steps, lower dmd.gan_t.max_t, or try dmd.gan_features=sample"
        )
        return [self.warnings["blind"]]

    def skip(self, part: str, step: int, in_all: int) -> None:
        """Note that an update of the network `part` was skipped in update `step`, and how many were
        `in_all`."""
        plural = "update was" if in_all == 1 else "updates were"
        self.warnings[f"skipped {part}"] = (
            f"{self.stage}: {in_all} {plural} skipped, where the loss or the gradient of the "
            f"{part} was not finite, the last in update {step}; metrics.jsonl holds the rows of "
            "each batch"
        )

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether the last `patience` validations brought no improvement; None: never."""
        return patience is not None and self.stale >= patience

    def early_end(self, step: int) -> str:
        """What is said when the stage ends before its last update."""
        best = (
            "never was a number"
            if self.best is None
            else f"was best at update {self.best_step}: {self.best:.4g}"
        )
        return f"{self.stage} update {step}: stopped early, {self.primary} {best}; validations since: {self.stale}"

    def to_json(self) -> dict[str, Any]:
        """Its fields; `Progress(**fields)` is the same again."""
        return asdict(self)

    def _causes(self, step: int, scores: Mapping[str, float]) -> dict[str, str]:
        """{cause: warning} of what these scores show."""
        found = {}
        start = self.start or {}
        here = f"{self.stage} update {step}:"
        name = next((name for name in _SPREADS if name in scores), None)
        if name is not None:
            value = scores[name]
            if self.spread is None and 1 / DECENT <= value <= DECENT:
                self.spread = value
                self.spread_step = step
            # Nearer to the data's spread, 1, is no collapse, even on its other side.
            far = max(self.spread or 1.0, 1.0 / (self.spread or 1.0))
            if self.spread is not None and value < SPREAD_FALL / far:
                moved = f"fell from {self.spread:.2f} (update {self.spread_step}) to {value:.2f}"
                found["spread fell"] = (
                    f"{here} {_SPREADS[name]} {moved}: the samples are collapsing; {self.remedy}"
                )
            if self.spread is not None and value > SPREAD_RISE * far:
                moved = f"rose from {self.spread:.2f} (update {self.spread_step}) to {value:.2f}"
                found["spread rose"] = (
                    f"{here} {_SPREADS[name]} {moved}: the samples are blurring; {self.remedy}"
                )
        since = f"(update {self.start_step})"
        if {"mode_error"} <= scores.keys() & start.keys():
            before = start["mode_error"]
            now = scores["mode_error"]
            if now > before + MODE_ERROR_RISE:
                moved = f"rose from {before:.3f} {since} to {now:.3f}"
                found["modes"] = (
                    f"{here} the mode error {moved}: modes are being lost; {self.remedy}"
                )
        if {self.primary} <= scores.keys() & start.keys():
            before = start[self.primary]
            now = scores[self.primary]
            least = ENERGY_NOISE if self.primary == "energy_distance" else 0.0
            if now > before + max(PRIMARY_RISE * abs(before), least):
                moved = f"got worse than it was at the start of the stage, {before:.3g} {since} to {now:.3g}"
                found["primary"] = f"{here} {self.primary} {moved}; {self.remedy}"
        return found


def teacher_note(
    rows: Mapping[str, Mapping[str, float]], floor: Mapping[str, float], primary: str
) -> str | None:
    """What is said of a teacher that is worse than fresh data by a quarter or more, so that a
    student may pass it.

    Args:
        rows: the teacher's scores by sampler.
        floor: scores of fresh data; without `primary` in it, or where that is not above 0, nothing
            can be said.
        primary: the score, lower is better.
    """
    scores = {name: row[primary] for name, row in rows.items() if _is_finite(row.get(primary))}
    least = floor.get(primary)
    if not scores or not _is_finite(least) or least <= 0:
        return None
    name = min(scores, key=lambda row: scores[row])
    if scores[name] < WEAK_TEACHER * least:
        return None
    return (
        f"the teacher itself is far from the data: {primary} {scores[name]:.3g} at its best "
        f"({name}), {least:.3g} for fresh data; train it longer, or let the student learn from "
        "the data too (dmd.real_data_weight=1 with dmd.vsd_weight=0, or a GAN; train.steps=1000), "
        "which of a good teacher costs coverage"
    )


def _is_finite(value: Any) -> TypeGuard[float]:
    # A resumed run reads null where there was NaN.
    return isinstance(value, int | float) and math.isfinite(value)
