"""Guided network: a teacher that guides itself."""

from __future__ import annotations

from torch import Tensor, nn

from .._core.calls import call_intact
from .._core.checks import at_hand
from .._core.conditions import cond_to, map_tensors
from ..flow_matching import convert_prediction
from ..guidance import Guidance, guide_x0
from ..networks import Cond, NetworkWrapper, clip_limits, clipped_x0, network_dtype, unclipped_x0

__all__ = ["GuidedNetwork"]


class GuidedNetwork(NetworkWrapper):
    """A teacher that guides itself: called `net(x_t, t, cond)`, it answers the guided prediction of
    `network`.

    In a recipe everything that asks the teacher (pairs, scores, pictures, DMD) must ask the guided
    one. With this wrapper it is one network.

    Args:
        network: called `network(x_t, t, cond)`, predicts `pred_type`.
        guidance: scale, interval and rescaling.
        null_cond: the condition to guide away from, with one row, or with a row for each sample.
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

    def predict_x0(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The guided x0 (B, ...), in the dtype of `x_t`; clipped where the network's is, once, as
        the samplers of diffusers do."""
        return clipped_x0(self, self.unclipped_x0(x_t, t, cond))

    def unclipped_x0(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """As `predict_x0`, before it is clipped."""
        return self.plain_and_guided(x_t, t, cond)[1]

    def plain_and_guided(self, x_t: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """x0 (B, ...) without and with guidance, in the calls that the guided one costs; neither is
        clipped."""
        plain = unclipped_x0(self.network, x_t, t, cond, pred_type=self.pred_type)
        if not self._guides(t):
            return plain, plain
        null = unclipped_x0(self.network, x_t, t, self._null(x_t), pred_type=self.pred_type)
        return plain, guide_x0(plain, null, t, self.guidance)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        """The guided prediction (B, ...) in `pred_type`."""
        if not self._guides(t):
            return call_intact(self.network, x_t, t, cond)
        if not self.guidance.rescale and clip_limits(self) is None:
            # Guidance is linear without them: any prediction is guided by the formula for x0, and
            # is not rounded on a way there and back.
            plain = call_intact(self.network, x_t, t, cond)
            null = call_intact(self.network, x_t, t, self._null(x_t))
            return guide_x0(plain, null, t, self.guidance)
        return convert_prediction(self.predict_x0(x_t, t, cond), x_t, t, "x0", self.pred_type)

    def _guides(self, t: Tensor) -> bool:
        """Whether any of the times may need the null condition."""
        if self.guidance.scale == 1.0:
            return False
        if not at_hand(t):
            return True  # rather than waiting for the GPU to say what they are
        low, high = self.guidance.interval
        return bool(((t >= low) & (t <= high)).any())

    def _null(self, x_t: Tensor) -> Cond:
        """The null condition, a row for each sample."""
        null = cond_to(self.null_cond, x_t.device, network_dtype(self.network, x_t.dtype))
        # Not len(x_t), which torch.export and tracing take for a constant.
        rows = x_t.shape[0]
        return map_tensors(lambda value: value.expand(rows, *value.shape[1:]), null)
