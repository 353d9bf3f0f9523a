"""The declared range of data: what lies outside is refused, with how many rows."""

import numpy as np
import pytest
import torch

from fastgen.box import Box
from fastgen.config import DataConfig
from fastgen.data import build_data
from fastgen.data.ranges import check_range
from support.toy import ToyTask


def images(path, outside: int):
    """A file of sixty images in [-1, 1], a pixel of the last `outside` of them beyond it."""
    X = np.random.default_rng(0).uniform(-1, 1, (60, 1, 2, 2)).astype(np.float32)
    X[60 - outside :, 0, 1, 0] = 1.25
    np.savez(path, X=X)
    return DataConfig(name="file", path=str(path), range=(-1, 1))


def test_rows_outside_are_counted_and_named_as_in_the_file(tmp_path):
    words = r"data.range=\[-1.0, 1.0\], got 3 of 60 rows outside it \(57, 58, 59\).*to 1.25;"
    with pytest.raises(ValueError, match=words):
        build_data(images(tmp_path / "some.npz", 3))
    task = build_data(images(tmp_path / "none.npz", 0))
    check_range(task, Box(-1, 1))
    check_range(task, None)


def test_the_range_is_in_the_units_of_the_file_whatever_is_normalised(tmp_path):
    generator = np.random.default_rng(0)
    X = generator.uniform(100, 200, (60, 4, 2)).astype(np.float32)
    np.savez(tmp_path / "far.npz", X=X, Z=generator.normal(size=(60, 1, 2)))
    source = {"name": "file", "path": str(tmp_path / "far.npz")}
    assert len(build_data(DataConfig(**source, range=(100, 200))).train.X)
    with pytest.raises(ValueError, match="got 60 of 60 rows outside it"):
        build_data(DataConfig(**source, range=(-3, 3)))


def test_channels_have_ranges_of_their_own():
    task = ToyTask()
    most = task.train.X.abs().amax((0, 1))
    check_range(task, Box((-most).tolist(), most.tolist()))
    least = torch.stack([most[0], 0.9 * most[1]])
    with pytest.raises(ValueError, match="rows outside it"):
        check_range(task, Box((-least).tolist(), least.tolist()))
    with pytest.raises(ValueError, match="data.range: expected numbers for 2 channels"):
        check_range(task, Box([-9, -9, -9], 9))


def test_lists_are_for_trajectories(tmp_path):
    """The last axis of an image (C, H, W) is its column."""
    task = build_data(images(tmp_path / "some.npz", 0))
    with pytest.raises(ValueError, match=r"one number each for .*only trajectories \(N, T, d\)"):
        check_range(task, Box([-1, -1], [1, 1]))


@pytest.mark.parametrize("given", [(1, -1), (0, "x"), (1,), ((0, 0), (1, 1, 1))])
def test_a_range_that_is_none_is_refused_where_it_is_said(given):
    with pytest.raises(ValueError, match="range"):
        DataConfig(range=given)


def test_an_embedded_task_may_have_one():
    ring = build_data(DataConfig(size=50, range=(-2, 2)))
    assert float(ring.train.X.abs().max()) < 2
    with pytest.raises(ValueError, match="rows outside it"):
        build_data(DataConfig(size=50, range=(-1, 1)))
