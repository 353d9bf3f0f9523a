"""Sets of one condition: batches of a target's samples, grouped, and the student's loss on them.

The target is the data, or the teacher by its pairs. A batch of B rows is B / m groups; a group has
m different rows of one condition, beside which the student makes m samples. A group is drawn as
often as it has rows. Groups need conditions that several rows share: labels, no condition at all,
or pairs of several noises each (`train.kd_noises_per_condition`).

Where rows have conditions of their own, sets can be compared together with them
(`set_conditional=false`): a group has m rows of any conditions z, the student makes one sample for
each z, and what is compared are (x, s z), with s = sqrt(numbers of x / numbers of z), so that both
count alike.

Rows of one condition have its masks, too, and only their real tokens are compared. Rows of any
conditions may differ in length: there padding is 0 in x and in z.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._core.carried import bare
from .._core.conditions import cond_text, cond_to, take_rows, tensors_in
from .._core.masks import masks_of, real_only, token_mask, with_masks
from .._core.prefixes import check_no_prefix
from ..networks import Cond
from ..set_losses import set_loss
from ..training.draws import Draws
from .kd import KnowledgeDistillation, pair_rows
from .method import Networks, Run
from .rollouts import Rollouts

__all__ = ["ConditionSets", "check_sets", "condition_numbers", "set_term", "sets_of"]


def condition_numbers(cond: Cond, n: int) -> Tensor:
    """A number for each of n rows, the same for rows of one condition, bit for bit: (n,) int64.

    Args:
        cond: of n rows; without tensors all rows have one condition.
        n: rows.
    """
    numbers = torch.zeros(n, dtype=torch.int64)
    for value in tensors_in(cond):
        of_value = value.detach().cpu().reshape(n, -1).unique(dim=0, return_inverse=True)[1]
        both = torch.stack([numbers, of_value], 1)
        numbers = both.unique(dim=0, return_inverse=True)[1]
    return numbers


def check_sets(networks: Networks) -> None:
    """Refuse sets of conditions that too few rows of their target share.

    Raises:
        ValueError: for less than half of the rows there are `dmd.set_samples` of their condition.
    """
    cfg = networks.cfg
    if not cfg.dmd.set_weight:
        return
    cond = networks.cond
    n = len(networks.x0)
    if cfg.dmd.set_target == "teacher":
        train = cfg.train
        in_order = getattr(networks, "in_order", True)
        each = train.kd_noises_per_condition
        rows = pair_rows(train.kd_pairs, n, cfg.seed, in_order, each=each)
        cond = take_rows(cond, rows)
        n = len(rows)
    if cfg.dmd.set_conditional:
        _rows_in_company(condition_numbers(cond, n), cfg.dmd.set_samples)
    elif any(not value.is_floating_point() for value in tensors_in(bare(cond))):
        raise ValueError(
            "expected a condition of real numbers with dmd.set_conditional=false, got "
            f"{cond_text(cond)}; labels are shared by rows: leave it out"
        )


def _rows_in_company(numbers: Tensor, size: int) -> Tensor:
    """The rows of conditions, given by their numbers (N,), that at least `size` rows have.

    Raises:
        ValueError: they are less than half.
    """
    found = (numbers.bincount()[numbers] >= size).nonzero().flatten()
    if 2 * len(found) < len(numbers):
        raise ValueError(
            f"expected dmd.set_samples={size} rows of one condition for most of the {len(numbers)} "
            f"rows of dmd.set_target, got that for {len(found)}; for the teacher's say "
            f"train.kd_noises_per_condition={size}, for data dmd.set_conditional=false, which "
            "compares samples together with their conditions"
        )
    return found


class ConditionSets:
    """A target's samples, from which batches of groups are drawn.

    Args:
        x0: (N, ...) samples.
        cond: their conditions, N rows.
        size: m >= 2, rows of a group.
        draws: of the stage.
        conditional: whether the rows of a group have one condition.

    Raises:
        ValueError: m rows share a condition for less than half of all rows.
    """

    def __init__(
        self, x0: Tensor, cond: Cond, size: int, draws: Draws, *, conditional: bool = True
    ) -> None:
        self.x0 = x0
        self.cond = cond
        self.size = size
        self.draws = draws
        numbers = condition_numbers(cond if conditional else None, len(x0))
        counts = numbers.bincount()
        self._order = numbers.argsort(stable=True)
        self._first = counts.cumsum(0) - counts
        self._counts = counts
        self._numbers = numbers
        self._eligible = _rows_in_company(numbers, size)

    def rows(self, step: int) -> Tensor:
        """The rows of batch `step`, over all processes: (B,), group by group."""
        generator = self.draws.generator(step, "sets")
        groups = self.draws.batch_size // self.size
        picked = torch.randint(len(self._eligible), (groups,), generator=generator)
        rows = []
        for number in self._numbers[self._eligible[picked]].tolist():
            order = torch.randperm(int(self._counts[number]), generator=generator)[: self.size]
            rows.append(self._order[self._first[number] + order])
        return torch.cat(rows)

    def batch(self, step: int) -> tuple[Tensor, Cond]:
        """This process' share of batch `step`: samples (B, ...) and their conditions."""
        rows = self.rows(step)[self.draws.slice]
        device = self.draws.device
        return cond_to(self.x0[rows], device), cond_to(take_rows(self.cond, rows), device)


def sets_of(run: Run, pairs: KnowledgeDistillation | None, draws: Draws) -> ConditionSets | None:
    """The sets that the config of a run asks for, of the data or of its teacher pairs; None where
    they have no weight.

    Args:
        pairs: KD on the pairs, where they are in memory already.
        draws: of the stage.
    """
    dmd = run.cfg.dmd
    if not dmd.set_weight:
        return None
    if dmd.set_target == "data":
        x0 = run.networks.x0
        cond = run.networks.cond
    else:
        states, cond = run.pairs() if pairs is None else (pairs.states, pairs.cond)
        x0 = states[:, -1]
    return ConditionSets(x0, cond, dmd.set_samples, draws, conditional=dmd.set_conditional)


def set_term(
    rollouts: Rollouts, target: Tensor, cond: Cond, *, generator: torch.Generator | None = None
) -> Tensor:
    """The distance of new samples of the student to a target's, group by group; see
    :func:`fastgen.set_losses.set_loss`.

    Args:
        rollouts: the student, and the keys `set_*`.
        target: (B, ...), B / m groups of m = `set_samples`.
        cond: of B rows, the same within a group if `set_conditional`.
        generator: source of the student's noise, then of what `Rollouts.generate` draws.

    Returns:
        scalar; its gradient reaches the student.

    Raises:
        ValueError: a batch that m doesn't divide, or a condition with a prefix.
    """
    check_no_prefix(cond, "sets of samples")
    config = rollouts.config
    m = config.set_samples
    if len(target) % m:
        raise ValueError(
            f"expected a batch (per process and micro-batch) that set_samples={m} divides, got "
            f"{len(target)}"
        )
    noise = rollouts.draws.normal_like(target, generator)
    start = None if config.backward_simulation else target
    made = rollouts.generate(start, noise, cond, generator=generator)
    x = made.x0
    mask = token_mask(cond)
    mask = None if mask is None else mask[::m]
    if not config.set_conditional:
        mask = None
        x = _beside(x, cond)
        target = _beside(target, cond)
    groups = (len(target) // m, m)
    return set_loss(
        x.unflatten(0, groups),
        target.unflatten(0, groups),
        config.set_loss,
        bandwidths=config.real_data_bandwidths,
        temperatures=config.set_temperatures,
        mask=mask,
    )


def _beside(x: Tensor, cond: Cond) -> Tensor:
    """(x, s z): (B, numbers of both), z without a gradient; 0 at padding of either."""
    Z, _, cond_mask = masks_of(cond)
    x = real_only(x, cond)
    if cond_mask is not None:
        Z = real_only(Z, with_masks(None, cond_mask))
    parts = [value.detach().to(x.dtype).flatten(1) for value in tensors_in(Z)]
    if not parts:
        return x.flatten(1)
    z = torch.cat(parts, 1)
    numbers = x.flatten(1)
    return torch.cat([numbers, (numbers.shape[1] / z.shape[1]) ** 0.5 * z], 1)
