"""The U-Net of trajectories: it is rebuilt from its config, rows don't see each other, every input
counts, and a student of it comes back alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastgen.export import load_network, load_student, save_network
from fastgen.export.schema import config_checksum
from fastgen.models import TrajectoryUnet, build_model
from fastgen.normalizer import Normalizer
from fastgen.teachers import as_rectified_flow
from support.bits import same_bits
from support.folders import conditions, export_, seeded
from support.networks import shaken

X = torch.randn(3, 8, 4, generator=seeded(2), dtype=torch.float64)
Z = torch.randn(3, 2, 2, generator=seeded(3), dtype=torch.float64)


def model(**changes) -> TrajectoryUnet:
    torch.manual_seed(0)
    arguments = {"in_dim": 4, "cond_dim": 4, "down_dims": (8, 16), "kernel_size": 3}
    arguments |= {"num_groups": 4, "time_dim": 8, "scales": True}
    network = TrajectoryUnet(**{**arguments, **changes})
    shaken(network)
    return network


def exported(folder: Path, network: torch.nn.Module, **changes) -> Path:
    sizes = {"horizon": (16, 2), "cond_sizes": {"Z": [2, 2]}}
    return export_(folder, network, **{**sizes, **changes})


@pytest.mark.parametrize("scales", [True, False])
def test_it_is_built_again_from_its_config(tmp_path, scales):
    network = model(scales=scales)
    config = json.loads(json.dumps(network.config))
    again = build_model(config)
    assert isinstance(again, TrajectoryUnet) and again.config == network.config
    keys = ("task", "path", "prediction", "data", "seed", "steps")
    save_network(tmp_path / "t", network, description=dict.fromkeys(keys, 0))
    loaded, _ = load_network(tmp_path / "t")
    x = X.float()
    z = Z.float()
    assert same_bits(loaded(x, 0.3, z), network(x, 0.3, z))


def test_rows_do_not_see_each_other_and_every_input_counts():
    network = model().double()
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    out = network(X, t, Z)
    alone = torch.cat([network(X[i : i + 1], t[i : i + 1], Z[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(out, alone, rtol=1e-12, atol=1e-12)
    inputs = [value.clone().requires_grad_() for value in (X, t, Z)]
    weights = torch.randn(out.shape, generator=seeded(4), dtype=torch.float64)
    grads = torch.autograd.grad((network(*inputs) * weights).sum(), inputs)
    assert all(float(grad.abs().min()) > 0 for grad in grads)


# ---- Exports -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_student_comes_back_bit_for_bit_without_a_factory(tmp_path, dtype):
    network = model().to(dtype)
    student = load_student(exported(tmp_path / "s", network))
    assert type(student.network) is TrajectoryUnet and student.dtype == dtype
    found = student.network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())
    x = student.sample(conditions(), num_samples=2, steps=2, generator=seeded())
    assert x.shape == (3, 2, 16, 2) and bool(torch.isfinite(x).all())


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
    folder = exported(tmp_path / "s", model())
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["network"][key] = value
    file.write_text(json.dumps({**config, "checksum": config_checksum(config)}))
    taken: list[Tensor] = []
    empty = torch.empty

    def watched(*args, **kwargs) -> Tensor:
        made = empty(*args, **kwargs)
        if not made.is_meta:
            taken.append(made)
        return made

    monkeypatch.setattr(torch, "empty", watched)
    with pytest.raises(ValueError, match=r"config.json|student.safetensors") as caught:
        load_student(folder)
    assert "\n" not in str(caught.value)
    assert sum(math.prod(made.shape) for made in taken) < 10**5
