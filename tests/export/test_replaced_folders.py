"""A folder that is replaced while it is read: one export or the other, or one clear error; never
the weights of one and the rungs of the other."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgen._core import files
from fastgen.export import built_in, load_network, load_student, save_network, schema
from fastgen.records import checkpoints
from fastgen.records.checkpoints import load_newest_checkpoint, save_checkpoint
from support.folders import export_
from support.networks import dense

RUNGS = {0: [0.9, 0.5, 0.25, 0.125, 0.0], 1: [0.8, 0.4, 0.2, 0.1, 0.0]}


def numbered(which: int) -> torch.nn.Module:
    """A network all of whose weights are its number."""
    network = dense()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(which)
    return network


def write_student(path: Path, which: int) -> None:
    export_(path, numbered(which), t_list=RUNGS[which])


def write_teacher(path: Path, which: int) -> None:
    save_network(path, numbered(which), description={"number": which})


def read_student(path: Path) -> tuple[int, int]:
    """(number of the weights, number of the rungs)."""
    student = load_student(path)
    return number_of(student.network.state_dict()), int(list(student.t_list) == RUNGS[1])


def read_teacher(path: Path) -> tuple[int, int]:
    network, description = load_network(path)
    return number_of(network.state_dict()), description["number"]


def number_of(state: dict[str, Tensor]) -> int:
    """The number that all weights are."""
    values = {float(value.flatten()[0]) for name, value in state.items() if "weight" in name}
    assert len(values) == 1
    return int(values.pop())


Write = Callable[[Path, int], None]
Read = Callable[[Path], tuple[int, int]]
KINDS: dict[str, tuple[Write, Read]] = {
    "student": (write_student, read_student),
    "teacher": (write_teacher, read_teacher),
}


def before(
    patch: pytest.MonkeyPatch, owner: Any, name: str, do: Callable[[], None], times: int
) -> None:
    """Call `do` before each of the first calls of `owner.name`."""
    plain = getattr(owner, name)
    left = [times]

    def instead(*args: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            do()
        return plain(*args, **options)

    patch.setattr(owner, name, instead)


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("owner", "name"), [(schema, "TensorFile"), (built_in, "build_model"), (schema, "read_config")]
)
def test_a_folder_that_is_replaced_at_any_moment_is_read_as_one(
    tmp_path, monkeypatch, kind, exchange, owner, name
):
    write, read = KINDS[kind]
    write(tmp_path / "x", 0)
    write(tmp_path / "next", 1)
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)

    def replace() -> None:
        files._take_place(tmp_path / "next", tmp_path / "x")
        shutil.rmtree(tmp_path / "next", ignore_errors=True)

    before(monkeypatch, owner, name, replace, times=1)
    weights, rest = read(tmp_path / "x")
    assert weights == rest


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_is_replaced_each_time_is_one_clear_error(tmp_path, monkeypatch, kind):
    write, read = KINDS[kind]
    turns = [0]

    def turn() -> None:
        turns[0] += 1
        write(tmp_path / "x", turns[0] % 2)

    turn()
    before(monkeypatch, schema, "TensorFile", turn, times=1000)
    with pytest.raises(ValueError, match="x: expected a folder that stays while it is read") as got:
        read(tmp_path / "x")
    assert "\n" not in str(got.value) and turns[0] < 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_written_over_in_place_is_an_error_not_a_mixture(
    tmp_path, monkeypatch, kind
):
    write, read = KINDS[kind]
    write(tmp_path / "x", 0)
    write(tmp_path / "y", 1)
    (tensors,) = (tmp_path / "y").glob("*.safetensors")

    def copy() -> None:
        shutil.copyfile(tensors, tmp_path / "x" / tensors.name)

    with monkeypatch.context() as patch:
        before(patch, schema, "TensorFile", copy, times=1)
        with pytest.raises(ValueError, match="expected sha256 .* the file was edited"):
            read(tmp_path / "x")


def test_weights_that_were_checked_are_those_that_are_used(tmp_path, monkeypatch):
    write_student(tmp_path / "x", 0)
    path = tmp_path / "x" / "student.safetensors"

    def spoil() -> None:
        data = bytearray(path.read_bytes())
        data[-4000:] = bytes(4000)
        path.write_bytes(data)

    before(monkeypatch, built_in, "build_model", spoil, times=1)
    student = load_student(tmp_path / "x")
    monkeypatch.undo()
    again = numbered(0).state_dict()
    assert all(
        torch.equal(value, again[name]) for name, value in student.network.state_dict().items()
    )


@pytest.mark.parametrize("name", ["parse_json", "read_hashed"])
def test_a_checkpoint_that_is_replaced_is_read_as_one(tmp_path, monkeypatch, name):
    def write(which: int) -> None:
        save_checkpoint(tmp_path, 5, {"x": torch.full((9,), float(which))}, {"x": which}, keep=1)

    write(0)
    before(monkeypatch, checkpoints, name, lambda: write(1), times=1)
    found = load_newest_checkpoint(tmp_path)
    assert found is not None and float(found[0]["x"][0]) == found[1]["x"]


def keep_writing(kind: str, path: Path, times: int) -> None:
    torch.set_num_threads(1)
    for turn in range(times):
        KINDS[kind][0](path, turn % 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_beside_a_writer_never_gets_a_mixture(tmp_path, kind):
    write, read = KINDS[kind]
    write(tmp_path / "x", 0)
    writer = multiprocessing.get_context("fork").Process(
        target=keep_writing, args=(kind, tmp_path / "x", 100_000)
    )
    writer.start()
    seen = []
    try:
        for _ in range(60):
            try:
                seen.append(read(tmp_path / "x"))
            except ValueError as error:
                assert "a folder that stays while it is read" in str(error)
    finally:
        writer.kill()
        writer.join()
    assert len(seen) > 0 and set(seen) <= {(0, 0), (1, 1)}
