"""Records a controller's walks through a maze of gymnasium-robotics as a Minari data set.

    python tools/record_maze.py FOLDER [EPISODES]    # 200 episodes unless told otherwise

A point is pushed by forces in [-1, 1] to a goal, both somewhere in the maze. The controller takes a
shortest way over the free cells, one of them at random where there are several, and steers to the
middle of the next cell, in each episode at a speed of its own. Needs `pip install -e ".[sim]"`.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["force", "record", "route"]

Cell = tuple[int, int]
Maze = Sequence[Sequence[object]]
MAZE = "PointMaze_Medium-v3"
EPISODES = 200
SPEEDS = (2.0, 3.0)
GAIN = 5.0
_NOISE = 0.1
_WALL = 1
_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))


def route(maze: Maze, start: Cell, goal: Cell, rng: np.random.Generator) -> list[Cell]:
    """A shortest way from start to goal, both included, past walls (1), at random where several
    lead on. ValueError where none does."""
    left = {goal: 0}
    ring = [goal]
    while ring and start not in left:
        found = {cell for place in ring for cell in _free(maze, place) if cell not in left}
        left |= dict.fromkeys(found, left[ring[0]] + 1)
        ring = sorted(found)
    if start not in left:
        raise ValueError(f"expected a way from {start} to {goal}, got walls; choose another goal")
    way = [start]
    while way[-1] != goal:
        nearer = [cell for cell in _free(maze, way[-1]) if left.get(cell, -1) == left[way[-1]] - 1]
        way.append(nearer[rng.integers(len(nearer))])
    return way


def _free(maze: Maze, cell: Cell) -> list[Cell]:
    """The neighbours of a cell that are no wall; a maze has walls all around."""
    around = [(cell[0] + row, cell[1] + column) for row, column in _STEPS]
    return [(row, column) for row, column in around if maze[row][column] != _WALL]


def force(place: np.ndarray, velocity: np.ndarray, target: np.ndarray, speed: float) -> np.ndarray:
    """What pushes the point (2,) to the target: clip(g (v* - v), -1, 1), with v* = g (target -
    place), at most `speed` long."""
    wanted = GAIN * (target - place)
    wanted = wanted * min(1.0, speed / max(float(np.linalg.norm(wanted)), 1e-9))
    return np.clip(GAIN * (wanted - velocity), -1.0, 1.0)


def record(folder: Path, episodes: int = EPISODES, maze: str = MAZE) -> int:
    """Write so many episodes; how many of them reach the goal. ValueError for a folder that is
    there or has a name that minari doesn't take."""
    folder = folder.resolve()
    if folder.exists() or not re.fullmatch(r"[-\w.]+-v\d+", folder.name):
        raise ValueError(
            f"expected a folder that isn't there, NAME-v0, got {folder.name}; choose another name"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Where minari keeps data sets is read when one is begun.
    os.environ["MINARI_DATASETS_PATH"] = str(folder.parent)
    import gymnasium  # pyright: ignore[reportMissingImports]
    import gymnasium_robotics  # pyright: ignore[reportMissingImports]
    from minari import DataCollector  # pyright: ignore[reportMissingImports]

    gymnasium.register_envs(gymnasium_robotics)
    env = DataCollector(gymnasium.make(maze, continuing_task=False), data_format="hdf5")
    rng = np.random.default_rng(0)
    reached = sum(_walk(env, rng, seed) for seed in range(episodes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of author and address, which it doesn't get
        env.create_dataset(folder.name, ref_min_score=0, ref_max_score=1)
    env.close()
    return reached


def _walk(env, rng: np.random.Generator, seed: int) -> bool:
    """One episode; whether it reaches the goal."""
    seen, _ = env.reset(seed=seed)
    maze = env.unwrapped.maze
    start, goal = [
        tuple(maze.cell_xy_to_rowcol(seen[name]).tolist())
        for name in ("achieved_goal", "desired_goal")
    ]
    way = route(maze.maze_map, start, goal, rng)
    middles = [np.asarray(maze.cell_rowcol_to_xy(np.array(place))) for place in way[1:-1]]
    targets = [*middles, seen["desired_goal"]]
    speed = rng.uniform(*SPEEDS)
    while True:
        place, velocity = np.split(seen["observation"], 2)
        while len(targets) > 1 and np.linalg.norm(targets[0] - place) < 0.3:
            targets.pop(0)
        push = force(place, velocity, targets[0], speed) + _NOISE * rng.normal(size=2)
        action = np.clip(push, -1.0, 1.0).astype(np.float32)
        seen, _, reached, over, _ = env.step(action)
        if reached or over:
            return bool(reached)


def main() -> None:
    folder, episodes = [*sys.argv[1:], EPISODES][:2]
    reached = record(Path(folder), int(episodes))
    print(f"{reached} of {episodes} episodes reach the goal: {folder}")


if __name__ == "__main__":
    main()
