"""Conversion: a network of any path, prediction and clock becomes a rectified flow, in this one
place.

A network was trained on x_s = alpha(s) x0 + sigma(s) eps with a clock s of its own. It answers with
a combination of the two ends, answer = a x0 + b eps. Its prediction says which:

| prediction | answer                 | a          | b         | undefined at | its own loss |
|------------|------------------------|------------|-----------|--------------|--------------|
| flow       | eps - x0               | -1         | 1         |              | flow         |
| velocity   | dx_s / ds              | alpha'(s)  | sigma'(s) |              | flow         |
| v          | alpha eps - sigma x0   | -sigma     | alpha     |              | flow         |
| eps        | eps                    | 0          | 1         | pure noise   | eps          |
| score      | -eps / sigma           | 0          | -1/sigma  | both ends    | eps          |
| x0         | x0                     | 1          | 0         | data         | x0           |

To be asked at RF time t, the sample x_t is moved to the s of the same noise ratio, sigma(s) /
alpha(s) = t / (1 - t), where x_s = (alpha + sigma) x_t. The answer and x_s are two equations for x0
and eps:

    D    = alpha b - sigma a
    x0   = (b x_s - sigma answer) / D
    eps  = (alpha answer - a x_s) / D
    flow = eps - x0

Where `clip_sample` = (low, high) is part of a network's law, as in the DDPM samplers of diffusers,
x0 is clipped to it and eps found anew, so that the two still make x_s. The gradient passes through
as if nothing had been clipped: a student whose x0 lies outside still learns which way to go.

All of this is computed in float64, at the very s and x_s that the network saw: after they were
rounded to the network's dtype. Near an end D is small and amplifies errors. A rounding that the
network saw too cancels; any other would be amplified.

References:
    Albergo et al., Stochastic Interpolants, 2023, arXiv:2303.08797. Salimans & Ho, Progressive
    Distillation, 2022, arXiv:2202.00512 (v). Karras et al., EDM, 2022, arXiv:2206.00364.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._core.calls import call_intact
from .._core.checks import check_choice, check_shape, check_time
from .._core.tensors import EPSILON, expand_like, time_dtype, wide_dtype
from ..networks import Cond, Network, NetworkWrapper, clipped_x0, coats, network_dtype, unwrap
from .clocks import Clock, SigmaClock, TableClock, VeClock
from .paths import parse_clock
from .spacings import parse_spacing

__all__ = [
    "PREDICTIONS",
    "RectifiedFlow",
    "as_rectified_flow",
    "check_prediction",
    "loss_space",
    "translated",
]

PREDICTIONS = ("flow", "velocity", "eps", "x0", "v", "score")
# At one end an answer may say nothing about the other. A network is asked no nearer to it than
# this.
SINGULAR_MARGIN = 1e-3
# Of a path's own zero, such as cos(pi / 2).
_ROUNDING = 1e-12


class RectifiedFlow(NetworkWrapper):
    """A network trained on another path, as a rectified-flow network: `net(x_t, t, cond)` answers
    eps - x0.

    Made by `as_rectified_flow`. It has no weights of its own. A copy of it can be trained, as a
    student or as a fake score.

    Attributes:
        network: the network inside, untouched.
        t_min, t_max: the RF times in which it is defined. Outside, it is asked at the nearer of the
            two.
        predicts_noise: its answer is eps up to a factor, and says nothing about x0 at t = 1.
        prediction, time_scale, clock, clip_sample, declared_spacing: what was declared.
        spacing: the times that a sampler calls it at; None: equal steps.
        t_trusted: where it is there, the last time at which its x0 is followed, whatever it
            predicts.
    """

    def __init__(
        self,
        network: nn.Module,
        clock: Clock,
        prediction: str,
        time_scale: float,
        *,
        clip_sample: tuple[float, float] | None = None,
        spacing: object = None,
    ) -> None:
        super().__init__(network)
        self.clock = clock
        self.prediction = prediction
        self.time_scale = time_scale
        self.clip_sample = clip_sample
        self.declared_spacing = spacing
        # Where alpha stays 1, dx/ds is eps up to a factor.
        velocity_is_eps = prediction == "velocity" and isinstance(clock, SigmaClock | VeClock)
        self.predicts_noise = prediction in ("eps", "score") or velocity_is_eps
        low, high = (_time_of_ratio(ratio) for ratio in clock.ratios)
        if low <= _ROUNDING:
            low = 0.0
        if prediction == "x0" or (prediction == "score" and low == 0.0):
            low = max(low, SINGULAR_MARGIN)
        self.t_min = low
        clipped = clip_sample is not None
        self.spacing = parse_spacing(
            spacing, clock, predicts_noise=self.predicts_noise, clipped=clipped
        )
        by_rows = spacing is not None and self.spacing is not None and self.spacing.by_rows
        # A table has an x0 at its last row, which is followed where it is clipped or asked for.
        to_last_row = isinstance(clock, TableClock) and (clipped or by_rows)
        ends_early = self.predicts_noise and not to_last_row
        self.t_max = min(high, 1.0 - SINGULAR_MARGIN) if ends_early else high
        if clipped or by_rows:
            self.t_trusted = self.t_max

    def forward(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """Flow eps - x0 at `x_t` (B, ...) and RF time `t`, a float or (B,); in the dtype of
        `x_t`."""
        x0, eps = self.ends(x_t, t, cond)
        return (eps - x0).to(x_t.dtype)

    def predict_x0(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """Data x0, straight from the network's answer; arguments and dtype as `forward`."""
        return self.ends(x_t, t, cond)[0].to(x_t.dtype)

    def unclipped_x0(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """As `predict_x0`, before `clip_sample`."""
        return self._ends(x_t, t, cond)[0].to(x_t.dtype)

    def ends(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> tuple[Tensor, Tensor]:
        """(x0, eps) as the network sees them, each shaped like `x_t`, in float64; differentiable.
        Arguments as `forward`.

        Raises:
            ValueError: t outside [0, 1].
            TypeError: t in less than float32.
        """
        x0, eps, slope = self._ends(x_t, t, cond)
        if self.clip_sample is None:
            return x0, eps
        clipped = clipped_x0(self, x0)
        return clipped, eps + slope * (x0 - clipped)

    def _ends(self, x_t: Tensor, t: float | Tensor, cond: Cond) -> tuple[Tensor, Tensor, Tensor]:
        """(x0, eps, alpha / sigma) before `clip_sample`, the last by how much eps grows where x0
        is made less."""
        check_time(t)
        wide = wide_dtype(x_t.device)
        dtype = network_dtype(self.network, x_t.dtype)
        t = torch.as_tensor(t, dtype=wide, device=x_t.device).expand(x_t.shape[0])
        t = t.clamp(self.t_min, self.t_max)
        seen_time = self._seen_time(self.clock.time_of_ratio(t / (1.0 - t)), time_dtype(dtype))
        # From here on at what the network sees, roundings included.
        s = seen_time.to(wide) / self.time_scale
        alpha, sigma = (expand_like(c, x_t) for c in self.clock.coefficients(s))
        seen = ((alpha + sigma) * x_t.to(wide)).to(dtype)
        answer = call_intact(self.network, seen, seen_time, cond)
        check_shape("the network's output", answer, x_t.shape)
        answer = answer.to(wide)
        if self.prediction == "score":  # read as eps: at sigma = 0 its own row has an infinite b
            answer = -sigma * answer
        x_s = seen.to(wide)
        a, b = self._row(s, alpha, sigma)
        det = alpha * b - sigma * a
        x0 = (b * x_s - sigma * answer) / det
        eps = (alpha * answer - a * x_s) / det
        return x0, eps, alpha / sigma.clamp(min=EPSILON)

    def _row(self, s: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) of the prediction at `s` (B,), shaped like `alpha` and `sigma`; a score is read as
        eps."""
        one = torch.ones_like(alpha)
        zero = torch.zeros_like(alpha)
        match self.prediction:
            case "flow":
                return -one, one
            case "velocity":
                d_alpha, d_sigma = self.clock.derivatives(s)
                return expand_like(d_alpha, alpha), expand_like(d_sigma, alpha)
            case "v":
                return -sigma, alpha
            case "x0":
                return one, zero
            case _:  # eps and score
                return zero, one

    def _seen_time(self, s: Tensor, dtype: torch.dtype) -> Tensor:
        """The time (B,) as the network gets it: scaled, and a whole number where the clock's are
        whole."""
        if not self.clock.whole:
            return (s * self.time_scale).to(dtype)
        if self.time_scale == 1.0:
            return s.round().long()
        return (s.round() * self.time_scale).to(dtype)

    def describe(self) -> dict[str, Any]:
        """What was declared, as JSON: the arguments of `as_rectified_flow`."""
        declared = {
            "path": self.clock.describe(),
            "prediction": self.prediction,
            "data_at": getattr(self.clock, "data_at", 0),
            "time_scale": self.time_scale,
        }
        if self.clip_sample is not None:
            declared["clip_sample"] = list(self.clip_sample)
        spacing = self.declared_spacing
        if spacing is not None:
            declared["spacing"] = dict(spacing) if isinstance(spacing, Mapping) else spacing
        return declared

    def extra_repr(self) -> str:
        path = self.clock.describe()["name"]
        times = f"t in [{self.t_min:.4g}, {self.t_max:.4g}]"
        said = f"{path}, {self.prediction}, time_scale={self.time_scale:g}, {times}"
        if self.clip_sample is not None:
            low, high = self.clip_sample
            said += f", x0 clipped to [{low:g}, {high:g}]"
        return said


class _FunctionNetwork(nn.Module):
    """A plain function as a module without parameters."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        return self.function(x_t, t, cond)


def as_rectified_flow(
    network: Network,
    *,
    path: object = "linear",
    prediction: str = "flow",
    data_at: int = 0,
    time_scale: float = 1.0,
    nearest: bool = False,
    clip_sample: Sequence[float] | None = None,
    spacing: object = None,
) -> RectifiedFlow:
    """A network trained elsewhere as one that speaks rectified flow; the formulas stand at the head
    of this module.

    Args:
        network: called `network(x_s, time, cond)` with `time` of shape (B,). A module, or a plain
            function (which can teach, but not be copied into a student).
        path: "linear", "cosine", "vp", "subvp", "ve", "edm", an interpolant of
            :mod:`fastgen.interpolants`, the betas (N,) of a DDPM table, or a mapping with a name
            and arguments (see :func:`fastgen.teachers.paths.parse_clock`).
        prediction: "flow", "velocity", "eps", "x0", "v" or "score". A velocity is the derivative by
            the network's own clock, so its sign follows `data_at`.
        data_at: the end of the network's clock, 0 or 1, where the data are. It is 0 for "ve", "edm"
            and betas, which count noise.
        time_scale: the clock is multiplied by it before the network is called. The clock of "edm"
            is sigma, that of betas the row 0 .. N-1.
        nearest: of betas only: the network is called with the nearest row, a whole number.
        clip_sample: (low, high): its x0 is clipped to that, as its own sampler does. Students clip
            theirs, too.
        spacing: at which times it is called to make a sample: "time" (equal steps), "log_snr", or
            by rows of betas "leading", "linspace", "trailing" (:mod:`fastgen.teachers.spacings`).
            None: "trailing" for betas with a network that predicts noise, else "time".

    Raises:
        ValueError: an unknown path or prediction, arguments that contradict each other, a network
            that is one already.
        TypeError: a network that can't be called, or a path of no known kind.
    """
    if _converted(network) is not None:
        raise ValueError(
            "expected a network as it was trained, got one that as_rectified_flow has converted "
            "already"
        )
    if not callable(network):
        raise TypeError(
            "expected network as a module or a function of (x, t, cond), got "
            f"{type(network).__name__}"
        )
    check_choice("prediction", prediction, PREDICTIONS)
    clock = parse_clock(path, data_at)
    if nearest:
        if not isinstance(clock, TableClock):
            raise ValueError(
                f"expected nearest=False for the path {clock.describe()['name']!r}, which has no "
                "rows"
            )
        clock = TableClock(clock.betas, nearest=True)
    if prediction == "velocity" and not clock.smooth:
        raise ValueError(
            "expected prediction 'flow', 'eps', 'x0', 'v' or 'score' for a table of betas, got "
            "'velocity'"
        )
    _check_time_scale(time_scale, clock)
    module = network if isinstance(network, nn.Module) else _FunctionNetwork(network)
    return RectifiedFlow(
        module,
        clock,
        prediction,
        float(time_scale),
        clip_sample=_check_clip(clip_sample),
        spacing=spacing,
    )


def loss_space(network: nn.Module) -> str | None:
    """The space in which a converted network's own loss is measured: "flow", "x0" or "eps". None
    for a network that isn't converted.

    A noise network trained by its flow, (eps - x_t) / (1 - t), would learn at times near 1 alone.
    """
    converted = _converted(network)
    if converted is None:
        return None
    if converted.predicts_noise:
        return "eps"
    return "x0" if converted.prediction == "x0" else "flow"


def check_prediction(network: object, pred_type: str) -> None:
    """Refuse a converted network with a `pred_type` that isn't "flow", which is all that one
    answers.

    Raises:
        ValueError: says so.
    """
    converted = _converted(network)
    if converted is not None and pred_type != "flow":
        raise ValueError(
            f"expected pred_type='flow', got {pred_type!r}: what the network predicts is said by "
            f"as_rectified_flow (prediction={converted.prediction!r}), and what comes out of it is "
            "the flow"
        )


def translated(network: nn.Module) -> nn.Module:
    """The network in its own conversions (`RectifiedFlow`, `KeywordNetwork`), without what a run
    has put around those."""
    for coat in coats(network):
        if isinstance(coat, NetworkWrapper) and not coat.added_by_run:
            return coat
    return unwrap(network)


def _converted(network: object) -> RectifiedFlow | None:
    """The `RectifiedFlow` among the coats of a network."""
    if isinstance(network, nn.Module):
        for coat in coats(network):
            if isinstance(coat, RectifiedFlow):
                return coat
    return None


def _time_of_ratio(ratio: float) -> float:
    """The RF time t with t / (1 - t) = ratio; 1 for infinity, which is pure noise."""
    return ratio / (1.0 + ratio) if math.isfinite(ratio) else 1.0


def _check_clip(clip_sample: object) -> tuple[float, float] | None:
    """Two finite numbers, low < high, or None.

    Raises:
        ValueError: anything else.
    """
    if clip_sample is None:
        return None
    pair = list(clip_sample) if isinstance(clip_sample, list | tuple) else []
    numbers = [x for x in pair if isinstance(x, int | float) and not isinstance(x, bool)]
    if len(pair) != 2 or len(numbers) != 2 or not -math.inf < pair[0] < pair[1] < math.inf:
        raise ValueError(
            f"expected clip_sample as two numbers, low < high, such as [-1, 1], got {clip_sample!r}"
        )
    return float(pair[0]), float(pair[1])


def _check_time_scale(time_scale: float, clock: Clock) -> None:
    """Refuse a scale that no clock is multiplied by, or one above 1 of a clock that counts rows.

    Raises:
        ValueError: says which.
    """
    is_number = isinstance(time_scale, int | float) and not isinstance(time_scale, bool)
    if not is_number or not 0 < time_scale < math.inf:
        raise ValueError(f"expected time_scale > 0, got {time_scale!r}")
    if isinstance(clock, TableClock) and time_scale > 1:
        raise ValueError(
            "expected no time_scale for a table of betas, whose clock counts rows "
            f"0..{len(clock.betas) - 1} already, got {time_scale:g}; leave it out"
        )
