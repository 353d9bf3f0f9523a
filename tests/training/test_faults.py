"""What ends a run early: kills, disks, other processes. Each test runs real processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastgen._core.processes import gather_objects, leave, leave_together, together
from fastgen.records.checkpoints import check_checkpoint, checkpoint_folders
from fastgen.records.log import read_log
from support.faults import (
    PATIENCE,
    assert_equal_runs,
    command,
    environment,
    pair,
    run,
    state,
    the_line,
)

pytestmark = pytest.mark.slow

TOOLS = Path(__file__).parents[2] / "tools"


# ---- Kills ---------------------------------------------------------------------------------------


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path):
    """tools/kill.py with three kills: of a distillation while a checkpoint is written and while the
    student is exported, and of a teacher with dropout."""
    done = subprocess.run(
        [sys.executable, TOOLS / "kill.py", "--kills", "3", "--out", tmp_path / "kill"],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "kill" / "kill.json").read_text())
    moments = {
        job: [kill["moment"] for kill in report["kills"] if kill["job"] == job]
        for job in ("distillation", "teacher")
    }
    assert moments["teacher"] == ["write"] and moments["distillation"][:-1] == ["write"]
    # A quick machine may be done by then.
    assert moments["distillation"][-1] in ("hand-over", "too late")
    assert not report["different"] and not any(kill["damaged"] for kill in report["kills"])
    assert all(count > 0 for count in report["compared"].values())


# ---- Disks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_disk_that_cannot_be_written_ends_the_run_with_its_last_state_intact(
    folder, whole, fault
):
    done = run(folder, fault)
    assert done.returncode == 2
    line = the_line(done.stderr)
    newest, *_ = reversed(checkpoint_folders(folder / "run"))
    reason = "File too large" if fault == "full" else "Permission denied"
    assert line.startswith("error: cannot write") and "checkpoints/step_" in line and reason in line
    assert f"the state in {newest} is intact, --resume goes on from it once there is room" in line
    check_checkpoint(newest)
    assert 0 < state(folder / "run")[1]["step"] <= 9 and not list(
        (folder / "run" / "checkpoints").glob(".*")
    )
    (folder / "run" / "checkpoints").chmod(0o755)
    done = run(folder, resume=True)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(whole, folder / "run")


# ---- What is no number ---------------------------------------------------------------------------


def test_updates_that_are_no_number_are_skipped_counted_and_logged_with_their_rows(folder):
    done = run(folder, "nan")
    assert done.returncode == 0, done.stderr
    rows = [row for row in read_log(folder / "run") if "skipped" in row]
    assert [row["step"] for row in rows] == [7, 8, 9]
    for count, row in enumerate(rows, 1):
        # The fake score sees no data, only what the student makes.
        assert row["skipped"].keys() == {"student", "discriminator"}
        assert (row["skipped"]["student"]["in_a_row"], row["skipped"]["student"]["in_all"]) == (
            count,
            count,
        )
        assert (
            len(row["skipped"]["student"]["rows"]) == 8
            and len(row["skipped"]["discriminator"]["rows"]) == 16
        )
        assert (
            f"warning: dmd update {row['step']}: loss or gradient of the student not finite"
            in done.stderr
        )
    assert len({tuple(row["skipped"]["student"]["rows"]) for row in rows}) == 3
    report = json.loads((folder / "run" / "report" / "report.json").read_text())
    assert any(
        "dmd: 3 updates were skipped" in text and "of the student" in text
        for text in report["warnings"]
    )
    assert all(
        bool(v.isfinite().all())
        for v in load_file(folder / "run" / "student" / "student.safetensors").values()
    )


def test_too_many_in_a_row_end_the_run_with_its_last_good_state_saved(folder):
    done = run(folder, "nan for ever", most_skipped=5, checkpoint_every=1000)
    assert done.returncode == 2
    line = the_line(done.stderr)
    # It takes two updates for each of the student's.
    said = r"error: loss or gradient of the discriminator not finite in 6 updates in a row, up to "
    assert re.match(
        said + r"dmd update 9 \(expected finite numbers .*\); look at the rows", line
    ), line
    assert "is intact, --resume goes on from it" in line
    tensors, meta = state(folder / "run")
    assert meta["step"] == 9 and all(bool(v.isfinite().all()) for v in tensors.values())
    # What has been said stays true of a run that goes on, until the data are numbers again.
    assert (
        run(folder, "nan for ever", most_skipped=5, checkpoint_every=1000, resume=True).returncode
        == 2
    )


# ---- Many processes ------------------------------------------------------------------------------


def test_a_second_run_in_a_folder_is_refused_and_leaves_the_first_alone(folder):
    first = subprocess.Popen(
        command(folder, "long update"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert first.stdout is not None and "begun" in first.stdout.readline()
        before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
        said = f"another process is running in {folder / 'run'}"
        alone = run(folder, resume=True)
        assert alone.returncode == 2 and the_line(alone.stderr).startswith(f"error: {said}")
        for options, why in (
            ({"resume": True}, said),
            ({}, f"{folder / 'run'} holds a run already"),
        ):
            (code, err), (other_code, other_err) = pair(folder, "none", **options)
            assert (code, other_code) == (2, 2)
            assert the_line(err).startswith(f"error: {why}")
            assert the_line(other_err).startswith(f"error: process 0 stopped: {why}")
        assert first.poll() is None
        assert {
            path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()
        } == before
    finally:
        first.kill()
        first.communicate()


def test_an_error_of_one_process_ends_all_of_them(folder):
    (code, err), (other_code, other_err) = pair(folder, "error")
    assert other_code == 2, other_err
    assert the_line(other_err).startswith("error: a broken sample")
    assert code != 0, err
    assert 0 < state(folder / "run")[1]["step"] <= 9


def test_a_failed_write_of_the_main_process_ends_all_of_them_with_a_line(folder):
    (code, err), (other_code, other_err) = pair(folder, "full")
    assert (code, other_code) == (2, 2)
    assert "checkpoints/step_" in the_line(err) and "is intact" in the_line(err)
    assert the_line(other_err).startswith("error: process 0 stopped: cannot write")


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_processes(folder, whole, before, after):
    """SIGTERM to one stops all after the same update; what goes on equals the whole run but for
    rounding."""
    done = run(folder, "sigterm", processes=before)
    assert done.returncode != 0 and "state saved at dmd update 10" in done.stderr
    assert state(folder / "run")[1]["step"] == 10
    done = run(folder, processes=after, resume=True)
    assert done.returncode == 0, done.stderr
    for file in ("student/student.safetensors", "stages/kd.safetensors", "stages/dmd.safetensors"):
        one = load_file(whole / file)
        two = load_file(folder / "run" / file)
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5, msg=f"{file}: {key}")
    logs = [
        [(row["stage"], row["step"]) for row in read_log(run)] for run in (whole, folder / "run")
    ]
    assert logs[0] == logs[1]


def test_alone_a_process_hears_itself():
    assert gather_objects(3) == [3]
    with pytest.raises(KeyError), together():
        raise KeyError
    with together():
        pass
    with pytest.raises(SystemExit) as left:
        leave(7)
    assert left.value.code == 7
    leave_together()
