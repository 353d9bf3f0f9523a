"""The ring as a task: scores on all conditions and on those near opposition."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ..._core.seeds import generator_for
from ..trajectories import EVALUATION_SEED
from . import ring
from .paths import PathTask, mode_error_floor
from .ring import BLOCK, WALL, draw_references

__all__ = ["RingTask"]


class RingTask(PathTask):
    """The ring as a task; arguments as `PathTask`."""

    name = "ring"

    @staticmethod
    def conditions(n: int, generator: Generator, split: str) -> Tensor:
        """Conditions Z (n, 2, 2); of the split "near" near opposition."""
        return ring.sample_conditions(n, generator, near=split == "near")

    demonstrate = staticmethod(ring.demonstrate)
    draw_references = staticmethod(draw_references)
    score = staticmethod(ring.score)

    def evaluate(
        self, sample: Callable[[Tensor, Tensor], Tensor], *, quick: bool = False
    ) -> dict[str, float]:
        """As `PathTask.evaluate` with Z (B, 2, 2); full scores with the suffix `_near` are on as
        many conditions near opposition."""
        if quick:
            return super().evaluate(sample, quick=True)
        # First: the floor's demonstrations are drawn in this order.
        near = self._score(sample, "near")
        return super().evaluate(sample) | {f"{name}_near": value for name, value in near.items()}

    def floor(self) -> dict[str, float]:
        """Full scores of one more set of demonstrations, and `mode_error_floor` (`_near`), their
        exact expectation."""
        scores = super().floor()
        for split, suffix in (("all", ""), ("near", "_near")):
            scores[f"mode_error_floor{suffix}"] = mode_error_floor(
                self.references(split)[0].p, self.SAMPLES
            )
        return scores

    def scene(self) -> dict:
        """What to draw behind trajectories: the block, the limits of the room, equal axes."""
        corners = [(-BLOCK, -BLOCK), (BLOCK, -BLOCK), (BLOCK, BLOCK), (-BLOCK, BLOCK)]
        return {"obstacles": [corners], "limits": (-WALL, WALL, -WALL, WALL), "equal": True}

    def examples(self, n: int = 6) -> tuple[Tensor, Tensor]:
        """Z (n, 2, 2) and a demonstration X (n, 16, 2) of each, float32; the second half of them is
        near opposition."""
        generator = generator_for(EVALUATION_SEED, "ring", "examples")
        halves = ((n - n // 2, "all"), (n // 2, "near"))
        Z = torch.cat([self.conditions(m, generator, split) for m, split in halves])
        return Z.float(), self.demonstrate(Z, generator).float()
