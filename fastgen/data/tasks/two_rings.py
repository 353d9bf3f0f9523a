"""The embedded task `two_rings`: pass two posts in sequence, each on either side.

A point of radius 0.1 moves in the plane from a start to a goal; two round posts of radius 0.25
stand in its way. The condition Z = (start, goal, post 1, post 2) is four points, the trajectory X
is sixteen waypoints equally spaced in arc length from the start (excluded) to the end. Each post is
passed left or right, so there are four homotopy classes.

In the frame of the condition, with u from start to goal, v its left normal and l the distance
between them,

    start + goal = 2 c,  post i = start + a_i u + d_i v,
    a_1 ~ U(.25, .29) l,  a_2 ~ U(.71, .75) l,  d_i ~ U(-.15, .15),

with l ~ U(2.8, 3.4), c uniform on the disc of radius 0.2, and the direction of u uniform. The
demonstrator passes post i on side s_i (+1 left, -1 right) at a distance g_i ~ U(.2, .35), with

    P(s_1, s_2) ~ exp(-8 (s_1 d_1 + s_2 d_2) + .3 s_1 s_2).

So it prefers the side on which the way around is shorter, and staying on one side to changing it.
Its path is y(x) in that frame. It goes through (0, 0), (a_i, d_i + s_i (.25 + g_i)) and (l, 0), by
cubics that are level at these points, plus sum_k b_k sin(pi k x / l), k = 1 .. 3,
b_k ~ U(-.01, .01).

Posts move with the condition, and everything is said in its frame. So the law of (Z, X) is exactly
invariant under all rotations and reflections of the plane; reflections swap left and right. The
task's networks use D4 of them.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

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
    "TwoRingsTask",
    "class_error_floor",
    "class_of",
    "class_probabilities",
    "clearance",
    "demonstrate",
    "draw_references",
    "path",
    "sample_conditions",
    "score",
    "succeeds",
]

# Radius of a post.
POST = 0.25
# Sides of post 1 and post 2, +1 left: the four classes in their order.
SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1))
# How strongly the demonstrator prefers the shorter way around a post, and staying on one side.
OFF_LINE = 8.0
SAME_SIDE = 0.3
# Pieces of a path before it is resampled, and sines that are added to it.
POINTS = 120
WAVES = 3


# ---- The conditions and their frame -------------------------------------------------------------


def sample_conditions(n: int, generator: Generator | None = None) -> Tensor:
    """Conditions Z = (start, goal, post 1, post 2), (n, 4, 2) float64."""
    u = torch.rand(n, 8, generator=generator, dtype=torch.float64)
    length = 2.8 + 0.6 * u[:, 0]
    centre = 0.2 * u[:, 1].sqrt()[:, None] * _direction(u[:, 2])
    forward = _direction(u[:, 3])
    along = torch.stack([0.25 + 0.04 * u[:, 4], 0.71 + 0.04 * u[:, 5]], 1) - 0.5
    aside = 0.3 * u[:, 6:] - 0.15
    local = torch.zeros(n, 4, 2, dtype=torch.float64)
    local[:, 0, 0] = -length / 2
    local[:, 1, 0] = length / 2
    local[:, 2:] = torch.stack([along * length[:, None], aside], -1)
    return centre[:, None] + _from_frame(local, forward)


def _direction(turn: Tensor) -> Tensor:
    """Unit vectors (..., 2) at shares (...) of a whole turn."""
    angle = 2 * math.pi * turn
    return torch.stack([angle.cos(), angle.sin()], -1)


def _from_frame(local: Tensor, forward: Tensor) -> Tensor:
    """Points x u + y v, (N, T, 2), from their (x, y) in a frame with u = forward (N, 2) and v its
    left normal."""
    left = torch.stack([-forward[:, 1], forward[:, 0]], -1)
    return local @ torch.stack([forward, left], 1)


def _frame(Z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The frame of conditions Z (N, 4, 2): u (N, 2), l (N,) and the posts' (a_i, d_i) (N, 2, 2),
    float64."""
    Z = Z.double()
    way = Z[:, 1] - Z[:, 0]
    length = way.norm(dim=-1)
    forward = way / length[:, None]
    left = torch.stack([-forward[:, 1], forward[:, 0]], -1)
    return forward, length, (Z[:, 2:] - Z[:, :1]) @ torch.stack([forward, left], -1)


def class_probabilities(Z: Tensor) -> Tensor:
    """P(s_1, s_2) of the demonstrator: Z (N, 4, 2) -> (N, 4), float64.

    Classes are in the order of `SIDES`: left left, left right, right left, right right.
    """
    sides = torch.tensor(SIDES, dtype=torch.float64)
    _, _, posts = _frame(Z)
    return (-OFF_LINE * posts[..., 1] @ sides.T + SAME_SIDE * sides.prod(1)).softmax(1)


# ---- The demonstrator ---------------------------------------------------------------------------


def demonstrate(Z: Tensor, generator: Generator | None = None) -> Tensor:
    """One demonstration for each condition: Z (N, 4, 2) -> X (N, 16, 2), float64.

    `generator` draws, for each condition: the class, the two distances g_i, the three b_k.
    """
    u = torch.rand(Z.shape[0], 3 + WAVES, generator=generator, dtype=torch.float64)
    chosen = (u[:, :1] >= class_probabilities(Z).cumsum(1)[:, :-1]).sum(1)
    sides = torch.tensor(SIDES, dtype=torch.float64)[chosen]
    return path(Z, sides, gap=0.2 + 0.15 * u[:, 1:3], waves=0.02 * u[:, 3:] - 0.01)


def path(Z: Tensor, sides: Tensor, *, gap: Tensor, waves: Tensor) -> Tensor:
    """The demonstrator with its randomness given, as at the head of this file.

    Args:
        Z: (N, 4, 2).
        sides: (N, 2), s_i of +1 or -1.
        gap: (N, 2), g_i.
        waves: (N, 3), b_k.

    Returns:
        (N, 16, 2) float64, equally spaced in arc length. Rotating Z rotates it; reflecting Z and
        negating `sides` and `waves` reflects it.
    """
    forward, length, posts = _frame(Z)
    zero = torch.zeros_like(length)[:, None]
    knots = torch.cat([zero, posts[..., 0], length[:, None]], 1)
    heights = torch.cat([zero, posts[..., 1] + sides * (POST + gap.double()), zero], 1)
    x = length[:, None] * torch.linspace(0, 1, POINTS + 1, dtype=torch.float64)
    piece = (torch.searchsorted(knots, x) - 1).clamp(0, 2)
    low = knots.gather(1, piece)
    high = knots.gather(1, piece + 1)
    share = (x - low) / (high - low)
    smooth = share.square() * (3 - 2 * share)
    y = torch.lerp(heights.gather(1, piece), heights.gather(1, piece + 1), smooth)
    k = torch.arange(1, WAVES + 1, dtype=torch.float64)
    phase = math.pi * k[:, None] * (x / length[:, None])[:, None]
    y = y + (waves.double()[:, :, None] * phase.sin()).sum(1)
    points = Z[:, :1].double() + _from_frame(torch.stack([x, y], -1), forward)
    return resample(points, HORIZON)


# ---- Geometry of a path -------------------------------------------------------------------------


def clearance(X: Tensor, Z: Tensor) -> Tensor:
    """Least distance of paths to the two posts, 0 where they meet one: (N,) float64.

    It is exact for the segments start -> waypoints, not only for the waypoints.

    Args:
        X: paths (N, T, 2).
        Z: conditions (N, 4, 2).
    """
    points = polyline(X, Z)
    centres = Z[:, None, 2:].double()
    a = points[:, :-1, None]
    d = points.diff(dim=1)[:, :, None]
    squared = d.square().sum(-1).clamp_min(torch.finfo(a.dtype).tiny)
    along = ((centres - a) * d).sum(-1) / squared
    distance = (a + along.clamp(0, 1)[..., None] * d - centres).norm(dim=-1)
    return (distance.amin((1, 2)) - POST).clamp_min(0)


def succeeds(X: Tensor, Z: Tensor) -> Tensor:
    """Whether paths keep clear of both posts by the point's radius and end within 0.15 of the goal:
    (N,) bool."""
    return clears_and_arrives(X, Z, clearance(X, Z))


def class_of(X: Tensor, Z: Tensor) -> Tensor:
    """Homotopy class of paths, 0 .. 3 in the order of `SIDES`: (N,) int64.

    A post is passed on the left if the path turns clockwise about it, by the angle summed over the
    segments start -> waypoints. Rotations keep the class, reflections take k to 3 - k. Arguments as
    `clearance`.
    """
    ray = polyline(X, Z)[:, :, None] - Z[:, None, 2:].double()
    before = ray[:, :-1]
    after = ray[:, 1:]
    cross = before[..., 0] * after[..., 1] - before[..., 1] * after[..., 0]
    right = torch.atan2(cross, (before * after).sum(-1)).sum(1) > 0
    return 2 * right[:, 0].long() + right[:, 1].long()


# ---- Scores -------------------------------------------------------------------------------------


def class_error_floor(p: Tensor, samples: int) -> float:
    """Mode error of a perfect sampler: mean over conditions of 1/2 sum_k E|Bin(K, p_k) / K - p_k|.

    Args:
        p: (C, 4), probabilities of the classes.
        samples: K.
    """
    return 0.5 * p.shape[1] * mode_error_floor(p.flatten(), samples)


def draw_references(Z: Tensor, size: int, generator: Generator | None = None) -> References:
    """A fresh pool of `size` >= 2 demonstrations for each condition of Z (C, 4, 2)."""
    tiled = Z.repeat_interleave(size, 0)
    flat = demonstrate(tiled, generator)
    X = flat.view(-1, size, HORIZON, 2)
    classes = class_of(flat, tiled).view(-1, size)
    return References.of(Z, X, class_probabilities(Z), classes, clearance(flat, tiled))


def score(X: Tensor, references: References) -> dict[str, float]:
    """Scores of K samples X (C, K, 16, 2) of each of the references' conditions.

    Returns:
        success, energy_ratio, clearance, spread: as `ring.score`, with the two posts for obstacles
            and the four classes for modes.
        mode_error: mean over conditions of the total variation between shares and probabilities of
            the classes, 1/2 sum_k |share_k - p_k|; for two classes it would be the ring's. A
            perfect sampler has `class_error_floor`.
        share_error: max_k |share_k - p_k| of the means over all conditions. It shows a bias of .03,
            which the mode error hardly does: its floor is above .1 for 16 samples.

    Raises:
        ValueError: samples of another shape or with NaN.
    """
    X, flat, tiled = references.checked(X)
    samples = X.shape[1]
    found = class_of(flat, tiled).view(-1, samples)
    least = clearance(flat, tiled)
    shares = torch.nn.functional.one_hot(found, len(SIDES)).double().mean(1)
    error = shares - references.p
    return {
        "success": float(clears_and_arrives(flat, tiled, least).double().mean()),
        "mode_error": float(0.5 * error.abs().sum(1).mean()),
        "share_error": float(error.mean(0).abs().max()),
        "energy_ratio": float(references.energy(X).mean() / references.own_energy(samples).mean()),
        "clearance": float(least.mean()) / references.clearance,
        "spread": within_mode_spread(X, found) / references.spread,
    }


# ---- The task -----------------------------------------------------------------------------------


class TwoRingsTask(PathTask):
    """Two posts in sequence as a task; arguments as `PathTask`.

    The law is invariant under all rotations and reflections. D4 is the default because a network
    pays for every element of its group. Any C_n or D_n, n >= 3, fits as well.
    """

    name = "two_rings"

    @staticmethod
    def conditions(n: int, generator: Generator, split: str) -> Tensor:
        """Conditions Z (n, 4, 2); the same law in every split."""
        return sample_conditions(n, generator)

    demonstrate = staticmethod(demonstrate)
    draw_references = staticmethod(draw_references)
    score = staticmethod(score)
    succeeds = staticmethod(succeeds)

    def floor(self) -> dict[str, float]:
        """Full scores of one more set of demonstrations, and as `mode_error_floor` the exact
        expectation of their mode error."""
        p = self.references("all")[0].p
        return super().floor() | {"mode_error_floor": class_error_floor(p, self.SAMPLES)}

    def scene(self) -> dict:
        """What to draw around trajectories: discs at the points of Z after start and goal, equal
        axes."""
        return {"obstacles": [], "discs": POST, "limits": (-2.1, 2.1, -2.1, 2.1), "equal": True}
