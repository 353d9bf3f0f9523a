"""Gaussian mixtures under noise: every conditional mean in closed form, for samples of any shape.

A mixture of Gaussians x0 ~ sum_k w_k N(m_k, C_k) under noise, x = alpha x0 + sigma eps, stays a
mixture of Gaussians. With C_k = U_k diag(s_k^2) U_k^T, v_k = alpha^2 s_k^2 + sigma^2 and
y_k = U_k^T (x - alpha m_k),

    responsibilities   r_k   = softmax_k(log w_k - sum(y_k^2 / v_k + log v_k) / 2)
    score              score = -sum_k r_k U_k (y_k / v_k)
    noise              E[eps | x] = -sigma score
    data               E[x0 | x]  = sum_k r_k (m_k + U_k (alpha s_k^2 / v_k) y_k)

No formula divides by alpha or by sigma, so they all hold up to alpha = 0 and sigma = 0. A condition
z shifts every mean: the law of x0 given z is that of x0 + z.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._core.checks import check_count, check_shape
from .._core.seeds import draw_normal, draw_uniform
from .._core.tensors import expand_like, in_float64, wide_dtype
from .components import checked_components, orbit_components, principal_axes

__all__ = ["GaussianMixture"]


class GaussianMixture:
    """Data x0 ~ sum_k w_k N(m_k, C_k) over samples of any shape.

    It computes in float64 and answers in the dtype and on the device of `x`. `self.means`
    (K, *shape) and `self.weights` (K,) are float64 on the CPU.

    Args:
        means: (K, *shape).
        covariances: (K, D, D) over the flattened sample, D = prod(shape), positive definite.
        stds: (K,) or a float, > 0, for C_k = std_k^2 I; give either `covariances` or `stds`.
        weights: (K,), > 0, normalised here; None for equal ones.

    Raises:
        ValueError: wrong shapes, covariances that are not symmetric and positive definite, or
            values that are not > 0.
    """

    def __init__(
        self,
        means: Tensor,
        covariances: Tensor | None = None,
        *,
        stds: Tensor | float | None = None,
        weights: Tensor | None = None,
    ) -> None:
        means, spread, weights = checked_components(means, covariances, stds, weights)
        self.means = means
        self.weights = weights
        self.shape = tuple(means.shape[1:])
        self._flat_means = means.flatten(1) if self.shape else means[:, None]
        if spread.ndim == 1:  # isotropic: every basis is an eigenbasis, so none is kept
            self._variances = (spread**2)[:, None].expand_as(self._flat_means)
            self._basis = None
            return
        self._variances, self._basis = principal_axes(spread)

    @classmethod
    def orbits(
        cls,
        means: Tensor,
        group_matrices: Tensor,
        *,
        covariances: Tensor | None = None,
        stds: Tensor | float | None = None,
        weights: Tensor | None = None,
    ) -> GaussianMixture:
        """The mixture of all g N(m_r, C_r), g in a group, equally weighted inside an orbit.

        Its law is invariant under the group. Components that coincide are merged and their weights
        added, so there may be fewer than R G of them; they follow the order of (r, g).

        Args:
            means: representatives, (R, *shape).
            group_matrices: (G, D, D), all elements of a group, orthogonal over the flattened
                sample.
            covariances, stds: of the representatives, as in the constructor.
            weights: of the orbits.

        Raises:
            ValueError: as the constructor, and for matrices that are not orthogonal or no group (up
                to 1e-6).
        """
        means, spread, weights = orbit_components(
            means, group_matrices, covariances=covariances, stds=stds, weights=weights
        )
        if spread.ndim == 1:
            return cls(means, stds=spread, weights=weights)
        return cls(means, spread, weights=weights)

    # ---- The law ---------------------------------------------------------------------------------

    def sample(
        self,
        n: int,
        cond: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw x0 (n, *shape) in `dtype`, on the device of `cond` (n, *shape) or on the CPU."""
        check_count("n", n)
        if cond is not None:
            check_shape("cond", cond, (n, *self.shape))
        u = draw_uniform((n,), device="cpu", generator=generator)
        noise = draw_normal(
            (n, self._flat_means.shape[1]), device="cpu", dtype=torch.float64, generator=generator
        )
        index = torch.searchsorted(self.weights.cumsum(0), u, right=True)
        index = index.clamp(max=len(self.weights) - 1)
        x0 = self._variances.sqrt()[index] * noise
        if self._basis is not None:
            for k, basis in enumerate(self._basis):
                x0[index == k] = x0[index == k] @ basis.T
        x0 = (x0 + self._flat_means[index]).reshape(n, *self.shape)
        if cond is None:
            return x0.to(dtype)
        return (x0.to(cond.device, wide_dtype(cond.device)) + cond).to(dtype)

    def mean(self, cond: Tensor | None = None) -> Tensor:
        """E[x0] of the flattened sample, float64: (D,), or (B, D) with a condition (B, *shape)."""
        mean = self.weights @ self._flat_means
        if cond is None:
            return mean
        check_shape("cond", cond, ("B", *self.shape))
        flat = cond.reshape(len(cond), -1).to(wide_dtype(cond.device))
        return mean.to(flat) + flat

    def component_covariances(self) -> Tensor:
        """C_k over the flattened sample: (K, D, D), float64."""
        if self._basis is None:
            return torch.diag_embed(self._variances)
        return torch.einsum("kie,ke,kje->kij", self._basis, self._variances, self._basis)

    def covariance(self) -> Tensor:
        """Cov[x0] of the flattened sample, float64 (D, D); a condition doesn't change it."""
        centred = self._flat_means - self.mean()
        between = torch.einsum("k,ki,kj->ij", self.weights, centred, centred)
        return between + torch.einsum("k,kij->ij", self.weights, self.component_covariances())

    @in_float64(like="x")
    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Log density of the data at x (B, *shape): (B,), in the dtype of `x`."""
        log_joint, _, _ = self._components(x, 1.0, 0.0, cond)
        return log_joint.logsumexp(1) - 0.5 * self._flat_means.shape[1] * math.log(2 * math.pi)

    @in_float64(like="x")
    def responsibilities(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Probability that data x (B, *shape) came from each component: (B, K) in the dtype of
        `x`."""
        return self._components(x, 1.0, 0.0, cond)[0].softmax(1)

    @in_float64(like="x")
    def mode_weights(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Share of the samples x (B, *shape) whose likeliest component is each of the K: (K,), in
        the dtype of `x`."""
        nearest = self._components(x, 1.0, 0.0, cond)[0].argmax(1)
        return torch.bincount(nearest, minlength=len(self.weights)).to(x) / len(x)

    # ---- Predictions from noisy samples ----------------------------------------------------------

    @in_float64(like="x")
    def posterior_mean(
        self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor, cond: Tensor | None = None
    ) -> Tensor:
        """E[x0 | alpha x0 + sigma eps = x]: E[x0] at alpha = 0, x / alpha at sigma = 0.

        Args:
            x: (B, *shape).
            alpha, sigma: floats or (B,), not both 0.
            cond: None or (B, *shape), added to every mean.

        Returns:
            (B, *shape), in the dtype of `x`.

        Raises:
            ValueError: wrong shapes, or alpha = sigma = 0 (floats and CPU tensors are checked).
        """
        return self.posterior_and_score(x, alpha, sigma, cond)[0]

    @in_float64(like="x")
    def noise_mean(
        self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor, cond: Tensor | None = None
    ) -> Tensor:
        """E[eps | alpha x0 + sigma eps = x] = -sigma score: x / sigma at alpha = 0, 0 at sigma = 0.

        Arguments, result and errors as `posterior_mean`.
        """
        score = self.posterior_and_score(x, alpha, sigma, cond)[1]
        return -_per_sample("sigma", sigma, x) * score

    @in_float64(like="x")
    def score(
        self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor, cond: Tensor | None = None
    ) -> Tensor:
        """Gradient of the log density of alpha x0 + sigma eps at x.

        Arguments, result and errors as `posterior_mean`.
        """
        return self.posterior_and_score(x, alpha, sigma, cond)[1]

    @in_float64(like="x_t")
    def flow(self, x_t: Tensor, t: float | Tensor, cond: Tensor | None = None) -> Tensor:
        """Rectified flow E[eps - x0 | x_t] for x_t = (1 - t) x0 + t eps.

        Args:
            x_t: (B, *shape).
            t: float or (B,), in [0, 1], 0 = data.
            cond: None or (B, *shape), added to every mean.

        Returns:
            (B, *shape), in the dtype of `x_t`.

        Raises:
            ValueError: wrong shapes, or t outside [0, 1].
            TypeError: a t below float32.
        """
        x0, score = self.posterior_and_score(x_t, 1.0 - t, t, cond, "x_t")
        return -_per_sample("t", t, x_t) * score - x0

    @in_float64(like="x_t")
    def predict_x0(self, x_t: Tensor, t: float | Tensor, cond: Tensor | None = None) -> Tensor:
        """E[x0 | x_t] for x_t = (1 - t) x0 + t eps. Arguments, result and errors as `flow`."""
        return self.posterior_and_score(x_t, 1.0 - t, t, cond, "x_t")[0]

    # ---- The formulas at the head of this file, in float64 ---------------------------------------

    def _components(
        self,
        x: Tensor,
        alpha: float | Tensor,
        sigma: float | Tensor,
        cond: Tensor | None,
        name: str = "x",
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of each component at x: log w_k - sum(y^2 / v + log v) / 2 (B, K), y (B, K, D) and v
        (B or 1, K, D)."""
        check_shape(name, x, ("B", *self.shape))
        alpha = _per_sample("alpha", alpha, x)
        sigma = _per_sample("sigma", sigma, x)
        if x.device.type == "cpu" and bool(((alpha == 0) & (sigma == 0)).any()):
            raise ValueError("expected alpha or sigma to be other than 0, got alpha = sigma = 0")
        if cond is not None:
            check_shape("cond", cond, x.shape)
            x = x - alpha * cond
        alpha = alpha.reshape(-1, 1, 1)
        sigma = sigma.reshape(-1, 1, 1)
        y = x.reshape(len(x), 1, -1) - alpha * self._flat_means.to(x)
        if self._basis is not None:
            y = torch.einsum("kde,bkd->bke", self._basis.to(x), y)
        v = alpha**2 * self._variances.to(x) + sigma**2
        return self.weights.to(x).log() - 0.5 * (y**2 / v + v.log()).sum(2), y, v

    def posterior_and_score(
        self,
        x: Tensor,
        alpha: float | Tensor,
        sigma: float | Tensor,
        cond: Tensor | None,
        name: str = "x",
    ) -> tuple[Tensor, Tensor]:
        """E[x0 | x] and the score, shaped like `x`."""
        log_joint, y, v = self._components(x, alpha, sigma, cond, name)
        r = log_joint.softmax(1)
        gain = _per_sample("alpha", alpha, x).reshape(-1, 1, 1) * self._variances.to(x) / v
        x0 = (r @ self._flat_means.to(x) + _combined(self._basis, r, gain * y)).reshape(x.shape)
        score = -_combined(self._basis, r, y / v).reshape(x.shape)
        return (x0 if cond is None else x0 + cond), score


def _combined(basis: Tensor | None, r: Tensor, y: Tensor) -> Tensor:
    """sum_k r_k U_k y_k, (B, D); every U_k is the identity where `basis` is None."""
    if basis is None:
        return torch.einsum("bk,bke->be", r, y)
    return torch.einsum("kde,bke->bd", basis.to(y), r[..., None] * y)


def _per_sample(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    """`value`, a float or one number for each sample, in the dtype of x and broadcastable to it."""
    if isinstance(value, Tensor):
        if value.ndim:
            check_shape(name, value, x.shape[:1])
        return expand_like(value.to(x), x)
    return x.new_full((), value)
