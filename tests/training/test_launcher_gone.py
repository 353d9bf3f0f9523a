"""A launcher that goes takes its processes with it, saved; any other parent may go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from fastgen._core.launcher import is_launcher
from support.faults import (
    PATIENCE,
    assert_equal_runs,
    command,
    environment,
    run,
    state,
)

ACCELERATE = {
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "no",
    "ACCELERATE_CPU_AFFINITY": "0",
}
TORCH = {"RANK": "0", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("python /venv/bin/accelerate launch recipes/distill.py", True),
        ("/usr/bin/python3.11 -u /venv/bin/accelerate-launch --cpu recipes/distill.py", True),
        ("python -m accelerate.commands.launch recipes/distill.py", True),
        ("python /lib/accelerate/commands/launch.py recipes/distill.py", True),
        ("python -X importtime -m accelerate.commands.accelerate_cli launch x.py", True),
        ("python /venv/bin/torchrun --nproc_per_node 2 recipes/distill.py", True),
        ("python -m torch.distributed.run --standalone recipes/distill.py", True),
        ("bash", False),
        ("/bin/sh -c python recipes/distill.py", False),
        ("-zsh", False),
        ("nohup python recipes/distill.py", False),
        ("/sbin/init", False),
        ("python tools/same_runs.py", False),
        ("python /home/me/accelerate/train.py", False),
        ("tmux new-session", False),
    ],
)
def test_launchers_are_known_by_their_command_line(words, expected):
    for variables in ({}, ACCELERATE, TORCH):  # which a shell may have exported
        assert is_launcher(words.split(), variables) == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (ACCELERATE, True),
        (TORCH, True),
        ({}, False),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, False),
    ],
)
def test_where_the_command_line_is_unknown_all_that_a_launcher_leaves_counts(variables, expected):
    assert is_launcher([], variables) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "with_signal"), [(1, "SIGTERM"), (2, "SIGKILL")])
def test_a_run_is_saved_when_its_launcher_goes(folder, whole, processes, with_signal):
    launch = command(folder, "launcher goes", processes=processes)
    if processes == 1:
        launch[1:1] = ["-m", "accelerate.commands.launch"]
    launcher = subprocess.Popen(
        launch,
        env=environment() | {"WITH_SIGNAL": with_signal},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    # The pipe ends when the last process that was started has let go of it.
    _, err = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == -getattr(signal, with_signal)
    said = "stopped: state saved at dmd update 10; --resume goes on from there"
    assert said in err.splitlines()
    assert state(folder / "run")[1]["step"] == 10
    if processes == 1:
        done = run(folder, resume=True)
        assert done.returncode == 0, done.stderr
        assert_equal_runs(whole, folder / "run")


@pytest.mark.slow
def test_a_run_outlives_the_shell_that_it_was_started_from(folder):
    """nohup python recipes/distill.py &, and the shell is closed."""
    words = " ".join(f"'{word}'" for word in command(folder, "sighup"))
    shell = subprocess.Popen(
        ["sh", "-c", f"nohup {words} & sleep 0.5"],
        env=environment() | ACCELERATE,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    out, _ = shell.communicate(timeout=PATIENCE)
    assert shell.returncode == 0 and "stopped" not in out
    assert (folder / "run" / "report" / "report.json").exists(), out


@pytest.mark.parametrize("forked", [False, True])
def test_a_process_is_told_once_and_a_fork_of_it_never(forked):
    """`python -m accelerate.commands.launch` stands for a launcher by its words alone."""
    child = (
        "import os, sys, time; from fastgen._core.launcher import watch_launcher, AT_START;"
        "assert AT_START.launched;"
        f"forked = {forked} and os.fork() == 0;"
        "watch_launcher(); watch_launcher(); os.write(1, b'ready\\n');"
        "time.sleep(3 if forked else 60); os.write(1, b'outlived\\n')"
    )
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", launcher, "accelerate.commands.launch"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for _ in range(1 + forked):
        assert process.stdout.readline() == "ready\n"
    process.kill()
    rest = process.communicate(timeout=PATIENCE)[0]
    assert rest == ("outlived\n" if forked else "")
