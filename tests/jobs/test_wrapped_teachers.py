"""Teachers in what launchers put around them, and patched ones: the run, the names and the scores
are those of the bare network."""

from __future__ import annotations

from types import MethodType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastgen._core.json_files import read_json
from fastgen.config import EMAConfig, OptimizerConfig
from fastgen.distillation import distill
from fastgen.export import export_student, load_network, load_student, save_network
from fastgen.records.log import read_log
from fastgen.teachers import as_rectified_flow
from fastgen.training.processes import OneProcess
from fastgen.training.trained_network import TrainedNetwork
from support.launched import AROUND, PLACES, Bodied, launched
from support.toy import ToyTask, toy_config, without_pictures

X = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0))
COND = torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(1))
T = torch.full((5,), 0.5)
DECLARED = {"path": "cosine", "prediction": "v"}


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("around", AROUND)
def test_an_export_has_the_names_of_the_bare_network_and_states_its_conversion(
    tmp_path, around, place, converted
):
    network = launched(Bodied(), around, place)
    bare: nn.Module = Bodied()
    if converted:
        network = as_rectified_flow(network, **DECLARED)
        bare = as_rectified_flow(bare, **DECLARED)
        if place == "whole":
            network = AROUND[around](network)
    options = {"t_list": [0.9, 0.5, 0.0], "horizon": (2, 4)}
    export_student(tmp_path / "wrapped", network, **options)
    export_student(tmp_path / "bare", bare, **options)
    configs = [read_json(tmp_path / name / "config.json") for name in ("wrapped", "bare")]
    for config in configs:
        del config["checksum"]
    assert configs[0] == configs[1]
    assert (configs[0]["parameterization"] is None) is not converted

    Bodied(seed=1).load_state_dict(
        load_file(tmp_path / "wrapped" / "student.safetensors"), strict=True
    )
    noise = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(2))
    expected = load_student(tmp_path / "bare", network=Bodied(seed=1)).sample(COND, noise=noise)
    for given in (Bodied(seed=1), launched(Bodied(seed=1), around, place)):
        loaded = load_student(tmp_path / "wrapped", network=given)
        assert torch.equal(loaded.sample(COND, noise=noise), expected)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("around", AROUND)
def test_a_saved_teacher_has_the_names_of_the_bare_network(tmp_path, around, place):
    save_network(tmp_path / "wrapped", launched(Bodied(), around, place))
    Bodied(seed=1).load_state_dict(
        load_file(tmp_path / "wrapped" / "model.safetensors"), strict=True
    )
    loaded, _ = load_network(tmp_path / "wrapped", network=Bodied(seed=1))
    assert torch.equal(loaded(X, T, COND), Bodied().eval()(X, T, COND))
    assert read_json(tmp_path / "wrapped" / "config.json")["network"]["name"] == "Bodied"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    cfg = toy_config(tmp_path_factory.mktemp("plain") / "run")
    with without_pictures():
        return distill(cfg, teacher=Bodied(), task=ToyTask())


FILES = ("stages/kd.safetensors", "stages/dmd.safetensors", "student/student.safetensors")


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("around", "place"), [("compiled", "whole"), ("compiled", "body"), ("both", "everywhere")]
)
def test_a_run_with_a_launched_teacher_is_that_of_the_bare_one(tmp_path, plain, around, place):
    teacher = launched(Bodied(), around, place)
    run = distill(toy_config(tmp_path / "run"), teacher=teacher, task=ToyTask())
    for file in FILES:
        expected = load_file(plain / file)
        found = load_file(run / file)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)
    names = {name for file in run.rglob("*.safetensors") for name in load_file(file)}
    assert not [name for name in names if "_orig_mod" in name or ".module." in name]


# ---- Patches -------------------------------------------------------------------------------------


def by_closure(network: Bodied) -> None:
    before = network.forward
    network.forward = lambda x_t, t, cond: 0.5 * before(x_t, t, cond) + 1.0


def by_method(network: Bodied) -> None:
    def forward(self: Bodied, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return 0.5 * Bodied.forward(self, x_t, t, cond) + 1.0

    network.forward = MethodType(forward, network)


def by_hook(network: Bodied) -> None:
    network.register_forward_hook(lambda module, args, output: 0.5 * output + 1.0)


class Patched(Bodied):
    """The same network without a patch."""

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        return 0.5 * super().forward(x_t, t, cond) + 1.0


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.slow
def test_a_run_with_a_patched_teacher_is_that_of_the_network_written_so(tmp_path):
    teacher = Bodied()
    by_closure(teacher)
    found = distill(toy_config(tmp_path / "run"), teacher=teacher, task=ToyTask())
    expected = distill(toy_config(tmp_path / "other"), teacher=Patched(), task=ToyTask())
    for file in FILES:
        one = load_file(expected / file)
        for name, value in load_file(found / file).items():
            torch.testing.assert_close(value, one[name], rtol=0, atol=1e-5)
    # The validation in training and the hand-over score the same network.
    validation = read_json(found / "report" / "report.json")["validation"]
    for stage in ("kd", "dmd"):
        rows = [row for row in read_log(found) if row["stage"] == stage and row["step"] > 0]
        scores = [row["energy"] for row in rows if "energy" in row]
        assert min(scores) == pytest.approx(validation[stage]["energy"], abs=1e-6)


class Mixed(OneProcess):
    """One process in bfloat16, which puts its autocast where accelerate does."""

    def prepare(self, network, optimizer):
        network._original_forward = network.forward
        before = network.forward

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return before(*args, **kwargs).float()

        network.forward = forward
        return network, optimizer


@pytest.mark.parametrize("processes", [OneProcess(), Mixed()], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("patch", [by_closure, by_method, by_hook, None])
def test_an_average_keeps_patches_and_loses_what_mixed_precision_put_there(patch, processes):
    network = Bodied()
    if patch is not None:
        patch(network)
    expected = network(X, T, COND).detach()
    trained = TrainedNetwork(network, OptimizerConfig(), 10, processes, ema=EMAConfig())
    in_training = trained.network(X, T, COND).detach()
    assert torch.equal(in_training, expected) is not isinstance(processes, Mixed)
    averaged = trained.averaged()
    assert torch.equal(averaged(X, T, COND), expected)
    trained.update(trained.network(X, T, COND).square().mean(), 0)
    assert torch.equal(averaged(X, T, COND), expected)
    # Training goes on as it was.
    assert torch.equal(trained.network(X, T, COND), trained.network(X, T, COND))
    assert not torch.equal(trained.averaged()(X, T, COND), expected)
