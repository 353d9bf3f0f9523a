"""Exact teachers: a Gaussian mixture seen as a network that was trained elsewhere, right to
rounding.

They are what samplers and conversions are measured against. The mixtures themselves, with their
formulas, stand in :mod:`fastgen.data.mixtures`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastgen._core.checks import TIME_SLACK, check_choice, check_shape
from fastgen._core.tensors import EPSILON, expand_like, in_float64, wide_dtype
from fastgen.data.mixtures import GaussianMixture
from fastgen.interpolants import (
    BaseInterpolant,
    CosineInterpolant,
    LinearInterpolant,
    VariancePreservingInterpolant,
)
from support.exact import normal

__all__ = ["D4", "ExactTeacher", "covariances", "mixture"]

# The square's symmetries: four turns, each alone and after a mirror.
TURN = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
MIRROR = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
D4 = torch.stack(
    [torch.linalg.matrix_power(TURN, k) @ m for k in range(4) for m in (MIRROR @ MIRROR, MIRROR)]
)

PATHS = {
    "linear": LinearInterpolant,
    "cosine": CosineInterpolant,
    "vp": VariancePreservingInterpolant,
}
PREDICTIONS = ("flow", "velocity", "eps", "x0", "v", "score")


class ExactTeacher(nn.Module):
    """A mixture seen as a network trained elsewhere: it has its own path, clock and prediction.

    Called as `teacher(x_s, clock, cond)` with x_s = alpha(s) x0 + sigma(s) eps and clock = s *
    time_scale, where

    | path                  | s, data at 0        | alpha, sigma                    |
    |-----------------------|---------------------|---------------------------------|
    | linear, cosine, vp,   | [0, 1]              | the interpolant's at its own    |
    | an interpolant        |                     | time 1 - s                      |
    | edm                   | [0, inf)            | 1, s                            |
    | a tensor of N betas   | [0, N - 1], the row | sqrt(sigmoid(lambda)),          |
    | of DDPM               |                     | sqrt(sigmoid(-lambda))          |

    With abar the cumulative product of 1 - betas, lambda = log(abar / (1 - abar)) at the rows and
    linear between them. With `data_at=1` (interpolants only) s is the interpolant's own time.

    | prediction | the conditional mean, given x_s, of                         |
    |------------|-------------------------------------------------------------|
    | flow       | eps - x0                                                    |
    | velocity   | dx_s/ds = alpha' x0 + sigma' eps: its sign follows          |
    |            | `data_at`; not for betas                                    |
    | eps, x0    | eps, x0                                                     |
    | v          | alpha eps - sigma x0                                        |
    | score      | -eps / sigma; taken as the gradient of the log density,     |
    |            | which is finite at sigma = 0                                |

    It has neither parameters nor buffers: `.to(dtype)` changes nothing, since the mixture stays in
    float64 and the answer takes the dtype and device of `x_s`. The defaults make it a rectified
    flow in this package's convention.

    Args:
        mixture: the law of the data.
        path, prediction: of the tables.
        data_at: 0 or 1, the network's own time of the data.
        time_scale: > 0.

    Raises:
        ValueError: for anything else, including betas outside (0, 1).
    """

    def __init__(
        self,
        mixture: GaussianMixture,
        *,
        path: str | BaseInterpolant | Tensor = "linear",
        prediction: str = "flow",
        data_at: int = 0,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("prediction", prediction, PREDICTIONS)
        if data_at not in (0, 1):
            raise ValueError(f"expected data_at to be 0 or 1, got {data_at!r}")
        if not 0 < time_scale < math.inf:
            raise ValueError(f"expected time_scale > 0, got {time_scale!r}")
        self.mixture = mixture
        self.prediction = prediction
        self.data_at = data_at
        self.time_scale = float(time_scale)
        self.path: BaseInterpolant | None = None
        self._rows: Tensor | None = None
        if isinstance(path, Tensor):
            self._rows = _log_snr(path)
            self.name = "betas"
            self._last = float(len(path) - 1)
        elif isinstance(path, BaseInterpolant):
            self.name = type(path).__name__
            self._last = 1.0
            self.path = path
        else:
            check_choice("path", path, (*PATHS, "edm"))
            self.name = path
            self._last = math.inf
            if path != "edm":
                self.path = PATHS[path]()
                self._last = 1.0
        if data_at == 1 and self.path is None:
            raise ValueError(f"expected data_at=0 for the path {self.name}, got 1")
        if prediction == "velocity" and self._rows is not None:
            raise ValueError(
                "expected a prediction other than 'velocity' for betas: a discrete path has none"
            )

    def forward(self, x_s: Tensor, clock: float | Tensor, cond: Tensor | None = None) -> Tensor:
        """The prediction at x_s (B, *shape), clock a float or (B,), cond None or (B, *shape);
        shaped like `x_s`.

        Raises:
            ValueError: for wrong shapes or a clock out of range.
            TypeError: for a float16 or bfloat16 clock.
        """
        check_shape("x_s", x_s, ("B", *self.mixture.shape))
        s = self._own_time(clock).to(x_s.device)
        if s.ndim:
            check_shape("clock", s, x_s.shape[:1])
        return self._predict(x_s, s, cond)

    def coefficients(self, clock: float | Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at `clock`, of its shape, in float64."""
        return self._coefficients(self._own_time(clock))

    @in_float64(like="x_s")
    def _predict(self, x_s: Tensor, s: Tensor, cond: Tensor | None) -> Tensor:
        alpha, sigma = self._coefficients(s)
        x0, score = self.mixture.posterior_and_score(x_s, alpha, sigma, cond)
        alpha = expand_like(alpha, x_s)
        sigma = expand_like(sigma, x_s)
        eps = -sigma * score
        match self.prediction:
            case "flow":
                return eps - x0
            case "velocity":
                d_alpha, sigma_d_sigma = (expand_like(value, x_s) for value in self._derivatives(s))
                return d_alpha * x0 - sigma_d_sigma * score
            case "eps":
                return eps
            case "x0":
                return x0
            case "v":
                return alpha * eps - sigma * x0
            case _:  # score
                return score

    def _own_time(self, clock: float | Tensor) -> Tensor:
        """s = clock / time_scale, float64, checked and clamped to the path's range."""
        if isinstance(clock, Tensor):
            if clock.dtype in (torch.bfloat16, torch.float16):
                raise TypeError(
                    f"expected clock to be a float or a float32/float64 tensor, got {clock.dtype}"
                )
            s = clock.to(wide_dtype(clock.device)) / self.time_scale
        else:
            s = torch.tensor(float(clock), dtype=torch.float64) / self.time_scale
        if s.device.type == "cpu" and s.numel():
            low, high = (float(bound) for bound in torch.aminmax(s.detach()))
            if not (low >= -TIME_SLACK and high <= self._last * (1 + TIME_SLACK)):
                raise ValueError(
                    f"expected clock / time_scale in [0, {self._last:g}], got values from {low:g} "
                    f"to {high:g} with time_scale={self.time_scale:g}"
                )
        return s.clamp(0.0, self._last)

    def _tau(self, s: Tensor) -> Tensor:
        """The interpolants' time: data at 1."""
        return s if self.data_at == 1 else 1.0 - s

    def _coefficients(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """alpha(s), sigma(s)."""
        if self.path is not None:
            tau = self._tau(s)
            return self.path.compute_alpha_t(tau)[0], self.path.compute_sigma_t(tau)[0]
        if self._rows is None:  # edm
            return torch.ones_like(s), s
        rows = self._rows.to(s)
        row = s.floor().long()
        low = rows[row]
        high = rows[(row + 1).clamp(max=len(rows) - 1)]
        log_snr = low + (s - row) * (high - low)
        return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()

    def _derivatives(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """alpha'(s) and sigma(s) sigma'(s), which is finite where sigma' is not (VP at the
        data)."""
        if self.path is None:  # edm
            return torch.zeros_like(s), s
        tau = self._tau(s)
        (_, d_alpha), (sigma, d_sigma) = (
            self.path.compute_alpha_t(tau),
            self.path.compute_sigma_t(tau),
        )
        # Below EPSILON the interpolant clamps; sigma sigma' = (alpha'/alpha) sigma^2 - drift_var
        # there.
        drift_var = self.path.compute_drift(torch.zeros_like(tau).reshape(-1), tau)[1].reshape(
            tau.shape
        )
        at_data = self.path.compute_d_alpha_alpha_ratio_t(tau) * sigma**2 - drift_var
        sigma_d_sigma = torch.where(sigma > EPSILON, sigma * d_sigma, at_data)
        return (d_alpha, sigma_d_sigma) if self.data_at == 1 else (-d_alpha, -sigma_d_sigma)


def _log_snr(betas: Tensor) -> Tensor:
    """log(abar / (1 - abar)) with abar = cumprod(1 - betas), float64 (N,)."""
    check_shape("path (betas)", betas, ("N",))
    betas = betas.detach().to("cpu", torch.float64)
    if len(betas) == 0 or not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError("expected betas in (0, 1), at least one of them")
    log_abar = (-betas).log1p().cumsum(0)
    return log_abar - (-log_abar.expm1()).log()


def covariances(count: int, dim: int) -> Tensor:
    """So many positive definite matrices (count, dim, dim), none of them diagonal."""
    root = normal(count, dim, dim, seed=3)
    return 0.05 * torch.eye(dim, dtype=torch.float64) + 0.2 * root @ root.mT / dim


def mixture(*shape: int) -> GaussianMixture:
    """Three Gaussians with full covariances, of weights 1, 2 and 3."""
    weights = torch.tensor([1.0, 2.0, 3.0])
    return GaussianMixture(
        normal(3, *shape, seed=5), covariances(3, math.prod(shape)), weights=weights
    )
