"""Push: a point pushes a disc to the origin of the plane, told the places of both.

    python tools/push.py FILE.npz    # 200 episodes, as data.path takes them

    state = place of the point (2,)    place = that of the disc (2,)    action = where to go (2,)

The point goes towards the action, at most `SPEED` a row; a disc that it overlaps is moved out of
its way. The controller walks around the disc, on either side, and pushes from behind it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

__all__ = ["EPISODES", "arrays", "episodes", "is_done", "moved"]

EPISODES = 200
SPEED = 0.1
TOUCH = 0.2
NEAR = 0.1
MOST_ROWS = 80
_NOISE = 0.02


def moved(point: np.ndarray, disc: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(point, disc), each (2,), a row later."""
    step = action - point
    length = np.linalg.norm(step)
    point = point + step * min(1.0, SPEED / max(length, 1e-9))
    apart = disc - point
    distance = np.linalg.norm(apart)
    if distance < TOUCH:
        disc = point + apart * (TOUCH / max(distance, 1e-9))
    return point, disc


def is_done(disc: np.ndarray) -> bool:
    """Whether the disc (2,) is where it should be."""
    return bool(np.linalg.norm(disc) < NEAR)


def episodes(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """`state`, `place` and `action` (T, 2) of so many episodes, float32."""
    rng = np.random.default_rng(seed)
    return [_episode(rng) for _ in range(count)]


def arrays(found: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Episodes end to end: `actions`, `observations` (M, 2), (M, 4) and `episode_ends`."""
    seen = [np.concatenate([episode["state"], episode["place"]], 1) for episode in found]
    return {
        "actions": np.concatenate([episode["action"] for episode in found]),
        "observations": np.concatenate(seen),
        "episode_ends": np.cumsum([len(episode["action"]) for episode in found]),
    }


def _episode(rng: np.random.Generator) -> dict[str, np.ndarray]:
    disc = _around(rng, 0.5, 0.9)
    point = _around(rng, 0.3, 1.0)
    while np.linalg.norm(point - disc) < 2 * TOUCH:
        point = _around(rng, 0.3, 1.0)
    side = rng.choice([-1.0, 1.0])
    rows: dict[str, list[np.ndarray]] = {"state": [], "place": [], "action": []}
    for _ in range(MOST_ROWS):
        action = _target(point, disc, side) + _NOISE * rng.normal(size=2)
        for name, value in (("state", point), ("place", disc), ("action", action)):
            rows[name].append(value)
        point, disc = moved(point, disc, action)
        if is_done(disc):
            break
    return {name: np.stack(values).astype(np.float32) for name, values in rows.items()}


def _around(rng: np.random.Generator, least: float, most: float) -> np.ndarray:
    """A place at a distance within least..most of the origin."""
    angle = rng.uniform(0, 2 * np.pi)
    return rng.uniform(least, most) * np.array([np.cos(angle), np.sin(angle)])


def _target(point: np.ndarray, disc: np.ndarray, side: float) -> np.ndarray:
    """Where the controller goes: around the disc on one side until it is behind it, then on."""
    ahead = -disc / max(np.linalg.norm(disc), 1e-9)
    seen = point - disc
    behind = np.arctan2(-ahead[1], -ahead[0])
    angle = np.arctan2(seen[1], seen[0])
    left = (side * (behind - angle)) % (2 * np.pi)
    if min(left, 2 * np.pi - left) < 0.35:
        return disc - 0.5 * TOUCH * ahead
    step = side * min(left, 0.6)
    radius = 1.6 * TOUCH
    return disc + radius * np.array([np.cos(angle + step), np.sin(angle + step)])


if __name__ == "__main__":
    np.savez(sys.argv[1], **arrays(episodes(EPISODES)))
