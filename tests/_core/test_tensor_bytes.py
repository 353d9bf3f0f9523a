"""The bytes of a safetensors file: the library's own numbers, and no kind that torch can't hold."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fastgen._core.tensor_bytes import DTYPES, read_once
from fastgen._core.tensor_files import TensorFile, load_tensors, read_safetensors

BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8, "F8_E4M3": 8, "F8_E5M2": 8}


def written(path: Path, kind: str, numbers: int = 8) -> Path:
    """A file of one tensor whose header says this kind."""
    size = numbers * BITS.get(kind, 8) // 8
    header = {"w": {"dtype": kind, "shape": [numbers], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(range(size)))
    return path


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_every_dtype_is_read_as_the_library_reads_it(tmp_path, dtype):
    path = tmp_path / "x.safetensors"
    raw = torch.randint(2, (3, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    tensors = {"w": raw.view(dtype), "none": torch.empty(0, 5, dtype=dtype)}
    save_file(tensors, path, metadata={"a": "é"})
    found = read_once(path)
    with safe_open(path, framework="pt") as file:
        for name in tensors:
            value = file.get_tensor(name)
            assert found.tensors[name].dtype == value.dtype == dtype
            assert found.tensors[name].shape == value.shape
            mine = found.tensors[name].reshape(-1).view(torch.uint8)
            assert torch.equal(mine, value.reshape(-1).view(torch.uint8))
        assert found.metadata == file.metadata()
    assert found.error is None and set(found.tensors) == set(tensors)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["F4", "F6_E2M3", "F6_E3M2", "F128", "", "f32"])
def test_a_kind_that_torch_has_no_bytes_for_is_one_line(tmp_path, kind):
    path = written(tmp_path / "x.safetensors", kind)
    data = path.read_bytes()
    entry = {"file": path.name, "bytes": len(data), "dtype": "float32"}
    entry["sha256"] = hashlib.sha256(data).hexdigest()
    for read in (read_safetensors, load_tensors, lambda path: TensorFile(path.parent, entry)):
        with pytest.raises(ValueError, match=f"'w' of the dtype '{kind}', none of F64") as caught:
            read(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["F8_E8M0", "F8_E4M3", "F8_E5M2"])
def test_weights_of_eight_bits_are_not_taken_for_others(tmp_path, kind):
    path = written(tmp_path / "x.safetensors", kind)
    data = path.read_bytes()
    entry = {"file": path.name, "bytes": len(data), "dtype": "float32"}
    entry["sha256"] = hashlib.sha256(data).hexdigest()
    with pytest.raises(ValueError, match=f"expected w of dtype torch.float32, got {kind}"):
        TensorFile(path.parent, entry).read({"w": torch.empty(8)})


def test_numbers_that_begin_anywhere_are_read(tmp_path):
    """A header need not end at a multiple of eight."""
    for pad in range(8):
        text = json.dumps({"w": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}}).encode()
        data = struct.pack("<Q", len(text) + pad) + text + b" " * pad + struct.pack("<dd", 1.5, -2)
        (tmp_path / "x").write_bytes(data)
        assert read_safetensors(tmp_path / "x")["w"].tolist() == [1.5, -2.0]
