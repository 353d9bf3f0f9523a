"""The sampler a distillation ends with: conditions in, samples out, both in original units; needs
torch alone.

    y_T = noise, packed        y = sample_student(network, y_T, rungs, normalize(Z))        X = denormalize(unpack(y))

A student with the rungs t_1 > ... > t_K > 0 makes K network calls. For a divisor k of K it also
samples in k calls, over every (K / k)-th rung: t_1, t_{1 + K/k}, ..., 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._core.conditions import map_tensors, tensors_in
from .._core.seeds import draw_normal
from ..normalizer import Normalizer, pack_tokens, unpack_tokens
from ..samplers.student import sample_student

__all__ = ["Student"]


class Student:
    """A few-step sampler X ~ p(X | Z), or X ~ p(X).

    Args:
        network: called as `network(x_t, t, cond)` on normalised, packed tokens, or on samples of
            any shape.
        t_list: [t_1 > ... > t_K > 0.0].      steps: numbers of network calls on offer, divisors of K.
        sample_type: "ode" or "sde".      pred_type: "flow", "x0" or "eps", what the network predicts.
        horizon: the shape of a sample, (T_x, d_x) of a trajectory.
        cond_horizon: (most T_z, d_z) of a condition; None: it isn't checked.
        pack: waypoints per token of a trajectory.      x_normalizer, z_normalizer: None changes nothing.
        config: what stands in config.json; read by nobody here.

    Attributes: `network`, `t_list` (tuple), `steps` (tuple), `config` (dict), `device`, `dtype`.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        t_list: Sequence[float],
        steps: Sequence[int],
        sample_type: str,
        pred_type: str,
        horizon: Sequence[int],
        cond_horizon: Sequence[int] | None,
        pack: int = 1,
        x_normalizer: Normalizer | None = None,
        z_normalizer: Normalizer | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.t_list = tuple(t_list)
        self.steps = tuple(sorted(steps))
        self.sample_type = sample_type
        self.pred_type = pred_type
        self.pack = pack
        self.horizon = tuple(horizon)
        self.cond_horizon = None if cond_horizon is None else (cond_horizon[0], cond_horizon[1])
        self.x_normalizer = x_normalizer
        self.z_normalizer = z_normalizer
        self.config = dict(config or {})

    @property
    def device(self) -> torch.device:
        """Where the network is and samples are returned."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network and of the samples."""
        return next(
            (p.dtype for p in self.network.parameters() if p.is_floating_point()), torch.float32
        )

    def rungs(self, steps: int | None = None) -> tuple[float, ...]:
        """The (steps + 1) times of a sampling run, every (K / steps)-th of `t_list`; None: the most
        steps on offer.

        Raises:
            ValueError: `steps` is not among `.steps`.
        """
        steps = max(self.steps) if steps is None else steps
        if type(steps) is not int or steps not in self.steps:
            raise ValueError(
                f"expected steps among those trained, {list(self.steps)}, got {steps!r}"
            )
        return self.t_list[:: (len(self.t_list) - 1) // steps]

    @torch.no_grad()
    def sample(
        self,
        cond: Any,
        *,
        num_samples: int | None = None,
        steps: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw samples of X given Z, or of X where there is nothing to condition on.

        Args:
            cond: Z of shape (B, T_z, d_z) in original units, T_z up to the horizon of the network.
                A student with a network of your own takes what that one does: a Tensor (labels are
                integers), a tuple or mapping of Tensors of B rows each, or None; then B is the
                number of rows of `noise`, without it 1.
            num_samples: K samples of each condition; None: one, without the axis K.
            steps: network calls, among `.steps`; None: the most of them.
            noise: the pure noise to start from, standard normal in the model's normalised space, in
                the result's shape; None: drawn, in float32, so that students of any dtype start
                from the same draw.
            generator: of `noise`, then of the fresh noise of "sde" rungs; None: torch's global one.
                A generator in the same state gives the same bits.

        Returns: (B, *horizon), or (B, K, *horizon) with `num_samples=K`: original units, the
        student's dtype and
            device, no gradient.

        Raises:
            TypeError: `cond` or `noise` is not a floating-point Tensor.
            ValueError: a shape that doesn't fit, `steps` not on offer, `num_samples` not a whole
                number >= 1.
        """
        rungs = self.rungs(steps)
        if num_samples is not None and (type(num_samples) is not int or num_samples < 1):
            raise ValueError(
                f"expected num_samples as a whole number >= 1 or None, got {num_samples!r}"
            )
        rows = self._check_cond(cond, noise)
        shape = (rows, *(() if num_samples is None else (num_samples,)), *self.horizon)
        device = self.device
        dtype = self.dtype
        if noise is None:
            noise = draw_normal(shape, device=device, generator=generator)
        elif tuple(noise.shape) != shape:
            raise ValueError(
                f"expected noise of shape {shape}, that of the result, got {tuple(noise.shape)}"
            )
        z = map_tensors(lambda value: self._prepare(value, num_samples or 1, device, dtype), cond)
        # Half precision has too few digits for the state of a sampler; the network still sees its
        # own dtype.
        noise = noise.to(device, torch.promote_types(dtype, torch.float32))
        noise = noise.reshape(-1, *self.horizon)
        noise = pack_tokens(noise, self.pack) if self.pack > 1 else noise
        y = sample_student(
            self.network,
            noise,
            rungs,
            z,
            sample_type=self.sample_type,
            pred_type=self.pred_type,
            generator=generator,
        )
        assert isinstance(y, Tensor)  # a pair only with return_all_steps
        x = unpack_tokens(y, self.pack) if self.pack > 1 else y
        if self.x_normalizer is not None:
            x = self.x_normalizer.denormalize(x)
        return x.reshape(shape).to(dtype)

    def _prepare(
        self, value: Tensor, repeats: int, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        value = value.to(device)
        if self.z_normalizer is not None:
            # In float64: an observation far from the origin must not lose its digits before the
            # mean is taken off.
            value = self.z_normalizer.normalize(value.double())
        value = value.to(dtype) if value.is_floating_point() else value
        return value.repeat_interleave(repeats, dim=0)

    def _check_cond(self, cond: Any, noise: Tensor | None) -> int:
        """The number of conditions B, after checking what can be checked."""
        if noise is not None and not (isinstance(noise, Tensor) and noise.is_floating_point()):
            raise TypeError(f"expected noise as a floating-point Tensor, got {_kind(noise)}")
        if self.cond_horizon is not None:
            if not (isinstance(cond, Tensor) and cond.is_floating_point()):
                raise TypeError(
                    f"expected cond as a floating-point Tensor (B, T_z, d_z), got {_kind(cond)}; "
                    "see torch.as_tensor"
                )
            most, d_z = self.cond_horizon
            if cond.ndim != 3 or not 1 <= cond.shape[1] <= most or cond.shape[2] != d_z:
                raise ValueError(
                    f"expected Z of shape (B, T_z <= {most}, {d_z}), got {tuple(cond.shape)}"
                )
            return cond.shape[0]
        if self.z_normalizer is not None and not isinstance(cond, Tensor):
            raise TypeError(
                f"expected cond as a Tensor (B, ..., {self.z_normalizer.dim}), got {_kind(cond)}"
            )
        rows = {value.shape[0] for value in tensors_in(cond)}
        if len(rows) > 1:
            raise ValueError(
                f"expected tensors with the same number of rows in cond, got {sorted(rows)}"
            )
        # Without a condition the rows can only be those of the noise.
        return rows.pop() if rows else 1 if noise is None else noise.shape[0]

    def __repr__(self) -> str:
        z = (
            "cond"
            if self.cond_horizon is None
            else f"Z (B, T_z <= {self.cond_horizon[0]}, {self.cond_horizon[1]})"
        )
        group = f", group {self.config['group']}" if self.config.get("group") else ""
        count = sum(p.numel() for p in self.network.parameters())
        return (
            f"Student({z} -> X (B, {', '.join(map(str, self.horizon))}), steps={list(self.steps)}, "
            f"t_list={list(self.t_list)}, {self.sample_type}{group}, {type(self.network).__name__} "
            f"of {count:,} numbers, {str(self.dtype).removeprefix('torch.')} on {self.device})"
        )


def _kind(value: Any) -> str:
    return f"a Tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
