"""Drift on data: no network but the student is asked, and what the method implies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgen.config import DistillConfig
from fastgen.jobs.checks import with_method
from fastgen.jobs.distillation import Distillation
from fastgen.methods.matching import DistributionMatching
from support.runs import train, weights
from support.toy import plug_pulled, toy_config


def config(run_dir, dmd: dict | None = None, **changes) -> DistillConfig:
    values = toy_config(run_dir, kd_steps=2, steps=4).model_dump() | {"method": "drift"} | changes
    return with_method(
        DistillConfig.model_validate(values | {"dmd": {"set_conditional": False, **(dmd or {})}})
    )


def test_it_is_the_data_s_sets_in_place_of_vsd(tmp_path):
    dmd = config(tmp_path).dmd
    assert (dmd.vsd_weight, dmd.set_weight, dmd.set_loss, dmd.set_target) == (0, 1, "drift", "data")
    assert config(tmp_path, {"set_weight": 0.3, "set_loss": "drift"}).dmd.set_weight == 0.3


@pytest.mark.parametrize(
    ("dmd", "words"),
    [
        ({"set_target": "teacher"}, "expected no dmd.set_target=teacher with method=drift"),
        ({"set_loss": "chamfer"}, "expected no dmd.set_loss=chamfer with method=drift"),
        ({"vsd_weight": 0.5}, "expected no dmd.vsd_weight with method=drift"),
    ],
)
def test_another_loss_is_refused(tmp_path, dmd, words: str):
    with pytest.raises(ValueError, match=words):
        config(tmp_path, dmd)


class Silent(nn.Module):
    """A teacher that may not be asked."""

    def forward(self, x_t, t, cond):
        raise AssertionError("asked")


def test_it_trains_and_resumes_bit_for_bit_without_asking_the_teacher(tmp_path, monkeypatch):
    monkeypatch.setattr(Distillation, "teacher_in_training", lambda self: Silent())
    monkeypatch.setattr(DistributionMatching, "diagnose", lambda self, step: {})
    job = train(config(tmp_path / "whole"))
    assert list(job.trainer.stages) == ["kd", "drift"]
    with plug_pulled(DistributionMatching, 2):
        train(config(tmp_path / "stopped"))
    train(config(tmp_path / "stopped", resume=True))
    whole = weights(tmp_path / "whole")
    resumed = weights(tmp_path / "stopped")
    assert not any("fake_score" in key or "discriminator" in key for key in whole)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
