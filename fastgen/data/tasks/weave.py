"""The embedded task `weave`: weave a tool along a seam, as in arc welding or spraying.

The condition Z = (start, end) is a straight seam of length 1.5 to 2.5, in any direction, with its
middle in the square |x|_inf <= .3. The trajectory X is sixteen positions of the tool, equally
spaced in time:

    x(u) = start + u (end - start) + a w(u) sin(2 pi f u + phi) n,    u = 1/16, ..., 1,
    a ~ U(.2, .3),    f ~ U(1.25, 2.25) periods,    phi ~ U(0, 2 pi),

with n the seam's direction turned by a quarter to the left, and w(u) = min(6 u, 6 (1 - u), 1), so
that the tool starts and ends on the seam.

Nothing tells amplitude, frequency and phase: a student has to make them of its noise. Errors of
teacher and student make weaves a little flat and irregular, of which matching undoes a part
(tools/BENCHMARKS.md).

Rotations of the plane turn seam and weave alike; a reflection changes the sign of n, which is
another phase. So the law of X given Z is exactly equivariant under all of O(2), and that of (Z, X)
invariant under D4, which keeps the square of the middles.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from .paths import HORIZON, PathTask, References, within_mode_spread

__all__ = [
    "Weave",
    "WeaveTask",
    "demonstrate",
    "draw_references",
    "fit_weave",
    "sample_conditions",
    "score",
    "succeeds",
    "weave",
]

LENGTH = (1.5, 2.5)
AMPLITUDE = (0.2, 0.3)
PERIODS = (1.25, 2.25)
# Half the side of the square in which a seam's middle lies.
MIDDLE = 0.3
LIMIT = 1.75

# What a successful weave may be off by: the amplitude beyond its range, the root mean square of
# what a sine leaves, the most along the seam, and the last waypoint across it.
OFF_AMPLITUDE = 0.02
OFF_SINE = 0.04
OFF_SEAM = 0.08
OFF_END = 0.08
# Frequencies that are tried for the sine, .025 apart and half a period beyond the law's.
TRIED = 81

# Samples of a condition in pictures.
DRAWN = 4

# The times u of the waypoints, and which of them have the whole amplitude.
_U = torch.arange(1, HORIZON + 1, dtype=torch.float64) / HORIZON
_WIDTH = torch.minimum(6 * _U, 6 * (1 - _U)).clamp_max(1)
_INNER = _WIDTH == 1


# ---- The law ------------------------------------------------------------------------------------


def sample_conditions(n: int, generator: Generator | None = None) -> Tensor:
    """Conditions Z = (start, end), (n, 2, 2) float64."""
    u = torch.rand(n, 4, generator=generator, dtype=torch.float64)
    angle = 2 * math.pi * u[:, 0]
    length = _between(LENGTH, u[:, 1])
    middle = MIDDLE * (2 * u[:, 2:] - 1)
    half = 0.5 * length[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return torch.stack([middle - half, middle + half], 1)


def demonstrate(Z: Tensor, generator: Generator | None = None) -> Tensor:
    """One demonstration for each condition: Z (N, 2, 2) -> X (N, 16, 2), float64.

    `generator` draws amplitude, periods and phase of each condition, in this order.
    """
    u = torch.rand(Z.shape[0], 3, generator=generator, dtype=torch.float64)
    amplitude = _between(AMPLITUDE, u[:, 0])
    periods = _between(PERIODS, u[:, 1])
    return weave(Z, amplitude, periods, 2 * math.pi * u[:, 2])


def weave(Z: Tensor, amplitude: Tensor, periods: Tensor, phase: Tensor) -> Tensor:
    """The law with its randomness given: Z (N, 2, 2) and (N,) of each -> X (N, 16, 2), float64.

    Rotating Z rotates it; reflecting Z and adding pi to the phase reflects it.
    """
    along, across = _seam(Z)
    angle = 2 * math.pi * periods[:, None] * _U + phase[:, None]
    aside = amplitude[:, None] * _WIDTH * angle.sin()
    return Z[:, :1].double() + _U[:, None] * along[:, None] + aside[..., None] * across[:, None]


def _between(limits: tuple[float, float], u: Tensor) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * u


def _deviation(limits: tuple[float, float]) -> float:
    """The standard deviation of the uniform law between limits."""
    return (limits[1] - limits[0]) / math.sqrt(12)


def _seam(Z: Tensor) -> tuple[Tensor, Tensor]:
    """end - start, and the unit vector n across it, (N, 2) each."""
    along = (Z[:, 1] - Z[:, 0]).double()
    left = torch.stack([-along[:, 1], along[:, 0]], 1)
    return along, left / left.norm(dim=1, keepdim=True)


# ---- Scores -------------------------------------------------------------------------------------


class Weave(NamedTuple):
    """What the sine that fits a path best says of it; (N,) float64 each.

    Attributes:
        amplitude: of the sine, where the law has its whole amplitude.
        periods: of the sine, along the whole seam.
        off_sine: root mean square of what it leaves there.
        off_seam: most distance, along the seam, from the place at which the tool should be.
        off_end: distance of the last waypoint across the seam.
    """

    amplitude: Tensor
    periods: Tensor
    off_sine: Tensor
    off_seam: Tensor
    off_end: Tensor


def fit_weave(X: Tensor, Z: Tensor) -> Weave:
    """Fit a sine of any phase and amplitude, and of .75 to 2.75 periods, to paths X (N, 16, 2)
    under conditions Z (N, 2, 2), seams of length > 0, by least squares over the waypoints of whole
    amplitude."""
    along, across = _seam(Z)
    from_seam = X.double() - Z[:, :1].double() - _U[:, None] * along[:, None]
    off_line = (from_seam * across[:, None]).sum(-1)
    aside = off_line[:, _INNER]
    direction = along / along.norm(dim=1, keepdim=True)
    off_seam = (from_seam * direction[:, None]).sum(-1).abs().amax(1)

    tried = torch.linspace(PERIODS[0] - 0.5, PERIODS[1] + 0.5, TRIED, dtype=torch.float64)
    angle = 2 * math.pi * tried[:, None] * _U[_INNER]
    basis = torch.stack([angle.sin(), angle.cos()], -1)
    orthonormal, mix = torch.linalg.qr(basis)
    parts = torch.einsum("ftk,nt->nfk", orthonormal, aside)
    best = parts.square().sum(-1).argmax(1)
    part = parts[torch.arange(len(parts)), best]
    left = aside.square().sum(1) - part.square().sum(1)
    coefficients = torch.linalg.solve_triangular(mix[best], part[..., None], upper=True)
    return Weave(
        coefficients[..., 0].norm(dim=1),
        tried[best],
        (left.clamp_min(0) / int(_INNER.sum())).sqrt(),
        off_seam,
        off_line[:, -1].abs(),
    )


def succeeds(X: Tensor, Z: Tensor) -> Tensor:
    """Whether paths are regular weaves along their seams, (N,) bool: a sine of .75 to 2.75 periods
    leaves at most .04 of them (root mean square), its amplitude is in [.18, .32], no waypoint is
    more than .08 ahead or behind, and the last one lies within .08 of the seam."""
    return _is_regular(fit_weave(X, Z))


def _is_regular(found: Weave) -> Tensor:
    wide = found.amplitude >= AMPLITUDE[0] - OFF_AMPLITUDE
    narrow = found.amplitude <= AMPLITUDE[1] + OFF_AMPLITUDE
    sine = found.off_sine <= OFF_SINE
    in_time = (found.off_seam <= OFF_SEAM) & (found.off_end <= OFF_END)
    return wide & narrow & sine & in_time


def draw_references(Z: Tensor, size: int, generator: Generator | None = None) -> References:
    """A fresh pool of `size` >= 2 demonstrations for each condition of Z (C, 2, 2)."""
    X = demonstrate(Z.repeat_interleave(size, 0), generator).view(-1, size, HORIZON, 2)
    return References.of_one_mode(Z, X)


def score(X: Tensor, references: References) -> dict[str, float]:
    """Scores of K samples X (C, K, 16, 2), K >= 2, of each of the references' conditions.

    Returns:
        success: share of samples for which `succeeds`.
        energy_ratio: 1 + the mean over conditions of the unbiased energy distance to the
            demonstrations, divided by that which two sets of K demonstrations have by chance; in
            expectation 1 for the demonstrator, and no less for samples that are narrower.
        amplitude: mean amplitude of the fitted sines over that of the law.
        amplitude_spread, periods_spread: standard deviations of the fitted amplitudes and periods,
            over those of the law.
        off_sine, off_seam: means of what :class:`Weave` says.
        spread: `within_mode_spread`, relative to the demonstrations'.

    Raises:
        ValueError: samples of another shape or with NaN.
    """
    X, flat, tiled = references.checked(X)
    samples = X.shape[1]
    found = fit_weave(flat, tiled)
    one_mode = torch.zeros(X.shape[:2], dtype=torch.bool)
    distance = references.unbiased_energy(X).mean() / references.own_energy(samples).mean()
    return {
        "success": float(_is_regular(found).double().mean()),
        "energy_ratio": 1 + float(distance),
        "amplitude": float(found.amplitude.mean()) / (sum(AMPLITUDE) / 2),
        "amplitude_spread": float(found.amplitude.std()) / _deviation(AMPLITUDE),
        "periods_spread": float(found.periods.std()) / _deviation(PERIODS),
        "off_sine": float(found.off_sine.mean()),
        "off_seam": float(found.off_seam.mean()),
        "spread": within_mode_spread(X, one_mode) / references.spread,
    }


# ---- The task -----------------------------------------------------------------------------------


class WeaveTask(PathTask):
    """The weave as a task; arguments as `PathTask`, but for more demonstrations: amplitude,
    frequency and phase are many numbers to learn from few paths."""

    name = "weave"

    def __init__(
        self,
        *,
        size: int = 20000,
        pack: int = 4,
        seed: int = 0,
        symmetry: dict | None = None,
    ) -> None:
        super().__init__(size=size, pack=pack, seed=seed, symmetry=symmetry)

    @staticmethod
    def conditions(n: int, generator: Generator, split: str) -> Tensor:
        """Conditions Z (n, 2, 2); all splits have one law."""
        return sample_conditions(n, generator)

    demonstrate = staticmethod(demonstrate)
    draw_references = staticmethod(draw_references)
    score = staticmethod(score)
    succeeds = staticmethod(succeeds)

    def scene(self) -> dict:
        """What to draw around trajectories: limits, equal axes, a seam from start to goal. Few
        samples, since their phases differ."""
        limits = (-LIMIT, LIMIT, -LIMIT, LIMIT)
        return {"obstacles": [], "limits": limits, "equal": True, "goal": True, "samples": DRAWN}
