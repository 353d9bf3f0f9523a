"""The recorder of a maze: ways, forces, and what minari wrote of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastgen.data.formats.minari import open_minari
from record_maze import force, record, route

MAZE = [
    [1, 1, 1, 1, 1],
    [1, "r", 0, 0, 1],
    [1, 0, 1, 0, 1],
    [1, 0, 0, "g", 1],
    [1, 1, 1, 1, 1],
]
RECORDED = Path(__file__).parents[1] / "data" / "sets" / "maze-v0"


def test_a_way_is_shortest_and_both_are_taken():
    rng = np.random.default_rng(0)
    ways = [route(MAZE, (1, 1), (3, 3), rng) for _ in range(40)]
    for way in ways:
        steps = np.abs(np.diff(way, axis=0)).sum(1)
        assert (len(way), way[0], way[-1]) == (5, (1, 1), (3, 3))
        assert (steps == 1).all()
        assert all(MAZE[row][column] != 1 for row, column in way)
    assert len({tuple(way) for way in ways}) == 2


def test_a_way_to_where_one_is_has_one_cell():
    assert route(MAZE, (1, 2), (1, 2), np.random.default_rng(0)) == [(1, 2)]


def test_no_way_is_an_error():
    walled = [row[:] for row in MAZE]
    walled[1][2] = walled[2][1] = 1
    with pytest.raises(ValueError, match="expected a way from"):
        route(walled, (1, 1), (3, 3), np.random.default_rng(0))


def test_forces_bring_a_point_to_rest_at_the_target():
    place, velocity, target = np.zeros(2), np.zeros(2), np.array([3.0, -1.0])
    fastest = 0.0
    for _ in range(1000):
        push = force(place, velocity, target, 2.0)
        assert np.abs(push).max() <= 1
        velocity = velocity + 0.1 * push
        place = place + 0.01 * velocity
        fastest = max(fastest, float(np.linalg.norm(velocity)))
    assert np.linalg.norm(place - target) < 1e-3
    assert fastest <= 2.0 + 1e-9


def test_a_folder_that_minari_would_refuse_is_refused_before(tmp_path):
    (tmp_path / "there-v0").mkdir()
    for name in ("maze", "there-v0"):
        with pytest.raises(ValueError, match="expected a folder that isn't there, NAME-v0"):
            record(tmp_path / name, 1)


def test_what_minari_wrote_is_read():
    source = open_minari(RECORDED)
    names = ["actions", *[f"observations/{n}" for n in ("observation", "desired_goal")]]
    values = source.read(names)
    actions, seen, goal = [values[name] for name in names]
    assert actions.abs().max() <= 1
    last = torch.tensor(source.ends) - 1
    # The goal is reached within .45, a row after the last one that is kept.
    away = (seen[last, :2] - goal[last]).norm(dim=-1)
    assert ((away > 0.45) & (away < 0.5)).all()
