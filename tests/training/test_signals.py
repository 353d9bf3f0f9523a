"""Signals that end a run: it saves once, says so and is gone on from."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from fastgen.training.signals import Stopped, StopRequest, stopped_by_signals
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


@pytest.fixture
def hearing():
    """SIGHUP is not ignored here, as it would be under nohup, nor in what is started from here."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "code"), [("sigterm", 143), ("sigint", 130), ("sighup", 129)])
def test_a_signal_saves_says_so_and_is_gone_on_from(folder, whole, hearing, fault, code):
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


@pytest.mark.slow
def test_sigterm_between_the_stages_is_a_line_too(folder):
    done = run(folder, "sigterm in pairs")
    assert done.returncode == 143
    assert the_line(done.stderr) == "stopped: what is done is in the run folder; --resume goes on"


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_requests_are_noted_once_and_handlers_are_given_back(hearing):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    request = StopRequest()
    with pytest.raises(Stopped) as raised, request.listening():
        assert request.number == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.number == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
    assert raised.value.exit_code == 130
    with pytest.raises(Stopped) as raised, stopped_by_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert raised.value.exit_code == 143
    assert [signal.getsignal(number) for number in numbers] == before
    with pytest.raises(Stopped) as raised, StopRequest().listening():
        os.kill(os.getpid(), signal.SIGHUP)
    assert raised.value.exit_code == 129


def test_a_sighup_that_nohup_had_ignored_stays_ignored(hearing):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request = StopRequest()
    with request.listening(), stopped_by_signals():
        os.kill(os.getpid(), signal.SIGHUP)
    assert request.number == 0 and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
