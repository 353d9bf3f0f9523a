"""Files and folders appear whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastgen._core import files
from fastgen._core.files import new_folder, write_file

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
