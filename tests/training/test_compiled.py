"""train.compile: refused without a compiler; with one, the same training under the same names."""

from __future__ import annotations

import pytest
import torch

from fastgen._core.tensor_files import read_safetensors
from fastgen.distillation import distill
from fastgen.training.trained_network import check_compiler
from support.toy import ToyTask, ToyTeacher, toy_config


def test_compiling_needs_a_compiler_and_says_so_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    cfg = toy_config(tmp_path / "run", compile=True)
    with pytest.raises(
        ValueError, match=r"expected a C\+\+ compiler for train.compile=true, got none \(no-such"
    ):
        distill(cfg, teacher=ToyTeacher(), task=ToyTask())
    assert not (tmp_path / "run").exists()
    check_compiler(torch.device("cpu"), wanted=False)


@pytest.fixture
def traced(monkeypatch):
    """torch.compile without its code generator, which needs a compiler: graphs are run as they were
    traced."""
    compiled = []
    plain = torch.compile

    def compile(network, **options):
        compiled.append(type(network).__name__)
        return plain(network, backend="eager")

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr("fastgen.jobs.distillation.check_compiler", lambda device, *, wanted: None)
    return compiled


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.slow
def test_networks_are_compiled_and_a_run_and_its_names_stay_what_they_are(tmp_path, traced):
    plain = distill(toy_config(tmp_path / "plain"), teacher=ToyTeacher(), task=ToyTask())
    assert not traced
    run = distill(toy_config(tmp_path / "run", compile=True), teacher=ToyTeacher(), task=ToyTask())
    # The student of each stage, then of DMD fake score and teacher.
    assert traced == ["ToyTeacher", "ToyTeacher", "RungConditioned", "ToyTeacher"]
    for file in ("stages/kd.safetensors", "stages/dmd.safetensors", "student/student.safetensors"):
        one = read_safetensors(plain / file)
        two = read_safetensors(run / file)
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)
