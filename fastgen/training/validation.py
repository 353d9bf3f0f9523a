"""Progress of a stage by its validations: which was the best, whether to go on, what to warn of.

A score is noisy: the best of many is partly luck, and with a decaying learning rate the last
average is usually as good. To keep the best guards against a stage that goes wrong late. It does
not replace a schedule. Where the task compares students by paired samples, the noise is known:
patience asks for an average that is better by more than it (:mod:`fastgen.training.choice`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeGuard

from .choice import Comparisons, is_better, is_partly_better, is_worse

__all__ = ["REMEDY", "Progress", "teacher_note", "weaknesses"]

# A spread can fall or rise once it was within this factor of the data's. A student that was never
# so near is still learning.
DECENT = 2.0
# What is warned of. Spreads, relative to the first decent one:
SPREAD_FALL = 0.8
SPREAD_RISE = 1.25
# the mode error, in addition to that of the start;
MODE_ERROR_RISE = 0.03
# the primary score, relative to that of the start. The unbiased energy distance is about 0 for the
# right law, and smaller rises than this, in units of the data, are sampling noise.
PRIMARY_RISE = 0.1
ENERGY_NOISE = 0.01
# A teacher's score relative to that of fresh data: a few hundred samples can't tell less apart.
WEAK_TEACHER = 1.25
# Of distances that are about 0 for the data's law no ratio can be taken: how much larger they are,
# in their own units.
WEAK_DISTANCES = {"energy_distance": ENERGY_NOISE, "frechet": 10.0}
# Shares of samples outside the data and of data that they miss, in addition to fresh data's.
WEAK_WITHIN = 0.1
# Accuracy of a discriminator that sees something: the best of five bins of 512 logits has .53 by
# chance.
SEEING = 0.55

# Score that is 1 for the data's law -> what it is called in a warning.
_SPREADS = {"spread": "the spread within modes", "std_ratio": "the spread"}
# Scores of neighbours -> what a warning says of their share.
_WITHIN = {
    "outside": "of its samples lie outside the data",
    "missed": "of the data are missed by its samples",
}
# What is advised where a stage names no remedy of its own.
REMEDY = "stop earlier, or lower the learning rate"


@dataclass
class Progress:
    """The validations of one stage so far, in plain numbers, which a checkpoint can hold.

    An update is told by how many of its stage were done; checkpoints call that its step.

    Attributes:
        stage: its name.
        primary: name of the score that a stage is compared by, lower is better.
        start: finite scores of the first validation.
        start_step: its update, 0 before the first.
        spread: the first one that was within a factor 2 of the data's.
        spread_step: its update.
        best: primary score of the best average of a trained network; None before there is one.
        best_step: its update.
        reference_step: update of the average that later ones are compared with: the last that was
            better than the one before it by more than noise. None where nothing is compared.
        stale: validations since then; since the best one, where nothing is compared.
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
    reference_step: int | None = None
    stale: int = 0
    warnings: dict[str, str] = field(default_factory=dict)
    remedy: str = REMEDY

    def add(
        self,
        update: int,
        scores: Mapping[str, float],
        *,
        trained: bool = True,
        compared: Comparisons | None = None,
    ) -> list[str]:
        """Note a validation; returns what is newly warned of.

        Args:
            update: updates done, 0 before the first.
            scores: of this validation. A score that isn't finite never wins, and counts as no
                improvement.
            trained: whether this stage has changed the network; it has not at its start, nor in
                the warm-up of a fake score. Until then a validation only starts the curves: it
                can't be the best and costs no patience.
            compared: of this average with that of `reference_step`; empty before there is one.
                None: the task compares nothing, and the lower score alone counts.
        """
        finite = {name: float(value) for name, value in scores.items() if _is_finite(value)}
        if trained:
            self._note_score(update, finite.get(self.primary), compared)
        if self.start is None:
            self.start = finite
            self.start_step = update
        new = {
            cause: text
            for cause, text in self._causes(update, finite).items()
            if cause not in self.warnings
        }
        self.warnings |= new
        return list(new.values())

    def note_diagnostics(self, update: int, diagnostics: Mapping[str, Any]) -> list[str]:
        """Warn of a discriminator that is still blind after its warm-up; returns new warnings.

        Args:
            update: updates done.
            diagnostics: as `diagnose` of :mod:`fastgen.methods.diagnostics` returns them.
        """
        accuracy = diagnostics.get("gan_accuracy")
        if not accuracy or max(accuracy) >= SEEING or "blind" in self.warnings:
            return []
        self.warnings["blind"] = (
            f"{self.stage} update {update}: the discriminator is right in {max(accuracy):.0%} of "
            "cases at best (50% is chance), so its loss teaches the student nothing; raise "
            "dmd.gan_disc_warmup_steps, lower dmd.gan_t.max_t, or try dmd.gan_features=sample"
        )
        return [self.warnings["blind"]]

    def skip(self, network: str, update: int, in_all: int) -> None:
        """Note that an update of a network was skipped.

        Args:
            network: its name.
            update: of the stage.
            in_all: updates of this network that were skipped so far.
        """
        updates = "update was" if in_all == 1 else "updates were"
        self.warnings[f"skipped {network}"] = (
            f"{self.stage}: {in_all} {updates} skipped, where the loss or the gradient of the "
            f"{network} was not finite, the last in update {update}; metrics.jsonl holds the rows "
            "of each batch"
        )

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether the last `patience` validations brought no improvement; None: never."""
        return patience is not None and self.stale >= patience

    def lost_patience(self, compared: Comparisons | None = None) -> str:
        """Why a stage ends that ran out of patience; `compared`: its last average, as of `add`."""
        best = self.best_average()
        if self.reference_step is None:
            return f"{best}; validations since: {self.stale}"
        numbers = ", ".join(f"{name} {found}" for name, found in (compared or {}).items())
        last = f" (the last one minus it, with 95 % intervals: {numbers})" if numbers else ""
        return (
            f"{best}; validations no better than update {self.reference_step} by more than noise: "
            f"{self.stale}{last}"
        )

    def best_average(self) -> str:
        """Which average was the best so far, for people."""
        if self.best is None:
            return f"{self.primary} never was a number"
        return f"{self.primary} was best at update {self.best_step}: {self.best:.4g}"

    def to_json(self) -> dict[str, Any]:
        """Its fields; `Progress(**fields)` is the same again."""
        return asdict(self)

    def _note_score(self, update: int, score: float | None, compared: Comparisons | None) -> None:
        """Whether this average is the best so far, and whether it counts as an improvement."""
        if compared is None:
            self.reference_step = None
        if score is None:
            self.stale += 1
            return
        lower = self.best is not None and score < self.best
        if self.best is None:
            improved = True
        elif compared is None:
            improved = score < self.best
        else:
            improved = is_better(compared) or (lower and is_partly_better(compared))
        if improved:
            # The best one may be another than the reference, and was not compared with this one:
            # then the lower score wins.
            was_compared = self.best_step == self.reference_step
            if self.best is None or was_compared or lower:
                self.best = score
                self.best_step = update
            self.stale = 0
            if compared is not None:
                self.reference_step = update
            return
        self.stale += 1
        # Not told apart: nothing is cheaper within a stage, so the lower score wins.
        if compared is not None and not is_worse(compared) and lower:
            self.best = score
            self.best_step = update

    def _causes(self, update: int, scores: Mapping[str, float]) -> dict[str, str]:
        """{cause: warning} of what the finite scores of a validation show."""
        here = f"{self.stage} update {update}:"
        causes = self._causes_of_spread(update, scores, here)
        causes |= self._causes_of_rise(scores, here)
        return {cause: f"{text}; {self.remedy}" for cause, text in causes.items()}

    def _causes_of_spread(
        self, update: int, scores: Mapping[str, float], here: str
    ) -> dict[str, str]:
        """Whether samples collapse or blur, by the first decent spread, which this notes."""
        name = next((name for name in _SPREADS if name in scores), None)
        if name is None:
            return {}
        now = scores[name]
        if self.spread is None and 1 / DECENT <= now <= DECENT:
            self.spread = now
            self.spread_step = update
        if self.spread is None:
            return {}
        # Nearer to the data's spread, 1, is no collapse, even on its other side.
        far = max(self.spread, 1.0 / self.spread)
        before = f"from {self.spread:.2f} (update {self.spread_step}) to {now:.2f}"
        found = {}
        if now < SPREAD_FALL / far:
            found["spread fell"] = (
                f"{here} {_SPREADS[name]} fell {before}: the samples are collapsing"
            )
        if now > SPREAD_RISE * far:
            found["spread rose"] = (
                f"{here} {_SPREADS[name]} rose {before}: the samples are blurring"
            )
        return found

    def _causes_of_rise(self, scores: Mapping[str, float], here: str) -> dict[str, str]:
        """Which scores are worse than at the start of the stage."""
        found = {}
        start = self.start or {}
        since = f"(update {self.start_step})"
        if "mode_error" in scores and "mode_error" in start:
            before = start["mode_error"]
            now = scores["mode_error"]
            if now > before + MODE_ERROR_RISE:
                found["modes"] = (
                    f"{here} the mode error rose from {before:.3f} {since} to {now:.3f}: modes are "
                    "being lost"
                )
        if self.primary in scores and self.primary in start:
            before = start[self.primary]
            now = scores[self.primary]
            least = ENERGY_NOISE if self.primary == "energy_distance" else 0.0
            if now > before + max(PRIMARY_RISE * abs(before), least):
                found["primary"] = (
                    f"{here} {self.primary} got worse than it was at the start of the stage, "
                    f"{before:.3g} {since} to {now:.3g}"
                )
        return found


def teacher_note(
    rows: Mapping[str, Mapping[str, float]], floor: Mapping[str, float], primary: str
) -> str | None:
    """What is said of a teacher that is so far from the data that a student may pass it.

    That is one whose score is worse than that of fresh data by a quarter or more (of distances that
    are about 0 for the data: by .01 of the energy distance, by 10 points of the Frechet distance).
    Or it is wrong within modes: a tenth more of its samples than of fresh data lie outside the
    data, or it misses a tenth more of the data (`outside`, `missed`;
    :class:`fastgen.neighbours.Region`).

    Args:
        rows: sampler -> the teacher's scores.
        floor: scores of fresh data. Nothing is said by a score that is not among them, but by the
            unbiased energy distance, which is 0 for them. A ratio to a primary one that isn't above
            0 says nothing.
        primary: name of the score, lower is better.

    Returns:
        a line; None where there is nothing to say.
    """
    found = weaknesses(rows, floor, primary)
    if not found:
        return None
    return (
        f"the teacher itself is far from the data: {'; '.join(found)}; train it longer, or let the "
        "student learn from the data too (dmd.real_data_weight=1 with dmd.vsd_weight=0, or a GAN; "
        "train.steps=1000); with a good teacher this loses coverage"
    )


def weaknesses(
    rows: Mapping[str, Mapping[str, float]], floor: Mapping[str, float], primary: str
) -> list[str]:
    """By what scores a teacher is far from the data, as `teacher_note`, whose arguments it takes;
    [] for one that isn't."""
    scores = {name: row[primary] for name, row in rows.items() if _is_finite(row.get(primary))}
    if not scores:
        return []
    name = min(scores, key=lambda row: scores[row])
    found = []
    least = floor.get(primary, 0.0 if primary == "energy_distance" else None)
    if _is_far(scores[name], least, primary):
        found.append(
            f"{primary} {scores[name]:.3g} at its best ({name}), {least:.3g} for fresh data"
        )
    for score, meaning in _WITHIN.items():
        value = rows[name].get(score)
        usual = floor.get(score)
        if _is_finite(value) and _is_finite(usual) and value >= usual + WEAK_WITHIN:
            found.append(f"{value:.0%} {meaning} ({name}), {usual:.0%} for fresh data")
    return found


def _is_far(score: float, least: Any, primary: str) -> bool:
    """Whether a teacher's primary score is clearly worse than fresh data's, `least`."""
    if not _is_finite(least):
        return False
    if primary in WEAK_DISTANCES:
        return score >= least + WEAK_DISTANCES[primary]
    return least > 0 and score >= WEAK_TEACHER * least


def _is_finite(value: Any) -> TypeGuard[float]:
    # A resumed run reads null where there was NaN.
    return isinstance(value, int | float) and math.isfinite(value)
