"""What networks of trajectories under classes of their own are held to, alone and as students."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen.export import load_network, load_student, save_network
from fastgen.export.schema import config_checksum
from fastgen.models import build_model

from .bits import same_bits
from .folders import conditions, export_, seeded

__all__ = [
    "X",
    "Z",
    "check_built_again",
    "check_comes_back",
    "check_forged_size",
    "check_rows_and_inputs",
    "exported",
]

# Eight tokens of two waypoints, under two observations.
X = torch.randn(3, 8, 4, generator=seeded(2), dtype=torch.float64)
Z = torch.randn(3, 2, 2, generator=seeded(3), dtype=torch.float64)


def exported(folder: Path, network: nn.Module, **changes: Any) -> Path:
    """The folder of a student with this network."""
    sizes = {"horizon": (16, 2), "cond_sizes": {"Z": [2, 2]}}
    return export_(folder, network, **{**sizes, **changes})


def check_built_again(folder: Path, network: Any) -> None:
    """It is built again from its config, and read from a folder, with the same answers."""
    config = json.loads(json.dumps(network.config))
    again: Any = build_model(config)
    assert type(again) is type(network) and again.config == network.config
    keys = ("task", "path", "prediction", "data", "seed", "steps")
    save_network(folder, network, description=dict.fromkeys(keys, 0))
    loaded, _ = load_network(folder)
    x = X.float()
    z = Z.float()
    assert same_bits(loaded(x, 0.3, z), network(x, 0.3, z))


def check_rows_and_inputs(network: nn.Module) -> None:
    """In float64: rows don't see each other, and every number of every input counts."""
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    out = network(X, t, Z)
    alone = torch.cat([network(X[i : i + 1], t[i : i + 1], Z[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(out, alone, rtol=1e-12, atol=1e-12)
    inputs = [value.clone().requires_grad_() for value in (X, t, Z)]
    weights = torch.randn(out.shape, generator=seeded(4), dtype=torch.float64)
    grads = torch.autograd.grad((network(*inputs) * weights).sum(), inputs)
    assert all(float(grad.abs().min()) > 0 for grad in grads)


def check_comes_back(folder: Path, network: nn.Module, dtype: torch.dtype) -> None:
    """A student of it is loaded bit for bit, without a factory, and sampled."""
    student = load_student(exported(folder, network))
    assert type(student.network) is type(network) and student.dtype == dtype
    found = student.network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())
    x = student.sample(conditions(), num_samples=2, steps=2, generator=seeded())
    assert x.shape == (3, 2, 16, 2) and bool(torch.isfinite(x).all())


def check_forged_size(
    folder: Path, network: nn.Module, key: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student's folder whose config has another size, and agrees with its checksum, is refused
    in one line before memory is allocated."""
    file = exported(folder, network) / "config.json"
    config = json.loads(file.read_text())
    config["network"][key] = value
    file.write_text(json.dumps({**config, "checksum": config_checksum(config)}))
    taken = [0]
    empty = torch.empty

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        made = empty(*args, **kwargs)
        if not made.is_meta:
            taken[0] += made.numel()
        return made

    monkeypatch.setattr(torch, "empty", watched)
    with pytest.raises(ValueError, match=r"config.json|student.safetensors") as caught:
        load_student(folder)
    assert "\n" not in str(caught.value)
    assert taken[0] < 10**5
