"""Interpolants: Gaussian paths between noise and data on their own clock, **noise at t = 0 and data
at t = 1**.

    x_t = alpha(t) x1 + sigma(t) x0,    x0 noise, x1 data,    alpha: 0 -> 1,    sigma: 1 -> 0,
    velocity u_t = alpha'(t) x1 + sigma'(t) x0.

| ...Interpolant     | alpha                                             | sigma             |
|--------------------|---------------------------------------------------|-------------------|
| Linear             | t                                                 | 1 - t             |
| Cosine             | sin(pi t / 2)                                     | cos(pi t / 2)     |
| VariancePreserving | exp(-(1-t)^2 (s_max - s_min)/4 - (1-t) s_min / 2) | sqrt(1 - alpha^2) |

The rest of the package runs the other way, with noise at 1. A time here and a time there belong
together if they have the same noise ratio sigma / alpha, which every interpolant can invert.

Times are floats or float32/float64 tensors, (B,) where an x of shape (B, ...) is given. All
arithmetic is float64 and is cast back. Every method is finite on all of [0, 1]: where a formula
divides by something that vanishes at an end, the denominator is clamped at `EPSILON` = 1e-6, and
the method says so.

References:
    Albergo et al., Stochastic Interpolants, 2023, arXiv:2303.08797. Ma et al., SiT, 2024,
    arXiv:2401.08740. Song et al., Score-Based Generative Modeling through SDEs, 2020,
    arXiv:2011.13456 (VP).
"""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor

from ._core.checks import at_hand, check_choice, check_shape
from ._core.tensors import EPSILON, expand_like, in_float64, wide_dtype

__all__ = [
    "DIFFUSION_FORMS",
    "BaseInterpolant",
    "CosineInterpolant",
    "LinearInterpolant",
    "VariancePreservingInterpolant",
]

DIFFUSION_FORMS = ("constant", "SBDM", "sigma", "linear", "decreasing", "increasing-decreasing")
# Bisection halves the bracket this often: enough for every digit of a float64 in [0, 1].
BISECTIONS = 60


class BaseInterpolant(abc.ABC):
    """A path x_t = alpha(t) x1 + sigma(t) x0; subclasses give alpha, sigma and their derivatives.

    `alpha` must increase and `sigma` decrease strictly, so that the noise ratio sigma / alpha
    decreases.
    """

    @abc.abstractmethod
    def _alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and its derivative at float64 times."""

    @abc.abstractmethod
    def _sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sigma and its derivative at float64 times."""

    def _alpha_ratio(self, t: Tensor) -> Tensor:
        """alpha' / alpha."""
        alpha, d_alpha = self._alpha(t)
        return d_alpha / alpha.clamp(min=EPSILON)

    def _noise(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """x0 = (alpha' x - alpha v) / (alpha' sigma - alpha sigma'), whose determinant is
        positive."""
        alpha, d_alpha = self._alpha(t)
        sigma, d_sigma = self._sigma(t)
        return (d_alpha * x - alpha * velocity) / (d_alpha * sigma - alpha * d_sigma)

    def _score(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """-x0 / sigma."""
        return -self._noise(velocity, x, t) / self._sigma(t)[0].clamp(min=EPSILON)

    def _drift_var(self, t: Tensor) -> Tensor:
        """(alpha' / alpha) sigma^2 - sigma sigma'."""
        sigma, d_sigma = self._sigma(t)
        return self._alpha_ratio(t) * sigma**2 - sigma * d_sigma

    def _sbdm(self, t: Tensor) -> Tensor:
        """drift_var / sigma = (alpha' / alpha) sigma - sigma': here sigma cancels, so nothing is
        divided by it."""
        sigma, d_sigma = self._sigma(t)
        return self._alpha_ratio(t) * sigma - d_sigma

    def _time_of_ratio(self, ratio: Tensor) -> Tensor:
        """The t with sigma(t) = ratio alpha(t), by bisection of the decreasing function
        sigma - ratio alpha."""
        low = torch.zeros_like(ratio)
        high = torch.ones_like(ratio)
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            later = self._sigma(middle)[0] > ratio * self._alpha(middle)[0]
            low = torch.where(later, middle, low)
            high = torch.where(later, high, middle)
        return 0.5 * (low + high)

    # ---- Public methods --------------------------------------------------------------------------

    @in_float64(like="t")
    def compute_alpha_t(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Data coefficient and its derivative: (alpha, alpha'), shaped like `t`, in its dtype."""
        return self._alpha(_tensor(t))

    @in_float64(like="t")
    def compute_sigma_t(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Noise coefficient and its derivative: (sigma, sigma'), shaped like `t`, in its dtype."""
        return self._sigma(_tensor(t))

    @in_float64(like="t")
    def compute_d_alpha_alpha_ratio_t(self, t: Tensor) -> Tensor:
        """alpha' / alpha, shaped like `t`; the denominator is clamped at 1e-6 where alpha vanishes
        (t = 0)."""
        return self._alpha_ratio(_tensor(t))

    @in_float64(like="x1")
    def interpolate(self, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Point on the path and its velocity: x_t = alpha x1 + sigma x0, u_t = alpha' x1 + sigma'
        x0.

        Args:
            x0: noise, shape (B, ...).
            x1: data, the same shape.
            t: float or (B,), in [0, 1].

        Returns:
            (x_t, u_t), in the dtype of `x1`.

        Raises:
            ValueError: if shapes differ or t leaves [0, 1].
            TypeError: if t has less than float32.
        """
        check_shape("x0", x0, x1.shape)
        t = expand_like(t, x1)
        alpha, d_alpha = self._alpha(t)
        sigma, d_sigma = self._sigma(t)
        return alpha * x1 + sigma * x0, d_alpha * x1 + d_sigma * x0

    @in_float64(like="x")
    def compute_drift(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Drift of the path as a diffusion: the velocity is -drift_mean + drift_var * score.

            drift_mean = -(alpha' / alpha) x,
            drift_var  = (alpha' / alpha) sigma^2 - sigma sigma'.

        Args:
            x: state, shape (B, ...).
            t: float or (B,), in [0, 1]. alpha in the denominator is clamped at 1e-6.

        Returns:
            drift_mean shaped like `x`, drift_var broadcastable against it, in the dtype of `x`.
        """
        t = expand_like(t, x)
        return -self._alpha_ratio(t) * x, self._drift_var(t)

    @in_float64(like="x")
    def compute_diffusion(
        self, x: Tensor, t: Tensor, form: str = "SBDM", norm: float = 1.0
    ) -> Tensor:
        """Diffusion coefficient of a stochastic sampler.

        | form                  | value                                                       |
        |-----------------------|-------------------------------------------------------------|
        | constant              | norm                                                        |
        | SBDM                  | norm drift_var / sigma = norm ((alpha'/alpha) sigma - sigma') |
        | sigma                 | norm sigma                                                  |
        | linear                | norm (1 - t)                                                |
        | decreasing            | norm (1 - t)^2                                              |
        | increasing-decreasing | norm 4 t (1 - t)                                            |

        Args:
            x: state, shape (B, ...).
            t: float or (B,), in [0, 1].
            form: a row of the table.
            norm: factor.

        Returns:
            broadcastable against `x`, in its dtype.

        Raises:
            ValueError: for an unknown form.
        """
        check_choice("form", form, DIFFUSION_FORMS)
        t = expand_like(t, x)
        match form:
            case "constant":
                value = torch.ones_like(t)
            case "SBDM":
                value = self._sbdm(t)
            case "sigma":
                value = self._sigma(t)[0]
            case "linear":
                value = 1.0 - t
            case "decreasing":
                value = (1.0 - t) ** 2
            case _:  # increasing-decreasing
                value = 4.0 * t * (1.0 - t)
        return norm * value

    @in_float64(like="x")
    def velocity_to_noise(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Noise implied by a velocity: x0 = (alpha' x - alpha v) / (alpha' sigma - alpha sigma').

        Args:
            velocity: predicted u_t, shape (B, ...).
            x: x_t, the same shape.
            t: float or (B,), in [0, 1].

        Returns:
            x0 in the dtype of `x`.
        """
        check_shape("velocity", velocity, x.shape)
        return self._noise(velocity, x, expand_like(t, x))

    @in_float64(like="x")
    def velocity_to_score(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Score implied by a velocity: -x0 / sigma, sigma clamped at 1e-6 (t = 1). Arguments as
        `velocity_to_noise`."""
        check_shape("velocity", velocity, x.shape)
        return self._score(velocity, x, expand_like(t, x))

    @in_float64(like="x")
    def score_to_velocity(self, score: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Velocity implied by a score: (alpha' / alpha) x + drift_var * score.

        At t = 0 a score says nothing about the velocity; there alpha in the denominator is clamped
        at 1e-6.

        Args:
            score: predicted score of x_t, shape (B, ...).
            x: x_t, the same shape.
            t: float or (B,), in [0, 1].

        Returns:
            u_t in the dtype of `x`.
        """
        check_shape("score", score, x.shape)
        t = expand_like(t, x)
        return self._alpha_ratio(t) * x + self._drift_var(t) * score

    def time_of_noise_ratio(self, ratio: float | Tensor) -> float | Tensor:
        """The t with sigma(t) / alpha(t) = ratio; the inverse of the noise ratio.

        Args:
            ratio: non-negative, any shape; infinity is pure noise.

        Returns:
            t in [0, 1], of the type, shape and dtype of `ratio`. A ratio above the path's largest,
            that at t = 0, gives t = 0.

        Raises:
            ValueError: for a negative ratio (floats and CPU tensors are checked, but not while a
                network is compiled, exported or traced).
        """
        if isinstance(ratio, Tensor):
            if at_hand(ratio) and not bool((ratio >= 0).all()):
                raise ValueError(f"expected ratio >= 0, got {ratio.min().item():g}")
            return self._time_of_ratio(ratio.to(wide_dtype(ratio.device))).to(ratio.dtype)
        if not ratio >= 0:
            raise ValueError(f"expected ratio >= 0, got {ratio}")
        return self._time_of_ratio(torch.tensor(ratio, dtype=torch.float64)).item()


class LinearInterpolant(BaseInterpolant):
    """Straight path (rectified flow): alpha = t, sigma = noise_std (1 - t).

    Args:
        noise_std: standard deviation of the noise that the path starts from. The velocity then ends
            there, too: it is x1 - noise_std x0.

    Raises:
        ValueError: a noise_std that isn't a finite number > 0.
    """

    def __init__(self, noise_std: float = 1.0) -> None:
        if not 0.0 < noise_std < math.inf:
            raise ValueError(f"expected a finite noise_std > 0, got {noise_std}")
        self.noise_std = float(noise_std)

    def _alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t, torch.ones_like(t)

    def _sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.noise_std * (1.0 - t), torch.full_like(t, -self.noise_std)

    def _time_of_ratio(self, ratio: Tensor) -> Tensor:
        return self.noise_std / (self.noise_std + ratio)


class CosineInterpolant(BaseInterpolant):
    """Path on the circle, alpha^2 + sigma^2 = 1: alpha = sin(pi t / 2), sigma = cos(pi t / 2)."""

    def _alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = math.pi / 2 * t
        return torch.sin(angle), math.pi / 2 * torch.cos(angle)

    def _sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = math.pi / 2 * t
        return torch.cos(angle), -math.pi / 2 * torch.sin(angle)

    def _time_of_ratio(self, ratio: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan2(torch.ones_like(ratio), ratio)


class VariancePreservingInterpolant(BaseInterpolant):
    """The VP diffusion with linear beta(t) = sigma_min + (1 - t) (sigma_max - sigma_min).

        log alpha = -(1 - t)^2 (sigma_max - sigma_min) / 4 - (1 - t) sigma_min / 2,
        sigma     = sqrt(1 - alpha^2).

    It does not reach pure noise: at t = 0 the noise ratio is finite (152 with the defaults). At
    t = 1 sigma' and the SBDM coefficient would be infinite; sigma in their denominator is clamped
    at 1e-6.

    Args:
        sigma_min, sigma_max: beta at the data and at the noise end, 0 < sigma_min <= sigma_max.
    """

    def __init__(self, sigma_min: float = 0.1, sigma_max: float = 20.0) -> None:
        if not 0 < sigma_min <= sigma_max < math.inf:
            raise ValueError(
                f"expected 0 < sigma_min <= sigma_max, got sigma_min={sigma_min}, "
                f"sigma_max={sigma_max}"
            )
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def _beta(self, t: Tensor) -> Tensor:
        return self.sigma_min + (1.0 - t) * (self.sigma_max - self.sigma_min)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return (
            -((1.0 - t) ** 2) * (self.sigma_max - self.sigma_min) / 4
            - (1.0 - t) * self.sigma_min / 2
        )

    def _alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = torch.exp(self._log_alpha(t))
        return alpha, alpha * self._beta(t) / 2

    def _sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = self._log_alpha(t)
        # 1 - alpha^2 without cancellation near the data.
        sigma = torch.sqrt(-torch.expm1(2 * log_alpha))
        return sigma, -torch.exp(2 * log_alpha) * self._beta(t) / 2 / sigma.clamp(min=EPSILON)

    def _alpha_ratio(self, t: Tensor) -> Tensor:
        return self._beta(t) / 2

    # The conversions in closed form: with alpha' / alpha = beta / 2 the determinant of `_noise` is
    # alpha beta / (2 sigma), and sigma cancels in all of them.

    def _noise(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return -self._sigma(t)[0] * self._score(velocity, x, t)

    def _score(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return 2 * velocity / self._beta(t) - x

    def _drift_var(self, t: Tensor) -> Tensor:
        return self._beta(t) / 2

    def _sbdm(self, t: Tensor) -> Tensor:
        return self._beta(t) / 2 / self._sigma(t)[0].clamp(min=EPSILON)

    def _time_of_ratio(self, ratio: Tensor) -> Tensor:
        # log alpha = -L, with L = log(1 + ratio^2) / 2, is quadratic in u = 1 - t. Its root is
        # written so that no two numbers that are nearly the same are subtracted.
        large = torch.hypot(torch.ones_like(ratio), ratio).log()
        level = torch.where(ratio < 1.0, 0.5 * torch.log1p(ratio.clamp(max=1.0) ** 2), large)
        half = self.sigma_min / 2
        slope = self.sigma_max - self.sigma_min
        u = 2 * level / (half + torch.sqrt(half**2 + slope * level))
        return torch.where(level.isinf(), 0.0, (1.0 - u).clamp(min=0.0))


def _tensor(t: float | Tensor) -> Tensor:
    return t if isinstance(t, Tensor) else torch.tensor(float(t), dtype=torch.float64)
