"""Teachers whose flow, data prediction and ODE solution are known in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class GaussianTeacher(nn.Module):
    """The exact flow of data ~ N(mean + cond, std^2) in every dimension; `cond` is None or (B,).

    x_t ~ N((1 - t) m, v) with v = (1 - t)^2 std^2 + t^2, and the ODE dx/dt = flow carries quantiles
    to quantiles.
    """

    def __init__(self, mean: float = 0.7, std: float = 0.4) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def moments(self, t: Tensor, cond: Tensor | None, ndim: int) -> tuple[Tensor, Tensor, Tensor]:
        t = t.reshape(-1, *(1,) * (ndim - 1))
        m = self.mean if cond is None else self.mean + cond.reshape(-1, *(1,) * (ndim - 1))
        return t, (1 - t) * m, (1 - t) ** 2 * self.std**2 + t**2

    def predict(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
        """Conditional means of x0 and eps given x_t."""
        t, mean_t, v = self.moments(t, cond, x_t.ndim)
        m = self.mean if cond is None else self.mean + cond.reshape(-1, *(1,) * (x_t.ndim - 1))
        return m + (1 - t) * self.std**2 / v * (x_t - mean_t), t / v * (x_t - mean_t)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        x0, eps = self.predict(x_t, t, cond)
        return eps - x0

    def carry(self, x: Tensor, t: float, s: float, cond: Tensor | None = None) -> Tensor:
        """The ODE's solution at time `s` from `x` at time `t`."""
        _, mean_t, v_t = self.moments(torch.tensor(t, dtype=x.dtype), cond, x.ndim)
        _, mean_s, v_s = self.moments(torch.tensor(s, dtype=x.dtype), cond, x.ndim)
        return mean_s + (v_s / v_t).sqrt() * (x - mean_t)


def slope(errors: dict[int, float]) -> float:
    """Order of convergence: minus the slope of log error on log steps, by least squares."""
    xs = [math.log(n) for n in errors]
    ys = [math.log(e) for e in errors.values()]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return -covariance / sum((x - x_mean) ** 2 for x in xs)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers of a fixed seed."""
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class ConjugatedTeacher(GaussianTeacher):
    """The Gaussian flow seen through y = sinh(x): nonlinear in the state, so no solver is better
    than its order."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return (1 + x_t**2).sqrt() * super().forward(torch.asinh(x_t), t, cond)

    def carry(self, x: Tensor, t: float, s: float, cond: Tensor | None = None) -> Tensor:
        return torch.sinh(super().carry(torch.asinh(x), t, s, cond))


class TrainableGaussian(GaussianTeacher):
    """The exact flow of N(mean, std^2) with trainable moments: a fake score that can be perfect."""

    def __init__(self, mean: float, std: float) -> None:
        nn.Module.__init__(self)
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.log_std = nn.Parameter(torch.tensor(std, dtype=torch.float64).log())

    @property
    def std(self) -> Tensor:
        return self.log_std.exp()


class Affine(nn.Module):
    """A one-step student x0 = a noise + b, spoken as a flow."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(-0.5, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, cond: None) -> Tensor:
        t = t[:, None]
        return (x_t - (self.a * x_t / t + self.b)) / t
