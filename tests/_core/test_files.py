"""Files appear whole or not at all, and what is read back is what was written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastgen._core import files as _files
from fastgen._core.files import new_folder, write_file
from fastgen._core.json_files import plain_json, read_json, write_json
from fastgen._core.tensor_files import TensorFile, write_tensors

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
        monkeypatch.setattr(_files, "_exchange", lambda a, b: False)
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

    monkeypatch.setattr(_files, "_exchange", lambda a, b: False)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="cannot write .*out: Input/output error"):
        fill(tmp_path / "out", "new")
    assert content(tmp_path / "out") == dict.fromkeys(OWNED, "old")
    assert os.listdir(tmp_path) == ["out"]


def test_a_kill_leaves_the_old_folder(tmp_path):
    fill(tmp_path / "out", "old")
    code = (
        "import os, signal, sys\n"
        "from fastgen._core.files import new_folder\n"
        "with new_folder(sys.argv[1], ('a.txt', 'b.txt')) as partial:\n"
        "    (partial / 'a.txt').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(_files.__file__).parents[2]
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


def test_files_are_readable_by_those_the_umask_lets(tmp_path):
    write_json(tmp_path / "a.json", {})
    write_tensors(tmp_path / "a.safetensors", {"w": torch.ones(2)}, torch.float32)
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "a.safetensors").stat().st_mode


def test_json_floats_read_back_exactly(tmp_path):
    values = [0.1, 1 / 3, 1e-308, -2.5e300, 0.999]
    write_json(tmp_path / "x.json", {"values": values})
    assert read_json(tmp_path / "x.json")["values"] == values


def test_plain_json_speaks_of_what_it_cannot_hold():
    given = {
        "a": (1, 2.5),
        "t": torch.tensor([1.0, float("nan")]),
        "p": Path("x"),
        "n": float("inf"),
        3: True,
    }
    assert plain_json(given, "d") == {
        "a": [1, 2.5],
        "t": [1.0, None],
        "p": "x",
        "n": None,
        "3": True,
    }
    with pytest.raises(TypeError, match=r"expected d.a\[1\] to hold numbers.*got set"):
        plain_json({"a": [1, {2}]}, "d")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[1]",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": 1, "a": 2}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": 1',
    ],
)
def test_what_is_not_json_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match="x.json: expected") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_only_plain_files_of_a_sane_size_are_read(tmp_path):
    with pytest.raises(ValueError, match="expected a file, found none"):
        read_json(tmp_path / "none.json")
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    with pytest.raises(ValueError, match="found something that is not a file"):
        read_json(tmp_path / "pipe")
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(ValueError, match="expected at most"):
        read_json(tmp_path / "huge.json")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_tensors_come_back_bit_for_bit(tmp_path, dtype):
    shared = torch.randn(3, 4, dtype=torch.float64)
    state = {
        "a": shared,
        "b": shared.T,
        "n": torch.arange(3),
        "s": torch.tensor(2.0),
        "none": torch.empty(0, 2),
    }
    entry = write_tensors(tmp_path / "t.safetensors", state, dtype)
    back = TensorFile(tmp_path, entry).read({k: v.to("meta") for k, v in state.items()})
    for name, value in state.items():
        assert torch.equal(back[name], value.to(dtype) if value.is_floating_point() else value)


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="NaN or infinity in head.weight"):
        write_tensors(
            tmp_path / "t", {"head.weight": torch.tensor([1.0, float("inf")])}, torch.float32
        )
    with pytest.raises(ValueError, match="w on the meta device"):
        write_tensors(tmp_path / "t", {"w": torch.ones(2, device="meta")}, torch.float32)
    # A number that only the narrower dtype can't hold is lost as well.
    with pytest.raises(ValueError, match="NaN or infinity in w"):
        write_tensors(tmp_path / "t", {"w": torch.tensor([1e30])}, torch.float16)
