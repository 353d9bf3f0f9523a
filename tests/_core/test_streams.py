"""Standard streams that fail: what is printed is lost, and nothing else."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastgen._core.streams import lasting_streams

STREAMS = Path(__file__).parents[2] / "fastgen" / "_core" / "streams.py"
# Prints more than a buffer holds to both streams, by tqdm too, and then does its work.
# The file alone: the package would load torch, which takes seconds.
JOB = """
import importlib.util, sys
from pathlib import Path
from tqdm import tqdm
spec = importlib.util.spec_from_file_location("streams", STREAMS)
streams = importlib.util.module_from_spec(spec)
spec.loader.exec_module(streams)
with streams.lasting_streams():
    for _ in tqdm(range(3), mininterval=0):
        print("x" * 100_000)
        print("папка \\udcd0 x" * 1000, file=sys.stderr, flush=True)
    print("папка \\udcd0", flush=True)
    handle = open("opened", "w")
    Path("work").write_text(f"done {handle.fileno() > 2}")
    print("end")
"""
SHELL = {
    "stdout closed": "{job} >&-",
    "stderr closed": "{job} 2>&-",
    "both closed": "{job} >&- 2>&-",
    "all closed": "{job} <&- >&- 2>&-",
    "a reader that goes": "{job} | head -c1",
    "a reader of stderr that goes": "{job} 2>&1 >out.txt | head -c1",
    "a reader of both that goes": "{job} 2>&1 | head -c1",
    "a full disk": "{job} >/dev/full",
    "a full disk for both": "{job} >/dev/full 2>/dev/full",
    "read only": "{job} 1</dev/null 2</dev/null",
    "a file": "{job} >out.txt 2>err.txt",
}


def shell(folder: Path, line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A line of bash, whose exit code is that of the first command of a pipe."""
    (folder / "job.py").write_text(JOB.replace("STREAMS", repr(str(STREAMS))), encoding="utf-8")
    return subprocess.run(
        ["bash", "-c", line.format(job=f"'{sys.executable}' job.py") + "; exit ${PIPESTATUS[0]}"],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
    )


@pytest.mark.parametrize("how", SHELL)
def test_the_work_is_done_whatever_becomes_of_the_streams(tmp_path, how):
    done = shell(tmp_path, SHELL[how])
    assert done.returncode == 0, done.stderr
    # Nor does a file of the work get the number of a stream that was closed.
    assert (tmp_path / "work").read_text() == "done True"
    assert (tmp_path / "opened").read_text() == ""
    if how == "a full disk":
        assert "warning: cannot write to stdout: No space left on device" in done.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "utf-8"},
    ],
)
def test_letters_that_a_terminal_lacks_are_written_as_escapes(tmp_path, variables):
    done = shell(tmp_path, "{job}", **variables)
    assert done.returncode == 0 and (tmp_path / "work").exists(), done.stderr
    *_, line, end = done.stdout.splitlines()
    assert end == "end" and line.endswith("\\udcd0")


def test_a_stream_without_a_file_may_fail_too(monkeypatch):
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError("gone")

        def flush(self) -> None:
            raise ValueError("I/O operation on closed file")

    broken = Broken()
    monkeypatch.setattr(sys, "stdout", broken)
    with lasting_streams():
        print("x", flush=True)
        sys.stdout.writelines(["x", "y"])
        assert not sys.stdout.isatty()
    assert sys.stdout is broken


def test_streams_are_given_back_and_a_change_inside_is_kept(capsys):
    before = sys.stdout, sys.stderr
    with lasting_streams(), lasting_streams():
        print("inside")
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "inside\n"
    other = io.StringIO()
    with lasting_streams():
        sys.stdout = other
    assert sys.stdout is other
    sys.stdout = before[0]


def test_a_pipe_that_is_full_for_the_moment_is_not_lost(monkeypatch):
    class Full(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise BlockingIOError
            return super().write(text)

    stream = Full()
    monkeypatch.setattr(sys, "stdout", stream)
    with lasting_streams():
        print("lost")
        stream.full = False
        print("seen")
    assert stream.getvalue() == "seen\n"
