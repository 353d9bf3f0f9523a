"""The recipes, stopped and resumed: nothing is lost, and a line says how to go on."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastgen.jobs.distillation import Distillation
from fastgen.records.checkpoints import checkpoint_folders
from fastgen.records.log import read_log, timeless
from support.recipes import KD_STEPS, RECIPES, once, python, start, stop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def stopped(home, tmp_path_factory) -> Path:
    """The run of `home` once more: Ctrl-C in KD, resumed, kill -9 in DMD, resumed to the end; what
    was said between."""

    def make(folder: Path) -> None:
        run, said = folder / "run", {}
        distill = (
            RECIPES / "distill.py",
            "student.yaml",
            f"run_dir={run}",
            "train.checkpoint_every=3",
        )

        def newest() -> int:
            return max((int(path.name[5:]) for path in checkpoint_folders(run)), default=0)

        code, err = stop(start(*distill, cwd=home), signal.SIGINT, lambda: newest() > 0)
        said["interrupted"] = {"code": code, "error": err.splitlines()[-1], "newest": newest()}
        code, err = stop(
            start(*distill, "--resume", cwd=home), signal.SIGKILL, lambda: newest() > KD_STEPS + 1
        )
        said["killed"] = {"code": code, "newest": newest(), "student": (run / "student").exists()}
        done = python(*distill, "--resume", cwd=home)
        said["resumed"] = {"code": done.returncode, "error": done.stderr}
        (folder / "said.json").write_text(json.dumps(said))

    return once(tmp_path_factory, "stopped", make)


def test_ctrl_c_saves_says_how_to_go_on_and_exits_with_130(stopped):
    said = json.loads((stopped / "said.json").read_text())["interrupted"]
    assert said["code"] == 130 and 0 < said["newest"] <= KD_STEPS + 1
    assert re.fullmatch(
        r"stopped: state saved at kd update \d+; --resume goes on from there", said["error"]
    )


def test_kill_9_leaves_a_run_that_can_be_resumed(stopped):
    said = json.loads((stopped / "said.json").read_text())
    assert said["killed"]["code"] == -signal.SIGKILL and said["killed"]["newest"] > KD_STEPS + 1
    assert not said["killed"]["student"]
    assert said["resumed"]["code"] == 0, said["resumed"]["error"]


@pytest.mark.parametrize(
    "file", ["student/student.safetensors", "stages/kd.safetensors", "stages/dmd.safetensors"]
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(home, stopped, file):
    whole, resumed = load_file(home / "runs" / "walks" / file), load_file(stopped / "run" / file)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_a_resumed_run_has_the_log_and_the_scores_of_an_uninterrupted_one(home, stopped):
    whole, resumed = home / "runs" / "walks", stopped / "run"
    rows = [[timeless(row) for row in read_log(run)] for run in (whole, resumed)]
    assert rows[0] == rows[1]
    reports = [json.loads((run / "report" / "report.json").read_text()) for run in (whole, resumed)]
    for part in ("teacher", "student", "kd", "dmd", "validation", "selected"):
        assert reports[0][part] == reports[1][part]


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("moment", ["pairs", "hand_over"])
def test_ctrl_c_between_the_stages_says_how_to_go_on_too(home, call, tmp_path, monkeypatch, moment):
    def interrupt(self: Distillation) -> None:
        raise KeyboardInterrupt

    few = ("train.kd_steps=2", "train.steps=0", "run_dir=run")
    with monkeypatch.context() as patch:
        patch.setattr(Distillation, moment, interrupt)
        code, _, err = call("distill.py", home / "student.yaml", *few)
    assert code == 130 and "--resume" in err.splitlines()[-1]
    assert call("distill.py", home / "student.yaml", *few, "--resume")[0] == 0
    assert (tmp_path / "run" / "student").exists()
