"""The policy that tools/bench.py policy distils: what the statistics of its folder make of its
samples is what lerobot's own post-processing made of them."""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import load_file

import bench_policy
import push
from fastgen.data import build_data
from fastgen.data.trajectories import TrajectoryData


def test_post_processing_is_that_of_the_policy(tmp_path):
    np.savez(tmp_path / "push.npz", **push.arrays(push.episodes(6)))
    cfg = bench_policy._config(tmp_path / "push.npz", tmp_path / "run", 0)
    data = build_data(cfg.data).train
    assert isinstance(data, TrajectoryData)
    answers = load_file(bench_policy.POLICY / "answers.safetensors")
    for calls in (10, 100):
        actions = data.x_normalizer.denormalize(answers[f"samples_{calls}"])
        torch.testing.assert_close(actions, answers[f"actions_{calls}"], rtol=0, atol=1e-5)


def test_the_controller_pushes_the_disc_home():
    for episode in push.episodes(8, seed=3):
        rows = len(episode["action"])
        assert rows < push.MOST_ROWS
        point = episode["state"][-1].astype(float)
        disc = episode["place"][-1].astype(float)
        assert push.is_done(push.moved(point, disc, episode["action"][-1])[1])
        # Each row follows from the one before.
        for t in range(rows - 1):
            found = push.moved(episode["state"][t], episode["place"][t], episode["action"][t])
            assert np.allclose(found[0], episode["state"][t + 1], atol=1e-5)
            assert np.allclose(found[1], episode["place"][t + 1], atol=1e-5)
