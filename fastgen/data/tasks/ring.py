"""The embedded task `ring`: drive around a block, either way round, with a law that is known and
exactly D4-symmetric.

A point of radius 0.1 moves in the square |x|_inf <= 1.5 without the block |x|_inf <= 0.5. The
condition Z = (start, goal) is two points, the trajectory X sixteen waypoints equally spaced in arc
length from the start (excluded) to the end. Positions are described by the *loop* |x|_inf = 1 of
perimeter 8, parametrised by arc length s in [0, 8) counter-clockwise from (1, 0):

    start = r_0 loop(s_0),  goal = r_1 loop(s_0 + L),   s_0 ~ U(0, 8),  L ~ U(1, 7),  r_0, r_1 ~ U(.72, 1.28).

The demonstrator goes counter-clockwise with probability p = sigmoid((8 - 2 L) / 0.5). A quarter
turn of the plane adds 2 to s, the reflection (x, y) -> (x, -y) negates it, so the law of (Z, X) is
invariant under all eight elements of D4, with the two directions swapped by reflections. *Near
opposition*, L = 4 +- 0.5, both directions are likely, and their mean drives through the block.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from .paths import (
    HORIZON,
    References,
    _polyline,
    check_samples,
    clears_and_arrives,
    resample,
    within_mode_spread,
)

__all__ = [
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

BLOCK = 0.5
WALL = 1.5


PERIMETER = 8.0


STEPS = 150
DT = 0.05
GAIN = 8.0
NOISE = 0.02
AHEAD = 0.45  # the carrot's lead on the loop
BRAKE = 0.25  # closer than this to the carrot the desired speed falls in proportion to the distance


# --- the loop and the conditions ------------------------------------------------------------------


def loop_point(s: Tensor) -> Tensor:
    """The point at loop coordinate s (...) on |x|_inf = 1, (..., 2)."""
    x = ((s % PERIMETER) - 4).abs() - 2
    y = (((s - 2) % PERIMETER) - 4).abs() - 2
    return torch.stack([x, y], -1).clamp(-1, 1)


def loop_coordinate(x: Tensor) -> Tensor:
    """Loop coordinate in [0, 8) of x / |x|_inf, for x (..., 2) other than the origin (where it is
    0)."""
    q = x / x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    qx, qy = q.unbind(-1)
    side = torch.where(qx > 0, qy, 4 - qy)
    end = torch.where(qy > 0, 2 - qx, 6 + qx)
    return torch.where(qx.abs() >= qy.abs(), side, end) % PERIMETER


def _wrap(ds: Tensor) -> Tensor:
    """The representative in [-4, 4) of a difference of loop coordinates."""
    return (ds + PERIMETER / 2) % PERIMETER - PERIMETER / 2


def sample_conditions(n: int, generator: Generator | None = None, *, near: bool = False) -> Tensor:
    """Conditions Z (n, 2, 2) float64 = (start, goal); with `near` the loop offset is 4 +- 0.5, else
    U(1, 7)."""
    u = torch.rand(n, 4, generator=generator, dtype=torch.float64)
    s = PERIMETER * u[:, 0]
    offset = 3.5 + u[:, 1] if near else 1 + 6 * u[:, 1]
    radius = 0.72 + 0.56 * u[:, 2:]
    return radius[..., None] * loop_point(torch.stack([s, s + offset], 1))


def ccw_offset(Z: Tensor) -> Tensor:
    """Counter-clockwise loop distance L in [0, 8) from start to goal, for Z (N, 2, 2) -> (N,)."""
    s = loop_coordinate(Z.double())
    return (s[:, 1] - s[:, 0]) % PERIMETER


def ccw_probability(Z: Tensor) -> Tensor:
    """Probability p = sigmoid((8 - 2 L) / 0.5) that the demonstrator goes counter-clockwise; Z (N,
    2, 2) -> (N,)."""
    return torch.sigmoid((PERIMETER - 2 * ccw_offset(Z)) / 0.5)


# --- the demonstrator -----------------------------------------------------------------------------


def demonstrate(Z: Tensor, generator: Generator | None = None) -> Tensor:
    """One demonstration for each condition: X (N, 16, 2) float64 for Z (N, 2, 2), a function of Z
    and the draws alone.

    Draws of `generator`, in this order: (direction, lane factor U(.85, 1.15), speed U(.9, 1.1)) of
    each condition, then the acceleration noise of all steps.
    """
    u = torch.rand(Z.shape[0], 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(Z.shape[0], STEPS, 2, generator=generator, dtype=torch.float64)
    return rollout(
        Z,
        u[:, 0] < ccw_probability(Z),
        lane=0.85 + 0.3 * u[:, 1],
        speed=0.9 + 0.2 * u[:, 2],
        noise=noise,
    )


def rollout(Z: Tensor, ccw: Tensor, *, lane: Tensor, speed: Tensor, noise: Tensor) -> Tensor:
    """The demonstrator with its randomness given: a carrot follower with the dynamics of a double
    integrator.

    The carrot runs on the loop 0.45 ahead of the follower's own loop coordinate, at the radius
    `lane`; it never passes the goal, and once there it *is* the goal. With c the carrot and e = c -
    x,

        v <- v + dt [8 (speed e / max(|e|, .25) - v) + noise .02 / sqrt(dt)],   x <- x + dt v,

    150 steps of dt = .05, from rest.

    Args:
        Z: (N, 2, 2).      ccw: (N,) bool, direction.      lane, speed: (N,).      noise: (N, 150, 2), standard normal.

    Returns: (N, 16, 2) float64, equally spaced in arc length. Rotating Z and noise by a quarter
    turn rotates it;
        reflecting them and negating `ccw` reflects it.
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
        # Progress is summed in small steps: loop distance can't tell just past the goal from a
        # whole lap before it.
        travelled = travelled + sign * _wrap(s_next - s)
        s = s_next
        path[:, step + 1] = x
    return resample(path, HORIZON)


# --- geometry of a path ---------------------------------------------------------------------------


def clearance(X: Tensor, Z: Tensor) -> Tensor:
    """Least Euclidean distance of the polyline start -> waypoints to block and walls, 0 where it
    meets them; (N,) float64.

    Exact for the segments, not only for the waypoints. X (N, T, 2), Z (N, 2, 2).
    """
    points = _polyline(X, Z)
    # The distance to the walls is concave along a segment, so it is least at one of its ends.
    to_wall = (WALL - points.abs().amax(-1)).amin(1).clamp_min(0)
    return torch.minimum(to_wall, _segment_to_block(points[:, :-1], points[:, 1:]).amin(1))


def _segment_to_block(a: Tensor, b: Tensor) -> Tensor:
    """Distance of the segments a -> b, (..., 2), to the square |x|_inf <= BLOCK: (...)."""
    d = b - a
    # Slab test: the parameters at which the segment enters and leaves the strip |x_i| <= BLOCK of
    # each axis.
    parallel = d == 0
    safe = torch.where(parallel, torch.ones_like(d), d)
    t1 = (-BLOCK - a) / safe
    t2 = (BLOCK - a) / safe
    inside = a.abs() <= BLOCK
    enter = (
        torch.where(parallel, torch.where(inside, -math.inf, math.inf), torch.minimum(t1, t2))
        .amax(-1)
        .clamp_min(0)
    )
    leave = (
        torch.where(parallel, torch.where(inside, math.inf, -math.inf), torch.maximum(t1, t2))
        .amin(-1)
        .clamp_max(1)
    )
    # Disjoint convex polygons are closest at a vertex of one of them: an end of the segment or a
    # corner of the block.
    ends = torch.minimum(*((p.abs() - BLOCK).clamp_min(0).norm(dim=-1) for p in (a, b)))
    corners = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]], dtype=a.dtype) * BLOCK
    to_corner = corners - a[..., None, :]
    t = (to_corner * d[..., None, :]).sum(-1) / d.square().sum(-1, keepdim=True).clamp_min(
        torch.finfo(a.dtype).tiny
    )
    corner = (to_corner - t.clamp(0, 1)[..., None] * d[..., None, :]).norm(dim=-1).amin(-1)
    return torch.where(enter <= leave, torch.zeros_like(ends), torch.minimum(ends, corner))


def succeeds(X: Tensor, Z: Tensor) -> Tensor:
    """Whether the point keeps clear of block and walls by its radius and ends within 0.15 of the
    goal: (N,) bool."""
    return clears_and_arrives(X, Z, clearance(X, Z))


def goes_ccw(X: Tensor, Z: Tensor) -> Tensor:
    """Whether the loop coordinate grows in all, summed over the segments of start -> waypoints:
    (N,) bool."""
    return _wrap(loop_coordinate(_polyline(X, Z)).diff(dim=1)).sum(1) > 0


# --- scores ---------------------------------------------------------------------------------------


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

    Raises ValueError for samples of another shape or with NaN.
    """
    conditions = references.Z.shape[0]
    check_samples(X, conditions)
    samples = X.shape[1]
    X, flat, tiled = (
        X.double(),
        X.double().flatten(0, 1),
        references.Z.repeat_interleave(samples, 0),
    )
    ccw = goes_ccw(flat, tiled).view(conditions, samples)
    least = clearance(flat, tiled)
    return {
        "success": float(clears_and_arrives(flat, tiled, least).double().mean()),
        "mode_error": float((ccw.double().mean(1) - references.p).abs().mean()),
        "energy_ratio": float(references.energy(X).mean() / references.own_energy(samples).mean()),
        "clearance": float(least.mean()) / references.clearance,
        "spread": within_mode_spread(X, ccw) / references.spread,
    }
