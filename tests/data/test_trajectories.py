"""Trajectory data check their parts and hand them to networks so that it can be undone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastgen.data.trajectories import TrajectoryData
from fastgen.normalizer import Normalizer, unpack_tokens


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_network_inputs_are_undone_by_unpacking_and_denormalising():
    X, Z = torch.from_numpy(normal(9, 8, 2)).float(), torch.from_numpy(normal(9, 3, 4)).float()
    data = TrajectoryData(X, Z, Normalizer.fit(X), Normalizer.fit(Z), pack=4)
    x, z = data.network_inputs()
    assert x.shape == (9, 2, 8) and len(data) == 9
    assert torch.allclose(data.x_normalizer.denormalize(unpack_tokens(x, 4)), X, atol=1e-6)
    assert torch.allclose(data.z_normalizer.denormalize(z), Z, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"pack": 3}, ValueError, "divides the 8 waypoints, got 3"),
        ({"pack": True}, ValueError, "divides the 8 waypoints, got True"),
        (
            {"X": torch.zeros(5, 8, 2, dtype=torch.float16)},
            TypeError,
            "X in float32 or float64, got torch.float16",
        ),
        ({"X": torch.zeros(5, 8, 2).long()}, TypeError, "floating-point Tensor, got torch.int64"),
        ({"Z": torch.zeros(4, 1, 3)}, ValueError, "as many rows in Z as in X, got 4 and 5"),
        (
            {"z_normalizer": Normalizer.identity(2)},
            ValueError,
            "normalizer of 3 channels for Z, got 2",
        ),
    ],
)
def test_trajectory_data_checks_its_parts(change, kind, words):
    parts = {
        "X": torch.zeros(5, 8, 2),
        "Z": torch.zeros(5, 1, 3),
        "x_normalizer": Normalizer.identity(2),
        "z_normalizer": Normalizer.identity(3),
    }
    with pytest.raises(kind, match=words):
        TrajectoryData(**parts | change)
