"""Declarations: is a teacher what it was declared to be? Its denoising error on the data tells.

    error(t) = E |x0_hat(x_t, t) - x0|^2 / E |x0 - mean|^2

For the mean of the data this is 1. A network trained on them finds x0 in x_t better than the mean
does, at every t. Declared wrongly, it is asked at other times, or its answer is read as something
else, and its error is larger than under another declaration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._core.calls import call_intact
from .._core.masks import real_only, token_mask
from .._core.messages import brief
from .._core.modules import evaluating
from .._core.seeds import generator_for
from .._core.tensors import (
    expand_mask,
    masked_mean,
    mean_square_of_real,
    time_dtype,
    wide_dtype,
)
from ..flow_matching import add_noise
from ..networks import Cond, coats, network_device, network_dtype, teacher_x0, time_range
from .conversion import PREDICTIONS, RectifiedFlow, as_rectified_flow
from .half import HalfNetwork
from .noise_sources import Source, likely_source
from .paths import parse_clock
from .probes import probe_rows

__all__ = ["TIMES", "best_declaration", "denoising_errors", "declaration_notes"]

TIMES = (0.2, 0.5, 0.8)
# At large t little of x0 is left to be seen. On so few rows the error of a good teacher can come
# out a little above 1.
_CLEARLY_WORSE = 1.1
# Another declaration is reported when it leaves less than this share of the error. Both errors are
# geometric means over the times, so that a large one at a large t doesn't hide the others.
_CLEARLY_BETTER = 0.5
# Another source of noise explains an error sooner than another declaration that leaves as much.
_SOURCE_FIRST = 1.25


def denoising_errors(
    teacher: nn.Module,
    x0: Tensor,
    cond: Cond,
    *,
    pred_type: str = "flow",
    times: tuple[float, ...] = TIMES,
) -> list[float]:
    """error(t) of `teacher` at each of `times`, on up to 128 rows of the data; infinity for an
    error that isn't finite.

    Args:
        teacher: called `teacher(x_t, t, cond)` in RF time.
        x0, cond: the data as networks see them, (N, ...).
        pred_type: what the teacher predicts.
    """
    x0, eps, cond = _probe(x0, cond, teacher)
    mask = token_mask(cond)
    real = None if mask is None else expand_mask(mask, x0)
    variance = mean_square_of_real(x0 - masked_mean(x0, real, 0), mask).clamp(min=1e-12)
    low, high = time_range(teacher)
    errors = []
    with torch.no_grad(), evaluating(teacher):
        for asked in times:
            t = min(max(asked, low), high)
            x_t = add_noise(x0, eps, t)
            times_t = torch.full((len(x_t),), t, dtype=wide_dtype(x_t.device), device=x_t.device)
            x0_hat = teacher_x0(teacher, x_t, times_t, cond, pred_type=pred_type)
            error = float(mean_square_of_real(x0_hat - x0, mask) / variance)
            errors.append(error if math.isfinite(error) else math.inf)
    return errors


def best_declaration(
    network: nn.Module, x0: Tensor, cond: Cond, declared: dict[str, Any]
) -> tuple[dict[str, Any], list[float]]:
    """The declaration under which a bare network denoises best, and its errors.

    `declared` and the common ones are tried. All predictions are read out of the same call, so each
    path and time of a clock costs one call.
    """
    best: tuple[dict[str, Any], list[float]] = (declared, [math.inf])
    # Of the converted `answers` nobody sees where the network is and in which dtype.
    seen = x0.to(network_device(network, x0.device), network_dtype(network, x0.dtype))
    for clock in _clocks(declared):
        answers = _Remembered(network)
        try:
            smooth = parse_clock(clock["path"], clock["data_at"]).smooth
            for prediction in (p for p in PREDICTIONS if smooth or p != "velocity"):
                declaration = {**clock, "prediction": prediction}
                teacher = as_rectified_flow(answers, **declaration)
                errors = denoising_errors(teacher, seen, cond)
                if _typical(errors) < _typical(best[1]):
                    best = (declaration, errors)
        except Exception:
            continue  # whatever it is, a clock that the network can't be called with isn't its own
    return best


def declaration_notes(
    teacher: nn.Module,
    x0: Tensor,
    cond: Cond,
    *,
    pred_type: str,
    search: bool,
    coupled: bool = False,
) -> list[str]:
    """Lines that say how well the teacher denoises the data, the last ones warnings.

    Args:
        teacher: as it will be distilled, converted or not.
        search: also try other declarations and sources of noise, some tens of calls with 128 rows.
        coupled: the teacher's pairs of data and noise were coupled
            (:mod:`fastgen.teachers.couplings`), which explains errors on independent ones.
    """
    errors = denoising_errors(teacher, x0, cond, pred_type=pred_type)
    shown = ", ".join(f"{error:.3g}" for error in errors)
    lines = [
        f"denoising error of the teacher at t = {', '.join(map(str, TIMES))}: {shown} (the data's "
        "mean: 1)"
    ]
    if max(errors) > _CLEARLY_WORSE and not coupled:
        lines.append(
            "warning: the teacher denoises these data worse than their mean does: are they its "
            "training data, in its units (data.normalize), and is it declared as it was trained "
            "(teacher.path, prediction, data_at, time_scale)?"
        )
    if not search:
        return lines
    bare = teacher
    declared = {"path": {"name": "linear"}, "prediction": pred_type, "data_at": 0}
    declared["time_scale"] = 1.0
    for coat in coats(teacher):
        if isinstance(coat, RectifiedFlow):
            bare = coat.network
            if isinstance(teacher, HalfNetwork):
                bare = HalfNetwork(bare, teacher.takes)
            declared = coat.describe()
    found, least = best_declaration(bare, x0, cond, declared)
    share = _typical(least) / _typical(errors)
    said = ", ".join(
        f"{key}={_spelt(value)}"
        for key, value in {"clip_sample": "unclipped", **found}.items()
        if value != declared.get(key, "unclipped")
    )
    source = None if coupled else _other_source(bare, x0, cond, declared)
    if source is not None and source[1] < _SOURCE_FIRST * share:
        lines.append(source[0].note())
    elif share < _CLEARLY_BETTER and said:
        lines.append(
            f"warning: declared with {said} the teacher would denoise them better: "
            + ", ".join(f"{error:.3g}" for error in least)
        )
    return lines


def _other_source(
    network: nn.Module, x0: Tensor, cond: Cond, declared: dict[str, Any]
) -> tuple[Source, float] | None:
    """What `likely_source` says of a bare network that was declared a straight flow."""
    is_flow = declared["prediction"] in ("flow", "velocity")
    if declared["path"] != {"name": "linear"} or not is_flow:
        return None
    data_at = declared["data_at"]
    towards_data = declared["prediction"] == "velocity" and data_at == 1
    x0, cond = probe_rows(x0, cond, network)

    def velocity(x_s: Tensor, s: Tensor, cond: Cond) -> Tensor:
        own_time = 1.0 - s if data_at == 1 else s
        seen_time = (own_time * declared["time_scale"]).to(time_dtype(x_s.dtype))
        answer = call_intact(network, x_s, seen_time, cond)
        return -answer if towards_data else answer

    with torch.no_grad(), evaluating(network):
        return likely_source(velocity, x0, cond)


def _typical(errors: list[float]) -> float:
    """Geometric mean. Infinity counts as 1e12, so that shares of it can be taken."""
    logs = [math.log(min(max(error, 1e-9), 1e12)) for error in errors]
    return math.exp(sum(logs) / len(logs))


def _clocks(declared: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Paths with their `data_at` and `time_scale`: what was declared, with its clip and without,
    then what is common."""
    own = {key: declared[key] for key in ("path", "data_at", "time_scale")}
    if "clip_sample" in declared:
        yield {**own, "clip_sample": declared["clip_sample"]}
    yield own
    for path in ({"name": "linear"}, {"name": "cosine"}, {"name": "vp"}):
        for data_at in (0, 1):
            for time_scale in (1.0, 1000.0):
                yield {"path": path, "data_at": data_at, "time_scale": time_scale}
    yield {"path": {"name": "edm"}, "data_at": 0, "time_scale": 1.0}
    yield {
        "path": {"name": "betas", "schedule": "squared_cosine", "rows": 100},
        "data_at": 0,
        "time_scale": 1.0,
    }
    for schedule in ("linear", "scaled_linear", "squared_cosine"):
        ends = {}
        if schedule == "scaled_linear":
            ends = {"beta_start": 0.00085, "beta_end": 0.012}
        for nearest in (False, True):
            path = {"name": "betas", "schedule": schedule, **ends, "nearest": nearest}
            yield {"path": path, "data_at": 0, "time_scale": 1.0}


def _spelt(value: Any) -> str:
    """A value as a user writes it in YAML. A path without arguments is its name."""
    if isinstance(value, dict):
        return value["name"] if len(value) == 1 else brief(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


class _Remembered:
    """A network that remembers its answers: a call that it has had before isn't made again."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.calls: dict[tuple[float, float], Tensor] = {}

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        key = (float(t[0]), float(x.double().sum()))
        if key not in self.calls:
            with evaluating(self.network):
                seen = x.to(network_dtype(self.network, x.dtype))
                self.calls[key] = call_intact(self.network, seen, t, cond)
        return self.calls[key]


def _probe(x0: Tensor, cond: Cond, network: nn.Module) -> tuple[Tensor, Tensor, Cond]:
    """(x0, eps, cond): rows to probe a network on, with noise of a fixed seed."""
    x0, cond = probe_rows(x0, cond, network)
    eps = torch.randn(x0.shape, generator=generator_for(0, "declaration")).to(x0)
    eps = real_only(eps, cond)
    return x0, eps, cond
