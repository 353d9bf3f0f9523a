"""The networks of sbi's posterior estimators, flows (FMPE) and scores (NPSE), in plain torch.

`build()` and `build_score(path)` have the sizes and the names of weights of tests/data/posterior,
as sbi 0.27 saved them. They are called by sbi's keywords, `network(input=theta_t, condition=x,
time=t)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["PosteriorEstimator", "ScoreEstimator", "build", "build_score"]

# The ends of beta (VP and sub-VP) and of sigma (VE), as sbi has them unless told otherwise.
BETAS = (0.01, 10.0)
SIGMAS = (1e-4, 10.0)
SIZES = {"theta": 2, "x": 3, "hidden": 32, "layers": 3, "times": 16}


class Standardise(nn.Module):
    """(x - mean) / std of the simulated observations."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("_mean", torch.zeros(size))
        self.register_buffer("_std", torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self._mean) / self._std


class Times(nn.Module):
    """sin(w t) and cos(w t) in turn, w from 1 down to almost 1/1000."""

    def __init__(self, size: int) -> None:
        super().__init__()
        exponents = torch.arange(0, size, 2) / size
        self.register_buffer("div_term", torch.exp(-math.log(1000.0) * exponents))

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.div_term
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


class Field(nn.Module):
    """A residual MLP of theta_t, x and t, all standardised or embedded."""

    def __init__(self, theta: int, x: int, hidden: int, layers: int, times: int) -> None:
        super().__init__()
        self.input_layer = nn.Linear(theta, hidden)
        self.condition_layer = nn.Linear(x, hidden)
        self.input_merge_layer = nn.Linear(2 * hidden, hidden)
        self.time_emb = Times(times)
        self.time_linear_layer = nn.Linear(times, hidden)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.layers_norm = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(layers))
        self.output_layer = nn.Linear(hidden, theta)

    def forward(self, theta_t: Tensor, x: Tensor, t: Tensor) -> Tensor:
        both = torch.cat([self.input_layer(theta_t), self.condition_layer(x)], -1)
        h = functional.gelu(self.input_merge_layer(functional.gelu(both)))
        about_t = self.time_linear_layer(self.time_emb(t))
        for layer, norm in zip(self.layers, self.layers_norm, strict=True):
            h = norm(functional.gelu(layer(h)) + about_t + h)
        return self.output_layer(h)


class PosteriorEstimator(nn.Module):
    """The field eps - theta of theta_t = (1 - t) theta + t eps given x, all in the simulator's
    units: theta (B, theta), x (B, x), t (B,).

    The network sees theta_t less its mean, in units of its standard deviation, for theta of mean
    m and standard deviation s: (1 - t) m and sqrt((1 - t)^2 s^2 + t^2 + 1e-6). Its answer is in
    units of sqrt(1 + s^2) about -m, the moments of eps - theta.
    """

    def __init__(self, theta: int, x: int, hidden: int, layers: int, times: int) -> None:
        super().__init__()
        self.net = Field(theta, x, hidden, layers, times)
        self._embedding_net = nn.Sequential(Standardise(x), nn.Identity())
        self.register_buffer("mean_0", torch.zeros(theta))
        self.register_buffer("std_0", torch.ones(theta))
        # What sbi's sampler uses around the network: its noise, and an affine map that is off.
        self.register_buffer("_mean_base", torch.zeros(1, theta))
        self.register_buffer("_std_base", torch.ones(1, theta))
        self.register_buffer("_theta_shift", torch.zeros(1, theta))
        self.register_buffer("_theta_scale", torch.ones(1, theta))
        self.register_buffer("_compose_standardization", torch.tensor(False))

    def forward(self, input: Tensor, condition: Tensor, time: Tensor) -> Tensor:
        rest = 1.0 - time[:, None]
        variance = (rest * self.std_0) ** 2 + time[:, None] ** 2 + 1e-6
        seen = (input - rest * self.mean_0) / variance.sqrt()
        answer = self.net(seen, self._embedding_net(condition), time)
        return answer * (1.0 + self.std_0**2).sqrt() - self.mean_0


class ScoreEstimator(PosteriorEstimator):
    """The score of theta_s = alpha theta + sigma eps given x, on a path of score-SDE; theta as
    `standardised` makes it.

    The network sees theta_s as above, and sigma in place of the time. What it adds to the score of
    N(mean, std^2) is in units of alpha / sigma.
    """

    def __init__(self, path: str, **sizes: int) -> None:
        super().__init__(**sizes)
        self.path = path

    def forward(self, input: Tensor, condition: Tensor, time: Tensor) -> Tensor:
        alpha, sigma = (value[:, None] for value in self.coefficients(time))
        std = (alpha**2 * self.std_0**2 + sigma**2).sqrt()
        seen = (input - alpha * self.mean_0) / std
        answer = self.net(seen, self._embedding_net(condition), sigma.flatten())
        return -alpha / sigma * answer - seen / std

    def coefficients(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) of the path at times (B,)."""
        if self.path == "ve":
            low, high = SIGMAS
            return torch.ones_like(time), low * (high / low) ** time
        low, high = BETAS
        integral = low * time + (high - low) * time**2 / 2
        variance = 1.0 - torch.exp(-integral)
        return torch.exp(-integral / 2), variance if self.path == "subvp" else variance.sqrt()

    def standardised(self, theta: Tensor) -> Tensor:
        """theta (B, theta) less its mean, in units of its standard deviation; `to_z` of sbi."""
        return (theta - self._theta_shift) / self._theta_scale


def build() -> PosteriorEstimator:
    """The flow of tests/data/posterior, untrained."""
    return PosteriorEstimator(**SIZES)


def build_score(path: str) -> ScoreEstimator:
    """A score of tests/data/posterior, untrained: that on the path ve, vp or subvp."""
    return ScoreEstimator(path, **SIZES)
