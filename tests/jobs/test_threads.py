"""A training takes as many threads as its updates can use, the same ones each time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastgen._core.threads import using_threads
from fastgen.config import LoopConfig
from fastgen.jobs import distillation
from fastgen.jobs.threads import threads_of_training
from support.toy import ToyTask, ToyTeacher, toy_config

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("batch_size", "processes", "threads", "expected"),
    [
        (4, 1, None, 1),  # too small to share
        (10**9, 1, None, 3),
        (10**9, 10**9, None, 1),  # of which each process has one row
        (4, 1, 3, 3),  # as was asked for
    ],
)
def test_what_is_small_has_one_thread(batch_size, processes, threads, expected):
    x0, cond = ToyTask().train.network_inputs()
    train = LoopConfig(batch_size=batch_size, threads=threads)
    with using_threads(3):
        found = threads_of_training(
            train, ToyTeacher, x0, cond, SimpleNamespace(device=CPU, num_processes=processes)
        )
    assert found == expected


def test_updates_have_one_thread_and_pairs_have_all(tmp_path, monkeypatch):
    """A distillation by a small network; torch has its threads again afterwards."""
    seen = {}
    pairs_of_run = distillation.pairs_of_run
    student = distillation.Distillation.student

    def pairs(*arguments, **keywords):
        seen["pairs"] = torch.get_num_threads()
        return pairs_of_run(*arguments, **keywords)

    def build(job, *arguments):
        seen["updates"] = torch.get_num_threads()
        return student(job, *arguments)

    monkeypatch.setattr(distillation, "pairs_of_run", pairs)
    monkeypatch.setattr(distillation.Distillation, "student", build)
    cfg = toy_config(tmp_path, threads=None)
    with using_threads(2):
        monkeypatch.setattr("fastgen.training.accelerator.use_all_cores", lambda *_, **__: None)
        distillation.distill(cfg, teacher=ToyTeacher(), task=ToyTask())
        seen["after"] = torch.get_num_threads()
    assert seen == {"pairs": 2, "updates": 1, "after": 2}
