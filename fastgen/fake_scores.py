"""The student's score: a trainable copy of the teacher that learns to denoise what the student makes now."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from ._tensor import check_count
from .networks import Cond, NetworkWrapper

__all__ = ["RungConditioned", "create_fake_score"]


class RungConditioned(NetworkWrapper):
    """A fake score that knows which rung of the student made the sample it denoises.

    It calls `network(x_t, t + rung, cond)`: rung r uses the times [r, r + 1] of the network's own time embedding, which
    needs no new weights and respects every symmetry the embedding respects. Rung 0 *is* the plain network, so a start
    from the teacher's weights is exact there; the other rungs start from the embedding's continuation beyond 1 and are
    learned in the fake score's warm-up.

    Args:
        network: denoiser called `network(x_t, t, cond)` that doesn't clamp t to [0, 1].
        num_rungs: number of rungs, >= 1.
    """

    def __init__(self, network: nn.Module, num_rungs: int) -> None:
        super().__init__(network)
        if hasattr(network, "t_max"):
            raise ValueError(
                "expected a network that takes times beyond 1, got one that clamps them to its own range "
                f"(t_max={network.t_max}); set fake_score_rung_conditioned=False"
            )
        self.num_rungs = check_count("num_rungs", num_rungs)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond, rung: int | Tensor = 0) -> Tensor:
        """Predict from `x_t` (B, ...) at `t` (B,), made at `rung`: an int or integers (B,)."""
        if isinstance(rung, int) and not 0 <= rung < self.num_rungs:
            raise ValueError(f"expected rung in [0, {self.num_rungs}), got {rung}")
        return self.network(x_t, t + rung, cond)


def create_fake_score(teacher: nn.Module, *, num_rungs: int = 1) -> nn.Module:
    """A trainable copy of the teacher, wrapped in `RungConditioned` if there is more than one rung.

    At the start fake score and teacher agree, and the VSD gradient is zero: warm the fake score up first.
    """
    fake_score = copy.deepcopy(teacher).requires_grad_(True)
    return fake_score if num_rungs == 1 else RungConditioned(fake_score, num_rungs)
