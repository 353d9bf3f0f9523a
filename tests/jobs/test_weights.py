"""Weights of a file are loaded into a network whose names they have; others are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastgen.jobs.sources import load_teacher
from fastgen.teachers.weights import load_weights
from support.sources import built, config
from support.toy import PointTeacher


class Tied(nn.Module):
    """Two names for one tensor, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
        self.last.weight = self.first.weight
        self.register_buffer("count", torch.tensor(3))


def numbered(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a network with new numbers, tied ones alike."""
    numbers: dict[int, torch.Tensor] = {}
    for i, value in enumerate(network.state_dict().values()):
        numbers.setdefault(value.data_ptr(), torch.full_like(value, i + 1))
    return {name: numbers[value.data_ptr()].clone() for name, value in network.state_dict().items()}


def saved(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path / "weights.safetensors")
    return path / "weights.safetensors"


def test_weights_are_loaded_into_whatever_network_there_is(nets):
    file = saved(nets, {"map.weight": torch.full((3, 3), 2.0), "map.bias": torch.ones(3)})
    network = built("nets:Net", weights=str(file))
    assert bool((network.map.weight == 2).all())
    keywords = {"x": "sample", "t": "timestep", "cond": "cond"}
    inside = built(
        "nets:Net", weights=str(file), keywords=keywords, prediction="eps"
    ).network.network
    assert bool((inside.map.weight == 2).all())
    network = nn.Sequential()
    network.add_module("map", inside := nn.Linear(3, 3))
    assert load_teacher(config({"weights": str(file)}), network) is network
    assert bool((inside.weight == 2).all())


@pytest.mark.parametrize("left_out", [(), ("first.weight",), ("last.weight",)])
def test_names_of_one_tensor_need_one_entry(tmp_path, left_out):
    network, state = Tied(), numbered(Tied())
    load_weights(
        network, saved(tmp_path, {name: v for name, v in state.items() if name not in left_out})
    )
    assert network.first.weight is network.last.weight
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def refused(network: nn.Module, file: Path, message: str) -> None:
    """In one line that names the file, before a single number of the network is changed."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(network, file)
    assert "\n" not in str(caught.value) and file.name in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_names_that_differ_are_said_up_to_ten_of_a_kind(tmp_path):
    network = nn.ModuleList(nn.Linear(1, 1) for _ in range(6))
    file = saved(
        tmp_path, {f"other.{i:02}": torch.ones(1) for i in range(12)} | {"0.bias": torch.ones(1)}
    )
    refused(
        network,
        file,
        r"11 missing: 0.weight, 1.bias, .*, 5.bias, ... \(11 in all\); 12 unexpected: other.00, ",
    )
    refused(
        network,
        file,
        r"other.09, ... \(12 in all\); are they of this network\? save its own state_dict",
    )
    refused(
        network,
        saved(tmp_path, numbered(network[:5])),
        "2 missing: 5.bias, 5.weight; are they of this network",
    )


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (
            lambda name: "module." + name,
            "take only the names that begin with 'module.', without it",
        ),
        (
            lambda name: "ema.module." + name,
            "take only the names that begin with 'ema.module.', without it",
        ),
        (
            lambda name: name.removeprefix("net."),
            "put 'net.' before every name, or let the factory return the network",
        ),
    ],
)
def test_a_prefix_that_names_differ_by_is_found(tmp_path, rename, message):
    network = PointTeacher()
    tensors = {rename(name): value for name, value in numbered(network).items()}
    refused(network, saved(tmp_path, tensors), message)
    if "take only" in message:
        refused(network, saved(tmp_path, {**tensors, "step": torch.ones(1)}), message)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    network = PointTeacher()
    state = numbered(network)
    wide = {**state, "net.0.weight": torch.ones(16, 5)}
    refused(
        network,
        saved(tmp_path, wide),
        r"1 of another shape: net.0.weight \(16, 5\) for \(16, 3\); give the factory",
    )
    for value in (float("nan"), float("inf")):
        ill = {**state, "net.2.bias": torch.tensor([1.0, value])}
        refused(
            network,
            saved(tmp_path, ill),
            "expected finite weights, got NaN or infinity in net.2.bias",
        )
    (tmp_path / "weights.safetensors").write_bytes(b"\x08" + bytes(20))
    refused(
        network,
        tmp_path / "weights.safetensors",
        "expected a safetensors file, got .*; copy it anew",
    )
    refused(
        network,
        tmp_path / "none.safetensors",
        "expected teacher.weights at .*none.safetensors, got nothing there",
    )
    torch.save(state, tmp_path / "w.pt")
    refused(
        network,
        tmp_path / "w.pt",
        r"as a .safetensors file, got w.pt; convert it once: safetensors.torch.save_fi",
    )
