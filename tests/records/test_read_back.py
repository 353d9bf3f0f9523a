"""What a run reads back of itself: bounded, and one line for whatever it was not written as."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgen._core.archives import read_npz
from fastgen._core.tensor_files import sha256
from fastgen.records.checkpoints import checkpoint_folders
from fastgen.records.log import RunLog, read_log
from fastgen.training.accelerator import start_accelerator
from support.runs import SCORES, Counter, follow
from support.toy import Pulled

GOOD = '{"iteration": 1, "stage": "kd", "step": 1, "loss": 0.5}\n'


# ---- The log -------------------------------------------------------------------------------------


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


THINGS: dict[str, Callable[[Path], object]] = {
    "zeros without end": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a terabyte": sparse,
}


@pytest.mark.parametrize("make", THINGS.values(), ids=THINGS.keys())
def test_a_log_that_is_no_file_of_rows_is_one_line(tmp_path, make):
    make(tmp_path / "metrics.jsonl")
    log = RunLog(tmp_path, batch_size=1, main_process=True)
    for read in (lambda: read_log(tmp_path), lambda: log.truncate(["kd"], 0, 1)):
        with pytest.raises(ValueError, match=r"metrics\.jsonl") as caught:
            read()
        assert "\n" not in str(caught.value)


LINES = {
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a": ' * 50_000 + "1" + "}" * 50_000,
    "many digits": '{"step": ' + "9" * 100_000 + "}",
    "NaN": '{"stage": "kd", "step": 1, "loss": NaN}',
    "a key twice": '{"stage": "kd", "step": 1, "step": 2}',
    "too long": '{"stage": "' + "x" * (17 << 20) + '"}',
    "a negative step": '{"stage": "kd", "step": -1}',
    "half a step": '{"stage": "kd", "step": 1.5}',
    "phases that are none": '{"stage": "kd", "step": 1, "phases": 3}',
    "a warning that is none": '{"stage": "kd", "step": 1, "warnings": [3]}',
    "bounds that are none": '{"stage": "kd", "step": 1, "diagnostics": {"t": [[]]}}',
    "no object": "3",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_a_row_that_no_run_writes_is_named_by_its_line_and_nothing_is_dropped(tmp_path, line):
    text = GOOD + line + "\n" + GOOD
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"in line 2 of .*metrics\.jsonl, got") as caught:
        read_log(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    with pytest.raises(ValueError, match=r"metrics\.jsonl, got") as caught:
        RunLog(tmp_path, batch_size=1, main_process=True).truncate(["kd"], 0, 1)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_rows_of_a_run_with_everything_in_them_come_back(tmp_path):
    log = RunLog(tmp_path, batch_size=1, main_process=True)
    row = {"iteration": 3, "stage": "kd", "step": 3, "loss": float("nan"), "modes": [1, [2.5]]}
    row |= {"warnings": ["é"], "stopped_early": "x", "lr": 1e-3, "done": True}
    row |= {"diagnostics": {"t": [0, 1], "gap": [0.5, None], "gan_t": [0.0], "one": 2}}
    row |= {"skipped": {"student": {"in_a_row": 1, "in_all": 2, "rows": [7, 9]}}}
    written = log.write({**row, "extra": torch.tensor([1, 2])})
    (back,) = read_log(tmp_path)
    assert back["loss"] is None and back["extra"] == [1, 2] and back["phases"] == written["phases"]
    log.truncate(["kd"], 0, 3)
    assert read_log(tmp_path) == [back]


# ---- state.json ----------------------------------------------------------------------------------


def forge(run_dir: Path, change: Callable[[dict], object]) -> None:
    """Change the newest state.json, and the manifest with it."""
    path = checkpoint_folders(run_dir)[-1] / "state.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))
    manifest = path.with_name("manifest.json")
    found = json.loads(manifest.read_text())
    found["files"]["state.json"] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    manifest.write_text(json.dumps(found))


CHANGES: dict[str, Callable[[dict], object]] = {
    "all stages done": lambda meta: meta.update(position=99),
    "one more stage done": lambda meta: meta.update(position=meta["position"] + 1),
    "one less": lambda meta: meta.update(position=meta["position"] - 1),
    "no number": lambda meta: meta.update(position="1"),
    "yes": lambda meta: meta.update(position=True),
    "more updates": lambda meta: meta.update(step=8),
    "updates without end": lambda meta: meta.update(step=10**30),
    "negative updates": lambda meta: meta.update(step=-1),
    "half an update": lambda meta: meta.update(step=1.5),
    "another iteration": lambda meta: meta.update(iteration=99),
    "no iteration": lambda meta: meta.update(iteration=None),
    "scores that are none": lambda meta: meta.update(scores=[]),
    "scores of nobody": lambda meta: meta["scores"].update(x={"energy": 1.0}),
    "a score that is none": lambda meta: meta["scores"].update(dmd={"energy": "x"}),
    "seconds that are none": lambda meta: meta["seconds"].update(dmd="x"),
    "progress that is none": lambda meta: meta.update(progress=[]),
    "progress of a stage that is none": lambda meta: meta["progress"].update(dmd=3),
    "the progress of another": lambda meta: meta["progress"]["dmd"].update(stage="kd"),
    "another score": lambda meta: meta["progress"]["dmd"].update(primary="x"),
    "no patience": lambda meta: meta["progress"]["dmd"].update(stale="x"),
    "a best that is none": lambda meta: meta["progress"]["dmd"].update(best="x"),
    "a best without an update": lambda meta: meta["progress"]["dmd"].update(best_step=None),
    "a best that is to come": lambda meta: meta["progress"]["dmd"].update(best_step=99),
    "a spread of 0": lambda meta: meta["progress"]["dmd"].update(spread=0.0),
    "warnings that are none": lambda meta: meta["progress"]["dmd"].update(warnings=["x"]),
    "one key more": lambda meta: meta.update(more=1),
    "all updates done": lambda meta: meta.update(step=8, iteration=11, updates=[3, 8]),
    "a finished run": lambda meta: meta.update(position=2, step=0, iteration=8, updates=[3, 5, 0]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_state_that_no_run_was_in_is_one_line(tmp_path, change):
    stages = [Counter("kd", 3), Counter("dmd", 8)]
    with pytest.raises(Pulled):
        follow(tmp_path, [*SCORES[:6], 0.9, 0.8, 0.7], stages=stages, pull_at=5)
    forge(tmp_path, change)
    with pytest.raises(ValueError) as caught:
        follow(tmp_path, SCORES, stages=[Counter("kd", 3), Counter("dmd", 8)], resume=True)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900


def test_a_state_with_more_updates_than_its_stage_is_refused(tmp_path):
    with pytest.raises(Pulled):
        follow(tmp_path, SCORES, pull_at=6)
    with pytest.raises(ValueError, match="expected at most 3 updates of dmd in a checkpoint"):
        follow(tmp_path, SCORES, stages=[Counter("dmd", 3)], resume=True)


# ---- Others --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "x" * 16, "0" * 17, "0123456789abcdef\n", "é" * 100_000])
def test_the_name_of_a_run_in_its_tracker_is_read_as_it_was_written(tmp_path, monkeypatch, text):
    (tmp_path / "tracker_id").write_text(text)
    processes = start_accelerator(1)
    with pytest.raises(ValueError, match="tracker_id: expected") as caught:
        processes.start_tracker("wandb", tmp_path, 0)
    assert "\n" not in str(caught.value)


def test_an_archive_of_very_many_arrays_is_refused_before_they_are_read(tmp_path, monkeypatch):
    """20,000 of them were compared with each other, which took half a minute."""
    one = np.zeros(1)
    np.savez(tmp_path / "many.npz", **{f"a{i}": one for i in range(5000)})
    np.savez(tmp_path / "some.npz", **{f"a{i}": one for i in range(300)})
    assert len(read_npz(tmp_path / "some.npz")) == 300
    monkeypatch.setattr("fastgen._core.archives._read", lambda *_: pytest.fail("it was read"))
    with pytest.raises(ValueError, match="5,000 arrays, more than 4,096"):
        read_npz(tmp_path / "many.npz")
