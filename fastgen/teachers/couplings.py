"""Couplings: is a teacher's velocity a score? Only if data and noise were drawn independently.

At t = 1 a sample is all noise. Where x0 and eps were independent in training it says nothing about
x0, and the prediction is the mean of x0 given the condition, whatever the noise. Where each noise
had its own x0 (OT-coupled flow matching, reflow), the prediction follows the noise instead:

    dependence = std over eps of x0_hat(eps, 1) / std of x0, both within a condition
    decided    = E <d, D> / E <D, D>,    d = x0_hat(eps, 1) - x0_hat(eps', 1),
                                         D = the ODE's ends from eps and eps', less one another

Both are 0 for independent pairs, up to the network's error, and near 1 for coupled ones. A network
that errs at t = 1 has a dependence, too; but its errors there say little about where its ODE ends.
And one that was never trained leaves the noise where it is, so that it decides everything at t = 1;
but its ends are no nearer to the data than noise is.

References:
    Pooladian et al., Multisample Flow Matching, 2023, arXiv:2304.14772. Tong et al., 2023,
    arXiv:2302.00482 (OT-CFM). Liu et al., Flow Straight and Fast, 2022, arXiv:2209.03003 (reflow).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .._core.masks import real_only
from .._core.modules import evaluating
from .._core.seeds import generator_for
from .._core.tensors import wide_dtype
from ..metrics import energy_distance
from ..networks import Cond, predicts_noise, teacher_x0, time_range
from .probes import probe_rows

__all__ = ["Coupling", "coupling_of"]

_STEPS = 16  # Euler steps from noise to data
# Less than this share of the data's standard deviation is a network's error at t = 1, or harmless.
# Measured: .04 on the teachers in recipes/teachers, .28 at most on networks trained for seconds.
_OF_ALL_DATA = 0.1
_DEPENDENCE = 0.35
# Measured on networks of three hundred updates and more: at most .66 on independent pairs, at least
# .77 on coupled ones.
_DECIDED = 0.7
# A mean of x0 given the noise varies no more than x0 itself, so that either is 1 at most. Measured:
# up to 1.32 on coupled pairs, more where the data are narrow within a condition and the network's
# errors wider, or where its answer was read as something else.
_MOST = 1.5
# Of the energy distance from noise to the data, what a teacher leaves. Measured: at most .4 on
# networks of a thousand updates, at least .9 on those of none.
_LEFT = 0.7
# Data that still show at the teacher's last time by more than this decide something there.
_DATA_LEFT = 0.1


@dataclasses.dataclass(frozen=True)
class Coupling:
    """How far a teacher's x0 at t = 1 follows the noise; formulas at the head of this module.

    Attributes:
        dependence: 0 for independent pairs, 1 for those of optimal transport.
        of_all_data: the same, over the standard deviation of all data.
        decided: how much of a sample is decided at t = 1, 0 to 1.
        left: energy distance of the ODE's ends to the data, over that of noise.
    """

    dependence: float
    of_all_data: float
    decided: float = 0.0
    left: float = 0.0

    @property
    def follows(self) -> bool:
        """Whether x0 at t = 1 follows the noise at all; `decided` and `left` are 0 where it
        doesn't."""
        return _DEPENDENCE < self.dependence < _MOST and self.of_all_data > _OF_ALL_DATA

    @property
    def found(self) -> bool:
        """Whether the teacher's velocity is that of coupled pairs, and so no score."""
        return self.follows and _DECIDED < self.decided < _MOST and self.left < _LEFT


@torch.no_grad()
def coupling_of(
    teacher: nn.Module, x0: Tensor, cond: Cond, *, pred_type: str = "flow"
) -> Coupling | None:
    """The coupling of a teacher's pairs, by two calls with up to 128 rows, and 32 more where x0
    follows the noise.

    None where it can't be told: of a teacher that predicts noise, which says nothing about x0 at
    t = 1, of one that ends at a time where the data still show, and of answers that aren't finite.

    Args:
        teacher: called `teacher(x_t, t, cond)` in RF time.
        x0, cond: the data as networks see them, (N, ...).
        pred_type: what the teacher predicts.
    """
    _, last = time_range(teacher)
    x0, cond = probe_rows(x0, cond, teacher)
    wide = wide_dtype(x0.device)
    spread = float((x0 - x0.mean(0)).to(wide).square().mean())
    data_left = (1.0 - last) / last * math.sqrt(spread)
    if pred_type == "eps" or predicts_noise(teacher) or data_left > _DATA_LEFT or spread == 0.0:
        return None
    generator = generator_for(0, "coupling")
    drawn = [torch.randn(x0.shape, generator=generator).to(x0) for _ in range(2)]
    noises = [last * real_only(noise, cond) for noise in drawn]

    def predict(x: Tensor, t: float) -> Tensor:
        times = torch.full((len(x),), t, dtype=wide, device=x.device)
        return teacher_x0(teacher, x, times, cond, pred_type=pred_type).to(wide)

    with evaluating(teacher):
        first, second = (predict(noise, last) for noise in noises)
        over_noise = float((first - second).square().mean()) / 2
        # Data and noise of a row are independent here, so that the error is the data's spread
        # within their conditions and the prediction's over the noise, added up.
        error = float((torch.stack([first, second]) - x0).square().mean())
        within = max(error - over_noise, 1e-12 * spread)
        found = Coupling(math.sqrt(over_noise / within), math.sqrt(over_noise / spread))
        if found.follows:
            ends = [_end(predict, noise, last) for noise in noises]
            between = ends[0] - ends[1]
            decided = float(((first - second) * between).sum() / between.square().sum())
            left = _distance(ends, x0) / max(_distance(noises, x0), 1e-12)
            found = dataclasses.replace(found, decided=decided, left=left)
    return found if math.isfinite(sum(vars(found).values())) else None


def _distance(samples: Sequence[Tensor], x0: Tensor) -> float:
    """Energy distance of samples, each (N, ...), to the data (N, ...)."""
    data = x0.flatten(1)
    return float(energy_distance(torch.cat(list(samples)).flatten(1), data, unbiased=True))


def _end(predict: Callable[[Tensor, float], Tensor], x: Tensor, last: float) -> Tensor:
    """Where Euler's steps along dx/dt = (x - x0_hat) / t lead from `x` at the time `last`."""
    grid = [last * (1.0 - step / _STEPS) for step in range(_STEPS + 1)]
    dtype = x.dtype
    x = x.to(wide_dtype(x.device))
    for t, s in itertools.pairwise(grid):
        x = x + (s - t) / t * (x - predict(x.to(dtype), t))
    return x
