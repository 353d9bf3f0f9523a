"""Teachers from elsewhere: any path, prediction and clock, turned into rectified flow in this one
place.

A network was trained on x_s = alpha(s) x0 + sigma(s) eps with a clock s of its own, and answers
with a combination of the two ends. All six predictions are rows of one table, answer = a x0 + b
eps:

| prediction | answer                 | a          | b         | undefined at | its own loss |
|------------|------------------------|------------|-----------|--------------|--------------|
| flow       | eps - x0               | -1         | 1         |              | flow         |
| velocity   | dx_s / ds              | alpha'(s)  | sigma'(s) |              | flow         |
| v          | alpha eps - sigma x0   | -sigma     | alpha     |              | flow         |
| eps        | eps                    | 0          | 1         | pure noise   | eps          |
| score      | -eps / sigma           | 0          | -1/sigma  | pure noise   | eps          |
| x0         | x0                     | 1          | 0         | data         | x0           |

To be asked at RF time t, the sample x_t is moved to the s of the same noise ratio, sigma(s) /
alpha(s) = t / (1 - t), where x_s = (alpha + sigma) x_t. The answer and x_s are two equations for x0
and eps:

    D = alpha b - sigma a,    x0 = (b x_s - sigma answer) / D,    eps = (alpha answer - a x_s) / D,    flow = eps - x0.

All of it in float64, at the very s and x_s that the network saw, rounded to what it computes in:
near an end, where D is small, a rounding that the network shares cancels, and one that it doesn't
is amplified.

Networks with another call are given the positional one, `net(x_t, t, cond)`, by `KeywordNetwork`.

References:
    Albergo et al., Stochastic Interpolants, 2023, arXiv:2303.08797. Salimans & Ho, Progressive
    Distillation, 2022, arXiv:2202.00512 (v). Karras et al., EDM, 2022, arXiv:2206.00364.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._core.checks import check_choice, check_shape, check_time
from .._core.messages import brief
from .._core.tensors import expand_like, time_dtype, wide_dtype
from ..networks import Cond, Network, NetworkWrapper, network_dtype
from .clocks import Clock, SigmaClock, TableClock, parse_clock

__all__ = [
    "PREDICTIONS",
    "KeywordNetwork",
    "RectifiedFlow",
    "as_rectified_flow",
    "check_prediction",
    "describe_network",
    "loss_space",
    "wrap_network",
]

PREDICTIONS = ("flow", "velocity", "eps", "x0", "v", "score")
# Where an answer says nothing about the other end, a network is asked no nearer to it than this.
SINGULAR_MARGIN = 1e-3
_ROUNDING = 1e-12  # of a path's own zero, such as cos(pi / 2)


# ---- Other calls ---------------------------------------------------------------------------------


class KeywordNetwork(NetworkWrapper):
    """A network that takes keywords and answers with an object, called `net(x_t, t, cond)`.

    The defaults are those of diffusers' transformers; its UNets take `x="sample"`.

    Args:
        network: called `network(**{x: x_t, t: t, cond: cond})`. A condition that is a mapping is
            given as keywords of its own names, None is left out.
        x, t, cond: the network's names of the three.
        output: attribute or key of its answer that holds the prediction; of a tuple the first
            entry; a Tensor is one.

    Raises (when called):
        TypeError: an answer without a Tensor of that name.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        x: str = "hidden_states",
        t: str = "timestep",
        cond: str = "encoder_hidden_states",
        output: str = "sample",
    ) -> None:
        super().__init__(network)
        self.names = {"x": x, "t": t, "cond": cond, "output": output}
        for key, name in self.names.items():
            if not isinstance(name, str) or not name.isidentifier():
                raise ValueError(f"expected {key} to be the name of an argument, got {name!r}")
        if len({x, t, cond}) < 3:
            raise ValueError(f"expected three different names, got x={x!r}, t={t!r}, cond={cond!r}")

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        """The network's prediction for `x_t` (B, ...) at `t` (B,)."""
        conditions = (
            cond
            if isinstance(cond, Mapping)
            else {}
            if cond is None
            else {self.names["cond"]: cond}
        )
        answer = self.network(**{self.names["x"]: x_t, self.names["t"]: t}, **conditions)
        if isinstance(answer, Tensor):
            return answer
        name = self.names["output"]
        found = answer.get(name) if isinstance(answer, Mapping) else getattr(answer, name, None)
        if found is None and isinstance(answer, tuple) and answer:
            found = answer[0]
        if not isinstance(found, Tensor):
            raise TypeError(
                f"expected an answer with a Tensor {name!r}, got {type(answer).__name__}; say "
                "output=..."
            )
        return found


class _FunctionNetwork(nn.Module):
    """A plain function as a module without parameters."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        return self.function(x_t, t, cond)


# ---- Other paths, predictions and clocks ---------------------------------------------------------


class RectifiedFlow(NetworkWrapper):
    """A network trained on another path, as a rectified-flow network: `net(x_t, t, cond)` answers
    eps - x0.

    Made by `as_rectified_flow`. It has no weights of its own; copies of it are trainable students
    and fake scores.

    Attributes:
        network: the network inside, untouched.
        t_min, t_max: the RF times in which it is defined; outside, it is asked at the nearer of the
            two.
        predicts_noise: its answer is eps up to a factor, and says nothing about x0 at t = 1.
        prediction, time_scale, clock: what was declared.
    """

    def __init__(
        self, network: nn.Module, clock: Clock, prediction: str, time_scale: float
    ) -> None:
        super().__init__(network)
        self.clock = clock
        self.prediction = prediction
        self.time_scale = time_scale
        low, high = (
            ratio / (1.0 + ratio) if math.isfinite(ratio) else 1.0 for ratio in clock.ratios
        )
        low = low if low > _ROUNDING else 0.0
        self.t_min = max(low, SINGULAR_MARGIN) if prediction == "x0" else low
        # On a clock of sigma dx/ds is eps itself.
        self.predicts_noise = prediction in ("eps", "score") or (prediction, type(clock)) == (
            "velocity",
            SigmaClock,
        )
        self.t_max = min(high, 1.0 - SINGULAR_MARGIN) if self.predicts_noise else high

    def forward(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """Flow eps - x0 at `x_t` (B, ...) and RF time `t`, a float or (B,); in the dtype of
        `x_t`."""
        x0, eps = self.ends(x_t, t, cond)
        return (eps - x0).to(x_t.dtype)

    def predict_x0(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """Data x0, straight from the network's answer; arguments and dtype as `forward`."""
        return self.ends(x_t, t, cond)[0].to(x_t.dtype)

    def ends(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> tuple[Tensor, Tensor]:
        """(x0, eps) as the network sees them, float64; differentiable.

        Raises:
            ValueError: t outside [0, 1].      TypeError: t in less than float32.
        """
        check_time(t)
        wide = wide_dtype(x_t.device)
        dtype = network_dtype(self.network, x_t.dtype)
        t = (
            torch.as_tensor(t, dtype=wide, device=x_t.device)
            .expand(x_t.shape[0])
            .clamp(self.t_min, self.t_max)
        )
        s = self.clock.time_of_ratio(t / (1.0 - t))
        seen_time = self._told(s, time_dtype(dtype))
        s = seen_time.to(wide) / self.time_scale
        alpha, sigma = (expand_like(c, x_t) for c in self.clock.coefficients(s))
        seen = ((alpha + sigma) * x_t.to(wide)).to(dtype)
        answer = self.network(seen, seen_time, cond)
        x_s = seen.to(wide)
        check_shape("the network's output", answer, x_t.shape)
        answer = answer.to(wide)
        match self.prediction:
            case "flow":
                a = -torch.ones_like(alpha)
                b = torch.ones_like(alpha)
            case "velocity":
                a, b = (expand_like(c, x_t) for c in self.clock.derivatives(s))
            case "v":
                a = -sigma
                b = alpha
            case "x0":
                a = torch.ones_like(alpha)
                b = torch.zeros_like(alpha)
            case "score":  # as eps: at sigma = 0 the row of the table is infinite
                answer = -sigma * answer
                a = torch.zeros_like(alpha)
                b = torch.ones_like(alpha)
            case _:  # eps
                a = torch.zeros_like(alpha)
                b = torch.ones_like(alpha)
        det = alpha * b - sigma * a
        return (b * x_s - sigma * answer) / det, (alpha * answer - a * x_s) / det

    def _told(self, s: Tensor, dtype: torch.dtype) -> Tensor:
        """The time as the network gets it."""
        if not self.clock.whole:
            return (s * self.time_scale).to(dtype)
        return (
            s.round().long() if self.time_scale == 1.0 else (s.round() * self.time_scale).to(dtype)
        )

    def describe(self) -> dict[str, Any]:
        """What was declared, as JSON: the arguments of `as_rectified_flow`."""
        data_at = getattr(self.clock, "data_at", 0)
        declared = {"path": self.clock.describe(), "prediction": self.prediction}
        return {**declared, "data_at": data_at, "time_scale": self.time_scale}

    def extra_repr(self) -> str:
        path = self.clock.describe()["name"]
        return f"{path}, {self.prediction}, time_scale={self.time_scale:g}, t in [{self.t_min:.4g}, {self.t_max:.4g}]"


def as_rectified_flow(
    network: Network,
    *,
    path: object = "linear",
    prediction: str = "flow",
    data_at: int = 0,
    time_scale: float = 1.0,
    nearest: bool = False,
) -> RectifiedFlow:
    """A network trained elsewhere as one that speaks rectified flow; formulas stand at the head of
    this module.

    Args:
        network: called `network(x_s, time, cond)` with `time` of shape (B,); a module, or a plain
            function (which can teach, but not be copied into a student).
        path: "linear", "cosine", "vp", "edm", an interpolant of :mod:`fastgen.interpolants`, the
            betas (N,) of a DDPM table, or a mapping with a name and arguments (see
            :func:`fastgen.teachers.clocks.parse_clock`).
        prediction: "flow", "velocity", "eps", "x0", "v" or "score". A velocity is the derivative by
            the network's own clock, so its sign follows `data_at`.
        data_at: the end of the network's clock, [0, 1], where the data are; 0 for "edm" and betas,
            which count noise.
        time_scale: the clock is multiplied by it before the network is called. The clock of "edm"
            is sigma, that of betas the row 0 .. N-1, without any scale.
        nearest: of betas only: the network is called with the nearest row, a whole number.

    Raises:
        ValueError: an unknown path or prediction, arguments that contradict each other, a network
            that is one already.
        TypeError: a network that can't be called, or a path of no known kind.
    """
    if isinstance(network, RectifiedFlow):
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
    if (
        isinstance(time_scale, bool)
        or not isinstance(time_scale, int | float)
        or not 0 < time_scale < math.inf
    ):
        raise ValueError(f"expected time_scale > 0, got {time_scale!r}")
    if isinstance(clock, TableClock) and time_scale > 1:
        raise ValueError(
            "expected no time_scale for a table of betas, whose clock counts rows "
            f"0..{len(clock.betas) - 1} already, got {time_scale:g}; leave it out"
        )
    module = network if isinstance(network, nn.Module) else _FunctionNetwork(network)
    return RectifiedFlow(module, clock, prediction, float(time_scale))


def loss_space(network: nn.Module) -> str | None:
    """Where a converted network's own loss lives, "flow", "x0" or "eps"; None for a network of
    another kind.

    A noise network that is trained by its flow, (eps - x_t) / (1 - t), would hear of nothing but
    times near 1.
    """
    if not isinstance(network, RectifiedFlow):
        return None
    return "eps" if network.predicts_noise else "x0" if network.prediction == "x0" else "flow"


def check_prediction(network: object, pred_type: str) -> None:
    """Refuse a converted network with a `pred_type` that isn't "flow", which is all that one
    answers.

    Raises:
        ValueError: says so.
    """
    if isinstance(network, RectifiedFlow) and pred_type != "flow":
        raise ValueError(
            f"expected pred_type='flow', got {pred_type!r}: what the network predicts is said by "
            f"as_rectified_flow (prediction={network.prediction!r}), and what comes out of it is "
            "the flow"
        )


# ---- As JSON -------------------------------------------------------------------------------------


def describe_network(network: nn.Module) -> tuple[nn.Module, dict[str, Any] | None]:
    """The network inside the wrappers of this module, and what they are in JSON; None if there are
    none.

    Returns:
        `(inner, {"rectified_flow": arguments of as_rectified_flow or None, "keywords": names or
        None} or None)`.
    """
    flow = names = None
    if isinstance(network, RectifiedFlow):
        flow = network.describe()
        network = network.network
    if isinstance(network, KeywordNetwork):
        names = dict(network.names)
        network = network.network
    return network, None if flow is names is None else {"rectified_flow": flow, "keywords": names}


def wrap_network(network: nn.Module, description: Mapping[str, Any] | None) -> nn.Module:
    """Inverse of `describe_network`. A network that is wrapped already must be wrapped as
    described.

    Raises:
        ValueError: a description that isn't one, a path that only its author's code knows, a
            network wrapped otherwise.
    """
    inner, own = describe_network(network)
    if own is not None:
        if own != description:
            raise ValueError(
                f"expected a network converted by {brief(description)}, got one by {brief(own)}; "
                "give the bare network"
            )
        return network
    if description is None:
        return inner
    if set(description) != {"rectified_flow", "keywords"}:
        raise ValueError(f"expected rectified_flow and keywords, got {sorted(description)}")
    flow = description["rectified_flow"]
    names = description["keywords"]
    try:
        if names is not None:
            inner = KeywordNetwork(inner, **names)
        if flow is None:
            return inner
        if flow["path"].get("name") == "custom":
            kind = flow["path"].get("class")
            raise ValueError(
                f"expected as_rectified_flow(network, path={kind}(), ...), got the bare network"
            )
        return as_rectified_flow(inner, **flow)
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"expected the arguments of as_rectified_flow and KeywordNetwork, got {error}"
        ) from error
