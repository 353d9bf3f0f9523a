"""What a run says of itself: rows with speed and memory, bars and lines, trackers, one voice of
many processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastgen._core.timing import PhaseClock
from fastgen.distillation import distill
from fastgen.records import log as run_log
from fastgen.records.log import (
    CLOCKED,
    Lines,
    RunLog,
    numbers,
    peak_memory,
    progress_bar,
    read_log,
    timeless,
)
from support.launching import forked
from support.toy import ToyTask, ToyTeacher, toy_config

TESTS = Path(__file__).parents[1]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only go by when a test says so."""
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_phases_add_up_to_what_passed_each_without_those_inside_it(clock):
    phases = PhaseClock()
    with phases.phase("student"):
        clock(2.0)
        with phases.phase("data"):
            clock(0.5)
        clock(1.0)
    with phases.phase("data"):
        clock(0.25)
    clock(4.0)
    assert phases.take() == {"student": 3.0, "data": 0.75, "other": 4.0}
    clock(1.0)
    assert phases.take() == {"other": 1.0}


def test_a_phase_that_fails_is_counted_and_closed(clock):
    phases = PhaseClock()
    with pytest.raises(KeyError), phases.phase("student"), phases.phase("data"):
        clock(1.0)
        raise KeyError
    with phases.phase("student"):
        clock(2.0)
    assert phases.take() == {"student": 2.0, "data": 1.0, "other": 0.0}


def test_throughput_counts_training_alone(tmp_path, clock):
    log = RunLog(tmp_path, batch_size=8, main_process=True)
    for _ in range(3):
        with log.clock.phase("student"):
            clock(2.0)
        log.count()
    with log.clock.phase("validation"):
        clock(50.0)
    row = log.write({"iteration": 3, "stage": "kd", "step": 3, "loss": torch.tensor(0.5)})
    assert row["samples_per_s"] == 3 * 8 / 6.0
    assert row["phases"] == {"student": 6.0, "validation": 50.0, "other": 0.0}
    # Nothing was trained since: there is no rate.
    clock(1.0)
    assert "samples_per_s" not in log.write({"iteration": 3, "stage": "dmd", "step": 0})
    assert [row["step"] for row in read_log(tmp_path)] == [3, 0]


@pytest.mark.parametrize(
    "row", ["{}", "[]", '{"stage": "x", "step": 1}', '{"stage": "kd", "step": "1"}']
)
def test_rows_of_something_else_are_not_cut(tmp_path, row):
    path = tmp_path / "metrics.jsonl"
    text = f'{{"stage": "kd", "step": 1}}\n{row}\n'
    path.write_text(text)
    log = RunLog(tmp_path, batch_size=1, main_process=True)
    with pytest.raises(ValueError, match=r"expected rows of kd, dmd in .*metrics\.jsonl, got"):
        log.truncate(["kd", "dmd"], 0, 1)
    assert path.read_text() == text


def test_peak_memory_sees_what_is_held():
    before = peak_memory()
    more = 1 << 26
    assert before is not None and before > 1e7
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    held = torch.ones((before - resident + more) // 4)  # beyond the peak, which may be long past
    assert before + 0.5 * more <= peak_memory() <= before + 2 * more
    assert held.sum() == len(held)


@pytest.mark.parametrize("line", ["{", "nul", "\x00", '{"step": 1}{'])
def test_a_damaged_row_is_named_by_its_line_and_a_last_one_that_was_cut_is_left_out(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2]
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(
        ValueError, match=r"expected a row of JSON in line 2 of .*metrics\.jsonl, got"
    ):
        read_log(tmp_path)


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.slow
def test_every_row_of_a_run_says_how_fast_it_was_and_what_took_the_time(tmp_path):
    distill(toy_config(tmp_path / "run"), teacher=ToyTeacher(), task=ToyTask())
    rows = read_log(tmp_path / "run")
    assert all({"seconds", "phases", "peak_memory_mb"} <= set(row) for row in rows)
    assert all(("samples_per_s" in row) == (row["step"] > 0) for row in rows)
    named = {
        stage: {name for row in rows if row["stage"] == stage for name in row["phases"]}
        for stage in ("kd", "dmd")
    }
    assert named["kd"] == {"data", "student", "validation", "checkpoint", "other"}
    assert named["dmd"] == {*named["kd"], "fake"}
    assert not any(set(timeless(row)) & set(CLOCKED) for row in rows)


def test_a_file_gets_whole_lines_now_and_then_and_one_at_the_end(clock, capsys):
    with Lines("kd", 5, every=3.0) as bar:
        for n in range(5):
            clock(1.0)
            bar.update()
            bar.set_postfix({"loss": n})
    with Lines("pairs", 2) as bar:
        bar.update(2)
        bar.set_postfix()
    said = capsys.readouterr().err
    assert said == "kd: 1/5, loss 0\nkd: 4/5, loss 3\nkd: 5/5, loss 4\npairs: 2/2\n"


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.slow
def test_a_terminal_gets_a_bar_and_a_file_no_carriage_return(tmp_path, monkeypatch, capsys):
    assert isinstance(progress_bar("kd", 3), Lines)
    distill(toy_config(tmp_path / "run"), teacher=ToyTeacher(), task=ToyTask())
    said = capsys.readouterr().err
    assert (
        "\r" not in said and "1/2 kd: 7/7, loss " in said and "samples/s" in said and "MB" in said
    )
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar("kd", 3) as bar:
        bar.update(3)
    assert "\r" in capsys.readouterr().err
    with progress_bar("kd", 3, shown=False) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


# ---- Trackers ------------------------------------------------------------------------------------


def test_trackers_get_numbers_by_stage():
    row = {
        "iteration": 7,
        "stage": "dmd",
        "step": 3,
        "loss": torch.tensor(0.5),
        "warnings": ["no"],
        "done": True,
    }
    row |= {"phases": {"data": 0.25}, "diagnostics": {"gap": [1.0, 2.0]}}
    assert numbers(row) == {
        "dmd/step": 3.0,
        "dmd/loss": 0.5,
        "dmd/phases/data": 0.25,
        "dmd/diagnostics/gap/0": 1.0,
        "dmd/diagnostics/gap/1": 2.0,
    }


def test_a_tracker_without_its_package_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(run_log.importlib.util, "find_spec", lambda name: None)
    cfg = toy_config(tmp_path / "run", tracker="wandb")
    with pytest.raises(
        ValueError, match="expected the package wandb for train.tracker=wandb, .* pip install wandb"
    ):
        distill(cfg, teacher=ToyTeacher(), task=ToyTask())
    assert not (tmp_path / "run").exists()


# A package that writes down what accelerate asks of it.
WANDB = """
import json, os
class Run:
    config = {}
    def log(self, values, step=None, **kwargs): note("log", {**values, "at": step})
    def finish(self): note("finish", {})
class Config:
    def update(self, *args, **kwargs): pass
config = Config()
def note(what, values):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps({"what": what, **values}) + chr(10))
def init(**kwargs):
    note("init", kwargs)
    return Run()
"""
JOB = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from fastgen.distillation import distill
from fastgen.methods.matching import DistributionMatching
from support.toy import ToyTask, ToyTeacher, plug_pulled, toy_config, without_pictures
cfg = toy_config("run", tracker="wandb")
with plug_pulled(DistributionMatching, 7):
    distill(cfg, teacher=ToyTeacher(), task=ToyTask())
with without_pictures():
    distill(cfg.model_copy(update={{"resume": True}}), teacher=ToyTeacher(), task=ToyTask())
"""


def python(code: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    (cwd / "job.py").write_text(code)
    path = os.pathsep.join([str(cwd / "site"), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(
        [sys.executable, "job.py"], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_its_run_of_the_tracker(tmp_path):
    for folder in ("wandb", "wandb-1.0.dist-info"):
        (tmp_path / "site" / folder).mkdir(parents=True)
    (tmp_path / "site" / "wandb" / "__init__.py").write_text(WANDB)
    (tmp_path / "site" / "wandb-1.0.dist-info" / "METADATA").write_text(
        "Name: wandb\nVersion: 1.0\n"
    )
    done = python(JOB, tmp_path, NOTES=str(tmp_path / "notes"))
    assert done.returncode == 0, done.stderr
    notes = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    first, second = (note for note in notes if note["what"] == "init")
    assert first["id"] == second["id"] and len(first["id"]) == 16 and second["resume"] == "allow"
    rows = read_log(tmp_path / "run")
    sent = {note["at"]: note for note in notes if note["what"] == "log"}
    assert sorted(sent) == sorted({row["iteration"] for row in rows})
    last = rows[-1]
    assert sent[last["iteration"]]["dmd/energy"] == last["energy"] and notes[-1]["what"] == "finish"


# ---- Many processes, one voice -------------------------------------------------------------------

VOICES = """
import logging, sys, warnings
from accelerate import debug_launcher
from fastgen.records.log import progress_bar, say
from fastgen.training.accelerator import start_accelerator

def job():
    accelerator = start_accelerator(1)
    print("here", file=sys.stderr)
    warnings.warn("a warning")
    logging.getLogger("fastgen").warning("a log line")
    with progress_bar("kd", 1, shown=accelerator.is_main_process) as bar:
        bar.update()

if __name__ == "__main__":
    debug_launcher(job, num_processes=2)
"""


@pytest.mark.slow
def test_only_the_main_process_warns_logs_and_shows_progress(tmp_path):
    (tmp_path / "job.py").write_text(VOICES)
    (done,) = forked(tmp_path / "job.py", processes=1)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("here") == 2
    for text in ("UserWarning: a warning", "a log line", "kd: 1/1"):
        assert done.stderr.count(text) == 1, (text, done.stderr)
