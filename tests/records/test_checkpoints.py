"""Checkpoints of a run: which one is the newest, and what happens when some are damaged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastgen._core.tensor_files import load_tensors, save_tensors
from fastgen.records import checkpoints as checkpoint
from fastgen.records.checkpoints import (
    check_checkpoint,
    checkpoint_folders,
    load_newest_checkpoint,
    save_checkpoint,
    set_aside,
)
from support.bits import normal, same_bits


def saved(run_dir: Path, *steps: int, keep: int = 9) -> Path:
    """The newest of a few checkpoints; the step stands in the tensors too."""
    for step in steps:
        folder = save_checkpoint(
            run_dir, step, {"x": torch.full((50,), float(step))}, {"step": step}, keep=keep
        )
    return folder


# ---- Which checkpoint ----------------------------------------------------------------------------


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert load_newest_checkpoint(tmp_path) is None and checkpoint_folders(tmp_path) == []


def test_the_newest_is_the_one_with_most_steps_whatever_the_order_of_letters(tmp_path):
    saved(tmp_path, 9, 10, 100, 99999)
    found = load_newest_checkpoint(tmp_path)
    assert found is not None and found[1]["step"] == 99999


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept(tmp_path, keep):
    saved(tmp_path, 1, 2, 3, 4, keep=keep)
    kept = [int(folder.name.removeprefix("step_")) for folder in checkpoint_folders(tmp_path)]
    assert kept == [1, 2, 3, 4][-keep:]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        f"step_{n:08d}" for n in kept
    }


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    saved(tmp_path, 5)
    save_checkpoint(tmp_path, 5, {"x": torch.zeros(1)}, {"step": 5}, keep=1)
    found = load_newest_checkpoint(tmp_path)
    assert found is not None and torch.equal(found[0]["x"], torch.zeros(1))


def test_a_save_that_fails_leaves_those_before_it(tmp_path, monkeypatch):
    saved(tmp_path, 1)

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", no_room)
    with pytest.raises(OSError, match="No space left"):
        saved(tmp_path, 2, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_never_saved(tmp_path, value):
    saved(tmp_path, 1)
    with pytest.raises(FloatingPointError, match="NaN or infinity in fake.w$"):
        save_checkpoint(
            tmp_path, 2, {"x": normal(2), "fake.w": torch.tensor([0.0, value])}, {}, keep=1
        )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


def test_a_checkpoint_is_removed_at_once_or_not_at_all(tmp_path, monkeypatch):
    """Where the plug is pulled while an old one is removed, no folder is left that looks like one
    and is half gone."""
    saved(tmp_path, 1)
    rmtree = shutil.rmtree

    def half(folder: Path, **options: object) -> None:
        if ".new-" not in folder.name:
            next(folder.iterdir()).unlink()
        else:
            rmtree(folder, **options)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", half)
    saved(tmp_path, 2, keep=1)
    monkeypatch.undo()
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step_00000002"]
    saved(tmp_path, 3, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]


def test_a_checkpoint_is_renamed_only_when_all_of_it_is_there(tmp_path, monkeypatch):
    rename = os.rename
    seen = []

    def look(old: Path, new: Path) -> None:
        seen.append(new.name)
        check_checkpoint(Path(old))
        assert not Path(new).exists()
        rename(old, new)

    monkeypatch.setattr("os.rename", look)
    saved(tmp_path, 1)
    assert seen == ["step_00000001"]


# ---- Damage --------------------------------------------------------------------------------------


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def manifest(change: Callable[[dict], object]) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "manifest.json", change)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "tensors cut": lambda folder: cut(folder / "state.safetensors", 150),
    "tensors empty": lambda folder: cut(folder / "state.safetensors", 0),
    "one bit flipped": lambda folder: flip(folder / "state.safetensors"),
    "tensors gone": lambda folder: (folder / "state.safetensors").unlink(),
    "JSON cut": lambda folder: cut(folder / "state.json", 5),
    "JSON empty": lambda folder: cut(folder / "state.json", 0),
    "JSON gone": lambda folder: (folder / "state.json").unlink(),
    "JSON is a list": lambda folder: (folder / "state.json").write_text("[]"),
    "JSON is no text": lambda folder: (folder / "state.json").write_bytes(b"\xff\xfe\x00"),
    "JSON says another number": lambda folder: edit(
        folder / "state.json", lambda meta: meta.update(step=1)
    ),
    "manifest gone": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut": lambda folder: cut(folder / "manifest.json", 60),
    "manifest is a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "no checksum": manifest(lambda value: value["files"]["state.json"].pop("sha256")),
    "no entry": manifest(lambda value: value["files"].pop("state.json")),
    "an entry too many": manifest(lambda value: value["files"].update({"../x": {}})),
    "an entry that is a number": manifest(lambda value: value["files"].update({"state.json": 3})),
    "a file too many": lambda folder: (folder / "other.json").write_text("{}"),
    "nothing in it": lambda folder: [path.unlink() for path in folder.iterdir()],
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_newest_gives_way_to_the_one_before_and_says_so(tmp_path, caplog, damage):
    damage(saved(tmp_path, 1, 2))
    found = load_newest_checkpoint(tmp_path)
    assert found is not None and found[1]["step"] == 1 and bool((found[0]["x"] == 1).all())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "step_00000002 is damaged" in caplog.text


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_run_of_which_every_checkpoint_is_damaged_is_an_error_not_a_new_start(tmp_path, damage):
    saved(tmp_path, 1, 2)
    for folder in checkpoint_folders(tmp_path):
        damage(folder)
    with pytest.raises(ValueError, match="no checkpoint in .* is intact"):
        load_newest_checkpoint(tmp_path)


@pytest.mark.parametrize("size", [0, 4, 60, 150])
def test_a_truncated_tensor_file_is_refused_with_its_name(tmp_path, size):
    save_tensors(tmp_path / "x.safetensors", {"x": normal(50)})
    cut(tmp_path / "x.safetensors", size)
    with pytest.raises(ValueError, match="cannot read .*x.safetensors"):
        load_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("at", [9, 20, -60, -1])
def test_a_flipped_bit_in_a_tensor_file_is_refused_with_its_name(tmp_path, at):
    save_tensors(tmp_path / "x.safetensors", {"x": normal(50)})
    data = bytearray((tmp_path / "x.safetensors").read_bytes())
    data[at] ^= 1
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="cannot read .*x.safetensors"):
        load_tensors(tmp_path / "x.safetensors")


def test_a_tensor_file_without_a_checksum_is_refused(tmp_path):
    save_file({"x": normal(50)}, tmp_path / "x.safetensors")
    with pytest.raises(
        ValueError, match="cannot read .*x.safetensors: it does not match its checksum"
    ):
        load_tensors(tmp_path / "x.safetensors")


def test_what_was_loaded_does_not_change_with_its_file(tmp_path):
    save_tensors(tmp_path / "x", {"x": normal(1000)})
    back = load_tensors(tmp_path / "x")["x"]
    flip(tmp_path / "x")
    assert same_bits(back, normal(1000))


def test_a_missing_or_foreign_tensor_file_is_refused_with_its_name(tmp_path):
    (tmp_path / "text").write_text("not tensors, but long enough to hold a header's length")
    for name in ("text", "nothing"):
        with pytest.raises(ValueError, match=f"cannot read .*{name}"):
            load_tensors(tmp_path / name)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_one_is_set_aside_and_its_number_saved_again(tmp_path, damage):
    """Twice: whatever it is, it stays for whoever wants to look at it."""
    saved(tmp_path, 1)
    for _ in range(2):
        damage(saved(tmp_path, 2))
        set_aside(tmp_path, 1)
        assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step_00000001"]
        saved(tmp_path, 2, keep=2)
        found = load_newest_checkpoint(tmp_path)
        assert found is not None and found[1]["step"] == 2
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()} - {
        "step_00000001",
        "step_00000002",
    }
    assert names == {"damaged_00000002", "damaged_00000002-again"}


def test_a_copy_that_a_user_made_is_no_checkpoint_of_the_run(tmp_path):
    copied = saved(tmp_path, 1).with_name("step_before_change")
    shutil.copytree(copied.with_name("step_00000001"), copied)
    saved(tmp_path, 2, 3, keep=1)
    found = load_newest_checkpoint(tmp_path)
    assert found is not None and found[1]["step"] == 3 and (copied / "state.json").exists()


@pytest.mark.parametrize("name", [".DS_Store", ".nfs0000001"])
def test_a_hidden_file_of_somebody_else_harms_nothing(tmp_path, name, caplog):
    (saved(tmp_path, 1, 2) / name).write_bytes(b"x")
    found = load_newest_checkpoint(tmp_path)
    assert found is not None and found[1]["step"] == 2 and not caplog.records
    saved(tmp_path, 3, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]


def test_one_that_is_newer_takes_no_place_among_those_that_are_kept(tmp_path):
    saved(tmp_path, 1, 2, 9, keep=3)
    saved(tmp_path, 3, keep=2)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == [
        f"step_{n:08d}" for n in (2, 3, 9)
    ]


def test_going_on_from_the_one_before_a_damaged_newest_keeps_what_is_saved_then(tmp_path):
    flip(saved(tmp_path, 6, 9) / "state.safetensors")
    # Another interval between checkpoints than before: the damaged one has a higher step than the
    # next.
    folder = saved(tmp_path, 7, keep=1)
    assert folder.exists()
    found = load_newest_checkpoint(tmp_path)
    assert found is not None and found[1]["step"] == 7
