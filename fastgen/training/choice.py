"""The choice between students: better by more than its noise, else the cheaper one.

A score is noisy, and the least of several is partly luck. So a student must be better than a
cheaper one by more than the interval of their difference (:mod:`fastgen.comparisons`), in one of
the scores that the task compares by, and worse by more than its interval in none. Else the cheaper
one is kept: the one whose stage came earlier, since it took fewer calls of the teacher.

Between averages of one stage nothing is cheaper, for their updates are done. There the lower score
wins where the intervals tell nothing, or where one score says better and another worse: what is
blurred is easy to classify, and an early average must not win by that. Patience counts
an average as a gain if it is better by more than the interval in some score, and either worse in
none or the lowest so far in the primary one (:class:`fastgen.training.validation.Progress`).

A task that can't compare leaves the choice to the lower score alone: it has no `compare`, or too
few rows to tell a difference from its noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..comparisons import Comparison, TooFewRows

__all__ = [
    "Choice",
    "Compare",
    "Comparisons",
    "Validation",
    "choose",
    "compare_samples",
    "is_better",
    "is_partly_better",
    "is_worse",
    "validate_by",
    "verdict",
]

# By score, lower is better; of what a second student answered relative to a first.
Comparisons = Mapping[str, Comparison]
# (samples of the first, samples of the second) -> comparisons.
Compare = Callable[[Tensor, Tensor], Comparisons]


class Validation(NamedTuple):
    """What a quick validation found.

    Attributes:
        scores: by name.
        samples: what the sampler answered to the task's conditions and noise, rows of all of its
            calls in their order; None where nobody compares them.
    """

    scores: dict[str, float]
    samples: Tensor | None = None


class Choice(NamedTuple):
    """Which student was chosen.

    Attributes:
        stage: that it is of.
        reason: a plain sentence with the numbers.
    """

    stage: str
    reason: str


def validate_by(task: Any, sampler: Callable[[Any, Tensor], Tensor]) -> Validation:
    """The quick scores of a sampler, with its samples where the task compares by them.

    Args:
        task: a :class:`fastgen.data.Task`.
        sampler: (Z, noise) -> X, original units.
    """
    if not hasattr(task, "compare"):
        return Validation(task.evaluate(sampler, quick=True))
    answers: list[Tensor] = []

    def remembered(z: Any, noise: Tensor) -> Tensor:
        x = sampler(z, noise)
        answers.append(x.detach().cpu())
        return x

    scores = task.evaluate(remembered, quick=True)
    return Validation(scores, torch.cat(answers) if answers else None)


def compare_samples(
    compare: Compare | None, reference: Tensor | None, samples: Tensor | None
) -> Comparisons | None:
    """Samples relative to those of a reference; empty before there is one, None where nothing is
    compared, or nothing can be, of so few rows."""
    if compare is None or samples is None:
        return None
    if reference is None:
        return {}
    try:
        return compare(reference, samples)
    except TooFewRows:
        return None


def is_better(compared: Comparisons) -> bool:
    """Whether the second student is better by more than its noise: in some score, and worse in
    none."""
    return is_partly_better(compared) and not is_worse(compared)


def is_partly_better(compared: Comparisons) -> bool:
    """Whether the second student is better by more than its noise in some score, whatever the
    others say."""
    return any(score.better for score in compared.values())


def is_worse(compared: Comparisons) -> bool:
    """Whether the second student is worse by more than its noise in some score."""
    return any(score.worse for score in compared.values())


def verdict(compared: Comparisons) -> str:
    """What the intervals say of the second student, in words."""
    if is_better(compared):
        return "better by more than noise"
    if is_partly_better(compared):
        return "better by more than noise in one score and worse in another"
    if is_worse(compared):
        return "worse by more than noise"
    return "not told apart"


def choose(validations: Mapping[str, Validation], primary: str, compare: Compare | None) -> Choice:
    """The stage whose student is kept.

    Args:
        validations: stage -> its student's, in the order of training, the cheapest first.
        primary: name of the score that decides where nothing is compared, lower is better.
        compare: of the task; None where it has none.

    Returns:
        the choice. Its reason is empty where there is but one stage.
    """
    stages = list(validations)
    kept = stages[0]
    reasons = []
    for stage in stages[1:]:
        before = validations[kept]
        after = validations[stage]
        compared = compare_samples(compare, before.samples, after.samples)
        # Empty where there are no samples to compare with.
        if compared:
            takes, found = _by_interval(kept, stage, compared)
        else:
            takes, found = _by_score(kept, stage, before, after, primary)
        kept = stage if takes else kept
        reasons.append(f"kept {kept}: {found}")
    return Choice(kept, "; then ".join(reasons))


def _by_interval(kept: str, stage: str, compared: Comparisons) -> tuple[bool, str]:
    """Whether `stage` takes the place of `kept`, and why."""
    numbers = ", ".join(f"{name} {difference}" for name, difference in compared.items())
    told = f"{stage} minus {kept}, with 95 % intervals, lower is better: {numbers}"
    if is_better(compared):
        return True, f"it is better than {kept} by more than noise ({told})"
    if is_worse(compared):
        return False, f"{stage} is worse by more than noise ({told})"
    return False, f"{stage} is no better by more than noise, and {kept} is cheaper ({told})"


def _by_score(
    kept: str, stage: str, before: Validation, after: Validation, primary: str
) -> tuple[bool, str]:
    """The same by scores whose noise is not known; NaN never wins."""
    old = before.scores.get(primary, math.nan)
    new = after.scores.get(primary, math.nan)
    takes = new < old or (math.isnan(old) and not math.isnan(new))
    return takes, f"{primary} {new:.4g} of {stage}, {old:.4g} of {kept}, of unknown noise"
