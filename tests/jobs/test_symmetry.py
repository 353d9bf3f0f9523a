"""The symmetry that a run's config declares is the one whose error its exports tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastgen.export.group_action import equivariance_of
from fastgen.export.whole_sampler import WholeSampler
from fastgen.jobs.symmetry import symmetry_of_run
from support.written import written_student

CONFIG = "data: {name: file, path: x.npz, symmetry: {group: C2, in_rep: [sign, sign], "


def declared(folder: Path, text: str) -> dict:
    (folder / "config.yaml").write_text(text)
    return symmetry_of_run(folder / "student")


def test_a_config_or_an_embedded_task_declares_it(tmp_path):
    assert symmetry_of_run(tmp_path / "student") == {}
    found = declared(tmp_path, CONFIG + "cond_rep: [trivial, sign]}}")
    assert found == {"group": "C2", "in_rep": ["sign", "sign"], "cond_rep": ["trivial", "sign"]}
    assert declared(tmp_path, "data: {name: ring}")["group"] == "D4"
    assert declared(tmp_path, "data: {name: fashion}") == {}


def test_the_error_is_that_of_the_declared_group():
    student = written_student("tokens")
    sampler = WholeSampler(student).eval()

    def odd(tensors):  # sign and sign of noise, whatever the observations are
        return torch.tanh(tensors[0])

    assert equivariance_of(sampler, odd) is None
    rep = ["sign", "sign"]
    found = equivariance_of(sampler, odd, group="C2", in_rep=rep, cond_rep=["trivial", "sign"])
    assert found is not None and found["group"] == "C2" and max(found["errors"].values()) < 1e-7
    found = equivariance_of(sampler, odd, group="C8")  # by copies of standard
    assert found is not None and max(found["errors"].values()) > 0.01
    with pytest.raises(ValueError, match="in_rep of size 2"):
        equivariance_of(sampler, odd, group="C2", in_rep=["sign"], cond_rep=rep)
    student.cond_horizon = None
    found = equivariance_of(sampler, odd, group="C2", in_rep=rep, cond_rep=rep)
    assert found is not None and "condition of fixed size" in found["not_measured"]
