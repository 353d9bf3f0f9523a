"""Tensors read back bit for bit, from files that are whole or not there."""

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from fastgen._core import tensor_files
from fastgen._core.json_files import write_json
from fastgen._core.tensor_files import (
    TensorFile,
    load_tensors,
    read_safetensors,
    save_tensors,
    write_safetensors,
    write_tensors,
)


def test_files_are_readable_by_those_the_umask_lets(tmp_path):
    write_json(tmp_path / "a.json", {})
    write_tensors(tmp_path / "a.safetensors", {"w": torch.ones(2)}, torch.float32)
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "a.safetensors").stat().st_mode


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


def test_a_bare_file_and_one_with_a_checksum_hold_the_same_tensors(tmp_path):
    tensors = {"a": torch.randn(3, 4), "n": torch.arange(3), "half": torch.ones(2).bfloat16()}
    write_safetensors(tmp_path / "bare.safetensors", tensors)
    save_tensors(tmp_path / "new" / "checked.safetensors", tensors)
    for back in (
        read_safetensors(tmp_path / "bare.safetensors"),
        read_safetensors(tmp_path / "new" / "checked.safetensors"),
        load_tensors(tmp_path / "new" / "checked.safetensors"),
    ):
        assert back.keys() == tensors.keys()
        assert all(torch.equal(back[name], value) for name, value in tensors.items())
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["checked.safetensors"]
    with pytest.raises(ValueError, match="bare.safetensors: it does not match its checksum"):
        load_tensors(tmp_path / "bare.safetensors")


def test_a_failure_leaves_the_old_tensors(tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"w": torch.ones(2)})

    def no_room(tensors, filename, metadata):
        Path(filename).write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensor_files, "save_file", no_room)
    with pytest.raises(OSError, match="cannot write .*t.safetensors: .*No space left on device"):
        save_tensors(path, {"w": torch.zeros(2)})
    assert torch.equal(load_tensors(path)["w"], torch.ones(2))
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.safetensors"]


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
