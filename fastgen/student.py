"""The sampler a distillation ends with: conditions in, samples out, both in original units; needs torch alone.

    y_T = noise, packed        y = sample_student(network, y_T, rungs, normalize(Z))        X = denormalize(unpack(y))

A student with the rungs t_1 > ... > t_K > 0 makes K network calls. For every divisor k of K it also samples in k calls, over every
(K / k)-th rung: t_1, t_{1 + K/k}, ..., 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._tensor import draw_normal
from .normalizer import Normalizer, pack_tokens, unpack_tokens
from .samplers import sample_student

__all__ = ["Student", "student_card"]


class Student:
    """A few-step sampler X ~ p(X | Z).

    Args:
        network: called as `network(x_t, t, cond)` on normalised, packed tokens.
        t_list: [t_1 > ... > t_K > 0.0].      steps: numbers of network calls on offer, divisors of K.
        sample_type: "ode" or "sde".      pred_type: "flow", "x0" or "eps", what the network predicts.
        horizon: (T_x, d_x) of a sample.      cond_horizon: (most T_z, d_z) of a condition; None: conditions aren't checked.
        pack: waypoints per token.      x_normalizer, z_normalizer: None changes nothing.
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
        self.t_list, self.steps = tuple(t_list), tuple(sorted(steps))
        self.sample_type, self.pred_type, self.pack = sample_type, pred_type, pack
        self.horizon = (horizon[0], horizon[1])
        self.cond_horizon = None if cond_horizon is None else (cond_horizon[0], cond_horizon[1])
        self.x_normalizer, self.z_normalizer = x_normalizer, z_normalizer
        self.config = dict(config or {})

    @property
    def device(self) -> torch.device:
        """Where the network is and samples are returned."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network and of the samples."""
        return next((p.dtype for p in self.network.parameters() if p.is_floating_point()), torch.float32)

    def rungs(self, steps: int | None = None) -> tuple[float, ...]:
        """The (steps + 1) times of a sampling run, every (K / steps)-th entry of `t_list`; None: the most steps on offer.

        Raises:
            ValueError: `steps` is not among `.steps`.
        """
        steps = max(self.steps) if steps is None else steps
        if type(steps) is not int or steps not in self.steps:
            raise ValueError(
                f"expected steps among {list(self.steps)}, those this student was trained for, got {steps!r}"
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
        """Draw samples of X given Z.

        Args:
            cond: Z of shape (B, T_z, d_z) in original units, T_z up to the horizon the network was built with. A student with a network
                of your own takes whatever that network does: a Tensor, a tuple or mapping of Tensors with B rows each, or None.
            num_samples: K samples of each condition; None: one, without the axis K.
            steps: network calls, among `.steps`; None: the most of them.
            noise: the pure noise to start from, standard normal in the model's normalised space, of the shape of the result;
                None: drawn, in float32, so that students of any dtype see the same draw.
            generator: of `noise`, then of the fresh noise of "sde" rungs; None: torch's global one. The same state gives the same bits.

        Returns: (B, T_x, d_x), or (B, K, T_x, d_x) with `num_samples=K`; original units, dtype and device of the student, no gradient.

        Raises:
            TypeError: `cond` or `noise` is not a floating-point Tensor.
            ValueError: a shape that doesn't fit, `steps` not on offer, `num_samples` not a whole number >= 1.
        """
        rungs = self.rungs(steps)
        if num_samples is not None and (type(num_samples) is not int or num_samples < 1):
            raise ValueError(f"expected num_samples as a whole number >= 1 or None, got {num_samples!r}")
        rows = self._check_cond(cond, noise)
        shape = (rows, *(() if num_samples is None else (num_samples,)), *self.horizon)
        # Half precision has too few digits for the state of a sampler; the network still sees its own dtype.
        dtype = torch.promote_types(self.dtype, torch.float32)
        if noise is None:
            noise = draw_normal(shape, device=self.device, generator=generator)
        elif tuple(noise.shape) != shape:
            raise ValueError(f"expected noise of shape {shape}, that of the result, got {tuple(noise.shape)}")
        z = _map_tensors(lambda value: self._prepare(value, num_samples or 1), cond)
        noise = pack_tokens(noise.to(self.device, dtype).reshape(-1, *self.horizon), self.pack)
        y = sample_student(
            self.network, noise, rungs, z, sample_type=self.sample_type, pred_type=self.pred_type, generator=generator
        )
        x = unpack_tokens(y, self.pack)
        if self.x_normalizer is not None:
            x = self.x_normalizer.denormalize(x)
        return x.reshape(shape).to(self.dtype)

    def _prepare(self, value: Tensor, repeats: int) -> Tensor:
        value = value.to(self.device)
        if self.z_normalizer is not None:
            # In float64, so that an observation far from the origin doesn't lose its digits before the mean is taken off.
            value = self.z_normalizer.normalize(value.double())
        value = value.to(self.dtype) if value.is_floating_point() else value
        return value.repeat_interleave(repeats, dim=0)

    def _check_cond(self, cond: Any, noise: Tensor | None) -> int:
        """The number of conditions B, after checking what can be checked."""
        if noise is not None and not (isinstance(noise, Tensor) and noise.is_floating_point()):
            raise TypeError(f"expected noise as a floating-point Tensor, got {_kind(noise)}")
        if self.cond_horizon is not None:
            if not (isinstance(cond, Tensor) and cond.is_floating_point()):
                raise TypeError(
                    f"expected cond as a floating-point Tensor (B, T_z, d_z), got {_kind(cond)}; use torch.as_tensor"
                )
            most, d_z = self.cond_horizon
            if cond.ndim != 3 or not 1 <= cond.shape[1] <= most or cond.shape[2] != d_z:
                raise ValueError(f"expected Z of shape (B, T_z <= {most}, {d_z}), got {tuple(cond.shape)}")
            return cond.shape[0]
        rows = {value.shape[0] for value in _leaves(cond)}
        if len(rows) > 1:
            raise ValueError(f"expected tensors with the same number of rows in cond, got {sorted(rows)}")
        # Without a condition the rows can only be those of the noise.
        return rows.pop() if rows else 1 if noise is None else noise.shape[0]

    def __repr__(self) -> str:
        z = "cond" if self.cond_horizon is None else f"Z (B, T_z <= {self.cond_horizon[0]}, {self.cond_horizon[1]})"
        group = f", group={self.config['group']}" if self.config.get("group") else ""
        count = sum(p.numel() for p in self.network.parameters())
        return (
            f"Student({z} -> X (B, {self.horizon[0]}, {self.horizon[1]}), steps={list(self.steps)}, t_list={list(self.t_list)}, "
            f"{self.sample_type}{group}, {type(self.network).__name__} of {count:,} numbers, {str(self.dtype)[6:]} on {self.device})"
        )


def _map_tensors(function: Callable[[Tensor], Tensor], cond: Any) -> Any:
    """`cond` with `function` applied to each Tensor in it: a Tensor, a tuple, list or mapping of them, or None."""
    if cond is None:
        return None
    if isinstance(cond, Tensor):
        return function(cond)
    if isinstance(cond, Mapping):
        return {key: _map_tensors(function, value) for key, value in cond.items()}
    if isinstance(cond, tuple | list):
        return tuple(_map_tensors(function, value) for value in cond)
    raise TypeError(f"expected cond as a Tensor, a tuple or mapping of Tensors, or None, got {_kind(cond)}")


def _leaves(cond: Any) -> list[Tensor]:
    """The Tensors in `cond`, each with at least the axis B."""
    found: list[Tensor] = []

    def note(value: Tensor) -> Tensor:
        if value.ndim == 0:
            raise ValueError("expected tensors with B rows in cond, got a scalar Tensor")
        found.append(value)
        return value

    _map_tensors(note, cond)
    return found


def _kind(value: Any) -> str:
    return f"a Tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def student_card(config: Mapping[str, Any], numbers: int) -> str:
    """README.md of a student folder with `config` and a network of `numbers` parameters: what it is, how to use it, how good it is."""
    t_x, d_x = config["horizon"]
    built_in = config["network"]["class"] != "custom"
    z = (
        "cond"
        if config["cond_horizon"] is None
        else f"torch.zeros(1, {config['cond_horizon'][0]}, {config['cond_horizon'][1]})"
    )
    shape = (
        "cond"
        if config["cond_horizon"] is None
        else f"z (B, T_z <= {config['cond_horizon'][0]}, {config['cond_horizon'][1]})"
    )
    name = config["network"]["class"] if built_in else config["network"]["name"]
    load = '"path/to/this/folder"' + ("" if built_in else f", network={name}(...)")
    k, steps = len(config["t_list"]) - 1, ", ".join(map(str, config["steps"]))
    description = config["description"]
    normalised = "yes" if config["x_normalizer"] is not None else "no"
    lines = [
        "# Few-step student",
        "",
        str(
            description.get("summary")
            or f"A generator of trajectories in {k} network call{'s' if k > 1 else ''}, distilled with fastgen."
        ),
        "",
        "```python",
        "import fastgen, torch",
        f"student = fastgen.load_student({load})  # torch and safetensors only",
        f"z = {z}  # your conditions, original units" if shape != "cond" else "z = ...  # whatever the network takes",
        f"x = student.sample(z, steps={max(config['steps'])})  # (1, {t_x}, {d_x}), original units; num_samples=K gives (1, K, {t_x}, {d_x})",
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| input -> output | {shape} -> x (B, {t_x}, {d_x}) |",
        f"| network calls on offer | {steps} |",
        f"| `t_list` | {', '.join(map(repr, config['t_list']))} |",
        f"| sampler | {config['sample_type']} ({'fresh noise' if config['sample_type'] == 'sde' else 'implied noise'} between rungs) |",
        f"| prediction | {config['pred_type']} (t = 0 is data, t = 1 is noise) |",
        f"| network | {name}, {numbers:,} numbers, plain dense tensors |",
        f"| group | {config['group'] or 'none declared'}{' (equivariance is in the numbers of the weights)' if config['group'] else ''} |",
        f"| waypoints per token; normalised inside | {config['pack']}; {normalised} |",
        f"| written by | fastgen-distill {config['package_version']} |",
        "",
        *_score_lines(description.get("scores")),
        "`config.json` holds all of this for machines, with the size and sha256 of `student.safetensors`; a folder that was edited is refused.",
        "",
        "Licence: not stated. Whoever publishes these weights replaces this line.",
        "",
    ]
    return "\n".join(lines)


def _score_lines(scores: Any) -> list[str]:
    """Markdown of {name: value} or {row: {name: value}}; nothing for anything else."""
    if not isinstance(scores, Mapping) or not scores:
        return []
    rows = {str(k): v for k, v in scores.items() if isinstance(v, Mapping)} or {"": scores}
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = ["## Scores", "", f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for label, row in rows.items():
        values = [f"{row[n]:.4g}" if isinstance(row.get(n), int | float) else "" for n in names]
        lines.append(f"| {label} | {' | '.join(values)} |")
    return [*lines, ""]
