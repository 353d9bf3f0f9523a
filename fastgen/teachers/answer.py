"""The answers of a network before and during work: whether it can be called with the data at all,
and where an answer is no number, by network, time, row and label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._core.calls import call_intact
from .._core.conditions import cond_text, cond_to, named_tensors, take_rows
from .._core.made_rows import blocks_of
from .._core.masks import is_masked
from .._core.messages import brief
from .._core.modules import evaluating
from .._core.seeds import generator_for
from ..flow_matching import add_noise
from ..networks import WAYS_TO_X0, Cond, NetworkWrapper, call_network, network_device, network_dtype

__all__ = ["Watched", "answer_of", "first_gap", "telling_rows"]

# What a network raises that is called with data it is not made for.
_MISFITS = (RuntimeError, LookupError, AttributeError, AssertionError, TypeError, ValueError)
_SHOWN = 5  # rows of which an error speaks
_MASKED = (
    "; the data are padded, so that the condition is a mapping of Z, mask (B, T_x) and cond_mask "
    "(B, T_z), as far as there are such: the network has to take it, with attention to real tokens "
    "alone"
)


@torch.no_grad()
def answer_of(
    network: nn.Module,
    x0: Tensor,
    cond: Cond,
    time: float = 0.5,
    *,
    rows: Sequence[int] = (0, 1),
    who: str = "the teacher",
) -> Tensor:
    """What the network predicts for some of the samples at `time`, shape (rows, ...).

    Args:
        network: called `network(x_t, t, cond)`.
        x0, cond: data (N, ...) and its conditions, N rows each or None.
        time: RF time, or beyond 1 for a network that is to be called so.
        rows: of the data; those beyond the last are left out.
        who: the network, for people.

    Raises:
        ValueError: a network without parameters, one that cannot be called so, or an answer that is
            not finite or not of the samples' shape.
    """
    if not any(True for _ in network.parameters()):
        raise ValueError(
            f"expected a teacher with parameters to copy and train, got {type(network).__name__} "
            "without"
        )
    device = network_device(network, x0.device)
    dtype = network_dtype(network, x0.dtype)
    chosen = torch.tensor([row for row in rows if row < len(x0)])
    x_t = cond_to(x0[chosen], device, dtype)
    z = cond_to(take_rows(cond, chosen), device, dtype)
    t = torch.full((len(x_t),), time, device=x_t.device)
    given = f"x_t {tuple(x_t.shape)}, t {tuple(t.shape)}, cond {cond_text(z)}"
    try:
        with evaluating(network):
            pred = call_intact(network, x_t, t, z)
    except _MISFITS as error:
        raise ValueError(
            f"expected a teacher that can be called with {given}, got: {brief(error)}"
            f"{_labels_text(z)}{_MASKED if is_masked(z) else ''}"
        ) from error
    if not isinstance(pred, Tensor) or pred.shape != x_t.shape:
        got = tuple(pred.shape) if isinstance(pred, Tensor) else type(pred).__name__
        raise ValueError(f"expected the teacher to answer {given} with the shape of x_t, got {got}")
    _check_finite(pred, t, z, chosen, who)
    return pred


def telling_rows(cond: Cond) -> list[int]:
    """The rows that hold the least and the greatest number of each integer member of a condition,
    and those that hide and show most of each mask: where a network fails that doesn't know a label,
    or that can't be shown nothing."""
    rows: set[int] = set()
    for value in named_tensors(cond).values():
        if value.is_floating_point() or not value.numel():
            continue
        # In blocks, since masks may be made when they are taken.
        least, greatest = zip(*map(_row_ends, blocks_of(value)), strict=True)
        rows.add(int(torch.cat(least).argmin()))
        rows.add(int(torch.cat(greatest).argmax()))
    return sorted(rows)


def _row_ends(value: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest number of each row, (B,); of a mask how many it shows, twice."""
    numbers = value.reshape(len(value), -1)
    if value.dtype == torch.bool:
        numbers = numbers.sum(1, keepdim=True)
    return numbers.amin(1), numbers.amax(1)


class Watched(NetworkWrapper):
    """A network whose every answer is looked at: the first that is not finite is an error that
    names the network, the time, the rows and their labels.

    Looking waits for the device, so it is put around a network to find out what went wrong.

    Args:
        network: called `network(x_t, t, cond)`.
        who: for people, such as "the teacher".
        rows: what to call the rows that it is given, (B,).
    """

    added_by_run = True
    # What has a way of its own to x0 would not be seen.
    passes_on = tuple(name for name in NetworkWrapper.passes_on if name not in WAYS_TO_X0)

    def __init__(self, network: Any, who: str, rows: Tensor) -> None:
        super().__init__(network)
        self.who = who
        self.rows = rows

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        """The network's answer.

        Raises:
            ValueError: it is not finite.
        """
        answer = call_intact(self.network, x_t, t, cond)
        _check_finite(answer, t, cond, self.rows, self.who)
        return answer


@torch.no_grad()
def first_gap(
    networks: Mapping[str, nn.Module],
    x0: Tensor,
    cond: Cond,
    rows: Tensor,
    times: Sequence[float],
) -> str | None:
    """What the first of some networks says that answers no number for noised rows of the data; None
    if all answer.

    Args:
        networks: by what they are called, such as "the teacher".
        x0, cond: data (N, ...) and its conditions, N rows each or None.
        rows: of the data, (n,).
        times: RF times.
    """
    eps = torch.randn(x0[rows].shape, generator=generator_for(0, "gap"), dtype=x0.dtype)
    for who, network in networks.items():
        device = network_device(network, x0.device)
        dtype = network_dtype(network, x0.dtype)
        z = cond_to(take_rows(cond, rows), device, dtype)
        watched = Watched(network, who, rows)
        for time in times:
            x_t = add_noise(x0[rows], eps, time).to(device)
            try:
                with evaluating(network):
                    call_network(watched, x_t, time, z, dtype=x0.dtype)
            except ValueError as error:
                return f"{error} of the training data"
    return None


def _check_finite(answer: Tensor, t: Tensor, cond: Cond, rows: Tensor, who: str) -> None:
    """ValueError that names the rows of an answer (B, ...) that hold NaN or infinity."""
    finite = torch.isfinite(answer.reshape(len(answer), -1)).all(1).cpu()
    if bool(finite.all()):
        return
    at = (~finite).nonzero().flatten()
    time = float(t.expand(len(answer))[int(at[0])])
    named = [str(int(row)) for row in rows[at[:_SHOWN]]]
    if len(at) > _SHOWN:
        named.append(f"... ({len(at)} of {len(answer)})")
    labels = _labels_text(take_rows(cond, at[:_SHOWN].to(answer.device)))
    raise ValueError(
        f"expected finite numbers from {who}, got NaN or infinity at t = {time:.6g} in "
        f"{'row' if len(at) == 1 else 'rows'} {', '.join(named)}{labels}"
    )


def _labels_text(cond: Cond) -> str:
    """The labels in some rows of a condition, for people: " (Z 3, 7)"; nothing where there are
    none."""
    parts = []
    for name, value in named_tensors(cond).items():
        if value.is_floating_point() or value.dtype == torch.bool or value[:1].numel() != 1:
            continue
        parts.append(f"{name} {', '.join(map(str, value.flatten().tolist()))}")
    return f" ({'; '.join(parts)})" if parts else ""
