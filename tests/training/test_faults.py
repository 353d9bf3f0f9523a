"""What ends a run early: kills, signals, disks, other processes. Each test runs real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastgen._core.processes import gather_objects, leave, part, together
from fastgen.distillation import distill
from fastgen.records.checkpoints import check_checkpoint, checkpoint_folders, load_newest_checkpoint
from fastgen.records.log import read_log, timeless
from fastgen.training.signals import Stopped, StopRequest, stopped_by_sigterm
from support.toy import ToyTask, ToyTeacher, with_everything

TOOLS = Path(__file__).parents[2] / "tools"
PATIENCE = 300  # seconds: an end for tests that hang, not a promise of speed

# `python job.py <run_dir> <fault> <options as JSON>`: a distillation of tests/support/toy.py, in
# which a fault comes about.
JOB = f"""
import json, os, resource, signal, sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from fastgen.jobs.command_line import user_errors
from fastgen.jobs.distillation import Distillation, distill
from fastgen.methods.kd import KnowledgeDistillation
from fastgen.methods.matching import DistributionMatching
from support.toy import ToyTask, ToyTeacher, with_everything

run_dir, fault, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
rank = int(os.environ.get("RANK", "0"))
resume = options.pop("resume", False)
sizes = {{"kd_steps": 12, "steps": 12, "checkpoint_every": 3, "evaluate_every": 4, "log_every": 2}}
cfg = with_everything(run_dir, **sizes | options).model_copy(update={{"resume": resume}})
update = DistributionMatching.update

def faulty(self, at):
    if at == 9:
        if fault == "sigterm" and rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        if fault == "sigterm to all":
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)
        if fault == "sigint" and rank == 0:
            os.kill(os.getpid(), signal.SIGINT)
        if fault == "error" and rank == 1:
            raise ValueError("a broken sample")
    if at == 8:
        if fault == "full":  # files of more than a few bytes can't be written any more
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        if fault == "read-only":
            os.chmod(run_dir + "/checkpoints", 0o555)
            os.setuid(65534) if os.getuid() == 0 else None
    if fault == "nan" and 6 <= at < 9 or fault == "nan for ever" and at >= 6:
        self.x0 = self.x0 * float("nan")
    logs = update(self, at)
    if fault == "nan" and at == 8:
        self.x0 = ToyTask().train.network_inputs()[0]
    return logs

DistributionMatching.update = faulty
if fault == "long update":
    def long_update(self, at):
        print("begun", flush=True)
        time.sleep({PATIENCE})

    KnowledgeDistillation.update = long_update
if fault == "sigterm in pairs":
    Distillation.pairs = lambda self: os.kill(os.getpid(), signal.SIGTERM)
with user_errors(resumable=True):
    distill(cfg, teacher=ToyTeacher(), task=ToyTask())
"""


def environment() -> dict[str, str]:
    # Nobody's accelerate config; a launch on a CPU has to say that it is one.
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HOME": os.devnull,
        "ACCELERATE_USE_CPU": "true",
    }


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that any user can write in; root may write where it mayn't."""
    path = Path(tempfile.mkdtemp(prefix="faults-"))
    path.chmod(0o777)
    (path / "job.py").write_text(JOB)
    yield path
    shutil.rmtree(path)


def command(
    folder: Path, fault: str, *, processes: int = 1, run: str = "run", **options: object
) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    job = [str(folder / "job.py"), str(folder / run), fault, json.dumps(options)]
    return [sys.executable, *(launch if processes > 1 else []), *job]


def run(folder: Path, fault: str = "none", **options) -> subprocess.CompletedProcess[str]:
    """The job, to its end."""
    return subprocess.run(
        command(folder, fault, **options),
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def pair(folder: Path, fault: str, **options) -> list[tuple[int, str]]:
    """(exit code, stderr) of two processes that share the job, without a launcher that would end
    one for the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    ranks = [environment() | shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    both = [
        subprocess.Popen(
            command(folder, fault, **options),
            env=env,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for env in ranks
    ]
    try:
        said = [process.communicate(timeout=PATIENCE)[1] for process in both]
        return [(process.returncode, err) for process, err in zip(both, said, strict=True)]
    finally:
        for process in both:
            process.kill()


def the_line(stderr: str) -> str:
    """The last line of a process that ended as a user can understand."""
    assert "Traceback" not in stderr, stderr
    return stderr.strip().splitlines()[-1]


def state(run_dir: Path) -> tuple[dict[str, torch.Tensor], dict]:
    found = load_newest_checkpoint(run_dir)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run without a fault."""
    run_dir = tmp_path_factory.mktemp("whole")
    sizes = {
        "kd_steps": 12,
        "steps": 12,
        "checkpoint_every": 3,
        "evaluate_every": 4,
        "log_every": 2,
    }
    distill(with_everything(run_dir, **sizes), teacher=ToyTeacher(), task=ToyTask())
    return run_dir


def assert_equal_runs(whole: Path, other: Path) -> None:
    for file in ("student/student.safetensors", "stages/kd.safetensors", "stages/dmd.safetensors"):
        one = load_file(whole / file)
        two = load_file(other / file)
        assert one.keys() == two.keys() and all(
            torch.equal(value, two[key]) for key, value in one.items()
        ), file
    logs = [[timeless(row) for row in read_log(run)] for run in (whole, other)]
    assert logs[0] == logs[1]


# ---- Kills ---------------------------------------------------------------------------------------


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path):
    """tools/kill.py with three kills: while a checkpoint is written, in training, while the student
    is exported."""
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
    *moments, last = [kill["moment"] for kill in report["kills"]]
    assert moments == ["write", "anywhere"] and last in (
        "hand-over",
        "too late",
    )  # a quick machine may be done by then
    assert not report["different"] and not any(kill["damaged"] for kill in report["kills"])
    assert all(count > 0 for count in report["compared"].values())


# ---- Signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "code"), [("sigterm", 143), ("sigint", 130)])
def test_a_signal_saves_says_so_and_is_gone_on_from(folder, whole, fault, code):
    done = run(folder, fault)
    assert done.returncode == code
    assert (
        the_line(done.stderr)
        == "stopped: state saved at dmd update 10; --resume goes on from there"
    )
    assert state(folder / "run")[1]["step"] == 10
    done = run(folder, resume=True)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(whole, folder / "run")


def test_sigterm_between_the_stages_is_a_line_too(folder):
    done = run(folder, "sigterm in pairs")
    assert done.returncode == 143
    assert the_line(done.stderr) == "stopped: what is done is in the run folder; --resume goes on"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_sigterm_that_comes_again_and_again_saves_once(folder, processes):
    """A cluster sends it to every process of a job, and a launcher hands its own on."""
    ends = (
        pair(folder, "sigterm to all")
        if processes == 2
        else [(done := run(folder, "sigterm to all")).returncode]
    )
    codes = [code for code, _ in ends] if processes == 2 else ends
    assert codes == [143] * processes
    err = ends[0][1] if processes == 2 else done.stderr
    assert (
        "state saved at dmd update 10" in the_line(err) and state(folder / "run")[1]["step"] == 10
    )


def test_ctrl_c_after_a_signal_does_not_wait_for_the_end_of_the_update(folder):
    process = subprocess.Popen(
        command(folder, "long update"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and "begun" in process.stdout.readline()
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130 and the_line(err).startswith("stopped")
    finally:
        process.kill()


def test_a_ctrl_c_that_comes_twice_at_once_is_one_and_a_later_one_another(monkeypatch):
    now = [10.0]
    reached = []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    request = StopRequest()
    with pytest.raises(Stopped) as raised, request.listening():
        for _ in range(3):  # of the terminal, and of the launcher
            os.kill(os.getpid(), signal.SIGINT)
        reached.append("the same one")
        now[0] += 1.5
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.number == signal.SIGINT
        reached.append("nothing new")
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("too far")
    assert raised.value.exit_code == 130 and reached == ["the same one", "nothing new"]


def test_a_later_sigterm_says_nothing_new(monkeypatch):
    now = [10.0]
    reached = []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with pytest.raises(Stopped), StopRequest().listening():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            now[0] += 20.0
            reached.append("still there")
    assert len(reached) == 3


def test_a_signal_that_nobody_acted_upon_is_not_forgotten():
    with pytest.raises(Stopped) as raised, StopRequest().listening():
        os.kill(os.getpid(), signal.SIGTERM)
    assert raised.value.exit_code == 143


def test_requests_are_noted_once_and_handlers_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    request = StopRequest()
    with pytest.raises(Stopped) as raised, request.listening():
        assert request.number == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.number == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
    assert raised.value.exit_code == 130
    with pytest.raises(Stopped) as raised, stopped_by_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert raised.value.exit_code == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


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
    assert (
        "error: loss or gradient of the discriminator not finite in 6 updates in a row, up to dmd "
        "update 9;" in line
    )
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
    part()
