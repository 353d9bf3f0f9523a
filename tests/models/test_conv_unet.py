"""The U-Net of trajectories: it is rebuilt from its config, rows don't see each other, every input
counts, and a student of it comes back alone."""

from __future__ import annotations

import pytest
import torch

from fastgen.export import load_student
from fastgen.models import TrajectoryUnet
from fastgen.normalizer import Normalizer
from fastgen.teachers import as_rectified_flow
from support.bits import same_bits
from support.networks import shaken
from support.waypoints import (
    X,
    Z,
    check_built_again,
    check_comes_back,
    check_forged_size,
    check_rows_and_inputs,
    exported,
)


def model(**changes) -> TrajectoryUnet:
    torch.manual_seed(0)
    arguments = {"in_dim": 4, "cond_dim": 4, "down_dims": (8, 16), "kernel_size": 3}
    arguments |= {"num_groups": 4, "time_dim": 8, "scales": True}
    network = TrajectoryUnet(**{**arguments, **changes})
    shaken(network)
    return network


@pytest.mark.parametrize("scales", [True, False])
def test_it_is_built_again_from_its_config(tmp_path, scales):
    check_built_again(tmp_path / "t", model(scales=scales))


def test_rows_do_not_see_each_other_and_every_input_counts():
    check_rows_and_inputs(model().double())


# ---- Exports -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_student_comes_back_bit_for_bit_without_a_factory(tmp_path, dtype):
    check_comes_back(tmp_path / "s", model().to(dtype), dtype)


def test_a_converted_student_answers_as_before(tmp_path):
    """What a student of such a teacher is: noise prediction on a table, clipped."""
    network = as_rectified_flow(
        model(),
        path={"name": "squaredcos_cap_v2", "num_train_timesteps": 50},
        prediction="eps",
        clip_sample=(-1.0, 1.0),
    )
    folder = exported(tmp_path / "s", network, t_list=[0.9, 0.0], steps=[1], sample_type="ode")
    student = load_student(folder)
    x = X.float()
    z = Z.float()
    assert same_bits(student.network(x, 0.5, z), network(x, 0.5, z))
    assert "TrajectoryUnet" in (folder / "README.md").read_text()
    assert "your class" not in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("horizon", "pack"), [((6, 2), 2), ((16, 4), 2), ((16, 2), 1), ((15, 4), 1)]
)
def test_a_sample_of_another_size_than_the_networks_is_refused(tmp_path, horizon, pack):
    normalizer = Normalizer(horizon[1] * [0.0], torch.eye(horizon[1]).tolist())
    with pytest.raises(ValueError, match=r"expected horizon \[T_x, d_x\] with T_x / . a multiple"):
        exported(tmp_path / "s", model(), horizon=horizon, pack=pack, x_normalizer=normalizer)
    assert not (tmp_path / "s").exists()


FORGED = [
    *((key, 10**9) for key in ("in_dim", "cond_dim", "kernel_size", "num_groups", "time_dim")),
    ("down_dims", [8, 10**9]),
    ("down_dims", [8] * 10**4),
    ("down_dims", []),
    ("down_dims", [8, 16.0]),
    ("down_dims", 8),
    ("down_dims", [8, 24]),
    ("scales", 1),
    ("kernel_size", 4),
]


@pytest.mark.parametrize(("key", "value"), FORGED)
def test_a_forged_size_is_refused_before_memory_is_allocated(tmp_path, monkeypatch, key, value):
    check_forged_size(tmp_path / "s", model(), key, value, monkeypatch)
