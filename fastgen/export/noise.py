"""The noise that a student is given: its shape, and whether it is of the law of its training."""

from __future__ import annotations

import math
import warnings

from torch import Tensor

from .._core.checks import at_hand

__all__ = ["check_noise", "warn_of_noise"]

# Rows, and numbers of each, that tell whether noise is standard normal.
_TELLING_ROWS = 256
_TELLING_NUMBERS = 4096
# Noise that is less likely than exp(-18), as six standard errors are, is of another law.
_SURPRISE = 18.0


def check_noise(noise: Tensor, shape: tuple[int, ...], seen: tuple[int, ...]) -> None:
    """ValueError for noise of another shape than `seen`, where samples are of `shape`."""
    if tuple(noise.shape) == seen:
        return
    what = "that of the result"
    if seen != shape:
        what = "with angles and rotations as the network sees them"
    raise ValueError(f"expected noise of shape {seen}, {what}, got {tuple(noise.shape)}")


def warn_of_noise(noise: Tensor, stacklevel: int) -> None:
    """Warn of noise (R, ...) whose mean or mean square no seed of N(0, 1) has.

    Chernoff's bounds say how likely those of m numbers are to be as far off:
    exp(-m mean^2 / 2) and exp(-m (square - 1 - log square) / 2).

    Rows may repeat one another, or lie between two of them. They count as the n that are
    independent: of n such rows of d numbers the Gram matrix G has |G|^2 / (tr G)^2 = 1/n + 1/d.
    Some hundred rows and numbers tell enough.
    """
    if not at_hand(noise) or not noise.numel():
        return
    numbers = noise[:_TELLING_ROWS].detach().flatten(1)[:, :_TELLING_NUMBERS].double()
    mean = float(numbers.mean())
    square = float(numbers.square().mean())
    gram = (numbers - mean) @ (numbers - mean).T
    alike = float(gram.square().sum() / gram.trace().square().clamp(min=1e-300))
    rows = 1.0 / max(alike - 1.0 / numbers.shape[1], 1.0 / len(numbers))
    off = max(mean**2, square - 1.0 - math.log(max(square, 1e-300)))
    if not rows * numbers.shape[1] * off / 2 <= _SURPRISE:
        warnings.warn(
            f"expected standard normal noise, N(0, 1), got numbers of mean {mean:.3g} and mean "
            f"square {square:.3g}: the samples will be of another law than the student's",
            stacklevel=stacklevel + 1,
        )
