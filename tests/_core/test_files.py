"""Files and folders appear whole or not at all."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastgen._core import files
from fastgen._core.files import new_folder, remove_unfinished, write_file
from fastgen.records.checkpoints import load_newest_checkpoint, save_checkpoint

OWNED = ("a.txt", "b.txt")


def fill(folder: Path, text: str) -> None:
    with new_folder(folder, OWNED) as partial:
        for name in OWNED:
            (partial / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {entry.name: entry.read_text() for entry in folder.iterdir()}


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_whole(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    fill(tmp_path / "out", "old")
    (tmp_path / "out" / "b.txt").unlink()
    fill(tmp_path / "out", "new")
    assert content(tmp_path / "out") == dict.fromkeys(OWNED, "new")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")]
)
def test_a_failure_leaves_the_old_folder(tmp_path, error):
    fill(tmp_path / "out", "old")
    with pytest.raises(type(error)), new_folder(tmp_path / "out", OWNED) as partial:
        (partial / "a.txt").write_text("half")
        raise error
    assert content(tmp_path / "out") == dict.fromkeys(OWNED, "old")
    assert os.listdir(tmp_path) == ["out"]


def test_a_failing_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    fill(tmp_path / "out", "old")
    rename = os.rename

    def failing(source, target):
        if ".new-" in str(source):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="cannot write .*out: Input/output error"):
        fill(tmp_path / "out", "new")
    assert content(tmp_path / "out") == dict.fromkeys(OWNED, "old")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.slow
def test_a_kill_leaves_the_old_folder(tmp_path):
    fill(tmp_path / "out", "old")
    code = (
        "import os, signal, sys\n"
        "from fastgen._core.files import new_folder\n"
        "with new_folder(sys.argv[1], ('a.txt', 'b.txt')) as partial:\n"
        "    (partial / 'a.txt').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(files.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], cwd=root)
    assert done.returncode == -9
    assert content(tmp_path / "out") == dict.fromkeys(OWNED, "old")
    # What the killed writer left is cleared away once it is certainly abandoned, not while it might
    # still be written.
    (left,) = tmp_path.glob(".out.new-*")
    fill(tmp_path / "out", "new")
    assert left.exists()
    os.utime(left, (0, 0))
    fill(tmp_path / "out", "newer")
    assert os.listdir(tmp_path) == ["out"]


def test_foreign_files_are_never_deleted(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match="got a folder with thesis.tex; choose another folder"):
        fill(tmp_path, "new")
    with pytest.raises(ValueError, match="expected a folder or nothing, got a file"):
        fill(tmp_path / "thesis.tex", "new")
    assert content(tmp_path) == {"thesis.tex": "years"}


def test_a_file_that_arrives_during_the_work_is_kept(tmp_path):
    fill(tmp_path / "out", "old")
    with (
        pytest.raises(ValueError, match="notes.md"),
        new_folder(tmp_path / "out", OWNED) as partial,
    ):
        (partial / "a.txt").write_text("new")
        (tmp_path / "out" / "notes.md").write_text("mine")
    assert content(tmp_path / "out") == {"a.txt": "old", "b.txt": "old", "notes.md": "mine"}


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    fill(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and content(tmp_path / "real") == dict.fromkeys(
        OWNED, "new"
    )


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/out.*choose a folder"):
        fill(tmp_path / "file" / "out", "new")
    with pytest.raises(OSError, match=r"cannot write .*file/x"):
        write_file(tmp_path / "file" / "x", b"")


# ---- What a killed writer left -------------------------------------------------------------------


@pytest.fixture(params=[-7200.0, -3600.0, 3600.0, 7200.0, 1e9])
def skew(request, monkeypatch) -> float:
    """This machine's clock, so many seconds ahead of the disk's."""
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() + request.param)
    return request.param


def test_a_clock_that_differs_from_the_disks_harms_nothing(tmp_path, skew):
    fill(tmp_path / "out", "old")
    fill(tmp_path / "out", "new")
    assert content(tmp_path / "out") == dict.fromkeys(OWNED, "new")
    save_checkpoint(tmp_path, 1, {"x": torch.zeros(2)}, {}, keep=1)
    save_checkpoint(tmp_path, 2, {"x": torch.zeros(2)}, {}, keep=1)
    assert load_newest_checkpoint(tmp_path) is not None


@pytest.mark.parametrize("age", [0, 7200, 10**9])
def test_writers_of_one_folder_leave_each_other_alone(tmp_path, skew, age):
    """However old the disk says that the other's work is: it set its clock meanwhile, or the other
    writes a large file."""
    with new_folder(tmp_path / "out", OWNED) as first:
        then = os.stat(first).st_mtime - age
        os.utime(first, (then, then))
        fill(tmp_path / "out", "second")
        assert content(tmp_path / "out") == dict.fromkeys(OWNED, "second")
        for name in OWNED:
            (first / name).write_text("first")
    assert content(tmp_path / "out") == dict.fromkeys(OWNED, "first")
    assert os.listdir(tmp_path) == ["out"]


def test_what_nobody_writes_any_more_is_removed_whatever_the_clock_says(tmp_path, skew):
    for name in ("out", "o[u]t"):
        target = tmp_path / name
        fill(target, "old")
        stale = tmp_path / f".{name}.new-0123abcd"
        fresh = tmp_path / f".{name}.new-4567cdef"
        other = tmp_path / f".{name}-2.new-0123abcd"
        for folder in (stale, fresh, other):
            folder.mkdir()
            (folder / "a.txt").write_text("half")
        for folder in (stale, other):
            then = os.stat(fresh).st_mtime - 7200
            os.utime(folder, (then, then))
        fill(target, "new")
        assert not stale.exists() and fresh.exists() and other.exists()


def test_a_disk_without_locks_goes_by_its_clock(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    fill(tmp_path / "out", "old")
    for name, age in ((".out.new-0", 7200), (".out.new-1", 60)):
        (tmp_path / name).mkdir()
        then = os.stat(tmp_path / name).st_mtime - age
        os.utime(tmp_path / name, (then, then))
    fill(tmp_path / "out", "new")
    assert sorted(os.listdir(tmp_path)) == [".out.new-1", "out"]


def test_what_a_living_writer_holds_is_no_leftover_of_a_run(tmp_path):
    (tmp_path / ".student.new-0").mkdir()
    with new_folder(tmp_path / "out", OWNED) as partial:
        remove_unfinished(tmp_path)
        assert partial.exists() and not (tmp_path / ".student.new-0").exists()
        for name in OWNED:
            (partial / name).write_text("whole")
    assert content(tmp_path / "out") == dict.fromkeys(OWNED, "whole")
