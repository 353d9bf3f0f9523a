"""Two posts in sequence as a task: its scores and its scene."""

from __future__ import annotations

from torch import Generator, Tensor

from ..._core.seeds import generator_for
from ..trajectories import EVALUATION_SEED
from . import two_rings
from .paths import PathTask
from .two_rings import POST, class_error_floor

__all__ = ["TwoRingsTask"]


class TwoRingsTask(PathTask):
    """Two posts in sequence as a task; arguments as `PathTask`.

    The law is invariant under all rotations and reflections; D4 is the default because a network
    pays for the elements of its group. Any C_n or D_n, n >= 3, fits as well.
    """

    name = "two_rings"

    @staticmethod
    def conditions(n: int, generator: Generator, split: str) -> Tensor:
        """Conditions Z (n, 4, 2); the same law in every split."""
        return two_rings.sample_conditions(n, generator)

    demonstrate = staticmethod(two_rings.demonstrate)
    draw_references = staticmethod(two_rings.draw_references)
    score = staticmethod(two_rings.score)

    def floor(self) -> dict[str, float]:
        """Full scores of one more set of demonstrations, and `mode_error_floor`, their exact
        expectation."""
        p = self.references("all")[0].p
        return super().floor() | {"mode_error_floor": class_error_floor(p, self.SAMPLES)}

    def scene(self) -> dict:
        """Discs at the points of Z after start and goal; equal axes."""
        return {"obstacles": [], "discs": POST, "limits": (-2.1, 2.1, -2.1, 2.1), "equal": True}

    def examples(self, n: int = 6) -> tuple[Tensor, Tensor]:
        """Z (n, 4, 2) and a demonstration X (n, 16, 2) of each, float32."""
        generator = generator_for(EVALUATION_SEED, "two_rings", "examples")
        Z = two_rings.sample_conditions(n, generator)
        return Z.float(), two_rings.demonstrate(Z, generator).float()
