"""The embedded task `ring`: drive around a block, either way round.

A point of radius 0.1 moves in the square |x|_inf <= 1.5 without the block |x|_inf <= 0.5. The
condition Z = (start, goal) is two points, the trajectory X is sixteen waypoints equally spaced in
arc length from the start (excluded) to the end. Positions are described by the *loop*
|x|_inf = 1 of perimeter 8, with arc length s in [0, 8) counter-clockwise from (1, 0):

    start = r_0 loop(s_0),    goal = r_1 loop(s_0 + L),
    s_0 ~ U(0, 8),    L ~ U(1, 7),    r_0, r_1 ~ U(.72, 1.28).

The demonstrator goes counter-clockwise with probability p = sigmoid((8 - 2 L) / 0.5). *Near
opposition*, L = 4 +- 0.5, both directions are likely, and their mean drives through the block.

A quarter turn of the plane adds 2 to s, and the reflection (x, y) -> (x, -y) negates s. So the law
of (Z, X) is exactly invariant under all eight elements of D4; reflections swap the two directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ..scoring import evaluation_generator
from .paths import (
    HORIZON,
    PathTask,
    References,
    clears_and_arrives,
    mode_error_floor,
    polyline,
    resample,
    within_mode_spread,
)

__all__ = [
    "RingTask",
    "ccw_offset",
    "ccw_probability",
    "clearance",
    "demonstrate",
    "draw_references",
    "goes_ccw",
    "loop_coordinate",
    "loop_point",
    "rollout",
    "sample_conditions",
    "score",
    "succeeds",
]

# The block is |x|_inf <= BLOCK, the room |x|_inf <= WALL.
BLOCK = 0.5
WALL = 1.5
# Of the loop |x|_inf = 1.
PERIMETER = 8.0

# The demonstrator: its time steps of DT, the gain of its controller, the noise of its acceleration.
STEPS = 150
DT = 0.05
GAIN = 8.0
NOISE = 0.02
# The carrot's lead on the loop. Closer than BRAKE to the carrot, the desired speed falls in
# proportion to the distance.
AHEAD = 0.45
BRAKE = 0.25


# ---- The loop and the conditions ----------------------------------------------------------------


def loop_point(s: Tensor) -> Tensor:
    """The point at loop coordinate s (...) on |x|_inf = 1, (..., 2)."""
    x = ((s % PERIMETER) - 4).abs() - 2
    y = (((s - 2) % PERIMETER) - 4).abs() - 2
    return torch.stack([x, y], -1).clamp(-1, 1)


def loop_coordinate(x: Tensor) -> Tensor:
    """Loop coordinate in [0, 8) of x / |x|_inf, for x (..., 2); 0 at the origin."""
    size = x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    q = x / size
    qx, qy = q.unbind(-1)
    side = torch.where(qx > 0, qy, 4 - qy)
    end = torch.where(qy > 0, 2 - qx, 6 + qx)
    return torch.where(qx.abs() >= qy.abs(), side, end) % PERIMETER


def _wrap(ds: Tensor) -> Tensor:
    """The representative in [-4, 4) of a difference of loop coordinates."""
    return (ds + PERIMETER / 2) % PERIMETER - PERIMETER / 2


def sample_conditions(n: int, generator: Generator | None = None, *, near: bool = False) -> Tensor:
    """Conditions Z = (start, goal), (n, 2, 2) float64. The loop offset is U(1, 7), with `near`
    U(3.5, 4.5)."""
    u = torch.rand(n, 4, generator=generator, dtype=torch.float64)
    s = PERIMETER * u[:, 0]
    offset = 3.5 + u[:, 1] if near else 1 + 6 * u[:, 1]
    radius = 0.72 + 0.56 * u[:, 2:]
    return radius[..., None] * loop_point(torch.stack([s, s + offset], 1))


def ccw_offset(Z: Tensor) -> Tensor:
    """Counter-clockwise loop distance L in [0, 8) from start to goal: Z (N, 2, 2) -> (N,)."""
    s = loop_coordinate(Z.double())
    return (s[:, 1] - s[:, 0]) % PERIMETER


def ccw_probability(Z: Tensor) -> Tensor:
    """Probability p = sigmoid((8 - 2 L) / 0.5) that the demonstrator goes counter-clockwise:
    Z (N, 2, 2) -> (N,)."""
    return torch.sigmoid((PERIMETER - 2 * ccw_offset(Z)) / 0.5)


# ---- The demonstrator ---------------------------------------------------------------------------


def demonstrate(Z: Tensor, generator: Generator | None = None) -> Tensor:
    """One demonstration for each condition: Z (N, 2, 2) -> X (N, 16, 2), float64.

    `generator` draws, in this order: direction, lane factor U(.85, 1.15) and speed U(.9, 1.1) of
    each condition; then the acceleration noise of all steps.
    """
    u = torch.rand(Z.shape[0], 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(Z.shape[0], STEPS, 2, generator=generator, dtype=torch.float64)
    ccw = u[:, 0] < ccw_probability(Z)
    lane = 0.85 + 0.3 * u[:, 1]
    speed = 0.9 + 0.2 * u[:, 2]
    return rollout(Z, ccw, lane=lane, speed=speed, noise=noise)


def rollout(Z: Tensor, ccw: Tensor, *, lane: Tensor, speed: Tensor, noise: Tensor) -> Tensor:
    """The demonstrator with its randomness given: a point with inertia that follows a carrot.

    The carrot runs on the loop, 0.45 ahead of the follower's own loop coordinate and at the radius
    `lane`. It never passes the goal, and once there it *is* the goal. With c the carrot, e = c - x
    and dt = .05, the follower makes 150 steps from rest:

        v <- v + dt [8 (speed e / max(|e|, .25) - v) + noise .02 / sqrt(dt)],    x <- x + dt v.

    Args:
        Z: (N, 2, 2).
        ccw: (N,) bool, whether it goes counter-clockwise.
        lane, speed: (N,).
        noise: (N, 150, 2), standard normal.

    Returns:
        (N, 16, 2) float64, equally spaced in arc length. Rotating Z and noise by a quarter turn
        rotates it; reflecting them and negating `ccw` reflects it.
    """
    Z = Z.double()
    sign = torch.where(ccw, 1.0, -1.0).double()
    start = Z[:, 0]
    goal = Z[:, 1]
    s_goal = loop_coordinate(goal)
    length = (sign * (s_goal - loop_coordinate(start))) % PERIMETER
    kick = noise.double() * (NOISE / math.sqrt(DT))

    x = start.clone()
    v = torch.zeros_like(start)
    s = loop_coordinate(x)
    travelled = torch.zeros_like(length)
    path = torch.empty(Z.shape[0], STEPS + 1, 2, dtype=torch.float64)
    path[:, 0] = x
    for step in range(STEPS):
        at_goal = length - travelled <= AHEAD
        carrot = torch.where(at_goal[:, None], goal, lane[:, None] * loop_point(s + sign * AHEAD))
        e = carrot - x
        wanted = speed[:, None] * e / e.norm(dim=1, keepdim=True).clamp_min(BRAKE)
        v = v + DT * (GAIN * (wanted - v) + kick[:, step])
        x = x + DT * v
        s_next = loop_coordinate(x)
        # Progress is summed in small steps: a loop distance alone can't tell just past the goal
        # from a whole lap before it.
        travelled = travelled + sign * _wrap(s_next - s)
        s = s_next
        path[:, step + 1] = x
    return resample(path, HORIZON)


# ---- Geometry of a path -------------------------------------------------------------------------


def clearance(X: Tensor, Z: Tensor) -> Tensor:
    """Least Euclidean distance of paths to block and walls, 0 where they meet them: (N,) float64.

    It is exact for the segments start -> waypoints, not only for the waypoints.

    Args:
        X: paths (N, T, 2).
        Z: conditions (N, 2, 2).
    """
    points = polyline(X, Z)
    # The distance to the walls is concave along a segment, so it is least at one of its ends.
    to_wall = (WALL - points.abs().amax(-1)).amin(1).clamp_min(0)
    return torch.minimum(to_wall, _segment_to_block(points[:, :-1], points[:, 1:]).amin(1))


def _segment_to_block(a: Tensor, b: Tensor) -> Tensor:
    """Distance of the segments a -> b, (..., 2), to the square |x|_inf <= BLOCK: (...)."""
    # Disjoint convex polygons are closest at a vertex of one of them: an end of the segment or a
    # corner of the block.
    ends = torch.minimum(*((p.abs() - BLOCK).clamp_min(0).norm(dim=-1) for p in (a, b)))
    corners = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]], dtype=a.dtype) * BLOCK
    d = b - a
    to_corner = corners - a[..., None, :]
    squared = d.square().sum(-1, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny)
    t = (to_corner * d[..., None, :]).sum(-1) / squared
    corner = (to_corner - t.clamp(0, 1)[..., None] * d[..., None, :]).norm(dim=-1).amin(-1)
    return torch.where(_meets_block(a, d), torch.zeros_like(ends), torch.minimum(ends, corner))


def _meets_block(a: Tensor, d: Tensor) -> Tensor:
    """Whether the segments from a to a + d, (..., 2), meet the block: (...) bool."""
    # A segment enters and leaves the strip |x_i| <= BLOCK of each axis at two of its parameters; it
    # meets the block if it is in both strips at once.
    parallel = d == 0
    safe = torch.where(parallel, torch.ones_like(d), d)
    t1 = (-BLOCK - a) / safe
    t2 = (BLOCK - a) / safe
    inside = a.abs() <= BLOCK
    first = torch.where(parallel, torch.where(inside, -math.inf, math.inf), torch.minimum(t1, t2))
    last = torch.where(parallel, torch.where(inside, math.inf, -math.inf), torch.maximum(t1, t2))
    enter = first.amax(-1).clamp_min(0)
    leave = last.amin(-1).clamp_max(1)
    return enter <= leave


def succeeds(X: Tensor, Z: Tensor) -> Tensor:
    """Whether paths keep clear of block and walls by the point's radius and end within 0.15 of the
    goal: (N,) bool."""
    return clears_and_arrives(X, Z, clearance(X, Z))


def goes_ccw(X: Tensor, Z: Tensor) -> Tensor:
    """Whether the loop coordinate grows in all, summed over the segments start -> waypoints:
    (N,) bool."""
    return _wrap(loop_coordinate(polyline(X, Z)).diff(dim=1)).sum(1) > 0


# ---- Scores -------------------------------------------------------------------------------------


def draw_references(Z: Tensor, size: int, generator: Generator | None = None) -> References:
    """A fresh pool of `size` >= 2 demonstrations for each condition of Z (C, 2, 2)."""
    tiled = Z.repeat_interleave(size, 0)
    flat = demonstrate(tiled, generator)
    X = flat.view(-1, size, HORIZON, 2)
    modes = goes_ccw(flat, tiled).view(-1, size)
    return References.of(Z, X, ccw_probability(Z), modes, clearance(flat, tiled))


def score(X: Tensor, references: References) -> dict[str, float]:
    """Scores of K samples X (C, K, 16, 2) of each of the references' conditions.

    Returns:
        success: share of samples for which `succeeds`.
        mode_error: mean over conditions of |share counter-clockwise - p|.
        energy_ratio: mean over conditions of the energy distance (V-statistic) between the K
            samples and K demonstrations, divided by the mean of that between two sets of K
            demonstrations; in expectation 1 for the demonstrator.
        clearance: mean least distance to block and walls, relative to the demonstrations'.
        spread: `within_mode_spread`, relative to the demonstrations'.

    Raises:
        ValueError: samples of another shape or with NaN.
    """
    X, flat, tiled = references.checked(X)
    samples = X.shape[1]
    ccw = goes_ccw(flat, tiled).view(-1, samples)
    least = clearance(flat, tiled)
    return {
        "success": float(clears_and_arrives(flat, tiled, least).double().mean()),
        "mode_error": float((ccw.double().mean(1) - references.p).abs().mean()),
        "energy_ratio": float(references.energy(X).mean() / references.own_energy(samples).mean()),
        "clearance": float(least.mean()) / references.clearance,
        "spread": within_mode_spread(X, ccw) / references.spread,
    }


# ---- The task -----------------------------------------------------------------------------------


class RingTask(PathTask):
    """The ring as a task; arguments as `PathTask`."""

    name = "ring"

    @staticmethod
    def conditions(n: int, generator: Generator, split: str) -> Tensor:
        """Conditions Z (n, 2, 2); those of the split "near" are near opposition."""
        return sample_conditions(n, generator, near=split == "near")

    demonstrate = staticmethod(demonstrate)
    draw_references = staticmethod(draw_references)
    score = staticmethod(score)
    succeeds = staticmethod(succeeds)

    def evaluate(
        self, sample: Callable[[Tensor, Tensor], Tensor], *, quick: bool = False
    ) -> dict[str, float]:
        """As `PathTask.evaluate`. Full scores with the suffix `_near` are on as many conditions
        near opposition."""
        if quick:
            return super().evaluate(sample, quick=True)
        # Near opposition first: the floor's demonstrations are drawn in this order.
        near = self.score_on(sample, "near")
        return super().evaluate(sample) | {f"{name}_near": value for name, value in near.items()}

    def floor(self) -> dict[str, float]:
        """Full scores of one more set of demonstrations, and as `mode_error_floor` (`_near`) the
        exact expectation of their mode errors."""
        scores = super().floor()
        for split, suffix in (("all", ""), ("near", "_near")):
            p = self.references(split)[0].p
            scores[f"mode_error_floor{suffix}"] = mode_error_floor(p, self.SAMPLES)
        return scores

    def scene(self) -> dict:
        """What to draw around trajectories: the block, the limits of the room, equal axes."""
        corners = [(-BLOCK, -BLOCK), (BLOCK, -BLOCK), (BLOCK, BLOCK), (-BLOCK, BLOCK)]
        return {"obstacles": [corners], "limits": (-WALL, WALL, -WALL, WALL), "equal": True}

    def examples(self, n: int = 6) -> tuple[Tensor, Tensor]:
        """Z (n, 2, 2) and a demonstration X (n, 16, 2) of each, float32. The second half of them is
        near opposition."""
        generator = evaluation_generator("ring", "examples")
        halves = ((n - n // 2, "all"), (n // 2, "near"))
        Z = torch.cat([self.conditions(m, generator, split) for m, split in halves])
        return Z.float(), self.demonstrate(Z, generator).float()
