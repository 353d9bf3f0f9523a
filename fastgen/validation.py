"""What the validations of a stage say, update by update: which was the best, whether to go on, what to warn of.

A validation score is noisy: the best of many is partly luck, and with a decaying learning rate the last average is
usually as good. Keeping the best guards against a stage that goes wrong late; it does not replace a schedule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Progress"]

# A student whose spread is within this factor of the data's is one that can collapse; before, it is still learning.
DECENT = 2.0
SPREAD_FALL, SPREAD_RISE = 0.8, 1.25
MODE_ERROR_RISE = 0.03
PRIMARY_RISE = 0.1
# Unbiased energy distances are about 0 for the right law; below this they are sampling noise, in units of the data.
ENERGY_NOISE = 0.01

# Scores that are 1 for the data's law -> what they are the spread of.
_SPREADS = {"spread": "the spread within modes", "std_ratio": "the spread"}
_REMEDIES = {
    "kd": "stop earlier, lower train.kd_optimizer.lr, or raise train.kd_pairs",
    "dmd": "stop earlier, lower train.student_optimizer.lr, or raise dmd.fake_steps_per_student_step",
    "flow_matching": "stop earlier, or lower train.optimizer.lr",
}


@dataclass
class Progress:
    """The validations of one stage so far; plain numbers, so that a checkpoint can hold them.

    Attributes:
        stage, primary: names of the stage and of the score it is judged by, lower is better.
        start: finite scores of the first validation, and `start_step`, its update (0: before the first).
        spread, spread_step: first spread within a factor 2 of the data's.
        best, best_step: least primary score of a trained network, and its update; None before there is one.
        stale: validations since then.
        warnings: cause -> what was said about it, once each.
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

    def add(self, step: int, scores: Mapping[str, float], *, trained: bool = True) -> list[str]:
        """Note the scores of update `step` and return new warnings.

        Args:
            step: updates done, 0 before the first.
            scores: of this validation. A score that isn't finite never wins, and counts as one without improvement.
            trained: false before this stage has changed the network (its start, the fake score's warm-up): such a
                validation is where curves begin, but not this stage's work, and no loss of patience.
        """
        finite = {name: float(value) for name, value in scores.items() if _is_finite(value)}
        if trained:
            score = finite.get(self.primary)
            if score is not None and (self.best is None or score < self.best):
                self.best, self.best_step, self.stale = score, step, 0
            else:
                self.stale += 1
        if self.start is None:
            self.start, self.start_step = finite, step
        new = {cause: text for cause, text in self._causes(step, finite).items() if cause not in self.warnings}
        self.warnings |= new
        return list(new.values())

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether the last `patience` validations brought no improvement; None: never."""
        return patience is not None and self.stale >= patience

    def early_end(self, step: int) -> str:
        """What is said when the stage ends before its last update."""
        best = "never was a number" if self.best is None else f"was best at update {self.best_step}: {self.best:.4g}"
        return f"{self.stage} update {step}: stopped early, {self.primary} {best}; validations since: {self.stale}"

    def to_json(self) -> dict[str, Any]:
        """Its fields; `Progress(**fields)` is the same again."""
        return asdict(self)

    def _causes(self, step: int, scores: Mapping[str, float]) -> dict[str, str]:
        """{cause: warning} of what these scores show."""
        found, start = {}, self.start or {}
        remedy = _REMEDIES.get(self.stage, "stop earlier, or lower the learning rate")
        here = f"{self.stage} update {step}:"
        name = next((name for name in _SPREADS if name in scores), None)
        if name is not None:
            value = scores[name]
            if self.spread is None and 1 / DECENT <= value <= DECENT:
                self.spread, self.spread_step = value, step
            # Towards the data's spread, 1, is no collapse, however far.
            if self.spread is not None and value < SPREAD_FALL * min(self.spread, 1.0):
                moved = f"fell from {self.spread:.2f} (update {self.spread_step}) to {value:.2f}"
                found["spread fell"] = f"{here} {_SPREADS[name]} {moved}: the samples are collapsing; {remedy}"
            if self.spread is not None and value > SPREAD_RISE * max(self.spread, 1.0):
                moved = f"rose from {self.spread:.2f} (update {self.spread_step}) to {value:.2f}"
                found["spread rose"] = f"{here} {_SPREADS[name]} {moved}: the samples are blurring; {remedy}"
        since = f"(update {self.start_step})"
        if {"mode_error"} <= scores.keys() & start.keys():
            before, now = start["mode_error"], scores["mode_error"]
            if now > before + MODE_ERROR_RISE:
                moved = f"rose from {before:.3f} {since} to {now:.3f}"
                found["modes"] = f"{here} the mode error {moved}: modes are being lost; {remedy}"
        if {self.primary} <= scores.keys() & start.keys():
            before, now = start[self.primary], scores[self.primary]
            least = ENERGY_NOISE if self.primary == "energy_distance" else 0.0
            if now > before + max(PRIMARY_RISE * abs(before), least):
                moved = f"got worse than it was at the start of the stage, {before:.3g} {since} to {now:.3g}"
                found["primary"] = f"{here} {self.primary} {moved}; {remedy}"
        return found


def _is_finite(value: Any) -> bool:
    # A resumed run reads null where there was NaN.
    return isinstance(value, int | float) and math.isfinite(value)
