"""Guided network: a teacher that guides itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .._core.calls import call_intact
from .._core.carried import carried_like
from .._core.checks import at_hand
from .._core.conditions import cond_to, map_tensors, take_rows
from .._core.prefixes import open_tokens, pinned
from ..flow_matching import convert_prediction
from ..guidance import Guidance, guide_x0
from ..networks import Cond, NetworkWrapper, clip_limits, clipped_x0, network_dtype, unclipped_x0

__all__ = ["GuidedNetwork", "asking_all_rows"]


class GuidedNetwork(NetworkWrapper):
    """A teacher that guides itself: called `net(x_t, t, cond)`, it answers the guided prediction of
    `network`.

    In a recipe everything that asks the teacher (pairs, scores, pictures, DMD) must ask the guided
    one. With this wrapper it is one network.

    Rows outside the interval are asked once, those inside it a second time under the null
    condition, so that a row costs the same however a batch is cut. While times lie on a GPU, or a
    network is compiled, all rows are asked twice rather than waiting for what the times are.

    Args:
        network: called `network(x_t, t, cond)`, predicts `pred_type`.
        guidance: scale, interval and rescaling.
        null_cond: the condition to guide away from, with one row, or with a row for each sample. It
            has the masks and the prefix of the condition that it stands in for, so that given
            tokens are known on both sides and stay what they are.
        pred_type: "flow", "x0" or "eps".
    """

    added_by_run = True

    def __init__(
        self, network: nn.Module, guidance: Guidance, null_cond: Cond, *, pred_type: str = "flow"
    ) -> None:
        super().__init__(network)
        self.guidance = guidance
        self.null_cond = null_cond
        self.pred_type = pred_type
        self.asks_all_rows = False

    def predict_x0(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The guided x0 (B, ...), in the dtype of `x_t`; clipped where the network's is, once, as
        the samplers of diffusers do."""
        return pinned(clipped_x0(self, self.unclipped_x0(x_t, t, cond)), cond)

    def unclipped_x0(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """As `predict_x0`, before it is clipped."""
        return self.plain_and_guided(x_t, t, cond)[1]

    def plain_and_guided(self, x_t: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """x0 (B, ...) without and with guidance, in the calls that the guided one costs; neither is
        clipped."""
        plain = unclipped_x0(self.network, x_t, t, cond, pred_type=self.pred_type)

        def null_x0(x_t: Tensor, t: Tensor, null_cond: Cond) -> Tensor:
            return unclipped_x0(self.network, x_t, t, null_cond, pred_type=self.pred_type)

        return plain, self._guided(plain, null_x0, x_t, t, cond)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        """The guided prediction (B, ...) in `pred_type`."""
        linear = not self.guidance.rescale and clip_limits(self) is None
        if linear or self._rows_inside(t) == []:
            # Guidance is linear without them: any prediction is guided by the formula for x0, and
            # is not rounded on a way there and back.
            plain = call_intact(self.network, x_t, t, cond)

            def null(x_t: Tensor, t: Tensor, null_cond: Cond) -> Tensor:
                return call_intact(self.network, x_t, t, null_cond)

            return self._guided(plain, null, x_t, t, cond)
        return convert_prediction(self.predict_x0(x_t, t, cond), x_t, t, "x0", self.pred_type)

    def _guided(
        self,
        plain: Tensor,
        null: Callable[[Tensor, Tensor, Cond], Tensor],
        x_t: Tensor,
        t: Tensor,
        cond: Cond,
    ) -> Tensor:
        """`plain` (B, ...), moved away from what `null` answers for the rows that need it."""
        rows = self._rows_inside(t)
        if rows == []:
            return plain
        null_cond = carried_like(self._null(x_t), cond)
        if rows is None:
            away = null(x_t, t, null_cond)
            return guide_x0(plain, away, t, self.guidance, mask=open_tokens(cond))
        index = torch.tensor(rows, device=x_t.device)
        times = t[rows]
        null_cond = take_rows(null_cond, index)
        away = null(x_t[index], times, null_cond)
        guided = guide_x0(plain[index], away, times, self.guidance, mask=open_tokens(null_cond))
        return plain.index_copy(0, index, guided)

    def _rows_inside(self, t: Tensor) -> list[int] | None:
        """The rows whose times may need the null condition; None: all of them."""
        if self.guidance.scale == 1.0:
            return []
        if self.asks_all_rows or not at_hand(t):
            return None  # rather than waiting for the GPU to say what they are
        low, high = self.guidance.interval
        inside = (t >= low) & (t <= high)
        if bool(inside.all()):
            return None
        return inside.nonzero().flatten().tolist()

    def _null(self, x_t: Tensor) -> Cond:
        """The null condition, a row for each sample."""
        null = cond_to(self.null_cond, x_t.device, network_dtype(self.network, x_t.dtype))
        # Not len(x_t), which torch.export and tracing take for a constant.
        rows = x_t.shape[0]
        return map_tensors(lambda value: value.expand(rows, *value.shape[1:]), null)


@contextmanager
def asking_all_rows(network: nn.Module) -> Iterator[None]:
    """Inside, `network`, if it guides itself, asks each row twice whatever its time: what it may
    cost at most."""
    if not isinstance(network, GuidedNetwork):
        yield
        return
    network.asks_all_rows = True
    try:
        yield
    finally:
        network.asks_all_rows = False
