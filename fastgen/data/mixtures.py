"""Gaussian mixtures under noise: every conditional mean in closed form, for samples of any shape.

A mixture of Gaussians x0 ~ sum_k w_k N(m_k, C_k) under noise, x = alpha x0 + sigma eps, stays a
mixture of Gaussians. With C_k = U_k diag(s_k^2) U_k^T, v_k = alpha^2 s_k^2 + sigma^2 and y_k =
U_k^T (x - alpha m_k),

    responsibilities   r_k   = softmax_k(log w_k - sum(y_k^2 / v_k + log v_k) / 2)
    score              score = -sum_k r_k U_k (y_k / v_k)
    noise              E[eps | x] = -sigma score
    data               E[x0 | x]  = sum_k r_k (m_k + U_k (alpha s_k^2 / v_k) y_k)

No formula divides by alpha or by sigma, so all hold up to alpha = 0 and sigma = 0. A condition z
shifts every mean: the law of x0 given z is that of x0 + z.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._core.checks import check_count, check_shape
from .._core.seeds import draw_normal, draw_uniform
from .._core.tensors import expand_like, in_float64, wide_dtype

__all__ = ["GaussianMixture"]

# Relative slack of matrices that should be symmetric, orthogonal or equal: they may come from
# float32.
SLACK = 1e-6


class GaussianMixture:
    """Data x0 ~ sum_k w_k N(m_k, C_k) over samples of any shape; one component is a Gaussian.

    Computes in float64 and answers in the dtype and on the device of `x`; `self.means` (K, *shape)
    and `self.weights` (K,) are float64 on the CPU.

    Args:
        means: (K, *shape).
        covariances: (K, D, D) over the flattened sample, D = prod(shape), positive definite.
        stds: (K,) or a float, > 0, for C_k = std_k^2 I; exactly one of `covariances` and `stds`.
        weights: (K,), > 0, normalised here; None: equal.

    Raises:
        ValueError: for wrong shapes, covariances that are not symmetric and positive definite, or
            values not > 0.
    """

    def __init__(
        self,
        means: Tensor,
        covariances: Tensor | None = None,
        *,
        stds: Tensor | float | None = None,
        weights: Tensor | None = None,
    ) -> None:
        self.means, spread, self.weights = _parameters(means, covariances, stds, weights)
        self.shape = tuple(self.means.shape[1:])
        self._flat_means = self.means.flatten(1) if self.shape else self.means[:, None]
        if spread.ndim == 1:  # isotropic: every basis is an eigenbasis, so none is kept
            self._variances = (spread**2)[:, None].expand_as(self._flat_means)
            self._basis = None
            return
        self._variances, self._basis = torch.linalg.eigh(0.5 * (spread + spread.mT))
        least = self._variances[:, 0] / self._variances[:, -1].abs()
        if not bool((least > spread.shape[-1] * torch.finfo(torch.float64).eps).all()):
            raise ValueError(
                "expected covariances to be positive definite, got eigenvalues from "
                f"{self._variances.min():g} to {self._variances.max():g}"
            )

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
        """The mixture of all g N(m_r, C_r), equally weighted inside an orbit: its law is invariant
        under the group.

        Components that coincide (the orbit of a mean with a stabiliser meets itself) are merged and
        their weights added, so `means` may have fewer than R G rows; they follow the order of (r,
        g).

        Args:
            means: representatives, (R, *shape).
            group_matrices: (G, D, D), all elements of a group, orthogonal over the flattened
                sample.
            covariances, stds, weights: of the representatives, as in the constructor; `weights` are
                those of orbits.

        Raises:
            ValueError: also if the matrices are not orthogonal or are not a group (up to 1e-6).
        """
        means, spread, weights = _parameters(means, covariances, stds, weights)
        dim = math.prod(means.shape[1:])
        check_shape("group_matrices", group_matrices, ("G", dim, dim))
        group = group_matrices.detach().to("cpu", torch.float64)
        _check_group(group)
        moved = torch.einsum("gij,rj->rgi", group, means.reshape(-1, dim)).reshape(-1, dim)
        if spread.ndim == 1:
            moved_spread = spread.repeat_interleave(len(group))
        else:
            moved_spread = torch.einsum("gij,rjk,glk->rgil", group, spread, group).reshape(
                -1, dim, dim
            )
        first = (_close(moved, moved) & _close(moved_spread, moved_spread)).int().argmax(1)
        kept, index = first.unique(return_inverse=True)
        merged = weights.new_zeros(len(kept)).index_add(
            0, index, weights.repeat_interleave(len(group))
        )
        where = moved[kept].reshape(-1, *means.shape[1:])
        isotropic = spread.ndim == 1
        if isotropic:
            return cls(where, stds=moved_spread[kept], weights=merged)
        return cls(where, moved_spread[kept], weights=merged)

    # ---- The law ---------------------------------------------------------------------------------

    def sample(
        self,
        n: int,
        cond: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw x0, (n, *shape) in `dtype`, on the device of `cond` (n, *shape), else on the CPU."""
        check_count("n", n)
        if cond is not None:
            check_shape("cond", cond, (n, *self.shape))
        u = draw_uniform((n,), device="cpu", generator=generator)
        noise = draw_normal(
            (n, self._flat_means.shape[1]), device="cpu", dtype=torch.float64, generator=generator
        )
        index = torch.searchsorted(self.weights.cumsum(0), u, right=True).clamp(
            max=len(self.weights) - 1
        )
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
        """Probability that data x (B, *shape) came from each component: (B, K), in the dtype of
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
        """E[x0 | alpha x0 + sigma eps = x]: the mean at alpha = 0, x / alpha at sigma = 0.

        Args:
            x: (B, *shape).
            alpha, sigma: floats or (B,), not both 0.
            cond: None or (B, *shape), added to every mean.

        Returns:
            (B, *shape), in the dtype of `x`.

        Raises:
            ValueError: for wrong shapes, or alpha = sigma = 0 (floats and CPU tensors are checked).
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
        """Gradient of the log density of alpha x0 + sigma eps at x. Arguments and errors as
        `posterior_mean`."""
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
            ValueError: for wrong shapes or t outside [0, 1].      TypeError: if t has less than float32.
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
        """log w_k - sum(y^2 / v + log v) / 2 (B, K); y (B, K, D); v (B or 1, K, D)."""
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
        x0 = (r @ self._flat_means.to(x) + self._combine(r, gain * y)).reshape(x.shape)
        score = -self._combine(r, y / v).reshape(x.shape)
        return (x0 if cond is None else x0 + cond), score

    def _combine(self, r: Tensor, y: Tensor) -> Tensor:
        """sum_k r_k U_k y_k, (B, D)."""
        if self._basis is None:
            return torch.einsum("bk,bke->be", r, y)
        return torch.einsum("kde,bke->bd", self._basis.to(y), r[..., None] * y)


# ---- Helpers -------------------------------------------------------------------------------------


def _parameters(
    means: Tensor, covariances: Tensor | None, stds: Tensor | float | None, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Checked float64 copies: means (K, *shape), stds (K,) or covariances (K, D, D), normalised
    weights (K,)."""
    if not isinstance(means, Tensor) or means.ndim == 0 or means.numel() == 0:
        got = tuple(means.shape) if isinstance(means, Tensor) else type(means).__name__
        raise ValueError(f"expected means of shape (K, *shape), not empty, got {got}")
    count = len(means)
    dim = math.prod(means.shape[1:])
    if (covariances is None) == (stds is None):
        raise ValueError(
            f"expected either covariances or stds, got {'neither' if stds is None else 'both'}"
        )
    if covariances is not None:
        check_shape("covariances", covariances, (count, dim, dim))
        spread = covariances.detach().to("cpu", torch.float64, copy=True)
        if not bool((spread - spread.mT).abs().max() <= SLACK * spread.abs().max()):
            raise ValueError("expected covariances to be symmetric and finite")
    else:
        spread = (
            torch.full((count,), stds, dtype=torch.float64)
            if isinstance(stds, int | float)
            else stds
        )
        spread = _positive("stds", spread, count)
    weights = torch.ones(count) if weights is None else weights
    weights = _positive("weights", weights, count)
    means = means.detach().to("cpu", torch.float64, copy=True)
    if not bool(means.isfinite().all()):
        raise ValueError("expected means to be finite")
    return means, spread, weights / weights.sum()


def _positive(name: str, values: Tensor | None, count: int) -> Tensor:
    """`values` (count,) as float64 on the CPU; refused unless finite and > 0."""
    check_shape(name, values, (count,))  # pyright: ignore[reportArgumentType]
    assert values is not None
    values = values.detach().to("cpu", torch.float64, copy=True)
    if not bool(((values > 0) & values.isfinite()).all()):
        raise ValueError(
            f"expected {name} > 0, got values from {values.min():g} to {values.max():g}"
        )
    return values


def _per_sample(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    """`value`, a float or one number a sample, broadcastable against `x` and of its dtype."""
    if isinstance(value, Tensor):
        if value.ndim:
            check_shape(name, value, x.shape[:1])
        return expand_like(value.to(x), x)
    return x.new_full((), value)


def _close(a: Tensor, b: Tensor) -> Tensor:
    """Which rows of a (N, ...) and b (M, ...) are equal up to `SLACK` of the largest entry: (N, M)
    bool."""
    distance = torch.cdist(
        a.reshape(len(a), -1), b.reshape(len(b), -1), compute_mode="donot_use_mm_for_euclid_dist"
    )
    return distance <= SLACK * b.abs().max()


def _check_group(group: Tensor) -> None:
    """Refuse matrices (G, D, D) that are not orthogonal, or not a group (each element equally
    often)."""
    off = float((group @ group.mT - torch.eye(group.shape[-1], dtype=group.dtype)).abs().max())
    if not off <= SLACK:
        raise ValueError(f"expected group_matrices to be orthogonal, got |g g^T - 1| up to {off:g}")
    # A point in general position tells all elements apart, and each of them must permute its orbit.
    point = torch.randn(
        group.shape[-1], dtype=group.dtype, generator=torch.Generator().manual_seed(0)
    )
    orbit = group @ point
    labels = _close(orbit, orbit).int().argmax(1)
    hits = _close(torch.einsum("hij,gj->hgi", group, orbit).reshape(-1, len(point)), orbit)
    images = hits.int().argmax(1).reshape(len(group), -1)
    if not bool(hits.any(1).all()) or not torch.equal(
        images.sort(1)[0], labels.sort()[0].expand_as(images)
    ):
        raise ValueError(
            f"expected group_matrices to hold a whole group, got {len(group)} matrices that are "
            "not one"
        )
